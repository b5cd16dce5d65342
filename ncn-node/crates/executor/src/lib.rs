//! Running models: engines in this process, worker processes that have engines, and the sandboxes that confine workers.

mod engine;
#[cfg(feature = "gguf")]
mod gguf;
mod machine;
#[cfg(feature = "onnx")]
mod onnx;
#[cfg(feature = "openai")]
mod openai;
mod package;
#[cfg(feature = "python")]
mod python;
mod router;
pub mod sandbox;
#[cfg(feature = "onnx")]
mod tokenizer;
pub mod worker;
mod workers;

pub use engine::{Engine, EngineExecutor, RunContext, Session};
#[cfg(feature = "gguf")]
pub use gguf::GgufEngine;
pub use machine::{Choice, EngineCatalog, EngineState, MachineOptions};
#[cfg(feature = "ort")]
pub use onnx::onnxruntime;
#[cfg(feature = "onnx")]
pub use onnx::{Graph, OnnxEngine, Runtime, describe};
#[cfg(feature = "openai")]
pub use openai::{ApiKey, OpenAiError, OpenAiExecutor, OpenAiOptions};
pub use package::Verified;
#[cfg(feature = "python")]
pub use python::{Python, PythonError, WORKER_VARIABLE};
pub use router::ExecutorRouter;
pub use workers::{WORKER_ARGUMENT, WorkerExecutor, WorkerOptions, WorkerProgram};

/// Names the operator's own Python.
#[cfg(any(feature = "ort", feature = "python"))]
pub const INTERPRETER_VARIABLE: &str = "NCN_PYTHON";

impl EngineExecutor {
    /// With every engine that this program has built in.
    pub fn built_in() -> Self {
        Self::new(vec![
            #[cfg(feature = "onnx")]
            Box::new(OnnxEngine::built_in()),
            #[cfg(feature = "gguf")]
            Box::new(GgufEngine::default()),
        ])
    }
}
