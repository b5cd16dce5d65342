//! Engines with OpenAI's HTTP interface: what is asked of them, and what is made of good, broken and hostile answers.

pub(crate) mod engine;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use engine::{Engine, Reply, json, status, stream};
use futures::StreamExt as _;
use ncn_core::{Execution, Executor, ExecutorError, ExecutorExt as _, FinishReason, Model, Usage, Values, executor::ModelPackage};
use ncn_executor::{ApiKey, OpenAiExecutor, OpenAiOptions};

use crate::wait::{TIMEOUT, in_time};

pub(crate) const TEXT: &str = r#"{"type":"text","name":"text"},{"type":"text","name":"finish_reason"}"#;
const PROMPT: &str = r#"{"type":"text","name":"prompt"}"#;
pub(crate) const BOTH: &str =
    r#"{"type":"text","name":"prompt","optional":true},{"type":"text","name":"messages","optional":true}"#;
const EMBEDDING: &str = r#"{"type":"tensor","name":"embedding","dtype":"f32","shape":[1,3]}"#;

/// A package for what an engine calls `entry`.
pub(crate) fn package(entry: &str, inputs: &str, outputs: &str) -> ModelPackage {
    let manifest = format!(
        r#"{{"name":"tiny","version":"1","task":"text-generation","description":"A tiny model.","licence":"MIT","format":"openai",
        "entry":"{entry}","files":[],"inputs":[{inputs}],"outputs":[{outputs}],
        "limits":{{"memory_bytes":0,"deadline_ms":60000}},"price":"1"}}"#
    );
    ModelPackage { model: Arc::new(Model::parse(manifest).unwrap()), directory: "/nowhere".into() }
}

pub(crate) fn executor(url: &str) -> OpenAiExecutor {
    OpenAiExecutor::new(&OpenAiOptions { url: url.into(), api_key: None }).unwrap()
}

pub(crate) fn execution(package: &ModelPackage, inputs: impl Into<Values>, parameters: &str) -> Execution {
    Execution {
        model_digest: package.model.digest(),
        inputs: inputs.into(),
        parameters: parameters.into(),
        time_limit: Duration::from_mins(10),
    }
}

/// What comes of one request to an engine that says this.
async fn run(
    engine: &Engine,
    inputs: &str,
    outputs: &str,
    given: Values,
    parameters: &str,
) -> Result<(Values, Usage), ExecutorError> {
    let (executor, package) = (executor(&engine.url), package("tiny", inputs, outputs));
    executor.load(&package).await?;
    executor.run_to_end(execution(&package, given, parameters)).await
}

async fn prompt(engine: &Engine) -> Result<(Values, Usage), ExecutorError> {
    run(engine, PROMPT, TEXT, Values::from([("prompt", "Say it")]), "{}").await
}

/// A chunk of a completion.
fn chunk(text: &str, end: &str) -> String {
    let text = serde_json::Value::from(text);
    format!("data: {{\"id\":\"1\",\"choices\":[{{\"index\":0,\"text\":{text},\"logprobs\":null,\"finish_reason\":{end}}}]}}\n\n")
}

const COUNTED: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3,\"total_tokens\":8}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn good() -> String {
    [&chunk("Grüße", "null"), &chunk(", 世界", "null"), &chunk("", "\"stop\""), COUNTED, DONE].concat()
}

fn is_good(answer: Result<(Values, Usage), ExecutorError>) {
    let (values, usage) = answer.unwrap();
    assert_eq!(values, Values::from([("text", "Grüße, 世界"), ("finish_reason", "stop")]));
    assert_eq!((usage.input_units, usage.output_units), (5, 3));
}

#[tokio::test]
async fn text_comes_as_it_is_generated() {
    let engine = Engine::saying(stream(&good())).await;
    let (executor, package) = (executor(&engine.url), package("tiny", PROMPT, TEXT));
    executor.load(&package).await.unwrap();
    let parameters = r#"{"max_tokens":7,"temperature":0.5,"top_p":0.9,"seed":11,"stop":["\n\n"]}"#;
    let outputs = executor.run(execution(&package, [("prompt", "Say \"it\"")], parameters)).await.unwrap();
    let parts: Vec<_> = outputs.map(Result::unwrap).collect().await;
    let texts: Vec<_> = parts.iter().map(|part| part.values.text("text").unwrap()).collect();
    assert_eq!(texts, ["Grüße", ", 世界", ""]);
    let ends: Vec<_> = parts.iter().map(|part| part.finish).collect();
    assert_eq!(ends, [None, None, Some(FinishReason::Stop)]);
    let counted: Vec<_> = parts.iter().map(|part| part.usage.output_units).collect();
    assert_eq!(counted, [1, 2, 3], "each part is a token at least, until the engine counts");

    let asked = engine.asked.lock().unwrap()[0].clone();
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/completions HTTP/1.1\r\n") && !head.contains("authorization"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let expected = serde_json::json!({
        "model": "tiny", "prompt": "Say \"it\"", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 11, "stop": ["\n\n"],
        "stream": true, "stream_options": { "include_usage": true },
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_text_goes_on_from_what_is_there_and_a_conversation_does_not() {
    let engine = Engine::saying(stream(&good())).await;
    let (executor, package) = (executor(&engine.url), package("tiny", BOTH, TEXT));
    executor.load(&package).await.unwrap();
    let there = Values::from([("text", "Once upon")]);
    let whole = execution(&package, [("prompt", "Tell: ")], r#"{"max_tokens":7,"stop":["."]}"#);
    let rest = executor.continue_from(&whole, &there, 2).unwrap();
    assert_eq!(rest.inputs.text("prompt"), Some("Tell: Once upon"));
    let parameters: serde_json::Value = serde_json::from_str(&rest.parameters).unwrap();
    assert_eq!((&parameters["max_tokens"], &parameters["stop"]), (&serde_json::json!(5), &serde_json::json!(["."])));
    executor.run_to_end(rest).await.unwrap();
    let asked = engine.asked.lock().unwrap()[0].clone();
    assert!(asked.contains(r#""prompt":"Tell: Once upon""#), "{asked}");
    assert!(executor.continue_from(&whole, &there, 7).is_none(), "nothing is left to give");
    assert!(executor.continue_from(&whole, &Values::new(), 2).is_none());
    let conversation = execution(&package, [("messages", r#"[{"role":"user","content":"Hi"}]"#)], "{}");
    assert!(
        executor.continue_from(&conversation, &there, 2).is_none(),
        "engines differ in how they take the beginning of an answer"
    );
}

#[tokio::test]
async fn a_conversation_is_asked_for_as_one() {
    let answer = [
        r#"data: {"choices":[{"delta":{"role":"assistant","content":null},"index":0,"finish_reason":null}]}"#,
        r#"data: {"choices":[{"delta":{"content":"Hel"},"index":0}]}"#,
        r#"data: {"choices":[{"delta":{"content":"lo"},"index":0},{"delta":{"content":"not asked for"},"index":1}]}"#,
        r#"data: {"choices":[{"delta":{},"index":0,"finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#,
        "data: [DONE]\n\n",
    ]
    .join("\n\n");
    let engine = Engine::saying(stream(&answer)).await;
    let messages = r#"[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}]"#;
    let (values, usage) = run(&engine, BOTH, TEXT, Values::from([("messages", messages)]), "{}").await.unwrap();
    assert_eq!(values, Values::from([("text", "Hello"), ("finish_reason", "length")]));
    assert_eq!((usage.input_units, usage.output_units), (9, 2));
    let asked = engine.asked.lock().unwrap()[0].clone();
    assert!(asked.starts_with("POST /v1/chat/completions ") && asked.contains(messages), "{asked}");
}

#[tokio::test]
async fn an_embedding_is_a_tensor() {
    let answer = r#"{"object":"list","data":[{"index":0,"embedding":[0.5,-1,2e-3]}],"model":"tiny","usage":{"prompt_tokens":4,"total_tokens":4}}"#;
    let text = || Values::from([("text", "Hello")]);
    let input = r#"{"type":"text","name":"text"}"#;
    let engine = Engine::saying(json(answer)).await;
    let (values, usage) = run(&engine, input, EMBEDDING, text(), "{}").await.unwrap();
    let tensor = values.get("embedding").unwrap().as_tensor().unwrap();
    assert_eq!((tensor.shape(), tensor.to_f32().unwrap()), (&[1, 3][..], vec![0.5, -1.0, 2e-3]));
    assert_eq!((usage.input_units, usage.output_units), (4, 1));
    assert!(engine.asked.lock().unwrap()[0].starts_with("POST /v1/embeddings "));

    let vectors = |vectors: &str| format!(r#"{{"data":[{vectors}],"usage":{{"prompt_tokens":4}}}}"#);
    let one = r#"{"embedding":[1,2,3]}"#;
    for (answer, wrong_output) in [
        (vectors(r#"{"embedding":[1,2]}"#), true),
        (vectors(""), false),
        (vectors(&[one, one].join(",")), false),
        (vectors(r#"{"embedding":"AAAA"}"#), false),
        (format!(r#"{{"data":[{one}]}}"#), false),
        (format!(r#"{{"data":[{one}],"usage":{{"prompt_tokens":0}}}}"#), false),
    ] {
        let refused = run(&Engine::saying(json(&answer)).await, input, EMBEDDING, text(), "{}").await.unwrap_err();
        let kind = if wrong_output { matches!(refused, ExecutorError::InvalidOutput(_)) } else { refused.is_retryable() };
        assert!(kind, "{answer}: {refused}");
    }
    // More than is read: the answer never ends.
    let endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".iter().copied().chain(std::iter::repeat_n(b' ', 17 << 20));
    let refused = run(&Engine::saying(endless.collect::<Vec<_>>()).await, input, EMBEDDING, text(), "{}").await.unwrap_err();
    assert!(refused.to_string().contains("more than 16777216 bytes"), "{refused}");
}

#[tokio::test]
async fn streams_may_be_written_in_many_ways() {
    is_good(prompt(&Engine::saying(stream(&good())).await).await);
    is_good(prompt(&Engine::saying(stream(&good().replace('\n', "\r\n"))).await).await);
    is_good(prompt(&Engine::saying(stream(&good().replace("data: ", ": alive\n\nevent: x\nretry: 1\ndata:"))).await).await);
    is_good(prompt(&Engine::saying(stream(&good().replace("\"choices\"", "\ndata: \"choices\""))).await).await);
    is_good(prompt(&Engine::saying(stream(&["\u{feff}", &good()].concat())).await).await);
    // What is not known yet is null in some, or not there.
    let unknown = "data: {\"choices\":null,\"usage\":{}}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":null,\"completion_tokens\":null}}\n\n";
    is_good(prompt(&Engine::saying(stream(&[unknown, &good()].concat())).await).await);
    is_good(prompt(&Engine::saying(stream(&good().replace("\"index\":0", "\"index\":null"))).await).await);
    // An answer in one piece, and one without the word that ends it.
    let message = "data: {\"choices\":[{\"message\":{\"content\":\"Grüße, 世界\"},\"finish_reason\":\"stop\"}]}\n\n";
    is_good(prompt(&Engine::saying(stream(&[message, COUNTED].concat())).await).await);
    // Nothing after the end counts, and the connection may stay.
    let more = [&good(), "data: {{{"].concat();
    is_good(prompt(&Engine::start(move |_| Reply { bytes: stream(&more), stays: true }).await).await);
}

#[tokio::test]
async fn an_answer_that_ends_anywhere_else_is_no_answer() {
    let whole = stream(&good());
    let end = AtomicUsize::new(whole.len() - good().len());
    let engine = Engine::start(move |_| {
        let bytes = whole[..end.fetch_add(1, Ordering::SeqCst)].to_vec();
        Reply { bytes, stays: false }
    });
    let engine = engine.await;
    let (executor, package) = (executor(&engine.url), package("tiny", PROMPT, TEXT));
    executor.load(&package).await.unwrap();
    // The last event needs no empty line after it, and no word that it was the last.
    let counted = good().trim_end().len() - DONE.trim_end().len() - 2;
    for length in 0..good().len() {
        let answer = executor.run_to_end(execution(&package, [("prompt", "Hi")], "{}")).await;
        match answer {
            Err(ExecutorError::Worker(_)) => assert!(!(counted..counted + 3).contains(&length), "after {length} bytes"),
            answer => {
                assert!(length >= counted, "after {length} bytes: {answer:?}");
                is_good(answer);
            }
        }
    }
    is_good(executor.run_to_end(execution(&package, [("prompt", "Hi")], "{}")).await);
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n".to_vec();
    for cut in [chunked, b"HTTP/1.1 200".to_vec(), b"SSH-2.0-OpenSSH\r\n".to_vec(), Vec::new()] {
        let refused = prompt(&Engine::saying(cut).await).await;
        assert!(matches!(&refused, Err(ExecutorError::Worker(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let last = chunk("", "\"stop\"");
    for (answer, problem) in [
        ([&chunk("Hi", "null"), &last, DONE].concat(), "counted no tokens"),
        ([&last, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":0}}\n\n", DONE].concat(), "counted no tokens"),
        ([&chunk("Hi", "null"), &last, "data: {\"usage\":{\"prompt_tokens\":5}}\n\n", DONE].concat(), "counted no tokens"),
        ([&last, "data: {\"usage\":{\"prompt_tokens\":-5,\"completion_tokens\":3}}\n\n", DONE].concat(), "an event"),
        ([&chunk("Hi", "null"), COUNTED, DONE].concat(), "finish_reason"),
        ("data: <html>\n\n".into(), "an event"),
        ("data: {\"choices\":7}\n\n".into(), "an event"),
        ("<html>All is well</html>\n\n".into(), "ended before it was done: <html>All is well"),
        ("{\n  \"error\": {\n    \"message\": \"no such lora\"\n  }\n}\n".into(), "no such lora"),
        ("{\"error\":\"asleep\"}".into(), "asleep"),
        ([&last, COUNTED, DONE].concat(), "gave no text"),
        ("data: {\"error\":{\"message\":\"no memory\",\"code\":500}}\n\n".into(), "no memory"),
        ("data: {\"error\":\"lost the model\"}\n\n".into(), "lost the model"),
    ] {
        let refused = prompt(&Engine::saying(stream(&answer)).await).await.unwrap_err();
        assert!(matches!(&refused, ExecutorError::Worker(said) if said.contains(problem)), "{answer}: {refused}");
    }
    let refused = prompt(&Engine::saying(stream("data: {\"error\":{\"message\":\"too long\",\"code\":400}}\n\n")).await).await;
    assert!(matches!(&refused, Err(ExecutorError::InvalidInput(said)) if said.contains("too long")), "{refused:?}");
    let refused = prompt(&Engine::saying([&stream("data: ")[..], &[0xff, 0xfe, b'\n', b'\n']].concat()).await).await;
    assert!(matches!(&refused, Err(ExecutorError::Worker(said)) if said.contains("no text")), "{refused:?}");
}

#[tokio::test]
async fn an_engine_that_is_busy_is_asked_again() {
    for busy in ["429 Too Many Requests", "503 Service Unavailable"] {
        let asked = AtomicUsize::new(0);
        let engine = Engine::start(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Reply { bytes: status(busy, r#"{"error":"Loading model"}"#), stays: false },
            _ => Reply { bytes: stream(&good()), stays: false },
        })
        .await;
        is_good(prompt(&engine).await);
        assert_eq!(engine.asked.lock().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn what_has_no_end_is_not_kept() {
    let line = ["data: ", &"x".repeat(2 << 20)].concat();
    let event = format!("data: {}\n", "x".repeat(1_000)).repeat(2_000);
    let text = chunk(&"x".repeat(1_000), "null").repeat(9_000);
    for (answer, problem) in [(line, "line of more"), (event, "event of more"), (text, "`text`: has more")] {
        let refused = prompt(&Engine::saying(stream(&answer)).await).await.unwrap_err();
        assert!(refused.to_string().contains(problem), "{refused}");
    }
}

#[tokio::test]
async fn refusals_say_whose_fault_it_is() {
    let long = "x".repeat(5_000);
    for (code, body, retry, said) in [
        (
            "400 Bad Request",
            r#"{"error":{"message":"a prompt is a text","type":"invalid_request_error"}}"#,
            false,
            "a prompt is a text",
        ),
        ("422 Unprocessable Content", r#"{"detail":"max_tokens"}"#, false, "max_tokens"),
        ("413 Content Too Large", &long, false, "xxx"),
        ("401 Unauthorized", r#"{"error":{"message":"no key","code":"invalid_api_key"}}"#, true, "no key"),
        ("404 Not Found", r#"{"error":"model not found"}"#, true, "model not found"),
        ("429 Too Many Requests", "", true, "429"),
        ("500 Internal Server Error", "<html>", true, "500"),
        ("503 Service Unavailable", r#"{"error":{"message":"Loading model","code":503}}"#, true, "Loading model"),
        ("302 Found", "", true, "302"),
    ] {
        let refused = prompt(&Engine::saying(status(code, body)).await).await.unwrap_err();
        assert_eq!(refused.is_retryable(), retry, "{code}: {refused}");
        assert!(refused.to_string().contains(said) && refused.to_string().len() < 1_200, "{code}: {refused}");
        assert!(retry || matches!(refused, ExecutorError::InvalidInput(_)), "{code}: {refused}");
        assert!(!refused.to_string().contains("127.0.0.1"), "where the engine is, is nobody's business: {refused}");
    }
}

#[tokio::test]
async fn nobody_is_led_elsewhere() {
    let other = Engine::saying(stream(&good())).await;
    let location = format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {}/completions\r\ncontent-length: 0\r\n\r\n", other.url);
    let refused = prompt(&Engine::saying(location).await).await;
    assert!(matches!(refused, Err(ExecutorError::Worker(_))), "{refused:?}");
    assert!(other.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn nothing_is_waited_for_longer_than_allowed() {
    let beginning = stream(&chunk("Hi", "null"));
    for bytes in [Vec::new(), b"HTTP/1.1 200 OK\r\n".to_vec(), beginning] {
        let engine = Engine::start(move |_| Reply { bytes: bytes.clone(), stays: true }).await;
        let (executor, package) = (executor(&engine.url), package("tiny", PROMPT, TEXT));
        executor.load(&package).await.unwrap();
        let time_limit = Duration::from_millis(200);
        let execution = Execution { time_limit, ..execution(&package, [("prompt", "Hi")], "{}") };
        let started = std::time::Instant::now();
        assert_eq!(executor.run_to_end(execution).await, Err(ExecutorError::TimedOut(time_limit)));
        assert!(started.elapsed() < TIMEOUT);
        in_time("the connection is closed", engine.left.notified()).await;
    }
}

#[tokio::test]
async fn who_stops_listening_hangs_up() {
    let engine = Engine::start(|_| Reply { bytes: stream(&chunk("Hi", "null")), stays: true }).await;
    let (executor, package) = (executor(&engine.url), package("tiny", PROMPT, TEXT));
    executor.load(&package).await.unwrap();
    let mut outputs = executor.run(execution(&package, [("prompt", "Hi")], "{}")).await.unwrap();
    assert_eq!(outputs.next().await.unwrap().unwrap().values.text("text"), Some("Hi"));
    drop(outputs);
    in_time("the connection is closed", engine.left.notified()).await;
}

#[tokio::test]
async fn bad_requests_never_reach_the_engine() {
    let engine = Engine::saying(stream(&good())).await;
    let messages = |text: &str| Values::from([("messages", text)]);
    let fine = || Values::from([("prompt", "Hi")]);
    for (given, parameters) in [
        (fine(), "[]"),
        (fine(), "{"),
        (fine(), r#"{"n":2}"#),
        (fine(), r#"{"max_tokens":0}"#),
        (fine(), r#"{"max_tokens":-1}"#),
        (fine(), r#"{"temperature":2.5}"#),
        (fine(), r#"{"temperature":-0.1}"#),
        (fine(), r#"{"top_p":0}"#),
        (fine(), r#"{"top_p":1.5}"#),
        (fine(), r#"{"seed":-1}"#),
        (fine(), r#"{"stop":[""]}"#),
        (fine(), r#"{"stop":["a","b","c","d","e"]}"#),
        (Values::new(), "{}"),
        (Values::from([("prompt", "Hi"), ("messages", "[]")]), "{}"),
        (Values::from([("prompt", "Hi"), ("other", "Hi")]), "{}"),
        (messages(""), "{}"),
        (messages("[]"), "{}"),
        (messages(r#"[{"role":"tool","content":"x"}]"#), "{}"),
        (messages(r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://10.0.0.1/"}}]}]"#), "{}"),
        (messages(r#"[{"role":"user","content":"x","name":"y"}]"#), "{}"),
    ] {
        let refused = run(&engine, BOTH, TEXT, given.clone(), parameters).await;
        assert!(matches!(refused, Err(ExecutorError::InvalidInput(_))), "{given:?} {parameters}: {refused:?}");
    }
    assert!(engine.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_models_that_the_engine_has_are_loaded() {
    let engine = Engine::saying("").await;
    let executor = executor(&engine.url);
    assert_eq!(executor.models().await.unwrap(), ["other", "tiny"]);
    let refused = executor.load(&package("large", PROMPT, TEXT)).await.unwrap_err();
    assert!(
        matches!(&refused, ExecutorError::InvalidModel(said) if said.contains("`large`") && said.contains("tiny")),
        "{refused}"
    );
    let text = r#"{"type":"text","name":"text"}"#;
    for (inputs, outputs) in [
        (text, TEXT),
        (BOTH, EMBEDDING),
        (PROMPT, r#"{"type":"text","name":"finish_reason"}"#),
        (PROMPT, r#"{"type":"text","name":"answer"}"#),
        (PROMPT, r#"{"type":"text","name":"text"},{"type":"tensor","name":"embedding","dtype":"f32","shape":[1,3]}"#),
        (r#"{"type":"text","name":"prompt","optional":true}"#, TEXT),
        (r#"{"type":"text","name":"prompt"},{"type":"text","name":"messages"}"#, TEXT),
        (text, r#"{"type":"tensor","name":"embedding","dtype":"i64","shape":[1,3]}"#),
    ] {
        let refused = executor.load(&package("tiny", inputs, outputs)).await;
        assert!(matches!(refused, Err(ExecutorError::InvalidModel(_))), "{inputs} {outputs}: {refused:?}");
    }
    // An engine that is not there may be back later.
    let gone = engine.url.clone();
    drop(engine);
    let refused = self::executor(&gone).load(&package("tiny", PROMPT, TEXT)).await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
}

#[tokio::test]
async fn the_key_is_shown_to_the_engine_alone() {
    let engine = Engine::saying(status("403 Forbidden", "")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "open-sesame\n").unwrap();
    let options = OpenAiOptions { url: engine.url.clone(), api_key: Some(ApiKey::File(file.path().into())) };
    let (executor, package) = (OpenAiExecutor::new(&options).unwrap(), package("tiny", PROMPT, TEXT));
    executor.load(&package).await.unwrap();
    let refused = executor.run_to_end(execution(&package, [("prompt", "Hi")], "{}")).await.unwrap_err();
    assert!(!format!("{refused:?} {options:?}").contains("sesame"));
    let asked = engine.asked.lock().unwrap()[0].clone();
    assert!(asked.contains("\r\nauthorization: Bearer open-sesame\r\n"), "{asked}");

    let wrong =
        |url: &str, key: Option<ApiKey>| OpenAiExecutor::new(&OpenAiOptions { url: url.into(), api_key: key }).err().unwrap();
    for url in ["", "127.0.0.1:8000", "ftp://127.0.0.1/v1", "http://user:word@127.0.0.1/v1", "http://127.0.0.1/v1?key=x"] {
        assert!(wrong(url, None).to_string().starts_with("url: "), "{url}");
    }
    let missing = wrong(&engine.url, Some(ApiKey::Env("NCN_NO_SUCH_KEY".into())));
    assert!(missing.to_string().starts_with("api_key: NCN_NO_SUCH_KEY"), "{missing}");
    let missing = wrong(&engine.url, Some(ApiKey::File("/nowhere/key".into())));
    assert!(missing.to_string().starts_with("api_key: /nowhere/key"), "{missing}");
}
