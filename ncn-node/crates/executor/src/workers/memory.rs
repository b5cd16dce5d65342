//! How much memory workers are promised.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::Notify;

/// What all workers together may have.
pub(super) struct Memory {
    limit: u64,
    promised: AtomicU64,
    /// Rung when there may be more again.
    pub(super) freed: Notify,
}

/// Memory that a worker is promised; given back when it is dropped.
pub(super) struct MemoryPermit {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, promised: AtomicU64::new(0), freed: Notify::new() })
    }

    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Promises so much, if there is so much.
    pub(super) fn promise(self: &Arc<Self>, bytes: u64) -> Option<MemoryPermit> {
        let more = |promised: u64| promised.checked_add(bytes).filter(|sum| *sum <= self.limit);
        let promised = self.promised.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        promised.is_ok().then(|| MemoryPermit { memory: self.clone(), bytes })
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        self.memory.promised.fetch_sub(self.bytes, Ordering::AcqRel);
        self.memory.freed.notify_waiters();
    }
}

/// The machine's memory, as far as it can be known.
pub(super) fn of_this_machine() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let info = rustix::system::sysinfo();
        info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)))
    }
    #[cfg(not(target_os = "linux"))]
    u64::MAX
}
