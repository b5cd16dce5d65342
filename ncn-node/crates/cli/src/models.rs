//! `ncn models`: what a gateway offers, and for how much.

use std::io::{self, Write as _};

use ncn_core::{
    ModelInfo,
    model::{
        Dimension, GenerationParameters, InputSpec, Manifest, OutputSpec, ParameterSet, Postprocessing, Preprocessing, TensorOutput,
    },
};
use serde_json::json;

use crate::{Failure, account::gateway, block_on, sanitize};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The gateway
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:50051")]
    gateway: String,
    /// Print one JSON array instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let transport = gateway(&arguments.gateway)?;
        let mut models = transport.models().await.map_err(Failure::failed)?;
        models.sort_by(|a, b| a.model.manifest().name.cmp(&b.model.manifest().name));
        let mut out = io::stdout().lock();
        if arguments.json {
            let all: Vec<_> = models.iter().map(to_json).collect();
            return Ok(writeln!(out, "{:#}", json!(all))?);
        }
        if models.is_empty() {
            writeln!(out, "the gateway offers no models")?;
        }
        for (index, info) in models.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            print(&mut out, info)?;
        }
        Ok(())
    })
}

/// The parameters that are known by name, and whether the model may take others.
fn parameters(manifest: &Manifest) -> (&'static [&'static str], bool) {
    match manifest.parameters() {
        ParameterSet::Generation => (&GenerationParameters::NAMES, false),
        ParameterSet::Open => (&["seed"], true),
        _ => (&[], false),
    }
}

fn to_json(info: &ModelInfo) -> serde_json::Value {
    let manifest = info.model.manifest();
    let (parameters, others) = parameters(manifest);
    json!({
        "name": manifest.name,
        "version": manifest.version,
        "price": info.price,
        "typical_units": info.typical_units,
        "least_timeout_seconds": info.least_timeout.as_secs(),
        "task": manifest.task,
        "description": manifest.description,
        "licence": manifest.licence,
        "digest": info.model.digest(),
        "subnet": info.subnet,
        "inputs": manifest.inputs,
        "outputs": manifest.outputs,
        "parameters": parameters,
        "other_parameters": others,
    })
}

fn print(out: &mut impl io::Write, info: &ModelInfo) -> io::Result<()> {
    let manifest = info.model.manifest();
    writeln!(out, "{} {}: {}", sanitize(&manifest.name), sanitize(&manifest.version), info.price)?;
    writeln!(out, "  {}", sanitize(&manifest.description))?;
    for input in &manifest.inputs {
        writeln!(out, "  input       {}", sanitize(&input_line(input)))?;
    }
    for output in &manifest.outputs {
        writeln!(out, "  output      {}", sanitize(&output_line(output)))?;
    }
    let (names, others) = parameters(manifest);
    let mut names = names.join(", ");
    if names.is_empty() {
        "none".clone_into(&mut names);
    } else if others {
        names.push_str(", and the model's own");
    }
    writeln!(out, "  parameters  {names}")?;
    writeln!(out, "  digest      {}", info.model.digest())
}

fn tensor(dtype: ncn_core::DataType, shape: &[Dimension]) -> String {
    let size = |dimension: &Dimension| match dimension {
        Dimension::Fixed(size) => size.to_string(),
        Dimension::Named(name) => name.clone(),
    };
    format!("{dtype} [{}]", shape.iter().map(size).collect::<Vec<_>>().join(", "))
}

fn input_line(input: &InputSpec) -> String {
    let (kind, optional) = match input {
        InputSpec::Text(text) => ("text".to_owned(), text.optional),
        InputSpec::File(file) if file.media_types.is_empty() => ("file".to_owned(), file.optional),
        InputSpec::File(file) => (format!("file, {}", file.media_types.join(" or ")), file.optional),
        InputSpec::Tensor(input) => {
            let tensor = tensor(input.dtype, &input.shape);
            let kind = match &input.from {
                Some(Preprocessing::Image { width, height, .. }) => format!("PNG of {width}x{height} pixels, or {tensor}"),
                Some(Preprocessing::Bytes { .. }) => format!("any file, or {tensor}"),
                Some(Preprocessing::Tokens { text, .. }) => format!("made of the text {text}, or {tensor}"),
                _ => tensor,
            };
            (kind, false)
        }
        _ => ("of a kind that this program does not know".to_owned(), false),
    };
    format!("{}: {kind}{}", input.name(), if optional { " (optional)" } else { "" })
}

fn output_line(output: &OutputSpec) -> String {
    match output {
        OutputSpec::Text(text) => format!("{}: text", text.name),
        OutputSpec::File(file) => format!("{}: file", file.name),
        OutputSpec::Tensor(TensorOutput { name, dtype, shape, to }) => match to {
            Some(Postprocessing::Labels(labels)) => format!("{name}: {}, and a label of {}", tensor(*dtype, shape), labels.len()),
            Some(Postprocessing::Mean { name, .. }) => format!("{name}: the average of {}", tensor(*dtype, shape)),
            _ => format!("{name}: {}", tensor(*dtype, shape)),
        },
        _ => format!("{}: of a kind that this program does not know", output.name()),
    }
}
