//! The worker for models in Python, as an extension module: the operator's own interpreter, started confined, loads it and calls
//! `serve`. It speaks to the node over the interpreter's standard input and output, as every worker does.
//!
//! The interpreter loads the model once and forks for each request, so a request starts with everything loaded and leaves nothing
//! behind. Nothing here starts a thread: a fork would lose it.

#![cfg(unix)]

mod child;
#[cfg(target_os = "linux")]
mod confine;
mod descriptors;
mod failure;
mod fork;
mod frames;
mod model;
mod values;
mod worker;

/// What the interpreter sees.
#[pyo3::pymodule(name = "ncn_python")]
mod module {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::values::{File, Tensor};
    use crate::{child, worker};

    /// Serves the node until it closes the standard input.
    #[pyfunction]
    fn serve(py: Python<'_>) -> PyResult<()> {
        match worker::serve(py)? {
            worker::End::Closed => Ok(()),
            worker::End::Forked(job) => child::run(py, &job),
        }
    }
}
