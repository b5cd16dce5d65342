//! `ncn model init`: a draft of a manifest, from the files that are there.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use ncn_executor::describe;
use ncn_models::MANIFEST_FILE;
use serde_json::{Value, json};

use crate::{Failure, sanitize, typed};

/// What a worker needs beside the model's files.
const LEAST_MEMORY: u64 = 256 << 20;
/// A price to begin with, in base units: a hundredth of a token.
const PRICE: &str = "10000000000000000";

/// Writes a draft into a directory that has a model's files, and no manifest yet.
pub(super) fn run(directory: &Path) -> Result<(), Failure> {
    let shown = sanitize(&directory.display().to_string());
    let refuse = |problem: String| Failure::Input(format!("DIRECTORY {shown}: {problem}"));
    let target = directory.join(MANIFEST_FILE);
    if target.exists() {
        return Err(refuse(format!("has a {MANIFEST_FILE} already: `ncn model pack` completes it")));
    }
    let entries = fs::read_dir(directory).map_err(|error| refuse(error.to_string()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()).collect();
    files.sort();
    let of =
        |extension: &str| files.iter().find(|path| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension)));
    let found = ["onnx", "gguf", "py"].into_iter().find_map(|extension| Some((extension, of(extension)?)));
    let (extension, entry) = found.ok_or_else(|| refuse("has no file of a model: .onnx, .gguf or .py".into()))?;
    let (format, inputs, outputs) = match extension {
        "onnx" => {
            let bytes = fs::read(entry).map_err(|error| refuse(error.to_string()))?;
            let (inputs, outputs) = describe(&bytes).map_err(|problem| refuse(format!("{}: {problem}", entry.display())))?;
            ("onnx", json!(inputs), json!(outputs))
        }
        "gguf" => {
            let text = |name: &str| json!({ "type": "text", "name": name, "optional": true });
            let given = |name: &str| json!({ "type": "text", "name": name });
            ("gguf", json!([text("prompt"), text("messages")]), json!([given("text"), given("finish_reason")]))
        }
        _ => {
            let text = json!([{ "type": "text", "name": "text" }]);
            ("python", text.clone(), text)
        }
    };
    let size: u64 = files.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
    let name = directory.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let draft: Value = json!({
        "name": name.unwrap_or_else(|| "model".into()).chars().take(64).map(plain).collect::<String>(),
        "version": "1.0.0",
        "task": "what-it-is-for",
        "description": "What it does, in one line.",
        "licence": "LicenseRef-unknown",
        "format": format,
        "entry": entry.file_name().map(|name| name.to_string_lossy().into_owned()),
        "files": [],
        "inputs": inputs,
        "outputs": outputs,
        "limits": { "memory_bytes": size.saturating_mul(2).max(LEAST_MEMORY), "deadline_ms": 60_000 },
        "price": PRICE,
    });
    let text = serde_json::to_string_pretty(&draft).map_err(Failure::failed)? + "\n";
    fs::write(&target, text).map_err(|error| refuse(error.to_string()))?;
    let mut out = std::io::stdout();
    writeln!(out, "wrote {}", sanitize(&target.display().to_string()))?;
    writeln!(out, "fill in task, description, licence, limits and price; then: ncn model pack {}", typed(directory))?;
    Ok(())
}
