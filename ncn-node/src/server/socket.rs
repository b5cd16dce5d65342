//! WebSockets (RFC 6455), whose bytes count as those of other calls do.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use ncn_core::TransportError;
use ncn_wire::{MAX_SMALL_MESSAGE_BYTES, json::MAX_JSON_BYTES};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    body::FREE_BYTES,
    connection::Peer,
    intake::Intake,
    plain,
    pool::{Pool, Share},
    rates::Wire,
};
use crate::{measures, rate::Left};

/// How often a peer is asked whether it is there, and how long it may say nothing.
const PING: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(45);
/// While so many pings are sent, a text that has begun has to arrive.
const PINGS_OF_A_TEXT: u8 = 2;
/// What is read at once, and kept of what is written.
const BUFFER_BYTES: usize = 8 << 10;
/// What a frame has that is not of a message, beside its data (RFC 6455, section 5.5).
const CONTROL_BYTES: usize = 6;
/// What is taken out of the pool at once, for a message that arrives.
const PIECE: usize = 64 << 10;

/// The bytes of a message that has not arrived as a whole, and what the longest one so far has taken out of the pool: the memory that it was read
/// into stays with the socket.
#[derive(Default)]
struct Arriving {
    bytes: usize,
    shares: Vec<Share>,
}

/// A connection, whose bytes count while they wait to be a message.
struct Counted {
    inner: TokioIo<Upgraded>,
    peer: Peer,
    messages: Arc<Pool>,
    /// Ends the socket when others need its share.
    end: CancellationToken,
    arriving: Arc<Mutex<Arriving>>,
}

impl Counted {
    /// Takes what has arrived out of the pool, beyond what everyone may have.
    fn count(&self, bytes: usize) -> io::Result<()> {
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        arriving.bytes += bytes;
        while arriving.bytes > FREE_BYTES + arriving.shares.len() * PIECE {
            let share = self.messages.claim(self.peer.address, PIECE, &self.end);
            arriving.shares.push(share.ok_or_else(|| io::Error::other("too many messages are arriving: try again later"))?);
        }
        Ok(())
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        Poll::Ready(self.count(buffer.filled().len() - before))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// A WebSocket.
pub(crate) struct Socket {
    stream: WebSocketStream<Counted>,
    arriving: Arc<Mutex<Arriving>>,
    peer: Peer,
    intake: Intake,
    end: CancellationToken,
    _place: Share,
    heard: Instant,
    /// It is not read before: where there is too much, there is no more to answer than may come.
    resume: Instant,
    ping: tokio::time::Interval,
    /// How many were sent since a part of a text has come. Only time in which the socket is read counts.
    pings: u8,
}

/// A place among the calls that are open at once, and what ends it when others need it.
pub(crate) struct Place {
    pub(crate) end: CancellationToken,
    _share: Share,
}

/// A text that has come, and an error where there were too many.
pub(crate) struct Received {
    pub(crate) text: Utf8Bytes,
    pub(crate) counted: Result<(), TransportError>,
}

/// Whether only an order can be as long.
fn is_long(text: &Utf8Bytes) -> bool {
    text.len() > MAX_SMALL_MESSAGE_BYTES
}

/// A text to be sent, with what it takes out of the pool until it is.
pub(crate) struct Sending {
    text: Utf8Bytes,
    _share: Option<Share>,
}

/// What makes calls and answers of a socket count.
#[derive(Clone)]
pub(crate) struct Accounts {
    peer: Peer,
    intake: Intake,
    end: CancellationToken,
}

impl Accounts {
    /// Counts an order, when it was not counted as one by its length.
    pub(crate) fn count_order(&self, text: &Utf8Bytes) -> Result<(), TransportError> {
        if is_long(text) { Ok(()) } else { Ok(self.count(true)?) }
    }

    fn count(&self, is_order: bool) -> Result<(), Left> {
        let counted = self.intake.counters.count(self.peer.address, Wire::Stream, is_order);
        counted.map(drop).inspect_err(|_| measures::refused("often"))
    }

    /// A place for a call.
    ///
    /// # Errors
    /// Too many are open.
    pub(crate) fn place(&self) -> Result<Place, TransportError> {
        let end = self.end.child_token();
        let share = self.intake.calls.claim(self.peer.address, 1, &end).ok_or_else(plain::busy)?;
        Ok(Place { end, _share: share })
    }

    /// An answer, as it counts until it is sent; none when too many wait.
    pub(crate) fn answer(&self, text: String) -> Option<Sending> {
        let share = match text.len() {
            0..=FREE_BYTES => None,
            length => Some(self.intake.answers.claim(self.peer.address, length, &self.end)?),
        };
        Some(Sending { text: text.into(), _share: share })
    }
}

impl Socket {
    /// What makes its calls and answers count.
    pub(crate) fn accounts(&self) -> Accounts {
        Accounts { peer: self.peer.clone(), intake: self.intake.clone(), end: self.end.clone() }
    }

    /// The next text, which counts as a call, and a long one as an order; nothing once the socket has ended. Meanwhile the peer is asked whether it is
    /// there.
    ///
    /// Cancel safe: a text is not lost.
    pub(crate) async fn next(&mut self) -> Option<Received> {
        loop {
            tokio::select! {
                () = self.end.cancelled() => return None,
                () = sleep_until(self.resume) => {}
            }
            let message = tokio::select! {
                () = self.end.cancelled() => return None,
                message = self.stream.next() => message?.ok()?,
                _ = self.ping.tick() => {
                    self.pings = if self.arriving().bytes > 0 { self.pings.saturating_add(1) } else { 0 };
                    if self.heard.elapsed() > SILENCE || self.pings > PINGS_OF_A_TEXT {
                        return None;
                    }
                    self.stream.send(Message::Ping(bytes::Bytes::new())).await.ok()?;
                    continue;
                }
            };
            self.heard = Instant::now();
            match message {
                Message::Text(text) => {
                    (self.arriving().bytes, self.pings) = (0, 0);
                    measures::called("websocket");
                    let counted = self.count(is_long(&text)).map_err(Into::into);
                    return Some(Received { text, counted });
                }
                // They may come between the fragments of a message, whose bytes still count.
                Message::Ping(data) | Message::Pong(data) => {
                    let mut arriving = self.arriving();
                    arriving.bytes = arriving.bytes.saturating_sub(CONTROL_BYTES + data.len());
                    drop(arriving);
                    // Nobody is told, but it is waited for.
                    let _ = self.count(false);
                }
                Message::Binary(_) => {
                    self.close(CloseCode::Unsupported, "messages are texts").await;
                    return None;
                }
                Message::Close(_) | Message::Frame(_) => return None,
            }
        }
    }

    /// Counts what has come; where it was too much, the socket is not read until more may come.
    fn count(&mut self, is_long: bool) -> Result<(), Left> {
        let accounts = self.accounts();
        let counted = accounts.count(false).and_then(|()| if is_long { accounts.count(true) } else { Ok(()) });
        counted.inspect_err(|left| self.resume = Instant::now() + left.reset)
    }

    fn arriving(&self) -> MutexGuard<'_, Arriving> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a text, and waits until it is.
    ///
    /// # Errors
    /// The socket has ended.
    pub(crate) async fn send(&mut self, sending: Sending) -> Result<(), ()> {
        let Sending { text, _share } = sending;
        tokio::select! {
            () = self.end.cancelled() => Err(()),
            sent = self.stream.send(Message::Text(text)) => sent.map_err(drop),
        }
    }

    async fn close(&mut self, code: CloseCode, reason: &'static str) {
        let _ = self.stream.close(Some(CloseFrame { code, reason: reason.into() })).await;
    }
}

fn is(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(',').any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// Answers a handshake, and has the socket served once it is made.
pub(crate) fn upgrade<F>(mut request: Request, serve: impl FnOnce(Socket) -> F + Send + 'static) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let invalid = |problem: &str| plain::answer(TransportError::invalid("upgrade", problem));
    let headers = request.headers();
    let is_asked = is(headers, header::CONNECTION, "upgrade") && is(headers, header::UPGRADE, "websocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let (Some(accept), true, true) = (key, is_asked, *request.method() == Method::GET) else {
        return invalid("is a WebSocket's: begin with a handshake over HTTP/1.1 (RFC 6455, section 4)");
    };
    if !is(headers, header::SEC_WEBSOCKET_VERSION, "13") {
        return invalid("sec-websocket-version: is not 13");
    }
    let extensions = request.extensions_mut();
    let (Some(on_upgrade), Some(peer), Some(intake)) =
        (extensions.remove::<OnUpgrade>(), extensions.remove::<Peer>(), extensions.remove::<Intake>())
    else {
        return invalid("cannot be made on this connection");
    };
    let end = peer.end.child_token();
    let Some(place) = intake.sockets.claim(peer.address, 1, &end) else {
        return plain::answer(plain::busy());
    };
    tokio::spawn(async move {
        let Ok(upgraded) = on_upgrade.await else { return };
        let arriving = Arc::<Mutex<Arriving>>::default();
        let (messages, inner) = (intake.messages.clone(), TokioIo::new(upgraded));
        let counted = Counted { inner, peer: peer.clone(), messages, end: end.clone(), arriving: arriving.clone() };
        let bounds = WebSocketConfig::default()
            .max_message_size(Some(MAX_JSON_BYTES))
            .max_frame_size(Some(MAX_JSON_BYTES))
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_write_buffer_size(2 * MAX_JSON_BYTES);
        let stream = WebSocketStream::from_raw_socket(counted, Role::Server, Some(bounds)).await;
        let (heard, mut ping) = (Instant::now(), interval_at(Instant::now() + PING, PING));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        serve(Socket { stream, arriving, peer, intake, end, _place: place, heard, resume: heard, ping, pings: 0 }).await;
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}
