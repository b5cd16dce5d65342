//! A request's body, let through message by message.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use http_body::{Body as _, Frame};
use ncn_core::TransportError;
use ncn_wire::to_status;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Status, codegen::Bytes};

use super::{
    intake::Lengths,
    pool::{Pool, Share},
    rates::{Counters, Wire},
};
use crate::rate::Left;

/// How long a message may take to arrive: of a unary call from its beginning to the body's end, of a stream from the message's
/// first byte to its last. 16 MiB in this time are 4.5 Mbit/s. The time includes waiting for the pool.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages of up to this length take nothing out of the pool, so that the calls which keep a network going are let through even
/// when their own address has used its share up. The number of calls bounds them.
pub(super) const FREE_BYTES: usize = 4 << 10;
/// Before each message, gRPC sends a byte of flags and the length.
const PREFIX: usize = 5;

pub(super) struct RequestBody {
    body: Body,
    lengths: Lengths,
    peer: IpAddr,
    /// Ends the call.
    end: CancellationToken,
    pool: Arc<Pool>,
    /// For the messages of a stream after its first.
    streams: Arc<Pool>,
    /// What questions count towards, as calls do.
    counters: Counters,
    /// What the message takes out of the pool. The call that answers it shares in it.
    share: Arc<Mutex<Option<Share>>>,
    waiting: Option<Pin<Box<dyn Future<Output = Share> + Send>>>,
    /// There is one while a message is due.
    timeout: Option<Pin<Box<Sleep>>>,
    /// Received, and not let through.
    received: Bytes,
    prefix: Vec<u8>,
    /// What is still to come of the message whose prefix was let through.
    left: usize,
    messages: usize,
}

impl RequestBody {
    pub(super) fn new(
        body: Body,
        lengths: Lengths,
        peer: IpAddr,
        end: CancellationToken,
        (pool, streams, counters): (Arc<Pool>, Arc<Pool>, Counters),
        share: Arc<Mutex<Option<Share>>>,
    ) -> Self {
        let timeout = matches!(lengths, Lengths::Unary(_) | Lengths::Plain(_)).then(due);
        let (waiting, received, prefix) = (None, Bytes::new(), Vec::new());
        Self { body, lengths, peer, end, pool, streams, counters, share, waiting, timeout, received, prefix, left: 0, messages: 0 }
    }

    fn set_share(&self, share: Option<Share>) {
        *self.share.lock().unwrap_or_else(PoisonError::into_inner) = share;
    }

    /// Begins a message. The whole of it is taken out of the pool at once: messages of which each has a part and needs the rest
    /// would hold each other up.
    fn begin(&mut self, length: usize) -> Result<(), Status> {
        let most = match (self.lengths, self.messages) {
            (Lengths::Unary(most) | Lengths::Plain(most) | Lengths::Stream(most, _), 0) | (Lengths::Stream(_, most), _) => most,
            (Lengths::Questions(most, count), asked) if asked < count => {
                let refused = |left: Left| to_status(&TransportError::from(left));
                self.counters.count(self.peer, Wire::Stream, false).map_err(refused)?;
                most
            }
            (Lengths::Questions(..), _) => {
                return Err(Status::resource_exhausted("message: too many on one call: begin another one"));
            }
            (Lengths::Unary(_) | Lengths::Plain(_), _) => {
                return Err(Status::invalid_argument("message: one is expected, not more"));
            }
        };
        if length > most {
            return Err(Status::out_of_range(format!("message: has {length} bytes, at most {most} are taken here")));
        }
        let first = self.messages == 0;
        (self.left, self.messages) = (length, self.messages.saturating_add(1));
        if length > FREE_BYTES {
            if first {
                // A call that waits would fill its connection's window with what it does not read, and hold up those that do not
                // wait.
                let share = self.pool.claim(self.peer, length, &self.end);
                let busy = || Status::resource_exhausted("too many messages are arriving: try again later");
                self.set_share(Some(share.ok_or_else(busy)?));
            } else {
                // A compute node has a connection to itself, and what it sends was paid for.
                self.waiting = Some(Box::pin(self.streams.clone().take(self.peer, length)));
            }
        }
        Ok(())
    }

    /// The next part of a body that has no messages. One whose length is not announced takes as much out of the pool as it may have.
    fn poll_plain(&mut self, context: &mut Context<'_>, most: usize) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.messages == 0 {
            let announced = self.body.size_hint().exact();
            self.begin(announced.map_or(most, |length| usize::try_from(length).unwrap_or(usize::MAX)))?;
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else { return Poll::Ready(None) };
        let frame = frame.map_err(broken)?;
        let length = frame.data_ref().map_or(0, Bytes::len);
        let too_long = || Status::out_of_range(format!("body: has more than {most} bytes, which is the most that is taken here"));
        self.left = self.left.checked_sub(length).ok_or_else(too_long)?;
        Poll::Ready(Some(Ok(frame)))
    }

    /// The next part of a message, or of the body's end. No part has bytes of two messages.
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                let share = ready!(waiting.as_mut().poll(context));
                self.waiting = None;
                self.set_share(Some(share));
            }
            if self.prefix.len() == PREFIX {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.prefix).into()))));
            }
            if self.left > 0 && !self.received.is_empty() {
                let part = self.received.split_to(self.left.min(self.received.len()));
                self.left -= part.len();
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            if !self.received.is_empty() {
                self.timeout.get_or_insert_with(due);
                let missing = PREFIX.saturating_sub(self.prefix.len()).min(self.received.len());
                self.prefix.extend_from_slice(&self.received.split_to(missing));
                if let [_, length @ ..] = &*self.prefix
                    && let Ok(length) = <[u8; 4]>::try_from(length)
                {
                    self.begin(u32::from_be_bytes(length) as usize)?;
                }
                continue;
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else { return Poll::Ready(None) };
            match frame.map_err(broken)?.into_data() {
                Ok(data) => self.received = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }
}

fn broken(error: axum::Error) -> Status {
    Status::from_error(Box::new(error))
}

fn due() -> Pin<Box<Sleep>> {
    Box::pin(sleep(MESSAGE_TIMEOUT))
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if matches!(this.lengths, Lengths::Stream(..) | Lengths::Questions(..)) && this.left == 0 && this.prefix.is_empty() {
            // Whoever asks for more of a stream has taken the message before.
            this.set_share(None);
            this.timeout = None;
        }
        let part = match this.lengths {
            Lengths::Plain(most) => this.poll_plain(context, most),
            Lengths::Unary(_) | Lengths::Stream(..) | Lengths::Questions(..) => this.poll_part(context),
        };
        // Asked last, since a message may have begun just now, and asked always, since a body may drip without a pause.
        if let Some(timeout) = &mut this.timeout
            && timeout.as_mut().poll(context).is_ready()
        {
            let late = format!("message: did not arrive within {MESSAGE_TIMEOUT:?}: send it at once, or a shorter one");
            return Poll::Ready(Some(Err(Status::deadline_exceeded(late))));
        }
        part
    }

    fn is_end_stream(&self) -> bool {
        let is_let_through = self.received.is_empty() && self.prefix.is_empty() && self.left == 0;
        (is_let_through || matches!(self.lengths, Lengths::Plain(_))) && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible, future::poll_fn, net::Ipv4Addr};

    use super::*;

    /// A body of these frames.
    struct Frames(VecDeque<Bytes>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|frame| Ok(Frame::data(frame))))
        }
    }

    /// A message of this length, with its prefix.
    fn message(length: usize) -> Bytes {
        let prefix = u32::try_from(length).unwrap().to_be_bytes();
        [&[0][..], &prefix, &vec![1; length]].concat().into()
    }

    /// What is let through of two messages while others have announced all that strangers may.
    async fn let_through(lengths: Lengths, first: usize, second: usize) -> Result<usize, Status> {
        let (messages, streams) = (Pool::new(1), Pool::new(1 << 20));
        let body = Body::new(Frames([message(first), message(second)].into()));
        let peer = Ipv4Addr::LOCALHOST.into();
        let mut body = RequestBody::new(
            body,
            lengths,
            peer,
            CancellationToken::new(),
            (messages, streams, Counters::default()),
            Arc::default(),
        );
        let mut bytes = 0;
        while let Some(frame) = poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context)).await {
            bytes += frame?.into_data().map_or(0, |data| data.len());
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn what_strangers_announce_does_not_hold_up_admitted_nodes() {
        let (short, long) = (100, 100_000);
        let stream = Lengths::Stream(long, long);
        assert_eq!(let_through(stream, short, long).await.unwrap(), 2 * PREFIX + short + long);
        let busy = let_through(stream, long, short).await.unwrap_err();
        assert_eq!(busy.code(), tonic::Code::ResourceExhausted, "before it is admitted, a node is a stranger");
        assert!(let_through(Lengths::Questions(short, 2), short, short).await.is_ok());
        assert!(let_through(Lengths::Questions(short, 1), short, short).await.is_err());
        assert!(let_through(Lengths::Questions(short, 2), short, long).await.is_err());
        let busy = let_through(Lengths::Unary(long), long, short).await.unwrap_err();
        assert_eq!(busy.code(), tonic::Code::ResourceExhausted);
    }
}
