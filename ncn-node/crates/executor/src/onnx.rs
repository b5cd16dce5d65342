//! ONNX models: what is the same for every runtime.

mod batch;
mod bounds;
mod describe;
mod graph;
#[cfg(feature = "ort")]
pub mod onnxruntime;
mod outlet;
mod rten;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use batch::Batches;
use ncn_core::{
    DataType, ExecutorError, Model, OutputChunk, Tensor, Usage, Values,
    model::{Dimension, InputSpec, Manifest, ModelFormat, OutputSpec, Tensors, Tokenize},
};
use tokio_util::sync::CancellationToken;

pub use describe::describe;

use crate::{Engine, RunContext, Session, Verified, tokenizer::Tokenizer};

/// A library that runs ONNX graphs.
pub trait Runtime: Send + Sync {
    /// Reads the package's entry (whose bytes it may take) and checks that the graph has what the manifest names.
    fn open(&self, package: &mut Verified) -> Result<Box<dyn Graph>, ExecutorError>;
}

/// A graph that a [`Runtime`] has read.
pub trait Graph: Send + Sync {
    /// Runs it, on the calling thread and whichever the runtime has; ends early when `cancel` says so, if the runtime can.
    fn run(&self, inputs: &Tensors, cancel: &CancellationToken) -> Result<Tensors, ExecutorError>;
}

/// Runs ONNX models.
pub struct OnnxEngine {
    runtime: Box<dyn Runtime>,
}

impl OnnxEngine {
    /// With the built-in runtime, which is all in Rust.
    pub fn built_in() -> Self {
        Self::new(rten::Rten)
    }

    /// With any runtime.
    pub fn new(runtime: impl Runtime + 'static) -> Self {
        Self { runtime: Box::new(runtime) }
    }
}

/// The tensors that the graph takes.
fn inputs(manifest: &Manifest) -> impl Iterator<Item = &str> {
    manifest.inputs.iter().filter_map(|input| match input {
        InputSpec::Tensor(input) => Some(input.name.as_str()),
        // Tensors are made of it.
        _ => None,
    })
}

/// The tensors that the graph gives.
fn outputs(manifest: &Manifest) -> Vec<(String, DataType)> {
    let tensor = |output: &OutputSpec| match output {
        OutputSpec::Tensor(output) => Some((output.name.clone(), output.dtype)),
        _ => None,
    };
    manifest.outputs.iter().filter_map(tensor).collect()
}

impl Engine for OnnxEngine {
    fn format(&self) -> ModelFormat {
        ModelFormat::Onnx
    }

    fn open(&self, mut package: Verified) -> Result<Box<dyn Session>, ExecutorError> {
        let graph = self.runtime.open(&mut package)?;
        let Verified { model, tokenizer, .. } = package;
        let tokenizer = match (tokenizer, &model.manifest().tokenizer) {
            (Some(file), Some(spec)) => Some(Tokenizer::new(&file, spec)?),
            _ => None,
        };
        let graph: Arc<dyn Graph> = graph.into();
        try_out(&graph, model.manifest())?;
        let batches = Batches::new(graph, model.manifest().limits.batch as usize);
        Ok(Box::new(Loaded { model, tokenizer, batches }))
    }
}

/// How many values each of a trial's inputs may have.
const MAX_TRIAL_VALUES: usize = 1 << 24;
/// How long a trial is waited for: a graph that takes longer is believed to run.
const LONGEST_TRIAL: Duration = Duration::from_secs(10);

/// Runs a graph on zeros, so that the operator sees that it does not run, not the first user. Tried are graphs all of whose inputs are
/// tables of fixed sizes and of numbers with a fraction, such as images and sound: whole numbers and short lists may be sizes, places or
/// choices, for which zero need not be allowed.
fn try_out(graph: &Arc<dyn Graph>, manifest: &Manifest) -> Result<(), ExecutorError> {
    let zeros = |input: &InputSpec| {
        let InputSpec::Tensor(input) = input else { return None };
        let size = |dimension: &Dimension| match dimension {
            Dimension::Fixed(size) => Some(*size),
            Dimension::Named(_) => None,
        };
        let shape: Vec<usize> = input.shape.iter().map(size).collect::<Option<_>>()?;
        let values = shape.iter().try_fold(1_usize, |values, size| values.checked_mul(*size))?;
        if values > MAX_TRIAL_VALUES || input.dtype != DataType::F32 || shape.len() < 2 {
            return None;
        }
        Some((input.name.clone(), Tensor::new(input.dtype, shape, vec![0; values.checked_mul(input.dtype.size())?]).ok()?))
    };
    let Some(inputs) = manifest.inputs.iter().map(zeros).collect::<Option<Tensors>>() else { return Ok(()) };
    let cancel = CancellationToken::new();
    let (tell, told) = mpsc::sync_channel(1);
    let (tried, until) = (graph.clone(), cancel.clone());
    // A thread that panics tells nothing: on other values it may run.
    let thread = thread::Builder::new().name("trial".into()).spawn(move || tell.send(tried.run(&inputs, &until)));
    thread.map_err(|error| ExecutorError::Failed(format!("a trial: {error}")))?;
    let tried = told.recv_timeout(LONGEST_TRIAL);
    cancel.cancel();
    match tried {
        Ok(Err(ExecutorError::Failed(said))) => {
            Err(ExecutorError::InvalidModel(format!("{}: does not run, tried with zeros: {said}", manifest.entry)))
        }
        _ => Ok(()),
    }
}

struct Loaded {
    model: Arc<Model>,
    tokenizer: Option<Tokenizer>,
    batches: Batches,
}

impl Session for Loaded {
    fn run(&self, inputs: &Values, parameters: &str, job: &RunContext) -> Result<OutputChunk, ExecutorError> {
        let manifest = self.model.manifest();
        manifest.check_parameters(parameters).map_err(|error| ExecutorError::InvalidInput(error.to_string()))?;
        let tokenizer = self.tokenizer.as_ref().map(|tokenizer| tokenizer as &dyn Tokenize);
        let tensors = manifest.prepare(inputs, tokenizer);
        let tensors = tensors.map_err(|error| ExecutorError::InvalidInput(error.to_string()))?;
        let rows = |tensors: &Tensors| tensors.values().next().and_then(|tensor: &Tensor| tensor.shape().first().copied());
        let input_units = rows(&tensors).unwrap_or(1) as u64;
        let started = Instant::now();
        let outputs = self.batches.run(&tensors, job.cancel())?;
        let duration_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let output_units = rows(&outputs).unwrap_or(1) as u64;
        let values = manifest.finish(outputs, &tensors).map_err(|error| ExecutorError::InvalidOutput(error.to_string()))?;
        Ok(OutputChunk::last(values, Usage { input_units, output_units, duration_micros }))
    }
}
