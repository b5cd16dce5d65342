//! How often something may be done in a minute, by who does it.

use std::{
    hash::Hash,
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};
use ncn_core::TransportError;

/// After so many, those who are as if they had done nothing are forgotten; or after half as many as are remembered, if these are more.
const FORGET_AFTER: usize = 4_096;

/// So many a minute for each: all at once, if they come after a pause, and then one for each that becomes free. It is the generic cell rate algorithm
/// (ITU-T I.371) of the crate `governor`.
pub(crate) struct Rate<K: Hash + Eq + Clone> {
    limiter: RateLimiter<K, DefaultKeyedStateStore<K>, DefaultClock, StateInformationMiddleware>,
    clock: DefaultClock,
    since_forgetting: AtomicUsize,
}

/// What is left to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Of how many.
    pub(crate) limit: NonZeroU32,
    /// How many may come at once.
    pub(crate) remaining: u32,
    /// When all may come again; where nothing is left, when one may.
    pub(crate) reset: Duration,
}

/// The error where there were too many: it says when to come again.
impl From<Left> for TransportError {
    fn from(left: Left) -> Self {
        Self::Overloaded { retry_after: left.reset }
    }
}

impl<K: Hash + Eq + Clone> Rate<K> {
    pub(crate) fn per_minute(limit: NonZeroU32) -> Self {
        let limiter = RateLimiter::keyed(Quota::per_minute(limit)).with_middleware();
        Self { limiter, clock: DefaultClock::default(), since_forgetting: AtomicUsize::new(0) }
    }

    /// Counts one, and says what is left; an error when it is one too many, which does not count.
    pub(crate) fn count(&self, who: &K) -> Result<Left, Left> {
        if self.since_forgetting.fetch_add(1, Ordering::Relaxed) >= FORGET_AFTER.max(self.limiter.len() / 2) {
            self.since_forgetting.store(0, Ordering::Relaxed);
            self.limiter.retain_recent();
        }
        match self.limiter.check_key(who) {
            Ok(state) => {
                let (limit, remaining) = (state.quota().burst_size(), state.remaining_burst_capacity());
                let used = limit.get().saturating_sub(remaining);
                Ok(Left { limit, remaining, reset: state.quota().replenish_interval() * used })
            }
            Err(until) => {
                let reset = until.wait_time_from(self.clock.now());
                Err(Left { limit: until.quota().burst_size(), remaining: 0, reset })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_as_many_and_is_forgotten() {
        let rate = Rate::<u32>::per_minute(NonZeroU32::new(3).unwrap());
        let left: Vec<_> = (0..3).map(|_| rate.count(&1).unwrap().remaining).collect();
        assert_eq!(left, [2, 1, 0]);
        let refused = rate.count(&1).unwrap_err();
        assert_eq!((refused.limit.get(), refused.remaining), (3, 0));
        assert!(refused.reset > Duration::from_secs(10) && refused.reset <= Duration::from_secs(20), "{refused:?}");
        assert_eq!(rate.count(&2).unwrap().remaining, 2, "another one has its own");

        let often = Rate::<u32>::per_minute(NonZeroU32::new(60_000_000).unwrap());
        for who in 0..100_000 {
            often.count(&who).unwrap();
        }
        assert!(often.limiter.len() <= 2 * FORGET_AFTER, "{} are remembered", often.limiter.len());
    }
}
