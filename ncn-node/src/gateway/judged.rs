//! How many requests wait for the registry's validators. More orders than these can judge would only make all of them late, the paid ones too.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Counts them.
#[derive(Clone, Default)]
pub(super) struct Judged(Arc<AtomicUsize>);

/// One of them, until it is dropped.
pub(super) struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Judged {
    /// One more, however many there are: what is paid for is judged, and so is what was taken.
    pub(super) fn wait(&self) -> Waiting {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waiting(self.0.clone())
    }

    /// Whether there are so many.
    pub(super) fn has(&self, most: usize) -> bool {
        self.0.load(Ordering::Relaxed) >= most
    }
}
