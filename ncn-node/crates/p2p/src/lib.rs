//! The NCN network's registry as a peer-to-peer network over libp2p.
//!
//! Registry nodes tell each other what they take in (gossipsub), so that each answers from its own table; what one has not heard, it looks up
//! among all of them (Kademlia). Validators are asked directly (request-response). Every record, heartbeat, departure and subnet is signed by
//! whom it is about, and judged by the same rules wherever it comes from: see [`ncn_core::membership::Membership`].

mod frames;
mod peer;
mod records;
mod registry;
mod shares;
#[cfg(feature = "simulation")]
pub mod simulation;
mod streams;
mod swarm;
mod task;
mod validator;
mod within;

pub use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use ncn_core::{LedgerError, RegistryError};
use ncn_node::{node::NodeError, store::StoreError};
pub use peer::{Peer, PeerOptions, PeerStatus};
pub use registry::{PeerRegistry, PeerRegistryBuilder, RunningPeerRegistry};

/// The port on which registry nodes meet.
pub const PORT: u16 = 8828;

/// Why a node of the peer-to-peer network does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Its parts do not fit together.
    #[error("libp2p: {0}")]
    Setup(String),
    /// It cannot listen there.
    #[error("listen {address}: {problem}")]
    Listen {
        /// Where.
        address: Multiaddr,
        /// Why.
        problem: String,
    },
    /// Others would not find it where it says.
    #[error("announce {address}: {problem}")]
    Announce {
        /// Where.
        address: Multiaddr,
        /// Why.
        problem: String,
    },
    /// A peer to begin with that is not named.
    #[error("bootstrap {0}: does not name its peer: end it with /p2p/ and the peer's id")]
    Bootstrap(Multiaddr),
    /// The chain does not answer.
    #[error("chain: {0}")]
    Ledger(#[from] LedgerError),
    /// The registry refuses it.
    #[error("registry: {0}")]
    Registry(#[from] RegistryError),
    /// It cannot serve gRPC.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// What it keeps cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot listen.
    #[error("listen: {0}")]
    Io(#[from] std::io::Error),
}
