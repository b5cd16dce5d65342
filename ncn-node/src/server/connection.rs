//! A connection that counts among those of its peer, and can be ended from outside.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::pool::{Pool, Share, peer_of};
use crate::measures::Present;

/// How long a peer may take nothing of what is sent to it. HTTP/2 cannot end such a connection: it would have to send for that.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Whose connection a call came on, and what ends it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    pub(super) end: CancellationToken,
}

pub(super) struct Connection {
    stream: TcpStream,
    peer: Peer,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// There is one while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    _shares: Vec<Share>,
    _present: Present,
}

impl Connection {
    /// The connection, which `end` ends; unless its peer has too many, and it is closed at once.
    pub(super) fn admit(stream: TcpStream, end: CancellationToken, places: &[Arc<Pool>]) -> Option<Self> {
        // Without it, the connection is slower.
        let _ = stream.set_nodelay(true);
        let peer = Peer { address: peer_of(stream.peer_addr().ok()?.ip()), end };
        let shares: Option<Vec<_>> = places.iter().map(|places| places.claim(peer.address, 1, &peer.end)).collect();
        if shares.is_none() {
            tracing::debug!(peer = %peer.address, "a connection is refused: too many are open");
        }
        let ended = Box::pin(peer.end.clone().cancelled_owned());
        Some(Self { stream, peer, ended, stalled: None, _shares: shares?, _present: Present::connection() })
    }

    /// Whose it is.
    pub(super) const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// An error once the connection is ended from outside. Asked whatever the connection is waiting for.
    fn check_ended(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.ended.as_mut().poll(context).is_pending() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the connection was ended: the server stops, or others needed its place",
        ))
    }

    /// Writes in this way, unless the connection is ended or its peer takes nothing.
    fn poll_writing<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.check_ended(context)?;
        let written = write(Pin::new(&mut self.stream), context);
        if written.is_ready() {
            self.stalled = None;
        } else if self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT))).as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")));
        }
        written
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_ended(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_writing(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_writing(context, |stream, context| stream.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_writing(context, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_writing(context, AsyncWrite::poll_shutdown)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpListener, TcpSocket},
    };

    use super::*;

    async fn connect(listener: &TcpListener, pool: &Arc<Pool>, last: u8) -> (TcpStream, Option<Connection>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0))).unwrap();
        let stream = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (stream, Connection::admit(accepted, CancellationToken::new(), std::slice::from_ref(pool)))
    }

    #[tokio::test]
    async fn a_newcomer_gets_a_connection_however_many_are_silent() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let pool = Pool::new(40);
        let mut silent = Vec::new();
        for last in 2..9 {
            for _ in 0..20 {
                silent.push(connect(&listener, &pool, last).await);
            }
        }
        let (_stream, admitted) = connect(&listener, &pool, 1).await;
        assert!(admitted.is_some());
        let mut open = 0;
        for (_, connection) in &mut silent {
            let Some(connection) = connection else { continue };
            if connection.peer.end.is_cancelled() {
                let error = connection.read_u8().await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            } else {
                open += 1;
            }
        }
        assert!((30..40).contains(&open), "{open}");
    }
}
