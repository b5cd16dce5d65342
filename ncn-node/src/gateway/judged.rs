//! How many quotes the registry's validators judge at once, and how many wait for it. Validators that are asked more than they can judge get slower, and are
//! asked again by who waits for them: all of it would be late, what is paid too.
//!
//! The number follows the time that a quote takes: one more while that is short, a tenth less when it is long (additive increase, multiplicative decrease: D.
//! Chiu and R. Jain, 1989). What is paid is judged at once, and counts by the time that it takes from the others.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many are judged at once: at first, at least, and at most.
const FIRST: usize = 32;
const LEAST: usize = 32;
const MOST: usize = 512;
/// A quote that takes longer says that there are too many. It is a part of the time after which another registry node is asked besides, and longer than
/// validators far away need.
const LONG: Duration = Duration::from_secs(1);

/// The places, and the quotes that wait for one.
pub(super) struct Judged {
    places: Semaphore,
    inner: Mutex<Inner>,
}

struct Inner {
    limit: usize,
    /// How many places are to go as soon as they are free.
    excess: usize,
    waiting: usize,
    /// When there were last made fewer.
    reduced: Option<Instant>,
}

/// A quote's place, from when it has one.
pub(super) struct Turn<'a> {
    judged: &'a Judged,
    place: Option<SemaphorePermit<'a>>,
    since: Instant,
}

/// A quote that waits, until this is dropped.
struct Waiting<'a>(&'a Judged);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Default for Judged {
    fn default() -> Self {
        let inner = Inner { limit: FIRST, excess: 0, waiting: 0, reduced: None };
        Self { places: Semaphore::new(FIRST), inner: Mutex::new(inner) }
    }
}

impl Judged {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so many wait.
    pub(super) fn has_waiting(&self, most: usize) -> bool {
        self.lock().waiting >= most
    }

    /// Waits for a place, in the order in which they come. Cancel safe.
    pub(super) async fn turn(&self) -> Turn<'_> {
        self.lock().waiting += 1;
        let _waiting = Waiting(self);
        // Nobody closes it; without a place, the quote is judged all the same.
        let place = self.places.acquire().await.ok();
        Turn { judged: self, place, since: Instant::now() }
    }

    /// A quote has been judged, in so long.
    fn learn(&self, took: Duration, place: SemaphorePermit<'_>) {
        let mut inner = self.lock();
        if took > LONG {
            // Those that were judged beside it say the same.
            if inner.reduced.is_none_or(|at| at.elapsed() > LONG) {
                inner.reduced = Some(Instant::now());
                let fewer = (inner.limit - inner.limit.div_ceil(10)).max(LEAST);
                inner.excess += inner.limit - fewer;
                inner.limit = fewer;
            }
        } else if inner.waiting > 0 && inner.limit < MOST {
            inner.limit += 1;
            if inner.excess > 0 {
                inner.excess -= 1;
            } else {
                self.places.add_permits(1);
            }
        }
        if inner.excess > 0 {
            inner.excess -= 1;
            place.forget();
        }
    }
}

impl Turn<'_> {
    /// It has been judged.
    pub(super) fn end(mut self) {
        if let Some(place) = self.place.take() {
            self.judged.learn(self.since.elapsed(), place);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn judge(judged: &Judged, took: Duration) {
        let mut turn = judged.turn().now_or_never().expect("there is a place");
        judged.learn(took, turn.place.take().unwrap());
    }

    /// All the places that there are.
    fn places(judged: &Judged) -> usize {
        let mut turns = Vec::new();
        while let Some(turn) = judged.turn().now_or_never() {
            turns.push(turn);
        }
        turns.len()
    }

    #[test]
    fn places_become_fewer_when_quotes_take_long_and_more_when_they_do_not() {
        let judged = Judged::default();
        assert_eq!((places(&judged), judged.has_waiting(1)), (FIRST, false));
        for _ in 0..1_000 {
            judged.lock().reduced = None;
            judge(&judged, 2 * LONG);
        }
        assert_eq!((places(&judged), judged.lock().limit), (LEAST, LEAST));
        // Nobody waits: as many as there are suffice.
        (0..100).for_each(|_| judge(&judged, Duration::ZERO));
        assert_eq!(places(&judged), LEAST);
        judged.lock().waiting = 1;
        (0..1_000).for_each(|_| judge(&judged, Duration::ZERO));
        judged.lock().waiting = 0;
        assert_eq!((places(&judged), judged.lock().limit), (MOST, MOST));
        // Many at once that took long say so once.
        (0..50).for_each(|_| judge(&judged, 2 * LONG));
        assert!(judged.lock().limit >= MOST * 9 / 10 - 1);
    }

    #[tokio::test]
    async fn who_waits_is_counted_until_its_turn_or_its_end() {
        let judged = Judged::default();
        let mut turns = Vec::new();
        while let Some(turn) = judged.turn().now_or_never() {
            turns.push(turn);
        }
        let mut waiting = Box::pin(judged.turn());
        assert!(futures::poll!(&mut waiting).is_pending() && judged.has_waiting(1) && !judged.has_waiting(2));
        turns.pop();
        drop(waiting.await);
        assert!(!judged.has_waiting(1));
        turns.push(judged.turn().await);
        let mut given_up = Box::pin(judged.turn());
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        assert!(!judged.has_waiting(1));
    }
}
