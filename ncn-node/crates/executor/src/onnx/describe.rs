//! What a graph takes and gives, as a manifest says it: a draft for who writes one.

use ncn_core::{
    DataType,
    model::{Dimension, InputSpec, OutputSpec, TensorInput, TensorOutput},
};
use prost::Message as _;

use super::graph::{ModelProto, ValueInfoProto};

/// The inputs and outputs of an ONNX graph. Sizes that the graph leaves open are named, the first one `batch` where the graph has no name for it.
///
/// # Errors
/// It is no ONNX file; or a tensor has elements that manifests have no word for, or no shape.
pub fn describe(file: &[u8]) -> Result<(Vec<InputSpec>, Vec<OutputSpec>), String> {
    let graph = ModelProto::decode(file).map_err(|error| format!("is no ONNX file: {error}"))?.graph.unwrap_or_default();
    // Old files list constants among the inputs.
    let constants: Vec<&str> = graph.initializer.iter().map(|constant| constant.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|input| !constants.contains(&input.name.as_str())).map(|input| {
        let (dtype, shape) = outlet(input)?;
        Ok(InputSpec::Tensor(TensorInput { name: input.name.clone(), dtype, shape, from: None }))
    });
    let inputs = inputs.collect::<Result<Vec<_>, String>>()?;
    let outputs = graph.output.iter().map(|output| {
        let (dtype, shape) = outlet(output)?;
        Ok(OutputSpec::Tensor(TensorOutput { name: output.name.clone(), dtype, shape, to: None }))
    });
    Ok((inputs, outputs.collect::<Result<Vec<_>, String>>()?))
}

fn outlet(value: &ValueInfoProto) -> Result<(DataType, Vec<Dimension>), String> {
    let dtype = match value.element() {
        Some(1) => DataType::F32,
        Some(2) => DataType::U8,
        Some(3) => DataType::I8,
        Some(6) => DataType::I32,
        Some(7) => DataType::I64,
        Some(9) => DataType::Bool,
        other => return Err(format!("`{}` has elements of ONNX's type {other:?}, which manifests have no word for", value.name)),
    };
    let (sizes, names) = value.shape().zip(value.dimension_names()).ok_or_else(|| format!("`{}` has no shape", value.name))?;
    let dimension = |(index, (size, name)): (usize, (Option<usize>, String))| match size {
        Some(size) => Dimension::Fixed(size),
        None if !name.is_empty() => Dimension::Named(name),
        None if index == 0 => Dimension::Named("batch".into()),
        None => Dimension::Named(format!("{}_{index}", value.name)),
    };
    Ok((dtype, sizes.into_iter().zip(names).enumerate().map(dimension).collect()))
}
