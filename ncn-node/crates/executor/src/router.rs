use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use ncn_core::{
    B256, Confinement, Execution, Executor, ExecutorError, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};

/// Several executors as one: each model is run by the first that runs its format and takes the model, for example workers and an engine over HTTP.
pub struct ExecutorRouter {
    executors: Vec<Arc<dyn Executor>>,
    loaded: Mutex<HashMap<B256, Arc<dyn Executor>>>,
}

impl ExecutorRouter {
    /// The one to be preferred first.
    pub fn new(executors: Vec<Arc<dyn Executor>>) -> Self {
        Self { executors, loaded: Mutex::default() }
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<B256, Arc<dyn Executor>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Executor for ExecutorRouter {
    fn formats(&self) -> Vec<ModelFormat> {
        self.executors.iter().flat_map(|executor| executor.formats()).collect()
    }

    fn confinement(&self, model_digest: &B256) -> Confinement {
        self.loaded().get(model_digest).map_or(Confinement::None, |executor| executor.confinement(model_digest))
    }

    fn is_deterministic(&self, model_digest: &B256) -> bool {
        self.loaded().get(model_digest).is_some_and(|executor| executor.is_deterministic(model_digest))
    }

    fn continue_from(&self, execution: &Execution, prefix: &Values, units: u64) -> Option<Execution> {
        self.loaded().get(&execution.model_digest)?.continue_from(execution, prefix, units)
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let format = package.model.manifest().format;
        let mut refused = None;
        for executor in self.executors.iter().filter(|executor| executor.formats().contains(&format)) {
            match executor.load(package).await {
                Ok(()) => {
                    self.loaded().insert(package.model.digest(), executor.clone());
                    return Ok(());
                }
                // What one engine cannot compute, another may.
                Err(error @ ExecutorError::InvalidModel(_)) => {
                    refused.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or(ExecutorError::UnsupportedFormat(format)))
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        let executor = self.loaded().remove(model_digest);
        match executor {
            Some(executor) => executor.unload(model_digest).await,
            None => Ok(()),
        }
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let digest = execution.model_digest;
        let executor = self.loaded().get(&digest).cloned().ok_or(ExecutorError::NotLoaded(digest))?;
        executor.run(execution).await
    }
}
