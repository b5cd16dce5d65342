//! An executor that fails as it is told.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use alloy_primitives::B256;
use async_trait::async_trait;
use ncn_core::{
    Confinement, Execution, Executor, ExecutorError,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use ncn_executor::EngineExecutor;

/// Fails as it is told, a number of times, then runs the real thing; counts how often it was asked.
pub(crate) struct Failing {
    onnx: EngineExecutor,
    pub(crate) runs: AtomicUsize,
    error: ExecutorError,
    failures: AtomicUsize,
}

#[async_trait]
impl Executor for Failing {
    fn formats(&self) -> Vec<ModelFormat> {
        self.onnx.formats()
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        self.onnx.load(package).await
    }

    async fn unload(&self, digest: &B256) -> Result<(), ExecutorError> {
        self.onnx.unload(digest).await
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let left = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_ok() { Err(self.error.clone()) } else { self.onnx.run(execution).await }
    }
}

pub(crate) fn failing(error: ExecutorError, failures: usize) -> Arc<Failing> {
    let (runs, failures) = (AtomicUsize::new(0), AtomicUsize::new(failures));
    Arc::new(Failing { onnx: EngineExecutor::built_in(), runs, error, failures })
}
