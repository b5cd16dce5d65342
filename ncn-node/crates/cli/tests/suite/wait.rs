//! Waiting for the event that a test is about. Nothing here measures: a bound is what a failure costs, not what success needs.

use std::time::{Duration, Instant};

/// Longer than anything takes on a slow and busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_mins(2);

pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// What a future gives, which comes in time.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future).await.unwrap_or_else(|_| panic!("not within {TIMEOUT:?}: {what}"))
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    in_time(what, async {
        while !so().await {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await;
}

/// The same without a runtime.
#[allow(clippy::disallowed_methods, reason = "no runtime runs this")]
pub(crate) fn eventually_blocking(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}
