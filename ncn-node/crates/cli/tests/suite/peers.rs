//! Registry nodes over libp2p, on this machine's loopback: what one hears, all know.

mod links;
mod measured;
mod strangers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ncn_client::{Registries, grpc::GrpcRegistry, unix_now};
use ncn_core::{
    B256, Catalog as _, Confinement, Deregistration, Directory as _, DynSigner, Epoch, FeeSplit, Heartbeat, NodeQuery, NodeRecord,
    NodeRole, Quote, Registry, RegistryError, Signed, Subnet, TrustRoot, UnixTime,
    conformance::{self, RegistryFixture},
    membership::News,
};
use ncn_node::store::{SharedStore, StoreError};
use ncn_p2p::{
    Keypair, Multiaddr, PeerOptions, PeerRegistry, PeerRegistryBuilder, RunningPeerRegistry, simulation::SimulatedNetwork,
};

use crate::{
    money::Contracts as _,
    scene::{Chain, key},
    wait::{eventually, in_time},
};

/// Registry nodes that know the first of them, one for each validator of the chain and some without a key.
struct Peers {
    chain: Chain,
    epoch: Epoch,
    nodes: Vec<RunningPeerRegistry>,
    /// In which they are hosts, instead of on this machine's loopback.
    network: Option<Arc<SimulatedNetwork>>,
}

/// Hosts of simulated networks have numbers of their own in the whole process.
static HOSTS: AtomicU64 = AtomicU64::new(1);

impl Peers {
    async fn new(validators: usize, others: usize) -> Self {
        Self::within(None, validators, others).await
    }

    async fn within(network: Option<Arc<SimulatedNetwork>>, validators: usize, others: usize) -> Self {
        let chain = Chain::new(validators).await;
        let epoch = chain.epoch().await;
        let mut peers = Self { chain, epoch, nodes: Vec::new(), network };
        let keys: Vec<_> = peers.chain.validators.iter().cloned().map(Some).collect();
        for key in keys.into_iter().chain((0..others).map(|_| None)) {
            let node = peers.start(key).await;
            peers.nodes.push(node);
        }
        peers
    }

    /// A new peer, which begins with the first one.
    async fn options(&self) -> PeerOptions {
        let bootstrap = match self.nodes.first() {
            Some(first) => first.registry().peer().listens().await,
            None => Vec::new(),
        };
        let listen: Multiaddr = "/ip4/127.0.0.1/tcp/0".parse().unwrap();
        PeerOptions { key: Keypair::generate_ed25519(), listen: vec![listen], announce: None, bootstrap, serves: true }
    }

    async fn builder(&self) -> PeerRegistryBuilder {
        let options = self.options().await;
        let Some(network) = &self.network else { return PeerRegistry::builder(self.chain.ledger(key()), options) };
        let host = HOSTS.fetch_add(1, Ordering::Relaxed);
        let options = PeerOptions { listen: vec![SimulatedNetwork::address(host)], ..options };
        PeerRegistry::builder(self.chain.ledger(key()), options).within(network.clone(), host)
    }

    async fn start(&self, validator: Option<DynSigner>) -> RunningPeerRegistry {
        let builder = self.builder().await;
        let builder = match validator {
            Some(signer) => builder.validator(signer),
            None => builder,
        };
        builder.start().await.unwrap()
    }

    /// A light client: it listens nowhere.
    async fn light(&self) -> RunningPeerRegistry {
        let options = PeerOptions { listen: Vec::new(), serves: false, ..self.options().await };
        PeerRegistry::builder(self.chain.ledger(key()), options).start().await.unwrap()
    }

    /// Each node has neighbours, and knows every validator.
    async fn met(&self) {
        let validators = NodeQuery { role: Some(NodeRole::Validator), ..NodeQuery::default() };
        eventually("all have met", async || {
            let mut all = true;
            for node in &self.nodes {
                let known = node.registry().discover(validators).await.unwrap().len();
                all &= known == self.chain.validators.len() && !node.status().peers.is_empty();
            }
            all
        })
        .await;
    }

    fn trust(&self) -> &TrustRoot {
        &self.epoch.trust
    }

    async fn sign<T: ncn_core::crypto::Authored>(&self, message: T, key: &DynSigner) -> Signed<T> {
        Signed::sign(message, &self.trust().domain, &**key).await.unwrap()
    }

    async fn record(&self, node: &DynSigner) -> Signed<NodeRecord> {
        let record = NodeRecord {
            node: node.address(),
            role: NodeRole::Compute,
            subnet: B256::repeat_byte(7),
            endpoint: String::new(),
            models: vec![B256::repeat_byte(9)],
            confinement: Confinement::None,
            sequence: unix_now() * 1_000,
            expires_at: unix_now() + 600,
        };
        self.sign(record, node).await
    }

    /// How many nodes know this one to be live.
    async fn knowing(&self, node: &DynSigner) -> usize {
        let query = NodeQuery { node: Some(node.address()), ..NodeQuery::default() };
        let mut knowing = 0;
        for peer in &self.nodes {
            knowing += peer.registry().discover(query).await.unwrap().len();
        }
        knowing
    }
}

#[async_trait]
impl RegistryFixture for Peers {
    fn registry(&self) -> &dyn Registry {
        &**self.nodes.last().unwrap().registry()
    }

    async fn epoch(&self) -> Epoch {
        self.epoch.clone()
    }

    fn now(&self) -> UnixTime {
        unix_now()
    }

    async fn pay(&self, client: &DynSigner, quote: &Quote) {
        self.chain.account(client.clone(), quote.total).await.escrow(quote).await.unwrap();
    }

    async fn create_subnet(&self, owner: &DynSigner, name: &str) {
        self.chain.create_subnet(owner, name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_hears_all_know() {
    let peers = Peers::new(1, 4).await;
    peers.met().await;
    let (node, all) = (key(), peers.nodes.len());
    let first = peers.nodes[1].registry();
    first.register(peers.record(&node).await).await.unwrap();
    eventually("all know the node", async || peers.knowing(&node).await == all).await;
    // Who comes later is told, too.
    let late = peers.start(None).await;
    let query = NodeQuery { node: Some(node.address()), ..NodeQuery::default() };
    eventually("the late one knows the node", async || late.registry().discover(query).await.unwrap().len() == 1).await;

    let beat = Heartbeat { node: node.address(), sequence: unix_now() * 1_000 + 1, sent_at: unix_now() };
    peers.nodes[2].registry().heartbeat(peers.sign(beat, &node).await).await.unwrap();
    let departure = Deregistration { node: node.address(), sequence: unix_now() * 1_000 + 2 };
    peers.nodes[3].registry().deregister(peers.sign(departure, &node).await).await.unwrap();
    eventually("nobody knows the node any more", async || peers.knowing(&node).await == 0).await;
    // A heartbeat may be overtaken by the next one.
    let refused = |node: &RunningPeerRegistry| node.status().refused.into_keys().any(|reason| reason != "sequence");
    assert!(!peers.nodes.iter().any(refused), "nothing honest is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_over_libp2p() {
    let peers = Peers::new(5, 1).await;
    peers.met().await;
    let rules = conformance::registry(&peers).await.unwrap();
    assert!(rules.len() > 25, "{rules:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_by_a_light_client() {
    let mut peers = Peers::new(5, 1).await;
    let light = peers.light().await;
    assert_eq!((light.url(), light.status().addresses), (None, Vec::new()));
    peers.nodes.push(light);
    peers.met().await;
    conformance::registry(&peers).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_and_comes_back_knows_what_it_knew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("registry.redb");
    let mut peers = Peers::new(3, 0).await;
    let open = async || peers.builder().await.store(SharedStore::open(&path).unwrap()).start().await.unwrap();
    peers.nodes.push(open().await);
    peers.met().await;
    let running = peers.nodes.pop().unwrap();
    let (stays, leaves, owner) = (key(), key(), key());
    let registry = running.registry();
    let old = peers.record(&leaves).await;
    registry.register(peers.record(&stays).await).await.unwrap();
    registry.register(old.clone()).await.unwrap();
    let departure = Deregistration { node: leaves.address(), sequence: unix_now() * 1_000 + 1 };
    registry.deregister(peers.sign(departure, &leaves).await).await.unwrap();
    peers.create_subnet(&owner, "kept").await;
    let subnet = Subnet {
        owner: owner.address(),
        name: "kept".into(),
        gateways: Vec::new(),
        models: Vec::new(),
        split: FeeSplit::default(),
        version: 1,
    };
    let subnet = peers.sign(subnet, &owner).await;
    registry.register_subnet(subnet.clone()).await.unwrap();
    // Dropped without a word: what is not written down by then is lost.
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(running);

    // Without a peer: what it knows, it has kept.
    let store = in_time("nothing else has the store any more", async {
        loop {
            match SharedStore::open(&path) {
                Ok(store) => return store,
                Err(StoreError::InUse(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let options = PeerOptions { bootstrap: Vec::new(), ..peers.options().await };
    let alone = PeerRegistry::builder(peers.chain.ledger(key()), options).store(store.await).start().await.unwrap();
    let found = |node: &DynSigner| NodeQuery { node: Some(node.address()), ..NodeQuery::default() };
    assert_eq!(alone.registry().subnet(subnet.message.id()).await.unwrap().definition, subnet);
    assert_eq!(alone.registry().discover(found(&stays)).await.unwrap().len(), 1);
    assert_eq!(alone.registry().discover(found(&leaves)).await.unwrap(), []);
    let again = alone.registry().register(old).await;
    assert!(matches!(again, Err(RegistryError::Stale { .. })), "{again:?}");
}

/// A registry node that accepts connections and never says a word.
async fn silent() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_registry_node_is_asked_when_one_is_gone_or_silent() {
    let peers = Peers::new(1, 1).await;
    peers.met().await;
    let validators = NodeQuery { role: Some(NodeRole::Validator), ..NodeQuery::default() };
    let (_listener, silent) = silent().await;
    let urls = ["http://127.0.0.1:1", &silent, &peers.nodes[1].url().unwrap()];
    let open = |url: &str| -> Arc<dyn Registry> { Arc::new(GrpcRegistry::new(url).unwrap()) };
    let several = Registries::new(urls.map(open).to_vec());
    let started = Instant::now();
    assert_eq!(several.discover(validators).await.unwrap().len(), 1);
    let first = started.elapsed();
    // From then on, the one that answered is asked first; a refusal is an answer.
    let unknown = several.subnet(B256::ZERO).await;
    assert_eq!(unknown, Err(RegistryError::UnknownSubnet(B256::ZERO)));
    let node = key();
    several.register(peers.record(&node).await).await.unwrap();
    let beat = Heartbeat { node: node.address(), sequence: unix_now() * 1_000 + 1, sent_at: unix_now() };
    let beat = peers.sign(beat, &node).await;
    several.heartbeat(beat.clone()).await.unwrap();
    assert_eq!(several.heartbeat(beat).await, Ok(()), "told twice is told");
    eventually("both know the node", async || peers.knowing(&node).await == 2).await;
    println!("the third of three answered after {first:?}");
    assert!(first < Duration::from_mins(1));
    let none = Registries::new(urls[..1].iter().map(|url| open(url)).collect());
    assert!(matches!(none.discover(validators).await, Err(RegistryError::Unreachable(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forged_is_refused_and_counted_and_goes_no_further() {
    let peers = Peers::new(1, 2).await;
    peers.met().await;
    let (node, thief) = (key(), key());
    let mut forged = peers.record(&thief).await;
    forged.message.node = node.address();
    let late = NodeRecord { expires_at: unix_now() + 48 * 3_600, ..peers.record(&node).await.message };
    let unsigned = peers.sign(late, &node).await;
    for lie in [forged, unsigned] {
        peers.nodes[1].registry().peer().tell(News::Record(lie));
    }
    // By the teller's neighbours, which do not pass it on.
    let refused = || -> u64 {
        let reasons = peers.nodes.iter().flat_map(|node| node.status().refused);
        reasons.filter(|(reason, _)| reason.starts_with("record.")).map(|(_, count)| count).sum()
    };
    eventually("both are refused", async || refused() >= 2).await;
    assert_eq!(peers.knowing(&node).await, 0);
    // Who tells the truth after it is heard.
    peers.nodes[1].registry().register(peers.record(&node).await).await.unwrap();
    eventually("all know the node", async || peers.knowing(&node).await == 3).await;
}
