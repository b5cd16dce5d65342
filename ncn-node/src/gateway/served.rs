//! What requests took lately, by model: what the next ones may take.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use ncn_core::{B256, Units};

/// Beyond so many requests of a model, the older ones count for less and less.
const MAX_REQUESTS: u64 = 1_024;

/// The sums of each model's requests. A gateway counts its own models only, so there are few.
#[derive(Debug, Default)]
pub(super) struct Served(Mutex<HashMap<B256, Sums>>);

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    requests: u64,
    input: u64,
    output: u64,
}

impl Served {
    /// Counts a request of this model.
    pub(super) fn count(&self, model: B256, units: Units) {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = models.entry(model).or_default();
        if sums.requests >= MAX_REQUESTS {
            *sums = Sums { requests: sums.requests / 2, input: sums.input / 2, output: sums.output / 2 };
        }
        sums.requests += 1;
        sums.input = sums.input.saturating_add(units.input);
        sums.output = sums.output.saturating_add(units.output);
    }

    /// What a request of this model took on average; none before the first.
    pub(super) fn average(&self, model: B256) -> Option<Units> {
        let models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Sums { requests, input, output } = *models.get(&model)?;
        Some(Units { input: input.checked_div(requests)?, output: output.checked_div(requests)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_requests_count_for_more() {
        let (served, model) = (Served::default(), B256::ZERO);
        assert_eq!(served.average(model), None);
        (0..5_000).for_each(|_| served.count(model, Units { input: 10, output: 100 }));
        assert_eq!(served.average(model), Some(Units { input: 10, output: 100 }));
        (0..5_000).for_each(|_| served.count(model, Units { input: 20, output: 0 }));
        let average = served.average(model).unwrap();
        assert!(average.input >= 19 && average.output < 4, "{average:?}");
        assert_eq!(served.average(B256::repeat_byte(1)), None);
    }
}
