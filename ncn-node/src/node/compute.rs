use std::{path::PathBuf, sync::Arc};

use ncn_client::grpc::EndpointError;
use ncn_core::{Address, Amount, B256};
use ncn_core::{
    Attestors, ChainView, Confinement, Directory, DynSigner, Executor, ExecutorError, LedgerError, PaymentLedger, RegistryError,
    executor::ModelPackage,
};
use tokio_util::task::AbortOnDropHandle;

use super::leave;
use crate::{
    compute::{ClaimParts, Claims, ClaimsError, ComputeNode, DEFAULT_CREDIT, GatewaySessions},
    registration::Registration,
    store::SharedStore,
};

/// How many requests a node runs or reserves capacity for at once, unless it is told.
const CAPACITY: usize = 16;

/// Makes up a compute node.
pub struct ComputeNodeBuilder {
    signer: DynSigner,
    subnet: B256,
    executor: Arc<dyn Executor>,
    chain: Arc<dyn ChainView>,
    registry: Arc<dyn Directory>,
    models: Vec<ModelPackage>,
    capacity: usize,
    gateways: Vec<(Address, String)>,
    claims: Option<ClaimParts>,
    credit: Amount,
}

/// Why a compute node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeNodeError {
    /// A model that cannot be loaded.
    #[error("model {name}, in {directory}: {problem}")]
    Model {
        /// Which.
        name: String,
        /// Where its files are.
        directory: PathBuf,
        /// Why.
        #[source]
        problem: ExecutorError,
    },
    /// The chain does not answer.
    #[error("chain: {0}")]
    Ledger(#[from] LedgerError),
    /// The registry does not take it.
    #[error("registry: {0}")]
    Registry(#[from] RegistryError),
    /// What it is owed cannot be looked after.
    #[error("claims: {0}")]
    Claims(#[from] ClaimsError),
    /// A gateway's URL.
    #[error("gateway: {0}")]
    Gateway(#[from] EndpointError),
}

/// A compute node that runs: its sessions with gateways, and its registration.
pub struct RunningComputeNode {
    node: Arc<ComputeNode>,
    confinement: Confinement,
    sessions: GatewaySessions,
    registration: Registration,
    claiming: Option<(Arc<Claims>, AbortOnDropHandle<()>)>,
}

impl ComputeNode {
    /// Starts to make up a compute node: its key, its subnet, what runs its models, the chain and the registry.
    pub fn builder(
        signer: DynSigner,
        subnet: B256,
        executor: Arc<dyn Executor>,
        chain: Arc<dyn ChainView>,
        registry: Arc<dyn Directory>,
    ) -> ComputeNodeBuilder {
        ComputeNodeBuilder {
            signer,
            subnet,
            executor,
            chain,
            registry,
            models: Vec::new(),
            capacity: CAPACITY,
            gateways: Vec::new(),
            claims: None,
            credit: DEFAULT_CREDIT,
        }
    }
}

impl ComputeNodeBuilder {
    /// The models that it runs.
    #[must_use]
    pub fn models(mut self, packages: Vec<ModelPackage>) -> Self {
        self.models = packages;
        self
    }

    /// How many requests it runs or reserves capacity for at once; 16 by default.
    #[must_use]
    pub const fn capacity(mut self, requests: usize) -> Self {
        self.capacity = requests;
        self
    }

    /// A gateway that it works for, by its address and URL.
    #[must_use]
    pub fn gateway(mut self, address: Address, url: impl Into<String>) -> Self {
        self.gateways.push((address, url.into()));
        self
    }

    /// Has it settle by this account what a gateway has given up or let expire, by the approval that it asks these validators for. What it is
    /// owed is kept in the store until it is paid.
    #[must_use]
    pub fn claims(mut self, account: Arc<dyn PaymentLedger>, validators: Arc<dyn Attestors>, store: SharedStore) -> Self {
        self.claims = Some(ClaimParts { account, validators, store });
        self
    }

    /// How much it lets its gateway owe it out of channels, [`DEFAULT_CREDIT`] unless it is told. Nothing but the gateway's settlement pays
    /// that. With none, it takes no vouchers.
    #[must_use]
    pub const fn credit(mut self, limit: Amount) -> Self {
        self.credit = limit;
        self
    }

    /// Starts it: loads its models, registers, and opens its sessions, which are opened again when they break.
    pub async fn start(self) -> Result<RunningComputeNode, ComputeNodeError> {
        let Self { signer, subnet, executor, chain, registry, models, capacity, gateways, claims, credit } = self;
        // Before anything is loaded or registered.
        for (_, url) in &gateways {
            drop(ncn_client::grpc::endpoint(url)?);
        }
        let domain = chain.trust_root().await?.domain;
        let mut node = ComputeNode::new(signer.clone(), domain, subnet, executor, chain.clone(), capacity);
        node.lend(credit);
        let claiming = match claims {
            Some(parts) => {
                let claims = Claims::load(signer.clone(), chain, parts).await?;
                node.claim_by(claims.clone());
                Some((claims.clone(), AbortOnDropHandle::new(tokio::spawn(claims.watch()))))
            }
            None => None,
        };
        for package in models {
            let (name, directory) = (package.model.manifest().name.clone(), package.directory.clone());
            node.add_model(package).await.map_err(|problem| ComputeNodeError::Model { name, directory, problem })?;
        }
        let descriptor = node.descriptor();
        let (node, confinement) = (Arc::new(node), descriptor.confinement);
        let registration = Registration::start(registry, signer, domain, descriptor).await?;
        let mut sessions = GatewaySessions::new();
        for (address, url) in gateways {
            sessions.add(node.clone(), address, &url)?;
        }
        Ok(RunningComputeNode { node, confinement, sessions, registration, claiming })
    }
}

impl RunningComputeNode {
    /// The node itself.
    pub const fn node(&self) -> &Arc<ComputeNode> {
        &self.node
    }

    /// What it is owed, when it looks after that.
    pub fn claims(&self) -> Option<&Arc<Claims>> {
        self.claiming.as_ref().map(|(claims, _)| claims)
    }

    /// How strongly it confines its models.
    pub const fn confinement(&self) -> Confinement {
        self.confinement
    }

    /// Leaves the network and ends. Requests that it runs are run by another node.
    pub async fn shutdown(self) {
        leave(self.registration).await;
        drop(self.sessions);
    }
}
