//! Length-delimited messages over pipes.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd, BorrowedFd},
};

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// How much is read at once: what a pipe holds as a rule.
const READ: usize = 64 << 10;
/// The bytes that tell a message's length.
const HEAD: usize = 4;

/// Messages that come out of a pipe.
pub(crate) struct Incoming<P = File> {
    pipe: P,
    most: usize,
    read: Box<[u8]>,
    buffer: BytesMut,
}

impl<P: io::Read> Incoming<P> {
    /// Messages of at most so many bytes.
    pub(crate) fn new(pipe: P, most: usize) -> Self {
        Self { pipe, most, read: vec![0; READ].into(), buffer: BytesMut::new() }
    }

    /// Reads what there is; false when there will be no more. Waits only when there is nothing yet.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        let count = loop {
            match self.pipe.read(&mut self.read) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.buffer.extend_from_slice(self.read.get(..count).unwrap_or_default());
        Ok(count > 0)
    }

    /// The next whole message.
    pub(crate) fn next<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        self.next_frame()?.map(M::decode).transpose().map_err(io::Error::other)
    }

    /// The bytes of the next whole message. One that is too long is an error before it is read.
    pub(crate) fn next_frame(&mut self) -> io::Result<Option<Bytes>> {
        let Some(head) = self.buffer.first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > self.most {
            return Err(io::Error::other(format!("a message of {length} bytes, at most {} are read", self.most)));
        }
        if self.buffer.len() < HEAD + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

impl<P: AsFd> AsFd for Incoming<P> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Messages on their way into a pipe that does not block.
pub(crate) struct Outgoing {
    pipe: File,
    frames: VecDeque<Bytes>,
    waiting: usize,
}

impl Outgoing {
    pub(crate) fn new(pipe: File) -> io::Result<Self> {
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        Ok(Self { pipe, frames: VecDeque::new(), waiting: 0 })
    }

    pub(crate) fn push(&mut self, message: &impl Message) {
        let frame = frame(message);
        self.waiting += frame.len();
        self.frames.push_back(frame);
    }

    /// How many bytes the other side has not read yet.
    pub(crate) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Writes what the pipe takes.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        while let Some(frame) = self.frames.front_mut() {
            match self.pipe.write(frame) {
                Ok(count) => {
                    frame.advance(count);
                    self.waiting -= count;
                    if frame.is_empty() {
                        self.frames.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes what the pipe takes; what nobody reads any more is forgotten.
    pub(crate) fn write_or_forget(&mut self) {
        if self.write().is_err() {
            self.frames.clear();
            self.waiting = 0;
        }
    }
}

impl AsFd for Outgoing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// A message with its length before it. The caller has checked that the other side reads one of its length.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(HEAD + length);
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&message.encode_to_vec());
    frame.into()
}
