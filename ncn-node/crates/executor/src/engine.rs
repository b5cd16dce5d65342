//! Running models in this process.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_core::{
    B256, Confinement, Execution, Executor, ExecutorError, OutputChunk, Usage, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::package::Verified;

/// How many parts of an output wait for whoever reads them.
const QUEUE: usize = 64;
/// How many runs compute at once; more wait.
const MAX_RUNS: usize = 64;

/// A kind of engine. It blocks: [`EngineExecutor`] gives it threads.
pub trait Engine: Send + Sync {
    /// What it runs.
    fn format(&self) -> ModelFormat;

    /// Makes a model ready to run.
    fn open(&self, package: Verified) -> Result<Box<dyn Session>, ExecutorError>;
}

/// A model that an engine has made ready; runs many times, from many threads at once.
pub trait Session: Send + Sync {
    /// Runs it. Parts of the output may go to [`RunContext::emit`]; what is returned is the last part, or all of it.
    fn run(&self, inputs: &Values, parameters: &str, job: &RunContext) -> Result<OutputChunk, ExecutorError>;

    /// See [`Executor::is_deterministic`].
    fn is_deterministic(&self) -> bool {
        false
    }
}

/// A run's line to whoever waits for it.
pub struct RunContext {
    parts: mpsc::Sender<Result<OutputChunk, ExecutorError>>,
    cancel: CancellationToken,
}

impl RunContext {
    /// Hands a part of the output over, with what the run took so far; waits when the reader is slow. An error says that nobody waits any
    /// more.
    pub fn emit(&self, values: Values, usage: Usage) -> Result<(), ExecutorError> {
        let sent = self.parts.blocking_send(Ok(OutputChunk { values, usage, finish: None }));
        if sent.is_err() || self.cancel.is_cancelled() { Err(ExecutorError::Cancelled) } else { Ok(()) }
    }

    /// Is cancelled when nobody waits for the run any more, or when it has run out of time.
    pub const fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }
}

/// Runs models in this process, by engines. It is what a worker process runs; a node runs workers.
///
/// A run that outlives its time limit, or that nobody waits for any more, goes on in the background when its engine cannot be
/// interrupted: only ending the process ends it.
pub struct EngineExecutor {
    engines: Arc<[Box<dyn Engine>]>,
    loaded: Mutex<HashMap<B256, Arc<dyn Session>>>,
    runs: Arc<Semaphore>,
}

impl EngineExecutor {
    /// Of two engines for one format, the first is taken.
    pub fn new(engines: Vec<Box<dyn Engine>>) -> Self {
        Self { engines: engines.into(), loaded: Mutex::default(), runs: Arc::new(Semaphore::new(MAX_RUNS)) }
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<B256, Arc<dyn Session>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an inference that `cancel` ends. Unlike that of [`Executor::run`], its stream ends no sooner than the engine is done.
    pub(crate) async fn start(&self, execution: Execution, cancel: CancellationToken) -> Result<Outputs, ExecutorError> {
        let digest = execution.model_digest;
        let session = self.loaded().get(&digest).cloned().ok_or(ExecutorError::NotLoaded(digest))?;
        let place = tokio::select! {
            place = self.runs.clone().acquire_owned() => place.map_err(|_| ExecutorError::Cancelled)?,
            () = cancel.cancelled() => return Err(ExecutorError::Cancelled),
        };
        let (parts, outputs) = mpsc::channel(QUEUE);
        let job = RunContext { parts, cancel };
        tokio::task::spawn_blocking(move || {
            let _place = place;
            // An engine that panics takes its own run along and nothing else.
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                session.run(&execution.inputs, &execution.parameters, &job)
            }));
            let ran = ran.unwrap_or_else(|_| Err(ExecutorError::Failed("the engine panicked".into())));
            let _ = job.parts.blocking_send(ran);
        });
        Ok(ReceiverStream::new(outputs).boxed())
    }
}

/// What a panic said.
fn said(panicked: &(dyn Any + Send)) -> &str {
    panicked.downcast_ref::<String>().map(String::as_str).or_else(|| panicked.downcast_ref::<&str>().copied()).unwrap_or_default()
}

#[async_trait]
impl Executor for EngineExecutor {
    fn formats(&self) -> Vec<ModelFormat> {
        self.engines.iter().map(|engine| engine.format()).collect()
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    fn is_deterministic(&self, model_digest: &B256) -> bool {
        self.loaded().get(model_digest).is_some_and(|session| session.is_deterministic())
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let (digest, format) = (package.model.digest(), package.model.manifest().format);
        let index = self.engines.iter().position(|engine| engine.format() == format);
        let index = index.ok_or(ExecutorError::UnsupportedFormat(format))?;
        if self.loaded().contains_key(&digest) {
            return Ok(());
        }
        let (engines, package) = (self.engines.clone(), package.clone());
        let opening = tokio::task::spawn_blocking(move || {
            let package = Verified::read(&package)?;
            engines.get(index).ok_or(ExecutorError::UnsupportedFormat(format))?.open(package)
        });
        let session = opening.await.map_err(|panicked| {
            let words = panicked.try_into_panic().ok();
            let words = words.as_ref().map_or("", |words| said(words.as_ref()));
            ExecutorError::InvalidModel(format!("the engine panicked while it read the model: {words}"))
        })??;
        self.loaded().insert(digest, session.into());
        Ok(())
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        self.loaded().remove(model_digest);
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let limit = execution.time_limit;
        let deadline = Instant::now() + limit;
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let started = tokio::time::timeout_at(deadline, self.start(execution, cancel)).await;
        let outputs = started.map_err(|_| ExecutorError::TimedOut(limit))??;
        Ok(within(outputs, deadline, limit, guard))
    }
}

/// The same outputs up to a deadline, and no longer than somebody reads them: then `guard` is dropped.
pub(super) fn within<G: Send + 'static>(outputs: Outputs, deadline: Instant, limit: Duration, guard: G) -> Outputs {
    let parts = stream::unfold(Some((outputs, guard)), move |state| async move {
        let (mut outputs, guard) = state?;
        let part = match tokio::time::timeout_at(deadline, outputs.next()).await {
            Ok(Some(part)) => part,
            Ok(None) => Err(ExecutorError::Failed("the output broke off".into())),
            Err(_) => Err(ExecutorError::TimedOut(limit)),
        };
        let more = part.as_ref().is_ok_and(|part| !part.is_last());
        Some((part, more.then_some((outputs, guard))))
    });
    parts.boxed()
}
