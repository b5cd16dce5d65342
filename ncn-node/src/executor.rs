//! Running models: engines in this process, and any engine in a worker process of its own.

mod onnx;
mod package;
mod worker;

pub use onnx::OnnxExecutor;
pub use worker::{WorkerExecutor, WorkerProgram};
