//! The gateway's port for clients over WebSocket: many calls, and the updates of many requests, on one connection. A thin adapter around any
//! [`Transport`].

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{Request, State},
    response::Response,
};
use futures::StreamExt as _;
use ncn_core::{ChannelParams, Signed, TaskCapability, Transport, TransportError};
use ncn_wire::{
    MAX_SMALL_MESSAGE_BYTES,
    json::{Answer, Call, ChannelClosing, Problem, Question, Reply},
};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::http::read;
use crate::server::{
    plain::busy,
    socket::{Accounts, Received, Sending, Socket, upgrade},
};

/// How many calls of one socket are answered at once; it is not read while there are more.
const CALLS: usize = 32;
/// How many requests it follows at once.
const FOLLOWED: usize = 256;
/// How many answers wait to be sent; who makes more waits.
const QUEUE: usize = 16;

/// Where the answers of one socket go.
#[derive(Clone)]
struct Answers {
    sender: mpsc::Sender<Sending>,
    accounts: Accounts,
}

/// Makes a socket of a connection.
pub(super) async fn open(State(transport): State<Arc<dyn Transport>>, request: Request) -> Response {
    upgrade(request, move |socket| serve(socket, transport))
}

/// Serves a socket until it ends. What was begun on it ends with it.
async fn serve(mut socket: Socket, transport: Arc<dyn Transport>) {
    let (sender, mut outgoing) = mpsc::channel(QUEUE);
    let answers = Answers { sender, accounts: socket.accounts() };
    let places = Arc::new(Semaphore::new(CALLS));
    let (mut calls, mut followed) = (tokio::task::JoinSet::new(), HashMap::<u64, AbortOnDropHandle<()>>::new());
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((socket.next().await?, place))
        };
        let (Received { text, counted }, place) = tokio::select! {
            sending = outgoing.recv() => {
                let Some(sending) = sending else { return };
                if socket.send(sending).await.is_err() {
                    return;
                }
                continue;
            }
            next = next => match next {
                Some(next) => next,
                None => return,
            },
        };
        while calls.try_join_next().is_some() {}
        followed.retain(|_, following| !following.is_finished());
        if let Err(error) = counted {
            calls.spawn(refused(answers.clone(), id_of(&text), error, place));
            continue;
        }
        match read::<Question>(text.clone().into(), "message").await {
            Err(error) => drop(calls.spawn(refused(answers.clone(), None, error, place))),
            Ok(Question { call: Call::Leave(id), .. }) => drop(followed.remove(&id)),
            Ok(Question { id, .. }) if followed.contains_key(&id) => {
                let error = TransportError::invalid("id", "is that of a call that is open");
                calls.spawn(refused(answers.clone(), Some(id), error, place));
            }
            Ok(Question { id, call: Call::Updates { access, from } }) if followed.len() < FOLLOWED => {
                let following = follow(transport.clone(), answers.clone(), id, access, from);
                followed.insert(id, AbortOnDropHandle::new(tokio::spawn(following)));
            }
            Ok(Question { id, call }) => {
                let counted = if matches!(call, Call::Submit(_)) { answers.accounts.count_order(&text) } else { Ok(()) };
                drop(match counted {
                    Ok(()) => calls.spawn(answer(transport.clone(), answers.clone(), id, call, place)),
                    Err(error) => calls.spawn(refused(answers.clone(), Some(id), error, place)),
                });
            }
        }
    }
}

impl Answers {
    /// Sends an answer, as soon as those before it are sent; says whether the socket is still there.
    async fn send(&self, id: Option<u64>, answer: Answer) -> bool {
        let text = serde_json::to_string(&Reply { id, answer }).unwrap_or_default();
        let sending = match self.accounts.answer(text) {
            Some(sending) => sending,
            None => match self.accounts.answer(unread(id)) {
                Some(sending) => sending,
                None => return false,
            },
        };
        self.sender.send(sending).await.is_ok()
    }
}

/// To which call a refusal is the answer. The text is looked through for no more than that, and not when it is long.
fn id_of(text: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        id: u64,
    }
    let is_short = text.len() <= MAX_SMALL_MESSAGE_BYTES;
    is_short.then(|| serde_json::from_str::<Numbered>(text).ok()).flatten().map(|numbered| numbered.id)
}

/// What is said instead of an answer for which there is no room.
fn unread(id: Option<u64>) -> String {
    serde_json::to_string(&Reply { id, answer: Answer::Error(busy().into()) }).unwrap_or_default()
}

async fn refused(answers: Answers, id: Option<u64>, error: TransportError, _: OwnedSemaphorePermit) {
    answers.send(id, Answer::Error(error.into())).await;
}

/// Answers a call. Its place is given back with the answer.
async fn answer(transport: Arc<dyn Transport>, answers: Answers, id: u64, call: Call, _: OwnedSemaphorePermit) {
    let answer = match answers.accounts.place() {
        Ok(place) => tokio::select! {
            biased;
            () = place.end.cancelled() => Err(busy()),
            answer = call_of(&*transport, call) => answer,
        },
        Err(error) => Err(error),
    };
    answers.send(Some(id), answer.unwrap_or_else(|error| Answer::Error(error.into()))).await;
}

async fn call_of(transport: &dyn Transport, call: Call) -> Result<Answer, TransportError> {
    Ok(match call {
        Call::Tickets(request) => Answer::Tickets(transport.tickets(request.count).await?),
        Call::Submit(submission) => Answer::Status(Box::new(transport.submit(*submission).await?)),
        Call::ConfirmPayment(confirmation) => {
            transport.confirm_payment(confirmation).await?;
            Answer::Done
        }
        Call::Status(request_id) => Answer::Status(Box::new(transport.status(request_id).await?)),
        Call::Cancel(access) => {
            transport.cancel(access).await?;
            Answer::Done
        }
        Call::Models => Answer::Models(transport.models().await?),
        Call::Network => Answer::Network(Box::new(transport.network().await?)),
        Call::CloseChannel { channel, access } => {
            let terms = ChannelParams { client: access.message.client, gateway: channel.gateway, salt: channel.salt };
            let (settled, signature) = transport.close_channel(terms, access).await?;
            Answer::Closing(Box::new(ChannelClosing { settled, signature }))
        }
        // More are followed than may be.
        Call::Updates { .. } => return Err(busy()),
        Call::Leave(_) => Answer::Done,
    })
}

/// Passes a request's updates on until their end.
async fn follow(transport: Arc<dyn Transport>, answers: Answers, id: u64, access: Signed<TaskCapability>, from: u64) {
    let place = match answers.accounts.place() {
        Ok(place) => place,
        Err(error) => {
            answers.send(Some(id), Answer::Error(error.into())).await;
            return;
        }
    };
    let following = async {
        let mut updates = match transport.updates(access, from).await {
            Ok(updates) => updates,
            Err(error) => return Answer::Error(error.into()),
        };
        // There may be no news for long.
        answers.send(Some(id), Answer::Done).await;
        while let Some(update) = updates.next().await {
            match update {
                Ok(update) => {
                    if !answers.send(Some(id), Answer::Update(Box::new(update))).await {
                        break;
                    }
                }
                Err(error) => return Answer::Error(Problem::from(error)),
            }
        }
        Answer::End
    };
    let end = tokio::select! {
        biased;
        () = place.end.cancelled() => Answer::Error(busy().into()),
        end = following => end,
    };
    answers.send(Some(id), end).await;
}
