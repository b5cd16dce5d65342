//! The interpreter that requests are forked from.

use std::{
    collections::VecDeque,
    env,
    fs::OpenOptions,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use ncn_core::{B256, ExecutorError, Model, executor::ModelPackage};
use ncn_wire::{
    self as wire,
    proto::{self, FromWorker, RunModel, ToWorker, from_worker, to_worker},
};
use pyo3::prelude::*;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{DumpableBehavior, set_dumpable_behavior},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stdin, stdout},
};

use crate::{
    child::{Job, error_message},
    fork::{self, Fork},
    frames::{Incoming, Outgoing},
    model::Loaded,
};

/// The most requests that run at once, where there are that many processors.
const MAX_RUNNING: usize = 8;
/// How many requests wait for one of these to end. While so many wait, the node's messages are left unread.
const QUEUE: usize = 64;
/// While the node has not read this many bytes, nothing more is read, from it or from forks.
const MAX_UNREAD: usize = 1 << 20;

/// How serving ended.
pub(crate) enum End {
    /// The node has closed the connection.
    Closed,
    /// This process is a fork.
    Forked(Box<Job>),
}

/// An inference that the node asks for.
struct Request {
    id: u64,
    run: RunModel,
    limit: Duration,
    deadline: Instant,
}

/// A request that a fork runs.
struct Running {
    id: u64,
    limit: Duration,
    deadline: Instant,
    fork: Fork,
}

struct Worker<'py> {
    py: Python<'py>,
    directory: PathBuf,
    nothing: OwnedFd,
    messages: Incoming,
    answers: Outgoing,
    model: Option<Loaded>,
    waiting: VecDeque<Request>,
    running: Vec<Running>,
    /// A fork in reserve: made while there is nothing else to do, so that a request need not wait for it.
    spare: Option<Fork>,
    /// False once one has died without a request: then the next waits for one, lest they die for ever.
    keep_spare: bool,
    at_once: usize,
}

/// Serves until the node closes the connection. Returns in every fork, too.
pub(crate) fn serve(py: Python<'_>) -> PyResult<End> {
    let nothing: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    // The connection gets numbers of its own: what a model prints must not get between the messages.
    let (messages, answers) = (stdin().try_clone_to_owned()?, stdout().try_clone_to_owned()?);
    dup2_stdin(&nothing).map_err(io::Error::from)?;
    dup2_stdout(&nothing).map_err(io::Error::from)?;
    let directory = env::current_dir()?;
    let environment = py.import("os")?.getattr("environ")?;
    for name in ["HOME", "TMPDIR"] {
        environment.set_item(name, directory.as_os_str())?;
    }
    let mut worker = Worker {
        py,
        directory,
        nothing,
        messages: Incoming::new(messages.into(), wire::MAX_MESSAGE_BYTES),
        answers: Outgoing::new(answers.into())?,
        model: None,
        waiting: VecDeque::new(),
        running: Vec::new(),
        spare: None,
        keep_spare: true,
        at_once: available_parallelism().map_or(1, usize::from).min(MAX_RUNNING),
    };
    worker.answer(0, from_worker::Message::Ready(proto::Ready { version: wire::WORKER_VERSION }));
    let end = worker.serve()?;
    if matches!(end, End::Closed) {
        let forks = worker.running.into_iter().map(|running| running.fork).chain(worker.spare);
        forks.for_each(|fork| drop(fork.end()));
    }
    Ok(end)
}

impl Worker<'_> {
    fn serve(&mut self) -> PyResult<End> {
        loop {
            while self.waiting.len() < QUEUE
                && let Some(message) = self.messages.next()?
            {
                self.obey(message)?;
            }
            let is_spoilt = fork::has_left_something();
            if is_spoilt && self.running.is_empty() {
                // Another worker begins with nothing in its directory.
                return Ok(End::Closed);
            }
            while !is_spoilt
                && self.running.len() < self.at_once
                && let Some(request) = self.waiting.pop_front()
            {
                if let Some(job) = self.start(request) {
                    return Ok(End::Forked(job));
                }
            }
            self.answers.write()?;
            for Running { fork, .. } in &mut self.running {
                fork.request.write_or_forget();
            }
            let idle = self.answers.waiting() == 0 && !self.running.iter().any(|running| running.fork.is_open());
            if idle && self.keep_spare && self.model.is_some() && self.spare.is_none() {
                match self.fork() {
                    Ok(Ok(fork)) => self.spare = Some(fork),
                    Ok(Err(job)) => return Ok(End::Forked(job)),
                    // Whoever needs one will be told.
                    Err(_) => {}
                }
            }
            if self.wait()? && !self.messages.read()? {
                return Ok(End::Closed);
            }
            self.expire();
        }
    }

    /// Waits until there is something to do, and reads what forks say. True when the node has said something.
    fn wait(&mut self) -> io::Result<bool> {
        let read = if self.answers.waiting() < MAX_UNREAD { PollFlags::IN } else { PollFlags::empty() };
        let listen = if self.waiting.len() < QUEUE { read } else { PollFlags::empty() };
        let mut pipes = vec![PollFd::new(&self.messages, listen)];
        pipes.extend(self.spare.iter().map(|spare| PollFd::new(&spare.answers, PollFlags::IN)));
        let first = pipes.len();
        pipes.extend(self.running.iter().map(|running| PollFd::new(&running.fork.answers, read)));
        let requests = self.running.iter().map(|running| &running.fork.request);
        let unwritten = requests.chain([&self.answers]).filter(|pipe| pipe.waiting() > 0);
        pipes.extend(unwritten.map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        let deadlines = self.running.iter().filter(|running| running.fork.is_open()).map(|running| running.deadline);
        let deadline = deadlines.chain(self.waiting.iter().map(|request| request.deadline)).min();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut pipes, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = pipes.iter().map(|pipe| !pipe.revents().is_empty()).collect();
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        // A spare has nothing to say: it has died.
        if first > 1 && is_ready(1) {
            self.spare.take().and_then(Fork::end);
            self.keep_spare = false;
        }
        // From the last: one that has ended gives its place to one that has been seen to.
        for index in (0..self.running.len()).rev().filter(|index| is_ready(first + index)) {
            self.read(index)?;
        }
        Ok(is_ready(0))
    }

    fn answer(&mut self, id: u64, message: from_worker::Message) {
        self.answers.push(&FromWorker { id, message: Some(message) });
    }

    fn refuse(&mut self, id: u64, error: &ExecutorError) {
        self.answer(id, error_message(error));
    }

    fn obey(&mut self, ToWorker { id, message }: ToWorker) -> io::Result<()> {
        let done = match message.ok_or_else(|| io::Error::other("an empty message"))? {
            to_worker::Message::Load(load) => self.load(load),
            to_worker::Message::Unload(digest) => self.unload(&digest),
            to_worker::Message::Run(run) => match self.request(id, run) {
                Ok(request) => {
                    self.waiting.push_back(request);
                    return Ok(());
                }
                Err(error) => Err(error),
            },
            to_worker::Message::Cancel(_) => {
                self.stop(|other| (other == id).then_some(ExecutorError::Cancelled));
                return Ok(());
            }
        };
        match done {
            Ok(()) => self.answer(id, from_worker::Message::Done(proto::Empty {})),
            Err(error) => self.refuse(id, &error),
        }
        Ok(())
    }

    fn load(&mut self, load: proto::LoadModel) -> Result<(), ExecutorError> {
        let model = Model::parse(load.manifest).map_err(|error| ExecutorError::InvalidModel(error.to_string()))?;
        let package = ModelPackage { model: Arc::new(model), directory: load.directory.into() };
        match &self.model {
            Some(loaded) if loaded.model.digest() == package.model.digest() => return Ok(()),
            Some(_) => return Err(ExecutorError::Worker("has loaded another model: Python takes one in each worker".into())),
            None => {}
        }
        let failed = |error: Errno| ExecutorError::Worker(error.to_string());
        // From here on a model's code runs, which could fill the node's log.
        dup2_stderr(&self.nothing).map_err(failed)?;
        self.model = Some(Loaded::load(self.py, &package)?);
        // No fork looks into the memory of another, or of this process.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed)
    }

    fn unload(&mut self, digest: &[u8]) -> Result<(), ExecutorError> {
        let digest = wire::hash("unload", digest).map_err(malformed)?;
        if self.model.as_ref().is_some_and(|loaded| loaded.model.digest() == digest) {
            self.model = None;
            self.spare.take().and_then(Fork::end);
            self.stop(|_| Some(ExecutorError::NotLoaded(digest)));
        }
        Ok(())
    }

    fn request(&self, id: u64, run: RunModel) -> Result<Request, ExecutorError> {
        let digest = wire::hash("run.model_digest", &run.model_digest).map_err(malformed)?;
        if self.model.as_ref().is_none_or(|loaded| loaded.model.digest() != digest) {
            return Err(ExecutorError::NotLoaded(digest));
        }
        let limit = Duration::from_micros(run.time_limit_micros);
        let deadline = Instant::now().checked_add(limit).ok_or_else(|| ExecutorError::Worker("an endless time limit".into()))?;
        Ok(Request { id, run, limit, deadline })
    }

    fn fork(&mut self) -> PyResult<Result<Fork, Box<Job>>> {
        // A name that no other request can guess.
        let directory = self.directory.join(format!("{:x}", B256::random()));
        let forked = Fork::new(self.py, directory.clone())?;
        Ok(forked.map_err(|ends| Box::new(Job { model: self.model.take(), directory, ends })))
    }

    /// Hands a request to a fork. In the fork, gives what it is to do.
    fn start(&mut self, Request { id, run, limit, deadline }: Request) -> Option<Box<Job>> {
        self.keep_spare = true;
        let mut fork = match self.spare.take() {
            Some(spare) => spare,
            None => match self.fork() {
                Ok(Ok(fork)) => fork,
                Ok(Err(job)) => return Some(job),
                Err(error) => {
                    self.refuse(id, &ExecutorError::Worker(format!("cannot fork: {error}")));
                    return None;
                }
            },
        };
        fork.request.push(&ToWorker { id, message: Some(to_worker::Message::Run(run)) });
        self.running.push(Running { id, limit, deadline, fork });
        None
    }

    /// Passes on what a fork says.
    fn read(&mut self, index: usize) -> io::Result<()> {
        let Some(Running { id, fork, .. }) = self.running.get_mut(index) else { return Ok(()) };
        let id = *id;
        let open = fork.read();
        while let Some(message) = fork.next() {
            self.answers.push(&FromWorker { id, message: Some(message) });
        }
        // At once: seeing the fork off takes time that nobody should wait for.
        self.answers.write()?;
        if !fork.is_open() {
            fork.kill();
        }
        if !open {
            let ended = self.running.swap_remove(index);
            if let Some(error) = ended.fork.end() {
                self.refuse(id, &error);
            }
        }
        Ok(())
    }

    /// Stops every request that there is an error for.
    fn stop(&mut self, error: impl Fn(u64) -> Option<ExecutorError>) {
        for Running { id, fork, .. } in &mut self.running {
            if let Some(error) = error(*id) {
                fork.stop(error);
            }
        }
        let (stopped, waiting) = self.waiting.drain(..).partition(|request| error(request.id).is_some());
        self.waiting = waiting;
        let stopped: VecDeque<Request> = stopped;
        for Request { id, .. } in stopped {
            if let Some(error) = error(id) {
                self.refuse(id, &error);
            }
        }
    }

    /// Ends what has run out of time.
    fn expire(&mut self) {
        let now = Instant::now();
        for Running { limit, fork, .. } in self.running.iter_mut().filter(|running| running.deadline <= now) {
            fork.stop(ExecutorError::TimedOut(*limit));
        }
        while let Some(late) = self.waiting.iter().position(|request| request.deadline <= now) {
            if let Some(Request { id, .. }) = self.waiting.remove(late) {
                self.refuse(id, &ExecutorError::Worker("was busy with other requests until the time limit".into()));
            }
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(error: wire::WireError) -> ExecutorError {
    ExecutorError::Worker(format!("a malformed message: {error}"))
}
