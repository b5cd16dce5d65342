//! What a machine has, and which of it runs which model.

use std::path::PathBuf;

use ncn_core::model::ModelFormat;
use ncn_executor::{EngineCatalog, MachineOptions, OpenAiOptions, WorkerProgram, onnxruntime::Search};

use crate::{python::python, scene::ncn};

async fn machine(library: Option<PathBuf>, python: PathBuf, engine: &str) -> EngineCatalog {
    let options = MachineOptions {
        onnxruntime: Search { library, python: Some(python.clone()) },
        python: Some(python),
        openai: Some(OpenAiOptions { url: engine.into(), api_key: None }),
        ..MachineOptions::default()
    };
    EngineCatalog::detect(&WorkerProgram::new(ncn()), &options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_engine_that_works_is_chosen_and_it_is_said_why() {
    let engine = |machine: &EngineCatalog, format| machine.choice(format).engine;
    let interpreter = python().await.interpreter;
    let nobody = "http://127.0.0.1:1/v1";

    // As people write it: from where they are.
    let relative = PathBuf::from("../../../target/venv/bin/python");
    let whole = machine(None, if relative.exists() { relative } else { interpreter }, nobody).await;
    assert_eq!(engine(&whole, ModelFormat::Onnx).as_deref(), Some("ONNX Runtime"));
    assert!(whole.choice(ModelFormat::Onnx).why.contains("libonnxruntime.so"), "{}", whole.choice(ModelFormat::Onnx));
    assert_eq!(engine(&whole, ModelFormat::Gguf).as_deref(), Some("built in"));
    let away = whole.choice(ModelFormat::OpenAi);
    assert!(away.engine.is_none() && away.why.starts_with("not engine over HTTP, since "), "{away}");
    let unknown = whole.choice(ModelFormat::Echo);
    assert!(unknown.engine.is_none() && unknown.why.contains("no engine here runs echo models"), "{unknown}");

    // What is named is used or refused: then the built-in runtime takes over, and the reason is kept.
    let broken = machine(Some("/nonexistent/libonnxruntime.so".into()), "/nonexistent/python".into(), "no URL").await;
    let second = broken.choice(ModelFormat::Onnx);
    assert_eq!(second.engine.as_deref(), Some("built in"));
    assert!(second.why.starts_with("not ONNX Runtime, since ") && second.why.contains("/nonexistent/"), "{second}");
    let none = broken.choice(ModelFormat::Python);
    assert!(none.engine.is_none() && none.why.contains("install Python 3.9 or newer"), "{none}");
    assert!(broken.choice(ModelFormat::OpenAi).why.contains("write http://HOST:PORT/v1"));
}
