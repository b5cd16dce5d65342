//! Running models: engines in this process, and any engine in a worker process of its own.

mod engine;
#[cfg(feature = "gguf")]
mod gguf;
mod machine;
mod onnx;
mod openai;
mod package;
mod python;
mod selector;
mod tokenizer;
mod worker;

pub use engine::{Engine, EngineExecutor, RunContext, Session};
#[cfg(feature = "gguf")]
pub use gguf::GgufEngine;
pub use machine::{Choice, EngineCatalog, EngineState, MachineOptions};
#[cfg(feature = "ort")]
pub use onnx::onnxruntime;
pub use onnx::{Graph, OnnxEngine, Runtime};
pub use openai::{ApiKey, OpenAiError, OpenAiExecutor, OpenAiOptions};
pub use package::Verified;
pub use python::{INTERPRETER_VARIABLE, Python, PythonError, WORKER_VARIABLE};
pub use selector::ExecutorRouter;
pub(crate) use worker::codec;
pub use worker::{WORKER_ARGUMENT, WorkerExecutor, WorkerOptions, WorkerProgram};

impl EngineExecutor {
    /// With every engine that this program has built in.
    pub fn built_in() -> Self {
        Self::new(vec![
            Box::new(OnnxEngine::built_in()),
            #[cfg(feature = "gguf")]
            Box::new(GgufEngine::default()),
        ])
    }
}
