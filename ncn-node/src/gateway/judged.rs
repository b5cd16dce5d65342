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
    /// One more, however many there are: for what is paid.
    pub(super) fn wait(&self) -> Waiting {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waiting(self.0.clone())
    }

    /// One more, while there are no more than so many with it.
    pub(super) fn wait_among(&self, most: usize) -> Option<Waiting> {
        let waiting = self.wait();
        (self.0.load(Ordering::Relaxed) <= most).then_some(waiting)
    }

    /// Whether there are as many.
    pub(super) fn has(&self, most: usize) -> bool {
        self.0.load(Ordering::Relaxed) >= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_have_waited_make_room() {
        let judged = Judged::default();
        let [first, second] = [judged.wait_among(2), judged.wait_among(2)];
        assert!(first.is_some() && second.is_some() && judged.has(2));
        assert!(judged.wait_among(2).is_none(), "a third");
        let paid = judged.wait();
        drop(first);
        assert!(judged.wait_among(2).is_none(), "what is paid counts, too");
        drop(paid);
        assert!(!judged.has(2) && judged.wait_among(2).is_some());
    }
}
