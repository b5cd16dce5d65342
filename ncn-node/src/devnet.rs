//! A whole network on one machine: an embedded chain with the real contracts, validators, a registry node, a gateway and compute
//! nodes, which talk gRPC over loopback.

mod chain;
mod network;
pub mod quickstart;
mod rpc;

pub use chain::{EmbeddedChain, Mining, TooDeep};
pub use network::{DevnetError, LocalNetwork, LocalNetworkBuilder};
pub use rpc::RpcServer;
