use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

use crate::Settings;

/// Chooses tokens by their scores.
///
/// Chance is the stream of ChaCha with 8 rounds whose key is the seed, little-endian, filled up with zeros: each token takes the upper
/// 24 bits of the next 32 as a fraction of one.
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    chance: ChaCha8Rng,
}

impl Sampler {
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut key = [0; 32];
        for (byte, seed) in key.iter_mut().zip(settings.seed.to_le_bytes()) {
            *byte = seed;
        }
        Self { temperature: settings.temperature, top_p: settings.top_p, chance: ChaCha8Rng::from_seed(key) }
    }

    /// The next token; `None` when the scores are no numbers.
    pub(crate) fn choose(&mut self, scores: &[f32]) -> Option<u32> {
        if !scores.iter().all(|score| score.is_finite()) {
            return None;
        }
        let tokens = || (0..).zip(scores.iter().copied());
        // Of equals the first, which is the one with the lower number.
        let (best, most) = tokens().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        if self.temperature == 0.0 {
            return Some(best);
        }
        let mut weights: Vec<_> = tokens().map(|(token, score)| (token, ((score - most) / self.temperature).exp())).collect();
        let mut total: f32 = weights.iter().map(|(_, weight)| weight).sum();
        if self.top_p < 1.0 {
            // All tokens below this weight together have less than what is left out: sorting the others gives the same.
            #[allow(clippy::cast_precision_loss, reason = "a threshold need not be exact")]
            let least = (1.0 - self.top_p) * total / weights.len() as f32;
            weights.retain(|(_, weight)| *weight >= least);
            weights.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
            let (mut kept, mut sum) = (0, 0.0);
            for (_, weight) in &weights {
                kept += 1;
                sum += weight;
                if sum >= self.top_p * total {
                    break;
                }
            }
            weights.truncate(kept);
            total = sum;
        }
        #[allow(clippy::cast_precision_loss, reason = "24 bits fit")]
        let mut left = (self.chance.next_u32() >> 8) as f32 / 16_777_216.0 * total;
        for (token, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return Some(*token);
            }
        }
        // Rounding left a trace.
        Some(best)
    }
}
