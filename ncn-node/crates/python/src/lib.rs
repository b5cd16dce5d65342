//! The worker for models in Python, as an extension module: the operator's own interpreter, started confined, loads it and calls
//! `serve`. It speaks to the node over the interpreter's standard input and output, as every worker does.
//!
//! The worker forks a process that loads the model, and has that one fork for each request, so a request starts with everything loaded and
//! leaves nothing behind. What a package does runs in these forks; the worker itself, which sees all requests, runs nothing of it. Nothing
//! here starts a thread: a fork would lose it.

#![cfg(target_os = "linux")]

mod child;
mod confine;
mod descriptors;
mod failure;
mod fork;
mod frames;
mod model;
mod system;
mod template;
mod values;
mod worker;

/// What the interpreter sees.
#[pyo3::pymodule(name = "ncn_python")]
mod module {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        path::PathBuf,
    };

    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::values::{File, Tensor};
    use crate::{template, worker};

    /// Serves the node until it closes the standard input. What models may read is given as paths.
    #[pyfunction]
    fn serve(py: Python<'_>, readable: Vec<PathBuf>) -> PyResult<()> {
        let Some(start) = worker::serve(py, readable)? else { return Ok(()) };
        // From here on in a fork, which must not go on with what was its parent's, whatever happens.
        let done = catch_unwind(AssertUnwindSafe(|| match template::serve(py, start) {
            Ok(Some(job)) => job.serve(py).is_ok(),
            done => done.is_ok(),
        }));
        template::exit(py, i32::from(!matches!(done, Ok(true))))
    }
}
