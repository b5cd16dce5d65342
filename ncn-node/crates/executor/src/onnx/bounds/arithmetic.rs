//! Operators that compute.

use super::{super::graph::NodeProto, Fact, Kind, Refusal, flow::refusal, operators::rounded};

/// The least and the largest of these.
fn hull(values: &[f64]) -> (f64, f64) {
    if values.iter().any(|value| value.is_nan()) {
        return (f64::NEG_INFINITY, f64::INFINITY);
    }
    (values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

/// Not yet held against what the type can hold.
pub(super) fn binary(node: &NodeProto, a: &Fact, b: &Fact) -> Result<Fact, Refusal> {
    let (shape, count) = a.broadcast(b);
    let kind = a.kind;
    let range = match node.op_type.as_str() {
        "Add" | "Sum" => hull(&[a.lo + b.lo, a.hi + b.hi]),
        "Sub" => hull(&[a.lo - b.hi, a.hi - b.lo]),
        "Mul" => hull(&[a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi]),
        "Max" => (a.lo.max(b.lo), a.hi.max(b.hi)),
        "Min" => (a.lo.min(b.lo), a.hi.min(b.hi)),
        "Div" if kind.is_float() && b.lo <= 0.0 && b.hi >= 0.0 => kind.range(),
        "Div" if kind.is_float() => hull(&[a.lo / b.lo, a.lo / b.hi, a.hi / b.lo, a.hi / b.hi]),
        "Div" if a.lo >= 0.0 && b.lo >= 0.0 => (0.0, a.hi / b.lo.max(1.0)),
        // Dividing by -1 gives the largest of all.
        "Div" => (-a.size(), a.size()),
        "Mod" if kind.is_float() => kind.range(),
        "Mod" if a.lo >= 0.0 && b.lo >= 0.0 => (0.0, a.hi.min(b.hi)),
        "Mod" => (-b.size(), b.size()),
        "Pow" if kind == Kind::I64 => power(node, a, b)?,
        _ => kind.range(),
    };
    // What is not finite may also be not a number.
    let range = match kind {
        _ if !kind.is_float() => range,
        _ if range.0.is_finite() && range.1.is_finite() => rounded(range),
        _ => (kind.range().0.min(range.0), kind.range().1.max(range.1)),
    };
    if range.0.is_nan() || range.1.is_nan() {
        return Err(refusal(node, "has bounds that are not found"));
    }
    let sums = a.sums || b.sums;
    Ok(Fact { sums, ..Fact::new(kind, range, shape, count).exactly(a.exact && b.exact) })
}

/// A negative exponent, and an exponent of floats, is computed in floats.
fn power(node: &NodeProto, a: &Fact, b: &Fact) -> Result<(f64, f64), Refusal> {
    if b.kind.is_float() || b.lo < 0.0 {
        return Err(refusal(node, "computes integers as floats"));
    }
    let most = a.size().max(1.0).powf(b.hi);
    Ok((if a.lo < 0.0 { -most } else { 0.0 }, most))
}

/// Not yet held against what the type can hold.
pub(super) fn unary(op: &str, a: &Fact) -> Fact {
    let range = match op {
        "Abs" => (if a.lo > 0.0 { a.lo } else { a.hi.min(0.0).abs() }, a.size()),
        "Neg" => (-a.hi, -a.lo),
        "Sign" => (-1.0, 1.0),
        "Ceil" => (a.lo.ceil(), a.hi.ceil()),
        "Floor" => (a.lo.floor(), a.hi.floor()),
        "Round" => (a.lo.floor(), a.hi.ceil()),
        "Relu" => (a.lo.max(0.0), a.hi.max(0.0)),
        _ => a.kind.range(),
    };
    a.valued(a.kind, range)
}

/// How many elements become one.
fn reduced_count(node: &NodeProto, data: &Fact, axes: Option<&Fact>) -> f64 {
    let axes = node.attribute("axes").map(|axes| &axes.ints).or_else(|| axes.and_then(|axes| axes.ints.as_ref()));
    let (Some(axes), Some(shape)) = (axes.filter(|axes| !axes.is_empty()), &data.shape) else { return data.count };
    let size = |axis: &i64| {
        let at = if *axis < 0 {
            usize::try_from(axis.unsigned_abs()).ok().and_then(|back| shape.len().checked_sub(back))
        } else {
            usize::try_from(*axis).ok()
        };
        at.and_then(|at| shape.get(at)).copied().unwrap_or(f64::INFINITY)
    };
    axes.iter().map(size).product::<f64>().min(data.count)
}

/// Not yet held against what the type can hold.
pub(super) fn reduced(node: &NodeProto, data: &Fact, axes: Option<&Fact>) -> Result<Fact, Refusal> {
    let count = reduced_count(node, data, axes);
    let times = |value: f64| if value == 0.0 { 0.0 } else { value * count };
    let range = match node.op_type.as_str() {
        "ReduceMax" | "ReduceMin" => (data.lo, data.hi),
        _ if data.kind.is_float() => data.kind.range(),
        "ReduceSum" => (times(data.lo.min(0.0)), times(data.hi.max(0.0))),
        "ReduceL1" => (0.0, times(data.size())),
        "ReduceSumSquare" => (0.0, times(data.size() * data.size())),
        "ReduceProd" => {
            let most = if data.size() <= 1.0 { 1.0 } else { data.size().powf(count) };
            (-most, most)
        }
        _ if data.kind == Kind::I64 => return Err(refusal(node, "divides 64-bit integers")),
        _ => data.kind.range(),
    };
    // Kept or removed dimensions only make it smaller.
    let keep = node.attribute("keepdims").is_none_or(|keep| keep.i != 0);
    let shape = data.shape.clone().filter(|_| keep);
    // Sums of nothing are as many as the other dimensions say.
    let count = data.shape.as_ref().map_or(f64::INFINITY, |shape| shape.iter().product());
    let list = data.shape.as_ref().is_some_and(|shape| shape.len() == 1);
    let shape = if list { Some(if keep { vec![1.0] } else { Vec::new() }) } else { shape };
    Ok(Fact::new(data.kind, range, shape, count).exactly(list))
}
