//! The process that has the model loaded. It is forked from the worker before any request comes, runs the package's code, and is what
//! requests are forked from. Whatever that code does to it, there is no request in it, and so none in the forks of others: requests go
//! from the worker to their forks, past this process.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ncn_core::{ExecutorError, Model, executor::ModelPackage};
use pyo3::{prelude::*, types::PyDict};
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
        sendmsg,
    },
    process::{
        DumpableBehavior, Pid, Signal, WaitOptions, fchdir, getpid, kill_process, set_dumpable_behavior,
        set_parent_process_death_signal, waitpid,
    },
};

use crate::{child::Job, confine, model::Loaded, system};

/// What asks for a fork.
const FORK: u8 = b'f';
/// The answer when there is one.
const DONE: u8 = b'd';
/// How long a template may take to fork.
const FORK_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest reason for which a model was not loaded.
const MAX_REASON: usize = 64 << 10;

/// A template, as the worker has it.
pub(crate) struct Template {
    pub(crate) process: Pid,
    pub(crate) model: Arc<Model>,
    control: UnixStream,
}

/// What a process needs to become a template.
pub(crate) struct Start {
    package: ModelPackage,
    control: UnixStream,
    place: Place,
}

/// Where a template and its forks are.
#[derive(Clone)]
pub(crate) struct Place {
    /// The worker, which forks are the children of.
    pub(crate) worker: Pid,
    /// The template's directory.
    pub(crate) directory: PathBuf,
    /// What models may read.
    pub(crate) readable: Vec<PathBuf>,
}

/// What a fork gets from the worker: where its request comes from, where its answers go, and its directory.
pub(crate) struct Ends {
    pub(crate) request: OwnedFd,
    pub(crate) answers: OwnedFd,
    pub(crate) directory: OwnedFd,
}

impl Template {
    /// Forks a template and waits until it has loaded the model. The template itself gets what it needs in place of a [`Template`].
    pub(crate) fn start(
        py: Python<'_>,
        package: ModelPackage,
        directory: PathBuf,
        readable: Vec<PathBuf>,
    ) -> PyResult<Result<Result<Self, ExecutorError>, Box<Start>>> {
        fs::create_dir(&directory)?;
        let (control, mut theirs) = UnixStream::pair()?;
        let place = Place { worker: getpid(), directory, readable };
        let model = package.model.clone();
        let Some(process) = fork(py)? else { return Ok(Err(Box::new(Start { package, control, place }))) };
        drop(control);
        let reason = reason(&mut theirs);
        let template = Self { process, model, control: theirs };
        Ok(Ok(match reason {
            Ok(reason) if reason.is_empty() => Ok(template),
            Ok(reason) => {
                Err(serde_json::from_slice(&reason).unwrap_or_else(|_| ExecutorError::InvalidModel("cannot be loaded".into())))
            }
            Err(_) => Err(ExecutorError::Worker("the model's process ended while it was loaded".into())),
        }))
    }

    /// Has it fork a process with these ends, which becomes a child of this one.
    pub(crate) fn fork(&mut self, ends: &Ends) -> io::Result<()> {
        let descriptors = [ends.request.as_fd(), ends.answers.as_fd(), ends.directory.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&self.control, &[IoSlice::new(&[FORK])], &mut ancillary, SendFlags::NOSIGNAL)?;
        self.control.set_read_timeout(Some(FORK_TIMEOUT))?;
        let mut answer = [0];
        self.control.read_exact(&mut answer)?;
        if answer == [DONE] {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, "there is no room for another process"))
        }
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // It fails only when the process has ended by itself.
        let _ = kill_process(self.process, Signal::KILL);
        system::wait(self.process);
    }
}

/// Loads the model and forks as often as the worker asks. Returns in every fork, with what it is to do, and when the worker has ended.
pub(crate) fn serve(py: Python<'_>, start: Start) -> PyResult<Option<Job>> {
    let Start { package, mut control, place } = start;
    let prepared = prepare(py, &place).map_err(|error| ExecutorError::Worker(error.to_string()));
    let loaded = prepared.and_then(|hooks| {
        let model = Loaded::load(py, &package)?;
        without_children()?;
        // Ignored, the ends of forks would be nobody's to wait for.
        let signal = py.import("signal").and_then(|signal| signal.call_method1("signal", (libc::SIGCHLD, 0)));
        signal.map(|_| (model, hooks)).map_err(|error| ExecutorError::Worker(error.to_string()))
    });
    let (model, reason) = match loaded {
        Ok(model) => (Some(model), Vec::new()),
        Err(error) => (None, serde_json::to_vec(&error).unwrap_or_default()),
    };
    // No fork looks into the memory of another, or of this process.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)?;
    let length = u32::try_from(reason.len()).unwrap_or_default().to_be_bytes();
    control.write_all(&[&length[..], &reason].concat())?;
    let Some((model, hooks)) = model else { return Ok(None) };
    while let Some(ends) = asked(&control)? {
        // Nothing of Python's runs in this process any more.
        match system::fork() {
            Err(_) => control.write_all(&[0])?,
            Ok(Some(between)) => {
                let done = system::wait(between).is_some_and(|status| status.exit_status() == Some(0));
                control.write_all(&[if done { DONE } else { 0 }])?;
            }
            // Its own parent ends, and so it becomes a child of the worker's.
            Ok(None) => {
                let Ends { request, answers, directory } = ends;
                let entered = enter(&directory, &place);
                drop(directory);
                let directory = entered;
                let forked = fork(py);
                if matches!(forked, Ok(None)) {
                    return Ok(Some(Job { model, request: request.into(), answers: answers.into(), place, directory, hooks }));
                }
                exit(py, i32::from(forked.is_err()))?;
            }
        }
    }
    Ok(None)
}

/// Takes down what is to run in forks, in place of running it in them before they are confined; what is to run in their parent is left out.
const REGISTER: &std::ffi::CStr = c"
import os, posix
hooks = []
def register_at_fork(*, before=None, after_in_parent=None, after_in_child=None):
    if after_in_child is not None: hooks.append(after_in_child)
os.register_at_fork = posix.register_at_fork = register_at_fork
";

/// What there is before the package's code runs. Gives the list of what it will have registered to run in forks.
fn prepare(py: Python<'_>, place: &Place) -> PyResult<Py<PyAny>> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(io::Error::from)?;
    confine::template(place).map_err(|error| io::Error::other(error.to_string()))?;
    std::env::set_current_dir(&place.directory)?;
    let environment = py.import("os")?.getattr("environ")?;
    for name in ["HOME", "TMPDIR"] {
        environment.set_item(name, place.directory.as_os_str())?;
    }
    let names = PyDict::new(py);
    py.run(REGISTER, Some(&names), None)?;
    Ok(names.as_any().get_item("hooks")?.unbind())
}

/// A process that `load` leaves would live beside the requests of everybody.
fn without_children() -> Result<(), ExecutorError> {
    loop {
        match waitpid(None, WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Ok(None) | Err(_) => return Err(left()),
        }
    }
}

/// The refusal of a package whose `load` has left a process.
pub(crate) fn left() -> ExecutorError {
    ExecutorError::InvalidModel("load has started a process that still runs: wait for its end before load returns".into())
}

/// Goes to the request's directory, whose path no other request knows, and leaves the others out of reach.
fn enter(directory: &OwnedFd, place: &Place) -> Result<PathBuf, String> {
    fchdir(directory).map_err(|error| error.to_string())?;
    let directory = std::env::current_dir().map_err(|error| error.to_string())?;
    confine::files(&directory, place).map_err(|error| error.to_string())?;
    Ok(directory)
}

/// The next fork that is asked for; none once the worker has ended.
fn asked(control: &UnixStream) -> io::Result<Option<Ends>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let message = loop {
        match recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            message => break message?,
        }
    };
    if message.bytes == 0 || byte != [FORK] {
        return Ok(None);
    }
    let mut given = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let mut next = || given.next().ok_or_else(|| io::Error::other("descriptors are missing"));
    Ok(Some(Ends { request: next()?, answers: next()?, directory: next()? }))
}

/// Python's own fork, which tells the libraries that want to know of it. None in the fork.
fn fork(py: Python<'_>) -> PyResult<Option<Pid>> {
    Ok(Pid::from_raw(py.import("os")?.call_method0("fork")?.extract()?))
}

/// Ends this process without finishing or flushing what was its parent's.
pub(crate) fn exit(py: Python<'_>, status: i32) -> PyResult<()> {
    py.import("os")?.call_method1("_exit", (status,)).map(drop)
}

/// Why the model was not loaded: nothing if it was.
fn reason(control: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    control.read_exact(&mut length)?;
    let mut reason = vec![0; (u32::from_be_bytes(length) as usize).min(MAX_REASON)];
    control.read_exact(&mut reason)?;
    Ok(reason)
}
