//! Models that an engine with OpenAI's HTTP interface runs: vLLM, llama.cpp, Ollama and others.

mod answer;
mod events;
mod http;
mod request;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use answer::{Answer, Chunk, Counted, Embeddings};
use async_trait::async_trait;
use events::Events;
use futures::{StreamExt as _, stream};
pub use http::{ApiKey, OpenAiError, OpenAiOptions};
use http::{Http, broken, broken_off, refused};
use ncn_core::{
    B256, Confinement, Execution, Executor, ExecutorError, FinishReason, Model, OutputChunk, Tensor, Usage, Values,
    compute::MAX_OUTPUT_BYTES,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use request::Interface;
use tokio::time::{Instant, timeout_at};

/// How long the engine may take to say what it has.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of the list of models that an engine has is repeated in an error.
const MAX_KNOWN_CHARS: usize = 1_000;

/// Runs models through an engine's HTTP interface. The manifest's `entry` is what the engine calls the model.
///
/// The node itself runs nothing here: it asks and reads answers. How the engine is confined is up to the operator, so
/// [`Executor::confinement`] says [`Confinement::None`].
///
/// A manifest's outputs say what is asked for:
///
/// | outputs | inputs | asked |
/// | --- | --- | --- |
/// | text `text`, and text `finish_reason` if it is wanted | text `prompt` | `completions` |
/// | the same | text `messages`: a JSON array of `{"role": ..., "content": ...}`, content being text | `chat/completions` |
/// | tensor `embedding`, f32 `[1, size]` | text `text` | `embeddings` |
///
/// Generated text is streamed: parts of `text`, then a last part with `finish_reason`. Usage is the engine's own count of tokens. One
/// that does not count is refused, since payment follows the count.
///
/// Nothing is asked twice. What may work with another node's engine is [`ExecutorError::Worker`]: no connection, an answer that
/// breaks off or makes no sense, missing counts, and every refusal that is not about the request itself.
pub struct OpenAiExecutor {
    http: Http,
    loaded: Mutex<HashMap<B256, Arc<Loaded>>>,
}

struct Loaded {
    model: Arc<Model>,
    interface: Interface,
}

impl OpenAiExecutor {
    /// Asks the engine that `options` name; nothing is asked yet.
    pub fn new(options: &OpenAiOptions) -> Result<Self, OpenAiError> {
        Ok(Self { http: Http::new(options)?, loaded: Mutex::default() })
    }

    /// What the engine calls the models that it has; an error says that it cannot be used.
    pub async fn models(&self) -> Result<Vec<String>, ExecutorError> {
        let asked = tokio::time::timeout(HEALTH_TIMEOUT, self.http.models());
        asked.await.map_err(|_| broken(format_args!("it did not say in {HEALTH_TIMEOUT:?} which models it has")))?
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<B256, Arc<Loaded>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn generate(&self, loaded: Arc<Loaded>, path: &str, body: String, clock: Clock) -> Result<Outputs, ExecutorError> {
        let response = clock.within(self.http.post(path, body)).await??;
        let state = Generation { events: Events::new(response), answer: Answer::default(), loaded, clock };
        let outputs = stream::unfold(Some(state), |state| async {
            let mut state = state?;
            let part = state.next().await;
            let goes_on = matches!(&part, Ok(part) if !part.is_last());
            Some((part, goes_on.then_some(state)))
        });
        Ok(outputs.boxed())
    }

    async fn embed(&self, loaded: &Loaded, body: String, clock: Clock) -> Result<Outputs, ExecutorError> {
        let read = async {
            let response = self.http.post("embeddings", body).await?;
            http::json::<Embeddings>(response).await
        };
        let (vector, counted) = clock.within(read).await??.first().map_err(broken)?;
        let tensor = Tensor::from_f32(vec![1, vector.len()], &vector).map_err(broken)?;
        let values = Values::from([("embedding", tensor)]);
        loaded.check(&values)?;
        let usage = clock.usage(Counted { completion_tokens: 1, ..counted });
        Ok(stream::iter([Ok(OutputChunk::last(values, usage))]).boxed())
    }
}

impl Loaded {
    fn check(&self, values: &Values) -> Result<(), ExecutorError> {
        self.model.manifest().check_outputs(values).map_err(|error| ExecutorError::InvalidOutput(error.to_string()))
    }

    fn gives(&self, name: &str) -> bool {
        self.model.manifest().outputs.iter().any(|output| output.name() == name)
    }
}

/// When a request began, and how long it may take.
#[derive(Clone, Copy)]
struct Clock {
    started: Instant,
    limit: Duration,
}

impl Clock {
    async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, ExecutorError> {
        timeout_at(self.started + self.limit, work).await.map_err(|_| ExecutorError::TimedOut(self.limit))
    }

    fn usage(&self, counted: Counted) -> Usage {
        let duration_micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Usage { input_units: counted.prompt_tokens, output_units: counted.completion_tokens, duration_micros }
    }
}

/// A text that is being generated. Letting go of it closes the connection, which tells the engine to stop.
struct Generation {
    events: Events,
    answer: Answer,
    loaded: Arc<Loaded>,
    clock: Clock,
}

impl Generation {
    async fn next(&mut self) -> Result<OutputChunk, ExecutorError> {
        loop {
            let event = self.clock.within(self.events.next()).await?;
            let event = match event.map_err(broken)? {
                Some(event) if event != "[DONE]" => event,
                None if !self.answer.has_end() => return Err(broken_off(self.events.other())),
                _ => return self.last(),
            };
            let chunk: Chunk = serde_json::from_str(&event).map_err(|error| broken(format_args!("an event: {error}")))?;
            if let Some(error) = chunk.error {
                return Err(refused(error));
            }
            let text = self.answer.add(chunk);
            if self.answer.bytes > MAX_OUTPUT_BYTES {
                return Err(ExecutorError::InvalidOutput(format!("`text`: has more than {MAX_OUTPUT_BYTES} bytes")));
            }
            if !text.is_empty() {
                let values = Values::from([("text", text.as_str())]);
                return Ok(OutputChunk { values, usage: self.clock.usage(self.answer.counted()), finish: None });
            }
        }
    }

    fn last(&self) -> Result<OutputChunk, ExecutorError> {
        let (reason, counted) = self.answer.end().map_err(broken)?;
        // An output without a part would be missing.
        let mut values = Values::from([("text", "")]);
        if self.loaded.gives("finish_reason") {
            values.insert("finish_reason", reason);
        }
        self.loaded.check(&values)?;
        // Engines have reasons of their own, such as calls of tools: the model was done.
        let finish = if reason == "length" { FinishReason::Length } else { FinishReason::Stop };
        Ok(OutputChunk { values, usage: self.clock.usage(counted), finish: Some(finish) })
    }
}

#[async_trait]
impl Executor for OpenAiExecutor {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::OpenAi]
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    /// Of a text that goes on from a prompt: the prompt with the text so far. How an engine takes the beginning of an answer in a conversation,
    /// its interface does not say.
    fn continue_from(&self, execution: &Execution, prefix: &Values, units: u64) -> Option<Execution> {
        let loaded = self.loaded().get(&execution.model_digest).cloned()?;
        request::continue_from(loaded.model.manifest(), execution, prefix, units)
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let (model, manifest) = (package.model.clone(), package.model.manifest());
        if manifest.format != ModelFormat::OpenAi {
            return Err(ExecutorError::UnsupportedFormat(manifest.format));
        }
        let interface = Interface::of(manifest).map_err(|problem| ExecutorError::InvalidModel(problem.into()))?;
        let models = self.models().await?;
        if !models.contains(&manifest.entry) {
            let known: String = models.join(", ").chars().take(MAX_KNOWN_CHARS).collect();
            return Err(ExecutorError::InvalidModel(format!("entry: the engine has no `{}`; it has: {known}", manifest.entry)));
        }
        self.loaded().insert(model.digest(), Arc::new(Loaded { model, interface }));
        Ok(())
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        self.loaded().remove(model_digest);
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let digest = execution.model_digest;
        let loaded = self.loaded().get(&digest).cloned().ok_or(ExecutorError::NotLoaded(digest))?;
        let manifest = loaded.model.manifest();
        manifest.check(&execution.inputs).map_err(|error| ExecutorError::InvalidInput(error.to_string()))?;
        let (path, body) = loaded.interface.request(manifest, &execution).map_err(ExecutorError::InvalidInput)?;
        let clock = Clock { started: Instant::now(), limit: execution.time_limit };
        match loaded.interface {
            Interface::Text => self.generate(loaded, path, body, clock).await,
            Interface::Embedding => self.embed(&loaded, body, clock).await,
        }
    }
}
