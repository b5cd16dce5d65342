//! Gateways over WebSocket.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{SinkExt as _, StreamExt as _, stream};
use ncn_core::{
    Amount, ChannelParams, ModelInfo, NetworkInfo, PaymentConfirmation, RequestId, Signature, Signed, Submission, TaskCapability,
    TaskStatus, Ticket, Transport, TransportError, Update, transport::Updates,
};
use ncn_wire::json::{Answer, Call, CloseChannel, MAX_JSON_BYTES, Problem, Question, Reply, TicketRequest};
use reqwest::Url;
use tokio::{
    net::TcpStream,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_tls_with_config,
    tungstenite::{Error, Message, protocol::WebSocketConfig},
};

use crate::calls::{CALL_TIMEOUT, CONNECT_TIMEOUT, QUOTE_TIMEOUT, SETTLEMENT_TIMEOUT, unreachable};
pub use crate::endpoint::EndpointError;
use crate::{Backoff, http::refusal};

/// How long a connection may be silent: a gateway asks every 15 s whether its client is there.
const SILENCE: Duration = Duration::from_secs(45);
/// How many calls wait to be sent.
const QUEUE: usize = 64;
/// How many updates of one request wait for who follows it. Where there are more, it is followed anew from the first that was not read: who is slow
/// with one request does not hold up the others.
const UNREAD: usize = 64;
/// How many bytes they have together, as they came: at least one of any length.
const UNREAD_BYTES: usize = 2 * MAX_JSON_BYTES;
/// How often in a row a request is followed anew without an update.
const RESUMES: usize = 3;
/// After one that has lasted so long, the next connection is made at once.
const LASTING: Duration = Duration::from_secs(10);

/// A gateway, called over one WebSocket: it is made when it is first used, and again when it breaks. Requests that are followed go on where they
/// were. Needs a Tokio runtime.
#[derive(Clone, Debug)]
pub struct WebSocketTransport {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    url: Url,
    /// To the task that has the connection.
    link: Mutex<Option<mpsc::Sender<Asked>>>,
}

/// A call, and where its answers go.
#[derive(Debug)]
struct Asked {
    call: Call,
    answers: Answers,
}

/// Where the answers to a call go.
#[derive(Debug)]
struct Answers {
    sender: mpsc::Sender<Unread>,
    room: Arc<Semaphore>,
}

/// An answer that waits, and the room that it takes until then.
type Unread = (Answer, OwnedSemaphorePermit);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl WebSocketTransport {
    /// The gateway at this URL, `ws://HOST:PORT` or `wss://HOST:PORT`; without a path it is `/ws`. It is called when it is first used.
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(url: &str) -> Result<Self, EndpointError> {
        let no_url = || EndpointError::new(url, "is not a URL to call: write ws://HOST:PORT or wss://HOST:PORT");
        let parsed = url.parse::<Url>().ok().filter(|url| url.has_host() && matches!(url.scheme(), "ws" | "wss"));
        let mut parsed = parsed.ok_or_else(no_url)?;
        if parsed.path() == "/" {
            parsed.set_path("/ws");
        }
        // For the provider of TLS, which it chooses once.
        drop(crate::http());
        Ok(Self { inner: Arc::new(Inner { url: parsed, link: Mutex::default() }) })
    }

    fn unreachable(&self, problem: &str) -> TransportError {
        unreachable(&self.endpoint(), problem)
    }

    fn endpoint(&self) -> String {
        self.inner.url.origin().ascii_serialization()
    }

    async fn connect(&self) -> Result<Socket, TransportError> {
        let url = &self.inner.url;
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(80));
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await;
        let stream = stream.map_err(|error| self.unreachable(&error.to_string()))?;
        let _ = stream.set_nodelay(true);
        let bounds = WebSocketConfig::default().max_message_size(Some(MAX_JSON_BYTES)).max_frame_size(Some(MAX_JSON_BYTES));
        match client_async_tls_with_config(url.as_str(), stream, Some(bounds), None).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                Err(refusal(&self.endpoint(), answer.status(), answer.headers(), body))
            }
            Err(error) => Err(self.unreachable(&error.to_string())),
        }
    }

    /// Has a call sent, on a connection that is made for it where there is none.
    async fn send(&self, mut asked: Asked) -> Result<(), TransportError> {
        // Others who come meanwhile need the same connection.
        let mut link = self.inner.link.lock().await;
        if let Some(open) = &*link {
            match open.send(asked).await {
                Ok(()) => return Ok(()),
                Err(unsent) => asked = unsent.0,
            }
        }
        let connecting = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let socket = connecting.map_err(|_| self.unreachable("connecting takes too long"))??;
        let (sender, calls) = mpsc::channel(QUEUE);
        tokio::spawn(talk(socket, calls));
        // There is room for the first.
        let _ = sender.send(asked).await;
        *link = Some(sender);
        Ok(())
    }

    /// The first answer to a call, within this time, and where the next ones come.
    async fn begin(&self, call: Call, room: usize, within: Duration) -> Result<(Answer, mpsc::Receiver<Unread>), TransportError> {
        let (sender, mut answers) = mpsc::channel(room);
        let to_caller = Answers { sender, room: Arc::new(Semaphore::new(UNREAD_BYTES)) };
        let asking = async {
            self.send(Asked { call, answers: to_caller }).await?;
            let (answer, _) = answers.recv().await.ok_or_else(|| self.unreachable("the connection broke off"))?;
            self.read(answer)
        };
        let asked = timeout(within, Box::pin(asking)).await;
        let answer = asked.map_err(|_| self.unreachable(&format!("no answer within {within:?}")))??;
        Ok((answer, answers))
    }

    fn read(&self, answer: Answer) -> Result<Answer, TransportError> {
        match answer {
            Answer::Error(Problem { error: Some(TransportError::Unreachable { problem, .. }), .. }) => {
                Err(self.unreachable(&problem))
            }
            Answer::Error(Problem { error, message, .. }) => Err(error.unwrap_or(TransportError::Internal(message))),
            answer => Ok(answer),
        }
    }

    async fn call(&self, call: Call, within: Duration) -> Result<Answer, TransportError> {
        self.begin(call, 1, within).await.map(|(answer, _)| answer)
    }

    async fn follow(&self, access: Signed<TaskCapability>, from: u64) -> Result<mpsc::Receiver<Unread>, TransportError> {
        match self.begin(Call::Updates { access, from }, UNREAD, CALL_TIMEOUT).await? {
            (Answer::Done, answers) => Ok(answers),
            _ => Err(other()),
        }
    }
}

/// An answer to something else.
fn other() -> TransportError {
    TransportError::Malformed("is the answer to another call".into())
}

/// Has the connection: sends calls, and passes answers to whom they are for. When it ends, those who wait are told by their channels' end.
async fn talk(mut socket: Socket, mut calls: mpsc::Receiver<Asked>) {
    let (mut id, mut open) = (0_u64, HashMap::<u64, Answers>::new());
    loop {
        let question = tokio::select! {
            asked = calls.recv() => {
                let Some(Asked { call, answers }) = asked else { return };
                id += 1;
                if open.len() >= QUEUE {
                    // Those that nobody waits for any more.
                    open.retain(|_, answers| !answers.sender.is_closed());
                }
                open.insert(id, answers);
                Question { id, call }
            }
            message = timeout(SILENCE, socket.next()) => {
                let text = match message {
                    Ok(Some(Ok(Message::Text(text)))) => text,
                    Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {
                        // The pong to it, which is made already.
                        if !matches!(timeout(SILENCE, socket.flush()).await, Ok(Ok(()))) {
                            return;
                        }
                        continue;
                    }
                    _ => return,
                };
                match serde_json::from_str(&text) {
                    Ok(Reply { id: Some(id), answer }) => {
                        if pass(&mut open, id, answer, text.len()) {
                            continue;
                        }
                        Question { id, call: Call::Leave(id) }
                    }
                    // A gateway that does not understand its clients, or that they do not.
                    Ok(Reply { id: None, .. }) | Err(_) => return,
                }
            }
        };
        let text = serde_json::to_string(&question).unwrap_or_default();
        // A gateway that does not read is gone.
        if !matches!(timeout(SILENCE, socket.send(Message::Text(text.into()))).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Passes an answer on. False when nobody can take it, and there may be more.
fn pass(open: &mut HashMap<u64, Answers>, id: u64, answer: Answer, length: usize) -> bool {
    let is_last = !matches!(answer, Answer::Update(_) | Answer::Done);
    let Some(answers) = open.get(&id) else { return true };
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let room = answers.room.clone().try_acquire_many_owned(length).ok();
    let is_passed = room.is_some_and(|room| answers.sender.try_send((answer, room)).is_ok());
    if is_last || !is_passed {
        open.remove(&id);
    }
    is_last || is_passed
}

/// A request that is followed.
struct Following {
    transport: WebSocketTransport,
    access: Signed<TaskCapability>,
    /// The next update.
    from: u64,
    answers: mpsc::Receiver<Unread>,
    /// How often in a row it was followed anew, and since when it is.
    resumes: usize,
    since: Instant,
    backoff: Backoff,
}

impl Following {
    /// The next update, if there is one.
    async fn next(&mut self) -> Result<Option<Update>, TransportError> {
        loop {
            match self.answers.recv().await.map(|(answer, _)| answer) {
                Some(Answer::Update(update)) => {
                    (self.from, self.resumes) = (update.index.saturating_add(1), 0);
                    return Ok(Some(*update));
                }
                Some(Answer::End) => return Ok(None),
                Some(answer) => return self.transport.read(answer).and(Err(other())),
                None if self.resumes < RESUMES => {
                    self.resumes += 1;
                    if self.since.elapsed() > LASTING {
                        self.backoff = Backoff::new();
                    }
                    self.backoff.pause().await;
                    self.since = Instant::now();
                    self.answers = self.transport.follow(self.access.clone(), self.from).await?;
                }
                None => return Err(self.transport.unreachable("the connection broke off")),
            }
        }
    }
}

#[async_trait]
impl Transport for WebSocketTransport {
    async fn tickets(&self, count: u32) -> Result<Vec<Ticket>, TransportError> {
        match self.call(Call::Tickets(TicketRequest { count }), CALL_TIMEOUT).await? {
            Answer::Tickets(tickets) => Ok(tickets),
            _ => Err(other()),
        }
    }

    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        match self.call(Call::Submit(Box::new(submission)), QUOTE_TIMEOUT).await? {
            Answer::Status(status) => Ok(*status),
            _ => Err(other()),
        }
    }

    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError> {
        match self.call(Call::ConfirmPayment(confirmation), CALL_TIMEOUT).await? {
            Answer::Done => Ok(()),
            _ => Err(other()),
        }
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        let answers = self.follow(access.clone(), from).await?;
        let (since, backoff) = (Instant::now(), Backoff::new());
        let following = Following { transport: self.clone(), access, from, answers, resumes: 0, since, backoff };
        let updates = stream::unfold(Some(following), async |following| {
            let mut following = following?;
            match following.next().await {
                Ok(update) => Some((Ok(update?), Some(following))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(updates.boxed())
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        match self.call(Call::Status(request_id), CALL_TIMEOUT).await? {
            Answer::Status(status) => Ok(*status),
            _ => Err(other()),
        }
    }

    async fn cancel(&self, access: Signed<TaskCapability>) -> Result<(), TransportError> {
        match self.call(Call::Cancel(access), CALL_TIMEOUT).await? {
            Answer::Done => Ok(()),
            _ => Err(other()),
        }
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        match self.call(Call::Models, CALL_TIMEOUT).await? {
            Answer::Models(models) => Ok(models),
            _ => Err(other()),
        }
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        match self.call(Call::Network, CALL_TIMEOUT).await? {
            Answer::Network(network) => Ok(*network),
            _ => Err(other()),
        }
    }

    async fn close_channel(
        &self,
        terms: ChannelParams,
        access: Signed<TaskCapability>,
    ) -> Result<(Amount, Signature), TransportError> {
        let channel = CloseChannel { gateway: terms.gateway, salt: terms.salt };
        match self.call(Call::CloseChannel { channel, access }, SETTLEMENT_TIMEOUT).await? {
            Answer::Closing(closing) => Ok((closing.settled, closing.signature)),
            _ => Err(other()),
        }
    }
}
