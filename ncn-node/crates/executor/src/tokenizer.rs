use ncn_core::{
    ExecutorError,
    model::{Tokenize, TokenizerSpec, Tokens},
};
use tokenizers::{TruncationParams, tokenizer::Tokenizer as Inner};

/// The tokenizer that a package's `tokenizer.json` describes.
pub(crate) struct Tokenizer {
    inner: Inner,
    max_tokens: usize,
}

impl Tokenizer {
    pub(crate) fn new(file: &[u8], spec: &TokenizerSpec) -> Result<Self, ExecutorError> {
        let invalid = |error: tokenizers::Error| ExecutorError::InvalidModel(format!("{}: {error}", spec.file));
        let mut inner = Inner::from_bytes(file).map_err(invalid)?;
        // A row of a batch has the length of its text.
        inner.with_padding(None);
        let cut = TruncationParams { max_length: spec.max_tokens, ..TruncationParams::default() };
        inner.with_truncation(spec.truncate.then_some(cut)).map_err(invalid)?;
        Ok(Self { inner, max_tokens: spec.max_tokens })
    }
}

impl Tokenize for Tokenizer {
    fn tokens(&self, text: &str) -> Result<Tokens, String> {
        let encoding = self.inner.encode_fast(text, true).map_err(|error| format!("cannot be made into tokens: {error}"))?;
        if encoding.len() > self.max_tokens {
            return Err(format!("has {} tokens, the model takes at most {}: shorten it", encoding.len(), self.max_tokens));
        }
        let row = |numbers: &[u32]| numbers.iter().map(|number| i64::from(*number)).collect();
        Ok(Tokens { ids: row(encoding.get_ids()), mask: row(encoding.get_attention_mask()), types: row(encoding.get_type_ids()) })
    }
}
