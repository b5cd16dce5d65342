//! What a layer remembers of the tokens so far.

use candle_core::quantized::GgmlType as _;

/// How many tokens a part of the cache holds. It grows by parts, so that a short text takes little memory and nothing is moved.
const PART: usize = 256;

/// Keys and values of one layer.
pub(crate) struct Cache {
    heads: usize,
    width: usize,
    used: usize,
    parts: Vec<Part>,
}

struct Part {
    /// By head, then token, then element.
    keys: Vec<f32>,
    /// By head, then element, then token: a weighted sum over tokens is then a dot product, as a score is.
    values: Vec<f32>,
}

/// How much memory a layer takes to remember so many tokens.
pub(crate) const fn bytes(heads: usize, width: usize, tokens: usize) -> usize {
    let part = 2 * PART * size_of::<f32>();
    heads.saturating_mul(width).saturating_mul(part).saturating_mul(tokens.div_ceil(PART))
}

impl Cache {
    pub(crate) const fn new(heads: usize, width: usize) -> Self {
        Self { heads, width, used: 0, parts: Vec::new() }
    }

    /// Adds a token's keys and values, each by head, then element.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32]) {
        let at = self.used % PART;
        if at == 0 {
            let zeros = vec![0.0; self.heads * self.width * PART];
            self.parts.push(Part { keys: zeros.clone(), values: zeros });
        }
        if let Some(part) = self.parts.last_mut() {
            let tokens = part.keys.chunks_exact_mut(self.width).skip(at).step_by(PART);
            for (stored, key) in tokens.zip(keys.chunks_exact(self.width)) {
                stored.copy_from_slice(key);
            }
            for (stored, value) in part.values.iter_mut().skip(at).step_by(PART).zip(values) {
                *stored = *value;
            }
        }
        self.used += 1;
    }

    /// What a query sees in the first `tokens` tokens: their values, weighted by how well their keys fit.
    pub(crate) fn attend(&self, head: usize, query: &[f32], tokens: usize, scores: &mut Vec<f32>, into: &mut [f32]) {
        let size = self.width * PART;
        let of_head = head * size..(head + 1) * size;
        scores.clear();
        #[allow(clippy::cast_precision_loss, reason = "a head's width is small")]
        let scale = 1.0 / (self.width as f32).sqrt();
        for part in &self.parts {
            let keys = part.keys.get(of_head.clone()).unwrap_or_default().chunks_exact(self.width);
            scores.extend(keys.take(tokens - scores.len()).map(|key| f32::vec_dot(self.width, key, query) * scale));
        }
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for score in scores.iter_mut() {
            *score = (*score - most).exp();
            sum += *score;
        }
        into.fill(0.0);
        for (part, weights) in self.parts.iter().zip(scores.chunks(PART)) {
            let values = part.values.get(of_head.clone()).unwrap_or_default().chunks_exact(PART);
            for (element, values) in into.iter_mut().zip(values) {
                *element += f32::vec_dot(weights.len(), values, weights);
            }
        }
        for element in into {
            *element /= sum;
        }
    }
}
