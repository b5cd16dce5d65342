//! A whole network on one machine: an embedded chain with the real contracts, validators, registry nodes, a gateway and compute
//! nodes, which talk gRPC over loopback.

mod chain;
mod network;
pub mod quickstart;
mod rpc;

pub use chain::{EmbeddedChain, Mining, TooDeep};
use std::sync::Arc;

use alloy_primitives::{B256, keccak256};
use alloy_signer_local::PrivateKeySigner;
use ncn_client::evm::Deployment;
use ncn_core::DynSigner;
pub use network::{CHAIN_ID, DevnetError, LocalNetwork, LocalNetworkBuilder};
pub use rpc::RpcServer;

/// The secret of a key that everybody knows, as key files hold it.
pub fn well_known_secret(role: &str, number: usize) -> B256 {
    keccak256(format!("ncn devnet {role} {number}"))
}

/// A key that everybody knows: for networks that hold nothing of worth.
pub fn well_known_key(role: &str, number: usize) -> DynSigner {
    // One hash in 2^128 is no key. None of these is that one; if it were, a key that nobody knows would do.
    Arc::new(PrivateKeySigner::from_bytes(&well_known_secret(role, number)).unwrap_or_else(|_| PrivateKeySigner::random()))
}

/// Where a network with well-known keys has its contracts.
pub fn well_known_deployment() -> Deployment {
    Deployment::first_of(well_known_key("deployer", 0).address())
}
