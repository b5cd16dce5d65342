//! What this machine can run models with, and which of it runs which model.

#[cfg(feature = "python")]
use std::path::PathBuf;
use std::{fmt, sync::Arc};

use ncn_core::{Executor, Sandbox, model::ModelFormat};

#[cfg(feature = "python")]
use super::Python;
#[cfg(feature = "ort")]
use super::onnxruntime::{Device, Search, diagnose};
use super::{ExecutorRouter, WorkerExecutor, WorkerOptions, WorkerProgram};
#[cfg(feature = "openai")]
use super::{OpenAiExecutor, OpenAiOptions};

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct MachineOptions {
    /// For ONNX Runtime.
    #[cfg(feature = "ort")]
    pub onnxruntime: Search,
    /// What ONNX Runtime computes on.
    #[cfg(feature = "ort")]
    pub device: Device,
    /// The Python interpreter that runs Python models; that of the environment's `NCN_PYTHON`, or `python3`, by default.
    #[cfg(feature = "python")]
    pub python: Option<PathBuf>,
    /// The extension module that makes it a worker; that of `NCN_PYTHON_WORKER`, beside this program, or installed in it by default.
    #[cfg(feature = "python")]
    pub python_worker: Option<PathBuf>,
    /// An engine with OpenAI's HTTP interface, if there is one.
    #[cfg(feature = "openai")]
    pub openai: Option<OpenAiOptions>,
}

/// An engine, and whether this machine has it.
#[derive(Clone, Debug)]
pub struct EngineState {
    /// What it is called.
    pub name: String,
    /// What it runs.
    pub formats: Vec<ModelFormat>,
    /// What was found, or why it cannot be used and what to do.
    pub found: Result<String, String>,
    /// The worker that has it.
    program: Option<WorkerProgram>,
}

/// The engines of this machine, the one to be preferred first.
#[derive(Clone)]
pub struct EngineCatalog {
    engines: Vec<EngineState>,
    /// Those that are no worker of this node.
    remote: Vec<Arc<dyn Executor>>,
}

/// Which engine runs a format, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The engine; none when this machine has none.
    pub engine: Option<String>,
    /// Why this one, and why none before it.
    pub why: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.engine {
            Some(engine) => write!(f, "{engine}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

impl EngineCatalog {
    /// What ONNX Runtime is called among [`Self::engines`]; there is one for each library that was tried.
    pub const ONNX_RUNTIME: &str = "ONNX Runtime";
    /// What an engine over HTTP is called there.
    pub const OVER_HTTP: &str = "engine over HTTP";

    /// Looks what there is; tries what could break. `program` calls [`crate::worker::init`].
    #[allow(clippy::unused_async, reason = "with no feature there is nothing to try")]
    pub async fn detect(program: &WorkerProgram, options: &MachineOptions) -> Self {
        #[cfg(not(any(feature = "openai", feature = "ort", feature = "python")))]
        let _ = options;
        let mut machine = Self { engines: Vec::new(), remote: Vec::new() };
        #[cfg(feature = "ort")]
        machine.engines.extend(onnxruntime(program, options).await);
        machine.engines.push(built_in(program));
        #[cfg(feature = "python")]
        machine.engines.push(python(options).await);
        #[cfg(feature = "openai")]
        if let Some(options) = &options.openai {
            machine.ask(options).await;
        }
        machine
    }

    /// Asks an engine over HTTP what it has.
    #[cfg(feature = "openai")]
    async fn ask(&mut self, options: &OpenAiOptions) {
        let found = match OpenAiExecutor::new(options) {
            Ok(executor) => match executor.models().await {
                Ok(models) => {
                    self.remote.push(Arc::new(executor));
                    Ok(format!("{} has {}", options.url, models.join(", ")))
                }
                Err(error) => Err(error.to_string()),
            },
            Err(error) => Err(error.to_string()),
        };
        let formats = vec![ModelFormat::OpenAi];
        self.engines.push(EngineState { name: Self::OVER_HTTP.into(), formats, found, program: None });
    }

    /// All of them.
    pub fn engines(&self) -> &[EngineState] {
        &self.engines
    }

    /// All that can be used as one executor: workers, started through `sandbox`, and the engine over HTTP.
    pub fn executor(&self, sandbox: Arc<dyn Sandbox>, options: WorkerOptions) -> Arc<dyn Executor> {
        let programs = self.engines.iter().filter_map(|engine| engine.program.clone()).collect();
        let workers: Arc<dyn Executor> = Arc::new(WorkerExecutor::new(programs, sandbox, options));
        if self.remote.is_empty() {
            return workers;
        }
        Arc::new(ExecutorRouter::new([vec![workers], self.remote.clone()].concat()))
    }

    /// Which engine runs models of this format.
    pub fn choice(&self, format: ModelFormat) -> Choice {
        let mut passed = Vec::new();
        for engine in self.engines.iter().filter(|engine| engine.formats.contains(&format)) {
            match &engine.found {
                Ok(found) => {
                    passed.push(found.clone());
                    return Choice { engine: Some(engine.name.clone()), why: passed.join("; ") };
                }
                Err(problem) => passed.push(format!("not {}, since {problem}", engine.name)),
            }
        }
        if passed.is_empty() {
            passed.push(format!("no engine here runs {format} models"));
        }
        Choice { engine: None, why: passed.join("; ") }
    }
}

fn built_in(program: &WorkerProgram) -> EngineState {
    EngineState {
        name: program.name.clone(),
        formats: program.formats.clone(),
        found: Ok("part of this program".into()),
        program: Some(program.clone()),
    }
}

#[cfg(feature = "python")]
async fn python(options: &MachineOptions) -> EngineState {
    let python = Python::find(options.python.as_deref(), options.python_worker.as_deref()).await;
    EngineState {
        name: "Python".into(),
        formats: vec![ModelFormat::Python],
        program: python.as_ref().ok().map(Python::program),
        found: python.map(|python| python.to_string()).map_err(|error| error.to_string()),
    }
}

/// The libraries of ONNX Runtime up to the first that can be used.
#[cfg(feature = "ort")]
async fn onnxruntime(program: &WorkerProgram, options: &MachineOptions) -> Vec<EngineState> {
    let state =
        |found| EngineState { name: EngineCatalog::ONNX_RUNTIME.into(), formats: vec![ModelFormat::Onnx], found, program: None };
    let examined = match diagnose(program, &options.onnxruntime, options.device).await {
        Ok(examined) => examined,
        Err(error) => return vec![state(Err(error.to_string()))],
    };
    if examined.is_empty() {
        return vec![state(Err("there is no libonnxruntime: `pip install onnxruntime` brings one".into()))];
    }
    let mut engines = Vec::new();
    for (library, probed) in examined {
        let path = library.path.display();
        match probed {
            Ok(probed) => {
                let cuda = if probed.cuda { ", built for CUDA too" } else { "" };
                let found = format!("{} at {path}, by {}, on {}{cuda}", probed.version, library.source, options.device);
                let program = Some(program.clone().with_onnxruntime(&library, options.device, None));
                engines.push(EngineState { program, ..state(Ok(found)) });
                break;
            }
            Err(error) => engines.push(state(Err(error.to_string()))),
        }
    }
    engines
}
