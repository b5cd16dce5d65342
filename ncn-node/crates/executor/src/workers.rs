//! Running models in worker processes.

mod memory;
mod pool;
mod process;
mod program;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_core::{
    B256, Confinement, Execution, Executor, ExecutorError, Sandbox,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use pool::{Broken, ModelPool, RunStream, Starter};
pub(crate) use process::codec;
pub use program::{WORKER_ARGUMENT, WorkerProgram};
use tokio::time::Instant;

/// How workers are kept.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The weakest confinement that is acceptable; nothing is run below it. None by default.
    pub at_least: Confinement,
    /// How many workers are kept ready for each model beside the one in use, for when that one dies. 0 by default.
    pub spares: usize,
    /// After how long without a request a worker ends; the next request starts another. 10 minutes by default.
    pub idle: Duration,
    /// How long a run may go on after it was cancelled, before another worker takes over from its own, which ends. 1 second by default.
    pub cancel_grace: Duration,
    /// How much memory all workers together may be promised, by their manifests' limits; whoever was used least recently makes room for
    /// whoever is needed. Half of the machine's by default.
    pub memory_bytes: u64,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            at_least: Confinement::None,
            spares: 0,
            idle: Duration::from_mins(10),
            cancel_grace: Duration::from_secs(1),
            memory_bytes: memory::of_this_machine() / 2,
        }
    }
}

/// Runs each model in a worker process of its own, started through a sandbox.
///
/// A worker that dies while it runs several requests takes none of them along: each is tried once more, alone in another worker, so that
/// only the one that kills its worker fails. A request of which a part was already delivered is not tried again.
pub struct WorkerExecutor {
    starter: Arc<Starter>,
    slots: Mutex<HashMap<B256, Arc<ModelPool>>>,
}

impl WorkerExecutor {
    /// Workers of these programs, each started through `sandbox`. Of two programs for one format, the first is taken.
    pub fn new(programs: Vec<WorkerProgram>, sandbox: Arc<dyn Sandbox>, options: WorkerOptions) -> Self {
        Self { starter: Arc::new(Starter::new(programs, sandbox, options)), slots: Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<B256, Arc<ModelPool>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Executor for WorkerExecutor {
    fn formats(&self) -> Vec<ModelFormat> {
        self.starter.programs().iter().flat_map(|program| program.formats.iter().copied()).collect()
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        self.starter.confinement()
    }

    /// As this package's engine for the format: a worker of another program that gives other parts is found out by their chain.
    fn is_deterministic(&self, model_digest: &B256) -> bool {
        self.slots().get(model_digest).is_some_and(|slot| slot.format() == ModelFormat::Gguf)
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let digest = package.model.digest();
        let known = self.slots().get(&digest).cloned();
        let slot = known.map_or_else(|| ModelPool::new(&self.starter, package).map(Arc::new), Ok)?;
        slot.ready().await?;
        self.slots().entry(digest).or_insert(slot);
        Ok(())
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        self.slots().remove(model_digest);
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let digest = execution.model_digest;
        let slot = self.slots().get(&digest).cloned().ok_or(ExecutorError::NotLoaded(digest))?;
        let deadline = Instant::now() + execution.time_limit;
        let parts = slot.run(execution.clone(), deadline).await;
        let run = Run { slot, execution, deadline, parts: Some(parts), again: true };
        Ok(stream::unfold(run, |mut run| async { run.next().await.map(|part| (part, run)) }).boxed())
    }
}

/// A run, over one worker or two.
struct Run {
    slot: Arc<ModelPool>,
    execution: Execution,
    deadline: Instant,
    parts: Option<Result<RunStream, Broken>>,
    /// It may be tried once more.
    again: bool,
}

impl Run {
    async fn next(&mut self) -> Option<Result<ncn_core::OutputChunk, ExecutorError>> {
        loop {
            let part = match self.parts.as_mut()? {
                Ok(parts) => parts.next().await,
                Err(_) => match self.parts.take() {
                    Some(Err(broken)) => Err(broken),
                    _ => return None,
                },
            };
            match part {
                Ok(chunk) => {
                    // A reader that has seen a part must not see it again.
                    self.again = false;
                    if chunk.is_last() {
                        self.parts = None;
                    }
                    return Some(Ok(chunk));
                }
                Err(Broken::Died(_)) if self.again => {
                    self.again = false;
                    self.parts = Some(self.slot.run_alone(self.execution.clone(), self.deadline).await);
                }
                Err(broken) => {
                    self.parts = None;
                    return Some(Err(broken.into()));
                }
            }
        }
    }
}
