//! A compute node's link to the gateway in calls of its own, for a node that can send no stream: what it sends comes call by call, and is dealt with as if
//! it had come on one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt as _};
use ncn_core::B256;
use ncn_wire::{
    self as wire,
    proto::{ComputeMessage, GatewayMessage, InferenceRequest, compute_message, gateway_message},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    Gateway,
    plane::{self, Tasks},
};

/// How many calls of one session wait: the others wait where they come from.
const QUEUE: usize = 1;

/// The sessions that are open, each by its name, which its node alone knows: what it signs, others may have a copy of.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<B256, Session>>>);

#[derive(Clone)]
struct Session {
    messages: mpsc::Sender<Result<ComputeMessage, Status>>,
    tasks: Tasks,
    has_answered: Arc<AtomicBool>,
}

/// A session while its stream is read.
struct Open {
    sessions: Sessions,
    name: B256,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.name);
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<B256, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, session: &[u8]) -> Result<Session, Status> {
        let found = self.lock().get(&wire::hash("session", session)?).cloned();
        found.ok_or_else(|| Status::not_found("session: there is none: begin one with ReceiveTask"))
    }

    /// Begins a session, with the gateway's challenge. It lasts as long as the stream is read.
    pub(super) fn begin(&self, gateway: Arc<Gateway>) -> impl Stream<Item = Result<GatewayMessage, Status>> + use<> {
        let ((messages, received), tasks) = (mpsc::channel(QUEUE), Tasks::kept());
        let sending = plane::serve(gateway, ReceiverStream::new(received), tasks.clone());
        let open = Open { sessions: self.clone(), name: B256::random() };
        self.lock().insert(open.name, Session { messages, tasks, has_answered: Arc::default() });
        ReceiverStream::new(sending).map(move |mut message| {
            // All of it is this closure's, so that it ends with the stream.
            let Open { name, .. } = &open;
            if let Ok(GatewayMessage { message: Some(gateway_message::Message::Challenge(asked)) }) = &mut message {
                asked.session = wire::bytes(*name);
            }
            message
        })
    }

    /// Takes a message of a session's node; waits while the one before it is dealt with.
    ///
    /// # Errors
    /// `NOT_FOUND` when the session has ended: why, its stream says.
    pub(super) async fn take(&self, session: &[u8], message: compute_message::Message) -> Result<(), Status> {
        let Session { messages, has_answered, .. } = self.get(session)?;
        // The second answer would end the session, and somebody else may bring a copy of the first.
        if matches!(message, compute_message::Message::Attachment(_)) && has_answered.swap(true, Ordering::Relaxed) {
            return Err(Status::failed_precondition("attachment: the challenge is answered already"));
        }
        let taken = messages.send(Ok(ComputeMessage { message: Some(message) })).await;
        taken.map_err(|_| Status::not_found("session: has ended"))
    }

    /// A task of a session that has no end yet.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub(super) fn task(&self, session: &[u8], request_id: &[u8]) -> Result<InferenceRequest, Status> {
        let task = self.get(session)?.tasks.get(&wire::hash("request_id", request_id)?);
        task.ok_or_else(|| Status::not_found("request_id: is no task that runs in this session"))
    }
}
