//! Operators that the built-in engine (rten 0.27) computes otherwise than ONNX says, or in less than the graph's precision. Each is
//! refused under the condition that makes it differ.

use super::{super::graph::NodeProto, Fact, Kind, Refusal, flow::refusal};

/// The exponential of more overflows `f32`.
const MOST_EXPONENT: f64 = 88.0;
/// Operators that move `f16` and `f64` without looking at them.
const MOVES: &[&str] = &[
    "Concat",
    "Constant",
    "ConstantOfShape",
    "DepthToSpace",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Refuses an operator whose result would differ; `opset` is the version of ONNX's operators that the model names.
pub(super) fn check(node: &NodeProto, inputs: &[Option<Fact>], opset: i64) -> Result<(), Refusal> {
    let op = node.op_type.as_str();
    let given = |index: usize| inputs.get(index).and_then(Option::as_ref);
    let data = given(0);
    let float = data.is_some_and(|data| data.kind.is_float());
    let text = |name: &str| node.attribute(name).map_or(&b""[..], |attribute| &attribute.s[..]);
    let number = |name: &str| node.attribute(name).map_or(0, |attribute| attribute.i);
    let differs = match op {
        "Softmax" | "LogSoftmax" if opset < 13 && !last_axis(node, data, 1) => {
            Some("is of an opset below 13 and normalizes more than the last dimension")
        }
        "Sign" if float && data.is_some_and(|data| data.lo <= 0.0 && data.hi >= 0.0) => Some("gives 1 or -1 for a 0 of floats"),
        "ArgMax" | "ArgMin" if number("select_last_index") != 1 && !single(node, data) => {
            Some("gives the last of equal values, not the first")
        }
        "Resize" | "Upsample" if text("mode") == b"cubic" => Some("interpolates cubically"),
        "LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM" if given(4).is_some() => {
            Some("has `sequence_lens`, which the engine ignores")
        }
        "Softplus" if data.is_none_or(|data| data.hi > MOST_EXPONENT) => Some("gives infinity for values above 88"),
        "Pow" if !float && given(1).is_none_or(|exponent| exponent.kind.is_float() || exponent.lo < 0.0) => {
            Some("computes integers as floats")
        }
        _ if op.starts_with("Reduce") && number("noop_with_empty_axes") == 1 && !axes_given(node, given(1)) => {
            Some("may have no axes with `noop_with_empty_axes`, which the engine ignores")
        }
        _ if text("auto_pad") == b"SAME_LOWER" => Some("has `auto_pad` SAME_LOWER, which the engine takes for SAME_UPPER"),
        _ => None,
    };
    match differs {
        Some(problem) => Err(refusal(node, &format!("{problem}: the built-in engine differs from ONNX there"))),
        None => narrow(node, inputs),
    }
}

/// `f16` and `f64` may be moved and made `f32`, no more.
fn narrow(node: &NodeProto, inputs: &[Option<Fact>]) -> Result<(), Refusal> {
    let op = node.op_type.as_str();
    let takes = |fact: &Option<Fact>| fact.as_ref().is_some_and(|fact| fact.kind == Kind::OtherFloat);
    let to = match op {
        "Cast" => Some(Kind::of(node.attribute("to").map_or(0, |to| to.i))),
        "CastLike" => inputs.get(1).and_then(Option::as_ref).map(|like| like.kind),
        "EyeLike" | "Multinomial" | "RandomNormal" | "RandomNormalLike" | "RandomUniform" | "RandomUniformLike" => {
            node.attribute("dtype").map(|to| Kind::of(to.i))
        }
        _ => None,
    };
    let kept = match op {
        "Cast" | "CastLike" => to == Some(Kind::F32) || !inputs.iter().any(takes),
        _ => MOVES.contains(&op) || !inputs.iter().any(takes),
    };
    if kept && to != Some(Kind::OtherFloat) {
        return Ok(());
    }
    Err(refusal(node, "computes with f16 or f64, which the built-in engine computes as f32"))
}

/// Whether the operator's axis is the last one.
fn last_axis(node: &NodeProto, data: Option<&Fact>, default: i64) -> bool {
    let axis = node.attribute("axis").map_or(default, |axis| axis.i);
    let rank = data.and_then(|data| data.shape.as_ref()).and_then(|shape| i64::try_from(shape.len()).ok());
    axis == -1 || rank.is_some_and(|rank| axis == rank - 1)
}

/// Whether there is nothing to choose among: no dimension, or one value along the axis.
fn single(node: &NodeProto, data: Option<&Fact>) -> bool {
    let axis = node.attribute("axis").map_or(0, |axis| axis.i);
    data.and_then(|data| data.along(axis)).is_some_and(|size| size <= 1.0)
}

/// Whether a reduction surely has axes.
fn axes_given(node: &NodeProto, axes: Option<&Fact>) -> bool {
    let attribute = node.attribute("axes").is_some_and(|axes| !axes.ints.is_empty());
    attribute || axes.and_then(Fact::exact_shape).is_some_and(|shape| shape.iter().all(|size| *size >= 1.0))
}
