//! Each model's workers: started when needed, kept while used.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use ncn_core::{
    Confinement, Execution, ExecutorError, Model, OutputChunk, Policy, ResourceLimits, Sandbox, SandboxCommand,
    executor::ModelPackage, model::ModelFormat,
};
use ncn_wire::{
    self as wire,
    proto::{self, to_worker},
};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tracing::{Instrument as _, Span};

use super::{
    WorkerOptions, WorkerProgram,
    memory::{Memory, MemoryPermit},
    process::{Answer, PendingCall, Process},
};

/// How long a model may take to load.
const LOAD_TIMEOUT: Duration = Duration::from_mins(2);

/// How many runs of one model may have a worker for themselves at once.
const MAX_ALONE: usize = 4;
/// How long a worker may take to stop a run that is out of time.
const STOP_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a run did not end well.
pub(super) enum Broken {
    /// Its worker died, maybe through another run, or did not start.
    Died(String),
    /// It failed itself.
    Failed(ExecutorError),
}

impl From<ExecutorError> for Broken {
    fn from(error: ExecutorError) -> Self {
        match error {
            ExecutorError::Worker(how) => Self::Died(how),
            error => Self::Failed(error),
        }
    }
}

impl From<Broken> for ExecutorError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Died(how) => Self::Worker(how),
            Broken::Failed(error) => error,
        }
    }
}

/// How workers are started.
pub(super) struct Starter {
    programs: Vec<WorkerProgram>,
    sandbox: Arc<dyn Sandbox>,
    options: WorkerOptions,
    memory: Arc<Memory>,
    /// Every slot there is, for whoever needs memory.
    slots: Mutex<Vec<Weak<ModelPool>>>,
}

/// A model's place in the pool.
pub(super) struct ModelPool {
    starter: Arc<Starter>,
    package: ModelPackage,
    program: WorkerProgram,
    /// Held while a worker starts: whoever needs that worker waits, nobody else.
    workers: AsyncMutex<Workers>,
    used: Mutex<Instant>,
    /// Places for runs that have a worker for themselves.
    alone: Arc<Semaphore>,
}

#[derive(Default)]
struct Workers {
    current: Option<Worker>,
    spares: Vec<Worker>,
}

/// A worker's private directory, which goes with the last use of it: however deep what models have made in it is.
struct WorkDirectory(PathBuf);

impl WorkDirectory {
    fn new() -> io::Result<Self> {
        tempfile::tempdir().map(|directory| Self(directory.keep()))
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        let removed = ncn_confine::clear(&self.0);
        #[cfg(not(target_os = "linux"))]
        let removed = std::fs::remove_dir_all(&self.0);
        if let Err(error) = removed {
            tracing::warn!(directory = %self.0.display(), %error, "a worker's directory is left");
        }
    }
}

#[derive(Clone)]
pub(super) struct Worker {
    process: Arc<Process>,
    /// Given up with the last use of the worker: its private directory, and its memory.
    _work_directory: Arc<WorkDirectory>,
    _memory: Arc<MemoryPermit>,
}

impl Starter {
    pub(super) fn new(programs: Vec<WorkerProgram>, sandbox: Arc<dyn Sandbox>, options: WorkerOptions) -> Self {
        let memory = Memory::new(options.memory_bytes);
        Self { programs, sandbox, options, memory, slots: Mutex::default() }
    }

    pub(super) fn programs(&self) -> &[WorkerProgram] {
        &self.programs
    }

    pub(super) fn confinement(&self) -> Confinement {
        self.sandbox.confinement()
    }

    fn slots(&self) -> Vec<Arc<ModelPool>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.iter().filter_map(Weak::upgrade).collect()
    }

    /// Memory for a worker, at the cost of workers that nobody uses; waits while all of them are in use.
    async fn memory(&self, bytes: u64) -> MemoryPermit {
        loop {
            let freed = self.memory.freed.notified();
            if let Some(promise) = self.memory.promise(bytes) {
                return promise;
            }
            if !self.evict() {
                // A worker that becomes idle rings no bell.
                let _ = timeout(Duration::from_millis(50), freed).await;
            }
        }
    }

    /// Ends the worker that was used least recently and has nothing to do, spares first; false when there is none.
    fn evict(&self) -> bool {
        let mut slots = self.slots();
        slots.sort_by_key(|slot| slot.used());
        let spare = slots.iter().find_map(|slot| slot.workers.try_lock().ok()?.spares.pop());
        let evicted = spare.or_else(|| slots.iter().find_map(|slot| slot.workers.try_lock().ok()?.take_idle()));
        evicted.is_some()
    }
}

impl Workers {
    fn take_idle(&mut self) -> Option<Worker> {
        self.current.take_if(|worker| !worker.process.is_busy())
    }
}

impl ModelPool {
    /// What the model is.
    pub(super) fn format(&self) -> ModelFormat {
        self.package.model.manifest().format
    }

    pub(super) fn new(starter: &Arc<Starter>, package: &ModelPackage) -> Result<Self, ExecutorError> {
        let manifest = package.model.manifest();
        let program = starter.programs.iter().find(|program| program.formats.contains(&manifest.format));
        let program = program.ok_or(ExecutorError::UnsupportedFormat(manifest.format))?.clone();
        let needed = manifest.limits.memory_bytes;
        if needed > starter.memory.limit() {
            let most = starter.memory.limit();
            let problem = format!("limits.memory_bytes: the model needs {needed}, this node gives its workers at most {most}");
            return Err(ExecutorError::InvalidModel(problem));
        }
        // The worker starts elsewhere, and sees nothing on the way: a relative directory, or one with `..` or a link in it, would lead it nowhere.
        let directory = std::fs::canonicalize(&package.directory)
            .map_err(|error| ExecutorError::InvalidModel(format!("the package's directory: {error}")))?;
        Ok(Self {
            starter: starter.clone(),
            package: ModelPackage { directory, ..package.clone() },
            program,
            workers: AsyncMutex::default(),
            used: Mutex::new(Instant::now()),
            alone: Arc::new(Semaphore::new(MAX_ALONE)),
        })
    }

    fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model's worker. It is started in a task of its own, so that a request that gives up waiting does not undo the start for
    /// those that come after it.
    pub(super) async fn ready(self: &Arc<Self>) -> Result<Worker, ExecutorError> {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Ok(workers) = self.workers.try_lock()
            && let Some(worker) = workers.current.as_ref().filter(|worker| worker.process.is_usable())
        {
            return Ok(worker.clone());
        }
        let slot = self.clone();
        let ready = tokio::spawn(async move { slot.make_ready().await }).await;
        ready.map_err(|error| ExecutorError::Worker(error.to_string()))?
    }

    /// The slot's worker; a spare or a new one, when there is none that can be used.
    async fn make_ready(self: &Arc<Self>) -> Result<Worker, ExecutorError> {
        let mut workers = self.workers.lock().await;
        if let Some(worker) = workers.current.take_if(|worker| !worker.process.is_usable()) {
            // What it still runs goes on without the pool.
            drop(worker);
        }
        if let Some(worker) = &workers.current {
            return Ok(worker.clone());
        }
        workers.spares.retain(|spare| spare.process.is_usable());
        let worker = match workers.spares.pop() {
            Some(spare) => spare,
            None => self.start().await?,
        };
        workers.current = Some(worker.clone());
        drop(workers);
        {
            let mut slots = self.starter.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if !slots.iter().any(|slot| std::ptr::eq(slot.as_ptr(), Arc::as_ptr(self))) {
                slots.push(Arc::downgrade(self));
                tokio::spawn(look_after(Arc::downgrade(self), self.starter.options.idle));
            }
        }
        if self.starter.options.spares > 0 {
            tokio::spawn(fill(Arc::downgrade(self)));
        }
        Ok(worker)
    }

    /// A new worker, with the model loaded.
    async fn start(&self) -> Result<Worker, ExecutorError> {
        let memory = self.starter.memory(self.package.model.manifest().limits.memory_bytes);
        let memory = timeout(LOAD_TIMEOUT, memory).await;
        let memory = memory.map_err(|_| ExecutorError::Worker("no memory was free in time: all workers are busy".into()))?;
        self.start_with(memory).await
    }

    async fn start_with(&self, memory: MemoryPermit) -> Result<Worker, ExecutorError> {
        let failed = |problem: String| ExecutorError::Worker(problem);
        let work_directory = WorkDirectory::new().map_err(|error| failed(format!("no work directory: {error}")))?;
        let WorkerProgram { path, mut arguments, environment, is_told_paths, .. } = self.program.clone();
        let policy = self.policy(&work_directory.0);
        // Without a sandbox, all of it is read.
        if is_told_paths && self.starter.confinement() > Confinement::None {
            let paths = policy.readable.iter().chain(&policy.executable).chain(&policy.devices);
            arguments.extend(paths.map(|path| path.to_string_lossy().into_owned()));
        }
        let command = SandboxCommand { program: path, arguments, environment };
        let child = self.starter.sandbox.start(&command, &policy).map_err(|error| failed(error.to_string()))?;
        let process = Arc::new(Process::start(child, self.starter.options.cancel_grace).await?);
        let load = proto::LoadModel {
            manifest: self.package.model.bytes().clone(),
            directory: self.package.directory.to_string_lossy().into_owned(),
        };
        let (_asked, mut answers) = process.ask(to_worker::Message::Load(load)).await?;
        // A load that never ends must not hold up everyone who needs the model: the worker ends with it.
        let loaded = timeout(LOAD_TIMEOUT, answered(&mut answers)).await;
        loaded.map_err(|_| failed(format!("the model was not loaded within {LOAD_TIMEOUT:?}")))??;
        Ok(Worker { process, _work_directory: Arc::new(work_directory), _memory: Arc::new(memory) })
    }

    fn policy(&self, work_directory: &Path) -> Policy {
        let WorkerProgram { paths: mut executable, mut readable, devices, processes, .. } = self.program.clone();
        let package = self.package.directory.clone();
        // A package that is a program may have libraries of its own; data is only read.
        if self.package.model.manifest().format == ModelFormat::Python {
            executable.push(package);
        } else {
            readable.push(package);
        }
        let limits = self.package.model.manifest().limits;
        let (memory_bytes, cpu_seconds, default) = (Some(limits.memory_bytes), limits.cpu_seconds, ResourceLimits::default());
        Policy {
            readable,
            executable,
            devices,
            limits: ResourceLimits { memory_bytes, cpu_seconds, processes: processes.or(default.processes), ..default },
            at_least: self.starter.options.at_least,
            ..Policy::new(work_directory)
        }
    }

    /// Starts a run in the model's worker.
    pub(super) async fn run(self: &Arc<Self>, execution: Execution, deadline: Instant) -> Result<RunStream, Broken> {
        let worker = timeout_at(deadline, self.ready()).await.map_err(|_| not_ready())??;
        RunStream::ask(worker, self.package.model.clone(), execution, deadline, None).await
    }

    /// Starts a run in a worker of its own.
    pub(super) async fn run_alone(self: &Arc<Self>, execution: Execution, deadline: Instant) -> Result<RunStream, Broken> {
        let alone = timeout_at(deadline, self.alone.clone().acquire_owned()).await.map_err(|_| not_ready())?.ok();
        let worker = timeout_at(deadline, self.start()).await.map_err(|_| not_ready())??;
        RunStream::ask(worker, self.package.model.clone(), execution, deadline, alone).await
    }
}

/// Not the model's fault: another node may have a worker that is ready.
fn not_ready() -> ExecutorError {
    ExecutorError::Worker("was not ready in time".into())
}

/// Ends a slot's worker when it has had nothing to do for so long.
async fn look_after(slot: Weak<ModelPool>, idle: Duration) {
    loop {
        tokio::time::sleep((idle / 4).max(Duration::from_millis(10))).await;
        let Some(slot) = slot.upgrade() else { return };
        if slot.used().elapsed() >= idle
            && let Ok(mut workers) = slot.workers.try_lock()
            && workers.take_idle().is_some()
        {
            workers.spares.clear();
        }
    }
}

/// Starts spares, as long as there is memory to spare.
async fn fill(slot: Weak<ModelPool>) {
    while let Some(slot) = slot.upgrade() {
        let starter = &slot.starter;
        if slot.workers.lock().await.spares.len() >= starter.options.spares {
            return;
        }
        let Some(memory) = starter.memory.promise(slot.package.model.manifest().limits.memory_bytes) else { return };
        match slot.start_with(memory).await {
            Ok(spare) => slot.workers.lock().await.spares.push(spare),
            Err(error) => return tracing::warn!(%error, "a spare worker did not start"),
        }
    }
}

/// The parts of an output, as a worker gives them. Dropping it cancels the run.
pub(super) struct RunStream {
    answers: mpsc::Receiver<Answer>,
    model: Arc<Model>,
    deadline: Instant,
    time_limit: Duration,
    asked: PendingCall,
    worker: Worker,
    /// What the worker does for the request that the caller's span names.
    span: Span,
    _alone: Option<OwnedSemaphorePermit>,
}

impl RunStream {
    async fn ask(
        worker: Worker,
        model: Arc<Model>,
        execution: Execution,
        deadline: Instant,
        alone: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, Broken> {
        let Execution { model_digest, inputs, parameters, time_limit } = execution;
        let run = proto::RunModel {
            model_digest: wire::bytes(model_digest),
            inputs: wire::values_to_proto(inputs),
            parameters,
            time_limit_micros: u64::try_from(time_limit.as_micros()).unwrap_or(u64::MAX),
        };
        let span = tracing::info_span!("worker", process = worker.process.id());
        let asking = timeout_at(deadline, worker.process.ask(to_worker::Message::Run(run))).instrument(span.clone()).await;
        let (asked, answers) = asking.map_err(|_| ExecutorError::TimedOut(time_limit))??;
        Ok(Self { answers, model, deadline, time_limit, asked, worker, span, _alone: alone })
    }

    /// Cancels the run. A worker that does not stop at once may be stuck: nothing more is sent to it.
    async fn give_up(&mut self) {
        self.asked.cancel();
        let stopped = async { while self.answers.recv().await.is_some() {} };
        if timeout(STOP_TIMEOUT, stopped).await.is_err() {
            self.worker.process.retire();
        }
    }

    /// The next part.
    pub(super) async fn next(&mut self) -> Result<OutputChunk, Broken> {
        let span = self.span.clone();
        self.take().instrument(span).await
    }

    async fn take(&mut self) -> Result<OutputChunk, Broken> {
        let answer = timeout_at(self.deadline, self.answers.recv()).await;
        let Ok(answer) = answer else {
            self.give_up().await;
            return Err(ExecutorError::TimedOut(self.time_limit).into());
        };
        match answer {
            Some(Answer::Part(chunk)) => match self.model.manifest().check_part(&chunk.values) {
                Ok(()) => Ok(chunk),
                // The worker has checked this, unless the model has got around it: it may do the same to the next request.
                Err(error) => {
                    self.worker.process.retire();
                    Err(ExecutorError::InvalidOutput(error.to_string()).into())
                }
            },
            Some(Answer::Error(error)) => Err(error.into()),
            Some(Answer::Done) => Err(unexpected().into()),
            None => Err(ExecutorError::Worker("died while it ran the model".into()).into()),
        }
    }
}

/// Waits for an answer without content.
async fn answered(answers: &mut mpsc::Receiver<Answer>) -> Result<(), ExecutorError> {
    match answers.recv().await {
        Some(Answer::Done) => Ok(()),
        Some(Answer::Error(error)) => Err(error),
        Some(Answer::Part(_)) => Err(unexpected()),
        None => Err(ExecutorError::Worker("ended without an answer".into())),
    }
}

fn unexpected() -> ExecutorError {
    ExecutorError::Worker("answered something else".into())
}
