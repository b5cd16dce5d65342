//! Finding the library. It is looked for in the node's process and loaded in a worker's: what was found says what that worker may read.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, process::Command};

use super::Unusable;

/// Environment variables that name the library; the second is the one that other programs use, too.
const VARIABLES: [&str; 2] = ["NCN_ONNXRUNTIME", "ORT_DYLIB_PATH"];
/// What the library's file is called, before its version.
#[cfg(target_os = "macos")]
const NAME: &str = "libonnxruntime.";
#[cfg(not(target_os = "macos"))]
const NAME: &str = "libonnxruntime.so";
/// Where systems have their libraries.
const SYSTEM: [&str; 7] = [
    "/usr/local/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/opt/onnxruntime/lib",
    "/opt/homebrew/lib",
];
/// Says where two packages are, as JSON, without importing them.
const ASK_PYTHON: &str = "\
import importlib.util, json
def find(name):
    spec = importlib.util.find_spec(name)
    return [str(path) for path in (spec and spec.submodule_search_locations) or []]
print(json.dumps([find('onnxruntime'), find('nvidia')]))";
/// How long Python may take to say so, and how much it may say.
const PYTHON_TIMEOUT: Duration = Duration::from_secs(30);
const PYTHON_ANSWER: u64 = 64 << 10;

/// Where to look for ONNX Runtime. What is named here, or by an environment variable, is taken or refused; only when nothing is named,
/// Python's packages and the system's libraries are looked through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// The library's file, or the directory that it is in.
    pub library: Option<PathBuf>,
    /// The Python interpreter whose packages are looked through; `python3` by default.
    pub python: Option<PathBuf>,
}

/// Who said where a library is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// The node's configuration.
    Configuration,
    /// The environment variable with this name.
    Environment(String),
    /// The package `onnxruntime`, `onnxruntime-gpu` or another one with the same module, of this Python interpreter.
    Python(PathBuf),
    /// It is among the system's libraries.
    System,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration => f.write_str("the configuration"),
            Self::Environment(variable) => f.write_str(variable),
            Self::Python(interpreter) => write!(f, "the packages of {}", interpreter.display()),
            Self::System => f.write_str("the system's libraries"),
        }
    }
}

/// A library's file. Whether it can be used, only [`super::probe`] knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// The file itself, no link.
    pub path: PathBuf,
    /// Who said so.
    pub source: Source,
    /// Directories with libraries that CUDA's provider needs, as far as they are Python packages too.
    pub cuda: Vec<PathBuf>,
}

impl Library {
    fn new(path: PathBuf, source: Source) -> Self {
        Self { path, source, cuda: Vec::new() }
    }

    /// The directories that a worker has to be able to read, whose files it maps as code.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.path.parent().map(Path::to_path_buf).into_iter().chain(self.cuda.iter().cloned()).collect()
    }

    /// What a worker needs in its environment: where the system's loader finds libraries of libraries.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let paths: Vec<_> = self.cuda.iter().map(|path| path.to_string_lossy()).collect();
        if paths.is_empty() { BTreeMap::new() } else { BTreeMap::from([("LD_LIBRARY_PATH".into(), paths.join(":"))]) }
    }
}

/// Every library there is, the one to be preferred first. Nothing is loaded. An error says that there is none where one was said to be.
pub async fn find(search: &Search) -> Result<Vec<Library>, Unusable> {
    find_with(search, |variable| std::env::var_os(variable).filter(|value| !value.is_empty())).await
}

async fn find_with(search: &Search, variable: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Library>, Unusable> {
    let from_variable = |name: &&str| Some((PathBuf::from(variable(name)?), Source::Environment((*name).into())));
    let configured = search.library.clone().map(|path| (path, Source::Configuration));
    if let Some((named, source)) = configured.or_else(|| VARIABLES.iter().find_map(from_variable)) {
        let library = at(&named).ok_or(Unusable::Missing { path: named })?;
        return Ok(vec![Library::new(library, source)]);
    }
    let interpreter = search.python.clone().or_else(|| variable(crate::INTERPRETER_VARIABLE).map(PathBuf::from));
    let interpreter = interpreter.unwrap_or_else(|| "python3".into());
    let mut found = python(&interpreter).await;
    let paths = variable("LD_LIBRARY_PATH").unwrap_or_default();
    let directories = std::env::split_paths(&paths).filter(|path| path.is_absolute()).chain(SYSTEM.iter().map(PathBuf::from));
    for path in directories.filter_map(|directory| at(&directory)) {
        if !found.iter().any(|library| library.path == path) {
            found.push(Library::new(path, Source::System));
        }
    }
    Ok(found)
}

/// The library at this path, or the newest one in this directory. Its path is told to workers as text.
fn at(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok().filter(|path| path.to_str().is_some())?;
    if path.is_file() {
        return Some(path);
    }
    let entries = path.read_dir().ok()?.filter_map(Result::ok);
    let libraries = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME));
    let files = libraries.filter_map(|entry| entry.path().canonicalize().ok()).filter(|path| path.is_file());
    files.max_by_key(|path| numbers(path))
}

/// The numbers in a file's name: those of its version.
fn numbers(path: &Path) -> Vec<u64> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The version in a library's file name, when it has one with a minor number.
pub(super) fn version_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let version = name.strip_prefix(NAME)?.trim_start_matches('.').trim_end_matches(".dylib");
    (version.contains('.') && version.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit())).then(|| version.into())
}

/// The library in this interpreter's packages. No interpreter, no package: no library.
async fn python(interpreter: &Path) -> Vec<Library> {
    let answer = match tokio::time::timeout(PYTHON_TIMEOUT, ask(interpreter)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!(interpreter = %interpreter.display(), %error, "no Python to ask for ONNX Runtime");
            return Vec::new();
        }
        Err(_) => {
            tracing::warn!(interpreter = %interpreter.display(), "Python did not say in time where ONNX Runtime is");
            return Vec::new();
        }
    };
    let Ok([packages, nvidia]) = serde_json::from_slice::<[Vec<PathBuf>; 2]>(&answer) else { return Vec::new() };
    let entries = nvidia.iter().filter_map(|path| path.read_dir().ok()).flatten().filter_map(Result::ok);
    let mut cuda: Vec<_> = entries.map(|entry| entry.path().join("lib")).filter(|path| path.is_dir()).collect();
    cuda.sort();
    let source = Source::Python(interpreter.to_path_buf());
    let libraries = packages.iter().filter_map(|package| at(&package.join("capi")));
    libraries.map(|path| Library { cuda: cuda.clone(), ..Library::new(path, source.clone()) }).collect()
}

async fn ask(interpreter: &Path) -> std::io::Result<Vec<u8>> {
    // A name alone is looked for in the search path.
    let is_path = interpreter.parent().is_some_and(|parent| !parent.as_os_str().is_empty());
    let mut command = Command::new(if is_path { std::path::absolute(interpreter)? } else { interpreter.to_path_buf() });
    // In the root directory: the current one would be looked through for packages first.
    command.args(["-c", ASK_PYTHON]).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn()?;
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(PYTHON_ANSWER).read_to_end(&mut answer).await?;
    }
    child.wait().await?;
    Ok(answer)
}
