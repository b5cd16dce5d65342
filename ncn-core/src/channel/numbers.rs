//! Which requests of a channel are over, in two words: what keeps one from being settled twice.

use serde::{Deserialize, Serialize};

/// How many numbers above the base are told apart.
const WINDOW: u64 = 128;

/// Which of a channel's vouchers' numbers are over, because their requests were settled or are given up: all below `base`, and
/// `base + i` where bit i of `over` is set. What is over stays over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    /// All below are over.
    pub base: u64,
    /// Bit i stands for `base + i`. Decimal digits in a text.
    #[serde(with = "text")]
    pub over: u128,
}

impl Numbers {
    /// Whether a number is over.
    pub const fn contains(&self, number: u64) -> bool {
        match number.checked_sub(self.base) {
            None => true,
            Some(place) => place < WINDOW && self.over >> place & 1 == 1,
        }
    }

    /// The lowest number above all that are over.
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(WINDOW - self.over.leading_zeros() as u64)
    }

    /// Whether all that `other` says is over still is.
    pub const fn covers(&self, other: &Self) -> bool {
        match self.base.checked_sub(other.base) {
            None => false,
            Some(shift) => shift >= WINDOW || (other.over >> shift) & !self.over == 0,
        }
    }

    /// These and more numbers, none of which is `open`, nor is any number between them that is. A number that is too far above the lowest
    /// open one to be told is left out.
    #[must_use]
    pub fn with(mut self, more: impl IntoIterator<Item = u64>, open: impl IntoIterator<Item = u64>) -> Self {
        let mut more: Vec<u64> = more.into_iter().filter(|number| !self.contains(*number)).collect();
        more.sort_unstable();
        let lowest = open.into_iter().filter(|number| !self.contains(*number)).min().unwrap_or(u64::MAX);
        for number in more {
            // Numbers that nobody used, or that are given up, are passed over once the window has to move on.
            let needed = number.saturating_sub(WINDOW - 1);
            if needed > lowest {
                break;
            }
            self.move_to(needed);
            if let Some(place) = number.checked_sub(self.base) {
                self.over |= 1 << place;
            }
            while self.over & 1 == 1
                && let Some(next) = self.base.checked_add(1)
            {
                self.move_to(next);
            }
        }
        self
    }

    fn move_to(&mut self, base: u64) {
        let Some(shift) = base.checked_sub(self.base) else { return };
        self.over = if shift < WINDOW { self.over >> shift } else { 0 };
        self.base = base;
    }
}

mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(over: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(over)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn the_base_moves_over_what_is_over() {
        let none = Numbers::default();
        assert_eq!(none.with([0, 1, 2], []), Numbers { base: 3, over: 0 });
        assert_eq!(none.with([1, 3], []), Numbers { base: 0, over: 0b1010 });
        assert_eq!(none.with([1, 3], []).with([0], []), Numbers { base: 2, over: 0b10 });
        let end = |numbers: Numbers| numbers.end();
        assert_eq!((end(none), end(none.with([1, 3], [])), end(none.with([0, 1], []))), (0, 4, 2));
        // A gap that nobody uses is passed over only when it has to be.
        assert_eq!(none.with([127], []), Numbers { base: 0, over: 1 << 127 });
        assert_eq!(none.with([128], []), Numbers { base: 1, over: 1 << 127 });
        assert_eq!(none.with([1_000_000], []), Numbers { base: 999_873, over: 1 << 127 });
        // An open one never is.
        assert_eq!(none.with([3, 128], [0]), Numbers { base: 0, over: 0b1000 });
        assert_eq!(none.with([3, 127, 128], [1]), Numbers { base: 1, over: 0b100 | 1 << 126 | 1 << 127 });
        assert_eq!(none.with([u64::MAX], []).with([u64::MAX - 1], []).base, u64::MAX - 127);
        // Nor does it go on for ever where there are no more.
        let last = none.with(u64::MAX - 127..=u64::MAX, []);
        assert!(last.base == u64::MAX && last.contains(u64::MAX) && last.end() == u64::MAX);
        assert_eq!(last.with(0..=u64::MAX % 1_000, []), last);
    }

    proptest! {
        #[test]
        fn what_is_over_is_told_and_what_is_open_is_not(
            batches in vec(vec(0u64..600, 0..40), 1..6),
            open in vec(0u64..600, 0..4),
        ) {
            let mut numbers = Numbers::default();
            let mut told = BTreeSet::new();
            for batch in batches {
                let batch: Vec<u64> = batch.into_iter().filter(|number| !open.contains(number)).collect();
                let next = numbers.with(batch.clone(), open.clone());
                prop_assert!(next.covers(&numbers));
                prop_assert!(open.iter().all(|number| !next.contains(*number)), "{:?}", next);
                for number in batch {
                    if next.contains(number) {
                        told.insert(number);
                    } else {
                        // It was too far above what is open.
                        prop_assert!(open.iter().any(|open| number >= open + 128));
                    }
                }
                prop_assert!(told.iter().all(|number| next.contains(*number)));
                numbers = next;
            }
        }

        #[test]
        fn covering_is_containing_all(a in (0u64..300, any::<u128>()), b in (0u64..300, any::<u128>())) {
            let (a, b) = (Numbers { base: a.0, over: a.1 }, Numbers { base: b.0, over: b.1 });
            let all = (0..600).all(|number| !b.contains(number) || a.contains(number));
            prop_assert_eq!(a.covers(&b), all);
        }
    }
}
