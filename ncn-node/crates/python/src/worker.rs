//! The worker: takes requests from the node and hands each to a fork of the model's template.

use std::{
    collections::VecDeque,
    env,
    fs::{self, File, OpenOptions},
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
    process::{DumpableBehavior, Pid, Signal, getpid, kill_process, set_child_subreaper, set_dumpable_behavior},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stdin, stdout},
};

use crate::{
    child::error_message,
    fork::{self, Fork},
    frames::{Incoming, Outgoing},
    system,
    template::{self, Ends, Start, Template},
};

/// The most requests that run at once, where there are that many processors.
const MAX_RUNNING: usize = 8;
/// How many requests wait for one of these to end. While so many wait, the node's messages are left unread.
const QUEUE: usize = 64;
/// While the node has not read this many bytes, nothing more is read, from it or from forks.
const MAX_UNREAD: usize = 1 << 20;

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
    readable: Vec<PathBuf>,
    nothing: OwnedFd,
    messages: Incoming,
    answers: Outgoing,
    template: Option<Template>,
    /// The children that this process was born with: what watches over it.
    watching: Vec<Pid>,
    /// Whether there was a model: the memory of this process may have what its requests were.
    has_served: bool,
    /// Whether there is something here that was not to be: another worker is needed.
    is_spoilt: bool,
    waiting: VecDeque<Request>,
    running: Vec<Running>,
    /// A fork in reserve: made while there is nothing else to do, so that a request need not wait for it.
    spare: Option<Fork>,
    /// False once one has died without a request: then the next waits for one, lest they die for ever.
    keep_spare: bool,
    at_once: usize,
}

/// Serves until the node closes the connection. Returns in the fork that is to be a template, too.
pub(crate) fn serve(py: Python<'_>, readable: Vec<PathBuf>) -> PyResult<Option<Start>> {
    // Forks whose parents end become this process's children. And none of them looks into its memory.
    set_child_subreaper(Some(getpid())).map_err(io::Error::from)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)?;
    let nothing: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    // The connection gets numbers of its own: what a model prints must not get between the messages.
    let (messages, answers) = (stdin().try_clone_to_owned()?, stdout().try_clone_to_owned()?);
    dup2_stdin(&nothing).map_err(io::Error::from)?;
    dup2_stdout(&nothing).map_err(io::Error::from)?;
    let mut worker = Worker {
        py,
        directory: env::current_dir()?,
        readable,
        nothing,
        messages: Incoming::new(messages.into(), wire::MAX_MESSAGE_BYTES),
        answers: Outgoing::new(answers.into())?,
        template: None,
        watching: system::children().unwrap_or_default(),
        has_served: false,
        is_spoilt: false,
        waiting: VecDeque::new(),
        running: Vec::new(),
        spare: None,
        keep_spare: true,
        at_once: available_parallelism().map_or(1, usize::from).min(MAX_RUNNING),
    };
    worker.answer(0, from_worker::Message::Ready(proto::Ready { version: wire::WORKER_VERSION }));
    let start = worker.serve()?;
    if start.is_none() {
        let forks = worker.running.into_iter().map(|running| running.fork).chain(worker.spare);
        forks.for_each(|fork| drop(fork.end()));
        drop(worker.template);
        end_all_but(&worker.watching);
    }
    Ok(start.map(|start| *start))
}

/// Ends the children of this process, and theirs, which become its own.
fn end_all_but(these: &[Pid]) {
    loop {
        let mut others = system::children().unwrap_or_default();
        others.retain(|child| !these.contains(child));
        if others.is_empty() {
            return;
        }
        for child in others {
            // It fails only when the process has ended by itself.
            let _ = kill_process(child, Signal::KILL);
            system::wait(child);
        }
    }
}

impl Worker<'_> {
    /// Until the node closes the connection; what the fork needs that is to be a template, in that one.
    fn serve(&mut self) -> PyResult<Option<Box<Start>>> {
        loop {
            while self.waiting.len() < QUEUE
                && let Some(message) = self.messages.next()?
            {
                if let Some(start) = self.obey(message)? {
                    return Ok(Some(start));
                }
            }
            let is_spoilt = self.is_spoilt || fork::has_left_something();
            if is_spoilt {
                // Waiting requests need not wait for the others to end.
                for request in std::mem::take(&mut self.waiting) {
                    self.refuse(request.id, &ExecutorError::Worker("ends: what a request has left cannot be removed".into()));
                }
            }
            if is_spoilt && self.running.is_empty() && self.answers.waiting() == 0 {
                // Another worker begins with nothing in its directory.
                return Ok(None);
            }
            while !is_spoilt
                && self.running.len() < self.at_once
                && let Some(request) = self.waiting.pop_front()
            {
                self.start(request);
            }
            self.answers.write()?;
            for Running { fork, .. } in &mut self.running {
                fork.request.write_or_forget();
            }
            let idle = self.answers.waiting() == 0 && !self.running.iter().any(|running| running.fork.is_open());
            if idle && !is_spoilt && self.keep_spare && self.template.is_some() && self.spare.is_none() {
                // A request that needs one will be told that there is none.
                self.spare = self.fork().ok();
            }
            if self.wait()? && !self.messages.read()? {
                return Ok(None);
            }
            self.expire();
            while let Some(stopped) = self.running.iter().position(|running| !running.fork.is_open()) {
                self.see_off(stopped);
            }
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

    /// Does what the node says. In the fork that is to be a template, gives what it needs.
    fn obey(&mut self, ToWorker { id, message }: ToWorker) -> PyResult<Option<Box<Start>>> {
        let done = match message.ok_or_else(|| io::Error::other("an empty message"))? {
            to_worker::Message::Load(load) => match self.load(load)? {
                Ok(done) => done,
                Err(start) => return Ok(Some(start)),
            },
            to_worker::Message::Unload(digest) => self.unload(&digest),
            to_worker::Message::Run(run) => match self.request(id, run) {
                Ok(request) => {
                    self.waiting.push_back(request);
                    return Ok(None);
                }
                Err(error) => Err(error),
            },
            to_worker::Message::Cancel(_) => {
                self.stop(|other| (other == id).then_some(ExecutorError::Cancelled));
                return Ok(None);
            }
        };
        match done {
            Ok(()) => self.answer(id, from_worker::Message::Done(proto::Empty {})),
            Err(error) => self.refuse(id, &error),
        }
        Ok(None)
    }

    fn load(&mut self, load: proto::LoadModel) -> PyResult<Result<Result<(), ExecutorError>, Box<Start>>> {
        let model = match Model::parse(load.manifest) {
            Ok(model) => Arc::new(model),
            Err(error) => return Ok(Ok(Err(ExecutorError::InvalidModel(error.to_string())))),
        };
        let one = "has loaded another model: Python takes one in each worker";
        match &self.template {
            Some(template) if template.model.digest() == model.digest() => return Ok(Ok(Ok(()))),
            None if !self.has_served => {}
            _ => return Ok(Ok(Err(ExecutorError::Worker(one.into())))),
        }
        // From here on a model's code runs, which could fill the node's log.
        dup2_stderr(&self.nothing).map_err(io::Error::from)?;
        let package = ModelPackage { model, directory: load.directory.into() };
        let started = match Template::start(self.py, package, self.directory.join("model"), self.readable.clone())? {
            Ok(started) => started,
            Err(start) => return Ok(Err(start)),
        };
        let loaded = started.and_then(|template| {
            self.template = Some(template);
            self.has_served = true;
            // One whose own parent has ended.
            if self.newcomers().is_empty() { Ok(()) } else { Err(template::left()) }
        });
        if loaded.is_err() {
            self.template = None;
            end_all_but(&self.watching);
            // What is left may be in the way of another try, which is told then.
            let _ = ncn_confine::clear(&self.directory.join("model"));
        }
        Ok(Ok(loaded))
    }

    /// The children of this process that it does not know.
    fn newcomers(&self) -> Vec<Pid> {
        let forks = self.running.iter().map(|running| &running.fork).chain(&self.spare).map(|fork| fork.process);
        let template = self.template.as_ref().map(|template| template.process);
        let known: Vec<Pid> = forks.chain(template).chain(self.watching.iter().copied()).collect();
        system::children().unwrap_or_default().into_iter().filter(|child| !known.contains(child)).collect()
    }

    fn unload(&mut self, digest: &[u8]) -> Result<(), ExecutorError> {
        let digest = wire::hash("unload", digest).map_err(malformed)?;
        if self.template.as_ref().is_some_and(|template| template.model.digest() == digest) {
            self.template = None;
            self.spare.take().and_then(Fork::end);
            self.stop(|_| Some(ExecutorError::NotLoaded(digest)));
        }
        Ok(())
    }

    fn request(&self, id: u64, run: RunModel) -> Result<Request, ExecutorError> {
        let digest = wire::hash("run.model_digest", &run.model_digest).map_err(malformed)?;
        if self.template.as_ref().is_none_or(|template| template.model.digest() != digest) {
            return Err(ExecutorError::NotLoaded(digest));
        }
        let limit = Duration::from_micros(run.time_limit_micros);
        let deadline = Instant::now().checked_add(limit).ok_or_else(|| ExecutorError::Worker("an endless time limit".into()))?;
        Ok(Request { id, run, limit, deadline })
    }

    /// A fork of the template, with a directory that no other request can find.
    fn fork(&mut self) -> io::Result<Fork> {
        let template = self.template.as_mut().ok_or_else(|| io::Error::other("there is no model"))?;
        let directory = self.directory.join(format!("{:x}", B256::random()));
        fs::create_dir(&directory)?;
        let (request, to_fork) = io::pipe()?;
        let (from_fork, answers) = io::pipe()?;
        let ends = Ends { request: request.into(), answers: answers.into(), directory: File::open(&directory)?.into() };
        let forked = template.fork(&ends);
        let newcomers = self.newcomers();
        match (forked, newcomers.as_slice()) {
            (Ok(()), [process]) => Fork::new(*process, directory, OwnedFd::from(to_fork).into(), OwnedFd::from(from_fork).into()),
            // There is no room for another process now.
            (Err(error), []) if error.kind() == io::ErrorKind::ResourceBusy => Err(error),
            (forked, _) => {
                // Whatever that is, it is not what was asked for.
                self.is_spoilt = true;
                Err(forked.err().unwrap_or_else(|| io::Error::other("there are processes that nobody asked for")))
            }
        }
    }

    /// Hands a request to a fork.
    fn start(&mut self, Request { id, run, limit, deadline }: Request) {
        self.keep_spare = true;
        let fork = match self.spare.take() {
            Some(spare) => Ok(spare),
            None => self.fork(),
        };
        match fork {
            Ok(mut fork) => {
                fork.request.push(&ToWorker { id, message: Some(to_worker::Message::Run(run)) });
                self.running.push(Running { id, limit, deadline, fork });
            }
            Err(error) => self.refuse(id, &ExecutorError::Worker(format!("cannot fork: {error}"))),
        }
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
        if !fork.is_open() || !open {
            self.see_off(index);
        }
        Ok(())
    }

    /// Ends a fork that has answered, was stopped, or says nothing any more. Other holders of its pipe are not waited for.
    fn see_off(&mut self, index: usize) {
        let Running { id, fork, .. } = self.running.swap_remove(index);
        if let Some(error) = fork.end() {
            self.refuse(id, &error);
        }
        // What it has started is nobody's now, and so this process's.
        let left = self.newcomers();
        for process in &left {
            let _ = kill_process(*process, Signal::KILL);
            system::wait(*process);
        }
        self.is_spoilt |= !left.is_empty();
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
