//! A fork of the interpreter: runs `infer` once and ends.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ncn_core::{
    ExecutorError, Manifest, OutputChunk, StreamBudget, Tensor, Unit, Usage, Value, Values,
    model::{InputError, OutputSpec, Tensors},
};
use ncn_wire::{
    self as wire, MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES,
    proto::{FromWorker, RunModel, ToWorker, from_worker, to_worker},
};
use prost::Message as _;
use pyo3::prelude::*;
use rustix::{
    event::{Timespec, poll},
    process::getppid,
};

use crate::{
    confine, descriptors, failure,
    frames::{Incoming, frame},
    model::Loaded,
    template::Place,
    values,
};

/// How long a fork may take to become the worker's child.
const PARENT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a fork begins with.
pub(crate) struct Job {
    pub(crate) model: Loaded,
    /// Where its request comes from, and where its answers go.
    pub(crate) request: File,
    pub(crate) answers: File,
    pub(crate) place: Place,
    /// The request's directory, where it is, or why it is not.
    pub(crate) directory: Result<PathBuf, String>,
    /// What the package has registered to run in forks, a list.
    pub(crate) hooks: Py<PyAny>,
}

/// An error, as the protocol has it.
pub(crate) fn error_message(error: &ExecutorError) -> from_worker::Message {
    from_worker::Message::Error(serde_json::to_string(error).unwrap_or_default())
}

impl Job {
    /// Takes one request and answers it.
    pub(crate) fn serve(&self, py: Python<'_>) -> io::Result<()> {
        // All that can be done before the request comes.
        let prepared = self.prepare(py);
        let mut messages = Incoming::new(&self.request, MAX_MESSAGE_BYTES);
        let message = loop {
            match messages.next::<ToWorker>()? {
                Some(ToWorker { message, .. }) => break message,
                None if messages.read()? => {}
                // It is not needed.
                None => return Ok(()),
            }
        };
        let Some(to_worker::Message::Run(run)) = message else { return Err(io::Error::other("not a request")) };
        let prepared = prepared.map_err(|problem| ExecutorError::Worker(format!("a fork could not be made ready: {problem}")));
        let answer = match prepared.and_then(|directory| self.run(py, run, &directory)) {
            Ok(chunk) => from_worker::Message::Chunk(chunk.into()),
            Err(error) => error_message(&error),
        };
        self.send(answer)
    }

    /// Sends all parts of the output but the last, which is returned.
    fn run(&self, py: Python<'_>, run: RunModel, directory: &Path) -> Result<OutputChunk, ExecutorError> {
        let started = Instant::now();
        let Loaded { model, infer, takes_parameters } = &self.model;
        let manifest = model.manifest();
        let sent = wire::values_from_proto(run.inputs).map_err(|error| ExecutorError::Worker(error.to_string()))?;
        // Tensors of tokens are left out: a module in Python makes its own.
        let tensors = manifest.prepare(&sent, None).map_err(|error| ExecutorError::InvalidInput(error.to_string()))?;
        seed(py, &run.parameters)?;
        let inputs = values::inputs(py, manifest, &tensors, &sent, directory)?;
        let raised = |error: PyErr| failure::of_infer(py, &error);
        let infer = infer.bind(py);
        let given = if *takes_parameters {
            let parameters = py.import("json").and_then(|json| json.call_method1("loads", (&run.parameters,)));
            parameters.and_then(|parameters| infer.call1((inputs, parameters)))
        } else {
            infer.call1((inputs,))
        };
        let given = given.map_err(raised)?;

        let streams = given.hasattr("__next__").unwrap_or(false);
        let mut budget = StreamBudget::default();
        let input_units = match manifest.price().input.unit {
            Unit::Image => images(&sent),
            _ => rows(tensors.values().next()),
        };
        let usage = |output_units| Usage {
            input_units,
            output_units,
            duration_micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        let counts_images = manifest.price().output.unit == Unit::Image;
        let (all, parts) = if streams {
            let count = |all: &Values, parts: u64| usage(if counts_images { images(all) } else { parts });
            self.stream(py, manifest, &given, &mut budget, count)?
        } else {
            let all = values::outputs(manifest, &given)?;
            let units = rows(all.iter().find_map(|(_, value)| value.as_tensor()));
            (all, units)
        };
        let output_units = if counts_images { images(&all) } else { parts };
        let whole = finish(manifest, all.clone(), &tensors).map_err(|error| ExecutorError::InvalidOutput(error.to_string()))?;
        // What was sent already is not sent again.
        let sent = if streams { all } else { Values::new() };
        let values = whole.into_iter().filter(|(name, value)| sent.get(name) != Some(value)).collect();
        budget.take(&values).map_err(|limit| ExecutorError::InvalidOutput(limit.to_string()))?;
        Ok(OutputChunk::last(values, usage(output_units)))
    }

    /// Sends what a generator gives as it comes, each part with what `count` makes of all parts so far. Returns all of it together, and how
    /// many parts it had.
    fn stream(
        &self,
        py: Python<'_>,
        manifest: &Manifest,
        given: &Bound<'_, PyAny>,
        budget: &mut StreamBudget,
        count: impl Fn(&Values, u64) -> Usage,
    ) -> Result<(Values, u64), ExecutorError> {
        let invalid = |problem: String| ExecutorError::InvalidOutput(problem);
        let raised = |error: PyErr| failure::of_infer(py, &error);
        let mut all = Values::new();
        let mut parts = 0;
        for part in given.try_iter().map_err(raised)? {
            let values = values::outputs(manifest, &part.map_err(raised)?)?;
            budget.take(&values).map_err(|limit| invalid(limit.to_string()))?;
            manifest.check_part(&values).map_err(|error| invalid(error.to_string()))?;
            parts += 1;
            all.append(values.clone());
            let part = OutputChunk { values, usage: count(&all, parts), finish: None };
            let sent = self.send(from_worker::Message::Chunk(part.into()));
            sent.map_err(|error| ExecutorError::Worker(format!("the output cannot be sent: {error}")))?;
        }
        Ok((all, parts))
    }

    /// Confines the process further, and gives it random numbers of its own.
    fn prepare(&self, py: Python<'_>) -> Result<PathBuf, String> {
        let directory = self.directory.clone()?;
        let until = Instant::now() + PARENT_TIMEOUT;
        while getppid() != Some(self.place.worker) {
            if Instant::now() > until {
                return Err("it is not the worker's child".into());
            }
            let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 50_000 }));
        }
        let highest = descriptors::close_channels(&[self.request.as_raw_fd(), self.answers.as_raw_fd()]);
        let highest = highest.map_err(|error| error.to_string())?;
        confine::request(&self.place, u64::try_from(highest).unwrap_or_default()).map_err(|error| error.to_string())?;
        // As Python does: the newest last, and what fails is left.
        if let Ok(hooks) = self.hooks.bind(py).try_iter() {
            hooks.flatten().for_each(|hook| drop(hook.call0()));
        }
        let environment = py.import("os").and_then(|os| os.getattr("environ"));
        let set = environment.and_then(|environment| {
            ["HOME", "TMPDIR"].into_iter().try_for_each(|name| environment.set_item(name, directory.as_os_str()))
        });
        set.map_err(|error| error.to_string())?;
        // It remembers where temporary files were to be.
        let modules = py.import("sys").and_then(|sys| sys.getattr("modules"));
        let tempfile = modules.and_then(|modules| modules.get_item("tempfile"));
        let forgotten = tempfile.map_or(Ok(()), |tempfile| tempfile.setattr("tempdir", py.None()));
        forgotten.map_err(|error| error.to_string())?;
        seed(py, "{}").map_err(|error| error.to_string())?;
        values::rehearse(py)?;
        Ok(directory)
    }

    fn send(&self, message: from_worker::Message) -> io::Result<()> {
        let mut message = FromWorker { id: 0, message: Some(message) };
        if message.encoded_len() > MAX_ANSWER_BYTES {
            let error = ExecutorError::InvalidOutput(format!("has more than {MAX_ANSWER_BYTES} bytes"));
            message.message = Some(error_message(&error));
        }
        (&self.answers).write_all(&frame(&message))
    }
}

/// The outputs as the manifest promises them, with what is read off tensors.
fn finish(manifest: &Manifest, outputs: Values, inputs: &Tensors) -> Result<Values, InputError> {
    if !manifest.outputs.iter().all(|output| matches!(output, OutputSpec::Tensor(_))) {
        return manifest.check_outputs(&outputs).map(|()| outputs);
    }
    let tensors = outputs.into_iter().filter_map(|(name, value)| Some((name, value.as_tensor()?.clone())));
    manifest.finish(tensors.collect(), inputs)
}

/// Seeds what makes random numbers: from the parameters' `seed`, or else so that no two requests draw the same.
fn seed(py: Python<'_>, parameters: &str) -> Result<(), ExecutorError> {
    let invalid = |problem: &dyn std::fmt::Display| ExecutorError::InvalidInput(format!("parameters: {problem}"));
    let parameters: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(parameters).map_err(|error| invalid(&format!("are no JSON object: {error}")))?;
    let seed = match parameters.get("seed") {
        None => None,
        Some(seed) => Some(seed.as_u64().ok_or_else(|| invalid(&"seed is an integer from 0 to 2^64 - 1"))?),
    };
    let plant = || -> PyResult<()> {
        let modules = py.import("sys")?.getattr("modules")?;
        if let Some(seed) = seed {
            // Without one, the fork has seeded it anew.
            py.import("random")?.call_method1("seed", (seed,))?;
        }
        // It is loaded when it is first used; then it seeds itself, so that matters only for a given seed.
        if modules.contains(if seed.is_some() { "numpy" } else { "numpy.random" })? {
            py.import("numpy.random")?.call_method1("seed", (seed.map(|seed| seed & u64::from(u32::MAX)),))?;
        }
        if modules.contains("torch")? {
            let torch = py.import("torch")?;
            seed.map_or_else(|| torch.call_method0("seed"), |seed| torch.call_method1("manual_seed", (seed,)))?;
        }
        Ok(())
    };
    plant().map_err(|error| invalid(&error))
}

/// How many of these values are images.
fn images(values: &Values) -> u64 {
    let is_image = |value: &Value| matches!(value, Value::File { media_type, .. } if media_type.starts_with("image/"));
    values.iter().filter(|(_, value)| is_image(value)).count() as u64
}

/// The rows of a batch; 1 of anything that is no batch.
fn rows(tensor: Option<&Tensor>) -> u64 {
    tensor.and_then(|tensor| tensor.shape().first()).map_or(1, |rows| *rows as u64)
}
