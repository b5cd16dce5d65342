//! The forks that requests run in, as the worker sees them.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use ncn_core::{
    ExecutorError,
    compute::{MAX_STREAM_BYTES, MAX_STREAM_PARTS},
};
use ncn_wire::{
    self as wire, MAX_ANSWER_BYTES,
    proto::{FromWorker, from_worker},
};
use rustix::process::{Pid, Signal, WaitStatus, kill_process};

use crate::{
    child::error_message,
    frames::{Incoming, Outgoing},
    system,
};

const NONSENSE: &str = "its process says something that makes no sense";

/// A fork of the template, which takes one request.
pub(crate) struct Fork {
    pub(crate) process: Pid,
    directory: PathBuf,
    pub(crate) request: Outgoing,
    pub(crate) answers: Incoming,
    /// How many parts it has given, and how many bytes they had on the pipe.
    parts: u64,
    bytes: usize,
    state: State,
}

enum State {
    /// It waits for its request, or has not given the last answer to it.
    Open,
    /// It has given its last answer.
    Answered,
    /// It was ended; the error is the answer.
    Stopped(ExecutorError),
}

impl Fork {
    /// This process, a child of this one, with its directory and the other ends of its pipes.
    pub(crate) fn new(process: Pid, directory: PathBuf, request: File, answers: File) -> io::Result<Self> {
        let answers = Incoming::new(answers, MAX_ANSWER_BYTES);
        Ok(Self { process, directory, request: Outgoing::new(request)?, answers, parts: 0, bytes: 0, state: State::Open })
    }

    /// True until it has given its last answer or was stopped.
    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Ends it; the error becomes the answer, unless there is one already.
    pub(crate) fn stop(&mut self, error: ExecutorError) {
        if self.is_open() {
            self.state = State::Stopped(error);
        }
        self.kill();
    }

    /// Ends it, if it does not end by itself.
    pub(crate) fn kill(&self) {
        // It fails only when the process has ended by itself.
        let _ = kill_process(self.process, Signal::KILL);
    }

    /// Reads what it says. False once it says nothing any more.
    pub(crate) fn read(&mut self) -> bool {
        self.answers.read().unwrap_or(false)
    }

    /// Its next answer, if it has come as a whole.
    pub(crate) fn next(&mut self) -> Option<from_worker::Message> {
        if !self.is_open() {
            return None;
        }
        let frame = match self.answers.next_frame() {
            Ok(None) => return None,
            Ok(Some(frame)) => Ok(frame),
            Err(_) => Err(ExecutorError::Failed(NONSENSE.into())),
        };
        let message = match frame.and_then(|frame| self.check(frame)) {
            Ok(from_worker::Message::Chunk(chunk)) if chunk.finish == 0 => return Some(from_worker::Message::Chunk(chunk)),
            Ok(message) => message,
            // Only a model that writes to the pipe by itself gets here.
            Err(error) => error_message(&error),
        };
        self.state = State::Answered;
        Some(message)
    }

    /// What a frame says. The node counts again; here, a model that floods the pipe harms no request beside its own.
    fn check(&mut self, frame: Bytes) -> Result<from_worker::Message, ExecutorError> {
        self.parts += 1;
        self.bytes = self.bytes.saturating_add(frame.len());
        if self.parts > MAX_STREAM_PARTS || self.bytes > MAX_STREAM_BYTES {
            let problem = format!("has more than {MAX_STREAM_PARTS} parts, or {MAX_STREAM_BYTES} bytes in them");
            return Err(ExecutorError::InvalidOutput(problem));
        }
        match wire::decode_answer(frame) {
            Ok(FromWorker {
                message: Some(message @ (from_worker::Message::Chunk(_) | from_worker::Message::Error(_))), ..
            }) => Ok(message),
            _ => Err(ExecutorError::Failed(NONSENSE.into())),
        }
    }

    /// Sees it off, once it says nothing any more or is not needed. Gives the answer that it still owes.
    pub(crate) fn end(self) -> Option<ExecutorError> {
        // It may have closed its pipe and live on. If it is about to end, this changes nothing of how.
        self.kill();
        let status = system::wait(self.process);
        if ncn_confine::clear(&self.directory).is_err() {
            LEFT.store(true, Ordering::Relaxed);
        }
        match self.state {
            State::Answered => None,
            State::Stopped(error) => Some(error),
            State::Open => {
                let how = status.map_or_else(String::new, how);
                Some(ExecutorError::Failed(format!("its process ended without an answer{how}")))
            }
        }
    }
}

/// Whether a request has left something that could not be removed: it would be there for the next ones.
static LEFT: AtomicBool = AtomicBool::new(false);

/// Whether a request has left something that could not be removed.
pub(crate) fn has_left_something() -> bool {
    LEFT.load(Ordering::Relaxed)
}

/// How a process ended.
fn how(status: WaitStatus) -> String {
    let Some(signal) = status.terminating_signal() else {
        return status.exit_status().map_or_else(String::new, |code| format!(", with exit status {code}"));
    };
    let name = match Signal::from_named_raw(signal) {
        Some(Signal::SEGV) => " (SIGSEGV)",
        Some(Signal::ABORT) => " (SIGABRT)",
        Some(Signal::BUS) => " (SIGBUS)",
        Some(Signal::ILL) => " (SIGILL)",
        Some(Signal::FPE) => " (SIGFPE)",
        Some(Signal::KILL) => " (SIGKILL): it closed its side, or the system has run out of memory",
        _ => "",
    };
    format!(", by signal {signal}{name}")
}
