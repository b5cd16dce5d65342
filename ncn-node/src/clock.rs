//! The time by which payments are judged: this machine's, or the chain's where that is ahead, as a development chain's may be by hours.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ncn_client::unix_now;
use ncn_core::{ChainView, UnixTime};

/// What is known of the chain's time. It is read with the validators, which are asked for anyway where a payment is judged.
pub(crate) struct Clock {
    chain: Arc<dyn ChainView>,
    /// How far the chain was ahead when it was asked last.
    ahead: AtomicU64,
}

impl Clock {
    pub(crate) fn new(chain: Arc<dyn ChainView>) -> Self {
        Self { chain, ahead: AtomicU64::new(0) }
    }

    /// The time, as the chain has it now or had it a moment ago. Of a chain that does not answer, as it was last.
    pub(crate) async fn now(&self) -> UnixTime {
        if let Ok(trust) = self.chain.trust(0).await {
            let machine = unix_now();
            self.ahead.store(trust.now(machine).saturating_sub(machine), Ordering::Relaxed);
        }
        self.last()
    }

    /// The time, as far as is known without asking.
    pub(crate) fn last(&self) -> UnixTime {
        unix_now().saturating_add(self.ahead.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.last()).finish()
    }
}
