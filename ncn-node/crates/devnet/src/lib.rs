//! A whole network on one machine: an embedded chain with the real contracts, validators, registry nodes, a gateway and compute
//! nodes, which talk gRPC over loopback.

mod chain;
mod network;
pub mod quickstart;
mod rpc;

pub use chain::{EmbeddedChain, Mining, TooDeep};
pub use ncn_client::devnet::{CHAIN_ID, deployment as well_known_deployment, key as well_known_key, secret as well_known_secret};
pub use network::{DevnetError, LocalNetwork, LocalNetworkBuilder};
pub use rpc::RpcServer;
