//! How quickly the validators answer that this node asks.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ncn_core::{Address, AnswerTime, trust::MAX_VALIDATORS};

/// Beyond so many questions to a validator, the older ones count for less and less.
const MAX_ASKED: u64 = 1_024;

/// The sums of each validator.
#[derive(Default)]
pub(super) struct Answers(Mutex<BTreeMap<Address, Sums>>);

#[derive(Clone, Copy, Default)]
struct Sums {
    asked: u64,
    approved: u64,
    took: Duration,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Address, Sums>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Validators were asked, all of which are listed, and those have approved in time to be of use that took so long.
    pub(super) fn count(&self, asked: &BTreeMap<Address, Option<Duration>>) {
        let mut known = self.lock();
        if known.len() > MAX_VALIDATORS {
            // Who has left is still among them.
            known.retain(|validator, _| asked.contains_key(validator));
        }
        for (validator, approved) in asked {
            let sums = known.entry(*validator).or_default();
            if sums.asked >= MAX_ASKED {
                *sums = Sums { asked: sums.asked / 2, approved: sums.approved / 2, took: sums.took / 2 };
            }
            sums.asked += 1;
            if let Some(took) = approved {
                sums.approved += 1;
                sums.took += *took;
            }
        }
    }

    pub(super) fn times(&self) -> Vec<AnswerTime> {
        let mean = |sums: &Sums| sums.took.checked_div(u32::try_from(sums.approved).unwrap_or(u32::MAX)).unwrap_or_default();
        let time = |(validator, sums): (&Address, &Sums)| AnswerTime {
            validator: *validator,
            asked: sums.asked,
            approved: sums.approved,
            mean: mean(sums),
        };
        self.lock().iter().map(time).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_slow_is_seen_and_who_has_left_is_forgotten() {
        let (answers, fast, slow) = (Answers::default(), Address::repeat_byte(1), Address::repeat_byte(2));
        for _ in 0..5_000 {
            answers.count(&[(fast, Some(Duration::from_millis(20))), (slow, None)].into());
        }
        let [of_fast, of_slow] = *answers.times() else { panic!() };
        assert_eq!((of_fast.validator, of_fast.mean), (fast, Duration::from_millis(20)));
        assert_eq!((of_slow.validator, of_slow.approved, of_slow.mean), (slow, 0, Duration::ZERO));
        assert!(of_fast.asked == of_slow.asked && of_fast.asked <= MAX_ASKED + 1 && of_fast.approved + 2 >= of_fast.asked);

        for number in 0..2 * MAX_VALIDATORS {
            answers.count(&[(Address::left_padding_from(&number.to_be_bytes()), None)].into());
        }
        assert!(answers.times().len() <= MAX_VALIDATORS + 1);
    }
}
