use std::collections::HashSet;

use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer as Engine,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::{GgufError, header::Header};

/// How a token is stored: as the text that stands for its bytes, control and user-defined ones as they are.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
/// Tokens that end a text or a turn, in models whose header names only one of several, whatever kind it says that they are of.
const ENDS: [&str; 15] = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<EOT>",
    "_<EOT>",
    "<｜end▁of▁sentence｜>",
];
/// The same, where it is a control token: it is a word of HTML, too.
const STRUCK: &str = "</s>";

/// Where words begin and end, by the header's name for it: the expressions of the models' own tokenizers.
mod words {
    pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    pub(super) const DIGITS: &str = r"\p{N}";
    pub(super) const LLAMA3: &str =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    pub(super) const QWEN2: &str =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
}

/// Text to tokens and back.
pub(crate) struct Tokenizer {
    engine: Engine,
    /// The bytes that each token stands for; none for control tokens.
    bytes: Vec<Box<[u8]>>,
    ends: HashSet<u32>,
    begin: Option<u32>,
    longest: usize,
}

impl Tokenizer {
    pub(crate) fn load(header: &Header<'_>, vocabulary: usize) -> Result<Self, GgufError> {
        const MODEL: &str = "tokenizer.ggml.model";
        const TOKENS: &str = "tokenizer.ggml.tokens";
        let model = header.text(MODEL)?;
        if model != "gpt2" {
            return Err(GgufError::field(
                MODEL,
                format!("is `{model}`, this engine runs `gpt2`: serve the model with another engine"),
            ));
        }
        let tokens = header.texts(TOKENS)?;
        if tokens.len() != vocabulary {
            return Err(GgufError::field(TOKENS, format!("lists {} tokens for {vocabulary} embeddings", tokens.len())));
        }
        let kinds = header.integers("tokenizer.ggml.token_type")?;
        if kinds.len() != tokens.len() {
            return Err(GgufError::field("tokenizer.ggml.token_type", format!("lists {} of {vocabulary} tokens", kinds.len())));
        }
        let Words { splits, begins, whole_words } = Words::of(header)?;
        let begins = header.optional("tokenizer.ggml.add_bos_token", Header::flag)?.unwrap_or(begins);
        let id = |name: &str| match header.optional(name, Header::count)? {
            Some(id) if id >= vocabulary => Err(GgufError::field(name, format!("is {id}, there are {vocabulary} tokens"))),
            id => Ok(id.and_then(|id| u32::try_from(id).ok())),
        };
        let mut ends = HashSet::new();
        for name in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(id(name)?);
        }
        let mut engine = Engine::new(merges(header, &tokens, whole_words)?);
        let split = |words: &str| Split::new(SplitPattern::Regex(words.into()), SplitDelimiterBehavior::Isolated, false);
        let splits: Result<Vec<PreTokenizerWrapper>, _> = splits.iter().map(|words| Ok(split(words)?.into())).collect();
        let mut splits = splits.map_err(|error: tokenizers::Error| GgufError::field("tokenizer.ggml.pre", error.to_string()))?;
        splits.push(ByteLevel::new(false, false, false).into());
        engine.with_pre_tokenizer(Some(Sequence::new(splits)));

        let mut bytes = Vec::new();
        let mut whole = Vec::new();
        for ((token, kind), id) in tokens.iter().zip(kinds).zip(0..) {
            let is_end = ENDS.contains(token) || kind == CONTROL && *token == STRUCK;
            if is_end {
                ends.insert(id);
            }
            bytes.push(match kind {
                // What ends a text is never part of it.
                _ if ends.contains(&id) => Box::default(),
                CONTROL => Box::default(),
                USER_DEFINED => token.as_bytes().into(),
                _ => token.chars().filter_map(byte).collect(),
            });
            if (is_end || matches!(kind, CONTROL | USER_DEFINED)) && !token.is_empty() {
                whole.push(AddedToken::from(*token, true).normalized(false));
            }
        }
        engine.add_special_tokens(whole).map_err(|error| GgufError::field(TOKENS, error.to_string()))?;
        let longest = tokens.iter().map(|token| token.len()).max().unwrap_or(1).max(1);
        let begin = id("tokenizer.ggml.bos_token_id")?.filter(|_| begins);
        Ok(Self { engine, bytes, ends, begin, longest })
    }

    /// The text's tokens, with the token that begins every text when the model wants one.
    pub(crate) fn tokens(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.engine.encode_fast(text, false).map_err(|error| error.to_string())?;
        let ids = encoding.get_ids();
        // A chat template may have written it already.
        let begin = self.begin.filter(|begin| ids.first() != Some(begin));
        Ok(begin.into_iter().chain(ids.iter().copied()).collect())
    }

    /// The bytes that a token stands for, which need not be whole characters.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |bytes| bytes)
    }

    /// True for a token that ends the text.
    pub(crate) fn ends(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// How many bytes a token stands for at most.
    pub(crate) const fn longest(&self) -> usize {
        self.longest
    }
}

/// How models of a family split a text before their merges apply.
struct Words {
    /// Expressions for words, one after the other.
    splits: &'static [&'static str],
    /// Whether every text begins with a token of its own.
    begins: bool,
    /// Whether a word that is a token is taken whole, merges or not.
    whole_words: bool,
}

impl Words {
    fn of(header: &Header<'_>) -> Result<Self, GgufError> {
        const PRE: &str = "tokenizer.ggml.pre";
        Ok(match header.text(PRE)? {
            "gpt-2" => Self { splits: &[words::GPT2], begins: false, whole_words: false },
            "smollm" => Self { splits: &[words::DIGITS, words::GPT2], begins: false, whole_words: false },
            "llama-bpe" | "llama3" | "llama-v3" => Self { splits: &[words::LLAMA3], begins: true, whole_words: true },
            "qwen2" => Self { splits: &[words::QWEN2], begins: false, whole_words: false },
            other => {
                let known = "gpt-2, smollm, llama-bpe and qwen2";
                return Err(GgufError::field(
                    PRE,
                    format!("is `{other}`, this engine runs {known}: serve the model with another engine"),
                ));
            }
        })
    }
}

/// The rules by which bytes become tokens, once it is certain that they speak of tokens that exist.
fn merges(header: &Header<'_>, tokens: &[&str], whole_words: bool) -> Result<BPE, GgufError> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let vocabulary: Vocab = tokens.iter().map(ToString::to_string).zip(0..).collect();
    let mut merges = Vec::new();
    for merge in header.texts(MERGES)? {
        let parts =
            merge.split_once(' ').filter(|(a, b)| [*a, *b, &format!("{a}{b}")].iter().all(|part| vocabulary.contains_key(*part)));
        let (a, b) =
            parts.ok_or_else(|| GgufError::field(MERGES, format!("has `{merge}`, whose parts and whole are not all tokens")))?;
        merges.push((a.to_owned(), b.to_owned()));
    }
    BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(whole_words)
        .build()
        .map_err(|error| GgufError::field(MERGES, error.to_string()))
}

/// The byte that a character of a token stands for: its own where it can be seen, else the one that it was given in its place.
fn byte(character: char) -> Option<u8> {
    let number = u32::from(character);
    u8::try_from(match number {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => number,
        0x100..=0x120 => number - 0x100,
        0x121..=0x142 => number - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let mut bytes: Vec<u8> = ('\0'..'\u{200}').filter_map(byte).collect();
        bytes.sort_unstable();
        assert!(bytes.into_iter().eq(0..=u8::MAX));
        assert_eq!("a\u{120}\u{10a}\u{e9}".chars().filter_map(byte).collect::<Vec<_>>(), b"a \n\xe9");
    }
}
