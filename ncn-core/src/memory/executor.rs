use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use alloy_primitives::B256;
use async_trait::async_trait;
use futures::{StreamExt as _, stream};

use crate::{
    Confinement, Execution, Executor, ExecutorError, OutputChunk, Usage, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};

/// Gives every input tensor back as the output of the same name. For tests of everything around a model.
#[derive(Debug, Default)]
pub struct EchoExecutor {
    loaded: Mutex<HashMap<B256, ModelPackage>>,
}

#[async_trait]
impl Executor for EchoExecutor {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Echo]
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let format = package.model.manifest().format;
        if format != ModelFormat::Echo {
            return Err(ExecutorError::UnsupportedFormat(format));
        }
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.insert(package.model.digest(), package.clone());
        Ok(())
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).remove(model_digest);
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(&execution.model_digest).cloned();
        let package = loaded.ok_or(ExecutorError::NotLoaded(execution.model_digest))?;
        let manifest = package.model.manifest();
        let tensors = manifest.prepare(&execution.inputs, None).map_err(|error| ExecutorError::InvalidInput(error.to_string()))?;
        let values: Values =
            manifest.finish(tensors.clone(), &tensors).map_err(|error| ExecutorError::InvalidOutput(error.to_string()))?;
        let usage = Usage { input_units: 1, output_units: 1, duration_micros: 0 };
        Ok(stream::iter([Ok(OutputChunk::last(values, usage))]).boxed())
    }
}
