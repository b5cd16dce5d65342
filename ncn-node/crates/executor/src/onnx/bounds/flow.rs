//! The graph's order, branches and loops.

use std::collections::BTreeMap;

use super::{
    super::graph::{GraphProto, NodeProto},
    Fact, Kind, Refusal,
};

/// Operators that are looked at before a graph counts as too large. Loops within loops are looked at several times.
const MOST_STEPS: usize = 1_000_000;
/// Rounds of a loop before its values count as unbounded, and before the loop is given up.
const ROUNDS: (usize, usize) = (2, 8);

/// The values that a graph's operators can name.
pub(super) struct Scope<'a> {
    outer: Option<&'a Self>,
    facts: BTreeMap<String, Fact>,
}

impl<'a> Scope<'a> {
    pub(super) const fn new(outer: Option<&'a Self>, facts: BTreeMap<String, Fact>) -> Self {
        Self { outer, facts }
    }

    /// The graph's own constants.
    pub(super) fn constants(graph: &GraphProto) -> BTreeMap<String, Fact> {
        graph.initializer.iter().map(|tensor| (tensor.name.clone(), Fact::constant(tensor))).collect()
    }

    pub(super) fn extend(&mut self, facts: BTreeMap<String, Fact>) {
        self.facts.extend(facts);
    }

    fn get(&self, name: &str) -> Option<&Fact> {
        self.facts.get(name).or_else(|| self.outer?.get(name))
    }

    /// The fact of a value that an operator takes.
    fn known(&self, name: &str) -> Result<Fact, Refusal> {
        self.get(name).cloned().ok_or_else(|| Refusal { problem: format!("`{name}` is used before it is computed"), flags: false })
    }
}

/// One pass over a graph.
pub(super) struct Analysis {
    steps: usize,
    /// The version of the operators.
    opset: i64,
}

/// An operator, for a refusal.
pub(super) fn refusal(node: &NodeProto, problem: &str) -> Refusal {
    let name = if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { node.name.as_str() };
    Refusal { problem: format!("the operator {} (`{name}`) {problem}", node.op_type), flags: false }
}

impl Analysis {
    pub(super) const fn new(opset: i64) -> Self {
        Self { steps: 0, opset }
    }

    /// What the graph gives.
    pub(super) fn graph(&mut self, graph: &GraphProto, scope: &mut Scope<'_>) -> Result<Vec<Fact>, Refusal> {
        for node in &graph.node {
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return Err(refusal(node, "is one of too many to be checked"));
            }
            let facts = self.node(node, scope)?;
            if facts.len() < node.output.len() {
                return Err(refusal(node, "gives more than is known of it"));
            }
            scope.facts.extend(node.output.iter().cloned().zip(facts).filter(|(name, _)| !name.is_empty()));
        }
        graph.output.iter().map(|output| scope.known(&output.name)).collect()
    }

    fn node(&mut self, node: &NodeProto, scope: &Scope<'_>) -> Result<Vec<Fact>, Refusal> {
        let input = |name: &String| if name.is_empty() { Ok(None) } else { scope.known(name).map(Some) };
        let inputs = node.input.iter().map(input).collect::<Result<Vec<_>, _>>()?;
        match node.op_type.as_str() {
            "If" => {
                let (then, otherwise) = (self.branch(node, "then_branch", scope)?, self.branch(node, "else_branch", scope)?);
                if then.iter().zip(&otherwise).any(|(a, b)| a.kind != b.kind) {
                    return Err(refusal(node, "has branches of several types"));
                }
                Ok(then.iter().zip(&otherwise).map(|(a, b)| a.join(b)).collect())
            }
            "Loop" => self.repeat(node, &inputs, scope),
            _ => {
                super::deviations::check(node, &inputs, self.opset)?;
                super::operators::outputs(node, &inputs)
            }
        }
    }

    fn branch(&mut self, node: &NodeProto, name: &str, scope: &Scope<'_>) -> Result<Vec<Fact>, Refusal> {
        let graph = node.attribute(name).and_then(|attribute| attribute.g.as_ref());
        let graph = graph.ok_or_else(|| refusal(node, &format!("has no `{name}`")))?;
        // The engine looks for it in the branch alone.
        let makes = |name: &String| {
            graph.node.iter().any(|node| node.output.contains(name)) || graph.initializer.iter().any(|made| made.name == *name)
        };
        if let Some(outside) = graph.output.iter().find(|output| !makes(&output.name)) {
            return Err(refusal(node, &format!("has a branch that gives `{}`, which is outside of it", outside.name)));
        }
        self.graph(graph, &mut Scope::new(Some(scope), Scope::constants(graph)))
    }

    fn repeat(&mut self, node: &NodeProto, inputs: &[Option<Fact>], scope: &Scope<'_>) -> Result<Vec<Fact>, Refusal> {
        let body = node.attribute("body").and_then(|attribute| attribute.g.as_ref());
        let body = body.ok_or_else(|| refusal(node, "has no body"))?;
        // The engine counts rounds in 32 bits, and no loop of 2^31 rounds ends within a deadline.
        let rounds =
            inputs.first().and_then(Option::as_ref).map_or(f64::INFINITY, |rounds| rounds.hi).clamp(0.0, f64::from(i32::MAX));
        let mut carried: Vec<Fact> = inputs.iter().skip(2).flatten().cloned().collect();
        for round in 0..ROUNDS.1 {
            let number = Fact::scalar(Kind::I64, (0.0, (rounds - 1.0).max(0.0)));
            let names = body.input.iter().map(|input| input.name.clone());
            let values = [number, Fact::any(Kind::Bool)].into_iter().chain(carried.iter().cloned());
            let mut inner = Scope::new(Some(scope), Scope::constants(body));
            inner.extend(names.zip(values).collect());
            let results = self.graph(body, &mut inner)?;
            let last = results.get(1..=carried.len()).ok_or_else(|| refusal(node, "has too few outputs"))?;
            let next: Vec<Fact> = carried.iter().zip(last).map(|(before, after)| before.join(after)).collect();
            if carried.iter().zip(last).any(|(before, after)| before.kind != after.kind) {
                return Err(refusal(node, "changes the type of what it carries"));
            }
            if next == carried {
                let scanned = results.iter().skip(1 + carried.len()).map(|fact| {
                    let shape = fact.shape.as_ref().map(|shape| [rounds].into_iter().chain(shape.iter().copied()).collect());
                    fact.shaped(shape, fact.count * rounds.max(1.0))
                });
                return Ok(carried.into_iter().chain(scanned.collect::<Vec<_>>()).collect());
            }
            carried = if round < ROUNDS.0 {
                next
            } else {
                carried.iter().zip(next).map(|(before, after)| widened(before, after)).collect()
            };
        }
        Err(refusal(node, "carries values whose bounds are not found"))
    }
}

/// What still grows after some rounds counts as unbounded.
fn widened(before: &Fact, mut after: Fact) -> Fact {
    // Other types than 64-bit integers have the same range in every engine.
    let (lo, hi) = if after.kind == Kind::I64 { (f64::NEG_INFINITY, f64::INFINITY) } else { after.kind.range() };
    if after.lo < before.lo {
        after.lo = lo;
    }
    if after.hi > before.hi {
        after.hi = hi;
    }
    if after.shape != before.shape {
        (after.shape, after.exact) = (None, false);
    }
    if after.count > before.count {
        after.count = f64::INFINITY;
    }
    after
}
