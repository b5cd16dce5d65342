//! 64-bit integers: never a wrong number. The built-in engine computes them in 32 bits and refuses what may need more; ONNX Runtime
//! takes all.

use std::{sync::Arc, time::Duration};

use ncn_core::{DataType, Execution, Executor, ExecutorError, ExecutorExt as _, Model, Tensor, Values, executor::ModelPackage};
use ncn_executor::{
    EngineExecutor, ExecutorRouter, OnnxEngine, WorkerProgram,
    onnxruntime::{Device, OnnxRuntime, Options, Search, find},
};
use rten_tensor::prelude::*;
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use crate::{
    engines,
    graphs::{BOOL, FLOAT, INT64, body, graph, integer, integers, model, node, value},
    scene::ncn,
};

pub(crate) struct Package {
    pub(crate) package: ModelPackage,
    _directory: tempfile::TempDir,
}

pub(crate) fn tensor(name: &str, dtype: &str, shape: &Json) -> Json {
    json!({ "type": "tensor", "name": name, "dtype": dtype, "shape": shape })
}

pub(crate) fn package(onnx: &[u8], input: &Json, output: &Json) -> Package {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("model.onnx"), onnx).unwrap();
    let manifest = json!({
        "name": "model", "version": "1", "task": "test", "description": "A model.", "licence": "MIT", "format": "onnx",
        "entry": "model.onnx",
        "files": [{ "path": "model.onnx", "bytes": onnx.len(), "sha256": hex::encode(Sha256::digest(onnx)) }],
        "inputs": [input], "outputs": [output],
        "limits": { "memory_bytes": 512 << 20, "deadline_ms": 60_000 }, "price": "1",
    });
    let model = Arc::new(Model::parse(manifest.to_string()).unwrap());
    Package { package: ModelPackage { model, directory: directory.path().into() }, _directory: directory }
}

/// `y` of `x`, both of any number of integers.
pub(crate) fn of_integers(nodes: &[Vec<u8>], constants: &[Vec<u8>]) -> Vec<u8> {
    model(&graph(nodes, constants, &[value("x", INT64, &[0])], &[value("y", INT64, &[0])]))
}

pub(crate) fn any(onnx: &[u8]) -> Package {
    package(onnx, &tensor("x", "i64", &json!(["n"])), &tensor("y", "i64", &json!(["m"])))
}

fn times_a_million() -> Vec<u8> {
    of_integers(&[node("Mul", &["x", "c"], &["y"], &[])], &[integers("c", &[1], &[1_000_000])])
}

fn plus(number: i64) -> Vec<u8> {
    of_integers(&[node("Add", &["x", "c"], &["y"], &[])], &[integers("c", &[1], &[number])])
}

/// The sum of four.
fn sum() -> Package {
    let nodes = [node("ReduceSum", &["x"], &["y"], &[integer("keepdims", 1)])];
    let onnx = model(&graph(&nodes, &[], &[value("x", INT64, &[4])], &[value("y", INT64, &[1])]));
    package(&onnx, &tensor("x", "i64", &json!([4])), &tensor("y", "i64", &json!([1])))
}

fn i64s(values: &[i64]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(DataType::I64, vec![values.len()], data).unwrap()
}

pub(crate) async fn run(executor: &dyn Executor, package: &Package, x: Tensor) -> Result<Tensor, ExecutorError> {
    let inputs = Values::from([("x", x)]);
    let time_limit = Duration::from_mins(1);
    let execution = Execution { model_digest: package.package.model.digest(), inputs, parameters: "{}".into(), time_limit };
    let (values, _) = executor.run_to_end(execution).await?;
    Ok(values.get("y").unwrap().as_tensor().unwrap().clone())
}

/// What the built-in engine gives for `x`, after it has taken the model.
pub(crate) async fn built_in(package: &Package, x: &[i64]) -> Result<Vec<i64>, ExecutorError> {
    let executor = EngineExecutor::built_in();
    executor.load(&package.package).await?;
    Ok(run(&executor, package, i64s(x)).await?.to_i64().unwrap())
}

pub(crate) async fn refused(onnx: &[u8], operator: &str) {
    let error = EngineExecutor::built_in().load(&any(onnx).package).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ExecutorError::InvalidModel(_)), "{text}");
    assert!(text.contains(operator) && text.contains("ONNX Runtime"), "{text}");
}

async fn onnx_runtime() -> EngineExecutor {
    let library = find(&Search { library: None, python: Some(engines::python()) }).await.unwrap().remove(0);
    let options = Options { library: library.path, device: Device::Cpu, threads: Some(1) };
    EngineExecutor::new(vec![Box::new(OnnxEngine::new(OnnxRuntime::new(options)))])
}

/// Why all this: a later version of the engine may do better, and then less has to be refused.
#[test]
fn the_engine_computes_in_32_bits() {
    let engine = rten::Model::load(times_a_million()).unwrap();
    let x = rten_tensor::Tensor::from([5_000_i32]);
    let run = || engine.run(vec![(engine.node_id("x").unwrap(), x.into())], &[engine.node_id("y").unwrap()], None).unwrap();
    let outputs = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    // A build that checks arithmetic notices; a user's does not.
    assert_eq!(outputs.is_err(), cfg!(debug_assertions));
    if let Ok(outputs) = outputs {
        let y: rten_tensor::Tensor<i32> = outputs.into_iter().next().unwrap().try_into().unwrap();
        assert_eq!(y.to_vec(), [705_032_704]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn graphs_whose_integers_may_leave_32_bits_are_refused() {
    refused(&times_a_million(), "Mul").await;
    refused(&plus(1_700_000_000_000), "Add").await;
    let square = of_integers(&[node("Mul", &["x", "x"], &["s"], &[]), node("Mul", &["s", "s"], &["y"], &[])], &[]);
    refused(&square, "Mul").await;
    let constant = of_integers(
        &[node("Identity", &["c"], &["y"], &[]), node("Shape", &["x"], &["unused"], &[])],
        &[integers("c", &[1], &[1 << 40])],
    );
    refused(&constant, "`y`").await;
    // Counts for itself, as long as the loop runs.
    let inner = [node("Identity", &["on"], &["go"], &[]), node("Add", &["count", "count"], &["more"], &[])];
    let looped = graph(
        &inner,
        &[],
        &[value("i", INT64, &[]), value("on", BOOL, &[]), value("count", INT64, &[0])],
        &[value("go", BOOL, &[]), value("more", INT64, &[0])],
    );
    let doubling =
        of_integers(&[node("Loop", &["trips", "", "x"], &["y"], &[body("body", &looped)])], &[integers("trips", &[], &[40])]);
    refused(&doubling, "Add").await;
    let onnx = model(&graph(
        &[node("Cast", &["x"], &["y"], &[integer("to", INT64)])],
        &[],
        &[value("x", FLOAT, &[0])],
        &[value("y", INT64, &[0])],
    ));
    let floats = package(&onnx, &tensor("x", "f32", &json!(["n"])), &tensor("y", "i64", &json!(["n"])));
    let error = EngineExecutor::built_in().load(&floats.package).await.unwrap_err().to_string();
    assert!(error.contains("Cast"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_may_leave_32_bits_are_refused() {
    assert_eq!(built_in(&sum(), &[1, -2, 3, 40]).await.unwrap(), [42]);
    assert_eq!(built_in(&any(&plus(1)), &[41, -1]).await.unwrap(), [42, 0]);
    for (package, x) in [(sum(), vec![1 << 30; 4]), (any(&plus(1)), vec![i64::from(i32::MAX)]), (any(&plus(1)), vec![1 << 40])] {
        let error = built_in(&package, &x).await.unwrap_err();
        assert!(matches!(&error, ExecutorError::InvalidInput(problem) if problem.contains("ONNX Runtime")), "{error}");
    }
    // The engine gives 5 on as it is, where the graph says: 1.
    let flags = any(&of_integers(
        &[node("Cast", &["x"], &["b"], &[integer("to", BOOL)]), node("Cast", &["b"], &["y"], &[integer("to", INT64)])],
        &[],
    ));
    assert_eq!(built_in(&flags, &[1, 0]).await.unwrap(), [1, 0]);
    assert!(matches!(built_in(&flags, &[5]).await, Err(ExecutorError::InvalidInput(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn arithmetic_of_sizes_is_taken() {
    // All from the second on.
    let tail = of_integers(
        &[node("Slice", &["x", "one", "end"], &["y"], &[])],
        &[integers("one", &[1], &[1]), integers("end", &[1], &[i64::MAX])],
    );
    assert_eq!(built_in(&any(&tail), &[7, 8, 9]).await.unwrap(), [8, 9]);
    let sizes = of_integers(
        &[
            node("Shape", &["x"], &["shape"], &[]),
            node("Mul", &["shape", "three"], &["all"], &[]),
            node("Add", &["all", "minus"], &["y"], &[]),
        ],
        &[integers("three", &[1], &[3]), integers("minus", &[1], &[-1])],
    );
    assert_eq!(built_in(&any(&sizes), &[7, 8, 9]).await.unwrap(), [8]);
    let counted = of_integers(
        &[
            node("Shape", &["x"], &["shape"], &[]),
            node("Squeeze", &["shape"], &["size"], &[]),
            node("Range", &["zero", "size", "one"], &["places"], &[]),
            node("Add", &["places", "x"], &["y"], &[]),
        ],
        &[integers("zero", &[], &[0]), integers("one", &[], &[1])],
    );
    assert_eq!(built_in(&any(&counted), &[7, 8, 9]).await.unwrap(), [7, 9, 11]);
    let parts = of_integers(
        &[
            node("Split", &["x", "two"], &["first", "second"], &[]),
            node("Concat", &["second", "first"], &["y"], &[integer("axis", 0)]),
        ],
        &[integers("two", &[2], &[2, 2])],
    );
    assert_eq!(built_in(&any(&parts), &[7, 8, 9, 10]).await.unwrap(), [9, 10, 7, 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_selector_takes_the_engine_that_is_right() {
    let selector = ExecutorRouter::new(vec![Arc::new(EngineExecutor::built_in()), Arc::new(onnx_runtime().await)]);
    let cases = [(any(&times_a_million()), 5_000, 5_000_000_000), (any(&plus(1_700_000_000_000)), 1, 1_700_000_000_001)];
    for (package, x, y) in cases {
        selector.load(&package.package).await.unwrap();
        assert_eq!(run(&selector, &package, i64s(&[x])).await.unwrap().to_i64().unwrap(), [y]);
    }
    // ONNX Runtime has no bounds.
    let (engine, sum) = (onnx_runtime().await, sum());
    engine.load(&sum.package).await.unwrap();
    assert_eq!(run(&engine, &sum, i64s(&[1 << 30; 4])).await.unwrap().to_i64().unwrap(), [1 << 32]);
}

/// A detector that finds nothing has an output without rows.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_found_is_an_output() {
    let nodes = [node("NonZero", &["x"], &["found"], &[]), node("Transpose", &["found"], &["y"], &[])];
    let onnx = model(&graph(&nodes, &[], &[value("x", FLOAT, &[0])], &[value("y", INT64, &[0, 1])]));
    let detector = package(&onnx, &tensor("x", "f32", &json!(["n"])), &tensor("y", "i64", &json!(["found", 1])));
    let library = find(&Search { library: None, python: Some(engines::python()) }).await.unwrap().remove(0);
    let program = WorkerProgram::new(ncn()).with_onnxruntime(&library, Device::Cpu, Some(1));
    let executors: [Box<dyn Executor>; 4] = [
        Box::new(EngineExecutor::built_in()),
        Box::new(onnx_runtime().await),
        Box::new(crate::expected::confined(vec![WorkerProgram::new(ncn())])),
        Box::new(crate::expected::confined(vec![program])),
    ];
    for executor in executors {
        executor.load(&detector.package).await.unwrap();
        for (x, found) in [([0.0, 0.0, 0.0], vec![]), ([0.0, 2.0, 0.0], vec![1])] {
            let y = run(&*executor, &detector, Tensor::from_f32(vec![3], &x).unwrap()).await.unwrap();
            assert_eq!((y.shape(), y.to_i64().unwrap()), (&[found.len(), 1][..], found));
        }
    }
}
