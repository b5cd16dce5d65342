use bytes::Bytes;
use ncn_core::{
    DataType, ExecutorError, Tensor,
    model::{Manifest, Tensors},
};
use prost::Message as _;
use rten::{Model, ModelOptions, NodeId, RunOptions, ShapeInferenceMode, ThreadPool, Value, ValueOrView, ValueType};
use rten_tensor::{AsView as _, Layout as _};
use std::{collections::BTreeMap, sync::Arc};
use tokio_util::sync::CancellationToken;

use super::{
    Graph, Runtime,
    bounds::{ADVICE, Bounds, Kind},
    graph::ModelProto,
    outlet::{self, Outlet},
};
use crate::Verified;

/// Operators whose output's shape the engine infers wrongly; then it plans with what is not so.
const MISJUDGED: [&str; 1] = ["DynamicQuantizeLSTM"];

/// The built-in runtime, all in Rust. A run cannot be interrupted.
pub(super) struct Rten;

struct Loaded {
    engine: Model,
    /// Names and types of what it gives, in the manifest's order.
    outputs: Vec<(String, DataType)>,
    threads: Option<Arc<ThreadPool>>,
    bounds: Bounds,
}

impl Runtime for Rten {
    fn open(&self, package: &mut Verified) -> Result<Box<dyn Graph>, ExecutorError> {
        let manifest: &Manifest = package.model.manifest();
        let invalid = |problem: String| ExecutorError::InvalidModel(format!("{}: {problem}", manifest.entry));
        let bytes = Bytes::from(std::mem::take(&mut package.entry));
        let described = ModelProto::decode(bytes.clone()).map_err(|error| invalid(error.to_string()))?;
        let opset = described.opset();
        let described = described.graph.unwrap_or_default();
        let bounds = Bounds::find(&described, opset, manifest).map_err(|problem| invalid(format!("{problem}{ADVICE}")))?;
        let inputs =
            described.input.iter().filter_map(|input| Some((input.name.clone(), Kind::of(input.element()?.into())))).collect();
        // As the graph states them: what the engine infers may be wrong.
        let given: BTreeMap<String, _> = described.output.iter().map(|output| (output.name.clone(), output.shape())).collect();
        let mut options = ModelOptions::with_all_ops();
        if described.has_operator(&MISJUDGED) {
            options.shape_inference(ShapeInferenceMode::Off);
        }
        drop(described);
        // Nothing else has the bytes now, so that they are not copied.
        let engine = options.load(bytes.into()).map_err(|error| invalid(error.to_string()))?;
        let outlets = |ids: &[NodeId], kinds: &BTreeMap<String, Kind>| {
            ids.iter().filter_map(|id| describe(&engine, *id, kinds)).collect::<Vec<_>>()
        };
        let (inputs, mut outputs) = (outlets(engine.input_ids(), &inputs), outlets(engine.output_ids(), &bounds.outputs));
        for output in &mut outputs {
            // Some exporters write no dimension where they know none.
            output.shape = given.get(output.name).cloned().flatten().filter(|shape| !shape.is_empty());
        }
        outlet::check(manifest, &inputs, &outputs).map_err(invalid)?;
        drop((inputs, outputs));
        let outputs = super::outputs(manifest);
        let threads = manifest.limits.threads.map(|threads| Arc::new(ThreadPool::with_num_threads(threads as usize)));
        Ok(Box::new(Loaded { engine, outputs, threads, bounds }))
    }
}

/// An input or output. Its type is the graph's own, since the engine has 64-bit integers and booleans as 32-bit integers.
fn describe<'a>(engine: &'a Model, id: NodeId, kinds: &BTreeMap<String, Kind>) -> Option<Outlet<'a>> {
    let info = engine.node_info(id)?;
    let name = info.name()?;
    let holds = match (info.dtype(), kinds.get(name)) {
        (Some(ValueType::Tensor(_)) | None, Some(kind)) => {
            kind.data_type().map(|known| vec![known]).ok_or_else(|| kind.to_string())
        }
        (None, None) => Ok(Vec::new()),
        (Some(ValueType::Tensor(rten::DataType::Float)), None) => Ok(vec![DataType::F32]),
        (Some(ValueType::Tensor(rten::DataType::Int32)), None) => Ok(vec![DataType::I32, DataType::I64, DataType::Bool]),
        (Some(ValueType::Tensor(rten::DataType::Int8)), None) => Ok(vec![DataType::I8]),
        (Some(ValueType::Tensor(rten::DataType::UInt8)), None) => Ok(vec![DataType::U8]),
        (Some(_), _) => Err("something else than a tensor".into()),
    };
    let size = |dimension| match dimension {
        rten::Dimension::Fixed(size) => Some(size),
        rten::Dimension::Symbolic(_) => None,
    };
    Some(Outlet { name, holds, shape: info.shape().map(|shape| shape.into_iter().map(size).collect()) })
}

impl Graph for Loaded {
    fn run(&self, inputs: &Tensors, _cancel: &CancellationToken) -> Result<Tensors, ExecutorError> {
        let failed = |error: rten::RunError| ExecutorError::Failed(error.to_string());
        let mut given: Vec<(_, ValueOrView<'_>)> = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            let inside = self.bounds.check(name, tensor);
            inside.map_err(|problem| ExecutorError::InvalidInput(format!("`{name}`: {problem}")))?;
            given.push((self.engine.node_id(name).map_err(failed)?, to_engine(name, tensor)?.into()));
        }
        let wanted: Result<Vec<_>, _> = self.outputs.iter().map(|(name, _)| self.engine.node_id(name)).collect();
        let options = RunOptions::default().with_thread_pool(self.threads.clone());
        let values = self.engine.run(given, &wanted.map_err(failed)?, Some(options)).map_err(failed)?;
        let outputs = self.outputs.iter().zip(values);
        outputs.map(|((name, wanted), value)| Ok((name.clone(), from_engine(name, value, *wanted)?))).collect()
    }
}

/// The engine has no 64-bit integers or booleans: it reads both as 32-bit integers, and so do we, refusing what does not fit.
fn to_engine(name: &str, tensor: &Tensor) -> Result<Value, ExecutorError> {
    let invalid = |problem: String| ExecutorError::InvalidInput(format!("`{name}`: {problem}"));
    let shape = tensor.shape();
    let value = match tensor.data_type() {
        DataType::F32 => Value::from_shape(shape, tensor.to_f32().map_err(|error| invalid(error.to_string()))?).ok(),
        DataType::I32 => Value::from_shape(shape, tensor.to_i32().map_err(|error| invalid(error.to_string()))?).ok(),
        DataType::I64 => {
            let wide = tensor.to_i64().map_err(|error| invalid(error.to_string()))?;
            let narrow: Result<Vec<i32>, _> = wide.into_iter().map(i32::try_from).collect();
            let narrow = narrow.map_err(|_| invalid("has a value that does not fit 32 bits".into()))?;
            Value::from_shape(shape, narrow).ok()
        }
        DataType::Bool => Value::from_shape(shape, tensor.data().iter().map(|byte| i32::from(*byte != 0)).collect()).ok(),
        DataType::U8 => Value::from_shape(shape, tensor.data().to_vec()).ok(),
        DataType::I8 => Value::from_shape(shape, tensor.data().iter().map(|byte| byte.cast_signed()).collect()).ok(),
        other => return Err(invalid(format!("this engine does not take {other}"))),
    };
    value.ok_or_else(|| invalid("its data does not fit its shape".into()))
}

fn from_engine(name: &str, value: Value, wanted: DataType) -> Result<Tensor, ExecutorError> {
    let invalid = |problem: String| ExecutorError::InvalidOutput(format!("`{name}`: {problem}"));
    let (data_type, shape, data): (_, Vec<usize>, Vec<u8>) = match (value, wanted) {
        (Value::FloatTensor(tensor), _) => {
            (DataType::F32, tensor.shape().to_vec(), tensor.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        (Value::Int32Tensor(tensor), DataType::I64) => {
            (DataType::I64, tensor.shape().to_vec(), tensor.iter().flat_map(|value| i64::from(*value).to_le_bytes()).collect())
        }
        (Value::Int32Tensor(tensor), DataType::Bool) => {
            (DataType::Bool, tensor.shape().to_vec(), tensor.iter().map(|value| u8::from(*value != 0)).collect())
        }
        (Value::Int32Tensor(tensor), _) => {
            (DataType::I32, tensor.shape().to_vec(), tensor.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        (Value::Int8Tensor(tensor), _) => {
            (DataType::I8, tensor.shape().to_vec(), tensor.iter().map(|value| value.cast_unsigned()).collect())
        }
        (Value::UInt8Tensor(tensor), _) => (DataType::U8, tensor.shape().to_vec(), tensor.iter().copied().collect()),
        _ => return Err(invalid("is no tensor".into())),
    };
    Tensor::new(data_type, shape, data).map_err(|error| invalid(error.to_string()))
}
