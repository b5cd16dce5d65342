use std::{collections::BTreeMap, path::PathBuf};

use ncn_core::{Executor as _, ExecutorError, model::ModelFormat};

use crate::EngineExecutor;
#[cfg(feature = "ort")]
use crate::onnxruntime::{Device, Library, Options};

/// The argument that makes a program that calls [`crate::worker::init`] a worker.
pub const WORKER_ARGUMENT: &str = "ncn-worker";

/// A program that is started as a worker.
#[derive(Clone, Debug)]
pub struct WorkerProgram {
    /// What runs models in it, for people.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// The arguments that make it a worker.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// Files and directories besides the system's that it reads and executes, such as libraries.
    pub paths: Vec<PathBuf>,
    /// Files and directories that it reads.
    pub readable: Vec<PathBuf>,
    /// Device files that it reads, writes and commands.
    pub devices: Vec<PathBuf>,
    /// Whether all of these, and the package's directory, are told to it as further arguments.
    pub is_told_paths: bool,
    /// How many processes and threads it may have at once, if not as many as by default.
    pub processes: Option<u32>,
    /// What it runs.
    pub formats: Vec<ModelFormat>,
}

impl WorkerProgram {
    /// This very program, which has to call [`crate::worker::init`] first thing in its `main`.
    pub fn current() -> Result<Self, ExecutorError> {
        // A program that forgot to call `init` would start itself again and again.
        if std::env::args_os().nth(1).is_some_and(|argument| argument == WORKER_ARGUMENT) {
            return Err(ExecutorError::Worker("this program does not call ncn_executor::worker::init first thing in main".into()));
        }
        let path = std::env::current_exe().map_err(|error| ExecutorError::Worker(error.to_string()))?;
        Ok(Self::new(path))
    }

    /// The same program as a worker that runs ONNX models by a library of ONNX Runtime, which it loads once it is confined.
    #[cfg(feature = "ort")]
    #[must_use]
    pub fn with_onnxruntime(mut self, library: &Library, device: Device, threads: Option<u32>) -> Self {
        let options = Options { library: library.path.clone(), device, threads };
        // A path that JSON has no form for: a worker without options would be another one, one with wrong options ends.
        self.arguments.push(serde_json::to_string(&options).unwrap_or_default());
        self.environment.extend(library.environment());
        self.paths.extend(library.directories());
        self.readable.extend(device.readable());
        self.devices.extend(device.files());
        Self { name: format!("ONNX Runtime on {device}"), formats: vec![ModelFormat::Onnx], ..self }
    }

    /// Another program that calls [`crate::worker::init`], such as `ncn`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            name: "built in".into(),
            path: path.into(),
            arguments: vec![WORKER_ARGUMENT.into()],
            environment: BTreeMap::new(),
            paths: Vec::new(),
            readable: Vec::new(),
            devices: Vec::new(),
            is_told_paths: false,
            processes: None,
            formats: EngineExecutor::built_in().formats(),
        }
    }
}
