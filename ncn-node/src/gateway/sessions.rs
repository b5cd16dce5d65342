//! A compute node's link to the gateway in calls of its own, for a node that can send no stream: what it sends comes call by call, and is dealt with as if
//! it had come on one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{Stream, StreamExt as _};
use ncn_core::{B256, RequestId};
use ncn_wire::{
    self as wire,
    proto::{ComputeMessage, GatewayMessage, InferenceRequest, compute_message, gateway_message},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Gateway, plane};

/// How many calls of one session wait: the others wait where they come from.
const QUEUE: usize = 1;

/// The sessions that are open, each by its challenge, which its node alone knows.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<B256, Session>>>);

struct Session {
    messages: mpsc::Sender<Result<ComputeMessage, Status>>,
    /// Those that have no end yet.
    tasks: HashMap<RequestId, InferenceRequest>,
}

/// Ends a session with the stream that it came with.
struct Open {
    sessions: Sessions,
    challenge: Option<B256>,
    /// What becomes the session, once there is a challenge.
    messages: Option<mpsc::Sender<Result<ComputeMessage, Status>>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(challenge) = &self.challenge {
            self.sessions.lock().remove(challenge);
        }
    }
}

impl Open {
    /// Looks at what is sent to the node.
    fn see(&mut self, message: &GatewayMessage) {
        let mut sessions = self.sessions.lock();
        match &message.message {
            Some(gateway_message::Message::Challenge(asked)) => {
                if let (Ok(challenge), Some(messages)) = (wire::hash("challenge", &asked.challenge), self.messages.take()) {
                    sessions.insert(challenge, Session { messages, tasks: HashMap::new() });
                    self.challenge = Some(challenge);
                }
            }
            Some(gateway_message::Message::Task(task)) => {
                let id = task.quote.as_ref().and_then(|quote| wire::hash("request_id", &quote.request_id).ok());
                if let (Some(id), Some(session)) = (id, self.challenge.and_then(|challenge| sessions.get_mut(&challenge))) {
                    session.tasks.insert(id, task.clone());
                }
            }
            Some(gateway_message::Message::Release(id) | gateway_message::Message::Cancel(id)) => {
                if let (Ok(id), Some(session)) =
                    (wire::hash("request_id", id), self.challenge.and_then(|challenge| sessions.get_mut(&challenge)))
                {
                    session.tasks.remove(&id);
                }
            }
            _ => {}
        }
    }
}

fn unknown() -> Status {
    Status::not_found("session: there is none: begin one with ReceiveTask")
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<B256, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session. It lasts as long as the stream is read.
    pub(super) fn begin(&self, gateway: Arc<Gateway>) -> impl Stream<Item = Result<GatewayMessage, Status>> + use<> {
        let (sender, messages) = mpsc::channel(QUEUE);
        let sending = plane::serve(gateway, ReceiverStream::new(messages));
        let mut open = Open { sessions: self.clone(), challenge: None, messages: Some(sender) };
        ReceiverStream::new(sending).inspect(move |message| {
            if let Ok(message) = message {
                open.see(message);
            }
        })
    }

    /// Takes a message of a session's node; waits while the one before it is dealt with.
    ///
    /// # Errors
    /// `NOT_FOUND` when the session has ended: why, its stream says.
    pub(super) async fn take(&self, session: &[u8], message: compute_message::Message) -> Result<(), Status> {
        let session = wire::hash("session", session)?;
        let messages = self.lock().get(&session).map(|session| session.messages.clone()).ok_or_else(unknown)?;
        let ended = match &message {
            compute_message::Message::Finished(completion) => Some(&completion.request_id),
            compute_message::Message::Failed(failed) => Some(&failed.request_id),
            _ => None,
        };
        if let Some(id) = ended.and_then(|id| wire::hash("request_id", id).ok())
            && let Some(session) = self.lock().get_mut(&session)
        {
            session.tasks.remove(&id);
        }
        messages.send(Ok(ComputeMessage { message: Some(message) })).await.map_err(|_| unknown())
    }

    /// A task of a session that has no end yet.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub(super) fn task(&self, session: &[u8], request_id: &[u8]) -> Result<InferenceRequest, Status> {
        let (session, request_id) = (wire::hash("session", session)?, wire::hash("request_id", request_id)?);
        let sessions = self.lock();
        let task = sessions.get(&session).ok_or_else(unknown)?.tasks.get(&request_id).cloned();
        task.ok_or_else(|| Status::not_found("request_id: is no task that runs in this session"))
    }
}
