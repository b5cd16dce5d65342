use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use alloy_primitives::B256;
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_core::{
    Confinement, DataType, Execution, Executor, ExecutorError, Model, OutputChunk, Tensor, Usage, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use rten::{Value, ValueOrView};
use rten_tensor::{AsView as _, Layout as _};

use super::package::verified_entry;

/// Runs ONNX models in this process, with an engine in Rust. It is what a worker process runs; a node runs workers.
///
/// A run that outlives its time limit is reported as timed out, but goes on in the background: only ending the process ends it.
#[derive(Default)]
pub struct OnnxExecutor {
    loaded: Mutex<HashMap<B256, Arc<Loaded>>>,
}

struct Loaded {
    model: Arc<Model>,
    engine: rten::Model,
}

impl OnnxExecutor {
    fn loaded(&self) -> MutexGuard<'_, HashMap<B256, Arc<Loaded>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loaded {
    fn open(package: &ModelPackage) -> Result<Self, ExecutorError> {
        let bytes = verified_entry(package)?;
        let invalid = |problem: String| ExecutorError::InvalidModel(format!("{}: {problem}", package.model.manifest().entry));
        let engine = rten::Model::load(bytes).map_err(|error| invalid(error.to_string()))?;
        // A manifest that names what the graph does not have is found now, not by the first user.
        let manifest = package.model.manifest();
        let names = manifest.inputs.iter().map(|input| &input.name).chain(manifest.outputs.iter().map(|output| &output.name));
        for name in names {
            engine.node_id(name).map_err(|_| invalid(format!("the graph has no `{name}`, which the manifest names")))?;
        }
        Ok(Self { model: package.model.clone(), engine })
    }

    fn run(&self, execution: &Execution) -> Result<(Values, Usage), ExecutorError> {
        let failed = |error: rten::RunError| ExecutorError::Failed(error.to_string());
        let manifest = self.model.manifest();
        let tensors = manifest.prepare(&execution.inputs).map_err(|error| ExecutorError::InvalidInput(error.to_string()))?;
        let rows = |tensor: Option<&Tensor>| tensor.and_then(|tensor| tensor.shape().first()).map_or(1, |rows| *rows as u64);
        let input_units = rows(tensors.values().next());

        let started = Instant::now();
        let mut inputs: Vec<(_, ValueOrView<'_>)> = Vec::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            inputs.push((self.engine.node_id(&name).map_err(failed)?, to_engine(&name, &tensor)?.into()));
        }
        let wanted: Result<Vec<_>, _> = manifest.outputs.iter().map(|output| self.engine.node_id(&output.name)).collect();
        let given = self.engine.run(inputs, &wanted.map_err(failed)?, None).map_err(failed)?;
        let mut outputs = BTreeMap::new();
        for (spec, value) in manifest.outputs.iter().zip(given) {
            outputs.insert(spec.name.clone(), from_engine(&spec.name, value, spec.dtype)?);
        }
        let output_units = rows(outputs.values().next());
        let duration_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let values = manifest.finish(outputs).map_err(|error| ExecutorError::InvalidOutput(error.to_string()))?;
        Ok((values, Usage { input_units, output_units, duration_micros }))
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

#[async_trait]
impl Executor for OnnxExecutor {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Onnx]
    }

    fn confinement(&self) -> Confinement {
        Confinement::None
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let (digest, format) = (package.model.digest(), package.model.manifest().format);
        if format != ModelFormat::Onnx {
            return Err(ExecutorError::UnsupportedFormat(format));
        }
        if self.loaded().contains_key(&digest) {
            return Ok(());
        }
        let package = package.clone();
        let opened = tokio::task::spawn_blocking(move || Loaded::open(&package)).await;
        let opened = opened.map_err(|error| ExecutorError::InvalidModel(format!("the engine panicked: {error}")))??;
        self.loaded().insert(digest, Arc::new(opened));
        Ok(())
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        self.loaded().remove(model_digest);
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let digest = execution.model_digest;
        let loaded = self.loaded().get(&digest).cloned().ok_or(ExecutorError::NotLoaded(digest))?;
        let limit = execution.time_limit;
        let running = tokio::task::spawn_blocking(move || loaded.run(&execution));
        let finished = tokio::time::timeout(limit, running).await.map_err(|_| ExecutorError::TimedOut(limit))?;
        let (values, usage) = finished.map_err(|error| ExecutorError::Failed(format!("the engine panicked: {error}")))??;
        Ok(stream::iter([Ok(OutputChunk { values, usage: Some(usage) })]).boxed())
    }
}
