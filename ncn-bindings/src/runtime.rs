//! The runtime on which everything runs.

use std::{
    process,
    sync::{LazyLock, PoisonError, RwLock},
    time::Duration,
};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::{ErrorKind, NcnError};

/// Threads that poll; those that block come beside them.
const WORKERS: usize = 2;

/// The runtime, from the first call on.
static STATE: RwLock<State> = RwLock::new(State::Unused);

/// The calls that run, and those that were given up and still end.
static RUNNING: LazyLock<TaskTracker> = LazyLock::new(|| {
    let tracker = TaskTracker::new();
    // What is closed can be waited for; it takes more all the same.
    tracker.close();
    tracker
});

enum State {
    Unused,
    /// The process that started it, because no thread of it survives a fork.
    Running(u32, Runtime),
    ShutDown,
}

fn internal(problem: &str) -> NcnError {
    NcnError::new(ErrorKind::Internal, problem)
}

impl State {
    fn handle(&self) -> Result<Handle, NcnError> {
        match self {
            Self::Running(owner, runtime) if *owner == process::id() => Ok(runtime.handle().clone()),
            Self::Running(..) => Err(internal("process: was forked after its first call: start new processes by `spawn`")),
            Self::Unused | Self::ShutDown => Err(internal("process: is about to end: nothing can be called any more")),
        }
    }
}

fn handle() -> Result<Handle, NcnError> {
    let state = STATE.read().unwrap_or_else(PoisonError::into_inner);
    if !matches!(*state, State::Unused) {
        return state.handle();
    }
    drop(state);
    let mut state = STATE.write().unwrap_or_else(PoisonError::into_inner);
    if matches!(*state, State::Unused) {
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).thread_name("ncn").enable_all().build();
        *state = State::Running(process::id(), runtime.map_err(|_| internal("threads: cannot be started"))?);
    }
    state.handle()
}

/// Runs it on the runtime. Dropping this aborts it; a panic of it is an error.
pub(crate) async fn run<T: Send + 'static>(
    work: impl Future<Output = Result<T, NcnError>> + Send + 'static,
) -> Result<T, NcnError> {
    let running = RUNNING.token();
    let task = AbortOnDropHandle::new(handle()?.spawn(async move {
        let _running = running;
        work.await
    }));
    task.await.unwrap_or_else(|error| Err(NcnError::new(ErrorKind::Internal, error)))
}

/// Waits for it in this thread, which must be none of the runtime's.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, NcnError>>) -> Result<T, NcnError> {
    handle()?.block_on(work)
}

/// Calls something that needs the runtime and does not wait.
pub(crate) fn enter(work: impl FnOnce()) {
    if let Ok(handle) = handle() {
        let _entered = handle.enter();
        work();
    }
}

/// Ends this library's threads, for a process that is about to end: what they call then, its language may have taken down already. Before that, it waits, for
/// at most so many milliseconds, until the gateways have heard of every request that was given up before its end. Every call after it fails.
#[uniffi::export]
pub fn shut_down(millis: u64) {
    let timeout = Duration::from_millis(millis);
    let running = STATE.read().unwrap_or_else(PoisonError::into_inner).handle();
    if let Ok(running) = running {
        let heard = async {
            // What is given up only now is cancelled only now.
            RUNNING.wait().await;
            ncn_client::cancellations().await;
        };
        // Where it is not heard in time, the request goes on to its own end.
        let _ = running.block_on(async { tokio::time::timeout(timeout, heard).await });
    }
    let mut state = STATE.write().unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *state, State::ShutDown) {
        State::Running(owner, runtime) if owner == process::id() => runtime.shutdown_timeout(timeout),
        // The threads are the parent's.
        other => std::mem::forget(other),
    }
}

/// Calls something that may block, in a thread that may.
pub(crate) async fn call<T: Send + 'static>(blocking: impl FnOnce() -> T + Send + 'static) -> Result<T, NcnError> {
    tokio::task::spawn_blocking(blocking).await.map_err(|error| NcnError::new(ErrorKind::Internal, error))
}
