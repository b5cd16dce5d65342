//! Questions and answers as frames: the whole of a stream, with one bound for all streams together.

use std::{io, sync::Arc, time::Duration};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{StreamProtocol, bytes::Bytes, request_response::Codec};
use ncn_wire::MAX_MESSAGE_BYTES;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How many bytes of frames are in memory at once, of all peers: those that arrive, and those that are being answered.
const MAX_BYTES: usize = 64 << 20;
/// The first piece of a frame takes no room, and each one has twice the bytes of the one before it, up to the largest: who says little takes
/// little from others.
const FREE: u32 = 1 << 10;
const LARGEST: u32 = 64 << 10;
/// How long a frame waits for room, and for its next piece.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads and writes frames.
#[derive(Clone)]
pub(crate) struct Frames {
    room: Arc<Semaphore>,
}

/// A frame, and the room that it takes.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    /// None of one that is on its way out, which its sender counts.
    _room: Option<OwnedSemaphorePermit>,
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.into(), _room: None }
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(MAX_BYTES)) }
    }
}

impl Frames {
    async fn read<T: AsyncRead + Unpin + Send>(&self, io: &mut T) -> io::Result<Frame> {
        let (mut frame, mut room): (Vec<u8>, Option<OwnedSemaphorePermit>) = (Vec::new(), None);
        let mut most = FREE;
        while read_piece(io, most, &mut frame).await? {
            most = (2 * most).min(LARGEST);
            let piece = timeout(ROOM_TIMEOUT, self.room.clone().acquire_many_owned(most)).await;
            let piece = piece.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?.map_err(io::Error::other)?;
            match &mut room {
                Some(room) => room.merge(piece),
                None => room = Some(piece),
            }
        }
        Ok(Frame { bytes: frame.into(), _room: room })
    }
}

/// Reads so many bytes at the most; true when there may be more.
async fn read_piece<T: AsyncRead + Unpin + Send>(io: &mut T, most: u32, frame: &mut Vec<u8>) -> io::Result<bool> {
    let mut limited = (&mut *io).take(most.into());
    let read = timeout(PIECE_TIMEOUT, limited.read_to_end(frame)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if frame.len() > MAX_MESSAGE_BYTES {
        return Err(io::Error::other(format!("a frame has more than {MAX_MESSAGE_BYTES} bytes")));
    }
    Ok(read == most as usize)
}

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, frame: &Frame) -> io::Result<()> {
    io.write_all(&frame.bytes).await?;
    io.close().await
}

impl Codec for Frames {
    type Protocol = StreamProtocol;
    type Request = Frame;
    type Response = Frame;

    async fn read_request<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Frame> {
        self.read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Frame> {
        self.read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        frame: Frame,
    ) -> io::Result<()> {
        write(io, &frame).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        frame: Frame,
    ) -> io::Result<()> {
        write(io, &frame).await
    }
}
