//! An answer's body, which counts until its peer has taken it.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body as _, Frame};
use tokio::time::sleep;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::AbortOnDropHandle,
};
use tonic::{Status, body::Body, codegen::Bytes};

use super::{
    body::FREE_BYTES,
    connection::Peer,
    pool::{Pool, Share},
};

/// How long a call whose place others need has to end by itself; its connection is ended then. An answer that its peer reads, or that
/// has nothing to send, ends at once. One that is not read cannot: what was handed over to HTTP/2 comes back with the connection only.
const GRACE: Duration = Duration::from_millis(100);

type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// An answer; the call is open until it is sent.
pub(super) struct AnswerBody {
    body: Body,
    peer: Peer,
    answers: Arc<Pool>,
    /// What was ready at the beginning.
    first: Option<Frame<Bytes>>,
    /// What the last frame takes out of the pool, until the next one is asked for.
    share: Option<Share>,
    end: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    finished: bool,
    _call: Share,
    _guard: AbortOnDropHandle<()>,
}

impl AnswerBody {
    /// Takes what is ready, since an answer that waits for its peer takes memory before it is written as a message too.
    pub(super) async fn begin(
        body: Body,
        peer: Peer,
        call: Share,
        end: CancellationToken,
        answers: Arc<Pool>,
    ) -> Result<Self, Status> {
        let (ended, connection) = (end.clone(), peer.end.clone());
        let guard = async move {
            ended.cancelled().await;
            sleep(GRACE).await;
            connection.cancel();
        };
        let guard = AbortOnDropHandle::new(tokio::spawn(guard));
        let ended = Box::pin(end.clone().cancelled_owned());
        let (first, share, finished) = (None, None, false);
        let mut answer = Self { body, peer, answers, first, share, end, ended, finished, _call: call, _guard: guard };
        let first = poll_fn(|context| Poll::Ready(answer.poll_body(context))).await;
        match first {
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
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && data.len() > FREE_BYTES
        {
            self.share = self.answers.claim(self.peer.address, data.len(), &self.end);
            if self.share.is_none() {
                let unread = "too many answers are being sent: read them, and try again later";
                return Poll::Ready(Some(Err(Status::resource_exhausted(unread))));
            }
        }
        polled
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
        // HTTP/2 asks for more when it has sent what it had.
        this.share = None;
        let Poll::Ready(polled) = this.poll_body(context) else { return Poll::Pending };
        this.finished = !matches!(polled, Some(Ok(_)));
        // The peer is told what is wrong in the trailers; an error here would only break its stream off.
        Poll::Ready(polled.map(|frame| {
            frame.or_else(|refused| {
                let mut trailers = tonic::codegen::http::HeaderMap::new();
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

    struct Answers {
        answers: Arc<Pool>,
        calls: Arc<Pool>,
    }

    impl Answers {
        async fn begin(&self, last: u8, frames: usize) -> (Peer, Result<AnswerBody, Status>) {
            let peer = Peer { address: Ipv4Addr::new(10, 0, 0, last).into(), end: CancellationToken::new() };
            let end = CancellationToken::new();
            let call = self.calls.claim(peer.address, 1, &end).unwrap();
            let frames = (0..frames).map(|_| Ok::<_, Status>(Frame::data(Bytes::from(vec![0; LONG]))));
            let body = Body::new(StreamBody::new(iter(frames)));
            (peer.clone(), AnswerBody::begin(body, peer, call, end, self.answers.clone()).await)
        }
    }

    async fn code(body: &mut AnswerBody) -> Option<tonic::Code> {
        let frame = body.frame().await?.unwrap();
        Some(Status::from_header_map(frame.trailers_ref()?).unwrap().code())
    }

    #[tokio::test]
    async fn an_answer_that_is_not_read_counts() {
        let server = Answers { answers: Pool::new(5 * LONG), calls: Pool::new(100) };
        let (_, first) = server.begin(1, 2).await;
        let (_, second) = server.begin(1, 1).await;
        let (mut first, mut second) = (first.unwrap(), second.unwrap());
        let (_, refused) = server.begin(1, 1).await;
        assert_eq!(refused.err().unwrap().code(), tonic::Code::ResourceExhausted);
        assert_eq!(second.frame().await.unwrap().unwrap().into_data().unwrap().len(), LONG);
        assert!(server.begin(1, 1).await.1.is_err(), "what HTTP/2 has taken is not sent yet");
        assert!(second.frame().await.is_none() && second.is_end_stream());
        let (_, third) = server.begin(1, 1).await;
        assert!(third.is_ok());
        assert!(first.frame().await.unwrap().unwrap().is_data());
        assert!(first.frame().await.unwrap().unwrap().is_data(), "its next frame takes the place of the one before");
        drop(third);
        assert_eq!(code(&mut first).await, None);
    }

    #[tokio::test]
    async fn a_stream_says_why_it_ends() {
        let server = Answers { answers: Pool::new(2 * LONG), calls: Pool::new(100) };
        let (_, first) = server.begin(1, 2).await;
        let mut first = first.unwrap();
        assert!(first.frame().await.unwrap().unwrap().is_data());
        first.answers = Pool::new(0);
        assert_eq!(code(&mut first).await, Some(tonic::Code::ResourceExhausted));
        assert!(first.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_answer_in_the_way_is_ended_with_its_connection_at_the_latest() {
        let server = Answers { answers: Pool::new(4 * LONG), calls: Pool::new(100) };
        let (mut unread, mut read) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            unread.push(server.begin(1, 1).await);
        }
        read.push(server.begin(2, 1).await);
        assert!(unread.iter().chain(&read).all(|(_, answer)| answer.is_ok()));
        let (peer, _) = &unread[1];
        assert!(!peer.end.is_cancelled());
        sleep(2 * GRACE).await;
        assert!(!peer.end.is_cancelled(), "nobody needs its place");
        read.push(server.begin(3, 1).await);
        let (peer, answer) = &mut unread[1];
        assert!(answer.as_mut().unwrap().end.is_cancelled());
        tokio::time::timeout(Duration::from_secs(30), peer.end.cancelled()).await.unwrap();
        assert!(read.iter().all(|(peer, answer)| answer.is_ok() && !peer.end.is_cancelled()));
    }
}
