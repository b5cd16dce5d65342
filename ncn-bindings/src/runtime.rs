//! The runtime on which everything runs.

use std::{process, sync::OnceLock, time::Duration};

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

use crate::{ErrorKind, NcnError};

/// Threads that poll; those that block come beside them.
const WORKERS: usize = 2;

/// The process that started it, because no thread of it survives a fork.
static RUNTIME: OnceLock<Option<(u32, Runtime)>> = OnceLock::new();

fn runtime() -> Result<&'static Runtime, NcnError> {
    let start = || {
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).thread_name("ncn").enable_all().build().ok()?;
        Some((process::id(), runtime))
    };
    match RUNTIME.get_or_init(start) {
        Some((owner, runtime)) if *owner == process::id() => Ok(runtime),
        Some(_) => {
            Err(NcnError::new(ErrorKind::Internal, "process: was forked after its first call: start new processes by `spawn`"))
        }
        None => Err(NcnError::new(ErrorKind::Internal, "threads: cannot be started")),
    }
}

/// Runs it on the runtime. Dropping this aborts it; a panic of it is an error.
pub(crate) async fn run<T: Send + 'static>(
    work: impl Future<Output = Result<T, NcnError>> + Send + 'static,
) -> Result<T, NcnError> {
    let task = AbortOnDropHandle::new(runtime()?.spawn(work));
    task.await.unwrap_or_else(|error| Err(NcnError::new(ErrorKind::Internal, error)))
}

/// Waits for it in this thread, which must be none of the runtime's.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, NcnError>>) -> Result<T, NcnError> {
    runtime()?.block_on(work)
}

/// Waits, for at most so many milliseconds, until the gateways have heard of every request that was given up before its end. For a process that is about to
/// end.
#[uniffi::export]
pub fn wait_for_cancellations(millis: u64) {
    if let Ok(runtime) = runtime() {
        // Where it is not heard in time, the request goes on to its own end.
        let _ = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(millis), ncn_client::cancellations()).await });
    }
}

/// Calls something that may block, in a thread that may.
pub(crate) async fn call<T: Send + 'static>(blocking: impl FnOnce() -> T + Send + 'static) -> Result<T, NcnError> {
    tokio::task::spawn_blocking(blocking).await.map_err(|error| NcnError::new(ErrorKind::Internal, error))
}
