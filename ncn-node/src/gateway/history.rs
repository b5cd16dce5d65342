//! What a gateway has done: by the second lately, and in all since it was started. For people who watch; nothing is decided by it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ncn_core::{Amount, Outcome, PayeeRole, Receipt, RequestId, Step, StepTiming};
use serde::Serialize;

/// Of how many seconds before the present one it is remembered what happened in them.
pub(super) const SECONDS: usize = 120;
/// How many requests are shown.
const SHOWN: usize = 48;
/// How many of those that come in one second are shown: each is there for some seconds, however many come.
const SHOWN_OF_A_SECOND: usize = 8;
/// Times are counted by quarters of a doubling, from a millisecond to a minute.
const BUCKETS: usize = 64;
const BUCKETS_A_DOUBLING: f64 = 4.0;

/// What happened.
pub(super) struct History {
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    shown: VecDeque<RequestId>,
    /// Newest last; seconds in which nothing happened are missing.
    seconds: VecDeque<Counted>,
    sums: Sums,
    steps: [Mean; Step::ALL.len()],
}

/// Tokens since the start.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) earned: Amount,
    pub(super) paid_out: Amount,
    pub(super) refunded: Amount,
}

struct Counted {
    at: u64,
    ordered: u32,
    completed: u32,
    refunded: u32,
    unpaid: u32,
    /// The times of those that were completed.
    times: [u32; BUCKETS],
}

/// One second of the gateway's life.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Second {
    /// Since it was started.
    pub at: u64,
    /// Orders that were taken.
    pub ordered: u32,
    /// Requests that were delivered.
    pub completed: u32,
    /// That were paid back.
    pub refunded: u32,
    /// That ended before they were paid.
    pub unpaid: u32,
    /// How long half of the delivered ones took at most, to a tenth of it.
    pub p50_micros: Option<u64>,
    /// How long 95 of a hundred took at most.
    pub p95_micros: Option<u64>,
}

/// A mean in which newer times count for more.
#[derive(Clone, Copy, Default)]
struct Mean {
    count: u32,
    sum: Duration,
}

impl Mean {
    /// Beyond so many times, the older ones count for less and less.
    const MOST: u32 = 256;

    fn add(&mut self, time: Duration) {
        if self.count >= Self::MOST {
            *self = Self { count: self.count / 2, sum: self.sum / 2 };
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(time);
    }
}

/// What is known of the past.
pub(super) struct Past {
    /// Seconds since the start.
    pub(super) now: u64,
    pub(super) shown: Vec<RequestId>,
    pub(super) seconds: Vec<Second>,
    pub(super) sums: Sums,
    /// How long each of the steps took on average.
    pub(super) steps: [Option<Duration>; Step::ALL.len()],
}

impl Default for History {
    fn default() -> Self {
        Self { began: Instant::now(), inner: Mutex::default() }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within the buckets")]
fn bucket(took: Duration) -> usize {
    let milliseconds = (took.as_secs_f64() * 1e3).max(1.0);
    ((milliseconds.log2() * BUCKETS_A_DOUBLING) as usize).min(BUCKETS - 1)
}

/// The time below which so many of a hundred are, in microseconds.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "there are few buckets")]
fn percentile(times: &[u32; BUCKETS], of_hundred: u64) -> Option<u64> {
    let all: u64 = times.iter().copied().map(u64::from).sum();
    let wanted = (all * of_hundred).div_ceil(100);
    let mut seen = 0;
    let found = times.iter().position(|count| {
        seen += u64::from(*count);
        seen >= wanted && seen > 0
    })?;
    // The middle of the bucket.
    Some((((found as f64 + 0.5) / BUCKETS_A_DOUBLING).exp2() * 1e3) as u64)
}

impl History {
    fn now(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An order was taken.
    pub(super) fn ordered(&self, request_id: RequestId) {
        let now = self.now();
        let mut inner = self.lock();
        let mut ordered = 0;
        inner.count(now, |second| {
            second.ordered += 1;
            ordered = second.ordered as usize;
        });
        if ordered <= SHOWN_OF_A_SECOND {
            inner.shown.push_back(request_id);
            if inner.shown.len() > SHOWN {
                inner.shown.pop_front();
            }
        }
    }

    /// A request of this total has ended.
    pub(super) fn ended(&self, outcome: Outcome, took: Duration, total: Amount) {
        let now = self.now();
        let mut inner = self.lock();
        if outcome == Outcome::Refunded {
            inner.sums.refunded = add(inner.sums.refunded, total);
        }
        inner.count(now, |second| match outcome {
            Outcome::Completed => {
                second.completed += 1;
                if let Some(count) = second.times.get_mut(bucket(took)) {
                    *count += 1;
                }
            }
            Outcome::Refunded => second.refunded += 1,
            _ => second.unpaid += 1,
        });
    }

    /// A request was delivered, by these steps.
    pub(super) fn delivered(&self, receipt: &Receipt, steps: &[StepTiming]) {
        let mut inner = self.lock();
        inner.sums.paid_out = add(inner.sums.paid_out, receipt.payments.total);
        inner.sums.earned = add(inner.sums.earned, receipt.payments.paid_to(PayeeRole::Gateway));
        for timing in steps {
            if let Some(mean) = inner.steps.get_mut(timing.step as usize - 1) {
                mean.add(timing.took);
            }
        }
    }

    /// All of it.
    pub(super) fn past(&self) -> Past {
        let now = self.now();
        let inner = self.lock();
        let since = now.saturating_sub(SECONDS as u64);
        Past {
            now,
            shown: inner.shown.iter().copied().collect(),
            seconds: inner.seconds.iter().filter(|second| second.at >= since).map(Counted::told).collect(),
            sums: inner.sums,
            steps: inner.steps.map(|mean| mean.sum.checked_div(mean.count)),
        }
    }
}

fn add(sum: Amount, amount: Amount) -> Amount {
    sum.checked_add(amount).unwrap_or(sum)
}

impl Inner {
    /// Counts something in this second.
    fn count(&mut self, at: u64, count: impl FnOnce(&mut Counted)) {
        if self.seconds.back().is_none_or(|newest| newest.at < at) {
            if self.seconds.len() > SECONDS {
                self.seconds.pop_front();
            }
            self.seconds.push_back(Counted { at, ordered: 0, completed: 0, refunded: 0, unpaid: 0, times: [0; BUCKETS] });
        }
        if let Some(newest) = self.seconds.back_mut() {
            count(newest);
        }
    }
}

impl Counted {
    fn told(&self) -> Second {
        let Self { at, ordered, completed, refunded, unpaid, ref times } = *self;
        let (p50_micros, p95_micros) = (percentile(times, 50), percentile(times, 95));
        Second { at, ordered, completed, refunded, unpaid, p50_micros, p95_micros }
    }
}

#[cfg(test)]
mod tests {
    use ncn_core::B256;

    use super::*;

    #[test]
    fn a_sample_of_many_requests_is_shown_and_no_more_is_kept() {
        let history = History::default();
        for second in 0..500 {
            let mut inner = history.lock();
            for _ in 0..1_000 {
                inner.count(second, |second| second.ordered += 1);
            }
        }
        (0..1_000).for_each(|_| history.ordered(B256::random()));
        let inner = history.lock();
        assert!(inner.shown.len() <= SHOWN && inner.seconds.len() <= SECONDS + 1, "{}", inner.seconds.len());
    }

    #[test]
    fn percentiles_are_near_the_times() {
        let history = History::default();
        for took in 1..=1_000 {
            history.ended(Outcome::Completed, Duration::from_millis(took), Amount::ZERO);
        }
        history.ended(Outcome::Refunded, Duration::from_secs(500), Amount::TOKEN);
        let past = history.past();
        // All in one second, or in two where one has just ended.
        let second = past.seconds.last().unwrap();
        assert_eq!(past.seconds.iter().map(|second| second.completed).sum::<u32>(), 1_000);
        assert_eq!(past.sums.refunded, Amount::TOKEN);
        if past.seconds.len() == 1 {
            assert!(second.p50_micros.is_some_and(|p50| (450_000..560_000).contains(&p50)), "{second:?}");
            assert!(second.p95_micros.is_some_and(|p95| (850_000..1_060_000).contains(&p95)), "{second:?}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(bucket(Duration::ZERO), 0);
    }
}
