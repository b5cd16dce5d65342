//! What the built-in engine computes otherwise than ONNX says is refused by name, and so is what the analysis of its sizes once missed.

use ncn_core::{DataType, Executor as _, ExecutorError, Tensor};
use ncn_executor::EngineExecutor;
use serde_json::json;

use crate::{
    graphs::{
        BOOL, DOUBLE, FLOAT, FLOAT16, INT64, UINT8, body, constant, floats, graph, integer, integers, model_of, node, numbers,
        text, value,
    },
    integers::{Package, any, built_in, of_integers, package, refused, run, tensor},
};

/// `y` of the floats `x`.
fn of_floats(opset: u64, x: &[u64], y: (u64, usize), nodes: &[Vec<u8>], constants: &[Vec<u8>]) -> Package {
    let onnx = model_of(&graph(nodes, constants, &[value("x", FLOAT, x)], &[value("y", y.0, &vec![0; y.1])]), opset);
    let open = |size: (usize, &u64)| if *size.1 == 0 { json!(format!("n{}", size.0)) } else { json!(size.1) };
    let sizes = |sizes: &[u64]| json!(sizes.iter().enumerate().map(open).collect::<Vec<_>>());
    let kind = match y.0 {
        INT64 => "i64",
        BOOL => "bool",
        _ => "f32",
    };
    package(&onnx, &tensor("x", "f32", &sizes(x)), &tensor("y", kind, &sizes(&vec![0; y.1])))
}

async fn load(package: &Package) -> Result<(), ExecutorError> {
    EngineExecutor::built_in().load(&package.package).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_engine_computes_otherwise_is_refused() {
    let y = |op: &str, inputs: &[&str], attributes: &[Vec<u8>]| vec![node(op, inputs, &["y"], attributes)];
    let lower = || text("auto_pad", "SAME_LOWER");
    let pool = || [lower(), numbers("kernel_shape", &[2, 2]), numbers("strides", &[1, 1])];
    let conv = || [lower(), numbers("strides", &[1, 1]), numbers("dilations", &[1, 1])];
    let image = [1, 1, 4, 4];
    let constants = [
        integers("sizes", &[4], &[1, 1, 8, 8]),
        integers("lengths", &[2], &[3, 1]),
        integers("none", &[0], &[]),
        floats("kernel", &[1, 1, 2, 2], &[1.0, 0.0, 0.0, 0.0]),
        floats("w", &[1, 4, 1], &[0.5; 4]),
        floats("g", &[1, 3, 1], &[0.5; 3]),
        floats("b", &[1, 6], &[0.5; 6]),
        floats("half", &[], &[0.5]),
    ];
    let cast = |to: u64| node("Cast", &["x"], &["cast"], &[integer("to", to)]);
    let cases = [
        ("Softmax", 11, &[2, 3, 2][..], (FLOAT, 3), y("Softmax", &["x"], &[])),
        ("Softmax", 12, &[2, 3, 2], (FLOAT, 3), y("Softmax", &["x"], &[integer("axis", 1)])),
        ("LogSoftmax", 9, &[2, 3, 2], (FLOAT, 3), y("LogSoftmax", &["x"], &[integer("axis", 0)])),
        ("Sign", 17, &[0], (FLOAT, 1), y("Sign", &["x"], &[])),
        ("ArgMax", 17, &[0, 3], (INT64, 2), y("ArgMax", &["x"], &[integer("axis", 1)])),
        ("ArgMin", 17, &[0, 3], (INT64, 2), y("ArgMin", &["x"], &[integer("axis", 1)])),
        ("Resize", 17, &image, (FLOAT, 4), y("Resize", &["x", "", "", "sizes"], &[text("mode", "cubic")])),
        ("Conv", 17, &image, (FLOAT, 4), y("Conv", &["x", "kernel"], &conv())),
        ("ConvTranspose", 17, &image, (FLOAT, 4), y("ConvTranspose", &["x", "kernel"], &conv())),
        ("MaxPool", 17, &image, (FLOAT, 4), y("MaxPool", &["x"], &pool())),
        ("AveragePool", 17, &image, (FLOAT, 4), y("AveragePool", &["x"], &pool())),
        ("LSTM", 17, &[3, 2, 1], (FLOAT, 4), y("LSTM", &["x", "w", "w", "", "lengths"], &[integer("hidden_size", 1)])),
        (
            "GRU",
            17,
            &[3, 2, 1],
            (FLOAT, 4),
            y("GRU", &["x", "g", "g", "b", "lengths"], &[integer("hidden_size", 1), integer("linear_before_reset", 1)]),
        ),
        ("ReduceSum", 18, &[0, 3], (FLOAT, 2), y("ReduceSum", &["x", "none"], &[integer("noop_with_empty_axes", 1)])),
        ("ReduceMean", 18, &[0, 3], (FLOAT, 2), y("ReduceMean", &["x"], &[integer("noop_with_empty_axes", 1)])),
        ("Softplus", 17, &[0], (FLOAT, 1), y("Softplus", &["x"], &[])),
        ("Pow", 17, &[0], (INT64, 1), vec![node("Shape", &["x"], &["shape"], &[]), node("Pow", &["shape", "half"], &["y"], &[])]),
        ("Cast", 17, &[0], (FLOAT, 1), vec![cast(FLOAT16), node("Cast", &["cast"], &["y"], &[integer("to", FLOAT)])]),
        ("Cast", 17, &[0], (BOOL, 1), vec![cast(DOUBLE), node("Greater", &["cast", "cast"], &["y"], &[])]),
    ];
    for (operator, opset, x, gives, nodes) in cases {
        let text = load(&of_floats(opset, x, gives, &nodes, &constants)).await.unwrap_err().to_string();
        assert!(text.contains(&format!("the operator {operator} ")) && text.contains("ONNX Runtime"), "{operator}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everyday_graphs_are_taken() {
    let softmax = |inputs: &[&str], axis: u64| node("Softmax", inputs, &["y"], &[integer("axis", axis)]);
    load(&of_floats(11, &[0, 3], (FLOAT, 2), &[node("Softmax", &["x"], &["y"], &[])], &[])).await.unwrap();
    load(&of_floats(11, &[0, 4, 3], (FLOAT, 3), &[softmax(&["x"], 2)], &[])).await.unwrap();
    let dense = [node("Gemm", &["x", "w"], &["z"], &[]), softmax(&["z"], 1)];
    load(&of_floats(11, &[0, 2], (FLOAT, 2), &dense, &[floats("w", &[2, 2], &[1.0; 4])])).await.unwrap();
    // Places of a masked sequence.
    let places = any(&of_integers(
        &[
            node("CumSum", &["x", "zero"], &["sums"], &[]),
            node("Mul", &["sums", "x"], &["masked"], &[]),
            node("Add", &["masked", "one"], &["y"], &[]),
        ],
        &[integers("zero", &[], &[0]), integers("one", &[], &[1])],
    ));
    assert_eq!(built_in(&places, &[1, 1, 0]).await.unwrap(), [2, 3, 1]);
    assert!(matches!(built_in(&places, &[2]).await, Err(ExecutorError::InvalidInput(_))));
    // As PyTorch exports `expand`: -1 keeps a size.
    let expanded = any(&of_integers(
        &[
            node("Shape", &["x"], &["size"], &[]),
            node("Concat", &["size", "three"], &["sizes"], &[integer("axis", 0)]),
            node("Shape", &["sizes"], &["rank"], &[]),
            node("ConstantOfShape", &["rank"], &["ones"], &[constant("value", &integers("", &[1], &[1]))]),
            node("Mul", &["ones", "minus"], &["kept"], &[]),
            node("Equal", &["sizes", "kept"], &["keep"], &[]),
            node("Where", &["keep", "ones", "sizes"], &["wanted"], &[]),
            node("Expand", &["two", "wanted"], &["twos"], &[]),
            node("ReduceSum", &["twos", "axis"], &["y"], &[integer("keepdims", 0)]),
        ],
        &[integers("three", &[1], &[3]), integers("minus", &[], &[-1]), integers("two", &[1], &[2]), integers("axis", &[1], &[1])],
    ));
    assert_eq!(built_in(&expanded, &[7, 8, 9, 10]).await.unwrap(), [6; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_without_the_first_hold_zero() {
    let nodes = [
        node("CumSum", &["k", "zero"], &["s"], &[integer("exclusive", 1)]),
        node("Sub", &["s", "k"], &["t"], &[]),
        node("Mul", &["t", "four"], &["u"], &[]),
        node("Add", &["u", "x"], &["y"], &[]),
    ];
    let constants = [integers("k", &[1], &[1 << 30]), integers("zero", &[], &[0]), integers("four", &[], &[4])];
    refused(&of_integers(&nodes, &constants), "Mul").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_of_an_empty_tensor_count() {
    let nodes = [
        node("Flatten", &["e"], &["f"], &[]),
        node("Shape", &["f"], &["s"], &[]),
        node("Mul", &["s", "k"], &["t"], &[]),
        node("Add", &["t", "x"], &["y"], &[]),
    ];
    let constants = [floats("e", &[0, 1000], &[]), integers("k", &[], &[3_000_000])];
    refused(&of_integers(&nodes, &constants), "Mul").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn part_of_a_shape_gives_fewer_dimensions() {
    let cut = [
        vec![node("Shape", &["a"], &["s"], &[integer("start", 2)])],
        vec![node("Shape", &["a"], &["all"], &[]), node("Slice", &["all", "two", "end"], &["s"], &[])],
    ];
    for mut nodes in cut {
        nodes.extend([
            node("ConstantOfShape", &["s"], &["z"], &[constant("value", &integers("", &[1], &[0]))]),
            node("Add", &["z", "x"], &["w"], &[]),
            node("ReduceSum", &["w", "axis"], &["y"], &[integer("keepdims", 1)]),
        ]);
        let constants = [
            floats("a", &[1, 1, 1], &[0.0]),
            integers("two", &[1], &[2]),
            integers("end", &[1], &[i64::MAX]),
            integers("axis", &[1], &[0]),
        ];
        let sums = any(&of_integers(&nodes, &constants));
        assert_eq!(built_in(&sums, &[1, 2, 3, 4]).await.unwrap(), [10]);
        assert!(matches!(built_in(&sums, &[1 << 30; 4]).await, Err(ExecutorError::InvalidInput(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_size_has_its_own_bound() {
    let nodes = [
        node("Cast", &["x"], &["i"], &[integer("to", INT64)]),
        node("ReduceSum", &["i", "axis"], &["s"], &[integer("keepdims", 0)]),
        node("Mul", &["s", "k"], &["y"], &[]),
    ];
    let constants = [integers("axis", &[1], &[0]), integers("k", &[], &[8_192])];
    let onnx = model_of(&graph(&nodes, &constants, &[value("x", UINT8, &[0, 1100, 0])], &[value("y", INT64, &[1100, 0])]), 17);
    let package = package(&onnx, &tensor("x", "u8", &json!(["a", 1100, "b"])), &tensor("y", "i64", &json!([1100, "b"])));
    let engine = EngineExecutor::built_in();
    engine.load(&package.package).await.unwrap();
    let rows = |rows: usize| Tensor::new(DataType::U8, vec![rows, 1100, 1], vec![255; rows * 1100]).unwrap();
    assert_eq!(run(&engine, &package, rows(1000)).await.unwrap().to_i64().unwrap().first(), Some(&2_088_960_000));
    assert!(matches!(run(&engine, &package, rows(1100)).await, Err(ExecutorError::InvalidInput(_))));
}

/// The operator sees it, not the first user.
#[tokio::test(flavor = "multi_thread")]
async fn a_graph_that_does_not_run_is_refused_when_it_is_loaded() {
    // Six values are no four; the graph says nothing of what it gives.
    let reshape = node("Reshape", &["x", "to"], &["y"], &[]);
    let constants = [integers("to", &[1], &[4])];
    let refused = load(&of_floats(17, &[2, 3], (FLOAT, 1), &[reshape], &constants)).await.unwrap_err();
    assert!(matches!(&refused, ExecutorError::InvalidModel(said) if said.contains("does not run")), "{refused}");
    // Of named sizes one has to do: here six values, in three rows.
    let reshape = node("Reshape", &["x", "to"], &["y"], &[]);
    load(&of_floats(17, &[0, 2], (FLOAT, 1), &[reshape], &[integers("to", &[1], &[6])])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_that_draw_random_numbers_are_there() {
    let random = node("RandomUniformLike", &["x"], &["y"], &[]);
    load(&of_floats(17, &[0], (FLOAT, 1), &[random], &[])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_have_the_shape_that_the_graph_states() {
    let onnx = model_of(
        &graph(&[node("Neg", &["x"], &["y"], &[])], &[], &[value("x", FLOAT, &[2, 3])], &[value("y", FLOAT, &[2, 3])]),
        17,
    );
    for (sizes, fits) in
        [(json!([2, 3]), true), (json!(["n", 3]), true), (json!([2, 4]), false), (json!([6]), false), (json!([2, 3, 1]), false)]
    {
        let package = package(&onnx, &tensor("x", "f32", &json!([2, 3])), &tensor("y", "f32", &sizes));
        let loaded = load(&package).await;
        let says = |said: &str| said.contains("gives `y` in the shape [2, 3], which is not the manifest's");
        match loaded {
            Ok(()) => assert!(fits, "{sizes}"),
            Err(error) => assert!(!fits && says(&error.to_string()), "{sizes}: {error}"),
        }
    }
}

/// `If`s within one another are run; a branch that hands on what is outside of it is refused by name.
#[tokio::test(flavor = "multi_thread")]
async fn branches_within_branches_are_run_or_refused_by_name() {
    let floats_of = |name: &str| value(name, FLOAT, &[0]);
    let choose = |then: &[u8], otherwise: &[u8], output: &str| {
        node("If", &["is_large"], &[output], &[body("then_branch", then), body("else_branch", otherwise)])
    };
    let plain = |operator: &str, output: &str| graph(&[node(operator, &["x"], &[output], &[])], &[], &[], &[floats_of(output)]);
    let condition =
        [node("ReduceSum", &["x"], &["sum"], &[integer("keepdims", 0)]), node("Greater", &["sum", "ten"], &["is_large"], &[])];
    let package_of = |last: Vec<u8>| {
        let nodes: Vec<_> = condition.iter().cloned().chain([last]).collect();
        of_floats(17, &[0], (FLOAT, 1), &nodes, &[floats("ten", &[], &[10.0])])
    };
    let inner = choose(&plain("Neg", "inner"), &plain("Abs", "inner"), "nested");
    let nested = graph(&[inner], &[], &[], &[floats_of("nested")]);
    let package = package_of(choose(&nested, &plain("Abs", "other"), "y"));
    let engine = EngineExecutor::built_in();
    engine.load(&package.package).await.unwrap();
    let x = Tensor::from_f32(vec![2], &[20.0, -3.0]).unwrap();
    let y = run(&engine, &package, x).await.unwrap();
    assert_eq!(y.to_f32().unwrap(), [-20.0, 3.0]);

    let outside = graph(&[], &[], &[], &[floats_of("x")]);
    let refused = load(&package_of(choose(&outside, &plain("Abs", "other"), "y"))).await.unwrap_err().to_string();
    assert!(refused.contains("the operator If ") && refused.contains("`x`, which is outside of it"), "{refused}");
}

/// What a manifest calls floats is not something else in the graph.
#[tokio::test(flavor = "multi_thread")]
async fn a_graph_of_other_types_is_not_taken_for_one_of_floats() {
    const STRING: u64 = 8;
    for (element, name) in [(FLOAT16, "f16"), (DOUBLE, "f64"), (STRING, "text")] {
        let same = node("Identity", &["x"], &["y"], &[]);
        for (x, y) in [(element, element), (FLOAT, element), (element, FLOAT)] {
            let onnx = model_of(&graph(std::slice::from_ref(&same), &[], &[value("x", x, &[2])], &[value("y", y, &[2])]), 17);
            let floats = || tensor("x", "f32", &json!([2]));
            let refused = load(&package(&onnx, &floats(), &tensor("y", "f32", &json!([2])))).await.unwrap_err();
            assert!(matches!(refused, ExecutorError::InvalidModel(_)), "{name} {x} {y}: {refused}");
        }
    }
}
