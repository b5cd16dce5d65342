//! Models in Python, in confined interpreters.

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
use ncn_node::{
    executor::{Python, PythonError, WorkerExecutor, WorkerOptions},
    sandbox::{LandlockSandbox, NamespaceSandbox, NoSandbox},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    scene::{digit, helper, ncn},
    wait::{PATIENCE, eventually},
};

const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");

/// The worker's extension module. Cargo has built it beside this test, which depends on it.
fn worker() -> PathBuf {
    env::current_exe().unwrap().with_file_name(format!("{}ncn_python{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX))
}

/// The Python that has numpy and ONNX Runtime.
pub(crate) async fn python() -> Python {
    let prepared = Path::new(DIRECTORY).join("../target/venv/bin/python");
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
    let source = Path::new(DIRECTORY).join("../examples/models").join(name);
    let model = Model::parse(fs::read(source.join("manifest.json")).unwrap()).unwrap();
    for file in &model.manifest().files {
        let here = source.join(&file.path);
        let from = if here.exists() { here } else { Path::new(DIRECTORY).join("models/digits").join(&file.path) };
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

#[tokio::test(flavor = "multi_thread")]
async fn a_generator_streams() {
    let package = talker(
        "for word in say.split():
    time.sleep(0.2)
    yield {'said': word + ' '}",
    );
    let executor = executor(&python().await);
    executor.load(&package.package).await.unwrap();
    let started = Instant::now();
    let mut outputs = executor.run(say(&package, "one two three", LONG)).await.unwrap();
    let mut parts = Vec::new();
    while let Some(chunk) = outputs.next().await {
        let chunk = chunk.unwrap();
        parts.push((chunk.values.text("said").map(str::to_owned), chunk.usage.is_some(), started.elapsed()));
    }
    let texts: Vec<_> = parts.iter().filter_map(|(text, ..)| text.as_deref()).collect();
    assert_eq!(texts, ["one ", "two ", "three "]);
    assert!(parts.iter().rev().skip(1).all(|(_, last, _)| !last) && parts.last().unwrap().1, "{parts:?}");
    assert!(parts[2].2 > parts[0].2 + Duration::from_millis(300), "as they come: {parts:?}");
    let (_, Usage { output_units, .. }) = executor.run_to_end(say(&package, "one two three", LONG)).await.unwrap();
    assert_eq!(output_units, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_and_out_through_a_private_directory() {
    let module = "import os
def load(model_dir): pass
def infer(inputs):
    with open(inputs['in']) as file: text = file.read()
    os.makedirs('results')
    with open('results/answer.json', 'w') as file: file.write(text.upper())
    seen = [inputs['in'].media_type] + sorted(os.listdir('.'))
    return {'out': 'results/answer.json', 'seen': ' '.join(seen)}
";
    let inputs = json!([{ "type": "file", "name": "in", "media_types": ["text/plain"] }]);
    let outputs = json!([{ "type": "file", "name": "out" }, { "type": "text", "name": "seen" }]);
    let package = package(module, &inputs, &outputs);
    let executor = executor(&python().await);
    executor.load(&package.package).await.unwrap();
    for _ in 0..3 {
        let file = Value::File { media_type: "text/plain".into(), data: (&b"hello"[..]).into() };
        let execution = Execution {
            model_digest: package.package.model.digest(),
            inputs: [("in", file)].into(),
            parameters: "{}".into(),
            time_limit: LONG,
        };
        let (values, _) = executor.run_to_end(execution).await.unwrap();
        let out = Value::File { media_type: "application/json".into(), data: (&b"HELLO"[..]).into() };
        // Nothing is left of the run before.
        assert_eq!(values, Values::from([("out", out), ("seen", "text/plain input-0 results".into())]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_pass_through_small_pipes() {
    let tensor = |name: &str| json!([{ "type": "tensor", "name": name, "dtype": "f32", "shape": ["n"] }]);
    let module = "def load(model_dir): pass\ndef infer(inputs): return {'y': inputs['x'] * 2}\n";
    let package = package(module, &tensor("x"), &tensor("y"));
    let executor = executor(&python().await);
    executor.load(&package.package).await.unwrap();
    // 7.5 MiB of the 8 that an output may have.
    let tensor = |value: f32| Tensor::from_f32(vec![15 << 17], &vec![value; 15 << 17]).unwrap();
    let run = async |value: f32| {
        let execution = Execution {
            model_digest: package.package.model.digest(),
            inputs: [("x", tensor(value))].into(),
            parameters: "{}".into(),
            time_limit: LONG,
        };
        executor.run_to_end(execution).await.unwrap().0
    };
    let answers = tokio::join!(run(1.0), run(2.0), run(3.0), run(4.0));
    for (answer, value) in [(answers.0, 2.0), (answers.1, 4.0), (answers.2, 6.0), (answers.3, 8.0)] {
        assert!(answer == Values::from([("y", tensor(value))]), "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_and_seeds_reach_the_model() {
    let package = talker(
        "import random, numpy
return {'said': '%s %s %s' % (parameters.get('x'), random.random(), numpy.random.rand())}",
    );
    let executor = executor(&python().await);
    executor.load(&package.package).await.unwrap();
    let run = async |parameters: &str| {
        let execution = Execution { parameters: parameters.into(), ..say(&package, "", LONG) };
        executor.run_to_end(execution).await.map(|(values, _)| values.text("said").unwrap().to_owned())
    };
    let seeded = run(r#"{"x": [1, "a"], "seed": 7}"#).await.unwrap();
    assert!(seeded.starts_with("[1, 'a'] "), "{seeded}");
    assert_eq!(run(r#"{"x": [1, "a"], "seed": 7}"#).await.unwrap(), seeded);
    let free = run("{}").await.unwrap();
    let again = run("{}").await.unwrap();
    let numbers = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (free, again) = (numbers(&free), numbers(&again));
    assert!(free[1] != again[1] && free[2] != again[2], "{free:?} {again:?}");
    for bad in ["[]", "{", r#"{"seed": -1}"#] {
        let refused = run(bad).await;
        assert!(matches!(&refused, Err(ExecutorError::InvalidInput(problem)) if problem.contains("parameters")), "{refused:?}");
    }
}

/// What a hostile or broken model does, and how the request fails.
pub(crate) const TROUBLE: &[(&str, &str)] = &[
    ("raise ValueError('no such thing')", "the model failed: ValueError: no such thing (model.py, line 6, in infer)"),
    ("class InvalidInput(Exception): pass\nraise InvalidInput('say: is rude')", "input say: is rude"),
    ("sys.exit(0)", "the model failed: SystemExit: 0"),
    ("os._exit(0)", "the model failed: its process ended without an answer, with exit status 0"),
    ("import ctypes\nctypes.string_at(0)", "the model failed: its process ended without an answer, by signal 11 (SIGSEGV)"),
    ("os.abort()", "the model failed: its process ended without an answer, by signal 6 (SIGABRT)"),
    ("os.closerange(3, 256)\ntime.sleep(1000)", "the model failed: its process ended without an answer, by signal 9 (SIGKILL)"),
    ("def down(n): return down(n + 1)\ndown(0)", "the model failed: RecursionError"),
    ("x = []\nwhile True: x.append(bytearray(1 << 24))", "the model failed: MemoryError"),
    (
        "import threading\nwhile True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        "the model failed: RuntimeError",
    ),
    // A pickle that runs a program: it is not run.
    (
        "import pickle\nreturn {'said': pickle.loads(b'cposix\\nsystem\\n(V/bin/true\\ntR.')}",
        "output `said`: the manifest says a text: give a str",
    ),
    ("while True: os.fork()", "the model failed: PermissionError"),
    ("os.posix_spawn('/bin/true', ['/bin/true'], {})", "the model failed: PermissionError"),
    ("os.kill(os.getppid(), 9)", "the model failed: PermissionError"),
    ("os.killpg(0, 9)", "the model failed: PermissionError"),
    ("import socket\nsocket.create_connection(('127.0.0.1', 1))", "the model failed: PermissionError"),
    ("open('../evil', 'w')", "the model failed: PermissionError"),
    ("open('/etc/passwd').read()", "the model failed: FileNotFoundError"),
    ("file = open('much', 'wb')\nwhile True: file.write(bytes(1 << 20))", "the model failed: OSError: [Errno 27]"),
    ("return {'said': 'x' * (17 << 20)}", "output has more than 8388608 bytes in one part"),
    ("return None", "output is a NoneType"),
    ("return {}", "output `said`: the model did not give this output"),
    ("return {'said': 1}", "output `said`: the manifest says a text: give a str"),
    ("return {'said': 'x', 'more': 'y'}", "output `more`: the manifest does not list this output"),
    ("return {'said': '\\ud800'}", "output `said`: "),
    (
        "print('x' * 100_000)\nos.write(1, b'y' * 100_000)\nos.write(2, b'z' * 100_000)\nraise KeyError",
        "the model failed: KeyError",
    ),
    (
        "for fd in range(3, 64):\n    try: os.write(fd, b'\\xff' * 64)\n    except OSError: pass\ntime.sleep(1000)",
        "the model failed: its process says",
    ),
];

/// The body of an `infer` that makes the trouble whose number it is told, and otherwise answers.
pub(crate) fn troubles() -> String {
    let cases = TROUBLE.iter().enumerate().fold(String::new(), |cases, (index, (body, _))| {
        cases + &format!("if say == '{index}':\n    def trouble():\n{}    return trouble()\n", indented(body, "        "))
    });
    format!("{cases}return {{'said': say + '!'}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_the_requests_own() {
    let python = python().await;
    let executor = executor(&python);
    let package = talker(&troubles());
    executor.load(&package.package).await.unwrap();
    let beside = say(&package, "beside", LONG);
    for (index, (body, expected)) in TROUBLE.iter().enumerate() {
        let index = index.to_string();
        let (failed, good) = tokio::join!(said(&executor, &package, &index), executor.run_to_end(beside.clone()));
        let error = failed.expect_err(body).to_string();
        let expected = expected.replace(" (model.py, line 6, in infer)", "");
        assert!(error.starts_with(&expected), "{body}: {error}");
        assert_eq!(good.unwrap().0.text("said"), Some("beside!"), "{body}");
        assert_eq!(said(&executor, &package, "after").await.as_deref(), Ok("after!"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_runs_end_and_leave_nothing() {
    let executor = executor(&python().await);
    let package = talker(
        "if say == 'loop':
    while True: pass
if say == 'sleep':
    time.sleep(1000)
if say == 'files':
    for n in range(1 << 62): open(str(n), 'w').close()
while say == 'stream':
    yield {'said': 'and '}
yield {'said': say}",
    );
    executor.load(&package.package).await.unwrap();
    let limit = Duration::from_secs(1);
    for text in ["loop", "sleep", "files", "stream"] {
        let started = Instant::now();
        let failed = executor.run_to_end(say(&package, text, limit)).await;
        let ended = match &failed {
            Err(ExecutorError::TimedOut(_) | ExecutorError::InvalidOutput(_)) => true,
            // A fast machine has made all the files that there may be before the time is over.
            Err(ExecutorError::Failed(reason)) => text == "files" && reason.contains("No space left"),
            _ => false,
        };
        assert!(ended, "{text}: {failed:?}");
        assert!(started.elapsed() < PATIENCE, "{text}: {:?}", started.elapsed());
        assert_eq!(said(&executor, &package, "after").await.as_deref(), Ok("after"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_run_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let executor = WorkerExecutor::new(vec![python().await.program()], Arc::new(NoSandbox), WorkerOptions::default());
    // Which process it is can be seen from outside, so that its end can be, too.
    let package = talker("yield {'said': str(os.getpid())}\ntime.sleep(1000)\n");
    executor.load(&package.package).await.unwrap();
    let mut outputs = executor.run(say(&package, "", LONG)).await.unwrap();
    let first = outputs.next().await.unwrap().unwrap();
    let process = Path::new("/proc").join(first.values.text("said").unwrap());
    assert!(process.exists());
    drop(outputs);
    eventually("it ends", async || !process.exists()).await;
    drop(directory);
}

/// What a module opens or duplicates while it is loaded leads from no request to another, and none to the node.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_opened_in_load_is_no_way_out_of_a_request() {
    let executor = executor(&python().await);
    let module = "import os, stat
def load(model_dir):
    global ways, weights
    ways = list(os.pipe()) + [os.open('kept', os.O_RDWR | os.O_CREAT)]
    # The worker's connection to its node, among others.
    ways += [os.dup(fd) for fd in range(3, 32) if is_pipe(fd)]
    weights = os.open(model_dir + '/model.py', os.O_RDONLY)
def is_pipe(fd):
    try: return stat.S_ISFIFO(os.fstat(fd).st_mode) or stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError: return False
def works(fd):
    try: return bool(os.write(fd, b'a secret'))
    except OSError: return False
def infer(inputs):
    assert os.pread(weights, 6, 0) == b'import'
    return {'said': f'{len(ways) > 3} {any(works(fd) for fd in ways)}'}
";
    let package = package(module, &json!([{ "type": "text", "name": "say" }]), &json!([{ "type": "text", "name": "said" }]));
    executor.load(&package.package).await.unwrap();
    for _ in 0..3 {
        assert_eq!(said(&executor, &package, "x").await.as_deref(), Ok("True False"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_that_cannot_be_loaded_are_refused() {
    let executor = executor(&python().await);
    let cases = [
        ("def infer(inputs): pass", "has no function `load`"),
        ("def load(model_dir): pass", "has no function `infer`"),
        ("load = infer = 1", "has no function `infer`"),
        ("def load(", "model.py: SyntaxError"),
        ("import nothing_like_this", "model.py: ModuleNotFoundError: No module named 'nothing_like_this' (model.py, line 1"),
        (
            "def load(model_dir): raise OSError('no weights')\ndef infer(inputs): pass",
            "OSError: no weights (model.py, line 1, in load)",
        ),
        ("def load(model_dir): open(model_dir + '/more', 'w')\ndef infer(inputs): pass", "Read-only file system"),
        (
            "import threading, time\ndef load(model_dir): threading.Thread(target=time.sleep, args=(1000,)).start()\ndef infer(inputs): pass",
            "load started 1 threads",
        ),
    ];
    for (module, expected) in cases {
        let package = package(module, &json!([{ "type": "text", "name": "x" }]), &json!([{ "type": "text", "name": "y" }]));
        let refused = executor.load(&package.package).await;
        assert!(
            matches!(&refused, Err(ExecutorError::InvalidModel(problem)) if problem.contains(expected)),
            "{module}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn what_is_missing_is_said_with_its_remedy() {
    let missing = Python::find(Some(Path::new("/nonexistent/python")), Some(&worker())).await.unwrap_err();
    assert!(matches!(missing, PythonError::Interpreter { .. }), "{missing}");
    assert!(missing.to_string().contains("NCN_PYTHON"), "{missing}");
    let other = Python::find(Some(Path::new("/bin/true")), Some(&worker())).await.unwrap_err();
    assert!(other.to_string().contains("does not tell what it is"), "{other}");
    let nowhere = Python::find(None, Some(Path::new("/nonexistent/worker"))).await.unwrap_err();
    assert!(nowhere.to_string().contains("cargo build -p ncn-python"), "{nowhere}");
}

/// Until the first part of an answer.
async fn first_byte(executor: &WorkerExecutor, execution: Execution) -> Duration {
    let started = Instant::now();
    let mut outputs = executor.run(execution).await.unwrap();
    outputs.next().await.unwrap().unwrap();
    let took = started.elapsed();
    // To its end: a dropped run is something else.
    while let Some(part) = outputs.next().await {
        part.unwrap();
    }
    took
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// What a warm worker saves: `cargo xtask bench compute`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn bench_first_bytes() {
    const ROUNDS: usize = 30;
    const PAUSE: Duration = Duration::from_millis(20);
    let python = python().await;
    println!("{python}\nfirst byte, confined, p50 of {ROUNDS} rounds that take turns\n");
    println!("| package | cold: start, import, load, run | warm, idle before | warm, back to back | cold / warm |");
    println!("| --- | --- | --- | --- | --- |");
    for name in ["digits-numpy", "digits-onnxruntime"] {
        let directory = tempfile::tempdir().unwrap();
        let package = example(name, directory.path());
        let execution = Execution {
            model_digest: package.model.digest(),
            inputs: [("image", Value::png(fs::read(digit(7)).unwrap()))].into(),
            parameters: "{}".into(),
            time_limit: LONG,
        };
        let warm = executor(&python);
        warm.load(&package).await.unwrap();
        let (mut cold, mut idle, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let fresh = executor(&python);
            let started = Instant::now();
            fresh.load(&package).await.unwrap();
            first_byte(&fresh, execution.clone()).await;
            cold.push(started.elapsed());
            drop(fresh);
            tokio::time::sleep(PAUSE).await;
            idle.push(first_byte(&warm, execution.clone()).await);
            busy.push(first_byte(&warm, execution.clone()).await);
        }
        let (cold, idle, busy) = (median(cold), median(idle), median(busy));
        let ratio = cold.as_secs_f64() / idle.as_secs_f64();
        println!("| {name} | {cold:.1?} | {idle:.2?} | {busy:.2?} | {ratio:.0} |");
        assert!(ratio >= 50.0, "{name}: {ratio}");
    }
}
