//! Nodes as they run: each role with its store, its server and its registration, started by one builder and ended by one `shutdown`.
//!
//! | role | builder | what runs |
//! | --- | --- | --- |
//! | gateway | [`Gateway::builder`](crate::gateway::Gateway::builder) | [`RunningGateway`] |
//! | compute node | [`ComputeNode::builder`](crate::compute::ComputeNode::builder) | [`RunningComputeNode`] |
//! | registry node | [`RegistryNode::builder`](crate::registry::RegistryNode::builder) | [`RunningRegistryNode`] |
//! | validator | [`ValidatorNode::builder`](crate::registry::ValidatorNode::builder) | [`RunningValidator`] |
//!
//! What runs ends at once when it is dropped, as after a crash; its `shutdown` says farewell first.

#[cfg(feature = "grpc")]
mod compute;
mod gateway;
#[cfg(feature = "grpc")]
mod registry;
#[cfg(feature = "grpc")]
mod validator;

#[cfg(feature = "grpc")]
use std::time::Duration;

#[cfg(feature = "grpc")]
pub use compute::{ComputeNodeBuilder, ComputeNodeError, RunningComputeNode};
pub use gateway::{GatewayBuilder, RunningGateway};
#[cfg(feature = "grpc")]
pub use registry::{RegistryNodeBuilder, RunningRegistryNode};
#[cfg(feature = "grpc")]
pub use validator::{RunningValidator, ValidatorBuilder};

#[cfg(feature = "grpc")]
use crate::registration::Registration;

/// How long a registry may take to let a node go that shuts down.
#[cfg(feature = "grpc")]
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The chain does not answer.
    #[error("chain: {0}")]
    Ledger(#[from] ncn_core::LedgerError),
    /// The registry does not take the node.
    #[error("registry: {0}")]
    Registry(#[from] ncn_core::RegistryError),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
}

/// Takes a node off the network. A registry that does not answer forgets it by itself, since it is not heard of any more.
#[cfg(feature = "grpc")]
async fn leave(registration: Registration) {
    match tokio::time::timeout(LEAVE_TIMEOUT, registration.leave()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the registry was not told that the node leaves"),
        Err(_) => tracing::warn!("the registry was not told that the node leaves: no answer in time"),
    }
}
