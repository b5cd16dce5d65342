//! Models in Python, in confined interpreters.

mod neighbours;
mod runs;
pub(crate) mod trouble;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use ncn_core::{
    Execution, Executor as _, ExecutorError, ExecutorExt as _, Model, Sandbox, Tensor, Usage, Value, Values,
    conformance::{self, ExecutorFixture},
    executor::ModelPackage,
};
use ncn_executor::{
    Python, PythonError, WorkerExecutor, WorkerOptions,
    sandbox::{LandlockSandbox, NamespaceSandbox, NoSandbox},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    scene::{digit, helper, ncn, repository},
    wait::{TIMEOUT, eventually},
};

/// The worker's extension module. Cargo has built it beside this test, which depends on it.
fn worker() -> PathBuf {
    env::current_exe().unwrap().with_file_name(format!("{}ncn_python{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX))
}

/// The Python that has numpy and ONNX Runtime.
pub(crate) async fn python() -> Python {
    let prepared = repository("target/venv/bin/python");
    let interpreter = env::var_os("NCN_PYTHON").map_or(prepared, PathBuf::from);
    let python = Python::find(Some(&interpreter), Some(&worker())).await.unwrap();
    let needed = ["numpy", "onnxruntime"].iter().all(|name| python.packages.contains_key(*name));
    assert!(needed, "{python}: run `cargo xtask setup`, which prepares one that has all that is needed");
    python
}

/// Workers of this Python, confined by every layer.
pub(crate) fn executor(python: &Python) -> WorkerExecutor {
    executor_in(python, Arc::new(NamespaceSandbox::new(helper()).unwrap()))
}

fn executor_in(python: &Python, sandbox: Arc<dyn Sandbox>) -> WorkerExecutor {
    let options = WorkerOptions { at_least: sandbox.confinement(), ..WorkerOptions::default() };
    WorkerExecutor::new(vec![python.program()], sandbox, options)
}

/// A package that is written for a test.
pub(crate) struct Package {
    pub(crate) package: ModelPackage,
    _directory: tempfile::TempDir,
}

pub(crate) fn package(module: &str, inputs: &serde_json::Value, outputs: &serde_json::Value) -> Package {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("model.py"), module).unwrap();
    packed(directory, &["model.py"], inputs, outputs)
}

/// The package of these files.
pub(crate) fn packed(
    directory: tempfile::TempDir,
    files: &[&str],
    inputs: &serde_json::Value,
    outputs: &serde_json::Value,
) -> Package {
    let listed = files.iter().map(|name| {
        let bytes = fs::read(directory.path().join(name)).unwrap();
        json!({ "path": name, "bytes": bytes.len(), "sha256": hex::encode(Sha256::digest(&bytes)) })
    });
    let manifest = json!({
        "name": "test", "version": "1", "task": "test", "description": "test", "licence": "MIT",
        "format": "python", "entry": "model.py", "files": listed.collect::<Vec<_>>(),
        "inputs": inputs, "outputs": outputs,
        "limits": { "memory_bytes": 256 << 20, "deadline_ms": 120_000 }, "price": "1",
    });
    let model = Arc::new(Model::parse(manifest.to_string()).unwrap());
    let package = ModelPackage { model, directory: directory.path().canonicalize().unwrap() };
    Package { package, _directory: directory }
}

/// The lines, further to the right.
fn indented(lines: &str, by: &str) -> String {
    lines.trim_end().lines().fold(String::new(), |all, line| all + by + line + "\n")
}

/// A package whose `infer` takes the text `say` and does `body`, with the text `said` as its output.
pub(crate) fn talker(body: &str) -> Package {
    let head = "import os, sys, time\ndef load(model_dir): pass\ndef infer(inputs, parameters):\n    say = inputs['say']\n";
    let module = format!("{head}{}", indented(body, "    "));
    package(&module, &json!([{ "type": "text", "name": "say" }]), &json!([{ "type": "text", "name": "said" }]))
}

pub(crate) fn say(package: &Package, text: &str, limit: Duration) -> Execution {
    Execution {
        model_digest: package.package.model.digest(),
        inputs: [("say", text)].into(),
        parameters: "{}".into(),
        time_limit: limit,
    }
}

const LONG: Duration = Duration::from_mins(5);

pub(crate) async fn said(executor: &WorkerExecutor, package: &Package, text: &str) -> Result<String, ExecutorError> {
    executor.run_to_end(say(package, text, LONG)).await.map(|(values, _)| values.text("said").unwrap().to_owned())
}

/// An example's package, with the files that it shares with others.
fn example(name: &str, directory: &Path) -> ModelPackage {
    let source = repository("examples/models").join(name);
    let model = Model::parse(fs::read(source.join("manifest.json")).unwrap()).unwrap();
    for file in &model.manifest().files {
        let here = source.join(&file.path);
        let from = if here.exists() { here } else { repository("ncn-node/models/digits").join(&file.path) };
        fs::copy(from, directory.join(&file.path)).unwrap();
    }
    ModelPackage { model: Arc::new(model), directory: directory.to_path_buf() }
}

fn digits(name: &str, directory: &Path) -> ExecutorFixture {
    let (good, bad) = (directory.join("good"), directory.join("bad"));
    fs::create_dir_all(&good).unwrap();
    fs::create_dir_all(&bad).unwrap();
    let corrupt = example(name, &bad);
    let last = corrupt.model.manifest().files.last().unwrap().path.clone();
    let mut bytes = fs::read(bad.join(&last)).unwrap();
    bytes[1_000] ^= 1;
    fs::write(bad.join(&last), bytes).unwrap();
    ExecutorFixture {
        package: example(name, &good),
        corrupt: Some(corrupt),
        inputs: [("image", Value::png(fs::read(digit(7)).unwrap()))].into(),
        outputs: [("label", "7")].into(),
        bad_inputs: [("image", Value::png(&b"no image"[..]))].into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numpy_keeps_the_contract_at_every_level() {
    let python = python().await;
    let reduced = LandlockSandbox::new(ncn()).unwrap();
    let sandboxes: [Arc<dyn Sandbox>; 3] =
        [Arc::new(NamespaceSandbox::new(helper()).unwrap()), Arc::new(reduced), Arc::new(NoSandbox)];
    for sandbox in sandboxes {
        let directory = tempfile::tempdir().unwrap();
        let level = sandbox.confinement();
        let executor = executor_in(&python, sandbox);
        let kept = conformance::executor(&executor, &digits("digits-numpy", directory.path())).await;
        kept.unwrap_or_else(|broken| panic!("{level}: {broken}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn onnx_runtime_from_python_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let executor = executor(&python().await);
    conformance::executor(&executor, &digits("digits-onnxruntime", directory.path())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_digit_is_read_alike_by_numpy_and_onnx_runtime() {
    let directory = tempfile::tempdir().unwrap();
    let executor = executor(&python().await);
    for name in ["digits-numpy", "digits-onnxruntime"] {
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        let package = example(name, &place);
        executor.load(&package).await.unwrap();
        for number in 0..10 {
            let image = Value::png(fs::read(digit(number)).unwrap());
            let execution = Execution {
                model_digest: package.model.digest(),
                inputs: [("image", image)].into(),
                parameters: "{}".into(),
                time_limit: LONG,
            };
            let (values, usage) = executor.run_to_end(execution).await.unwrap();
            assert_eq!(values.text("label"), Some(number.to_string().as_str()), "{name}");
            assert_eq!((usage.input_units, usage.output_units), (1, 1));
        }
    }
}

/// Every interpreter that can be found, whatever it has installed.
async fn interpreters() -> Vec<Python> {
    let mut candidates: Vec<PathBuf> = env::var_os("NCN_PYTHON").map(PathBuf::from).into_iter().collect();
    candidates.push("python3".into());
    candidates.extend((9..=14).map(|minor| format!("python3.{minor}").into()));
    let home = env::var_os("PYENV_ROOT").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".pyenv")));
    let versions = home.and_then(|home| fs::read_dir(home.join("versions")).ok()).into_iter().flatten();
    candidates.extend(versions.map(|version| version.unwrap().path().join("bin/python3")));
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for candidate in candidates {
        // Older ones, and names that stand for nothing, are refused.
        if let Ok(python) = Python::find(Some(&candidate), Some(&worker())).await
            && seen.insert(python.interpreter.clone())
        {
            found.push(python);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_is_loaded_by_every_interpreter() {
    let module = "import sys
def load(model_dir): pass
def infer(inputs):
    yield {'version': '%d.%d.%d' % sys.version_info[:3]}
    yield {'y': inputs['x']}
";
    let tensor = json!({ "type": "tensor", "name": "x", "dtype": "i64", "shape": [2] });
    let outputs = json!([{ "type": "tensor", "name": "y", "dtype": "i64", "shape": [2] }, { "type": "text", "name": "version" }]);
    let package = package(module, &json!([tensor]), &outputs);
    let interpreters = interpreters().await;
    assert!(!interpreters.is_empty(), "there is a python3");
    for python in interpreters {
        let executor = executor(&python);
        executor.load(&package.package).await.unwrap_or_else(|error| panic!("{python}: {error}"));
        let data: Vec<u8> = [1_i64, -2].iter().flat_map(|number| number.to_le_bytes()).collect();
        let tensor = Tensor::new(ncn_core::DataType::I64, vec![2], data).unwrap();
        let execution = Execution {
            model_digest: package.package.model.digest(),
            inputs: [("x", tensor.clone())].into(),
            parameters: String::from("{}"),
            time_limit: LONG,
        };
        // Where there is no numpy, a tensor is plain.
        let (values, _) = executor.run_to_end(execution).await.unwrap_or_else(|error| panic!("{python}: {error}"));
        assert_eq!(values, Values::from([("y", Value::from(tensor)), ("version", python.version.as_str().into())]));
        println!("{python}");
    }
}

/// Makes a TorchScript model and a safetensors file that hold the same weights.
const TORCH_FILES: &str = "
import torch, safetensors.torch
layer = torch.nn.Linear(4, 2)
torch.jit.script(layer).save('script.pt')
safetensors.torch.save_file(dict(layer.state_dict()), 'weights.safetensors')
";

/// Runs both. They agree, or the request fails.
const TORCH_MODULE: &str = "
import torch, safetensors.torch
def load(model_dir):
    global script, layer
    script = torch.jit.load(model_dir + '/script.pt')
    layer = torch.nn.Linear(4, 2)
    layer.load_state_dict(safetensors.torch.load_file(model_dir + '/weights.safetensors'))
def infer(inputs):
    x = torch.from_numpy(inputs['x'])
    with torch.no_grad():
        y = script(x)
        assert torch.equal(y, layer(x))
    return {'y': y.numpy()}
";

#[tokio::test(flavor = "multi_thread")]
async fn torch_runs_torchscript_and_safetensors() {
    let has = |python: &Python| ["torch", "safetensors"].iter().all(|name| python.packages.contains_key(*name));
    let Some(python) = interpreters().await.into_iter().find(has) else {
        println!("skipped: no interpreter here has torch and safetensors; name one that has in NCN_PYTHON");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let made = std::process::Command::new(&python.interpreter).args(["-c", TORCH_FILES]).current_dir(&directory).status();
    assert!(made.unwrap().success());
    fs::write(directory.path().join("model.py"), TORCH_MODULE).unwrap();
    let tensor = |name: &str, size: usize| json!([{ "type": "tensor", "name": name, "dtype": "f32", "shape": ["batch", size] }]);
    let executor = executor(&python);
    let package = packed(directory, &["model.py", "script.pt", "weights.safetensors"], &tensor("x", 4), &tensor("y", 2));
    executor.load(&package.package).await.unwrap();
    let execution = Execution {
        model_digest: package.package.model.digest(),
        inputs: [("x", Tensor::from_f32(vec![3, 4], &[0.5; 12]).unwrap())].into(),
        parameters: "{}".into(),
        time_limit: LONG,
    };
    let (values, usage) = executor.run_to_end(execution).await.unwrap();
    assert_eq!(values.get("y").unwrap().as_tensor().unwrap().shape(), [3, 2]);
    assert_eq!((usage.input_units, usage.output_units), (3, 3));
    println!("{python}");
}

/// A package may come with compiled code of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_package_has_libraries_of_its_own() {
    let python = python().await;
    let library =
        fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path().join("libm.so.6")).find(|path| path.exists());
    let library = library.unwrap_or_else(|| "/usr/lib64/libm.so.6".into());
    let module = "import ctypes, os\nLIBRARY = None\n\ndef load(model_dir):\n    global LIBRARY\n    LIBRARY = ctypes.CDLL(os.path.join(model_dir, 'own.so'))\n    LIBRARY.cos.restype = ctypes.c_double\n\ndef infer(inputs, parameters):\n    return {'said': str(LIBRARY.cos(ctypes.c_double(0)))}\n";
    let reduced = LandlockSandbox::new(ncn()).unwrap();
    let sandboxes: [Arc<dyn Sandbox>; 2] = [Arc::new(NamespaceSandbox::new(helper()).unwrap()), Arc::new(reduced)];
    for sandbox in sandboxes {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("model.py"), module).unwrap();
        fs::copy(&library, directory.path().join("own.so")).unwrap();
        let (say, given) = (json!([{ "type": "text", "name": "say" }]), json!([{ "type": "text", "name": "said" }]));
        let package = packed(directory, &["model.py", "own.so"], &say, &given);
        let executor = executor_in(&python, sandbox);
        executor.load(&package.package).await.unwrap();
        assert_eq!(said(&executor, &package, "").await.unwrap(), "1.0");
    }
}
