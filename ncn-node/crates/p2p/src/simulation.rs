//! A network within one process, whose links are slow, lose what is sent, and break apart, all of it by a seed.
//!
//! It takes the place of TCP and QUIC; everything above is as it is: handshakes, streams, gossip, the hash table. What is lost is sent again
//! after a while, as TCP does; what is sent between parts of the network waits until these are one again. Time is real: libp2p's timers are
//! not the runtime's, which could be paused.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        ConnectedPoint,
        muxing::StreamMuxerBox,
        transport::{Boxed, MemoryTransport},
        upgrade::Version,
    },
    identity::Keypair,
    multiaddr::Protocol,
    noise,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

/// How much is on its way on one connection in one direction, in pieces of so many bytes.
const PIECES: usize = 64;
const PIECE: usize = 16 << 10;
/// How long it takes until what was lost is sent again.
const AGAIN: Duration = Duration::from_millis(200);
/// How often a link that is apart is looked at again.
const LOOK: Duration = Duration::from_millis(5);

/// How the links of a network are.
#[derive(Clone, Debug)]
pub struct Links {
    /// How long a piece takes from one host to another; each link has its own time in this range.
    pub delay: Range<Duration>,
    /// How many pieces of a thousand are lost, and sent again later.
    pub lost: u64,
}

/// A network within this process. Its hosts are numbers, called at `/memory/NUMBER`.
#[derive(Debug)]
pub struct SimulatedNetwork {
    seed: u64,
    links: Links,
    sent: AtomicU64,
    /// Hosts that reach each other, and nobody else. Without any, all do.
    parts: RwLock<Vec<BTreeSet<u64>>>,
}

/// Numbers that look random, of a number: Steele, Lea and Flood's `SplitMix64`.
const fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl SimulatedNetwork {
    /// A network whose links are whole.
    pub fn new(seed: u64, links: Links) -> Arc<Self> {
        Arc::new(Self { seed, links, sent: AtomicU64::new(0), parts: RwLock::default() })
    }

    /// Where a host is called.
    pub fn address(host: u64) -> Multiaddr {
        Multiaddr::empty().with(Protocol::Memory(host))
    }

    /// Parts the network: hosts reach those of their own part only. With no parts it is whole again.
    pub fn part(&self, parts: Vec<BTreeSet<u64>>) {
        *self.parts.write().unwrap_or_else(PoisonError::into_inner) = parts;
    }

    fn is_apart(&self, one: u64, other: u64) -> bool {
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        !parts.is_empty() && !parts.iter().any(|part| part.contains(&one) && part.contains(&other))
    }

    /// How long the next piece takes between these two.
    fn delay(&self, one: u64, other: u64) -> Duration {
        let Range { start, end } = self.links.delay;
        let link = mix(self.seed ^ mix(one.min(other)) ^ mix(one.max(other)).rotate_left(1));
        let of_link = start + end.saturating_sub(start) * u32::try_from(link % 1_000).unwrap_or_default() / 1_000;
        let is_lost = mix(self.seed ^ self.sent.fetch_add(1, Ordering::Relaxed)) % 1_000 < self.links.lost;
        of_link + if is_lost { AGAIN } else { Duration::ZERO }
    }

    /// What a host has instead of TCP and QUIC.
    pub(crate) fn transport(self: &Arc<Self>, host: u64, key: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, Problem> {
        let network = self.clone();
        let delayed = MemoryTransport::new().map(move |channel, point| {
            let link = match point {
                // Who calls delays both directions.
                ConnectedPoint::Dialer { address, .. } => called(&address).map(|other| (network.clone(), host, other)),
                ConnectedPoint::Listener { .. } => None,
            };
            through(channel, link)
        });
        let secure = delayed.upgrade(Version::V1Lazy).authenticate(noise::Config::new(key)?);
        Ok(secure.multiplex(crate::streams::Streams).boxed())
    }
}

fn called(address: &Multiaddr) -> Option<u64> {
    address.iter().find_map(|part| if let Protocol::Memory(host) = part { Some(host) } else { None })
}

/// What libp2p takes as an error.
type Problem = Box<dyn std::error::Error + Send + Sync>;
type Link = Option<(Arc<SimulatedNetwork>, u64, u64)>;

/// The near end of a stream whose bytes take their time to and from its far end.
fn through<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(far: T, link: Link) -> Compat<DuplexStream> {
    let (near, inner) = tokio::io::duplex(PIECE);
    let (from_near, to_near) = tokio::io::split(inner);
    let (from_far, to_far) = tokio::io::split(far.compat());
    carry(from_near, to_far, link.clone());
    carry(from_far, to_near, link);
    near.compat()
}

/// Carries bytes in their order.
fn carry(
    mut from: impl tokio::io::AsyncRead + Send + Unpin + 'static,
    mut to: impl tokio::io::AsyncWrite + Send + Unpin + 'static,
    link: Link,
) {
    let (sender, mut on_its_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let reading = link.clone();
    tokio::spawn(async move {
        let mut piece = vec![0; PIECE];
        while let Ok(read @ 1..) = from.read(&mut piece).await {
            let delay = reading.as_ref().map_or(Duration::ZERO, |(network, one, other)| network.delay(*one, *other));
            let bytes = piece.get(..read).unwrap_or_default().to_vec();
            if sender.send((Instant::now() + delay, bytes)).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, bytes)) = on_its_way.recv().await {
            sleep_until(at).await;
            if let Some((network, one, other)) = &link {
                while network.is_apart(*one, *other) {
                    sleep(LOOK).await;
                }
            }
            if to.write_all(&bytes).await.and(to.flush().await).is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
}
