//! What a model in Python sees and gives.

use super::*;

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
        parts.push((chunk.values.text("said").map(str::to_owned), chunk.is_last(), started.elapsed()));
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
