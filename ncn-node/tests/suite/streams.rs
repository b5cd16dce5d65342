//! Streamed outputs: every part arrives in order, and is covered by the compute node's word soon after.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_client::{Client, ClientError, Order};
use ncn_core::{
    Amount, B256, Confinement, Execution, Executor, ExecutorError, NetworkInfo, OutputChunk, PaymentConfirmation, RequestId,
    Signed, Submission, TaskAccess, TaskStatus, TaskUpdate, Transport, TransportError, Usage, Value, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
    stream::{CHECKPOINT_MILLIS, CHECKPOINT_PARTS},
    transport::{ModelInfo, Updates},
};
use ncn_node::devnet::{LocalNetwork, quickstart};

use crate::scene::key;

/// Says so many words, one part each, with a pause before each.
struct Words(usize, Duration);

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
        let Self(words, pause) = *self;
        let parts = stream::iter(1..=words).then(move |number| async move {
            tokio::time::sleep(pause).await;
            let values = Values::from([("text", Value::from(format!("{number} ").as_str()))]);
            let usage = Usage { input_units: 1, output_units: words as u64, duration_micros: 1 };
            Ok(OutputChunk { values, usage: (number == words).then_some(usage) })
        });
        Ok(parts.boxed())
    }
}

/// A transport that remembers what comes through, and may change one part.
struct Between {
    inner: Arc<dyn Transport>,
    seen: Arc<Mutex<Vec<(Instant, TaskUpdate)>>>,
    forge: usize,
}

#[async_trait]
impl Transport for Between {
    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        self.inner.submit(submission).await
    }

    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError> {
        self.inner.confirm_payment(confirmation).await
    }

    async fn updates(&self, access: Signed<TaskAccess>) -> Result<Updates, TransportError> {
        let (seen, forge, parts) = (self.seen.clone(), self.forge, AtomicUsize::new(0));
        let updates = self.inner.updates(access).await?.map(move |update| {
            let mut update = update?;
            seen.lock().unwrap().push((Instant::now(), update.clone()));
            if let TaskUpdate::Chunk(chunk) = &mut update
                && parts.fetch_add(1, Ordering::SeqCst) + 1 == forge
            {
                chunk.values.insert("text", "forged ");
            }
            Ok(update)
        });
        Ok(updates.boxed())
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        self.inner.status(request_id).await
    }

    async fn cancel(&self, access: Signed<TaskAccess>) -> Result<(), TransportError> {
        self.inner.cancel(access).await
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        self.inner.models().await
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        self.inner.network().await
    }
}

struct Heard {
    answer: Result<ncn_client::Answer, ClientError>,
    text: String,
    seen: Vec<(Instant, TaskUpdate)>,
}

/// Has these words said through a real network, over gRPC.
async fn listen(words: Words, forge: usize) -> Heard {
    let network = LocalNetwork::builder().executor(Arc::new(words)).start().await.unwrap();
    let signer = key();
    network.treasurer().transfer(signer.address(), Amount::TOKEN).await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inner = Arc::new(ncn_client::grpc::GrpcTransport::new(&network.gateway_url()).unwrap());
    let transport = Arc::new(Between { inner, seen: seen.clone(), forge });
    let ledger = Arc::new(network.ledger(signer.clone()));
    let client = Client::builder().transport(transport).ledger(ledger).signer(signer).build().unwrap();
    let inputs = [("image", Value::png(quickstart::SAMPLE))];
    let order = Order::new(quickstart::NAME, inputs).patience(Duration::from_secs(if forge > 0 { 8 } else { 60 }));
    let paid = client.submit(order).await.unwrap().pay().await.unwrap();
    let text = Mutex::new(String::new());
    let answer = paid.finish_with(|part| text.lock().unwrap().push_str(part.values.text("text").unwrap())).await;
    let seen = seen.lock().unwrap().clone();
    Heard { answer, text: text.into_inner().unwrap(), seen }
}

fn checkpoints(seen: &[(Instant, TaskUpdate)]) -> Vec<u64> {
    let checkpoint = |(_, update): &(Instant, TaskUpdate)| match update {
        TaskUpdate::Checkpoint(signed) => Some(signed.message.parts),
        _ => None,
    };
    seen.iter().filter_map(checkpoint).collect()
}

#[tokio::test]
async fn a_fast_stream_is_signed_every_32_parts() {
    let heard = listen(Words(100, Duration::ZERO), 0).await;
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
    let heard = listen(Words(10, Duration::from_millis(100)), 0).await;
    heard.answer.unwrap();
    let mut unsigned: Option<Instant> = None;
    let late = Duration::from_millis(CHECKPOINT_MILLIS + 200);
    for (at, update) in heard.seen {
        match update {
            TaskUpdate::Chunk(_) => drop(unsigned.get_or_insert(at)),
            TaskUpdate::Checkpoint(_) => {
                let since = unsigned.take().expect("a checkpoint follows a part");
                assert!(at - since < late, "signed after {:?}", at - since);
            }
            _ => {}
        }
    }
    assert!(unsigned.is_none(), "the last part is covered");
}

#[tokio::test]
async fn a_forged_part_is_noticed_at_the_next_checkpoint() {
    let heard = listen(Words(100, Duration::from_millis(1)), 10).await;
    let error = heard.answer.unwrap_err();
    assert!(error.to_string().contains("some were changed, left out or added"), "{error}");
    let parts = heard.text.split_whitespace().count();
    assert!(parts < 10 + 2 * usize::try_from(CHECKPOINT_PARTS).unwrap(), "{parts} parts were handed out");
}

#[tokio::test]
async fn an_output_in_one_part_is_no_stream() {
    let heard = listen(Words(1, Duration::ZERO), 0).await;
    assert_eq!(heard.answer.unwrap().output.text("text"), Some("1 "));
    assert!(heard.text.is_empty() && checkpoints(&heard.seen).is_empty());
}
