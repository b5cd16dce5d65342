//! Python's exceptions as the executor's errors.

use ncn_core::ExecutorError;
use pyo3::{exceptions::PyMemoryError, prelude::*, types::PyTraceback};

/// The most characters of an exception's message that are passed on.
const MAX_CHARACTERS: usize = 1_000;
/// The most frames of a traceback that are walked.
const MAX_FRAMES: usize = 1_000;
/// An exception class of this name, whoever defines it, says that the inputs are at fault.
const INVALID_INPUT: &str = "InvalidInput";

/// What `infer` raised.
pub(crate) fn of_infer(py: Python<'_>, error: &PyErr) -> ExecutorError {
    let class = error.get_type(py).name().map(|name| name.to_string()).unwrap_or_default();
    if class == INVALID_INPUT {
        return ExecutorError::InvalidInput(message(py, error));
    }
    if error.is_instance_of::<PyMemoryError>(py) {
        return ExecutorError::Failed(format!("{}: it needs more than the manifest's limits.memory_bytes", describe(py, error)));
    }
    ExecutorError::Failed(describe(py, error))
}

/// The exception's class, message and place.
pub(crate) fn describe(py: Python<'_>, error: &PyErr) -> String {
    let class = error.get_type(py).name().map(|name| name.to_string()).unwrap_or_default();
    let place = error.traceback(py).and_then(|traceback| place(traceback).ok());
    let message = message(py, error);
    let colon = if message.is_empty() { "" } else { ": " };
    format!("{class}{colon}{message}{}", place.unwrap_or_default())
}

fn message(py: Python<'_>, error: &PyErr) -> String {
    // `str` of an exception is the model's code, which may fail as well.
    let text = error.value(py).str().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    text.chars().take(MAX_CHARACTERS).collect()
}

/// Where it was raised, with the file's name only: paths are the operator's business.
fn place(traceback: Bound<'_, PyTraceback>) -> PyResult<String> {
    let mut last = traceback.into_any();
    for _ in 0..MAX_FRAMES {
        let next = last.getattr("tb_next")?;
        if next.is_none() {
            break;
        }
        last = next;
    }
    let code = last.getattr("tb_frame")?.getattr("f_code")?;
    let (path, function): (String, String) = (code.getattr("co_filename")?.extract()?, code.getattr("co_name")?.extract()?);
    let file = path.rsplit('/').next().unwrap_or_default();
    Ok(format!(" ({file}, line {}, in {function})", last.getattr("tb_lineno")?))
}
