use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use alloy_primitives::B256;
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_client::{
    proto::{self, from_worker, to_worker},
    wire,
};
use ncn_core::{
    Confinement, Execution, Executor, ExecutorError, Policy, Sandbox, SandboxCommand,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use tokio::sync::{Mutex, mpsc};

use crate::worker::{self, Process};

/// How long a model may take to load.
const LOAD_TIMEOUT: Duration = Duration::from_mins(2);

/// The program that is started as a worker.
#[derive(Clone, Debug)]
pub struct WorkerProgram {
    /// Its path.
    pub path: PathBuf,
    /// The arguments that make it a worker.
    pub arguments: Vec<String>,
}

impl WorkerProgram {
    /// This very program, which has to call [`worker::init`] first thing in its `main`.
    pub fn current() -> Result<Self, ExecutorError> {
        // A program that forgot to call `init` would start itself again and again.
        if std::env::args_os().nth(1).is_some_and(|argument| argument == worker::ARGUMENT) {
            return Err(ExecutorError::Worker("this program does not call ncn_node::worker::init first thing in main".into()));
        }
        let path = std::env::current_exe().map_err(|error| ExecutorError::Worker(error.to_string()))?;
        Ok(Self::new(path))
    }

    /// Another program that calls [`worker::init`], such as `ncn`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), arguments: vec![worker::ARGUMENT.into()] }
    }
}

/// Runs each model in a worker process of its own, started through a sandbox. A worker that dies takes only the requests with it
/// that it was running; the next request starts another.
pub struct WorkerExecutor {
    starter: Arc<Starter>,
    /// Each model's slot has a lock of its own, held while its worker starts: whoever needs that worker waits, nobody else.
    slots: std::sync::Mutex<HashMap<B256, Arc<Slot>>>,
}

/// How workers are started.
struct Starter {
    program: WorkerProgram,
    sandbox: Arc<dyn Sandbox>,
    at_least: Confinement,
}

struct Slot {
    package: ModelPackage,
    worker: Mutex<Option<Worker>>,
}

#[derive(Clone)]
struct Worker {
    process: Arc<Process>,
    /// Its private directory, removed with the last use of the worker.
    _work_directory: Arc<tempfile::TempDir>,
}

impl WorkerExecutor {
    /// Workers of this program, each started through `sandbox`; refuses to run anything less confined than `at_least`.
    pub fn new(program: WorkerProgram, sandbox: Arc<dyn Sandbox>, at_least: Confinement) -> Self {
        Self { starter: Arc::new(Starter { program, sandbox, at_least }), slots: std::sync::Mutex::default() }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<B256, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The model's worker. It is started in a task of its own, so that a request that gives up waiting does not undo the start for
    /// those that come after it.
    async fn worker(&self, slot: &Arc<Slot>) -> Result<Worker, ExecutorError> {
        let (starter, slot) = (self.starter.clone(), slot.clone());
        let ready = tokio::spawn(async move { starter.ready(&slot).await }).await;
        ready.map_err(|error| ExecutorError::Worker(error.to_string()))?
    }
}

impl Starter {
    /// The slot's worker; started, with the model loaded, when there is none or it has died.
    async fn ready(&self, slot: &Slot) -> Result<Worker, ExecutorError> {
        let mut current = slot.worker.lock().await;
        if let Some(worker) = &*current
            && worker.process.is_alive()
        {
            return Ok(worker.clone());
        }
        *current = None;
        let worker = self.start(slot).await?;
        let load = proto::LoadModel {
            manifest: slot.package.model.bytes().clone(),
            directory: slot.package.directory.to_string_lossy().into_owned(),
        };
        let (_asked, mut answers) = worker.process.ask(to_worker::Message::Load(load)).await?;
        // A load that never ends must not hold up everyone who needs the model: the worker ends with it.
        let loaded = tokio::time::timeout(LOAD_TIMEOUT, answered(&mut answers)).await;
        loaded.map_err(|_| ExecutorError::Worker(format!("the model was not loaded within {LOAD_TIMEOUT:?}")))??;
        *current = Some(worker.clone());
        Ok(worker)
    }

    async fn start(&self, slot: &Slot) -> Result<Worker, ExecutorError> {
        let failed = |problem: String| ExecutorError::Worker(problem);
        let work_directory = tempfile::tempdir().map_err(|error| failed(format!("no work directory: {error}")))?;
        let command = SandboxCommand {
            program: self.program.path.clone(),
            arguments: self.program.arguments.clone(),
            environment: BTreeMap::new(),
        };
        let policy = Policy {
            readable: vec![slot.package.directory.clone()],
            work_directory: work_directory.path().to_path_buf(),
            memory_bytes: Some(slot.package.model.manifest().limits.memory_bytes),
            at_least: self.at_least,
        };
        let child = self.sandbox.start(&command, &policy).map_err(|error| failed(error.to_string()))?;
        let process = Arc::new(Process::start(child).await?);
        Ok(Worker { process, _work_directory: Arc::new(work_directory) })
    }
}

/// Waits for an answer without content.
async fn answered(answers: &mut mpsc::Receiver<from_worker::Message>) -> Result<(), ExecutorError> {
    match answers.recv().await {
        Some(from_worker::Message::Done(_)) => Ok(()),
        Some(from_worker::Message::Error(error)) => Err(remote(&error)),
        Some(_) => Err(ExecutorError::Worker("answered something else".into())),
        None => Err(ExecutorError::Worker("ended without an answer".into())),
    }
}

fn remote(error: &str) -> ExecutorError {
    serde_json::from_str(error).unwrap_or_else(|_| ExecutorError::Worker("gave an error that makes no sense".into()))
}

#[async_trait]
impl Executor for WorkerExecutor {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Onnx]
    }

    fn confinement(&self) -> Confinement {
        self.starter.sandbox.confinement()
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let digest = package.model.digest();
        let format = package.model.manifest().format;
        if !self.formats().contains(&format) {
            return Err(ExecutorError::UnsupportedFormat(format));
        }
        let slot = self.slots().get(&digest).cloned();
        // The worker starts elsewhere: a relative directory would lead it nowhere.
        let directory = std::path::absolute(&package.directory)
            .map_err(|error| ExecutorError::InvalidModel(format!("the package's directory: {error}")))?;
        let package = ModelPackage { directory, ..package.clone() };
        let slot = slot.unwrap_or_else(|| Arc::new(Slot { package, worker: Mutex::default() }));
        self.worker(&slot).await?;
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
        let limit = execution.time_limit;
        let deadline = tokio::time::Instant::now() + limit;
        let late = |_| ExecutorError::TimedOut(limit);
        // Not the model's fault: another node may have a worker that is ready.
        let starting = |_| ExecutorError::Worker("was not ready in time".into());
        let worker = tokio::time::timeout_at(deadline, self.worker(&slot)).await.map_err(starting)??;
        let run = proto::RunModel {
            model_digest: wire::bytes(digest),
            inputs: wire::values_to_proto(execution.inputs),
            parameters: execution.parameters,
            time_limit_micros: u64::try_from(limit.as_micros()).unwrap_or(u64::MAX),
        };
        let asking = worker.process.ask(to_worker::Message::Run(run));
        let (asked, answers) = tokio::time::timeout_at(deadline, asking).await.map_err(late)??;
        let outputs = stream::unfold(Some((asked, answers, worker)), move |state| async move {
            let (asked, mut answers, worker) = state?;
            let answer = tokio::time::timeout_at(deadline, answers.recv()).await;
            let chunk = match answer {
                Ok(Some(from_worker::Message::Chunk(chunk))) => {
                    wire::chunk_from_proto(chunk).map_err(|error| ExecutorError::Worker(error.to_string()))
                }
                Ok(Some(from_worker::Message::Error(error))) => Err(remote(&error)),
                Ok(Some(_)) => Err(ExecutorError::Worker("answered something else".into())),
                Ok(None) => Err(ExecutorError::Worker("died while it ran the model".into())),
                Err(_) => Err(ExecutorError::TimedOut(limit)),
            };
            if matches!(chunk, Err(ExecutorError::TimedOut(_))) {
                // The model may be stuck for ever: only ending its process frees what it holds.
                asked.process().kill();
            }
            let last = chunk.as_ref().map_or(true, |chunk| chunk.usage.is_some());
            Some((chunk, if last { None } else { Some((asked, answers, worker)) }))
        });
        Ok(outputs.boxed())
    }
}
