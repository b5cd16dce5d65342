use std::sync::Arc;

use ncn_core::{Address, B256};
use ncn_core::{ChainView, Confinement, DynSigner, NodeRole, Registry};

use super::{NodeError, leave};
use crate::{
    registration::{NodeDescriptor, Registration},
    registry::{ValidatorNode, validator_service},
    server::{Listen, Server, Services},
};

/// Makes up a validator.
pub struct ValidatorBuilder {
    signer: DynSigner,
    registry: Arc<dyn Registry>,
    chain: Arc<dyn ChainView>,
    listen: Listen,
}

/// A validator that runs.
pub struct RunningValidator {
    address: Address,
    server: Server,
    registration: Registration,
}

impl ValidatorNode {
    /// Starts to make up a validator: its key, the registry and the chain. It listens on any free port of this machine unless it is told.
    pub fn builder(signer: DynSigner, registry: Arc<dyn Registry>, chain: Arc<dyn ChainView>) -> ValidatorBuilder {
        ValidatorBuilder { signer, registry, chain, listen: crate::server::LOOPBACK.into() }
    }
}

impl ValidatorBuilder {
    /// Where it listens; the registry node has to reach it there.
    #[must_use]
    pub fn listen(mut self, listen: impl Into<Listen>) -> Self {
        self.listen = listen.into();
        self
    }

    /// Starts it: listens, and registers.
    pub async fn start(self) -> Result<RunningValidator, NodeError> {
        let Self { signer, registry, chain, listen } = self;
        let domain = chain.trust_root().await?.domain;
        let node = Arc::new(ValidatorNode::new(signer.clone(), registry.clone(), chain));
        let server = Server::start(listen, Services::new().with(validator_service(node)))?;
        let descriptor = NodeDescriptor {
            role: NodeRole::Validator,
            subnet: B256::ZERO,
            endpoint: server.url(),
            models: Vec::new(),
            confinement: Confinement::None,
        };
        let address = signer.address();
        let registration = Registration::start(registry, signer, domain, descriptor).await?;
        Ok(RunningValidator { address, server, registration })
    }
}

impl RunningValidator {
    /// Who it is.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// How it is called.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Leaves the network and ends.
    pub async fn shutdown(self) {
        leave(self.registration).await;
        self.server.shutdown().await;
    }
}
