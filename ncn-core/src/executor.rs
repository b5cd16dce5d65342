//! The port for running models.

mod package;

use std::time::Duration;

use alloy_primitives::B256;
use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
pub use package::ModelPackage;
use serde::{Deserialize, Serialize};

use crate::{FinishReason, Units, Values, model::ModelFormat, sandbox::Confinement};

/// One inference to run.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Which loaded model.
    pub model_digest: B256,
    /// What to run it on.
    pub inputs: Values,
    /// The model's parameters as a JSON object.
    pub parameters: String,
    /// How long it may take.
    pub time_limit: Duration,
}

/// What an inference took. Units are what the model counts: rows of a batch, tokens of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Usage {
    /// Units taken in.
    pub input_units: u64,
    /// Units given out.
    pub output_units: u64,
    /// How long the model ran.
    pub duration_micros: u64,
}

impl Usage {
    /// What is paid for.
    pub const fn units(&self) -> Units {
        Units { input: self.input_units, output: self.output_units }
    }
}

/// A part of an output, which [`Values::append`] adds to the parts before. A model that does not stream gives one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputChunk {
    /// The values of this part.
    pub values: Values,
    /// What the inference took up to here.
    pub usage: Usage,
    /// Set on the last part, and only there: why there are no more.
    pub finish: Option<FinishReason>,
}

impl OutputChunk {
    /// All of an output, or the last part of it, of a model that is done.
    pub const fn last(values: Values, usage: Usage) -> Self {
        Self { values, usage, finish: Some(FinishReason::Stop) }
    }

    /// True when nothing comes after it.
    pub const fn is_last(&self) -> bool {
        self.finish.is_some()
    }
}

/// The parts of an output, the last with the reason why it ends. Dropping it cancels the inference.
pub type Outputs = BoxStream<'static, Result<OutputChunk, ExecutorError>>;

/// Why a model was not loaded or did not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ExecutorError {
    /// No engine here for this format.
    #[error("format: this executor does not run {0} models")]
    UnsupportedFormat(ModelFormat),
    /// The files are missing, are not what the manifest says, or the engine cannot read them.
    #[error("model: {0}")]
    InvalidModel(String),
    /// Never loaded, or unloaded since.
    #[error("model {0} is not loaded: load it first")]
    NotLoaded(B256),
    /// Inputs that the manifest does not allow.
    #[error("input {0}")]
    InvalidInput(String),
    /// The model itself failed.
    #[error("the model failed: {0}")]
    Failed(String),
    /// Outputs that the manifest does not promise.
    #[error("output {0}")]
    InvalidOutput(String),
    /// It took longer than it may.
    #[error("the model ran longer than {0:?}")]
    TimedOut(Duration),
    /// Nobody waits for it any more.
    #[error("the run was cancelled")]
    Cancelled,
    /// The worker process died or could not be started.
    #[error("worker: {0}")]
    Worker(String),
}

impl ExecutorError {
    /// True when the same execution may succeed on another try or another node.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Worker(_) | Self::NotLoaded(_))
    }
}

/// Runs models.
///
/// # For the user
/// Load a model once, run it many times, from as many tasks as you like. Cancel a run by dropping its stream.
///
/// # For the implementer
/// - `load` verifies every file's size and SHA-256 before an engine sees it, and is idempotent.
/// - `run` refuses inputs through [`crate::Manifest::prepare`], and gives outputs through [`crate::Manifest::finish`] or
///   [`crate::Manifest::check_outputs`].
/// - A dropped stream ends the run: what it used is soon free again.
/// - A stream ends after its first error or after the chunk that has `finish`; never without one of them. Usage only grows.
/// - Nothing that a model does may take the caller down or hold it up past the time limit.
#[async_trait]
pub trait Executor: Send + Sync {
    /// The formats that can be loaded here.
    fn formats(&self) -> Vec<ModelFormat>;

    /// How strongly this model is confined while it runs.
    fn confinement(&self, model_digest: &B256) -> Confinement;

    /// Whether this model gives the same parts each time that it runs on the same inputs and parameters, here and elsewhere: then a node can
    /// go on where another one was lost.
    fn is_deterministic(&self, model_digest: &B256) -> bool {
        let _ = model_digest;
        false
    }

    /// What to run so that its output goes on after `prefix`, the beginning of what this execution would give, which took so many units: the
    /// same with the prefix as context. None where the model does not take it, or has nothing left to give.
    fn continue_from(&self, execution: &Execution, prefix: &Values, units: u64) -> Option<Execution> {
        let _ = (execution, prefix, units);
        None
    }

    /// Makes a model ready to run.
    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError>;

    /// Lets go of a model; does nothing when it is not loaded.
    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError>;

    /// Starts an inference.
    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError>;
}

/// Conveniences on every [`Executor`].
#[async_trait]
pub trait ExecutorExt: Executor {
    /// Runs an inference to its end.
    async fn run_to_end(&self, execution: Execution) -> Result<(Values, Usage), ExecutorError> {
        let mut outputs = self.run(execution).await?;
        let mut all = Values::new();
        while let Some(chunk) = outputs.next().await {
            let OutputChunk { values, usage, finish } = chunk?;
            all.append(values);
            if finish.is_some() {
                return Ok((all, usage));
            }
        }
        Err(ExecutorError::Failed("the output broke off".into()))
    }
}

impl<E: Executor + ?Sized> ExecutorExt for E {}
