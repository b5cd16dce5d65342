//! A registry node among others: it answers from what it has heard, and asks them for what it has not.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use libp2p::{Multiaddr, PeerId, gossipsub::MessageAcceptance};
use ncn_client::unix_now;
use ncn_core::{
    Address, Attestors, B256, BatchRequest, ChainView, CompletionRequest, Confinement, Deregistration, Directory, DynSigner,
    Heartbeat, NodeChanges, NodeQuery, NodeRecord, NodeRole, PreprocessingRequest, QuorumCertificate, RegistryError, Signed,
    Subnet, Validator, membership::News,
};
use ncn_node::{
    registration::{NodeDescriptor, Registration},
    registry::{Outlet, RegistryNode, ValidatorNode, dial_grpc, registry_service},
    server::{Listen, Server},
};
use ncn_wire::{
    WireError,
    proto::{self, answer::Answer, question::Question},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;

use crate::{
    PeerError,
    peer::{Inbox, Peer, PeerOptions, PeerStatus},
    records::{node_key, subnet_key},
    validator::PeerValidator,
};

/// How many nodes and subnets are in one answer: a record has a few hundred bytes, and at most 64 KiB.
const PAGE: usize = 128;
/// How many pages one peer is asked for: more nodes than are kept.
const MAX_PAGES: usize = 1_024;
/// How often a peer is asked for what was missed.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long news travel at the most, in seconds.
const RECENT: u64 = 30;
/// How often one is asked at the most for what was missed.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How many peers that were met wait to be asked, and how many are asked at once: more of them know no more.
const MET: usize = 64;
const ASKED_AT_FIRST: usize = 3;

/// A registry node over libp2p: [`Directory`] and [`Attestors`] of the whole network.
pub struct PeerRegistry {
    node: Arc<RegistryNode>,
    peer: Peer,
}

/// Makes up a registry node of the peer-to-peer network, which with a key is a validator, too.
pub struct PeerRegistryBuilder {
    chain: Arc<dyn ChainView>,
    options: PeerOptions,
    listen: Listen,
    validator: Option<DynSigner>,
}

/// A registry node that runs.
pub struct RunningPeerRegistry {
    registry: Arc<PeerRegistry>,
    server: Server,
    registration: Option<Registration>,
    _catching_up: AbortOnDropHandle<()>,
}

impl PeerRegistry {
    /// Starts to make up a registry node: its chain, and where it meets the others. It serves gRPC on any free port of this machine unless it is
    /// told.
    pub fn builder(chain: Arc<dyn ChainView>, options: PeerOptions) -> PeerRegistryBuilder {
        PeerRegistryBuilder { chain, options, listen: ncn_node::server::LOOPBACK.into(), validator: None }
    }

    /// The node of the peer-to-peer network that it is.
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Looks up what this node has not heard.
    async fn look_up(&self, key: libp2p::kad::RecordKey) {
        if let Some(news) = self.peer.get(key).await
            && let Err(error) = self.node.hear(news).await
        {
            tracing::debug!(%error, "what was found is refused");
        }
    }

    /// Keeps what was registered here where others find it.
    fn keep(&self, news: News) {
        match &news {
            News::Record(record) => self.peer.put(node_key(record.message.node), news),
            News::Subnet(subnet) => self.peer.put(subnet_key(subnet.message.id()), news),
            News::Heartbeat(_) | News::Departure(_) => {}
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
        let Self { chain, options, listen, validator: signer } = self;
        let domain = chain.trust_root().await?.domain;
        let prepared = Peer::prepare(options, domain)?;
        let own: Arc<OnceLock<Arc<dyn Validator>>> = Arc::default();
        let (dialling, judges) = (prepared.peer.clone(), own.clone());
        let dial = move |record: &NodeRecord| match judges.get() {
            // Nobody calls itself.
            Some(own) if own.address() == record.node => Ok(own.clone()),
            _ => dial(&dialling, record),
        };
        let node = Arc::new(RegistryNode::with_dial(chain.clone(), Box::new(dial)).await?);
        let (met, meeting) = mpsc::channel(MET);
        let inbox = Arc::new(Within { node: node.clone(), validator: own.clone(), met });
        let peer = prepared.start(inbox);
        node.tell(Arc::new(Telling(peer.clone())));
        let registry = Arc::new(PeerRegistry { node: node.clone(), peer: peer.clone() });
        let catching_up = AbortOnDropHandle::new(tokio::spawn(catch_up(node, peer.clone(), meeting)));
        let server = Server::start(listen, Routes::new(registry_service(registry.clone())).into_axum_router()).await?;
        let registration = match signer {
            Some(signer) => {
                let judge = ValidatorNode::new(signer.clone(), registry.clone(), chain);
                // It is set once, here.
                let _ = own.set(Arc::new(judge));
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
        Ok(RunningPeerRegistry { registry, server, registration, _catching_up: catching_up })
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

    /// Where it serves gRPC.
    pub const fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How it is called over gRPC.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What it knows of its network.
    pub fn status(&self) -> PeerStatus {
        self.registry.peer.status()
    }

    /// Ends. A validator leaves the network first.
    pub async fn shutdown(self) {
        if let Some(registration) = self.registration
            && let Err(error) = registration.leave().await
        {
            tracing::warn!(%error, "cannot leave the network in order");
        }
        self.server.shutdown().await;
    }
}

/// Tells the others what this node has taken in.
struct Telling(Peer);

impl Outlet for Telling {
    fn tell(&self, news: News) {
        self.0.tell(news);
    }
}

/// What comes in from others.
struct Within {
    node: Arc<RegistryNode>,
    validator: Arc<OnceLock<Arc<dyn Validator>>>,
    met: mpsc::Sender<Other>,
}

/// Another peer that may be asked.
enum Other {
    /// It has come.
    Met(PeerId),
    /// It knows what this node has missed.
    Knows(PeerId),
}

/// Whether news are so new that they may still be on their way. Sequences are the clock's milliseconds.
fn is_recent(news: &News, now: u64) -> bool {
    let at = match news {
        News::Record(record) => record.message.sequence / 1_000,
        News::Heartbeat(heartbeat) => heartbeat.message.sent_at,
        News::Departure(departure) => departure.message.sequence / 1_000,
        News::Subnet(subnet) => subnet.message.version,
    };
    at.saturating_add(RECENT) >= now
}

/// An error as an answer.
pub(crate) fn refusal(error: &RegistryError) -> proto::Answer {
    proto::Answer { answer: Some(Answer::Error(serde_json::to_string(error).unwrap_or_default())) }
}

impl Within {
    async fn judge(&self, question: Question) -> Result<Answer, RegistryError> {
        let invalid = |error: WireError| RegistryError::invalid(error.field, error.problem);
        let validator = || self.validator.get().ok_or_else(|| RegistryError::Refused("this node is no validator".into()));
        Ok(Answer::Approval(match question {
            Question::Preprocessing(request) => validator()?.preprocessing(&request.try_into().map_err(invalid)?).await?.into(),
            Question::Completion(request) => validator()?.completion(&request.try_into().map_err(invalid)?).await?.into(),
            Question::Settlement(request) => validator()?.settlement(&request.try_into().map_err(invalid)?).await?.into(),
            Question::Known(after) => return Ok(Answer::Known(self.known(&after))),
        }))
    }

    fn known(&self, after: &proto::KnownAfter) -> proto::Known {
        let node = Address::try_from(&*after.node).unwrap_or_default();
        let subnet = B256::try_from(&*after.subnet).unwrap_or_default();
        let (nodes, subnets) = self.node.known((node, subnet), PAGE);
        proto::Known { nodes: nodes.into_iter().map(Into::into).collect(), subnets: subnets.into_iter().map(Into::into).collect() }
    }
}

#[async_trait]
impl Inbox for Within {
    async fn hear(&self, news: News, from: PeerId) -> MessageAcceptance {
        let is_recent = is_recent(&news, unix_now());
        match self.node.hear(news).await {
            Ok(true) => MessageAcceptance::Accept,
            // What this node has learned in another way, its neighbours may not have.
            Ok(false) if is_recent => MessageAcceptance::Accept,
            Err(RegistryError::Stale { given, known }) if given == known && is_recent => MessageAcceptance::Accept,
            Err(RegistryError::Invalid { .. }) => MessageAcceptance::Reject,
            Err(RegistryError::UnknownNode(_)) => {
                // A peer that passes a heartbeat on knows whose it is.
                let _ = self.met.try_send(Other::Knows(from));
                MessageAcceptance::Ignore
            }
            // What is old goes round no more.
            Ok(false) | Err(_) => MessageAcceptance::Ignore,
        }
    }

    async fn answer(&self, question: proto::Question) -> proto::Answer {
        let judged = match question.question {
            Some(question) => self.judge(question).await,
            None => Err(RegistryError::invalid("question", "is missing")),
        };
        match judged {
            Ok(answer) => proto::Answer { answer: Some(answer) },
            Err(error) => refusal(&error),
        }
    }

    fn met(&self, peer: PeerId) {
        // Others will be asked, or this one later.
        let _ = self.met.try_send(Other::Met(peer));
    }
}

/// Asks each peer that is met for what this node has not heard, and one of them again now and then.
async fn catch_up(node: Arc<RegistryNode>, peer: Peer, mut met: mpsc::Receiver<Other>) {
    let mut again = tokio::time::interval(CATCH_UP);
    let (mut last, mut asked, mut learned) = (None, 0, Instant::now());
    loop {
        let is_due = tokio::select! {
            other = met.recv() => match other {
                Some(Other::Met(other)) => {
                    last = Some(other);
                    asked < ASKED_AT_FIRST
                }
                Some(Other::Knows(other)) => {
                    last = Some(other);
                    learned.elapsed() >= ASK_EVERY
                }
                None => return,
            },
            _ = again.tick() => true,
        };
        let Some(other) = last.filter(|_| is_due) else { continue };
        learned = Instant::now();
        match learn(&node, &peer, other).await {
            Ok(()) => asked += 1,
            Err(error) => {
                tracing::debug!(peer = %other, %error, "a peer does not say whom it knows");
                last = None;
            }
        }
    }
}

async fn learn(node: &RegistryNode, peer: &Peer, other: PeerId) -> Result<(), RegistryError> {
    let mut after = proto::KnownAfter::default();
    for _ in 0..MAX_PAGES {
        let Answer::Known(known) = peer.ask(other, Vec::<Multiaddr>::new(), Question::Known(after.clone())).await? else {
            return Err(RegistryError::Malformed("is no list of nodes".into()));
        };
        let (nodes, subnets) = (known.nodes.len(), known.subnets.len());
        for subnet in known.subnets {
            let subnet: Signed<Subnet> = subnet.try_into().map_err(malformed)?;
            after.subnet = ncn_wire::bytes(subnet.message.id());
            take(node, News::Subnet(subnet)).await;
        }
        for record in known.nodes {
            let record: Signed<NodeRecord> = record.try_into().map_err(malformed)?;
            after.node = ncn_wire::bytes(record.message.node);
            take(node, News::Record(record)).await;
        }
        if nodes < PAGE && subnets < PAGE {
            return Ok(());
        }
    }
    Ok(())
}

/// One that is refused hides none of the others.
async fn take(node: &RegistryNode, news: News) {
    match node.hear(news).await {
        Ok(_) | Err(RegistryError::Stale { .. }) => {}
        Err(error) => tracing::debug!(%error, "what a peer knows is refused"),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(error: WireError) -> RegistryError {
    RegistryError::Malformed(error.to_string())
}

#[async_trait]
impl Directory for PeerRegistry {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.node.register(record.clone()).await?;
        self.keep(News::Record(record));
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

    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        self.node.register_subnet(subnet.clone()).await?;
        self.keep(News::Subnet(subnet));
        Ok(())
    }

    async fn subnet(&self, id: B256) -> Result<Signed<Subnet>, RegistryError> {
        match self.node.subnet(id).await {
            Err(RegistryError::UnknownSubnet(_)) => {
                self.look_up(subnet_key(id)).await;
                self.node.subnet(id).await
            }
            known => known,
        }
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
}
