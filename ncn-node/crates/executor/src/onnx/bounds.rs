//! Whether a graph's 64-bit integers fit the 32 bits that the built-in engine computes them in.
//!
//! Each value of the graph gets an interval (Cousot and Cousot, "Abstract interpretation", 1977): constants are exact, inputs are in the
//! bounds that a run enforces, and every operator maps intervals to intervals. A graph is refused when an integer may leave 32 bits.
//! The bounds of the inputs are the widest of some levels with which the graph is found to be safe. Operators that the engine computes
//! otherwise than ONNX says are refused as well.

mod arithmetic;
mod deviations;
mod fact;
mod flow;
mod operators;
mod shapes;

use std::collections::BTreeMap;

use ncn_core::{
    Tensor,
    model::{Dimension, InputSpec, Manifest},
};

use super::graph::GraphProto;
pub(super) use fact::{Fact, Kind};
use flow::{Analysis, Scope};

/// Why a graph is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    problem: String,
    /// It might be taken if all integers were 0 or 1.
    flags: bool,
}

/// The largest values of an input, the widest first. A graph that is safe with smaller ones only is refused: it is of no use.
const VALUES: [f64; 7] = [2_147_483_648.0, 1_073_741_824.0, 268_435_456.0, 16_777_216.0, 1_048_576.0, 65_536.0, 4_096.0];
/// The largest dimensions of an input.
const DIMS: [f64; 11] =
    [2_147_483_647.0, 67_108_864.0, 16_777_216.0, 1_048_576.0, 262_144.0, 65_536.0, 32_768.0, 16_384.0, 8_192.0, 4_096.0, 1_024.0];
/// As far as dimensions grow before values do.
const USUAL_DIM: f64 = 65_536.0;

/// What inputs are assumed to be.
#[derive(Clone, Debug)]
struct Assumed {
    dim: f64,
    /// For each input.
    values: BTreeMap<String, (f64, f64)>,
}

/// What the engine may be given for each input, and what it gives.
#[derive(Debug)]
pub(super) struct Bounds {
    inputs: BTreeMap<String, Fact>,
    /// Types of the graph's outputs.
    pub(super) outputs: BTreeMap<String, Kind>,
}

fn range(level: f64) -> (f64, f64) {
    (-level, level.min(f64::from(i32::MAX)))
}

impl Bounds {
    /// Finds bounds with which no integer of the graph leaves 32 bits; the error names the operator where one may.
    pub(super) fn find(graph: &GraphProto, opset: i64, manifest: &Manifest) -> Result<Self, String> {
        let search = Search { graph, opset, manifest, constants: Scope::constants(graph) };
        let kinds = search.kinds();
        let whole = |level| Assumed { dim: level, values: kinds.iter().map(|(name, kind)| (name.clone(), kind.range())).collect() };
        if let Ok(found) = search.with(&whole(DIMS.first().copied().unwrap_or_default())) {
            return Ok(found);
        }
        search.widest(&kinds).map_err(|refusal| refusal.problem)
    }

    /// Says what is wrong with an input that is outside of the bounds.
    pub(super) fn check(&self, name: &str, tensor: &Tensor) -> Result<(), String> {
        let Some(fact) = self.inputs.get(name) else { return Ok(()) };
        #[allow(clippy::cast_precision_loss, reason = "compared with small numbers")]
        let sizes: Vec<f64> = tensor.shape().iter().map(|size| *size as f64).collect();
        let inside = match &fact.shape {
            Some(most) => sizes.len() == most.len() && sizes.iter().zip(most).all(|(size, most)| size <= most),
            None => sizes.iter().all(|size| *size <= fact.dim()),
        };
        if !inside || sizes.iter().product::<f64>() > fact.count {
            let most = fact.shape.clone().unwrap_or_else(|| vec![fact.dim()]);
            return Err(format!(
                "has the shape {:?}: for this model, the built-in engine takes sizes up to {most:?}, since it computes 64-bit integers in 32 bits{ADVICE}",
                tensor.shape()
            ));
        }
        #[allow(clippy::cast_precision_loss, reason = "compared with small numbers")]
        let outside = match fact.kind {
            Kind::I64 => tensor
                .to_i64()
                .ok()
                .and_then(|values| values.into_iter().find(|value| (*value as f64) < fact.lo || *value as f64 > fact.hi)),
            Kind::I32 => tensor.to_i32().ok().and_then(|values| {
                values.into_iter().map(i64::from).find(|value| (*value as f64) < fact.lo || *value as f64 > fact.hi)
            }),
            _ => None,
        };
        match outside {
            Some(value) => {
                let (lo, hi) = (fact.lo, fact.hi);
                Err(format!(
                    "has the value {value}: for this model, the built-in engine takes values from {lo} to {hi}, since it computes 64-bit integers in 32 bits{ADVICE}"
                ))
            }
            None => Ok(()),
        }
    }
}

/// What to do about a refusal.
pub(super) const ADVICE: &str = "; ONNX Runtime takes all: install it on the node";

struct Search<'a> {
    graph: &'a GraphProto,
    opset: i64,
    manifest: &'a Manifest,
    constants: BTreeMap<String, Fact>,
}

impl Search<'_> {
    /// The inputs that hold integers.
    fn kinds(&self) -> BTreeMap<String, Kind> {
        let inputs = self.graph.input.iter().filter(|input| !self.constants.contains_key(&input.name));
        let kinds = inputs.map(|input| (input.name.clone(), self.kind(&input.name, input.element())));
        kinds.filter(|(_, kind)| matches!(kind, Kind::I64 | Kind::I32)).collect()
    }

    fn kind(&self, name: &str, element: Option<i32>) -> Kind {
        let stated = self.manifest.inputs.iter().find_map(|input| match input {
            InputSpec::Tensor(input) if input.name == name => Some(Kind::of_data(input.dtype)),
            _ => None,
        });
        element.map(|element| Kind::of(element.into())).or(stated).unwrap_or(Kind::Other)
    }

    fn input(&self, name: &str, kind: Kind, assumed: &Assumed) -> Fact {
        let shape = self.manifest.inputs.iter().find_map(|input| match input {
            InputSpec::Tensor(input) if input.name == name => Some(input.shape.iter()),
            _ => None,
        });
        #[allow(clippy::cast_precision_loss, reason = "sizes that a tensor can have")]
        let size = |dimension: &Dimension| match dimension {
            Dimension::Fixed(size) => *size as f64,
            Dimension::Named(_) => assumed.dim,
        };
        let range = assumed.values.get(name).copied().unwrap_or_else(|| kind.range());
        match shape {
            Some(shape) => {
                let fixed = shape.clone().all(|dimension| matches!(dimension, Dimension::Fixed(_)));
                let fact = Fact::of_shape(kind, range, shape.map(size).collect());
                fact.exactly(fixed)
            }
            None => Fact { lo: range.0, hi: range.1, ..Fact::any(kind) },
        }
    }

    /// Bounds, if the graph is safe when its inputs are as assumed.
    fn with(&self, assumed: &Assumed) -> Result<Bounds, Refusal> {
        let inputs = self.graph.input.iter().filter(|input| !self.constants.contains_key(&input.name));
        let facts =
            inputs.map(|input| (input.name.clone(), self.input(&input.name, self.kind(&input.name, input.element()), assumed)));
        let inputs: BTreeMap<String, Fact> = facts.collect();
        let mut scope = Scope::new(None, self.constants.clone());
        scope.extend(inputs.clone());
        let outputs = Analysis::new(self.opset).graph(self.graph, &mut scope)?;
        let mut kinds = BTreeMap::new();
        for (output, fact) in self.graph.output.iter().zip(outputs) {
            if !fact.fits() {
                let problem = format!("its output `{}` may have values beyond 32 bits", output.name);
                return Err(Refusal { problem, flags: false });
            }
            kinds.insert(output.name.clone(), output.element().map_or(fact.kind, |element| Kind::of(element.into())));
        }
        Ok(Bounds { inputs, outputs: kinds })
    }

    /// Starts with small bounds and widens them as far as the graph stays safe.
    fn widest(&self, kinds: &BTreeMap<String, Kind>) -> Result<Bounds, Refusal> {
        let least = VALUES.last().copied().unwrap_or_default();
        let all = |range: (f64, f64)| kinds.keys().map(|name| (name.clone(), range)).collect::<BTreeMap<_, _>>();
        let mut assumed = Assumed { dim: DIMS.last().copied().unwrap_or_default(), values: all(range(least)) };
        let mut flags = Vec::new();
        let mut found = match self.with(&assumed) {
            Err(refusal) if refusal.flags => {
                assumed.values = all((0.0, 1.0));
                let mut found = self.with(&assumed).map_err(|_| refusal)?;
                for name in kinds.keys() {
                    let mut wider = assumed.clone();
                    wider.values.insert(name.clone(), range(least));
                    match self.with(&wider) {
                        Ok(bounds) => (assumed, found) = (wider, bounds),
                        Err(refusal) if refusal.flags => flags.push(name.clone()),
                        Err(refusal) => return Err(refusal),
                    }
                }
                found
            }
            other => other?,
        };
        let mut widen = |wider: Assumed, assumed: &mut Assumed| {
            let Ok(bounds) = self.with(&wider) else { return false };
            (*assumed, found) = (wider, bounds);
            true
        };
        for dim in DIMS.into_iter().filter(|dim| *dim <= USUAL_DIM) {
            if widen(Assumed { dim, ..assumed.clone() }, &mut assumed) {
                break;
            }
        }
        for (name, _) in kinds.iter().filter(|(name, _)| !flags.contains(name)) {
            for level in VALUES {
                let mut wider = assumed.clone();
                wider.values.insert(name.clone(), range(level));
                if widen(wider, &mut assumed) {
                    break;
                }
            }
        }
        for dim in DIMS.into_iter().filter(|dim| *dim > assumed.dim).collect::<Vec<_>>() {
            if widen(Assumed { dim, ..assumed.clone() }, &mut assumed) {
                break;
            }
        }
        Ok(found)
    }
}
