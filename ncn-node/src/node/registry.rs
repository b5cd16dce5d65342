use std::{net::SocketAddr, sync::Arc};

use ncn_core::ChainView;

use super::NodeError;
use crate::{
    registry::{RegistryNode, registry_service},
    server::{Listen, Server, Services},
};

/// Makes up a registry node.
pub struct RegistryNodeBuilder {
    chain: Arc<dyn ChainView>,
    listen: Listen,
}

/// A registry node that runs.
pub struct RunningRegistryNode {
    node: Arc<RegistryNode>,
    server: Server,
}

impl RegistryNode {
    /// Starts to make up a registry node, which listens on any free port of this machine unless it is told.
    pub fn builder(chain: Arc<dyn ChainView>) -> RegistryNodeBuilder {
        RegistryNodeBuilder { chain, listen: crate::server::LOOPBACK.into() }
    }
}

impl RegistryNodeBuilder {
    /// Where it listens.
    #[must_use]
    pub fn listen(mut self, listen: impl Into<Listen>) -> Self {
        self.listen = listen.into();
        self
    }

    /// Starts it.
    pub async fn start(self) -> Result<RunningRegistryNode, NodeError> {
        let node = Arc::new(RegistryNode::new(self.chain).await?);
        let services = Services::new().with(registry_service(node.clone()));
        Ok(RunningRegistryNode { node, server: Server::start(self.listen, services)? })
    }
}

impl RunningRegistryNode {
    /// The node itself, without a wire.
    pub const fn node(&self) -> &Arc<RegistryNode> {
        &self.node
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How it is called.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Ends. Nodes that were registered register again at the one that takes its place.
    pub async fn shutdown(self) {
        self.server.shutdown().await;
    }
}
