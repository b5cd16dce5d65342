//! What each operator of the built-in engine makes of bounds. An operator that is not here is refused.

use super::{
    super::graph::NodeProto,
    Fact, Kind, Refusal,
    arithmetic::{binary, reduced, unary},
    flow::refusal,
    shapes::{flattened, joined, nonzero, of_sizes, reshaped, resized, shape_of, sliced},
};

/// Operators that give floats only, whatever they do with them.
const FLOATS: &[&str] = &[
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "BiasGelu",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "DFT",
    "DequantizeLinear",
    "DynamicQuantizeLSTM",
    "Einsum",
    "Elu",
    "Erf",
    "Exp",
    "FastGelu",
    "GRU",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GridSample",
    "GroupQueryAttention",
    "HardSigmoid",
    "HardSwish",
    "InstanceNormalization",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MatMul",
    "MatMulNBits",
    "MaxPool",
    "MultiHeadAttention",
    "PRelu",
    "QuickGelu",
    "RMSNormalization",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Reciprocal",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "RotaryEmbedding",
    "STFT",
    "Sigmoid",
    "Sin",
    "Sinh",
    "SkipLayerNormalization",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
];
const MORE_FLOATS: &[&str] = &["SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"];
/// Those of them whose outputs have the shape of their first input.
const SAME_SHAPE: &[&str] = &[
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BatchNormalization",
    "BiasGelu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "FastGelu",
    "Gelu",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Reciprocal",
    "Sigmoid",
    "Sin",
    "Softmax",
    "Sqrt",
    "Tanh",
];

/// Those of them whose outputs have as many dimensions as their first input.
const SAME_RANK: &[&str] = &["AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"];

/// The inputs, by their places, that may have values beyond 32 bits: the engine moves them, or takes the nearest value that it has for
/// the end of a dimension or of a range.
fn takes_any(op: &str, index: usize) -> bool {
    match op {
        "Identity" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" | "Reshape" | "Gather" | "Split" | "Cast" | "Shape"
        | "Size" | "Expand" | "Tile" => index == 0,
        "Slice" => index <= 2,
        "Clip" => index == 1 || index == 2,
        "Concat" => true,
        "Where" => index > 0,
        _ => false,
    }
}

/// Bounds of what an operator gives.
#[allow(clippy::too_many_lines, reason = "a table: an arm for each operator")]
pub(super) fn outputs(node: &NodeProto, inputs: &[Option<Fact>]) -> Result<Vec<Fact>, Refusal> {
    let op = node.op_type.as_str();
    for (index, fact) in inputs.iter().enumerate() {
        if let Some(fact) = fact
            && !fact.fits()
            && !takes_any(op, index)
        {
            return Err(refusal(
                node,
                &format!("computes with `{}`, which may be beyond 32 bits", node.input.get(index).map_or("", String::as_str)),
            ));
        }
    }
    let given = |index: usize| inputs.get(index).and_then(Option::as_ref);
    let need = |index: usize| given(index).ok_or_else(|| refusal(node, &format!("has no input {index}")));
    let index_range = |fact: &Fact| (0.0, fact.dim());
    let one = |fact: Fact| Ok(vec![fact]);
    match op {
        "Constant" => one(constant(node)?),
        "Identity" | "SequenceAt" | "SequenceErase" => one(need(0)?.clone()),
        "Dropout" => Ok(vec![need(0)?.clone(), Fact::any(Kind::Bool)]),
        "Transpose" => {
            let data = need(0)?;
            let order = node.attribute("perm").map(|order| &order.ints);
            let shape = data.shape.as_ref().map(|shape| match order {
                Some(order) => order
                    .iter()
                    .map(|at| usize::try_from(*at).ok().and_then(|at| shape.get(at)).copied().unwrap_or(f64::INFINITY))
                    .collect(),
                None => shape.iter().rev().copied().collect(),
            });
            one(data.shaped(shape, data.count))
        }
        "Squeeze" | "Unsqueeze" => one(resized(node, need(0)?, given(1))),
        "ReverseSequence" => {
            let data = need(0)?;
            one(data.shaped(data.shape.clone(), data.count))
        }
        "Slice" => one(sliced(node, inputs, need(0)?)),
        "Split" | "SplitToSequence" => {
            let data = need(0)?;
            let keeps = node.attribute("keepdims").is_none_or(|keep| keep.i != 0);
            Ok(vec![data.shaped(data.shape.clone().filter(|_| keeps), data.count); node.output.len()])
        }
        "Trilu" => one(need(0)?.join(&Fact { lo: 0.0, hi: 0.0, ..need(0)?.clone() })),
        "Flatten" => one(flattened(node, need(0)?)),
        "Reshape" => one(reshaped(need(0)?, given(1), node)),
        "DepthToSpace" => one(need(0)?.shaped(None, need(0)?.count)),
        "Gather" => {
            let (data, indices) = (need(0)?, need(1)?);
            let shape = match (&data.shape, &indices.shape) {
                (Some(a), Some(b)) => Some(vec![data.dim().max(indices.dim()); (a.len() + b.len()).saturating_sub(1)]),
                _ => None,
            };
            // Of a tensor in one dimension, it has the shape of the indices.
            let exact = indices.exact && data.shape.as_ref().is_some_and(|shape| shape.len() == 1);
            let shape = if exact { indices.shape.clone() } else { shape };
            one(data.shaped(shape, data.count * indices.count).exactly(exact))
        }
        "GatherElements" => one(need(0)?.shaped(need(1)?.shape.clone(), need(1)?.count)),
        "GatherND" => one(need(0)?.shaped(None, need(0)?.count * need(1)?.count)),
        "Expand" => {
            let (data, sizes) = (need(0)?, of_sizes(need(0)?, need(1)?));
            let (shape, count) = data.broadcast(&sizes);
            one(data.shaped(shape, count).exactly(data.exact && sizes.exact))
        }
        "Tile" => {
            let (data, repeats) = (need(0)?, need(1)?.hi.max(1.0));
            let shape = data.shape.as_ref().map(|shape| shape.iter().map(|size| size * repeats).collect::<Vec<_>>());
            let count = shape.as_ref().map_or(f64::INFINITY, |shape| shape.iter().product());
            one(data.shaped(shape, count))
        }
        "Concat" => joined(node, inputs),
        "ConcatFromSequence" => one(need(0)?.shaped(None, f64::INFINITY)),
        "SequenceConstruct" => {
            let first = need(0)?;
            one(inputs.iter().flatten().fold(first.clone(), |all, fact| all.join(fact)))
        }
        "SequenceInsert" => one(need(0)?.join(need(1)?)),
        "SequenceEmpty" => {
            let kind = Kind::of(node.attribute("dtype").map_or(1, |attribute| attribute.i));
            one(Fact { lo: 0.0, hi: 0.0, ..Fact::any(kind) })
        }
        "SequenceLength" => one(Fact::scalar(Kind::I64, (0.0, f64::from(i32::MAX)))),
        "Pad" => {
            let data = need(0)?;
            let zero = Fact::scalar(data.kind, (0.0, 0.0));
            let value =
                if data.kind.is_float() && given(2).is_none() { Fact::any(data.kind) } else { given(2).unwrap_or(&zero).clone() };
            one(Fact { shape: None, count: f64::INFINITY, ints: None, ..data.join(&value) })
        }
        "Where" => {
            let (condition, a, b) = (need(0)?, need(1)?, need(2)?);
            let (shape, count) = a.broadcast(b);
            let (shape, count) = a.shaped(shape, count).broadcast(condition);
            one(a.join(b).shaped(shape, count).exactly(a.exact && b.exact && condition.exact))
        }
        "Scatter" | "ScatterElements" | "ScatterND" => {
            let (data, updates) = (need(0)?, need(2)?);
            let plain = node.attribute("reduction").is_none_or(|attribute| attribute.s.is_empty() || &attribute.s[..] == b"none");
            match (data.kind, plain) {
                (Kind::I64, false) => Err(refusal(node, "may add up integers beyond 32 bits")),
                (_, false) => one(data.valued(data.kind, data.kind.range())),
                (_, true) => one(Fact { lo: data.lo.min(updates.lo), hi: data.hi.max(updates.hi), ints: None, ..data.clone() }),
            }
        }
        "Shape" => one(shape_of(node, need(0)?)),
        "Size" => within(node, Fact::scalar(Kind::I64, (0.0, need(0)?.count.min(f64::from(i32::MAX))))),
        "NonZero" => one(nonzero(need(0)?)),
        "ArgMax" | "ArgMin" => one(need(0)?.shaped(None, need(0)?.count).valued(Kind::I64, index_range(need(0)?))),
        "TopK" => {
            let data = need(0)?.shaped(need(0)?.shape.clone(), need(0)?.count);
            let indices = data.valued(Kind::I64, index_range(&data));
            Ok(vec![data, indices])
        }
        "NonMaxSuppression" => {
            let most = need(0)?.dim().max(need(1)?.dim());
            one(Fact::new(Kind::I64, (0.0, most), None, f64::INFINITY))
        }
        "Multinomial" => {
            one(Fact { lo: 0.0, hi: need(0)?.dim(), ..Fact::any(Kind::of(node.attribute("dtype").map_or(6, |to| to.i))) })
        }
        "OneHot" => one(need(2)?.shaped(None, f64::INFINITY)),
        "EyeLike" => {
            let kind = node.attribute("dtype").map_or(need(0)?.kind, |attribute| Kind::of(attribute.i));
            one(need(0)?.valued(kind, (0.0, 1.0)))
        }
        "ConstantOfShape" => {
            let value = node.attribute("value").and_then(|attribute| attribute.t.as_ref());
            let value = value.map_or_else(|| Fact::scalar(Kind::F32, (0.0, 0.0)), Fact::constant);
            let sizes = of_sizes(&value, need(0)?);
            let exact = sizes.exact;
            one(value.shaped(sizes.shape, sizes.count).exactly(exact))
        }
        "Range" => {
            let (start, limit, step) = (need(0)?, need(1)?, need(2)?);
            let range = (start.lo.min(limit.lo), start.hi.max(limit.hi));
            if start.kind.is_float() {
                return one(Fact::new(start.kind, start.kind.range(), Some(vec![f64::INFINITY]), f64::INFINITY));
            }
            // The engine adds the step once more than there are numbers.
            within(node, Fact::scalar(Kind::I64, (range.0 - step.size(), range.1 + step.size())))?;
            let count = (range.1 - range.0).max(0.0);
            one(Fact::new(start.kind, range, Some(vec![count]), count))
        }
        "Cast" => one(cast(node, need(0)?, Kind::of(node.attribute("to").map_or(0, |to| to.i)))?),
        "CastLike" => one(cast(node, need(0)?, need(1)?.kind)?),
        "BitCast" => {
            let kind = Kind::of(node.attribute("to").map_or(0, |to| to.i));
            if kind == Kind::I64 || need(0)?.kind == Kind::I64 {
                return Err(refusal(node, "reads the bits of 64-bit integers"));
            }
            one(need(0)?.valued(kind, kind.range()))
        }
        "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or" | "Xor" => {
            let (shape, count) = need(0)?.broadcast(need(1)?);
            let exact = need(0)?.exact && need(1)?.exact;
            one(Fact::new(Kind::Bool, Kind::Bool.range(), shape, count).exactly(exact))
        }
        "Not" | "IsNaN" | "IsInf" => one(need(0)?.valued(Kind::Bool, Kind::Bool.range())),
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" => {
            // What is summed up and multiplied is often a mask.
            let flags = op == "Mul" && (need(0)?.sums || need(1)?.sums);
            within(node, binary(node, need(0)?, need(1)?)?).map_err(|refusal| Refusal { flags: flags || refusal.flags, ..refusal })
        }
        "Sum" | "Max" | "Min" => {
            let mut rest = inputs.iter().skip(1).flatten();
            within(node, rest.try_fold(need(0)?.clone(), |all, fact| binary(node, &all, fact))?)
        }
        "Mean" if need(0)?.kind.is_float() => one(Fact::any(need(0)?.kind)),
        "Abs" | "Neg" | "Sign" | "Ceil" | "Floor" | "Round" | "Relu" => within(node, unary(op, need(0)?)),
        "Clip" => one(clipped(node, need(0)?, given(1), given(2))),
        "CumSum" => {
            let data = need(0)?;
            let count = data.dim();
            // Exclusive sums begin with 0.
            let range = (data.lo.min(data.lo * count).min(0.0), data.hi.max(data.hi * count).max(0.0));
            within(node, Fact { sums: true, ..data.valued(data.kind, range) })
        }
        "ReduceMax" | "ReduceMin" | "ReduceMean" | "ReduceSum" | "ReduceSumSquare" | "ReduceL1" | "ReduceProd" => {
            within(node, reduced(node, need(0)?, given(1))?)
        }
        "Resize" | "Upsample" if need(0)?.kind != Kind::I64 => one(Fact::any(need(0)?.kind)),
        "QuantizeLinear" => {
            let kind = given(2).map_or(Kind::U8, |zero| zero.kind);
            one(need(0)?.valued(kind, kind.range()))
        }
        "DynamicQuantizeLinear" => Ok(vec![need(0)?.valued(Kind::U8, Kind::U8.range()), Fact::any(Kind::F32), Fact::any(Kind::U8)]),
        "MatMulInteger" | "ConvInteger" => one(Fact::any(Kind::I32)),
        _ if FLOATS.contains(&op) || MORE_FLOATS.contains(&op) => floats(node, inputs),
        _ => Err(refusal(node, "is not one that is known to give right integers")),
    }
}

/// Refuses a result that may leave 32 bits; types that have no more in any engine wrap around or saturate within their range.
pub(super) fn within(node: &NodeProto, fact: Fact) -> Result<Vec<Fact>, Refusal> {
    let range = fact.kind.range();
    let inside = fact.lo >= range.0 && fact.hi <= range.1;
    match fact.kind {
        _ if inside => Ok(vec![fact]),
        Kind::I64 => Err(refusal(node, "may give integers beyond 32 bits")),
        kind => Ok(vec![fact.valued(kind, range)]),
    }
}

fn constant(node: &NodeProto) -> Result<Fact, Refusal> {
    let [value] = &node.attribute[..] else { return Err(refusal(node, "has not one value")) };
    Ok(match (value.name.as_str(), &value.t) {
        ("value", Some(tensor)) => Fact::constant(tensor),
        ("value_int", _) => Fact::scalar(Kind::I64, (0.0, 0.0)).of_ints(vec![value.i]),
        #[allow(clippy::cast_precision_loss, reason = "sizes that a graph can have")]
        ("value_ints", _) => Fact::of_sizes(Kind::I64, (0.0, 0.0), vec![value.ints.len() as f64]).of_ints(value.ints.clone()),
        ("value_float", _) => Fact::scalar(Kind::F32, Kind::F32.range()),
        ("value_floats", _) => Fact::any(Kind::F32),
        _ => return Err(refusal(node, "has a value of an unknown type")),
    })
}

fn floats(node: &NodeProto, inputs: &[Option<Fact>]) -> Result<Vec<Fact>, Refusal> {
    let first = inputs.first().and_then(Option::as_ref);
    if first.is_some_and(|first| first.kind == Kind::I64) {
        return Err(refusal(node, "computes with 64-bit integers"));
    }
    let op = node.op_type.as_str();
    let kind = if inputs.iter().flatten().any(|fact| fact.kind == Kind::OtherFloat) { Kind::OtherFloat } else { Kind::F32 };
    let range = match op {
        "Sigmoid" | "Softmax" => (0.0, 1.0),
        "Tanh" | "Erf" | "Sin" | "Cos" => (-1.0, 1.0),
        _ => kind.range(),
    };
    let fact = match first {
        Some(first) if SAME_SHAPE.contains(&op) => first.valued(kind, range),
        Some(first) if SAME_RANK.contains(&op) => {
            let shape = first.shape.as_ref().map(|shape| vec![f64::INFINITY; shape.len()]);
            Fact::new(kind, range, shape, f64::INFINITY)
        }
        _ if op == "Gemm" => Fact::new(kind, range, Some(vec![f64::INFINITY; 2]), f64::INFINITY),
        _ => Fact { lo: range.0, hi: range.1, ..Fact::any(kind) },
    };
    let others = std::iter::repeat_n(Fact::any(kind), node.output.len().saturating_sub(1));
    if op == "MaxPool" && node.output.len() > 1 {
        return Err(refusal(node, "gives indices"));
    }
    Ok(std::iter::once(fact).chain(others).collect())
}

fn cast(node: &NodeProto, data: &Fact, to: Kind) -> Result<Fact, Refusal> {
    let inside = data.lo >= to.range().0 && data.hi <= to.range().1;
    let range = (data.lo, data.hi);
    Ok(match (data.kind, to) {
        (from, to) if from == to => data.clone(),
        // The engine has no booleans: it gives integers on as they are, and cuts off the fractions of floats.
        (from, Kind::Bool) if from.is_float() || !inside => {
            let problem = format!(
                "makes `{}` true or false, and the engine is right for 0 and 1 only",
                node.input.first().map_or("", String::as_str)
            );
            return Err(Refusal { flags: true, ..refusal(node, &problem) });
        }
        (_, Kind::Other) => return Err(refusal(node, "gives a type that the engine has not")),
        (Kind::OtherFloat, to) if !to.is_float() => {
            return Err(refusal(node, "makes integers of floats that the engine computes in 32 bits"));
        }
        (from, Kind::I64) if from.is_float() && !inside => {
            return Err(refusal(node, "may give integers beyond 32 bits"));
        }
        (from, _) if !data.fits() && !from.is_float() => return Err(refusal(node, "takes integers that may be beyond 32 bits")),
        (from, to) if to.is_float() && !from.is_float() => data.valued(to, rounded(range)),
        (_, to) if to.is_float() => data.valued(to, range),
        (from, to) if inside => {
            let range = if from.is_float() { (data.lo.trunc(), data.hi.trunc()) } else { range };
            data.valued(to, range)
        }
        (_, to) => data.valued(to, to.range()),
    })
}

/// As wide as rounding to `f32` may make it.
pub(super) fn rounded((lo, hi): (f64, f64)) -> (f64, f64) {
    (lo - lo.abs() * 1e-6, hi + hi.abs() * 1e-6)
}

fn clipped(node: &NodeProto, data: &Fact, min: Option<&Fact>, max: Option<&Fact>) -> Fact {
    let old = |name: &str| node.attribute(name).map(|attribute| f64::from(attribute.f));
    let (least_lo, least_hi) = min
        .map(|min| (min.lo, min.hi))
        .or_else(|| old("min").map(|min| (min, min)))
        .unwrap_or((f64::NEG_INFINITY, f64::NEG_INFINITY));
    let (most_lo, most_hi) =
        max.map(|max| (max.lo, max.hi)).or_else(|| old("max").map(|max| (max, max))).unwrap_or((f64::INFINITY, f64::INFINITY));
    let range = (data.lo.max(least_lo).min(most_lo), data.hi.max(least_hi).min(most_hi));
    data.valued(data.kind, range)
}
