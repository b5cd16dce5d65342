use std::{num::NonZero, ops::ControlFlow};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    GenerateError, GgufError, Prompt, Settings,
    header::Header,
    model::{BATCH, Model},
    prompt::Template,
    sampler::Sampler,
    text::Text,
    tokenizer::Tokenizer,
};

/// A GGUF file, opened. Serves any number of callers at once, who share its threads.
pub struct Generator {
    model: Model,
    tokenizer: Tokenizer,
    /// The inner error is why it cannot be used.
    template: Option<Result<Template, String>>,
    threads: ThreadPool,
}

/// What came of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generated {
    /// How many tokens were generated, the one that ended the text included.
    pub tokens: usize,
    /// Why there are no more.
    pub finish: Finish,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop sequence did.
    Stop,
    /// It has as many tokens as it may have.
    Length,
    /// The caller wanted no more.
    Break,
}

impl Generator {
    /// Opens a file, all of which is in `file`. Its tensors are copied: the file may be let go of afterwards.
    pub fn open(file: &[u8], threads: NonZero<usize>) -> Result<Self, GgufError> {
        let header = Header::parse(file)?;
        let pool = ThreadPoolBuilder::new().num_threads(threads.get()).thread_name(|index| format!("gguf-{index}")).build();
        let threads = pool.map_err(|error| GgufError::Threads(error.to_string()))?;
        let model = threads.install(|| Model::load(&header))?;
        let tokenizer = Tokenizer::load(&header, model.vocabulary())?;
        let template = Template::load(&header)?;
        Ok(Self { model, tokenizer, template, threads })
    }

    /// How many tokens prompt and text may have together.
    pub fn context(&self) -> usize {
        self.model.context()
    }

    /// How many bytes of memory the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.model.bytes()
    }

    /// How many bytes of memory it takes to generate a text that has so many tokens with its prompt.
    pub fn text_bytes(&self, tokens: usize) -> usize {
        self.model.sequence_bytes(tokens)
    }

    /// Why it takes no conversations, if it does not.
    pub fn template_problem(&self) -> Option<String> {
        match &self.template {
            None => Some("the file has no chat template".into()),
            Some(Err(problem)) => Some(format!("the file's chat template {problem}")),
            Some(Ok(_)) => None,
        }
    }

    /// The tokens of a prompt: at least one, and fewer than the context.
    pub fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, GenerateError> {
        let context = self.context();
        // What is longer cannot fit, whatever its tokens are, and need not be looked at.
        let most = context.saturating_mul(self.tokenizer.longest());
        let (name, text) = match prompt {
            Prompt::Text(text) => ("prompt", text.clone()),
            Prompt::Messages(messages) => {
                let Some(Ok(template)) = &self.template else {
                    let problem = self.template_problem().unwrap_or_default();
                    return Err(GenerateError::refused("messages", format!("cannot be put into words: {problem}: send `prompt`")));
                };
                ("messages", template.render(messages, most).map_err(|problem| GenerateError::refused("messages", problem))?)
            }
        };
        let refused = |problem| GenerateError::refused(name, problem);
        if text.len() > most {
            return Err(refused(format!("has {} bytes, which cannot be {context} tokens: shorten it", text.len())));
        }
        let tokens = self.tokenizer.tokens(&text).map_err(|problem| refused(format!("has no tokens: {problem}")))?;
        match tokens.len() {
            0 => Err(refused("is empty: write something to go on with".into())),
            // One place is for the first token of the answer.
            count if count >= context => Err(refused(format!("has {count} tokens, at most {} are taken: shorten it", context - 1))),
            _ => Ok(tokens),
        }
    }

    /// Generates a text that goes on after `prompt`, which [`Self::tokens`] gave.
    ///
    /// `more` is called with each piece of text as soon as it is certain, and with how many tokens were generated until then. A piece may be
    /// empty: it is called at least once for each token and for each batch of the prompt, and when it breaks, no further token is computed.
    pub fn generate(
        &self,
        prompt: &[u32],
        settings: &Settings,
        mut more: impl FnMut(&str, usize) -> ControlFlow<()>,
    ) -> Result<Generated, GenerateError> {
        settings.check()?;
        let most = settings.max_tokens.min(self.context().saturating_sub(prompt.len()));
        let done = |tokens, finish| Ok(Generated { tokens, finish });
        let mut sequence = self.model.sequence();
        let mut scores = Vec::new();
        for batch in prompt.chunks(BATCH) {
            if more("", 0).is_break() {
                return done(0, Finish::Break);
            }
            scores = self.threads.install(|| sequence.feed(&self.model, batch));
        }
        let mut sampler = Sampler::new(settings);
        let mut text = Text::new(settings.stop.clone());
        for generated in 1..=most {
            let token = sampler.choose(&scores).ok_or(GenerateError::NotNumbers)?;
            let ended = self.tokenizer.ends(token);
            let (piece, stopped) = text.push(self.tokenizer.bytes(token));
            if more(&piece, generated).is_break() {
                return done(generated, Finish::Break);
            }
            if stopped {
                return done(generated, Finish::Stop);
            }
            if ended || generated == most {
                return match more(&text.finish(), generated) {
                    ControlFlow::Continue(()) => done(generated, if ended { Finish::Stop } else { Finish::Length }),
                    ControlFlow::Break(()) => done(generated, Finish::Break),
                };
            }
            scores = self.threads.install(|| sequence.feed(&self.model, &[token]));
        }
        done(0, Finish::Length)
    }
}
