//! A decoder of the llama architecture: rotary positions, grouped queries, root-mean-square norms, gated feed-forward layers.

use candle_core::quantized::GgmlType as _;
use rayon::prelude::*;

use crate::{
    GgufError,
    cache::{self, Cache},
    header::Header,
    matrix::{Matrix, vector},
};

/// More than any model has.
const MAX_LAYERS: usize = 1024;
/// The longest text, whatever the model says.
const MAX_CONTEXT: usize = 1 << 20;
/// How many tokens of a prompt are worked on together. A request that is given up is noticed between two batches.
pub(crate) const BATCH: usize = 32;
/// How many tokens seen by how many queries are worth handing to other threads.
const WORTH_SHARING: usize = 512;

/// A model, loaded once and shared by everything that is generated with it.
pub(crate) struct Model {
    shape: Shape,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// Absent where the embedding serves for the output too.
    output: Option<Matrix>,
    /// By how much each pair of a head's elements is turned from one position to the next, in radians.
    turns: Vec<f32>,
}

/// The model's numbers.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layers: usize,
    /// Elements of a token's vector.
    width: usize,
    heads: usize,
    /// Heads of keys and values; each serves the same number of query heads.
    key_heads: usize,
    /// Elements of a head's vector.
    head_width: usize,
    /// Elements between the two halves of a feed-forward layer.
    inner: usize,
    vocabulary: usize,
    context: usize,
    epsilon: f32,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Queries, keys and values, one below the other.
    attention_in: Matrix,
    attention_out: Matrix,
    feed_norm: Vec<f32>,
    /// Gate and content, one below the other.
    feed_in: Matrix,
    feed_out: Matrix,
}

impl Shape {
    fn read(header: &Header<'_>) -> Result<Self, GgufError> {
        let positive = |name: &str| match header.count(name)? {
            0 => Err(GgufError::field(name, "is zero")),
            count => Ok(count),
        };
        let (width, heads) = (positive("llama.embedding_length")?, positive("llama.attention.head_count")?);
        let key_heads = header.optional("llama.attention.head_count_kv", Header::count)?.unwrap_or(heads);
        let head_width = header.optional("llama.attention.key_length", Header::count)?.unwrap_or(width / heads);
        let shape = Self {
            layers: positive("llama.block_count")?,
            width,
            heads,
            key_heads,
            head_width,
            inner: positive("llama.feed_forward_length")?,
            vocabulary: header.tensor("token_embd.weight").map_or(0, |tensor| tensor.rows),
            context: positive("llama.context_length")?.min(MAX_CONTEXT),
            epsilon: header.float("llama.attention.layer_norm_rms_epsilon")?,
        };
        if shape.layers > MAX_LAYERS {
            return Err(GgufError::field("llama.block_count", format!("is {}, at most {MAX_LAYERS} are read", shape.layers)));
        }
        if key_heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err(GgufError::field(
                "llama.attention.head_count_kv",
                format!("is {key_heads}, which does not divide {heads} heads"),
            ));
        }
        if head_width == 0 || !head_width.is_multiple_of(2) || heads.checked_mul(head_width).is_none() {
            return Err(GgufError::field(
                "llama.attention.key_length",
                format!("makes heads of {head_width}, they have to be even"),
            ));
        }
        if header.optional("llama.attention.value_length", Header::count)?.unwrap_or(head_width) != head_width {
            return Err(GgufError::field(
                "llama.attention.value_length",
                "is not as long as a key, which this engine does not run",
            ));
        }
        if header.optional("llama.attention.causal", Header::flag)? == Some(false) {
            return Err(GgufError::field(
                "llama.attention.causal",
                "is false: this engine runs models whose tokens see those before them",
            ));
        }
        if header.optional("llama.expert_count", Header::count)?.unwrap_or(0) != 0 {
            return Err(GgufError::field("llama.expert_count", "this engine does not run mixtures of experts"));
        }
        Ok(shape)
    }

    /// Whether a tensor of this name is part of the model.
    fn knows(&self, name: &str) -> bool {
        if ["token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"].contains(&name) {
            return true;
        }
        let part = name.strip_prefix("blk.").and_then(|name| name.strip_suffix(".weight")?.split_once('.'));
        let is_layer = |text: &str| text.parse().is_ok_and(|index: usize| index < self.layers && index.to_string() == text);
        part.is_some_and(|(index, part)| is_layer(index) && Layer::PARTS.contains(&part))
    }

    /// The turns of each pair of a head's elements that is turned at all.
    fn turns(&self, header: &Header<'_>) -> Result<Vec<f32>, GgufError> {
        let turned = header.optional("llama.rope.dimension_count", Header::count)?.unwrap_or(self.head_width);
        if turned > self.head_width || !turned.is_multiple_of(2) {
            return Err(GgufError::field("llama.rope.dimension_count", format!("is {turned}, heads have {}", self.head_width)));
        }
        if header
            .optional("llama.rope.scaling.attn_factor", Header::float)?
            .is_some_and(|factor| (factor - 1.0).abs() > f32::EPSILON)
        {
            return Err(GgufError::field("llama.rope.scaling.attn_factor", "is not 1, which this engine does not run"));
        }
        let base = header.optional("llama.rope.freq_base", Header::float)?.unwrap_or(10_000.0);
        // The older name of the same, as llama.cpp reads them; zero is none.
        let factor = match header.optional("llama.rope.scaling.factor", Header::float)? {
            None => header.optional("llama.rope.scale_linear", Header::float)?,
            factor => factor,
        };
        let slowed = match header.optional("llama.rope.scaling.type", Header::text)? {
            Some("none") => 1.0,
            None | Some("linear") => factor.filter(|factor| *factor != 0.0).unwrap_or(1.0),
            Some(other) => {
                return Err(GgufError::field("llama.rope.scaling.type", format!("is `{other}`, which this engine does not run")));
            }
        };
        let factors = match header.tensor("rope_freqs.weight") {
            Some(_) => vector(header, "rope_freqs.weight", turned / 2)?,
            None => vec![1.0; turned / 2],
        };
        #[allow(clippy::cast_precision_loss, reason = "a head's width is small")]
        let turn = |(pair, factor): (usize, f32)| base.powf(-(2.0 * pair as f32) / turned as f32) / factor / slowed;
        let turns: Vec<_> = factors.into_iter().enumerate().map(turn).collect();
        if turns.iter().all(|turn| turn.is_finite()) {
            Ok(turns)
        } else {
            Err(GgufError::field("llama.rope.freq_base", "and the scaling give turns that are no numbers"))
        }
    }
}

impl Layer {
    /// The names of its tensors.
    const PARTS: [&str; 9] =
        ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];

    fn load(header: &Header<'_>, shape: &Shape, index: usize) -> Result<Self, GgufError> {
        let Shape { width, heads, key_heads, head_width, inner, .. } = *shape;
        let (queries, keys) = (heads * head_width, key_heads * head_width);
        let [attn_norm, attn_q, attn_k, attn_v, attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down] =
            &Self::PARTS.map(|part| format!("blk.{index}.{part}.weight"));
        Ok(Self {
            attention_norm: vector(header, attn_norm, width)?,
            attention_in: Matrix::load(header, width, &[(attn_q, queries), (attn_k, keys), (attn_v, keys)])?,
            attention_out: Matrix::load(header, queries, &[(attn_output, width)])?,
            feed_norm: vector(header, ffn_norm, width)?,
            feed_in: Matrix::load(header, width, &[(ffn_gate, inner), (ffn_up, inner)])?,
            feed_out: Matrix::load(header, inner, &[(ffn_down, width)])?,
        })
    }
}

impl Model {
    /// Reads the tensors, on the threads of the pool that this is called in.
    pub(crate) fn load(header: &Header<'_>) -> Result<Self, GgufError> {
        let architecture = header.text("general.architecture")?;
        if architecture != "llama" {
            return Err(GgufError::Architecture(architecture.into()));
        }
        let shape = Shape::read(header)?;
        let Shape { width, vocabulary, .. } = shape;
        // What is left out would change what the model says, silently.
        if let Some(name) = header.tensor_names().find(|name| !shape.knows(name)) {
            return Err(GgufError::tensor(name, "is no part of the models that this engine runs"));
        }
        let layers: Result<Vec<_>, _> = (0..shape.layers).into_par_iter().map(|index| Layer::load(header, &shape, index)).collect();
        let output =
            header.tensor("output.weight").map(|_| Matrix::load(header, width, &[("output.weight", vocabulary)])).transpose()?;
        Ok(Self {
            embedding: Matrix::load(header, width, &[("token_embd.weight", vocabulary)])?,
            layers: layers?,
            norm: vector(header, "output_norm.weight", width)?,
            output,
            turns: shape.turns(header)?,
            shape,
        })
    }

    /// How many tokens a text may have, its prompt included.
    pub(crate) fn context(&self) -> usize {
        self.shape.context
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    /// How much memory the weights take.
    pub(crate) fn bytes(&self) -> usize {
        let layers =
            self.layers.iter().flat_map(|layer| [&layer.attention_in, &layer.attention_out, &layer.feed_in, &layer.feed_out]);
        layers.chain([&self.embedding]).chain(&self.output).map(Matrix::bytes).sum()
    }

    /// How much memory a text of so many tokens takes beside them.
    pub(crate) fn sequence_bytes(&self, tokens: usize) -> usize {
        let Shape { layers, key_heads, head_width, .. } = self.shape;
        cache::bytes(key_heads, head_width, tokens).saturating_mul(layers)
    }

    /// An empty text.
    pub(crate) fn sequence(&self) -> Sequence {
        let Shape { layers, key_heads, head_width, .. } = self.shape;
        Sequence { length: 0, caches: (0..layers).map(|_| Cache::new(key_heads, head_width)).collect() }
    }
}

/// A text so far.
pub(crate) struct Sequence {
    length: usize,
    caches: Vec<Cache>,
}

impl Sequence {
    /// Adds tokens, at most [`BATCH`] of them and all within the vocabulary, and gives each possible next token's score.
    pub(crate) fn feed(&mut self, model: &Model, tokens: &[u32]) -> Vec<f32> {
        let Shape { width, heads, key_heads, head_width, inner, epsilon, .. } = model.shape;
        let (queries, keys) = (heads * head_width, key_heads * head_width);
        let start = self.length;
        let mut texts = vec![0.0; tokens.len() * width];
        for (token, text) in tokens.iter().zip(texts.chunks_exact_mut(width)) {
            model.embedding.row(*token as usize, text);
        }
        let turns: Vec<Vec<(f32, f32)>> = (start..start + tokens.len()).map(|position| model.turns_at(position)).collect();
        let (mut normed, mut wide, mut seen) = (Vec::new(), Vec::new(), vec![0.0; tokens.len() * queries]);
        for (layer, cache) in model.layers.iter().zip(&mut self.caches) {
            norm(&texts, &layer.attention_norm, epsilon, &mut normed);
            layer.attention_in.multiply(&normed, &mut wide);
            for (token, turns) in wide.chunks_exact_mut(queries + 2 * keys).zip(&turns) {
                let (turned, values) = token.split_at_mut(queries + keys);
                for head in turned.chunks_exact_mut(head_width) {
                    turn(head, turns);
                }
                cache.push(turned.split_at(queries).1, values);
            }
            let attend = |scores: &mut Vec<f32>, (index, seen): (usize, &mut [f32])| {
                let (token, head) = (index / heads, index % heads);
                let query = wide.chunks_exact(head_width).nth(token * (heads + 2 * key_heads) + head).unwrap_or_default();
                cache.attend(head / (heads / key_heads), query, start + token + 1, scores, seen);
            };
            if (start + tokens.len()) * tokens.len() < WORTH_SHARING {
                let mut scores = Vec::new();
                seen.chunks_exact_mut(head_width).enumerate().for_each(|item| attend(&mut scores, item));
            } else {
                seen.par_chunks_exact_mut(head_width).enumerate().for_each_init(Vec::new, attend);
            }
            layer.attention_out.multiply(&seen, &mut normed);
            add(&mut texts, &normed);

            norm(&texts, &layer.feed_norm, epsilon, &mut normed);
            layer.feed_in.multiply(&normed, &mut wide);
            let mut gated = Vec::with_capacity(tokens.len() * inner);
            for token in wide.chunks_exact(2 * inner) {
                let (gate, content) = token.split_at(inner);
                gated.extend(gate.iter().zip(content).map(|(gate, content)| gate / (1.0 + (-gate).exp()) * content));
            }
            layer.feed_out.multiply(&gated, &mut normed);
            add(&mut texts, &normed);
        }
        self.length += tokens.len();
        let last = texts.chunks_exact(width).next_back().unwrap_or_default();
        norm(last, &model.norm, epsilon, &mut normed);
        let mut scores = Vec::new();
        model.output.as_ref().unwrap_or(&model.embedding).multiply(&normed, &mut scores);
        scores
    }
}

impl Model {
    /// Cosine and sine of each pair's angle.
    #[allow(clippy::cast_precision_loss, reason = "positions are small")]
    fn turns_at(&self, position: usize) -> Vec<(f32, f32)> {
        self.turns
            .iter()
            .map(|turn| {
                let (sin, cos) = (position as f32 * turn).sin_cos();
                (cos, sin)
            })
            .collect()
    }
}

/// Turns the pairs of neighbours in a head's vector.
fn turn(head: &mut [f32], turns: &[(f32, f32)]) {
    for ([x, y], (cos, sin)) in head.as_chunks_mut().0.iter_mut().zip(turns) {
        (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
    }
}

fn norm(texts: &[f32], weights: &[f32], epsilon: f32, into: &mut Vec<f32>) {
    into.clear();
    for text in texts.chunks_exact(weights.len()) {
        #[allow(clippy::cast_precision_loss, reason = "a vector is short")]
        let mean = f32::vec_dot(text.len(), text, text) / text.len() as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        into.extend(text.iter().zip(weights).map(|(x, weight)| x * scale * weight));
    }
}

fn add(texts: &mut [f32], more: &[f32]) {
    for (x, y) in texts.iter_mut().zip(more) {
        *x += y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::Made;

    #[test]
    fn tokens_mean_the_same_alone_and_in_batches_bit_for_bit() {
        let file = Made::model().write().0;
        let model = Model::load(&Header::parse(&file).unwrap()).unwrap();
        let tokens: Vec<u32> = (0..70).map(|index| index * 37 % 256).collect();
        let scores = |batch: usize| {
            let mut sequence = model.sequence();
            tokens.chunks(batch).fold(Vec::new(), |_, batch| sequence.feed(&model, batch))
        };
        let alone = scores(1);
        assert!(alone.iter().all(|score| score.is_finite()) && alone.iter().any(|score| *score != 0.0));
        for batch in [2, 3, 4, 7, BATCH] {
            assert!(scores(batch) == alone, "batches of {batch}");
        }
    }
}
