//! What a model is run on, from the command line.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use ncn_core::{
    Model, Tensor, Value, Values,
    model::{Dimension, InputSpec, Preprocessing, TensorInput},
};

use crate::{Failure, files::read_input, sanitize};

#[derive(clap::Args)]
pub(crate) struct InputArguments {
    /// A file to run it on; NAME says for which of the model's inputs, the next one by default
    #[arg(long = "input", value_name = "[NAME=]FILE", required_unless_present = "text")]
    files: Vec<OsString>,
    /// A text to run it on; NAME says for which of the model's inputs, the next one by default
    #[arg(long, value_name = "[NAME=]TEXT")]
    text: Vec<String>,
}

/// What was given, read before anybody is asked anything.
pub(crate) struct ParsedInputs {
    files: Vec<(Option<String>, PathBuf, Vec<u8>)>,
    texts: Vec<String>,
}

impl InputArguments {
    pub(crate) fn read(&self) -> Result<ParsedInputs, Failure> {
        let mut files = Vec::new();
        for file in &self.files {
            // A path may have `=` in it: what exists is a path.
            let bytes = file.as_bytes();
            let split = bytes.iter().position(|byte| *byte == b'=').and_then(|at| Some((bytes.get(..at)?, bytes.get(at + 1..)?)));
            let (name, path) = match split {
                Some((name, path)) if !Path::new(file).exists() => {
                    (Some(String::from_utf8_lossy(name).into_owned()), PathBuf::from(OsStr::from_bytes(path)))
                }
                _ => (None, PathBuf::from(file)),
            };
            let bytes = read_input(&path)?;
            files.push((name, path, bytes));
        }
        Ok(ParsedInputs { files, texts: self.text.clone() })
    }
}

impl ParsedInputs {
    /// The files that were read.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(_, path, _)| path.as_path())
    }

    /// The model's inputs.
    pub(crate) fn inputs(self, model: &Model) -> Result<Values, Failure> {
        let manifest = model.manifest();
        let mut values = Values::new();
        for (name, path, bytes) in self.files {
            let refuse = |problem: String| Failure::Input(format!("--input {}: {problem}", sanitize(&path.display().to_string())));
            let is_free = |input: &&InputSpec| !matches!(input, InputSpec::Text(_)) && values.get(input.name()).is_none();
            let named = |input: &&InputSpec| name.as_ref().is_none_or(|name| input.name() == name);
            let input = manifest.inputs.iter().filter(is_free).find(named);
            let input = input.ok_or_else(|| refuse(format!("the model takes no such file; it takes: {}", names(model))))?;
            values.insert(input.name(), file(input, bytes, &path).map_err(refuse)?);
        }
        for text in self.texts {
            let is_free = |input: &&InputSpec| matches!(input, InputSpec::Text(_)) && values.get(input.name()).is_none();
            // A text may have `=` in it: only an input's name is one.
            let named = text.split_once('=').filter(|(name, _)| manifest.inputs.iter().any(|input| input.name() == *name));
            let (name, text) = named.map_or((None, text.as_str()), |(name, text)| (Some(name), text));
            let input = manifest.inputs.iter().filter(is_free).find(|input| name.is_none_or(|name| input.name() == name));
            let refuse = || Failure::Input(format!("--text: the model takes no such text; it takes: {}", names(model)));
            values.insert(input.ok_or_else(refuse)?.name(), text);
        }
        manifest.check(&values).map_err(|error| Failure::Input(format!("input {}: {}", error.name, error.problem)))?;
        Ok(values)
    }
}

fn names(model: &Model) -> String {
    model.manifest().inputs.iter().map(InputSpec::name).collect::<Vec<_>>().join(", ")
}

/// A file as this input.
fn file(input: &InputSpec, bytes: Vec<u8>, path: &Path) -> Result<Value, String> {
    let InputSpec::Tensor(TensorInput { dtype, shape, from, .. }) = input else {
        return Ok(Value::File { media_type: media_type(path).into(), data: bytes.into() });
    };
    match from {
        Some(Preprocessing::Image { .. }) => Ok(Value::png(bytes)),
        Some(Preprocessing::Bytes { .. }) => Ok(Value::File { media_type: media_type(path).into(), data: bytes.into() }),
        _ => {
            let fixed = |dimension: &Dimension| match dimension {
                Dimension::Fixed(size) => Ok(*size),
                Dimension::Named(name) => Err(format!("the size of `{name}` is not known for a file of plain numbers")),
            };
            let shape = shape.iter().map(fixed).collect::<Result<_, _>>()?;
            Ok(Tensor::new(*dtype, shape, bytes).map_err(|error| error.to_string())?.into())
        }
    }
}

/// By the file's name.
fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("wav") => "audio/wav",
        Some("txt" | "md") => "text/plain",
        Some("json") => "application/json",
        _ => "application/octet-stream",
    }
}
