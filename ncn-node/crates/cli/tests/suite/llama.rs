//! An engine as people run it: llama.cpp's own server, with a model of 135 million parameters.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use async_trait::async_trait;
use futures::StreamExt as _;
use ncn_core::{
    B256, Confinement, Execution, Executor, ExecutorError, ExecutorExt as _, Values,
    conformance::{self, ExecutorFixture},
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use ncn_executor::OpenAiExecutor;

use crate::{
    openai::{BOTH, TEXT, execution, executor, package},
    wait::eventually,
};

const COUNTING: &str = "1, 2, 3, 4, 5, 6, 7, 8,";
const EMBEDDING: &str = r#"{"type":"tensor","name":"embedding","dtype":"f32","shape":[1,576]}"#;

/// A server that ends with its test.
struct Llama {
    process: Child,
    url: String,
}

impl Llama {
    fn start() -> Self {
        let python = crate::engines::python();
        let mut process = Command::new(&python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engines/llama.py"))
            .arg(crate::real_models::directory("smollm2").join("model.gguf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask setup` first, which installs it", python.display()));
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, url: format!("{}/v1", line.trim()) }
    }

    /// One for all tests that leave it as it was.
    fn shared() -> &'static str {
        static SHARED: OnceLock<Llama> = OnceLock::new();
        &SHARED.get_or_init(Self::start).url
    }

    async fn slots(&self) -> Vec<serde_json::Value> {
        let slots = reqwest::get(format!("{}/slots", self.url.trim_end_matches("/v1"))).await.unwrap();
        slots.json().await.unwrap()
    }

    async fn is_busy(&self) -> bool {
        self.slots().await.iter().any(|slot| slot["is_processing"] == true)
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn loaded(url: &str, outputs: &str) -> (OpenAiExecutor, ModelPackage) {
    let inputs = if outputs == TEXT { BOTH } else { r#"{"type":"text","name":"text"}"# };
    let (executor, package) = (executor(url), package("smollm2", inputs, outputs));
    executor.load(&package).await.unwrap();
    (executor, package)
}

#[tokio::test]
async fn it_counts() {
    let (executor, package) = loaded(Llama::shared(), TEXT).await;
    let counting = |parameters: &str| execution(&package, [("prompt", COUNTING)], parameters);
    let parts: Vec<_> = executor.run(counting(r#"{"max_tokens":24}"#)).await.unwrap().map(Result::unwrap).collect().await;
    assert!(parts.len() > 10, "it streams: {} parts", parts.len());
    let (values, usage) = executor.run_to_end(counting(r#"{"max_tokens":24}"#)).await.unwrap();
    assert_eq!(values, Values::from([("text", " 9, 10, 11, 12, 13, 14, "), ("finish_reason", "length")]));
    assert_eq!((usage.input_units, usage.output_units), (23, 24));
    let (values, _) = executor.run_to_end(counting(r#"{"max_tokens":24,"stop":["11"]}"#)).await.unwrap();
    assert_eq!(values, Values::from([("text", " 9, 10, "), ("finish_reason", "stop")]));
}

#[tokio::test]
async fn it_talks() {
    let (executor, package) = loaded(Llama::shared(), TEXT).await;
    let talk = |seed: u32| {
        let messages = r#"[{"role":"system","content":"You are a poet."},{"role":"user","content":"Tell me about the sea."}]"#;
        let parameters = format!(r#"{{"max_tokens":12,"temperature":1.5,"top_p":0.95,"seed":{seed}}}"#);
        executor.run_to_end(execution(&package, [("messages", messages)], &parameters))
    };
    let (first, usage) = talk(1).await.unwrap();
    assert_eq!(talk(1).await.unwrap().0, first, "one seed, one text");
    assert_ne!(talk(2).await.unwrap().0, first);
    assert_eq!(usage.output_units, 12);
    // The system's and the user's words, and what the model's chat template puts around them.
    assert!((15..60).contains(&usage.input_units), "{usage:?}");
}

#[tokio::test]
async fn it_embeds() {
    let (executor, package) = loaded(Llama::shared(), EMBEDDING).await;
    let mut vectors = Vec::new();
    for text in ["The cat sits on the mat.", "A feline is resting on a rug.", "Stock prices fell sharply today."] {
        let (values, usage) = executor.run_to_end(execution(&package, [("text", text)], "{}")).await.unwrap();
        assert!(usage.input_units > 4 && usage.output_units == 1, "{usage:?}");
        vectors.push(values.get("embedding").unwrap().as_tensor().unwrap().to_f32().unwrap());
    }
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!((cosine(&vectors[0], &vectors[0]) - 1.0).abs() < 1e-3, "they have the length 1");
    assert!(cosine(&vectors[0], &vectors[1]) > cosine(&vectors[0], &vectors[2]));
}

#[tokio::test]
async fn what_it_refuses_is_said() {
    let (executor, package) = loaded(Llama::shared(), TEXT).await;
    let long = "word ".repeat(3_000);
    let refused = executor.run_to_end(execution(&package, [("prompt", long.as_str())], "{}")).await;
    assert!(matches!(&refused, Err(ExecutorError::InvalidInput(said)) if said.contains("context")), "{refused:?}");
    let unknown = crate::openai::package("smollm3", BOTH, TEXT);
    assert!(matches!(executor.load(&unknown).await, Err(ExecutorError::InvalidModel(_))));
}

#[tokio::test]
async fn it_stops_when_nobody_listens_and_its_end_is_noticed() {
    let mut llama = Llama::start();
    let (executor, package) = loaded(&llama.url, TEXT).await;
    let long = || execution(&package, [("prompt", "Once upon a time")], r#"{"max_tokens":900,"temperature":1.9,"seed":5}"#);
    let mut outputs = executor.run(long()).await.unwrap();
    outputs.next().await.unwrap().unwrap();
    assert!(llama.is_busy().await);
    drop(outputs);
    eventually("it does not go on for nobody", async || !llama.is_busy().await).await;
    let tokens = llama.slots().await.iter().filter_map(|slot| slot["n_prompt_tokens"].as_u64()).max();
    assert!(tokens.is_some_and(|tokens| tokens < 900), "{tokens:?}: it has gone on to the end");
    let mut outputs = executor.run(long()).await.unwrap();
    outputs.next().await.unwrap().unwrap();
    llama.process.kill().unwrap();
    let end = loop {
        match outputs.next().await.unwrap() {
            Ok(part) => assert!(!part.is_last(), "it was killed long before its end"),
            Err(error) => break error,
        }
    };
    assert!(end.is_retryable(), "{end}");
    let gone = executor.run_to_end(long()).await.unwrap_err();
    assert!(gone.is_retryable(), "{gone}");
}

/// The executor as it is, but for what it is asked when nothing is asked of it.
struct Brief(OpenAiExecutor);

#[async_trait]
impl Executor for Brief {
    fn formats(&self) -> Vec<ModelFormat> {
        self.0.formats()
    }

    fn confinement(&self, model_digest: &B256) -> Confinement {
        self.0.confinement(model_digest)
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        self.0.load(package).await
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        self.0.unload(model_digest).await
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        self.0.run(Execution { parameters: r#"{"max_tokens":4}"#.into(), ..execution }).await
    }
}

#[tokio::test]
async fn conformance() {
    let fixture = ExecutorFixture {
        package: package("smollm2", BOTH, TEXT),
        corrupt: None,
        inputs: Values::from([("prompt", COUNTING)]),
        outputs: Values::from([("text", " 9, "), ("finish_reason", "length")]),
        bad_inputs: Values::from([("promt", COUNTING)]),
    };
    let rules = conformance::executor(&Brief(executor(Llama::shared())), &fixture).await.unwrap();
    assert!(rules.len() >= 15, "{rules:?}");
}
