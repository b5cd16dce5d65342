//! How much a server takes in, and what that can cost it: the numbers and their products.

use std::{io, net::SocketAddr, sync::Arc};

use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpSocket};

use super::pool::Pool;

/// How many connections wait to be accepted.
const BACKLOG: u32 = 1_024;
/// How many files are left to everything else of the process: its store, its own connections, its workers.
const OTHER_FILES: u64 = 256;

/// What a server has at once, of everybody. Of each, one address gets half at most, as a [`Pool`] gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections.
    pub(super) connections: usize,
    /// Bytes of a connection that have been received and not been read. On a way of 100 ms, 256 KiB let 2.5 MB/s through.
    pub(super) unread: u32,
    /// Bytes of a connection that the kernel is to send; none leaves it to the kernel, which has up to [`MOST_UNSENT`].
    pub(super) unsent: Option<u32>,
    /// Calls, answers that are being sent included.
    pub(super) calls: usize,
    /// Watches. Each is woken by every change.
    pub(super) watches: usize,
    /// WebSockets.
    #[cfg(feature = "http")]
    pub(super) sockets: usize,
    /// Bytes of messages that are arriving or being answered.
    pub(super) messages: usize,
    /// The same of compute nodes' streams, once they are admitted. Only a gateway has them.
    pub(super) streams: usize,
    /// Bytes of answers' messages that are being sent.
    pub(super) answers: usize,
}

/// What Linux sends of one connection at once, by its defaults, when the peer has taken much before.
const MOST_UNSENT: usize = 4 << 20;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

impl Bounds {
    /// Of a gateway, a registry node, a validator.
    pub(super) const NODE: Self = Self {
        connections: 768,
        unread: 256 << 10,
        unsent: Some(128 << 10),
        calls: 1_536,
        watches: 384,
        #[cfg(feature = "http")]
        sockets: 512,
        messages: 54 * MIB,
        streams: 32 * MIB,
        answers: 80 * MIB,
    };

    /// Of what takes no messages: figures, pages, files. Large files go over long ways, on which much is under way at once.
    pub(super) const FILES: Self = Self {
        connections: 192,
        unread: 64 << 10,
        unsent: None,
        calls: 512,
        watches: 64,
        #[cfg(feature = "http")]
        sockets: 16,
        messages: 4 * MIB,
        streams: 0,
        answers: 64 * MIB,
    };

    /// The bytes that strangers can make a server hold, the kernel's included.
    const fn bytes(self) -> usize {
        #[cfg(feature = "http")]
        let sockets = self.sockets;
        #[cfg(not(feature = "http"))]
        let sockets = 0;
        // Of HTTP/2, half as much again for the records of small frames; of HTTP/1, the kernel's buffer, which has twice its size.
        let unread = self.connections * 2 * self.unread as usize;
        let unsent = self.connections
            * match self.unsent {
                Some(bytes) => 2 * bytes as usize,
                None => MOST_UNSENT,
            };
        // With TLS: what waits to be sent, and a record each way.
        let tls = self.connections * (64 + 32) * KIB;
        // The message, and entries of twice its length that grow.
        let messages = (self.messages + self.streams) * 5;
        // As they are sent.
        let answers = self.answers;
        // Headers of 8 KiB as a map, buffers, a frame; short entries.
        let calls = (self.calls + self.watches) * (64 + 128) * KIB;
        // Buffers each way, and what is free of the pool of messages.
        let sockets = sockets * 32 * KIB;
        unread + unsent + tls + messages + answers + calls + sockets
    }

    /// Those of one address.
    const fn bytes_of_one(self) -> usize {
        self.bytes() / 2
    }
}

// A machine of 1 GiB survives a stranger who uses all of it: a quarter is left for the node itself.
const _: () = assert!(Bounds::NODE.bytes_of_one() <= 768 * MIB);
const _: () = assert!(Bounds::FILES.bytes_of_one() <= 512 * MIB);

impl Bounds {
    /// Listens, and has the kernel keep no more of each connection than is meant here.
    pub(super) fn listen(self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_recv_buffer_size(self.unread)?;
        if let Some(bytes) = self.unsent {
            socket.set_send_buffer_size(bytes)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    }
}

/// The files that the process's servers can have open together.
///
/// # Errors
/// There are so few that none is left for connections.
pub(super) fn files() -> io::Result<Arc<Pool>> {
    static FILES: std::sync::OnceLock<Arc<Pool>> = std::sync::OnceLock::new();
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = usize::try_from(most.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    if room == 0 {
        let problem = format!("only {most} files may be open, at least {} are needed: raise `ulimit -n`", OTHER_FILES + 1);
        return Err(io::Error::other(problem));
    }
    Ok(FILES.get_or_init(|| Pool::new(room)).clone())
}
