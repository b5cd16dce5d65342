//! Links that are slow, lose what is sent, and break apart.

use std::collections::BTreeSet;

use ncn_core::{Amount, Attestors as _, PreprocessingRequest, Price, SubnetModel};
use ncn_node::registration::{NodeDescriptor, Registration};
use ncn_p2p::{Protocol, simulation::Links};

use super::*;

const MODEL: B256 = B256::repeat_byte(0x42);
const PRICE: Amount = Amount::new(1_000);

/// A subnet with a compute node, on a network of validators.
pub(super) struct Served {
    gateway: DynSigner,
    compute: DynSigner,
    subnet: Subnet,
    _registration: Registration,
}

impl Served {
    /// Registers them at this node, and returns once all others know them.
    pub(super) async fn at(peers: &Peers, node: usize) -> Self {
        let (gateway, compute) = (key(), key());
        let model = SubnetModel { name: "model".into(), digest: MODEL, price: Price::flat(PRICE) };
        let (owner, split) = (gateway.address(), FeeSplit::default());
        let subnet = Subnet { owner, name: "linked".into(), gateways: Vec::new(), models: vec![model], split, version: 1 };
        peers.create_subnet(&gateway, &subnet.name).await;
        let registry = peers.nodes[node].registry().clone();
        registry.register_subnet(peers.sign(subnet.clone(), &gateway).await).await.unwrap();
        let descriptor = NodeDescriptor {
            role: NodeRole::Compute,
            subnet: subnet.id(),
            endpoint: String::new(),
            models: vec![MODEL],
            confinement: Confinement::None,
        };
        let registration = Registration::start(registry, compute.clone(), peers.trust().domain, descriptor).await.unwrap();
        let served = Self { gateway, compute, subnet, _registration: registration };
        eventually("all know subnet and node", async || {
            let mut all = peers.knowing(&served.compute).await == peers.nodes.len();
            for node in &peers.nodes {
                all &= node.registry().subnets(B256::ZERO).await.unwrap().len() == 1;
            }
            all
        })
        .await;
        served
    }

    /// A request that validators approve.
    pub(super) async fn request(&self, peers: &Peers) -> PreprocessingRequest {
        let client = key();
        let order = conformance::order(client.address(), self.subnet.id(), MODEL, PRICE, unix_now() + 600);
        let quote = conformance::quote(&order, &peers.epoch, self.gateway.address(), self.compute.address(), PRICE);
        PreprocessingRequest { request: peers.sign(order, &client).await, quote }
    }
}

/// The host that a node of a simulated network is.
fn host(node: &RunningPeerRegistry) -> u64 {
    let address: Multiaddr = node.status().addresses[0].parse().unwrap();
    address.iter().find_map(|part| if let Protocol::Memory(host) = part { Some(host) } else { None }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_over_slow_and_lossy_links() {
    let links = Links { delay: Duration::from_millis(5)..Duration::from_millis(40), lost: 20 };
    let network = SimulatedNetwork::new(7, links);
    let peers = Peers::within(Some(network), 5, 2).await;
    peers.met().await;
    Box::pin(conformance::registry(&peers)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_falls_apart_refuses_without_a_quorum_and_is_one_again() {
    let links = Links { delay: Duration::from_millis(1)..Duration::from_millis(10), lost: 5 };
    let network = SimulatedNetwork::new(11, links);
    let peers = Peers::within(Some(network.clone()), 5, 0).await;
    peers.met().await;
    let served = Served::at(&peers, 2).await;
    let approves = async |node: usize| {
        let request = served.request(&peers).await;
        peers.nodes[node].registry().preprocessing(request).await
    };
    approves(0).await.unwrap();

    let hosts: Vec<u64> = peers.nodes.iter().map(host).collect();
    let (few, many): (BTreeSet<u64>, BTreeSet<u64>) = (hosts[..2].iter().copied().collect(), hosts[2..].iter().copied().collect());
    network.part(vec![few, many]);
    let late = key();
    peers.nodes[3].registry().register(peers.record(&late).await).await.unwrap();
    let (without, with) = tokio::join!(approves(0), approves(2));
    with.unwrap();
    assert!(matches!(without, Err(RegistryError::TooFewApprovals { have: 2, need: 3, .. })), "{without:?}");
    // Those of the other part are silent for longer than nodes may be.
    let alone = eventually("each part knows its own", async || {
        let counts: Vec<_> = peers.nodes.iter().map(|node| node.status().nodes).collect();
        counts[..2].iter().all(|count| *count == 2) && counts[2..].iter().all(|count| *count == 4)
    });
    alone.await;

    network.part(Vec::new());
    let again = eventually("all know everyone again", async || {
        let record = peers.record(&late).await;
        // It says that it is there, as nodes do.
        let _ = peers.nodes[3].registry().register(record).await;
        peers.nodes.iter().all(|node| node.status().nodes == 7)
    });
    again.await;
    approves(0).await.unwrap();
    approves(4).await.unwrap();
}
