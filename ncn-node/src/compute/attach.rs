//! A compute node's stream to a gateway: the node calls, and then answers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt as _;
use ncn_client::{
    Backoff,
    grpc::{EndpointError, channel},
};
use ncn_core::{Address, B256};
use ncn_core::{
    Collected, Compute as _, ComputeError, ComputeEvent, ComputeTask, RequestId, SessionProof, Signed,
    membership::HEARTBEAT_SECONDS,
};
use ncn_wire::{
    self as wire, MAX_MESSAGE_BYTES,
    proto::{
        self, ComputeMessage, GatewayMessage, compute_message, gateway_compute_service_client::GatewayComputeServiceClient,
        gateway_message,
    },
};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};
use tracing::Instrument as _;

use super::ComputeNode;
use crate::registration::next_sequence;

/// How many messages wait for the gateway to read them.
const QUEUE: usize = 64;
/// How many outputs are collected at once: 8 MiB each until they are among these.
const MAX_COLLECTING: usize = 16;
/// How many of a gateway's messages are worked on beside the stream, those that wait to be collected among them.
const MAX_BACKGROUND: usize = 1_024;
/// How many bytes these have together; a message is never longer. Beside them, each request that runs has at most 32 MiB of parts that
/// its worker has sent (`worker/process.rs`), 8 MiB of output so far, one part of 8 MiB that is held back and one that waits to be among
/// these, and what is finished waits in 64 MiB (`compute/finished.rs`): a node with 8 places and one gateway keeps at most
/// 8 * 56 + 16 * 8 + 16 + 64 = 656 MiB of outputs.
const MAX_WAITING_BYTES: u32 = 16 << 20;

/// A node's streams to its gateways; they end when this is dropped.
#[derive(Default)]
pub struct GatewaySessions(JoinSet<()>);

impl GatewaySessions {
    /// No gateways.
    pub fn new() -> Self {
        Self::default()
    }

    /// Attaches a node to the gateway `gateway` at this URL, again and again when the stream breaks.
    pub fn add(&mut self, node: Arc<ComputeNode>, gateway: Address, url: &str) -> Result<(), EndpointError> {
        let client = GatewayComputeServiceClient::new(channel(url)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let url = url.to_owned();
        self.0.spawn(async move {
            let mut backoff = Backoff::new();
            loop {
                match attach(&node, gateway, client.clone(), &mut backoff).await {
                    Ok(()) => tracing::info!(gateway = url, "the gateway closed the stream"),
                    Err(error) => tracing::warn!(gateway = url, error = error.message(), "the stream to the gateway broke"),
                }
                backoff.pause().await;
            }
        });
        Ok(())
    }
}

/// One stream, until it ends.
async fn attach(
    node: &Arc<ComputeNode>,
    gateway: Address,
    mut client: GatewayComputeServiceClient<Channel>,
    backoff: &mut Backoff,
) -> Result<(), Status> {
    let (answers, to_send) = Answers::new();
    // Their bytes may be others' once the connection has taken them.
    let to_send = ReceiverStream::new(to_send).map(|(message, _bytes)| message);
    let mut messages = client.attach(to_send).await?.into_inner();
    let (background, collecting) = (JoinSet::new(), Arc::new(Semaphore::new(MAX_COLLECTING)));
    let mut stream = Stream { node: node.clone(), gateway, answers, running: HashMap::new(), background, collecting };
    let mut heartbeats = tokio::time::interval(Duration::from_secs(HEARTBEAT_SECONDS));
    heartbeats.tick().await;
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => {
                    stream.handle(message?).await?;
                    // A gateway that speaks is worth a quick return.
                    *backoff = Backoff::new();
                }
                None => return Ok(()),
            },
            _ = heartbeats.tick() => stream.send(compute_message::Message::Heartbeat(proto::Empty {})).await?,
        }
    }
}

/// What waits for the gateway, and how many bytes it may still have.
#[derive(Clone)]
struct Answers {
    messages: mpsc::Sender<(ComputeMessage, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
}

impl Answers {
    fn new() -> (Self, mpsc::Receiver<(ComputeMessage, OwnedSemaphorePermit)>) {
        let (messages, to_send) = mpsc::channel(QUEUE);
        (Self { messages, bytes: Arc::new(Semaphore::new(MAX_WAITING_BYTES as usize)) }, to_send)
    }

    async fn send(&self, message: compute_message::Message) -> Result<(), Status> {
        let gone = || Status::unavailable("the gateway does not read any more");
        let message = ComputeMessage { message: Some(message) };
        let bytes = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX).min(MAX_WAITING_BYTES);
        let bytes = tokio::select! {
            bytes = self.bytes.clone().acquire_many_owned(bytes) => bytes.map_err(|_| gone())?,
            () = self.messages.closed() => return Err(gone()),
        };
        self.messages.send((message, bytes)).await.map_err(|_| gone())
    }
}

struct Stream {
    node: Arc<ComputeNode>,
    gateway: Address,
    answers: Answers,
    running: HashMap<RequestId, AbortHandle>,
    /// End with the stream.
    background: JoinSet<()>,
    collecting: Arc<Semaphore>,
}

impl Drop for Stream {
    /// A gateway that is gone waits for nothing.
    fn drop(&mut self) {
        self.running.values().for_each(AbortHandle::abort);
    }
}

fn collect_message(request_id: RequestId, collected: Result<Collected, ComputeError>) -> proto::Collected {
    let request_id = wire::bytes(request_id);
    match collected {
        Ok(Collected { output, last }) => {
            let (output, last) = (wire::values_to_proto(output), last.map(Into::into));
            proto::Collected { request_id, output, last, error: String::new() }
        }
        Err(error) => proto::Collected { request_id, error: error_text(&error), ..proto::Collected::default() },
    }
}

fn error_text(error: &ComputeError) -> String {
    serde_json::to_string(error).unwrap_or_default()
}

impl Stream {
    async fn send(&self, message: compute_message::Message) -> Result<(), Status> {
        self.answers.send(message).await
    }

    async fn handle(&mut self, message: GatewayMessage) -> Result<(), Status> {
        match wire::required("message", message.message)? {
            gateway_message::Message::Challenge(challenge) => self.answer(challenge).await,
            gateway_message::Message::Reserve(reserve) => {
                let request_id = reserve.request_id.clone();
                let error = match self.node.reserve(reserve.try_into()?).await {
                    Ok(()) => String::new(),
                    Err(error) => error_text(&error),
                };
                self.send(compute_message::Message::Reserved(proto::Reserved { request_id, error })).await
            }
            gateway_message::Message::Release(request_id) => {
                self.node.release(wire::hash("release", &request_id)?).await;
                Ok(())
            }
            gateway_message::Message::Task(task) => {
                self.start(task.try_into()?);
                Ok(())
            }
            gateway_message::Message::Collect(collect) => {
                let request_id = wire::hash("collect.request_id", &collect.request_id)?;
                let certificate = wire::required("collect.certificate", collect.certificate)?.try_into()?;
                let word = wire::required("collect.acknowledgement", collect.acknowledgement)?.try_into()?;
                // It asks the chain, which may take its time: other messages come meanwhile.
                while self.background.try_join_next().is_some() {}
                if self.background.len() >= MAX_BACKGROUND {
                    let busy = collect_message(request_id, Err(ComputeError::Busy(self.node.address())));
                    return self.send(compute_message::Message::Collected(busy)).await;
                }
                let (node, answers, collecting) = (self.node.clone(), self.answers.clone(), self.collecting.clone());
                self.background.spawn(async move {
                    // Nobody closes it.
                    let Ok(place) = collecting.acquire_owned().await else { return };
                    let collected = collect_message(request_id, node.collect(request_id, certificate, word).await);
                    drop(place);
                    // It fails only when the gateway is gone, which it will notice itself.
                    let _ = answers.send(compute_message::Message::Collected(collected)).await;
                });
                Ok(())
            }
            gateway_message::Message::Acknowledge(acknowledge) => {
                let request_id = wire::hash("acknowledge.request_id", &acknowledge.request_id)?;
                let word = wire::required("acknowledge.acknowledgement", acknowledge.acknowledgement)?.try_into()?;
                while self.background.try_join_next().is_some() {}
                if self.background.len() < MAX_BACKGROUND {
                    // What can be claimed is kept on disk, now and then.
                    let node = self.node.clone();
                    self.background.spawn(async move { node.acknowledge(request_id, word).await });
                }
                Ok(())
            }
            gateway_message::Message::Stop(request_id) => {
                self.node.stop(wire::hash("stop", &request_id)?).await;
                Ok(())
            }
            gateway_message::Message::Cancel(request_id) => {
                if let Some(running) = self.running.remove(&wire::hash("cancel", &request_id)?) {
                    running.abort();
                }
                Ok(())
            }
        }
    }

    /// Proves who this node is, to its own gateway only: whoever relays another gateway's challenge gets nothing for it.
    async fn answer(&self, challenge: proto::Challenge) -> Result<(), Status> {
        if wire::address("challenge.gateway", &challenge.gateway)? != self.gateway {
            return Err(Status::permission_denied(format!("the gateway is not {}", self.gateway)));
        }
        let (node, signer) = (&self.node, &self.node.signer);
        let internal = |error: ncn_core::SignatureError| Status::internal(error.to_string());
        let record = node.descriptor().record(&node.domain, signer, next_sequence(0)).await.map_err(internal)?;
        let proof = SessionProof {
            node: node.address(),
            gateway: self.gateway,
            challenge: wire::hash("challenge.challenge", &challenge.challenge)?,
        };
        let proof = Signed::sign(proof, &node.domain, &**signer).await.map_err(internal)?;
        self.send(compute_message::Message::Attachment(proto::Attachment::write(record, proof))).await
    }

    fn start(&mut self, task: ComputeTask) {
        self.running.retain(|_, handle| !handle.is_finished());
        let request_id = task.quote.request_id;
        let (node, answers) = (self.node.clone(), self.answers.clone());
        let span = tracing::info_span!("compute", request = %request_id);
        let working = async move {
            if let Err(error) = run(&node, task, &answers).await {
                let failed = proto::TaskFailed { request_id: wire::bytes(request_id), error: error_text(&error) };
                // It fails only when the gateway is gone, which it will notice itself.
                let _ = answers.send(compute_message::Message::Failed(failed)).await;
            }
        };
        let running = tokio::spawn(working.instrument(span));
        self.running.insert(request_id, running.abort_handle());
    }
}

/// Runs a task and sends what comes out.
async fn run(node: &ComputeNode, task: ComputeTask, answers: &Answers) -> Result<(), ComputeError> {
    let id: B256 = task.quote.request_id;
    let mut events = node.execute(task).await?;
    while let Some(event) = events.next().await {
        let message = match event? {
            ComputeEvent::Chunk(chunk) => {
                compute_message::Message::Chunk(proto::TaskChunk { request_id: wire::bytes(id), chunk: Some(chunk.into()) })
            }
            ComputeEvent::Checkpoint(checkpoint) => compute_message::Message::Checkpoint(checkpoint.into()),
            ComputeEvent::Finished(result) => compute_message::Message::Finished(result.into()),
            _ => continue,
        };
        answers.send(message).await.map_err(|status| ComputeError::Unavailable(status.message().into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let (answers, mut to_send) = Answers::new();
        let large = || {
            let failed = proto::TaskFailed { error: "x".repeat(7 << 20), ..proto::TaskFailed::default() };
            answers.send(compute_message::Message::Failed(failed)).now_or_never()
        };
        assert!(large().is_some_and(|sent| sent.is_ok()) && large().is_some_and(|sent| sent.is_ok()));
        assert!(large().is_none(), "a third does not fit");
        drop(to_send.try_recv().unwrap());
        assert!(large().is_some_and(|sent| sent.is_ok()));
        drop(to_send);
        assert!(large().is_some_and(|sent| sent.is_err()), "nobody reads any more");
    }
}
