//! ONNX Runtime, whose library is found and loaded at run time.

mod device;
mod library;
mod probe;
mod tensor;

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ::ort::{
    LoadDynamicError,
    environment::Environment,
    ep::{CUDA, ExecutionProvider as _, cuda::ConvAlgorithmSearch},
    logging::LogLevel,
    session::{RunOptions, Session, builder::SessionBuilder},
};
use ncn_core::{
    DataType, ExecutorError, Tensor,
    model::{Manifest, Tensors},
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use device::{Device, DeviceError};
pub use library::{Library, Search, Source, find};
pub(crate) use probe::{ARGUMENT, run as run_probe};
pub use probe::{Probed, diagnose, probe};

use super::{Graph, Runtime, outlet};
use crate::Verified;

/// The oldest minor version that can be used: 1.20.
const MINOR_VERSION: u32 = ::ort::MINOR_VERSION;

/// How ONNX Runtime is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The library's file.
    pub library: PathBuf,
    /// What computes.
    pub device: Device,
    /// How many threads compute one request of a model whose manifest does not say; one for each processor core by default.
    pub threads: Option<u32>,
}

/// Why a library is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unusable {
    /// It is not there.
    #[error("{path}: no library of ONNX Runtime: name its file, or the directory that it is in")]
    Missing {
        /// Where it was said to be.
        path: PathBuf,
    },
    /// The system's loader refuses it.
    #[error("{path} cannot be loaded: {problem}")]
    Load {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        problem: String,
    },
    /// It is another library.
    #[error("{path} is not ONNX Runtime")]
    Foreign {
        /// The library.
        path: PathBuf,
    },
    /// It is too old.
    #[error("{path} is ONNX Runtime {version}: it has to be 1.{MINOR_VERSION} or newer")]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// It cannot compute on this device.
    #[error("{path} has nothing for {device}: install onnxruntime-gpu, or choose the device cpu")]
    NoProvider {
        /// The library.
        path: PathBuf,
        /// The device.
        device: Device,
    },
    /// It can be loaded, but does not work.
    #[error("{path} does not work on {device}: {problem}")]
    Broken {
        /// The library.
        path: PathBuf,
        /// The device.
        device: Device,
        /// What it says.
        problem: String,
    },
    /// A process has room for one library.
    #[error("{path} cannot be loaded: this process has already loaded {loaded}")]
    Another {
        /// The library.
        path: PathBuf,
        /// The library that is there.
        loaded: PathBuf,
    },
}

/// ONNX Runtime. Its library is loaded with the first model, which runs code of it: worth doing only where models run. A process has room
/// for one library, which is never unloaded.
pub struct OnnxRuntime {
    options: Options,
}

static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

impl OnnxRuntime {
    /// To be used like this.
    pub const fn new(options: Options) -> Self {
        Self { options }
    }

    /// Loads the library, if that was not done yet.
    fn load(&self) -> Result<Environment, Unusable> {
        let Options { library: path, device, .. } = self.options.clone();
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let environment = match &*loaded {
            Some((other, environment)) if *other == path => environment.clone(),
            Some((other, _)) => return Err(Unusable::Another { path, loaded: other.clone() }),
            None => loaded.insert((path.clone(), environment(&path)?)).1.clone(),
        };
        drop(loaded);
        let provided = match device {
            Device::Cpu => true,
            Device::Cuda(_) => has_cuda(),
        };
        if provided { Ok(environment) } else { Err(Unusable::NoProvider { path, device }) }
    }

    /// Reads a graph, to be computed by this many threads.
    fn session(&self, environment: &Environment, graph: &[u8], threads: Option<u32>) -> ::ort::Result<Session> {
        let threads = threads.or(self.options.threads).unwrap_or_default() as usize;
        configure(Session::builder(environment)?, self.options.device, threads)?.commit_from_memory(graph)
    }
}

/// True when the loaded library was built for CUDA.
fn has_cuda() -> bool {
    CUDA::is_available().unwrap_or_default()
}

fn environment(path: &Path) -> Result<Environment, Unusable> {
    if !path.is_absolute() || !path.is_file() {
        return Err(Unusable::Missing { path: path.into() });
    }
    let loaded = ::ort::init_from(path).map_err(|error| match error {
        LoadDynamicError::Dlopen { error, path } => {
            // The error itself only says that something did not work.
            let problem = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Unusable::Load { path, problem }
        }
        LoadDynamicError::BadVersion { version_str, path } => Unusable::TooOld { path, version: version_str },
        _ => Unusable::Foreign { path: path.into() },
    });
    let environment = loaded?.with_name("ncn").with_telemetry(false).build();
    let environment =
        environment.map_err(|error| Unusable::Broken { path: path.into(), device: Device::Cpu, problem: error.to_string() })?;
    // What goes wrong is in the errors. A worker's standard error is the node's.
    environment.set_log_level(LogLevel::Fatal);
    Ok(environment)
}

/// Options by which equal inputs give equal outputs, unless the graph has random operators, and idle threads sleep.
fn configure(builder: SessionBuilder, device: Device, threads: usize) -> ::ort::Result<SessionBuilder> {
    let builder = builder
        .with_log_level(LogLevel::Fatal)?
        .with_deterministic_compute(true)?
        .with_parallel_execution(false)?
        .with_intra_threads(threads)?
        .with_intra_op_spinning(false)?;
    Ok(match device {
        Device::Cpu => builder,
        Device::Cuda(number) => {
            // Sums in the short TF32 format would differ from everyone else's in the fourth digit.
            let cuda = CUDA::default().with_device_id(number.into()).with_tf32(false);
            let cuda = cuda.with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic);
            builder.with_execution_providers([cuda.build().error_on_failure()])?
        }
    })
}

/// A graph that was read. One run at a time, since the library's sessions are not safe for more on every device; a run has the
/// session's threads to itself.
struct Loaded {
    session: Mutex<Session>,
    /// Names and types of what it gives.
    outputs: Vec<(String, DataType)>,
    tokio: Handle,
}

impl Runtime for OnnxRuntime {
    fn open(&self, package: &mut Verified) -> Result<Box<dyn Graph>, ExecutorError> {
        let manifest = package.model.manifest();
        let invalid = |problem: String| ExecutorError::InvalidModel(format!("{}: {problem}", manifest.entry));
        let tokio = Handle::try_current().map_err(|error| ExecutorError::Worker(error.to_string()))?;
        let bytes = std::mem::take(&mut package.entry);
        let environment = self.load().map_err(|error| ExecutorError::Worker(error.to_string()))?;
        let session = self.session(&environment, &bytes, manifest.limits.threads).map_err(|error| invalid(error.to_string()))?;
        check(&session, manifest).map_err(invalid)?;
        Ok(Box::new(Loaded { session: Mutex::new(session), outputs: super::outputs(manifest), tokio }))
    }
}

fn check(session: &Session, manifest: &Manifest) -> Result<(), String> {
    let inputs: Vec<_> = session.inputs().iter().map(tensor::outlet).collect();
    let outputs: Vec<_> = session.outputs().iter().map(tensor::outlet).collect();
    outlet::check(manifest, &inputs, &outputs)
}

impl Graph for Loaded {
    fn run(&self, inputs: &Tensors, cancel: &CancellationToken) -> Result<Tensors, ExecutorError> {
        let failed = |error: ::ort::Error| {
            if cancel.is_cancelled() { ExecutorError::Cancelled } else { ExecutorError::Failed(error.to_string()) }
        };
        let value = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor::to_value(name, tensor)?));
        let values = inputs.iter().map(value).collect::<Result<Vec<_>, ExecutorError>>()?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if cancel.is_cancelled() {
            return Err(ExecutorError::Cancelled);
        }
        let options = Arc::new(RunOptions::new().map_err(failed)?);
        let _watch = {
            let (cancel, options) = (cancel.clone(), options.clone());
            // It stops between two of the graph's operators.
            AbortOnDropHandle::new(self.tokio.spawn(async move {
                cancel.cancelled().await;
                drop(options.terminate());
            }))
        };
        let outputs = session.run_with_options(values, &options).map_err(failed)?;
        let given = self.outputs.iter().map(|(name, data_type)| {
            let value =
                outputs.get(name).ok_or_else(|| ExecutorError::InvalidOutput(format!("`{name}`: the model did not give it")))?;
            Ok((name.clone(), tensor::from_value(name, value, *data_type)?))
        });
        given.collect()
    }
}
