//! Language models in GGUF.

use std::{num::NonZero, ops::ControlFlow, sync::Arc, time::Instant};

use ncn_core::{
    ExecutorError, FinishReason, Model, OutputChunk, Usage, Values,
    model::{ChatMessage, GenerationParameters, InputError, InputSpec, Manifest, ModelFormat, OutputSpec, conversation},
};
use ncn_gguf::{Finish, GenerateError, Generator, Message, Prompt, Settings};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{Engine, RunContext, Session, Verified};

/// The unit in which memory for texts is lent.
const MIB: u64 = 1 << 20;
/// What a worker needs beside weights and texts.
const RESERVED: u64 = 128 * MIB;
const TEXT: &str = "text";
const FINISH_REASON: &str = "finish_reason";

/// Runs language models in GGUF on the processor. Without a seed, a request has the seed 0.
pub struct GgufEngine {
    threads: NonZero<usize>,
}

impl Default for GgufEngine {
    /// With as many threads as the machine has processors, unless a manifest says how many.
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN) }
    }
}

impl Engine for GgufEngine {
    fn format(&self) -> ModelFormat {
        ModelFormat::Gguf
    }

    fn open(&self, package: Verified) -> Result<Box<dyn Session>, ExecutorError> {
        let Verified { model, entry, .. } = package;
        let manifest = model.manifest();
        let invalid = |problem: String| ExecutorError::InvalidModel(problem);
        check(manifest).map_err(|problem| invalid(problem.into()))?;
        let threads = manifest.limits.threads.and_then(|threads| NonZero::new(threads as usize)).unwrap_or(self.threads);
        let generator = Generator::open(&entry, threads).map_err(|error| invalid(format!("{}: {error}", manifest.entry)))?;
        drop(entry);
        if let Some(problem) = generator.template_problem()
            && manifest.inputs.iter().any(|input| input.name() == "messages")
        {
            return Err(invalid(format!("inputs.messages: {problem}: offer `prompt` alone")));
        }
        let needed = generator.weight_bytes() as u64 + RESERVED;
        let memory = manifest.limits.memory_bytes.saturating_sub(needed) / MIB;
        let memory = u32::try_from(memory).unwrap_or(u32::MAX);
        if lend(&generator, 1) > memory {
            return Err(invalid(format!("limits.memory_bytes: weights take {needed}, allow more for texts")));
        }
        Ok(Box::new(Loaded { model, generator, memory, unused: Arc::new(Semaphore::new(memory as usize)) }))
    }
}

/// Refuses a manifest whose inputs or outputs are not what a language model takes and gives.
fn check(manifest: &Manifest) -> Result<(), &'static str> {
    let is_input =
        |input: &InputSpec| matches!(input, InputSpec::Text(input) if ["prompt", "messages"].contains(&input.name.as_str()));
    let is_output =
        |output: &OutputSpec| matches!(output, OutputSpec::Text(output) if [TEXT, FINISH_REASON].contains(&output.name.as_str()));
    if !manifest.inputs.iter().all(is_input) {
        return Err("inputs: a language model takes the texts `prompt` or `messages`");
    }
    if !manifest.outputs.iter().all(is_output) || !manifest.outputs.iter().any(|output| output.name() == TEXT) {
        return Err("outputs: a language model gives the texts `text` and, if wanted, `finish_reason`");
    }
    Ok(())
}

/// How many MiB a text of so many tokens needs.
fn lend(generator: &Generator, tokens: usize) -> u32 {
    u32::try_from((generator.text_bytes(tokens) as u64).div_ceil(MIB)).unwrap_or(u32::MAX)
}

struct Loaded {
    model: Arc<Model>,
    generator: Generator,
    /// How many MiB there are for texts, and those of them that are not lent.
    memory: u32,
    unused: Arc<Semaphore>,
}

impl Loaded {
    /// Memory for a text of so many tokens; waits while others have it.
    fn memory(&self, tokens: usize, job: &RunContext) -> Result<OwnedSemaphorePermit, ExecutorError> {
        let needed = lend(&self.generator, tokens);
        if needed > self.memory {
            let problem =
                format!("`parameters.max_tokens` and the prompt need {needed} MiB, the model has {}: ask for less", self.memory);
            return Err(ExecutorError::InvalidInput(problem));
        }
        let runtime = Handle::try_current().map_err(|error| ExecutorError::Failed(error.to_string()))?;
        runtime.block_on(async {
            tokio::select! {
                memory = self.unused.clone().acquire_many_owned(needed) => memory.map_err(|_| ExecutorError::Cancelled),
                () = job.cancel().cancelled() => Err(ExecutorError::Cancelled),
            }
        })
    }
}

impl Session for Loaded {
    /// Chance comes from the request's seed alone.
    fn is_deterministic(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Values, parameters: &str, job: &RunContext) -> Result<OutputChunk, ExecutorError> {
        let manifest = self.model.manifest();
        let invalid = |error: InputError| ExecutorError::InvalidInput(error.to_string());
        manifest.check(inputs).map_err(invalid)?;
        let settings = settings(GenerationParameters::parse(parameters).map_err(invalid)?);
        let prompt = match (inputs.text("prompt"), inputs.text("messages")) {
            (Some(text), _) => Prompt::Text(text.into()),
            (None, messages) => {
                let messages = conversation(messages.unwrap_or_default()).map_err(invalid)?;
                Prompt::Messages(messages.into_iter().map(message).collect())
            }
        };
        let tokens = self.generator.tokens(&prompt).map_err(refused)?;
        let most = (tokens.len().saturating_add(settings.max_tokens)).min(self.generator.context());
        let _memory = self.memory(most, job)?;

        let started = Instant::now();
        let usage = |generated: usize| Usage {
            input_units: tokens.len() as u64,
            output_units: generated as u64,
            duration_micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        let generated = self.generator.generate(&tokens, &settings, |piece, so_far| {
            let gone = if piece.is_empty() {
                job.cancel().is_cancelled()
            } else {
                job.emit([(TEXT, piece)].into(), usage(so_far)).is_err()
            };
            if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let generated = generated.map_err(refused)?;
        let finish = match generated.finish {
            Finish::Stop => FinishReason::Stop,
            Finish::Length => FinishReason::Length,
            Finish::Break => return Err(ExecutorError::Cancelled),
        };
        let mut last = Values::from([(TEXT, "")]);
        if manifest.outputs.iter().any(|output| output.name() == FINISH_REASON) {
            last.insert(FINISH_REASON, finish.to_string().as_str());
        }
        Ok(OutputChunk { values: last, usage: usage(generated.tokens), finish: Some(finish) })
    }
}

fn settings(parameters: GenerationParameters) -> Settings {
    let GenerationParameters { max_tokens, temperature, top_p, seed, stop } = parameters;
    let max_tokens = usize::try_from(max_tokens).unwrap_or(usize::MAX);
    Settings { max_tokens, temperature, top_p, seed: seed.unwrap_or_default().into(), stop }
}

fn message(message: ChatMessage) -> Message {
    Message { role: message.role.name().into(), content: message.content }
}

fn refused(error: GenerateError) -> ExecutorError {
    match error {
        GenerateError::Refused { .. } => ExecutorError::InvalidInput(error.to_string()),
        error => ExecutorError::Failed(error.to_string()),
    }
}
