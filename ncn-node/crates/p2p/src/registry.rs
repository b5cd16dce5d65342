//! A registry node among others: it answers from what it has heard, and asks them for what it has not.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use libp2p::bytes::Bytes;
use ncn_core::{
    Address, AnswerTime, ApprovedSubnet, Attestors, B256, BatchRequest, Catalog, ChainView, CompletionRequest, Confinement,
    Deregistration, Directory, DynSigner, Heartbeat, NodeChanges, NodeQuery, NodeRecord, NodeRole, PreprocessingRequest,
    QuorumCertificate, RegistryError, RegistryStatus, RequestId, Signed, Subnet, Validator,
    membership::{News, Source},
    mempool::{Mempool, PendingRequests},
    registry::manifest_digest,
};
use ncn_node::{
    measures,
    registration::{NodeDescriptor, Registration},
    registry::{Outlet, RegistryNode, ValidatorNode, dial_grpc, registry_service, status_service},
    server::{Listen, Server, Services},
    store::SharedStore,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    PeerError,
    peer::{Peer, PeerOptions, PeerStatus},
    records::{Entry, manifest_key, node_key, subnet_key},
    swarm::Ways,
    validator::PeerValidator,
    within::{Budget, Own, Within, catch_up},
};

/// How many peers that were met wait to be asked.
const MET: usize = 64;

/// A registry node over libp2p: [`Directory`], [`Catalog`], [`Mempool`] and [`Attestors`] of the whole network.
pub struct PeerRegistry {
    node: Arc<RegistryNode>,
    peer: Peer,
    started: Instant,
}

/// Makes up a registry node of the peer-to-peer network, which with a key is a validator, too.
pub struct PeerRegistryBuilder {
    chain: Arc<dyn ChainView>,
    options: PeerOptions,
    listen: Listen,
    validator: Option<DynSigner>,
    store: Option<SharedStore>,
    ways: Ways,
}

/// A registry node, or a light client, that runs. Dropping it ends it without a word.
pub struct RunningPeerRegistry {
    registry: Arc<PeerRegistry>,
    server: Option<Server>,
    registration: Option<Registration>,
    _parting: Parting,
    _running: [AbortOnDropHandle<()>; 2],
}

/// Parts a node and the validator that it is, which hold each other, when it ends.
struct Parting(Arc<Own>);

impl Drop for Parting {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl PeerRegistry {
    /// Measures what it knows, for the recorder of metrics, if there is one.
    pub fn measure(&self) {
        measures::known(self.node.counts());
        measures::peers(self.status().peers.len());
    }

    /// Starts to make up a registry node: its chain, and where it meets the others. It serves gRPC on any free port of this machine unless it is
    /// told. With [`PeerOptions::serves`] off it is a light client: it knows what the others know and asks validators itself, and nobody asks it.
    pub fn builder(chain: Arc<dyn ChainView>, options: PeerOptions) -> PeerRegistryBuilder {
        PeerRegistryBuilder {
            chain,
            options,
            listen: ncn_node::server::LOOPBACK.into(),
            validator: None,
            store: None,
            ways: Ways::default(),
        }
    }

    /// The node of the peer-to-peer network that it is.
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What it says of itself.
    pub fn status(&self) -> RegistryStatus {
        let PeerStatus { addresses, peers } = self.peer.status();
        let (nodes, subnets, pending) = self.node.counts();
        let mut refused = self.node.refused();
        for (reason, count) in self.peer.refused().into_iter().filter(|(_, count)| *count > 0) {
            *refused.entry(reason.into()).or_default() += count;
        }
        RegistryStatus {
            peer: self.peer.id().to_string(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            peers: peers.iter().map(ToString::to_string).collect(),
            nodes: nodes as u64,
            subnets: subnets as u64,
            pending: pending as u64,
            refused,
            uptime: self.started.elapsed().as_secs(),
        }
    }

    /// Looks a node up among all of them, whatever this one has heard. Its record may have been followed by a departure, which is not looked up.
    pub async fn find(&self, node: Address) -> Option<Signed<NodeRecord>> {
        self.peer.get(node_key(node)).await.ok()?.into_iter().find_map(|entry| match entry {
            Entry::Signed(News::Record(record)) => Some(record),
            _ => None,
        })
    }

    /// Looks up what this node has not heard.
    async fn look_up(&self, key: libp2p::kad::RecordKey) {
        for entry in self.peer.get(key).await.unwrap_or_default() {
            let Entry::Signed(news) = entry else { continue };
            match self.node.hear(news, Source::default()).await {
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, "what was found is refused"),
            }
        }
    }
}

impl PeerRegistryBuilder {
    /// Where gateways and compute nodes call it, over gRPC.
    #[must_use]
    pub fn listen(mut self, listen: impl Into<Listen>) -> Self {
        self.listen = listen.into();
        self
    }

    /// Where it keeps what it knows, and what it has approved. Without it, that is gone with the process.
    #[must_use]
    pub fn store(mut self, store: SharedStore) -> Self {
        self.store = Some(store);
        self
    }

    /// Has it reach its peers by a network within this process, as this host.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn within(mut self, network: Arc<crate::simulation::SimulatedNetwork>, host: u64) -> Self {
        self.ways = Ways::Simulated(network, host);
        self
    }

    /// Has it judge as the validator with this key.
    #[must_use]
    pub fn validator(mut self, signer: DynSigner) -> Self {
        self.validator = Some(signer);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the chain does not answer, or it cannot listen.
    pub async fn start(self) -> Result<RunningPeerRegistry, PeerError> {
        let Self { chain, options, listen, validator: signer, store, ways } = self;
        let domain = chain.trust_root().await?.domain;
        let prepared = Peer::prepare(options, domain, &ways)?;
        let own: Arc<Own> = Arc::default();
        let parting = Parting(own.clone());
        let (peer, serves) = (prepared.peer.clone(), prepared.serves);
        let (dialling, judge) = (peer.clone(), own.clone());
        let dial = move |record: &NodeRecord| match judge.get() {
            // Nobody calls itself.
            Some(own) if own.address() == record.node => Ok(own),
            _ => dial(&dialling, record),
        };
        let node = Arc::new(RegistryNode::with_dial(chain.clone(), Box::new(dial)).await?);
        if let Some(store) = &store {
            node.keep(store.clone()).await?;
        }
        let (met, meeting) = mpsc::channel(MET);
        let budget = Arc::<Budget>::default();
        let inbox = Arc::new(Within { node: node.clone(), validator: own.clone(), met, budget: budget.clone() });
        let running = prepared.start(inbox);
        node.tell(Arc::new(Telling(peer.clone(), budget)));
        let registry = Arc::new(PeerRegistry { node: node.clone(), peer: peer.clone(), started: Instant::now() });
        let catching_up = AbortOnDropHandle::new(tokio::spawn(catch_up(node, peer.clone(), meeting)));
        let status = registry.clone();
        let status = status_service(Arc::new(move || status.status()));
        let services = Services::new().with(registry_service(registry.clone())).with(status);
        let server = if serves { Some(Server::start(listen, services)?) } else { None };
        let registration = match signer {
            Some(signer) => {
                let judge = ValidatorNode::new(signer.clone(), registry.clone(), chain);
                let judge = match store {
                    Some(store) => judge.keeping(store).await?,
                    None => judge,
                };
                own.set(Some(Arc::new(judge)));
                let endpoint = peer.listens().await.first().map(ToString::to_string).unwrap_or_default();
                let descriptor = NodeDescriptor {
                    role: NodeRole::Validator,
                    subnet: B256::ZERO,
                    endpoint,
                    models: Vec::new(),
                    confinement: Confinement::None,
                };
                Some(Registration::start(registry.clone(), signer, domain, descriptor).await?)
            }
            None => None,
        };
        Ok(RunningPeerRegistry { registry, server, registration, _parting: parting, _running: [running, catching_up] })
    }
}

/// A validator is called as its record says: over libp2p, or over gRPC.
fn dial(peer: &Peer, record: &NodeRecord) -> Result<Arc<dyn Validator>, RegistryError> {
    match PeerValidator::of(peer, record) {
        Some(validator) => Ok(Arc::new(validator)),
        None => dial_grpc(record),
    }
}

impl RunningPeerRegistry {
    /// The node itself, without a wire.
    pub const fn registry(&self) -> &Arc<PeerRegistry> {
        &self.registry
    }

    /// Where it serves gRPC; a light client does not.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(Server::address)
    }

    /// How it is called over gRPC; a light client is not.
    pub fn url(&self) -> Option<String> {
        self.server.as_ref().map(Server::url)
    }

    /// What it says of itself.
    pub fn status(&self) -> RegistryStatus {
        self.registry.status()
    }

    /// Ends. A validator leaves the network first.
    pub async fn shutdown(mut self) {
        if let Some(registration) = self.registration.take()
            && let Err(error) = registration.leave().await
        {
            tracing::warn!(%error, "cannot leave the network in order");
        }
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
        self.registry.node.save().await;
    }
}

/// Tells the others what this node has taken in.
struct Telling(Peer, Arc<Budget>);

impl Outlet for Telling {
    fn tell(&self, news: News) {
        // Others have it with the next one, or when they ask for what they have missed.
        if self.1.allows(&news) {
            self.0.tell(news);
        }
    }
}

#[async_trait]
impl Directory for PeerRegistry {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.node.register(record.clone()).await?;
        self.peer.put(Entry::Signed(News::Record(record)));
        Ok(())
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        self.node.heartbeat(heartbeat).await
    }

    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError> {
        self.node.deregister(deregistration).await
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        let found = self.node.discover(query).await?;
        match query.node {
            Some(node) if found.is_empty() => {
                self.look_up(node_key(node)).await;
                self.node.discover(query).await
            }
            _ => Ok(found),
        }
    }

    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError> {
        self.node.watch(query).await
    }
}

#[async_trait]
impl Catalog for PeerRegistry {
    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        let id = subnet.message.id();
        self.node.register_subnet(subnet).await?;
        self.peer.put(Entry::Signed(News::Subnet(self.node.subnet(id).await?)));
        Ok(())
    }

    async fn subnet(&self, id: B256) -> Result<ApprovedSubnet, RegistryError> {
        match self.node.subnet(id).await {
            Err(RegistryError::UnknownSubnet(_)) => {
                self.look_up(subnet_key(id)).await;
                self.node.subnet(id).await
            }
            known => known,
        }
    }

    async fn subnets(&self, after: B256) -> Result<Vec<Arc<ApprovedSubnet>>, RegistryError> {
        self.node.subnets(after).await
    }

    async fn register_manifest(&self, subnet: B256, manifest: Bytes) -> Result<(), RegistryError> {
        self.node.register_manifest(subnet, manifest.clone()).await?;
        self.peer.put(Entry::Manifest(manifest_digest(&manifest)?, manifest));
        Ok(())
    }

    async fn manifest(&self, digest: B256) -> Result<Bytes, RegistryError> {
        if let Ok(known) = self.node.manifest(digest).await {
            return Ok(known);
        }
        let found = self.peer.get(manifest_key(digest)).await?.into_iter().find_map(|entry| match entry {
            Entry::Manifest(_, manifest) => Some(manifest),
            Entry::Signed(_) => None,
        });
        found.ok_or(RegistryError::UnknownManifest(digest))
    }
}

#[async_trait]
impl Mempool for PeerRegistry {
    async fn announce(&self, pending: Signed<PendingRequests>) -> Result<(), RegistryError> {
        self.node.announce(pending).await
    }

    async fn pending(&self, subnet: B256, request: RequestId) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        self.node.pending(subnet, request).await
    }

    async fn pending_of(&self, gateway: Address) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        self.node.pending_of(gateway).await
    }
}

#[async_trait]
impl Attestors for PeerRegistry {
    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<QuorumCertificate, RegistryError> {
        self.node.preprocessing(request).await
    }

    async fn completion(&self, request: CompletionRequest) -> Result<QuorumCertificate, RegistryError> {
        self.node.completion(request).await
    }

    async fn settlement(&self, request: Arc<BatchRequest>) -> Result<QuorumCertificate, RegistryError> {
        self.node.settlement(request).await
    }

    async fn answer_times(&self) -> Result<Vec<AnswerTime>, RegistryError> {
        self.node.answer_times().await
    }
}
