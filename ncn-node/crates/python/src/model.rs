//! The model package's module, loaded.

use std::{ffi::CString, fs::File, sync::Arc};

use ncn_core::{
    ExecutorError, Model,
    executor::ModelPackage,
    model::{InputSpec, ModelFormat},
};
use pyo3::{prelude::*, types::PyModule};

use crate::{failure, system};

/// The largest module that is read.
const MAX_MODULE_BYTES: u64 = 16 << 20;

/// A model that is ready to run.
pub(crate) struct Loaded {
    pub(crate) model: Arc<Model>,
    pub(crate) infer: Py<PyAny>,
    /// True when `infer` takes the parameters too.
    pub(crate) takes_parameters: bool,
}

impl Loaded {
    /// Verifies every file of the package, runs its module and calls the module's `load`.
    pub(crate) fn load(py: Python<'_>, package: &ModelPackage) -> Result<Self, ExecutorError> {
        let manifest = package.model.manifest();
        if manifest.format != ModelFormat::Python {
            return Err(ExecutorError::UnsupportedFormat(manifest.format));
        }
        let invalid = |problem: String| ExecutorError::InvalidModel(format!("{}: {problem}", manifest.entry));
        let mut source = Vec::new();
        for file in &manifest.files {
            let is_entry = file.path == manifest.entry;
            if is_entry && file.bytes > MAX_MODULE_BYTES {
                return Err(invalid("is too large for a module: keep weights in files of their own".into()));
            }
            // Paths were checked when the manifest was parsed: relative, without `..`.
            let opened = File::open(package.directory.join(&file.path)).map_err(|error| file.invalid(error))?;
            let length = opened.metadata().map_err(|error| file.invalid(error))?.len();
            source = file.verify(opened, length, is_entry)?.unwrap_or(source);
        }
        let python = |error: PyErr| invalid(failure::describe(py, &error));
        let directory = package.directory.as_os_str();
        // What requests import is imported once, here.
        let _ = py.import("json");
        if manifest.inputs.iter().any(|input| matches!(input, InputSpec::Tensor(_))) {
            let _ = py.import("numpy");
        }
        let source = CString::new(source).map_err(|_| invalid("is no Python: it has a NUL byte".into()))?;
        let file = CString::new(package.directory.join(&manifest.entry).into_os_string().into_encoded_bytes())
            .map_err(|error| invalid(error.to_string()))?;
        // What was verified is what runs. Other modules of the package come after everything that is installed.
        py.import("sys").and_then(|sys| sys.getattr("path")?.call_method1("append", (directory,))).map_err(python)?;
        let module = PyModule::from_code(py, &source, &file, c"ncn_model").map_err(python)?;
        let function = |name: &str| match module.getattr(name) {
            Ok(function) if function.is_callable() => Ok(function),
            _ => Err(invalid(format!("has no function `{name}`: define load(model_dir) and infer(inputs)"))),
        };
        let infer = function("infer")?;
        // Libraries have threads for themselves; those that a load adds are there to compute.
        let threads = || system::threads().map_err(|error| ExecutorError::Worker(error.to_string()));
        let before = threads()?;
        function("load")?.call1((directory,)).map_err(python)?;
        let started = threads()?.saturating_sub(before);
        if started > 0 {
            let problem = format!(
                "load started {started} threads, which the forks that run requests do not have: load with one thread, as by \
                 intra_op_num_threads = 1 in ONNX Runtime, or start threads in infer"
            );
            return Err(invalid(problem));
        }
        let signature = py.import("inspect").and_then(|inspect| inspect.call_method1("signature", (&infer,)));
        let takes = signature.and_then(|signature| signature.getattr("parameters")?.len()).map_err(python)?;
        // What is there now is never garbage; a collection in a fork would only copy its pages.
        py.import("gc").and_then(|gc| gc.call_method0("freeze")).map_err(python)?;
        Ok(Self { infer: infer.unbind(), takes_parameters: takes > 1, model: package.model.clone() })
    }
}
