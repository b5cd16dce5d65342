//! An answer's body, which counts until it is sent.

use std::{
    future::poll_fn,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use http_body::{Body as _, Frame};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::{
    sync::{CancellationToken, PollSemaphore, WaitForCancellationFutureOwned},
    task::AbortOnDropHandle,
};
use tonic::{
    Status,
    codegen::{Bytes, http::HeaderMap},
};

use super::{
    body::FREE_BYTES,
    pool::{Pool, Share},
};

/// How long a call whose place others need has to end by itself; its connection is ended then. An answer that its peer reads, or that
/// has nothing to send, ends at once. One that is not read cannot: what was handed over to HTTP/2 comes back with the connection only.
const GRACE: Duration = Duration::from_millis(100);

/// How many parts of an answer are with HTTP/2 at once. It takes 400 KB of their bytes, and each part takes some 400 bytes more.
const PARTS: usize = 16;

type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// An open call. It is open until its answer is sent: each part of that shares in it.
pub(super) struct Call {
    end: CancellationToken,
    _share: Share,
    /// Ends the connection, when the call does not end by itself.
    _guard: AbortOnDropHandle<()>,
}

impl Call {
    /// `share` is ended by `end`.
    pub(super) fn begin(share: Share, end: CancellationToken, connection: CancellationToken) -> Arc<Self> {
        let ended = end.clone();
        let guard = tokio::spawn(async move {
            ended.cancelled().await;
            sleep(GRACE).await;
            connection.cancel();
        });
        Arc::new(Self { end, _share: share, _guard: AbortOnDropHandle::new(guard) })
    }
}

/// A part of an answer, which counts until HTTP/2 has sent it.
struct Part {
    data: Bytes,
    _share: Option<Share>,
    _place: Option<OwnedSemaphorePermit>,
    _call: Arc<Call>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// An answer.
pub(super) struct AnswerBody {
    body: Body,
    peer: IpAddr,
    /// What its parts are taken out of; nothing where the peer was admitted, and gets only what others have paid for.
    answers: Option<Arc<Pool>>,
    call: Arc<Call>,
    /// Of parts that HTTP/2 can have, and that of the next one.
    places: PollSemaphore,
    place: Option<OwnedSemaphorePermit>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// What was ready at the beginning.
    first: Option<Frame<Bytes>>,
    finished: bool,
}

impl AnswerBody {
    /// Takes what is ready, since an answer that waits for its peer takes memory before it is written as a message too.
    pub(super) async fn begin(body: Body, peer: IpAddr, call: Arc<Call>, answers: Option<Arc<Pool>>) -> Result<Self, Status> {
        let ended = Box::pin(call.end.clone().cancelled_owned());
        let places = PollSemaphore::new(Arc::new(Semaphore::new(PARTS)));
        let mut answer = Self { body, peer, answers, call, places, place: None, ended, first: None, finished: false };
        match poll_fn(|context| Poll::Ready(answer.poll_body(context))).await {
            Poll::Ready(Some(frame)) => answer.first = Some(frame?),
            Poll::Ready(None) => answer.finished = true,
            Poll::Pending => {}
        }
        Ok(answer)
    }

    fn poll_body(&mut self, context: &mut Context<'_>) -> Polled {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Status::resource_exhausted("others needed the call's place: try again later"))));
        }
        if self.place.is_none() {
            self.place = ready!(self.places.poll_acquire(context));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(Box::new(error))))),
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(match frame.into_data() {
            Ok(data) => self.count(data).map(Frame::data),
            Err(trailers) => Ok(trailers),
        }))
    }

    fn count(&mut self, data: Bytes) -> Result<Bytes, Status> {
        let share = match &self.answers {
            Some(answers) if data.len() > FREE_BYTES => {
                let unread = || Status::resource_exhausted("too many answers are being sent: read them, and try again later");
                Some(answers.claim(self.peer, data.len(), &self.call.end).ok_or_else(unread)?)
            }
            _ => None,
        };
        Ok(Bytes::from_owner(Part { data, _share: share, _place: self.place.take(), _call: self.call.clone() }))
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if this.finished {
            return Poll::Ready(None);
        }
        let polled = ready!(this.poll_body(context));
        this.finished = !matches!(polled, Some(Ok(_)));
        // The peer is told what is wrong in the trailers; an error here would only break its stream off.
        Poll::Ready(polled.map(|frame| {
            frame.or_else(|refused| {
                let mut trailers = HeaderMap::new();
                refused.add_header(&mut trailers)?;
                Ok(Frame::trailers(trailers))
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.finished || self.body.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http_body_util::{BodyExt as _, StreamBody};
    use tokio_stream::iter;

    use super::*;

    const LONG: usize = 100_000;

    struct Server {
        answers: Arc<Pool>,
        calls: Arc<Pool>,
    }

    impl Server {
        /// An answer of so many long parts, and what ends its connection.
        async fn answer(&self, last: u8, frames: usize) -> (CancellationToken, Result<AnswerBody, Status>) {
            self.answer_of(last, frames, LONG).await
        }

        async fn answer_of(&self, last: u8, frames: usize, length: usize) -> (CancellationToken, Result<AnswerBody, Status>) {
            let peer = Ipv4Addr::new(10, 0, 0, last).into();
            let (end, connection) = (CancellationToken::new(), CancellationToken::new());
            let call = Call::begin(self.calls.claim(peer, 1, &end).unwrap(), end, connection.clone());
            let frames = (0..frames).map(move |_| Ok::<_, Status>(Frame::data(Bytes::from(vec![0; length]))));
            let body = Body::new(StreamBody::new(iter(frames)));
            (connection, AnswerBody::begin(body, peer, call, Some(self.answers.clone())).await)
        }
    }

    /// The next part, which is not sent before it is dropped.
    async fn part(body: &mut AnswerBody) -> Option<Bytes> {
        body.frame().await?.unwrap().into_data().ok()
    }

    #[tokio::test]
    async fn an_answer_counts_until_it_is_sent() {
        let server = Server { answers: Pool::new(4 * LONG), calls: Pool::new(8) };
        let (_, first) = server.answer(1, 2).await;
        let mut first = first.unwrap();
        let sent = (part(&mut first).await.unwrap(), part(&mut first).await.unwrap());
        assert_eq!(sent.0.len(), LONG);
        assert!(part(&mut first).await.is_none() && first.is_end_stream());
        drop(first);
        // HTTP/2 takes all that there is, and sends it when the peer lets it.
        let refused = server.answer(1, 1).await.1.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        let rest = sent.0.slice(1..);
        drop(sent);
        assert!(server.answer(1, 2).await.1.is_ok(), "the second part is sent");
        drop(rest);
        assert!(server.answer(1, 2).await.1.is_ok());
    }

    #[tokio::test]
    async fn few_parts_wait_to_be_sent() {
        let server = Server { answers: Pool::new(LONG), calls: Pool::new(8) };
        let (_, answer) = server.answer_of(1, 3 * PARTS, 1).await;
        let mut answer = answer.unwrap();
        let mut unsent = Vec::new();
        for _ in 0..PARTS {
            unsent.push(part(&mut answer).await.unwrap());
        }
        assert!(poll_fn(|context| Poll::Ready(Pin::new(&mut answer).poll_frame(context))).await.is_pending());
        for _ in 0..2 * PARTS {
            unsent.pop();
            unsent.push(part(&mut answer).await.unwrap());
        }
        unsent.clear();
        assert!(part(&mut answer).await.is_none());
    }

    #[tokio::test]
    async fn a_stream_says_why_it_ends() {
        let server = Server { answers: Pool::new(3 * LONG), calls: Pool::new(8) };
        let (_, first) = server.answer(1, 2).await;
        let mut first = first.unwrap();
        let _unsent = part(&mut first).await.unwrap();
        let end = first.frame().await.unwrap().unwrap();
        let status = Status::from_header_map(end.trailers_ref().unwrap()).unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(first.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_answer_in_the_way_is_ended_with_its_connection_at_the_latest() {
        let server = Server { answers: Pool::new(4 * LONG), calls: Pool::new(100) };
        let (mut unread, mut read) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            unread.push(server.answer(1, 1).await);
        }
        read.push(server.answer(2, 1).await);
        assert!(unread.iter().chain(&read).all(|(_, answer)| answer.is_ok()));
        let (connection, answer) = &mut unread[1];
        sleep(2 * GRACE).await;
        assert!(!connection.is_cancelled(), "nobody needs its place");
        // The answer is with HTTP/2, and its call is done with.
        let _unsent = part(answer.as_mut().unwrap()).await.unwrap();
        read.push(server.answer(3, 1).await);
        tokio::time::timeout(Duration::from_secs(30), connection.cancelled()).await.unwrap();
        assert!(read.iter().all(|(connection, answer)| answer.is_ok() && !connection.is_cancelled()));
    }
}
