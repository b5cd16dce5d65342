//! Streamed outputs: every part arrives in order, and is covered by the compute node's word soon after.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_client::{Client, ClientError, InferenceEvent, Order};
use ncn_core::{
    Amount, B256, Confinement, Domain, Execution, Executor, ExecutorError, FinishReason, OutputChunk, RequestId, Signed, Step,
    StreamChain, TaskCapability, TaskEvent, Transport, TransportError, Update, Usage, Value, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
    stream::{CHECKPOINT_MILLIS, CHECKPOINT_PARTS},
    transport::Updates,
};
use ncn_devnet::{LocalNetwork, quickstart};
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    harmful::changed,
    scene::{key, result_for},
    tamper::{Tamper, Tampered},
};

/// Says so many words, one part each, with a pause before each.
#[derive(Clone)]
pub(crate) struct Words {
    count: usize,
    pause: Pause,
    /// When each was said.
    pub(crate) said: Arc<Mutex<Vec<Instant>>>,
    /// When each run was over: nobody asks it for more.
    pub(crate) over: Arc<Mutex<Vec<SystemTime>>>,
}

/// A run of a model.
struct Run(Arc<Mutex<Vec<SystemTime>>>);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(SystemTime::now());
    }
}

#[derive(Clone)]
enum Pause {
    For(Duration),
    /// Until the client has a checkpoint of the words before, but for the newest: the node is always one ahead.
    UntilSigned(Arc<Notify>),
}

impl Words {
    pub(crate) fn new(count: usize, pause: Duration) -> Self {
        Self { count, pause: Pause::For(pause), said: Arc::default(), over: Arc::default() }
    }

    async fn say(&self, number: usize) -> Result<OutputChunk, ExecutorError> {
        match &self.pause {
            Pause::For(pause) => tokio::time::sleep(*pause).await,
            Pause::UntilSigned(signed) if number > 2 => signed.notified().await,
            Pause::UntilSigned(_) => {}
        }
        self.said.lock().unwrap().push(Instant::now());
        let values = Values::from([("text", Value::from(format!("{number} ").as_str()))]);
        let usage = Usage { input_units: 1, output_units: number as u64, duration_micros: 1 };
        Ok(OutputChunk { values, usage, finish: (number == self.count).then_some(FinishReason::Stop) })
    }
}

#[async_trait]
impl Executor for Words {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Onnx]
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, _package: &ModelPackage) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn unload(&self, _digest: &B256) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn run(&self, _execution: Execution) -> Result<Outputs, ExecutorError> {
        let (words, run) = (self.clone(), Run(self.over.clone()));
        let parts = stream::iter(1..=self.count).then(move |number| {
            let (words, _run) = (words.clone(), &run);
            async move { words.say(number).await }
        });
        Ok(parts.boxed())
    }
}

/// Streams a part and dies, the first time; then answers otherwise.
#[derive(Default)]
struct Dying(AtomicUsize);

#[async_trait]
impl Executor for Dying {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Onnx]
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, _package: &ModelPackage) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn unload(&self, _digest: &B256) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn run(&self, _execution: Execution) -> Result<Outputs, ExecutorError> {
        let part = |text: &str| OutputChunk { values: Values::from([("text", text)]), usage: Usage::default(), finish: None };
        let parts = if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            vec![Ok(part("one ")), Ok(part("two ")), Err(ExecutorError::Worker("killed".into()))]
        } else {
            let last = OutputChunk::last(Values::from([("text", "drei")]), Usage::default());
            vec![Ok(part("eins ")), Ok(part("zwei ")), Ok(last)]
        };
        Ok(stream::iter(parts).boxed())
    }
}

/// What a transport does to what comes through it.
#[derive(Clone, Copy)]
enum Meddling {
    Nothing,
    /// Changes the part with this number.
    Forges(usize),
    /// Repeats every part this often.
    Repeats(usize),
    /// Lies in every part, and drops what the node signs.
    Lies,
    /// The same, and signs the lies itself, as a node that has taken over.
    LiesAsNode,
    /// Breaks off after every fifth update.
    BreaksOff,
}

/// A transport that remembers what comes through, and may change it.
struct Between {
    inner: Arc<dyn Transport>,
    seen: Arc<Mutex<Vec<TaskEvent>>>,
    /// Told of each checkpoint.
    signed: Arc<Notify>,
    meddling: Meddling,
    domain: Domain,
}

impl Between {
    async fn change(meddling: Meddling, number: usize, domain: Domain, id: RequestId, update: TaskEvent) -> Vec<TaskEvent> {
        let lie = Values::from([("text", "LIE ")]);
        let part =
            |values: &Values| TaskEvent::Chunk(OutputChunk { values: values.clone(), usage: Usage::default(), finish: None });
        match (meddling, update) {
            (Meddling::Forges(forged), TaskEvent::Chunk(mut chunk)) if number == forged => {
                chunk.values.insert("text", "forged ");
                vec![TaskEvent::Chunk(chunk)]
            }
            (Meddling::Repeats(times), TaskEvent::Chunk(chunk)) => vec![TaskEvent::Chunk(chunk); times],
            (Meddling::Lies | Meddling::LiesAsNode, TaskEvent::Checkpoint(_)) => vec![],
            (Meddling::Lies, TaskEvent::Chunk(_)) => vec![part(&lie)],
            (Meddling::LiesAsNode, TaskEvent::Chunk(_)) => {
                let node = key();
                let mut chain = StreamChain::new(id);
                chain.extend(&lie);
                let result = chain.describe(&lie, result_for(id, node.address()));
                let signed = Signed::sign(result, &domain, &*node).await.unwrap();
                vec![TaskEvent::Attempt(node.address()), part(&lie), TaskEvent::Checkpoint(Box::new(signed))]
            }
            (_, update) => vec![update],
        }
    }
}

#[async_trait]
impl Tamper for Between {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        let (seen, signed, meddling) = (self.seen.clone(), self.signed.clone(), self.meddling);
        let (domain, id) = (self.domain, access.message.request_id);
        let parts = Arc::new(AtomicUsize::new(0));
        let updates = self.inner.updates(access, from).await?.then(move |update| {
            let (seen, signed, parts) = (seen.clone(), signed.clone(), parts.clone());
            async move {
                let Update { index, event } = match update {
                    Ok(update) => update,
                    Err(error) => return stream::iter(vec![Err(error)]),
                };
                seen.lock().unwrap().push(event.clone());
                if matches!(event, TaskEvent::Checkpoint(_)) {
                    signed.notify_one();
                }
                let number = parts.fetch_add(usize::from(matches!(event, TaskEvent::Chunk(_))), Ordering::SeqCst) + 1;
                let changed = Self::change(meddling, number, domain, id, event).await;
                stream::iter(changed.into_iter().map(|event| Ok(Update { index, event })).collect::<Vec<_>>())
            }
        });
        let updates = updates.flatten();
        if matches!(meddling, Meddling::BreaksOff) {
            return Ok(updates.take(5).boxed());
        }
        Ok(updates.boxed())
    }
}

struct Heard {
    answer: Result<ncn_client::InferenceOutput, ClientError>,
    text: String,
    restarts: usize,
    seen: Vec<TaskEvent>,
}

/// Has a model streamed through a real network, over gRPC.
async fn listen(executor: impl Executor + 'static, meddling: Meddling) -> Heard {
    listen_and_tell(executor, meddling, Arc::default()).await
}

/// The same, and tells of each checkpoint that came.
async fn listen_and_tell(executor: impl Executor + 'static, meddling: Meddling, signed: Arc<Notify>) -> Heard {
    let directory = tempfile::tempdir().unwrap();
    let package = changed(directory.path(), |manifest| manifest["outputs"] = json!([{ "type": "text", "name": "text" }]));
    let network = LocalNetwork::builder().executor(Arc::new(executor)).models(vec![package]).start().await.unwrap();
    let signer = key();
    network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inner = Arc::new(ncn_client::grpc::GrpcTransport::new(&network.gateway_url()).unwrap());
    let domain = network.trust_root().await.unwrap().domain;
    let transport = Arc::new(Tampered(Between { inner, seen: seen.clone(), signed, meddling, domain }));
    let ledger = Arc::new(network.ledger(signer.clone()));
    let client = Client::builder().transport(transport).payer(ledger).signer(signer).build().unwrap();
    let inputs = [("image", Value::png(quickstart::SAMPLE))];
    let paid =
        client.submit(Order::new(quickstart::NAME, inputs).timeout(Duration::from_mins(10))).await.unwrap().pay().await.unwrap();
    let (mut text, mut restarts) = (String::new(), 0);
    let mut events = paid.events();
    let answer = loop {
        match events.next().await.unwrap() {
            Ok(InferenceEvent::Part(part)) => text.push_str(part.values.text("text").unwrap()),
            Ok(InferenceEvent::Finished(answer)) => break Ok(*answer),
            Ok(InferenceEvent::Restarted) => {
                text.clear();
                restarts += 1;
            }
            Ok(event) => panic!("unknown: {event:?}"),
            Err(error) => break Err(error),
        }
    };
    assert!(events.next().await.is_none(), "the stream ends after the answer");
    let seen = seen.lock().unwrap().clone();
    Heard { answer, text, restarts, seen }
}

/// How many parts each checkpoint covers.
fn checkpoints(seen: &[TaskEvent]) -> Vec<u64> {
    let checkpoint = |update: &TaskEvent| match update {
        TaskEvent::Checkpoint(signed) => Some(signed.message.parts),
        _ => None,
    };
    seen.iter().filter_map(checkpoint).collect()
}

#[tokio::test]
async fn a_fast_stream_is_signed_every_32_parts() {
    let heard = listen(Words::new(100, Duration::ZERO), Meddling::Nothing).await;
    let expected = (1..=100).map(|number| number.to_string()).collect::<Vec<_>>().join(" ") + " ";
    assert_eq!(heard.text, expected);
    let answer = heard.answer.unwrap();
    assert_eq!(answer.output.text("text"), Some(expected.as_str()), "the parts are the output");
    let checkpoints = checkpoints(&heard.seen);
    assert_eq!(checkpoints.last(), Some(&100), "the last part is covered");
    let mut covered = 0;
    for parts in checkpoints {
        assert!(parts - covered <= CHECKPOINT_PARTS, "{covered} to {parts}");
        covered = parts;
    }
}

#[tokio::test]
async fn a_slow_stream_is_signed_every_quarter_of_a_second() {
    let words = Words::new(10, Duration::from_millis(100));
    let said = words.said.clone();
    let heard = listen(words, Meddling::Nothing).await;
    heard.answer.unwrap();
    let (said, checkpoints) = (said.lock().unwrap().clone(), checkpoints(&heard.seen));
    assert_eq!(checkpoints.last(), Some(&10), "the last part is covered");
    // How long a checkpoint takes to come here is the machine's affair. That it is made in time shows in what it covers: of the parts that
    // were said after its quarter of a second, at most the one that was ready at the same moment.
    let mut first = 0;
    for covered in checkpoints.into_iter().map(|parts| usize::try_from(parts).unwrap()) {
        // And a little, between a word's being said and its being seen.
        let due = said[first] + Duration::from_millis(CHECKPOINT_MILLIS + 200);
        let late = said[first..covered].iter().filter(|at| **at > due).count();
        assert!(late <= 1, "{late} parts of {first} to {covered} came after the time to sign");
        first = covered;
    }
}

#[tokio::test]
async fn a_pause_does_not_hold_up_the_signature_of_what_came_before() {
    let signed = Arc::new(Notify::new());
    let words = Words { count: 4, pause: Pause::UntilSigned(signed.clone()), ..Words::new(4, Duration::ZERO) };
    let heard = listen_and_tell(words, Meddling::Nothing, signed).await;
    heard.answer.unwrap();
    assert_eq!(checkpoints(&heard.seen), [1, 2, 3, 4], "each was signed before the next was there");
}

#[tokio::test]
async fn a_forged_part_is_noticed_at_the_next_checkpoint() {
    let heard = listen(Words::new(100, Duration::from_millis(1)), Meddling::Forges(10)).await;
    let error = heard.answer.unwrap_err();
    let expected = (1..=100).map(|number| number.to_string()).collect::<Vec<_>>().join(" ") + " ";
    let ClientError::PartsRejected { answer, .. } = &error else { panic!("{error}") };
    assert_eq!(answer.output.text("text"), Some(expected.as_str()), "the answer is there all the same");
    assert!(error.to_string().contains("some were changed, left out or added"), "{error}");
    let parts = heard.text.split_whitespace().count();
    assert!(parts < 10 + 2 * usize::try_from(CHECKPOINT_PARTS).unwrap(), "{parts} parts were handed out");
}

#[tokio::test]
async fn a_gateway_that_repeats_itself_is_not_listened_to() {
    let heard = listen(Words::new(2, Duration::ZERO), Meddling::Repeats(200_000)).await;
    let parts = heard.text.split_whitespace().count();
    assert!(parts <= usize::try_from(CHECKPOINT_PARTS).unwrap(), "{parts} parts were handed out");
    let ClientError::PartsRejected { answer, .. } = heard.answer.unwrap_err() else { panic!("not rejected") };
    assert_eq!(answer.output.text("text"), Some("1 2 "));
}

#[tokio::test]
async fn a_stream_that_breaks_off_goes_on_where_it_was() {
    let heard = listen(Words::new(40, Duration::from_millis(1)), Meddling::BreaksOff).await;
    let expected = (1..=40).map(|number| number.to_string()).collect::<Vec<_>>().join(" ") + " ";
    assert_eq!((heard.text.as_str(), heard.restarts), (expected.as_str(), 0));
    let answer = heard.answer.unwrap();
    assert_eq!(answer.output.text("text"), Some(expected.as_str()));
    let parts = heard.seen.iter().filter(|event| matches!(event, TaskEvent::Chunk(_))).count();
    assert_eq!(parts, 40, "no part comes twice");
    assert!(
        answer.steps.iter().any(|step| step.step == Step::Discover),
        "what came before a break is remembered: {:?}",
        answer.steps
    );
}

#[tokio::test]
async fn an_output_in_one_part_is_no_stream() {
    let heard = listen(Words::new(1, Duration::ZERO), Meddling::Nothing).await;
    assert_eq!(heard.answer.unwrap().output.text("text"), Some("1 "));
    assert!(heard.text.is_empty() && checkpoints(&heard.seen).is_empty());
}

#[tokio::test]
async fn a_stream_that_another_node_takes_over_starts_anew() {
    let heard = listen(Dying::default(), Meddling::Nothing).await;
    let answer = heard.answer.unwrap();
    assert_eq!(answer.output.text("text"), Some("eins zwei drei"));
    assert_eq!((heard.text.as_str(), heard.restarts), ("eins zwei drei", 1));
    let attempts: Vec<_> = heard.seen.iter().filter(|update| matches!(update, TaskEvent::Attempt(_))).collect();
    assert_eq!(attempts.len(), 2);
}

#[tokio::test]
async fn a_gateway_that_makes_the_stream_up_is_found_out() {
    for meddling in [Meddling::Lies, Meddling::LiesAsNode] {
        let heard = listen(Words::new(100, Duration::from_millis(1)), meddling).await;
        let parts = heard.text.split_whitespace().count();
        assert!(parts <= usize::try_from(CHECKPOINT_PARTS).unwrap(), "{parts} lies were handed out");
        let error = heard.answer.unwrap_err();
        assert!(error.is_paid());
        let ClientError::PartsRejected { answer, .. } = error else { panic!("{error}") };
        assert!(answer.output.text("text").unwrap().starts_with("1 2 3 "), "the verified answer is not lost");
    }
}
