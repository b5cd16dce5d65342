//! What everybody knows of a development network, `ncn devnet`: nothing on it is worth anything.

use std::sync::Arc;

use alloy_primitives::{B256, keccak256};
use alloy_signer_local::PrivateKeySigner;
use ncn_core::{DynSigner, TrustRoot};

use crate::evm::Deployment;

/// Its chain's id, the one that development chains have by custom.
pub const CHAIN_ID: u64 = 31_337;

/// The secret of a key that everybody knows, as key files hold it.
pub fn secret(role: &str, number: usize) -> B256 {
    keccak256(format!("ncn devnet {role} {number}"))
}

/// A key that everybody knows: for networks that hold nothing of worth.
pub fn key(role: &str, number: usize) -> DynSigner {
    // One hash in 2^128 is no key. None of these is that one; if it were, a key that nobody knows would do.
    Arc::new(PrivateKeySigner::from_bytes(&secret(role, number)).unwrap_or_else(|_| PrivateKeySigner::random()))
}

/// Whether this is such a network: it has a development chain's id, and the contracts that everybody knows. Who is validator there is not proven by it.
pub fn is_network(stated: &TrustRoot) -> bool {
    let known = deployment();
    (stated.domain.chain_id, stated.domain.contract, stated.channels) == (CHAIN_ID, known.payment, known.channels)
}

/// Where a network with well-known keys has its contracts.
pub fn deployment() -> Deployment {
    Deployment::first_of(key("deployer", 0).address())
}
