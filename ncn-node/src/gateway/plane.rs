//! The gateway's end of a compute node's stream: to the gateway, a [`Compute`] like any other.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use ncn_core::{
    Acknowledgement, Collected, Compute, ComputeError, ComputeEvent, ComputeTask, InferenceResult, NodeRole, QuorumCertificate,
    RequestId, Reservation, Signed, StreamBudget,
    compute::{ComputeEvents, MAX_ERROR_CHARS},
    membership::LIVENESS_SECONDS,
};
use ncn_core::{Address, B256};
use ncn_wire::{
    self as wire, MAX_MESSAGE_BYTES,
    proto::{self, ComputeMessage, GatewayMessage, InferenceRequest, compute_message, gateway_message},
};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::Status;

use super::Gateway;

/// How long a node may take to answer the challenge.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How many messages wait for a node to read them.
const QUEUE: usize = 256;
/// The most bytes of an error that a node may send: each character takes up to 6 in JSON.
const MAX_ERROR_BYTES: usize = 8 * MAX_ERROR_CHARS;
/// How many parts of an output wait for the gateway to read them. Whatever a node sends, all parts of one request are within a
/// [`StreamBudget`] of 32 MiB, and its output within the one message that it comes in: what waits of a request is at most 48 MiB, for
/// as long as it takes the request's driver to come round and put it away (`gateway/task.rs` says how much of it is kept).
const EVENT_QUEUE: usize = 64;
/// How many bytes of a node's outputs wait for the gateway to read them: one message of any length.
const EVENT_BYTES: usize = MAX_MESSAGE_BYTES;

/// What is sent to a node.
pub(super) type Sending = mpsc::Receiver<Result<GatewayMessage, Status>>;

/// The tasks of a node that have no end yet.
#[derive(Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<Open>>);

impl Tasks {
    /// Those of a node that may ask for them again.
    pub(super) fn kept() -> Self {
        Self(Arc::new(Mutex::new(Open { keeps_tasks: true, ..Open::default() })))
    }

    /// One of them, as it was sent.
    pub(super) fn get(&self, request_id: &RequestId) -> Option<InferenceRequest> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.tasks.get(request_id).and_then(|task| task.task.clone())
    }
}

/// Serves one node's stream for as long as it lasts. What it is sent comes over the channel.
pub(super) fn serve<S>(gateway: Arc<Gateway>, messages: S, tasks: Tasks) -> Sending
where
    S: Stream<Item = Result<ComputeMessage, Status>> + Send + Unpin + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let running = run(&gateway, messages, &sender, tasks);
        let stopped = || Err(Status::unavailable("the gateway is stopping"));
        if let Err(error) = gateway.stopped.run_until_cancelled(running).await.unwrap_or_else(stopped) {
            tracing::debug!(error = error.message(), "a compute node's stream ended");
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver
}

async fn run<S>(
    gateway: &Gateway,
    mut messages: S,
    sender: &mpsc::Sender<Result<GatewayMessage, Status>>,
    Tasks(open): Tasks,
) -> Result<(), Status>
where
    S: Stream<Item = Result<ComputeMessage, Status>> + Send + Unpin,
{
    let challenge = B256::random();
    let (address, asked) = (wire::bytes(gateway.address()), wire::bytes(challenge));
    let asked = proto::Challenge { gateway: address, challenge: asked, session: Bytes::new() };
    send(sender, gateway_message::Message::Challenge(asked)).await?;
    let first = tokio::time::timeout(ATTACH_TIMEOUT, messages.next()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no answer to the challenge"))?;
    let address = admit(gateway, challenge, wire::required("message", first.transpose()?)?)?;

    let remote = Arc::new(RemoteCompute { address, sender: sender.clone(), open, room: Arc::new(Semaphore::new(EVENT_BYTES)) });
    let compute: Arc<dyn Compute> = remote.clone();
    gateway.attach(compute.clone());
    tracing::info!(node = %address, "a compute node is attached");
    // A node that is silent for longer than it may be is gone, even if its connection is not.
    let silence = Duration::from_secs(LIVENESS_SECONDS);
    let ended = async {
        while let Some(message) = tokio::time::timeout(silence, messages.next()).await.unwrap_or(None) {
            remote.handle(message?).await?;
        }
        Ok(())
    }
    .await;
    gateway.detach(&compute);
    remote.close();
    ended
}

/// Checks that the answer is to this challenge, and by a compute node of this subnet.
fn admit(gateway: &Gateway, challenge: B256, answer: ComputeMessage) -> Result<Address, Status> {
    let denied = |problem: &str| Status::permission_denied(problem.to_owned());
    let Some(compute_message::Message::Attachment(proof)) = answer.message else {
        return Err(denied("the first message has to answer the challenge"));
    };
    let (record, proof) = proof.read()?;
    if proof.message.gateway != gateway.address() || proof.message.challenge != challenge {
        return Err(denied("attachment: is the answer to another challenge"));
    }
    if record.message.role != NodeRole::Compute || record.message.subnet != gateway.subnet_id() {
        return Err(denied("node: is no compute node of this subnet"));
    }
    if gateway.options.admitted.as_ref().is_some_and(|admitted| !admitted.contains(&record.message.node)) {
        return Err(denied("node: is none of those that this gateway's operator has named"));
    }
    record.verify(&gateway.domain).map_err(|error| denied(&format!("node.signature: {error}")))?;
    proof.verify(&gateway.domain).map_err(|error| denied(&format!("attachment.signature: {error}")))?;
    Ok(record.message.node)
}

async fn send(sender: &mpsc::Sender<Result<GatewayMessage, Status>>, message: gateway_message::Message) -> Result<(), Status> {
    let message = GatewayMessage { message: Some(message) };
    sender.send(Ok(message)).await.map_err(|_| Status::unavailable("the node does not read any more"))
}

/// A compute node at the other end of a stream.
struct RemoteCompute {
    address: Address,
    sender: mpsc::Sender<Result<GatewayMessage, Status>>,
    open: Arc<Mutex<Open>>,
    /// For the bytes of events that wait.
    room: Arc<Semaphore>,
}

/// An event that waits for the gateway to read it, and the room that it takes until then.
struct Waiting {
    event: Result<ComputeEvent, ComputeError>,
    _room: OwnedSemaphorePermit,
}

/// What the node still has to answer.
#[derive(Default)]
struct Open {
    reservations: HashMap<RequestId, oneshot::Sender<Result<(), ComputeError>>>,
    tasks: HashMap<RequestId, OpenTask>,
    collections: HashMap<RequestId, oneshot::Sender<Result<Collected, ComputeError>>>,
    closed: bool,
    keeps_tasks: bool,
}

/// A task that the node runs.
struct OpenTask {
    events: EventSender,
    budget: StreamBudget,
    /// As it was sent, where the node may ask for it again.
    task: Option<InferenceRequest>,
}

type EventSender = mpsc::Sender<Waiting>;

/// An error as the node sent it, which is no reason to keep megabytes of it.
fn remote_error(text: &str) -> ComputeError {
    let text = if text.len() > MAX_ERROR_BYTES { "" } else { text };
    serde_json::from_str(text).unwrap_or_else(|_| ComputeError::Unavailable("gave an error that makes no sense".into()))
}

/// What a node hands over.
fn read_collected(collected: proto::Collected) -> Result<Result<Collected, ComputeError>, Status> {
    if !collected.error.is_empty() {
        return Ok(Err(remote_error(&collected.error)));
    }
    let last = collected.last.map(wire::chunk_from_proto).transpose()?;
    Ok(Ok(Collected { output: wire::values_from_proto(collected.output)?, last }))
}

impl RemoteCompute {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> ComputeError {
        ComputeError::Unavailable(format!("the stream of {} has ended", self.address))
    }

    async fn send(&self, message: gateway_message::Message) -> Result<(), ComputeError> {
        send(&self.sender, message).await.map_err(|_| self.gone())
    }

    /// Nothing will be answered any more: whoever waits is told by its channel closing.
    fn close(&self) {
        *self.open() = Open { closed: true, ..Open::default() };
    }

    async fn handle(&self, message: ComputeMessage) -> Result<(), Status> {
        let length = message.encoded_len();
        match wire::required("message", message.message)? {
            compute_message::Message::Heartbeat(_) => {}
            compute_message::Message::Attachment(_) => return Err(Status::permission_denied("attached already")),
            compute_message::Message::Reserved(reserved) => {
                let answer = if reserved.error.is_empty() { Ok(()) } else { Err(remote_error(&reserved.error)) };
                let waiting = self.open().reservations.remove(&wire::hash("reserved.request_id", &reserved.request_id)?);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(answer);
                }
            }
            compute_message::Message::Chunk(chunk) => {
                let id = wire::hash("chunk.request_id", &chunk.request_id)?;
                let part = wire::chunk_from_proto(wire::required("chunk.chunk", chunk.chunk)?)?;
                let task = match self.open().tasks.get_mut(&id) {
                    Some(task) => {
                        // Nodes count by the same rules: one that sends more is not the software that it should be.
                        let counted = task.budget.take(&part.values);
                        counted.map_err(|limit| Status::resource_exhausted(format!("chunk: the output {limit}")))?;
                        Some(task.events.clone())
                    }
                    None => None,
                };
                self.deliver(task, Ok(ComputeEvent::Chunk(part)), length).await;
            }
            compute_message::Message::Checkpoint(checkpoint) => {
                let checkpoint: Signed<InferenceResult> = checkpoint.try_into()?;
                let task = self.open().tasks.get(&checkpoint.message.request_id).map(|task| task.events.clone());
                self.deliver(task, Ok(ComputeEvent::Checkpoint(checkpoint)), length).await;
            }
            compute_message::Message::Finished(result) => {
                let result: Signed<InferenceResult> = result.try_into()?;
                let task = self.open().tasks.remove(&result.message.request_id).map(|task| task.events);
                self.deliver(task, Ok(ComputeEvent::Finished(result)), length).await;
            }
            compute_message::Message::Collected(collected) => {
                let id = wire::hash("collected.request_id", &collected.request_id)?;
                // What nobody waits for is not read.
                if let Some(waiting) = self.open().collections.remove(&id) {
                    let _ = waiting.send(read_collected(collected)?);
                }
            }
            compute_message::Message::Failed(failed) => {
                let id = wire::hash("failed.request_id", &failed.request_id)?;
                let task = self.open().tasks.remove(&id).map(|task| task.events);
                self.deliver(task, Err(remote_error(&failed.error)), length).await;
            }
        }
        Ok(())
    }

    /// Hands an event to whoever waits for it; waits when that one is slow, and the node waits with it.
    async fn deliver(&self, task: Option<EventSender>, event: Result<ComputeEvent, ComputeError>, length: usize) {
        let Some(task) = task else { return };
        let length = u32::try_from(length.min(EVENT_BYTES)).unwrap_or(u32::MAX);
        // It fails only when it is closed, which nobody does.
        let Ok(room) = self.room.clone().acquire_many_owned(length).await else { return };
        let _ = task.send(Waiting { event, _room: room }).await;
    }
}

#[async_trait]
impl Compute for RemoteCompute {
    fn address(&self) -> Address {
        self.address
    }

    async fn reserve(&self, reservation: Reservation) -> Result<(), ComputeError> {
        let (sender, answer) = oneshot::channel();
        {
            let mut open = self.open();
            if open.closed {
                return Err(self.gone());
            }
            open.reservations.insert(reservation.request_id, sender);
        }
        let request_id = reservation.request_id;
        // Who gives up waiting gives the place back, should the node have taken it.
        let mut undo = Undo::new(self, request_id, gateway_message::Message::Release(wire::bytes(request_id)));
        self.send(gateway_message::Message::Reserve(reservation.into())).await?;
        let answer = answer.await.unwrap_or_else(|_| Err(self.gone()));
        undo.message = None;
        answer
    }

    async fn collect(
        &self,
        request_id: RequestId,
        certificate: QuorumCertificate,
        acknowledgement: Signed<Acknowledgement>,
    ) -> Result<Collected, ComputeError> {
        let (sender, answer) = oneshot::channel();
        {
            let mut open = self.open();
            if open.closed {
                return Err(self.gone());
            }
            open.collections.insert(request_id, sender);
        }
        let _waiting = Collecting { request_id, open: self.open.clone() };
        let (request_id, acknowledgement) = (wire::bytes(request_id), Some(acknowledgement.into()));
        let collect = proto::Collect { request_id, certificate: Some(certificate.into()), acknowledgement };
        self.send(gateway_message::Message::Collect(collect)).await?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    async fn acknowledge(&self, request_id: RequestId, acknowledgement: Signed<Acknowledgement>) {
        let acknowledge = proto::Acknowledge { request_id: wire::bytes(request_id), acknowledgement: Some(acknowledgement.into()) };
        // A node that is gone wants none.
        let _ = self.send(gateway_message::Message::Acknowledge(acknowledge)).await;
    }

    async fn stop(&self, request_id: RequestId) {
        // A node that does not read any more is given up by whoever waits for its end.
        let stop = gateway_message::Message::Stop(wire::bytes(request_id));
        let _ = self.sender.try_send(Ok(GatewayMessage { message: Some(stop) }));
    }

    async fn release(&self, request_id: RequestId) {
        // A node that is gone holds no place, and one that does not read loses it when the lease ends: neither is waited for.
        let release = gateway_message::Message::Release(wire::bytes(request_id));
        let _ = self.sender.try_send(Ok(GatewayMessage { message: Some(release) }));
    }

    async fn execute(&self, task: ComputeTask) -> Result<ComputeEvents, ComputeError> {
        let request_id = task.quote.request_id;
        let task = InferenceRequest::from(task);
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        {
            let mut open = self.open();
            if open.closed {
                return Err(self.gone());
            }
            let kept = open.keeps_tasks.then(|| task.clone());
            open.tasks.insert(request_id, OpenTask { events: sender, budget: StreamBudget::default(), task: kept });
        }
        let cancel = Undo::new(self, request_id, gateway_message::Message::Cancel(wire::bytes(request_id)));
        self.send(gateway_message::Message::Task(task)).await?;
        let state = Some((events, cancel, self.gone()));
        let events = stream::unfold(state, |state| async {
            let (mut events, mut cancel, gone) = state?;
            match events.recv().await.map(|waiting| waiting.event) {
                Some(Ok(event @ (ComputeEvent::Chunk(_) | ComputeEvent::Checkpoint(_)))) => {
                    Some((Ok(event), Some((events, cancel, gone))))
                }
                Some(last) => {
                    cancel.message = None;
                    Some((last, None))
                }
                None => Some((Err(gone), None)),
            }
        });
        Ok(events.boxed())
    }
}

/// Somebody waits for an output.
struct Collecting {
    request_id: RequestId,
    open: Arc<Mutex<Open>>,
}

impl Drop for Collecting {
    fn drop(&mut self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).collections.remove(&self.request_id);
    }
}

/// Forgets a question when nobody waits for its answer any more, and tells the node unless it has answered.
struct Undo {
    request_id: RequestId,
    open: Arc<Mutex<Open>>,
    sender: mpsc::Sender<Result<GatewayMessage, Status>>,
    /// Taken once the node has answered.
    message: Option<gateway_message::Message>,
}

impl Undo {
    fn new(compute: &RemoteCompute, request_id: RequestId, message: gateway_message::Message) -> Self {
        let (open, sender) = (compute.open.clone(), compute.sender.clone());
        Self { request_id, open, sender, message: Some(message) }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some(message) = self.message.take() else { return };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            gateway_message::Message::Release(_) => drop(open.reservations.remove(&self.request_id)),
            _ => drop(open.tasks.remove(&self.request_id)),
        }
        drop(open);
        // When the queue is full, the node is slow or gone; its own deadlines end what it still does.
        let _ = self.sender.try_send(Ok(GatewayMessage { message: Some(message) }));
    }
}

#[cfg(test)]
mod tests {
    use ncn_core::{OutputChunk, Value, Values, compute::MAX_STREAM_PARTS};
    use tonic::Code;

    use super::*;

    /// What becomes of a node that sends a part again and again, and how many it could.
    async fn flood(values: Values) -> (Status, u64) {
        let (sender, _messages) = mpsc::channel(1);
        let room = Arc::new(Semaphore::new(EVENT_BYTES));
        let node = RemoteCompute { address: Address::ZERO, sender, open: Arc::default(), room };
        let request_id = B256::repeat_byte(1);
        let (events, mut queue) = mpsc::channel(EVENT_QUEUE);
        node.open().tasks.insert(request_id, OpenTask { events, budget: StreamBudget::default(), task: None });
        let chunk = proto::TaskChunk {
            request_id: wire::bytes(request_id),
            chunk: Some(OutputChunk { values, usage: ncn_core::Usage::default(), finish: None }.into()),
        };
        for sent in 0..=MAX_STREAM_PARTS {
            let message = ComputeMessage { message: Some(compute_message::Message::Chunk(chunk.clone())) };
            if let Err(status) = node.handle(message).await {
                return (status, sent);
            }
            assert!(queue.try_recv().is_ok());
        }
        panic!("it may send as much as it likes")
    }

    #[tokio::test]
    async fn a_node_that_floods_its_gateway_is_detached() {
        let file = Value::File { media_type: "text/plain".into(), data: vec![0; 1 << 20].into() };
        let (status, sent) = flood([("file", file)].into()).await;
        assert_eq!((status.code(), sent), (Code::ResourceExhausted, 31), "{status}");
        let (status, sent) = flood(Values::new()).await;
        assert_eq!((status.code(), sent), (Code::ResourceExhausted, MAX_STREAM_PARTS), "{status}");
        let (status, sent) = flood([("text", "x".repeat(8 << 20).as_str())].into()).await;
        assert_eq!((status.code(), sent), (Code::ResourceExhausted, 0), "{status}");
    }
}
