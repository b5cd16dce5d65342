use ncn_core::{DataType, ExecutorError, Tensor, tensor::TensorError};
use ort::{
    session::SessionInputValue,
    value::{DynValue, Outlet, Tensor as OrtTensor, TensorElementType},
};

use crate::onnx::outlet;

fn data_type(element: TensorElementType) -> Option<DataType> {
    Some(match element {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::U8,
        TensorElementType::Int8 => DataType::I8,
        TensorElementType::Int32 => DataType::I32,
        TensorElementType::Int64 => DataType::I64,
        TensorElementType::Float32 => DataType::F32,
        _ => return None,
    })
}

/// An input or output as the session describes it.
pub(super) fn outlet(described: &Outlet) -> outlet::Outlet<'_> {
    let shape = described.dtype().tensor_shape().filter(|shape| !shape.is_empty());
    let holds = match described.dtype().tensor_type() {
        Some(element) => data_type(element).map(|known| vec![known]).ok_or_else(|| element.to_string()),
        None => Err("something else than a tensor".into()),
    };
    outlet::Outlet {
        name: described.name(),
        holds,
        // A dimension that the graph leaves open is negative.
        shape: shape.map(|shape| shape.iter().map(|size| usize::try_from(*size).ok()).collect()),
    }
}

pub(super) fn to_value(name: &str, tensor: &Tensor) -> Result<SessionInputValue<'static>, ExecutorError> {
    let invalid = |problem: String| ExecutorError::InvalidInput(format!("`{name}`: {problem}"));
    let wrong = |error: TensorError| invalid(error.to_string());
    let shape = tensor.shape().to_vec();
    let value = match tensor.data_type() {
        DataType::F32 => OrtTensor::from_array((shape, tensor.to_f32().map_err(wrong)?)).map(Into::into),
        DataType::I32 => OrtTensor::from_array((shape, tensor.to_i32().map_err(wrong)?)).map(Into::into),
        DataType::I64 => OrtTensor::from_array((shape, tensor.to_i64().map_err(wrong)?)).map(Into::into),
        DataType::U8 => OrtTensor::from_array((shape, tensor.data().to_vec())).map(Into::into),
        DataType::I8 => {
            let elements: Vec<i8> = tensor.data().iter().map(|byte| byte.cast_signed()).collect();
            OrtTensor::from_array((shape, elements)).map(Into::into)
        }
        DataType::Bool => {
            let elements: Vec<bool> = tensor.data().iter().map(|byte| *byte != 0).collect();
            OrtTensor::from_array((shape, elements)).map(Into::into)
        }
        other => return Err(invalid(format!("this engine does not take {other}"))),
    };
    value.map_err(|error| invalid(error.to_string()))
}

pub(super) fn from_value(name: &str, value: &DynValue, wanted: DataType) -> Result<Tensor, ExecutorError> {
    let invalid = |problem: String| ExecutorError::InvalidOutput(format!("`{name}`: {problem}"));
    let wrong = |error: ort::Error| invalid(error.to_string());
    let (shape, data) = match wanted {
        DataType::F32 => {
            let (shape, elements) = value.try_extract_tensor::<f32>().map_err(wrong)?;
            (shape, elements.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        DataType::I32 => {
            let (shape, elements) = value.try_extract_tensor::<i32>().map_err(wrong)?;
            (shape, elements.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        DataType::I64 => {
            let (shape, elements) = value.try_extract_tensor::<i64>().map_err(wrong)?;
            (shape, elements.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        DataType::U8 => {
            let (shape, elements) = value.try_extract_tensor::<u8>().map_err(wrong)?;
            (shape, elements.to_vec())
        }
        DataType::I8 => {
            let (shape, elements) = value.try_extract_tensor::<i8>().map_err(wrong)?;
            (shape, elements.iter().map(|value| value.cast_unsigned()).collect())
        }
        DataType::Bool => {
            let (shape, elements) = value.try_extract_tensor::<bool>().map_err(wrong)?;
            (shape, elements.iter().map(|value| u8::from(*value)).collect::<Vec<u8>>())
        }
        other => return Err(invalid(format!("this engine does not give {other}"))),
    };
    let shape: Result<Vec<usize>, _> = shape.iter().map(|dimension| usize::try_from(*dimension)).collect();
    let shape = shape.map_err(|_| invalid("has a dimension without size".into()))?;
    Tensor::new(wanted, shape, data).map_err(|error| invalid(error.to_string()))
}
