//! Text generation with a real model, in this process and in confined workers.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    num::NonZero,
    ops::ControlFlow,
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use ncn_core::{
    Execution, Executor, ExecutorError, ExecutorExt as _, Model, Usage, Values,
    conformance::{self, ExecutorFixture},
    executor::ModelPackage,
    model::Limits,
};
use ncn_executor::{EngineExecutor, GgufEngine, WorkerProgram};
use ncn_gguf::{Finish, Generator, Message, Prompt, Settings};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    expected::{confined, package},
    scene::ncn,
};

const COUNTING: &str = "1, 2, 3, 4, 5, 6, 7, 8,";
/// What it goes on with, and the tokens of that.
const COUNTED: &str = " 9, 10, 11, 12, 13, 14, ";
const COUNTED_TOKENS: [u32; 24] =
    [216, 41, 28, 216, 33, 32, 28, 216, 33, 33, 28, 216, 33, 34, 28, 216, 33, 35, 28, 216, 33, 36, 28, 216];

fn file() -> Vec<u8> {
    std::fs::read(package("smollm2").directory.join("model.gguf")).unwrap()
}

fn open(threads: usize) -> Generator {
    Generator::open(&file(), NonZero::new(threads).unwrap()).unwrap()
}

/// The model with two threads, opened once for all tests.
fn generator() -> &'static Generator {
    static GENERATOR: OnceLock<Generator> = OnceLock::new();
    GENERATOR.get_or_init(|| open(2))
}

fn tokens(text: &str) -> Vec<u32> {
    generator().tokens(&Prompt::Text(text.into())).unwrap()
}

fn generate(generator: &Generator, prompt: &str, settings: &Settings) -> (String, Finish) {
    let mut text = String::new();
    let generated = generator.generate(&tokens(prompt), settings, |piece, _| {
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    (text, generated.unwrap().finish)
}

fn execution(package: &ModelPackage, inputs: Values, parameters: &serde_json::Value) -> Execution {
    let (model_digest, parameters) = (package.model.digest(), parameters.to_string());
    Execution { model_digest, inputs, parameters, time_limit: Duration::from_mins(10) }
}

fn greeting() -> Values {
    [("messages", json!([{ "role": "user", "content": "Hi" }]).to_string().as_str())].into()
}

fn fixture(directory: &std::path::Path) -> ExecutorFixture {
    let package = package("smollm2");
    std::fs::write(directory.join("model.gguf"), b"GGUF").unwrap();
    ExecutorFixture {
        corrupt: Some(ModelPackage { model: package.model.clone(), directory: directory.into() }),
        package,
        inputs: greeting(),
        outputs: [("finish_reason", "stop")].into(),
        bad_inputs: [("prompt", COUNTING), ("messages", "[]")].into(),
    }
}

#[tokio::test]
async fn the_engine_is_an_executor() {
    let directory = tempfile::tempdir().unwrap();
    let executor = EngineExecutor::new(vec![Box::new(GgufEngine::default())]);
    conformance::executor(&executor, &fixture(directory.path())).await.unwrap();
}

#[tokio::test]
async fn a_confined_worker_counts_on_token_for_token() {
    let (executor, package) = (confined(vec![WorkerProgram::new(ncn())]), package("smollm2"));
    executor.load(&package).await.unwrap();
    assert!(executor.is_deterministic(&package.model.digest()), "another node can go on with its texts");
    let parameters = json!({ "max_tokens": COUNTED_TOKENS.len() });
    let mut outputs = executor.run(execution(&package, [("prompt", COUNTING)].into(), &parameters)).await.unwrap();
    let (mut parts, mut values, mut usage) = (0, Values::new(), Usage::default());
    while let Some(part) = outputs.next().await {
        let part = part.unwrap();
        values.append(part.values);
        usage = part.usage;
        parts += 1;
    }
    assert_eq!((values.text("text"), values.text("finish_reason")), (Some(COUNTED), Some("length")));
    assert_eq!((usage.input_units, usage.output_units), (23, COUNTED_TOKENS.len() as u64));
    assert!(usage.duration_micros > 0);
    assert!(parts > 20, "each token comes when it is there: {parts} parts");
    assert_eq!(tokens(COUNTED), COUNTED_TOKENS);

    let (answer, usage) = executor.run_to_end(execution(&package, greeting(), &json!({}))).await.unwrap();
    assert_eq!(answer.text("finish_reason"), Some("stop"));
    assert!(usage.output_units < 100, "{answer:?}");
}

#[test]
fn texts_have_the_tokens_that_llama_cpp_gives_them() {
    let cases: [(&str, &[u32]); 9] = [
        (COUNTING, &[33, 28, 216, 34, 28, 216, 35, 28, 216, 36, 28, 216, 37, 28, 216, 38, 28, 216, 39, 28, 216, 40, 28]),
        ("  two  spaces\n\n\tand\ttabs \n", &[216, 827, 216, 5600, 1116, 197, 397, 197, 100, 7366, 3717]),
        ("def f(x):\n    return x**2 + 3.14", &[1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 1232, 216, 35, 30, 33, 36]),
        (
            "naïve café — “quotes” 你好 🦀 e\u{301}",
            &[3546, 46494, 37366, 1841, 619, 385, 2346, 573, 216, 18645, 250, 48392, 138, 15107, 116, 218, 297, 151, 219],
        ),
        ("I'll we've DON'T it's 12", &[57, 3060, 392, 3543, 422, 2154, 23, 68, 357, 506, 216, 33, 34]),
        ("<|im_start|>user\nhi<|im_end|>\n", &[1, 4093, 198, 6004, 2, 198]),
        ("\n\n\n   x", &[1116, 11181, 1792]),
        ("a<|endoftext|>b", &[81, 0, 82]),
        ("    \t  \n  trailing   ", &[289, 197, 256, 3805, 35079, 333]),
    ];
    for (text, expected) in cases {
        assert_eq!(tokens(text), expected, "{text:?}");
    }
}

#[test]
fn messages_are_put_into_the_words_of_the_model() {
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let messages = vec![message("system", "Be brief."), message("user", "Hi")];
    let words = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(generator().tokens(&Prompt::Messages(messages)).unwrap(), tokens(words));
}

#[test]
fn the_same_text_on_any_number_of_threads_and_every_time() {
    let story = "The old lighthouse keeper climbed the stairs one last time, because";
    let text = |generator: &Generator, settings: &Settings| generate(generator, story, settings).0;
    let greedy = Settings { max_tokens: 40, ..Settings::default() };
    let seeded = Settings { temperature: 0.8, top_p: 0.9, seed: 7, ..greedy.clone() };
    let expected = [text(generator(), &greedy), text(generator(), &seeded)];
    assert_ne!(expected[0], expected[1]);
    assert_ne!(text(generator(), &Settings { seed: 8, ..seeded.clone() }), expected[1]);
    for threads in [1, 3] {
        let generator = open(threads);
        assert_eq!([text(&generator, &greedy), text(&generator, &seeded)], expected, "{threads} threads");
    }
    // Several at once, which share the threads.
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| text(generator(), &seeded))).collect();
        assert!(runs.into_iter().all(|run| run.join().unwrap() == expected[1]));
    });
}

#[test]
fn a_stop_sequence_ends_the_text_wherever_tokens_begin_and_end() {
    for (stop, expected) in [(", 1", " 9"), ("10, 11", " 9, "), (" 9", ""), ("2, ", " 9, 10, 11, 1")] {
        let settings = Settings { stop: vec!["never".into(), stop.into()], max_tokens: 40, ..Settings::default() };
        assert_eq!(generate(generator(), COUNTING, &settings), (expected.into(), Finish::Stop), "{stop:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_generated_is_refused_by_name() {
    let (executor, package) = (EngineExecutor::new(vec![Box::new(GgufEngine::default())]), package("smollm2"));
    executor.load(&package).await.unwrap();
    let long = "word ".repeat(8192);
    let cases: [(Values, serde_json::Value, &str); 8] = [
        ([("prompt", COUNTING)].into(), json!({ "max_tokens": 0 }), "`parameters.max_tokens`"),
        ([("prompt", COUNTING)].into(), json!({ "temperature": 3 }), "`parameters.temperature`"),
        ([("prompt", COUNTING)].into(), json!({ "n": 2 }), "`parameters.n`"),
        ([("prompt", long.as_str())].into(), json!({}), "at most 8191"),
        ([("prompt", "")].into(), json!({}), "`prompt`"),
        ([("messages", "hello")].into(), json!({}), "`messages`"),
        (Values::new(), json!({}), "prompt, messages"),
        ([("prompt", COUNTING), ("messages", "[]")].into(), json!({}), "prompt, messages"),
    ];
    for (inputs, parameters, name) in cases {
        let error = executor.run_to_end(execution(&package, inputs, &parameters)).await.unwrap_err();
        assert!(matches!(&error, ExecutorError::InvalidInput(problem) if problem.contains(name)), "{error} lacks {name}");
    }
}

/// The package with other limits, and so another digest.
fn limited(change: impl FnOnce(&mut Limits)) -> ModelPackage {
    let ModelPackage { model, directory } = package("smollm2");
    let mut manifest = model.manifest().clone();
    change(&mut manifest.limits);
    let model = Model::parse(serde_json::to_vec(&manifest).unwrap()).unwrap();
    ModelPackage { model: Arc::new(model), directory }
}

#[tokio::test]
async fn a_run_that_nobody_reads_any_more_gives_its_memory_back_at_once() {
    // There is memory for one long text, not for two: the second starts once the first has ended.
    let executor = EngineExecutor::new(vec![Box::new(GgufEngine::default())]);
    let package = limited(|limits| limits.memory_bytes = 512 << 20);
    executor.load(&package).await.unwrap();
    let long = |prompt: &str| execution(&package, [("prompt", prompt)].into(), &json!({ "max_tokens": 3800 }));
    let mut first = executor.run(long(COUNTING)).await.unwrap();
    first.next().await.unwrap().unwrap();
    let started = Instant::now();
    for _ in 0..40 {
        first.next().await.unwrap().unwrap();
    }
    // The whole text takes 95 times as long, and longer.
    let much_less = (started.elapsed() * 40).max(Duration::from_secs(30));
    drop(first);
    let started = Instant::now();
    let mut second = executor.run(long(COUNTING)).await.unwrap();
    second.next().await.unwrap().unwrap();
    assert!(started.elapsed() < much_less, "{:?} of {much_less:?}", started.elapsed());

    // The second still runs: a third waits, and giving up while it waits ends it too.
    let short = Execution { time_limit: Duration::from_millis(300), ..long(COUNTING) };
    assert!(matches!(executor.run_to_end(short).await, Err(ExecutorError::TimedOut(_))));
    let too_long = execution(&package, [("prompt", COUNTING)].into(), &json!({ "max_tokens": 8000 }));
    let refused = executor.run_to_end(too_long).await.unwrap_err();
    assert!(refused.to_string().contains("`parameters.max_tokens`"), "{refused}");
}

#[tokio::test]
async fn a_file_that_lies_is_refused_and_the_others_live_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = file();
    // So many fields that the file would have to be larger than any.
    file[16..24].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    file.truncate(1 << 20);
    std::fs::write(directory.path().join("model.gguf"), &file).unwrap();
    let mut manifest = package("smollm2").model.manifest().clone();
    manifest.files[0].bytes = file.len() as u64;
    manifest.files[0].sha256 = alloy_primitives::B256::from_slice(&Sha256::digest(&file));
    let model = Arc::new(Model::parse(serde_json::to_vec(&manifest).unwrap()).unwrap());
    let lying = ModelPackage { model, directory: directory.path().into() };

    let (executor, package) = (confined(vec![WorkerProgram::new(ncn())]), package("smollm2"));
    executor.load(&package).await.unwrap();
    let error = executor.load(&lying).await.unwrap_err();
    assert!(matches!(&error, ExecutorError::InvalidModel(problem) if problem.contains("fields")), "{error}");
    let counted = executor.run_to_end(execution(&package, [("prompt", COUNTING)].into(), &json!({ "max_tokens": 24 }))).await;
    assert_eq!(counted.unwrap().0.text("text"), Some(COUNTED));
}

/// How fast a confined worker generates, and llama.cpp with the same file and as many threads; they take turns.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench compute"]
async fn bench_tokens() {
    const ROUNDS: usize = 12;
    const TOKENS: u32 = 64;
    println!("| threads | ncn, tokens/s: best, p50 | llama.cpp: best, p50 | ncn / llama.cpp: best, p50 |");
    println!("| --- | --- | --- | --- |");
    for threads in [1, 2] {
        let package = limited(|limits| limits.threads = Some(threads));
        let executor = confined(vec![WorkerProgram::new(ncn())]);
        executor.load(&package).await.unwrap();
        let mut llama = Command::new(crate::engines::python())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines/rate.py"))
            .arg(package.directory.join("model.gguf"))
            .args([&threads.to_string(), &TOKENS.to_string(), COUNTING])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut asks, answers) = (llama.stdin.take().unwrap(), llama.stdout.take().unwrap());
        let mut answers = BufReader::new(answers).lines();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let inputs = [("prompt", COUNTING)].into();
            let mut parts = executor.run(execution(&package, inputs, &json!({ "max_tokens": TOKENS }))).await.unwrap();
            parts.next().await.unwrap().unwrap();
            let first = Instant::now();
            while let Some(part) = parts.next().await {
                if part.unwrap().is_last() {
                    ours.push(f64::from(TOKENS - 1) / first.elapsed().as_secs_f64());
                }
            }
            writeln!(asks).unwrap();
            theirs.push(answers.next().unwrap().unwrap().parse::<f64>().unwrap());
        }
        drop(asks);
        llama.wait().unwrap();
        for rates in [&mut ours, &mut theirs] {
            rates.sort_by(f64::total_cmp);
        }
        let (best, middle) = (ROUNDS - 1, ROUNDS / 2);
        let ratios = [best, middle].map(|index| ours[index] / theirs[index]);
        println!(
            "| {threads} | {:.1}, {:.1} | {:.1}, {:.1} | {:.2}, {:.2} (goal: 0.8) |",
            ours[best], ours[middle], theirs[best], theirs[middle], ratios[0], ratios[1]
        );
    }
}
