//! Connections whose peers say nothing.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How many bytes say which protocol a connection speaks: as many as HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// A connection whose peer has so long to say which protocol it speaks. Until then, nothing else ends a connection that is silent.
pub(super) struct Begun<S> {
    stream: S,
    missing: usize,
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Begun<S> {
    pub(super) fn within(timeout: Duration, stream: S) -> Self {
        Self { stream, missing: PREFACE, late: Some(Box::pin(sleep(timeout))) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(late) = &mut self.late {
            let is_late = read.is_pending() && late.as_mut().poll(context).is_ready();
            if is_late {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not begin to speak")));
            }
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                self.late = None;
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_does_not_begin_to_speak_is_left() {
        const SOON: Duration = Duration::from_millis(50);
        let (mut peer, server) = tokio::io::duplex(1_024);
        let mut server = Begun::within(SOON, server);
        // Whether it says nothing, or too little.
        peer.write_all(b"PRI").await.unwrap();
        let error = server.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (mut peer, server) = tokio::io::duplex(1_024);
        let mut server = Begun::within(SOON, server);
        peer.write_all(&[b'a'; PREFACE]).await.unwrap();
        server.read_exact(&mut [0; PREFACE]).await.unwrap();
        assert!(tokio::time::timeout(4 * SOON, server.read_u8()).await.is_err(), "it may be silent then");
    }
}
