//! Streams of one TCP connection, by yamux, within bounds of our own: by libp2p's, a peer may leave 1 GiB of each connection unread.

use std::{
    collections::VecDeque,
    future::{Ready, ready},
    io, iter,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::{
    StreamMuxer,
    muxing::StreamMuxerEvent,
    upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
};
use yamux::{Connection, ConnectionError, Mode};

/// Streams at once on one connection.
pub(crate) const MAX_STREAMS: u32 = 128;
/// Of these, those that the peer has opened: one that is one too many is closed. The protocol lets each have 256 KiB that nobody has read.
const MAX_OPENED_BY_PEER: usize = 48;
/// What yamux lets a stream have unread at the least, whatever is read of it.
const LEAST_UNREAD: usize = 256 << 10;

/// Makes a connection have streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams;

impl Streams {
    fn on<C: AsyncRead + AsyncWrite + Unpin>(connection: C, mode: Mode) -> Ready<io::Result<Muxer<C>>> {
        let mut config = yamux::Config::default();
        // In this order: the window has to be enough for the number of streams.
        config.set_max_num_streams(MAX_STREAMS as usize);
        config.set_max_connection_receive_window(Some(MAX_STREAMS as usize * LEAST_UNREAD));
        let connection = Connection::new(connection, config, mode);
        ready(Ok(Muxer { connection, opened: VecDeque::new(), by_peer: Arc::new(()), waiting: None }))
    }
}

impl UpgradeInfo for Streams {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Streams {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Muxer<C>>>;

    fn upgrade_inbound(self, connection: C, _: Self::Info) -> Self::Future {
        Self::on(connection, Mode::Server)
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Streams {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Muxer<C>>>;

    fn upgrade_outbound(self, connection: C, _: Self::Info) -> Self::Future {
        Self::on(connection, Mode::Client)
    }
}

/// A connection that has streams.
pub(crate) struct Muxer<C> {
    connection: Connection<C>,
    /// Those that the peer has opened while nobody asked for them: the connection makes progress only by looking for new ones.
    opened: VecDeque<Stream>,
    /// One more reference for each stream that the peer has opened.
    by_peer: Arc<()>,
    /// Who asks for them.
    waiting: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    /// The next stream that the peer opens.
    fn poll_opened(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        loop {
            let opened = match self.connection.poll_next_inbound(context) {
                Poll::Ready(Some(opened)) => opened.map_err(broken)?,
                Poll::Ready(None) => return Poll::Ready(Err(broken(ConnectionError::Closed))),
                Poll::Pending => return Poll::Pending,
            };
            // One too many is dropped, which resets it.
            if Arc::strong_count(&self.by_peer) <= MAX_OPENED_BY_PEER {
                return Poll::Ready(Ok(Stream { stream: opened, _by_peer: Some(self.by_peer.clone()) }));
            }
        }
    }
}

fn broken(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Stream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        if let Some(opened) = self.opened.pop_front() {
            return Poll::Ready(Ok(opened));
        }
        let opened = self.poll_opened(context);
        if opened.is_pending() {
            self.waiting = Some(context.waker().clone());
        }
        opened
    }

    fn poll_outbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let opened = self.connection.poll_new_outbound(context);
        opened.map(|stream| Ok(Stream { stream: stream.map_err(broken)?, _by_peer: None }))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.poll_close(context).map_err(broken)
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        while let Poll::Ready(opened) = self.poll_opened(context) {
            self.opened.push_back(opened?);
            if let Some(waiting) = self.waiting.take() {
                waiting.wake();
            }
        }
        Poll::Pending
    }
}

/// A stream, which counts while it is there if the peer has opened it.
pub(crate) struct Stream {
    stream: yamux::Stream,
    _by_peer: Option<Arc<()>>,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use futures::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::compat::TokioAsyncReadCompatExt as _;

    use super::*;

    /// Another program's connection, which opens streams with one byte each as it is told to, and keeps them.
    fn opens(connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> tokio::sync::mpsc::UnboundedSender<()> {
        let (open, mut opens) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut connection = Connection::new(connection, yamux::Config::default(), Mode::Client);
            let mut wanted = 0;
            poll_fn::<(), _>(|context| {
                while let Poll::Ready(Some(())) = opens.poll_recv(context) {
                    wanted += 1;
                }
                while wanted > 0
                    && let Poll::Ready(Ok(mut stream)) = connection.poll_new_outbound(context)
                {
                    wanted -= 1;
                    tokio::spawn(async move {
                        stream.write_all(b"x").await.unwrap();
                        let _ = stream.read(&mut [0]).await;
                    });
                }
                while let Poll::Ready(Some(_)) = connection.poll_next_inbound(context) {}
                Poll::Pending
            })
            .await;
        });
        open
    }

    #[tokio::test]
    async fn a_peer_has_so_many_streams_open_and_no_more() {
        let (here, there) = tokio::io::duplex(64 << 10);
        let open = opens(there.compat());
        let mut muxer = Streams.upgrade_inbound(here.compat(), "/yamux/1.0.0").await.unwrap();
        let mut next = async || {
            let opened = poll_fn(|context| {
                let opened = Pin::new(&mut muxer).poll_inbound(context);
                if opened.is_pending() {
                    let _ = Pin::new(&mut muxer).poll(context);
                }
                opened
            });
            tokio::time::timeout(Duration::from_secs(5), opened).await.ok().map(Result::unwrap)
        };
        (0..100).for_each(|_| open.send(()).unwrap());
        let mut held = Vec::new();
        while let Some(stream) = next().await {
            held.push(stream);
        }
        assert_eq!(held.len(), MAX_OPENED_BY_PEER);
        held.truncate(MAX_OPENED_BY_PEER - 1);
        open.send(()).unwrap();
        let mut stream = next().await.expect("there is a place again");
        let _driven = tokio::spawn(async move { poll_fn(|context| Pin::new(&mut muxer).poll(context)).await });
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"x");
    }
}
