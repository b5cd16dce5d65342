//! The operator's own Python, as a worker.

use std::{
    collections::BTreeMap,
    env, fmt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ncn_core::model::ModelFormat;
use serde::Deserialize;
use tokio::process::Command;

use super::{INTERPRETER_VARIABLE, WorkerProgram};

/// Names the worker's extension module.
pub const WORKER_VARIABLE: &str = "NCN_PYTHON_WORKER";

/// The oldest version that loads the extension module.
const OLDEST: (u32, u32) = (3, 9);
/// Where Debian's systems say which of several libraries it is, such as for BLAS: links into /usr.
const ALTERNATIVES: &str = "/etc/alternatives";
/// Processes and threads of a worker besides those that requests run in: the worker, the template, what `load` starts for a while.
const PROCESSES: u32 = 64;
/// Threads of each request that runs.
const THREADS: u32 = 64;
/// As many requests run at once, as the worker has it.
const MAX_AT_ONCE: usize = 8;
/// How long an interpreter may take to tell what it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// The most characters of an interpreter's complaint that are passed on.
const MAX_COMPLAINT: usize = 2_000;

/// Tells what the interpreter is and has, without importing any of it.
const QUESTION: &str = "
import importlib.machinery, importlib.metadata, importlib.util, json, os, sys
def version(name):
    try: return importlib.metadata.version(name)
    except Exception: return 'unknown'
found = {name for name in ('numpy', 'onnxruntime', 'torch', 'safetensors', 'ncn_python') if importlib.util.find_spec(name)}
worker = importlib.util.find_spec('ncn_python').origin if 'ncn_python' in found else None
prefixes = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
paths = [path for path in prefixes + sys.path if os.path.isabs(path) and os.path.exists(path)]
print(json.dumps({
    'implementation': sys.implementation.name,
    'version': sys.version_info[:3],
    'executable': sys.executable,
    'paths': paths + [os.path.realpath(path) for path in paths],
    'packages': {name: version(name) for name in found - {'ncn_python'}},
    'worker': worker,
}))
";

/// Loads the extension module by its path and has it serve.
const BOOT: &str = "
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
loader = ExtensionFileLoader('ncn_python', sys.argv[1])
worker = sys.modules['ncn_python'] = module_from_spec(spec_from_loader('ncn_python', loader))
loader.exec_module(worker)
worker.serve(sys.argv[2:])
";

/// An interpreter that can be a worker.
#[derive(Clone, Debug)]
pub struct Python {
    /// Its path, which tells it which virtual environment it is in.
    pub interpreter: PathBuf,
    /// For example 3.12.1.
    pub version: String,
    /// Which of the libraries that models ask for are installed, and in which version.
    pub packages: BTreeMap<String, String>,
    /// The worker's extension module.
    pub worker: PathBuf,
    /// Where its libraries are.
    paths: Vec<PathBuf>,
}

/// Why models in Python cannot be run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PythonError {
    /// It does not start, or does not tell what it is.
    #[error("python: {interpreter} {problem}: install Python 3.9 or newer, or name one in {INTERPRETER_VARIABLE}")]
    Interpreter {
        /// What was started.
        interpreter: String,
        /// What went wrong.
        problem: String,
    },
    /// The extension module is nowhere.
    #[error(
        "python: there is no {name} in {tried}: build it with `cargo build --release -p ncn-python`, or name it in {WORKER_VARIABLE}"
    )]
    NoWorker {
        /// The file's name.
        name: String,
        /// Where it was looked for.
        tried: String,
    },
}

/// What an interpreter answers.
#[derive(Deserialize)]
struct Answer {
    implementation: String,
    version: (u32, u32, u32),
    executable: PathBuf,
    paths: Vec<PathBuf>,
    packages: BTreeMap<String, String>,
    worker: Option<PathBuf>,
}

impl Python {
    /// Finds an interpreter and the worker's extension module.
    ///
    /// The interpreter is the given one, that of the environment's `NCN_PYTHON`, or `python3`. It is asked once what it is: unconfined,
    /// since it is the operator's own. The extension module is the given one, that of `NCN_PYTHON_WORKER`, the one beside this program,
    /// or the one that is installed in the interpreter.
    pub async fn find(interpreter: Option<&Path>, worker: Option<&Path>) -> Result<Self, PythonError> {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let interpreter = interpreter.map(PathBuf::from).or_else(|| variable(INTERPRETER_VARIABLE));
        let interpreter = interpreter.unwrap_or_else(|| "python3".into());
        let answer = ask(&interpreter).await.map_err(|problem| {
            let interpreter = interpreter.display().to_string();
            PythonError::Interpreter { interpreter, problem }
        })?;
        let (major, minor, patch) = answer.version;
        Ok(Self {
            version: format!("{major}.{minor}.{patch}"),
            worker: find_worker(worker.map(PathBuf::from).or_else(|| variable(WORKER_VARIABLE)), answer.worker)?,
            interpreter: answer.executable,
            packages: answer.packages,
            paths: outermost(answer.paths),
        })
    }

    /// The program that runs models in it.
    pub fn program(&self) -> WorkerProgram {
        // A model computes with one thread: a fork would lose all others, and the node runs several forks at once.
        let threads = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"];
        let mut environment: BTreeMap<_, _> = threads.into_iter().map(|name| (name.to_owned(), "1".to_owned())).collect();
        environment.insert("TOKENIZERS_PARALLELISM".into(), "false".into());
        let mut paths = self.paths.clone();
        paths.push(self.worker.clone());
        paths.push(ALTERNATIVES.into());
        WorkerProgram {
            name: format!("Python {}", self.version),
            path: self.interpreter.clone(),
            // Isolated: no variables, no user's own packages, nothing from the current directory. And no bytecode is written.
            arguments: ["-I", "-B", "-c", BOOT].into_iter().map(str::to_owned).chain([self.worker.display().to_string()]).collect(),
            environment,
            paths,
            readable: Vec::new(),
            devices: Vec::new(),
            is_told_paths: true,
            processes: Some(PROCESSES + threads_at_once()),
            formats: vec![ModelFormat::Python],
        }
    }
}

/// For people: what was found.
impl fmt::Display for Python {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Python {} ({})", self.version, self.interpreter.display())?;
        self.packages.iter().try_for_each(|(name, version)| write!(f, ", {name} {version}"))
    }
}

/// As many as all requests together may have that run at once.
fn threads_at_once() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // A spare, too.
    u32::try_from(processors.min(MAX_AT_ONCE) + 1).unwrap_or(1) * THREADS
}

async fn ask(interpreter: &Path) -> Result<Answer, String> {
    let mut command = Command::new(interpreter);
    command.args(["-I", "-B", "-c", QUESTION]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ASK_TIMEOUT, command.output()).await;
    let output = output.map_err(|_| format!("does not answer within {ASK_TIMEOUT:?}"))?.map_err(|error| error.to_string())?;
    if !output.status.success() {
        let complaint: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(MAX_COMPLAINT).collect();
        return Err(format!("ends with {}: {complaint}", output.status));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|error| format!("does not tell what it is: {error}"))?;
    let (major, minor, patch) = answer.version;
    if answer.implementation != "cpython" || (major, minor) < OLDEST {
        return Err(format!("is {} {major}.{minor}.{patch}", answer.implementation));
    }
    Ok(answer)
}

fn find_worker(named: Option<PathBuf>, installed: Option<PathBuf>) -> Result<PathBuf, PythonError> {
    let name = format!("{}ncn_python{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let beside = || Some(env::current_exe().ok()?.parent()?.join(&name));
    let candidates: Vec<_> = match named {
        Some(named) => vec![named],
        None => beside().into_iter().chain(installed).collect(),
    };
    let found = candidates.iter().find(|path| path.is_file()).and_then(|path| path.canonicalize().ok());
    found.ok_or_else(|| {
        let tried: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        PythonError::NoWorker { name, tried: tried.join(" or ") }
    })
}

/// Without what lies in others; never the whole file system.
fn outermost(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.retain(|path| path.parent().is_some());
    paths.sort_unstable();
    // What lies in a directory comes after it.
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !kept.iter().any(|outer| path.starts_with(outer)) {
            kept.push(path);
        }
    }
    kept
}
