//! What time does to a membership.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use ncn_core::{
    Address, ApprovedSubnet, Confinement, Deregistration, Domain, DynSigner, FeeSplit, Heartbeat, NodeChange, NodeQuery,
    NodeRecord, NodeRole, QuorumCertificate, RegistryError, Signed, Subnet,
    crypto::Authored,
    membership::{CLOCK_SKEW_SECONDS, HEARTBEAT_SECONDS, LIVENESS_SECONDS, Membership, MembershipLimits, Origin, Source, Watch},
};
use proptest::prelude::*;

use crate::scene::{NOW, Scene, key};

fn record(node: Address, sequence: u64, expires_at: u64) -> NodeRecord {
    NodeRecord {
        node,
        role: NodeRole::Compute,
        subnet: [1; 32].into(),
        endpoint: String::new(),
        models: Vec::new(),
        confinement: Confinement::None,
        sequence,
        expires_at,
    }
}

#[tokio::test]
async fn the_silent_and_the_expired_are_gone() {
    let (domain, node) = (Scene::new().trust.domain, key());
    let mut members = Membership::new(domain, MembershipLimits::default());
    let found = |members: &Membership, now| members.discover(&NodeQuery::default(), now).len();
    let sign = |message| Signed::sign(message, &domain, &*node);

    members.register(sign(record(node.address(), 1, NOW + 40)).await.unwrap(), Origin::default(), NOW).unwrap();
    assert_eq!(found(&members, NOW + LIVENESS_SECONDS), 1);
    assert_eq!(found(&members, NOW + LIVENESS_SECONDS + 1), 0, "silent for longer than the window");

    let at = NOW + 30;
    let beat = Heartbeat { node: node.address(), sequence: 2, sent_at: at };
    members.heartbeat(&Signed::sign(beat, &domain, &*node).await.unwrap(), at).unwrap();
    assert_eq!(found(&members, NOW + 40), 1);
    assert_eq!(found(&members, NOW + 41), 0, "a record ends when it says");
    let late = Heartbeat { node: node.address(), sequence: 3, sent_at: NOW + 42 };
    let late = members.heartbeat(&Signed::sign(late, &domain, &*node).await.unwrap(), NOW + 42);
    assert_eq!(late, Err(RegistryError::UnknownNode(node.address())), "an expired record cannot be kept alive");
}

#[tokio::test]
async fn the_same_record_again_is_no_sign_of_life() {
    let (domain, node) = (Scene::new().trust.domain, key());
    let mut members = Membership::new(domain, MembershipLimits::default());
    let signed = Signed::sign(record(node.address(), 1, NOW + 600), &domain, &*node).await.unwrap();
    members.register(signed.clone(), Origin::default(), NOW).unwrap();
    members.register(signed, Origin::default(), NOW + LIVENESS_SECONDS).unwrap();
    assert_eq!(members.discover(&NodeQuery::default(), NOW + LIVENESS_SECONDS + 1).len(), 0);
}

#[tokio::test]
async fn a_departed_node_cannot_be_brought_back_by_its_old_record() {
    let (domain, node) = (Scene::new().trust.domain, key());
    let mut members = Membership::new(domain, MembershipLimits::default());
    let old = Signed::sign(record(node.address(), 1, NOW + 600), &domain, &*node).await.unwrap();
    members.register(old.clone(), Origin::default(), NOW).unwrap();
    let farewell = Deregistration { node: node.address(), sequence: 2 };
    members.deregister(&Signed::sign(farewell, &domain, &*node).await.unwrap(), NOW).unwrap();
    assert_eq!(members.register(old, Origin::default(), NOW + 1), Err(RegistryError::Stale { given: 1, known: 2 }));
}

#[tokio::test]
async fn a_full_membership_takes_nobody_but_makes_room_for_the_living() {
    let domain = Scene::new().trust.domain;
    let mut members = Membership::new(domain, MembershipLimits { nodes: 2, ..MembershipLimits::default() });
    let mut signed = Vec::new();
    for expires_at in [NOW + 10, NOW + 600, NOW + 600] {
        let node = key();
        signed.push(Signed::sign(record(node.address(), 1, expires_at), &domain, &*node).await.unwrap());
    }
    members.register(signed[0].clone(), Origin::default(), NOW).unwrap();
    members.register(signed[1].clone(), Origin::default(), NOW).unwrap();
    assert!(matches!(members.register(signed[2].clone(), Origin::default(), NOW), Err(RegistryError::Overloaded(_))));
    members.register(signed[2].clone(), Origin::default(), NOW + 11).unwrap();
}

#[tokio::test]
async fn a_restart_forgets_nothing() {
    let (domain, stays, leaves) = (Scene::new().trust.domain, key(), key());
    let mut members = Membership::new(domain, MembershipLimits::default());
    let mut old = Vec::new();
    for node in [&stays, &leaves] {
        old.push(Signed::sign(record(node.address(), 1, NOW + 600), &domain, &**node).await.unwrap());
        members.register(old.last().unwrap().clone(), Origin::default(), NOW).unwrap();
    }
    let (saved, known) = members.changed_after(0, 10);
    assert_eq!(known.iter().map(|known| known.record.clone()).collect::<Vec<_>>(), old);
    assert_eq!(members.changed_after(0, 1).1, known[..1]);
    let farewell = Deregistration { node: leaves.address(), sequence: 2 };
    members.deregister(&Signed::sign(farewell, &domain, &*leaves).await.unwrap(), NOW + 1).unwrap();
    let (saved, changed) = members.changed_after(saved, 10);
    assert!(matches!(&changed[..], [one] if one.departed && one.sequence == 2));
    assert_eq!(members.changed_after(saved, 10), (saved, Vec::new()));

    let mut restarted = Membership::new(domain, MembershipLimits::default());
    let at = NOW + 60;
    for known in [&known[0], &changed[0]] {
        restarted.restore(known.clone(), Origin::default(), at);
    }
    let found = |members: &Membership, now| members.discover(&NodeQuery::default(), now);
    assert_eq!(found(&restarted, at + 2 * HEARTBEAT_SECONDS), old[..1], "it has time to be heard");
    assert_eq!(found(&restarted, at + 2 * HEARTBEAT_SECONDS + 1), [], "it is silent");
    let stale = restarted.register(old[1].clone(), Origin::default(), at);
    assert_eq!(stale, Err(RegistryError::Stale { given: 1, known: 2 }), "who has left is not brought back");
    let beat = Heartbeat { node: stays.address(), sequence: 2, sent_at: at };
    restarted.heartbeat(&Signed::sign(beat, &domain, &*stays).await.unwrap(), at).unwrap();
    assert_eq!(found(&restarted, at + LIVENESS_SECONDS), old[..1]);
    let mut late = Membership::new(domain, MembershipLimits::default());
    late.restore(known[0].clone(), Origin::default(), NOW + 601);
    assert!(late.is_empty(), "its record has expired");
}

/// From a network of its own for each number.
fn origin(number: usize) -> Origin {
    Origin { source: Source::of([10, 0, u8::try_from(number).unwrap(), 1].into()), ..Origin::default() }
}

#[tokio::test]
async fn who_comes_from_everywhere_pushes_out_who_comes_from_one_place() {
    let (domain, owner) = (Scene::new().trust.domain, key());
    let mut members = Membership::new(domain, MembershipLimits { nodes: 8, ..MembershipLimits::default() });
    let sign = async |record: NodeRecord, node: &DynSigner| Signed::sign(record, &domain, &**node).await.unwrap();
    let mut strangers = Vec::new();
    for _ in 0..8 {
        let node = key();
        members.register(sign(record(node.address(), 1, NOW + 600), &node).await, origin(0), NOW).unwrap();
        strangers.push(node);
    }
    let more = key();
    let more = members.register(sign(record(more.address(), 1, NOW + 600), &more).await, origin(0), NOW);
    assert!(matches!(more, Err(RegistryError::Overloaded(_))), "one network pushes out none but its own");
    let mut watch = members.watch(NodeQuery::default());
    while members.next_change(&mut watch).unwrap() != Some(NodeChange::Synced) {}
    for number in 1..4 {
        let node = key();
        members.register(sign(record(node.address(), 1, NOW + 600), &node).await, origin(number), NOW).unwrap();
        let changes = [members.next_change(&mut watch).unwrap(), members.next_change(&mut watch).unwrap()];
        assert!(matches!(changes, [Some(NodeChange::Gone(_)), Some(NodeChange::Live(_))]), "{changes:?}");
    }
    assert_eq!(members.discover(&NodeQuery::default(), NOW).len(), 8);

    // A subnet is worth more than nothing, and what was paid for it more than that, wherever they come from.
    let subnet = Subnet {
        owner: owner.address(),
        name: "one".into(),
        gateways: Vec::new(),
        models: Vec::new(),
        split: FeeSplit::default(),
        version: 1,
    };
    let definition = Signed::sign(subnet.clone(), &domain, &*owner).await.unwrap();
    members.register_subnet(ApprovedSubnet { definition, approvals: QuorumCertificate::default() }, NOW).unwrap();
    let mut served = Vec::new();
    for _ in 0..8 {
        let node = key();
        let record = NodeRecord { subnet: subnet.id(), ..record(node.address(), 1, NOW + 600) };
        members.register(sign(record, &node).await, origin(0), NOW).unwrap();
        served.push(node);
    }
    let stranger = key();
    let refused = members.register(sign(record(stranger.address(), 1, NOW + 600), &stranger).await, origin(9), NOW);
    assert!(matches!(refused, Err(RegistryError::Overloaded(_))));
    let endpoint = "http://192.0.2.1:50051".to_owned();
    let gateway = NodeRecord { role: NodeRole::Gateway, subnet: subnet.id(), endpoint, ..record(owner.address(), 1, NOW + 600) };
    members.register(sign(gateway, &owner).await, origin(0), NOW).unwrap();
    let (validator, endpoint) = (key(), "/ip4/192.0.2.1/tcp/8828".to_owned());
    let staked = NodeRecord { role: NodeRole::Validator, endpoint, ..record(validator.address(), 1, NOW + 600) };
    let refused = members.register(sign(staked.clone(), &validator).await, origin(0), NOW);
    assert!(matches!(refused, Err(RegistryError::Overloaded(_))), "who only says that it is a validator is a stranger");
    let listed = Origin { is_validator: true, ..origin(0) };
    members.register(sign(staked, &validator).await, listed, NOW).unwrap();
    let left: Vec<_> = served.iter().filter(|node| !members.discover(&query(node.address()), NOW).is_empty()).collect();
    assert_eq!((left.len(), members.discover(&NodeQuery::default(), NOW).len()), (6, 8));
    assert!(strangers.iter().all(|node| members.discover(&query(node.address()), NOW).is_empty()));
}

fn query(node: Address) -> NodeQuery {
    NodeQuery { node: Some(node), ..NodeQuery::default() }
}

#[tokio::test]
async fn large_records_take_more_room() {
    let domain = Scene::new().trust.domain;
    let mut members = Membership::new(domain, MembershipLimits { bytes: 40_000, ..MembershipLimits::default() });
    let large = |node: &DynSigner| NodeRecord { models: vec![[9; 32].into(); 1_024], ..record(node.address(), 1, NOW + 600) };
    let (first, second) = (key(), key());
    members.register(Signed::sign(large(&first), &domain, &*first).await.unwrap(), origin(0), NOW).unwrap();
    let refused = members.register(Signed::sign(large(&second), &domain, &*second).await.unwrap(), origin(0), NOW);
    assert!(matches!(refused, Err(RegistryError::Overloaded(_))));
    let small = NodeRecord { models: Vec::new(), sequence: 2, ..large(&first) };
    members.register(Signed::sign(small, &domain, &*first).await.unwrap(), origin(0), NOW).unwrap();
    members.register(Signed::sign(large(&second), &domain, &*second).await.unwrap(), origin(0), NOW).unwrap();
}

/// A registry that lies about the newest sequence could have a node sign the largest one, after which no other one is newer.
#[tokio::test]
async fn a_sequence_is_not_ahead_of_the_clock() {
    let (domain, node) = (Scene::new().trust.domain, key());
    let mut members = Membership::new(domain, MembershipLimits::default());
    let sign = async |sequence| Signed::sign(record(node.address(), sequence, NOW + 600), &domain, &*node).await.unwrap();
    let ahead = (NOW + CLOCK_SKEW_SECONDS + 1) * 1_000;
    for sequence in [ahead, u64::MAX] {
        let refused = members.register(sign(sequence).await, Origin::default(), NOW);
        assert!(matches!(&refused, Err(RegistryError::Invalid { field, .. }) if field == "record.sequence"), "{refused:?}");
    }
    members.register(sign(ahead - 1).await, Origin::default(), NOW).unwrap();
    let beat = |sequence| Heartbeat { node: node.address(), sequence, sent_at: NOW };
    let refused = members.heartbeat(&Signed::sign(beat(u64::MAX), &domain, &*node).await.unwrap(), NOW);
    assert!(matches!(&refused, Err(RegistryError::Invalid { field, .. }) if field == "heartbeat.sequence"), "{refused:?}");
    members.heartbeat(&Signed::sign(beat(ahead), &domain, &*node).await.unwrap(), NOW + 1).unwrap();
    let farewell = Signed::sign(Deregistration { node: node.address(), sequence: u64::MAX }, &domain, &*node).await.unwrap();
    let refused = members.deregister(&farewell, NOW);
    assert!(matches!(&refused, Err(RegistryError::Invalid { field, .. }) if field == "departure.sequence"), "{refused:?}");
}

/// What a watcher has been told.
struct Picture {
    query: NodeQuery,
    watch: Watch,
    live: BTreeMap<Address, Signed<NodeRecord>>,
}

impl Picture {
    fn new(members: &Membership, query: NodeQuery) -> Self {
        Self { query, watch: members.watch(query), live: BTreeMap::new() }
    }

    /// Takes so many changes in. Where nodes were forgotten in between, it begins again.
    fn read(&mut self, members: &Membership, most: usize) {
        for _ in 0..most {
            match members.next_change(&mut self.watch) {
                Ok(Some(NodeChange::Live(record))) => drop(self.live.insert(record.message.node, record)),
                Ok(Some(NodeChange::Gone(node))) => drop(self.live.remove(&node)),
                Ok(None) if self.watch.is_caught_up(members) => return,
                Ok(None | Some(NodeChange::Synced)) => {}
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    *self = Self::new(members, self.query);
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Register { node: usize, subnet: u8, models: u8, seconds: u64 },
    Beat { node: usize },
    Leave { node: usize },
    Pass { seconds: u64 },
    Read { watcher: usize, most: usize },
}

const NODES: usize = 4;

fn change() -> impl Strategy<Value = Change> {
    let node = 0..NODES;
    prop_oneof![
        3 => (node.clone(), 0..3_u8, 0..4_u8, 1..60_u64).prop_map(|(node, subnet, models, seconds)| Change::Register { node, subnet, models, seconds }),
        2 => node.clone().prop_map(|node| Change::Beat { node }),
        1 => node.prop_map(|node| Change::Leave { node }),
        2 => (1..LIVENESS_SECONDS * 2).prop_map(|seconds| Change::Pass { seconds }),
        4 => (0..4_usize, 1..6_usize).prop_map(|(watcher, most)| Change::Read { watcher, most }),
    ]
}

/// Keys in memory sign at once.
fn sign<T: Authored>(message: T, domain: Domain, key: &DynSigner) -> Signed<T> {
    Signed::sign(message, &domain, &**key).now_or_never().unwrap().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens, and however slowly it reads: a watcher that has read all knows exactly the nodes that are found.
    #[test]
    fn a_watcher_that_has_read_all_knows_who_is_found(changes in proptest::collection::vec(change(), 1..40)) {
        let domain = Scene::new().trust.domain;
        let keys: Vec<_> = (0..NODES).map(|_| key()).collect();
        // One node fewer than there are: expired ones are forgotten now and then.
        let mut members = Membership::new(domain, MembershipLimits { nodes: NODES - 1, ..MembershipLimits::default() });
        let queries = [
            NodeQuery::default(),
            NodeQuery { subnet: Some([1; 32].into()), ..NodeQuery::default() },
            NodeQuery { model: Some([1; 32].into()), ..NodeQuery::default() },
            NodeQuery { node: Some(keys[0].address()), ..NodeQuery::default() },
        ];
        let mut watchers: Vec<_> = queries.map(|query| Picture::new(&members, query)).into();
        let (mut now, mut sequence) = (NOW, 0);
        for change in changes {
            sequence += 1;
            // Some are refused, as any node may be.
            let _ = match change {
                Change::Register { node, subnet, models, seconds } => {
                    let models = (0..2_u8).filter(|bit| models & (1 << bit) != 0).map(|bit| [bit; 32].into()).collect();
                    let record = NodeRecord { subnet: [subnet; 32].into(), models, ..record(keys[node].address(), sequence, now + seconds) };
                    members.register(sign(record, domain, &keys[node]), origin(node), now).map(drop)
                }
                Change::Beat { node } => {
                    let beat = Heartbeat { node: keys[node].address(), sequence, sent_at: now };
                    members.heartbeat(&sign(beat, domain, &keys[node]), now)
                }
                Change::Leave { node } => {
                    let deregistration = Deregistration { node: keys[node].address(), sequence };
                    members.deregister(&sign(deregistration, domain, &keys[node]), now).map(drop)
                }
                Change::Pass { seconds } => {
                    now += seconds;
                    Ok(())
                }
                Change::Read { watcher, most } => {
                    members.sweep(now);
                    watchers[watcher].read(&members, most);
                    Ok(())
                }
            };
        }
        members.sweep(now);
        watchers.extend(queries.map(|query| Picture::new(&members, query)));
        for mut watcher in watchers {
            watcher.read(&members, usize::MAX);
            let found = members.discover(&watcher.query, now).into_iter().map(|record| (record.message.node, record));
            prop_assert_eq!(watcher.live, found.collect::<BTreeMap<_, _>>());
        }
    }
}
