//! ONNX Runtime: found, tried, loaded in confined workers, and as good as the built-in runtime.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use ncn_core::{
    DataType, Execution, Executor, ExecutorError, ExecutorExt as _, Model, Tensor, Value, Values, conformance,
    executor::ModelPackage,
};
use ncn_devnet::quickstart;
use ncn_executor::{
    EngineExecutor, OnnxEngine, WorkerExecutor, WorkerOptions, WorkerProgram,
    onnxruntime::{Device, Library, OnnxRuntime, Options, Search, Source, Unusable, diagnose, find, probe},
    sandbox::LandlockSandbox,
};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use crate::{
    conformance::digits,
    engines,
    expected::{embeds_texts, hears_silence, labels_files, package},
    scene::ncn,
    wait::TIMEOUT,
};

/// Adds `x` to zero, `count` times.
const LOOPS: &[u8] = include_bytes!("../data/loops.onnx");

async fn library() -> Library {
    find(&Search { library: None, python: Some(engines::python()) }).await.unwrap().remove(0)
}

/// In this process, with its own threads.
async fn in_process(threads: u32) -> EngineExecutor {
    let options = Options { library: library().await.path, device: Device::Cpu, threads: Some(threads) };
    EngineExecutor::new(vec![Box::new(OnnxEngine::new(OnnxRuntime::new(options)))])
}

/// In confined workers.
async fn confined() -> WorkerExecutor {
    let program = WorkerProgram::new(ncn()).with_onnxruntime(&library().await, Device::Cpu, Some(1));
    crate::expected::confined(vec![program])
}

fn tensor(name: &str, dtype: &str, shape: &[u64]) -> Json {
    json!({ "type": "tensor", "name": name, "dtype": dtype, "shape": shape })
}

/// A package of one ONNX file.
struct Package {
    package: ModelPackage,
    _directory: tempfile::TempDir,
}

fn made_of(onnx: &[u8], inputs: &[Json], output: &Json) -> Package {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("model.onnx"), onnx).unwrap();
    let manifest = json!({
        "name": "model", "version": "1", "task": "test", "description": "A model.", "licence": "MIT", "format": "onnx",
        "entry": "model.onnx",
        "files": [{ "path": "model.onnx", "bytes": onnx.len(), "sha256": hex::encode(Sha256::digest(onnx)) }],
        "inputs": inputs, "outputs": [output],
        "limits": { "memory_bytes": 512 << 20, "deadline_ms": 60_000 }, "price": "1",
    });
    let model = Arc::new(Model::parse(manifest.to_string()).unwrap());
    Package { package: ModelPackage { model, directory: directory.path().into() }, _directory: directory }
}

fn loops(onnx: &[u8]) -> Package {
    made_of(onnx, &[tensor("count", "i64", &[1]), tensor("x", "f32", &[1])], &tensor("y", "f32", &[1]))
}

fn execution(package: &ModelPackage, inputs: Values) -> Execution {
    let time_limit = TIMEOUT;
    Execution { model_digest: package.model.digest(), inputs, parameters: "{}".into(), time_limit }
}

fn times(count: i64) -> Values {
    let count = Tensor::new(DataType::I64, vec![1], count.to_le_bytes().to_vec()).unwrap();
    Values::from([("count", count), ("x", Tensor::from_f32(vec![1], &[1.5]).unwrap())])
}

fn floats(values: &Values, name: &str) -> Vec<f32> {
    values.get(name).unwrap().as_tensor().unwrap().to_f32().unwrap()
}

/// One and a half, so many times.
async fn adds(executor: &dyn Executor, package: &Package, count: i64) -> Vec<f32> {
    let run = executor.run_to_end(execution(&package.package, times(count)));
    floats(&run.await.unwrap().0, "y")
}

#[tokio::test]
async fn it_is_found_and_tried() {
    let library = library().await;
    assert!(matches!(&library.source, Source::Python(python) if *python == engines::python()), "{library:?}");
    assert_eq!(library.directories(), [library.path.parent().unwrap()]);
    let program = WorkerProgram::new(ncn());
    let probed = probe(&program, &library, Device::Cpu).await.unwrap();
    assert_eq!((probed.version.as_str(), probed.cuda), ("1.32.0", false));
    let refused = probe(&program, &library, "cuda:1".parse().unwrap()).await.unwrap_err();
    assert_eq!(refused, Unusable::NoProvider { path: library.path.clone(), device: Device::Cuda(1) });
    assert!(refused.to_string().contains("onnxruntime-gpu"), "{refused}");

    // Named by its directory, and by its file.
    let directory = library.path.parent().unwrap().to_path_buf();
    for path in [directory, library.path.clone()] {
        let found = find(&Search { library: Some(path), python: None }).await.unwrap();
        assert_eq!(found, [Library { path: library.path.clone(), source: Source::Configuration, cuda: Vec::new() }]);
        let tried = diagnose(&program, &Search { library: Some(library.path.clone()), python: None }, Device::Cpu).await.unwrap();
        assert_eq!(tried, [(found[0].clone(), Ok(probed.clone()))]);
    }
}

/// A library that is none, or not a good one, in Rust.
fn imitation(directory: &Path, code: &str) -> PathBuf {
    let (source, library) = (directory.join("imitation.rs"), directory.join("libonnxruntime.so.1.99.0"));
    std::fs::write(&source, code).unwrap();
    let rustc = Command::new("rustc").args(["--crate-type=cdylib", "--edition=2024", "-o"]).args([&library, &source]).status();
    assert!(rustc.unwrap().success());
    library
}

#[tokio::test]
async fn what_cannot_be_used_says_why() {
    let empty = tempfile::tempdir().unwrap();
    for missing in [empty.path().to_path_buf(), empty.path().join("libonnxruntime.so")] {
        let refused = find(&Search { library: Some(missing.clone()), python: None }).await;
        assert_eq!(refused, Err(Unusable::Missing { path: missing }));
    }
    let program = WorkerProgram::new(ncn());
    let tried = async |path: PathBuf| {
        let library = find(&Search { library: Some(path), python: None }).await.unwrap().remove(0);
        probe(&program, &library, Device::Cpu).await.unwrap_err()
    };
    let text = empty.path().join("libonnxruntime.so.1.30.0");
    std::fs::write(&text, "no library".repeat(1_000)).unwrap();
    let refused = tried(text).await;
    assert!(matches!(&refused, Unusable::Load { problem, .. } if problem.contains("invalid ELF header")), "{refused}");

    let directory = tempfile::tempdir().unwrap();
    let refused = tried(imitation(directory.path(), "#[unsafe(no_mangle)] pub extern \"C\" fn other() {}")).await;
    assert!(matches!(refused, Unusable::Foreign { .. }), "{refused}");
    let old = r#"
        #[repr(C)] pub struct Base(extern "C" fn(u32) -> *const u8, extern "C" fn() -> *const u8);
        extern "C" fn api(_: u32) -> *const u8 { std::ptr::null() }
        extern "C" fn version() -> *const u8 { c"1.16.3".as_ptr().cast() }
        static BASE: Base = Base(api, version);
        #[unsafe(no_mangle)] pub extern "C" fn OrtGetApiBase() -> *const Base { &BASE }"#;
    let refused = tried(imitation(directory.path(), old)).await;
    assert!(matches!(&refused, Unusable::TooOld { version, .. } if version == "1.16.3"), "{refused}");
    assert!(refused.to_string().ends_with("it has to be 1.20 or newer"), "{refused}");
    // Says that it is new, and has nothing.
    let refused = tried(imitation(directory.path(), &old.replace("1.16.3", "1.40.0"))).await;
    assert!(matches!(refused, Unusable::Broken { .. }), "{refused}");
    let crashes = "#[unsafe(no_mangle)] pub extern \"C\" fn OrtGetApiBase() -> *const u8 { std::process::abort() }";
    let refused = tried(imitation(directory.path(), crashes)).await;
    assert!(matches!(&refused, Unusable::Broken { problem, .. } if problem.contains("SIGABRT")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_why_its_library_is_of_no_use() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("libonnxruntime.so.1.30.0");
    std::fs::write(&text, "no library").unwrap();
    let library = find(&Search { library: Some(text), python: None }).await.unwrap().remove(0);
    let program = WorkerProgram::new(ncn());
    let sandbox = Arc::new(LandlockSandbox::new(&program.path).unwrap());
    let programs = vec![program.with_onnxruntime(&library, Device::Cpu, None)];
    let executor = WorkerExecutor::new(programs, sandbox, WorkerOptions::default());
    let model = tempfile::tempdir().unwrap();
    let refused = executor.load(&quickstart::unpack(model.path()).unwrap()).await;
    assert!(matches!(&refused, Err(ExecutorError::Worker(problem)) if problem.contains("cannot be loaded")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_in_process() {
    let directory = tempfile::tempdir().unwrap();
    conformance::executor(&in_process(1).await, &digits(directory.path())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_in_a_confined_worker() {
    let directory = tempfile::tempdir().unwrap();
    conformance::executor(&confined().await, &digits(directory.path())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gives_what_is_expected() {
    let executor = confined().await;
    labels_files(&executor).await;
    hears_silence(&executor).await;
    embeds_texts(&executor).await;
}

/// The built-in runtime and this one give the same numbers, to a ten-thousandth of the largest.
#[tokio::test(flavor = "multi_thread")]
async fn the_runtimes_agree() {
    let executors: [Box<dyn Executor>; 2] = [Box::new(EngineExecutor::built_in()), Box::new(in_process(2).await)];
    let noise = |shape: Vec<usize>| {
        // Anything from -1 to 1 that does not repeat itself.
        let values: Vec<_> = (0_u16..).take(shape.iter().product()).map(|at| (f32::from(at) * 12.9898).sin()).collect();
        Value::from(Tensor::from_f32(shape, &values).unwrap())
    };
    let file = Value::File { media_type: "text/plain".into(), data: include_bytes!("onnxruntime.rs").as_slice().into() };
    let cases = [
        ("magika", Values::from([("bytes", file)]), "target_label"),
        ("silero-vad", Values::from([("input", noise(vec![1, 576])), ("state", noise(vec![2, 1, 128]))]), "stateN"),
        (
            "minilm",
            Values::from([("text", "It was a bright cold day in April, and the clocks were striking thirteen.")]),
            "embedding",
        ),
    ];
    for (name, inputs, output) in cases {
        let package = package(name);
        let mut given = Vec::new();
        for executor in &executors {
            executor.load(&package).await.unwrap();
            let (values, _) = executor.run_to_end(execution(&package, inputs.clone())).await.unwrap();
            given.push(floats(&values, output));
        }
        let largest = given[0].iter().fold(0_f32, |largest, value| largest.max(value.abs()));
        let apart = given[0].iter().zip(&given[1]).fold(0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(given[0].len() == given[1].len() && apart <= largest * 1e-4, "{name}: {apart} of {largest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_end_is_stopped() {
    let (executor, package) = (in_process(1).await, loops(LOOPS));
    executor.load(&package.package).await.unwrap();
    assert_eq!(adds(&executor, &package, 10).await, [15.0]);
    let time_limit = Duration::from_millis(200);
    let endless = || Execution { time_limit, ..execution(&package.package, times(i64::MAX)) };
    assert_eq!(executor.run_to_end(endless()).await, Err(ExecutorError::TimedOut(time_limit)));
    // One run at a time: these wait until the one before has really stopped, or else run out of time.
    assert_eq!(adds(&executor, &package, 3).await, [4.5]);
    let dropped = executor.run(Execution { time_limit: Duration::from_hours(1), ..endless() }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(dropped);
    assert_eq!(adds(&executor, &package, 1).await, [1.5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_does_not_fit_the_graph_is_refused() {
    let executor = in_process(1).await;
    let (count, x, y) = (tensor("count", "i64", &[1]), tensor("x", "f32", &[1]), tensor("y", "f32", &[1]));
    let wrong = [
        (vec![count.clone(), tensor("z", "f32", &[1])], y.clone(), "takes no `z`"),
        (vec![count.clone(), tensor("x", "i64", &[1])], y.clone(), "has `x` as f32"),
        (vec![count.clone(), tensor("x", "f32", &[2])], y.clone(), "takes `x` in the shape [1]"),
        (vec![count.clone(), tensor("x", "f32", &[1, 1])], y.clone(), "takes `x` in the shape [1]"),
        (vec![count.clone()], y.clone(), "needs `x`"),
        (vec![count.clone(), x.clone()], tensor("z", "f32", &[1]), "gives no `z`"),
        (vec![count.clone(), x.clone()], tensor("y", "f32", &[1, 1]), "gives `y` in the shape [1]"),
        (vec![count, x], tensor("y", "i64", &[1]), "has `y` as f32"),
    ];
    for (inputs, output, problem) in wrong {
        let refused = executor.load(&made_of(LOOPS, &inputs, &output).package).await;
        assert!(matches!(&refused, Err(ExecutorError::InvalidModel(said)) if said.contains(problem)), "{problem}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_graph_is_refused_and_nobody_minds() {
    let (executor, good) = (confined().await, loops(LOOPS));
    executor.load(&good.package).await.unwrap();
    let broken: [&[u8]; 5] = [b"", b"no graph", &[0xff; 4_096], &LOOPS[..LOOPS.len() / 2], &LOOPS[1..]];
    for bytes in broken {
        let refused = executor.load(&loops(bytes).package).await;
        assert!(matches!(refused, Err(ExecutorError::InvalidModel(_))), "{refused:?}");
    }
    // Nonsense that may still be a graph: refused, or run to an end of some kind.
    for at in (0..LOOPS.len()).step_by(LOOPS.len() / 16) {
        let mut bytes = LOOPS.to_vec();
        bytes[at] ^= 0x11;
        let package = loops(&bytes);
        if executor.load(&package.package).await.is_ok() {
            let limited = Execution { time_limit: Duration::from_secs(2), ..execution(&package.package, times(2)) };
            drop(executor.run_to_end(limited).await);
        }
    }
    assert_eq!(adds(&executor, &good, 2).await, [3.0]);
}
