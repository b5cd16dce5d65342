//! The worker: a process that runs models for a compute node, which speaks to it over its standard input and output.
//!
//! A program that runs compute nodes calls [`init`] first thing in `main`: its own executable, started with [`WORKER_ARGUMENT`], is the worker.

mod serve;

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::AsFd as _,
    process::exit,
    sync::Arc,
};

pub use serve::serve;
use tokio::net::unix::pipe;

#[cfg(target_os = "linux")]
use crate::sandbox::launch;
use crate::{EngineExecutor, WORKER_ARGUMENT};
#[cfg(feature = "ort")]
use crate::{
    OnnxEngine,
    onnxruntime::{self, OnnxRuntime},
};

/// Runs as a worker, or confines itself to become one, when this process was started for that, and does not return; returns at once
/// otherwise.
pub fn init() {
    let mut arguments = std::env::args_os().skip(1);
    let purpose = arguments.next();
    #[cfg(target_os = "linux")]
    if purpose.as_deref() == Some(OsStr::new(launch::CONFINE)) {
        exit(launch::become_confined(arguments));
    }
    if purpose.as_deref() == Some(OsStr::new(WORKER_ARGUMENT)) {
        // In a thread of its own, since the caller may be inside a runtime: `#[tokio::main]` starts one before anything else.
        let options = arguments.next();
        exit(std::thread::spawn(|| run(options)).join().unwrap_or(1));
    }
    #[cfg(feature = "ort")]
    if purpose.as_deref() == Some(OsStr::new(onnxruntime::ARGUMENT)) {
        exit(onnxruntime::run_probe(arguments));
    }
}

/// What a worker without options runs: every engine that this program has built in. Options are for one engine.
fn executor(options: Option<OsString>) -> Option<EngineExecutor> {
    options.map_or_else(|| Some(EngineExecutor::built_in()), |options| with_options(&options))
}

#[cfg(feature = "ort")]
fn with_options(options: &OsStr) -> Option<EngineExecutor> {
    let options = serde_json::from_slice(options.as_encoded_bytes()).ok()?;
    Some(EngineExecutor::new(vec![Box::new(OnnxEngine::new(OnnxRuntime::new(options)))]))
}

#[cfg(not(feature = "ort"))]
const fn with_options(_: &OsStr) -> Option<EngineExecutor> {
    None
}

/// Serves until the node closes the worker's standard input, then reports how it went.
fn run(options: Option<OsString>) -> i32 {
    let Some(executor) = executor(options) else {
        tracing::error!("the worker's options make no sense");
        return 2;
    };
    // One thread for messages; engines have threads of their own. Each thread that a message passes through costs its wake-up.
    let served = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        let served = runtime.block_on(async {
            let (input, output) = (io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?);
            let (input, output) = (pipe::Receiver::from_owned_fd(input)?, pipe::Sender::from_owned_fd(output)?);
            serve(Arc::new(executor), input, output).await
        });
        // A model that still runs is not waited for: the node has closed the connection.
        runtime.shutdown_background();
        served
    });
    if let Err(error) = &served {
        tracing::error!(%error, "the worker ends");
    }
    i32::from(served.is_err())
}
