//! What time does to a membership.

use ncn_core::{
    Confinement, Deregistration, Heartbeat, NodeQuery, NodeRecord, NodeRole, RegistryError, Signed,
    membership::{CLOCK_SKEW_SECONDS, LIVENESS_SECONDS, Membership, MembershipLimits},
};

use crate::scene::{NOW, Scene, key};

fn record(node: ncn_core::Address, sequence: u64, expires_at: u64) -> NodeRecord {
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

    members.register(sign(record(node.address(), 1, NOW + 40)).await.unwrap(), NOW).unwrap();
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
    members.register(signed.clone(), NOW).unwrap();
    members.register(signed, NOW + LIVENESS_SECONDS).unwrap();
    assert_eq!(members.discover(&NodeQuery::default(), NOW + LIVENESS_SECONDS + 1).len(), 0);
}

#[tokio::test]
async fn a_departed_node_cannot_be_brought_back_by_its_old_record() {
    let (domain, node) = (Scene::new().trust.domain, key());
    let mut members = Membership::new(domain, MembershipLimits::default());
    let old = Signed::sign(record(node.address(), 1, NOW + 600), &domain, &*node).await.unwrap();
    members.register(old.clone(), NOW).unwrap();
    let farewell = Deregistration { node: node.address(), sequence: 2 };
    members.deregister(&Signed::sign(farewell, &domain, &*node).await.unwrap(), NOW).unwrap();
    assert_eq!(members.register(old, NOW + 1), Err(RegistryError::Stale { given: 1, known: 2 }));
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
    members.register(signed[0].clone(), NOW).unwrap();
    members.register(signed[1].clone(), NOW).unwrap();
    assert!(matches!(members.register(signed[2].clone(), NOW), Err(RegistryError::Overloaded(_))));
    members.register(signed[2].clone(), NOW + 11).unwrap();
}

/// A registry that lies about the newest sequence could have a node sign the largest one, after which no other one is newer.
#[tokio::test]
async fn a_sequence_is_not_ahead_of_the_clock() {
    let (domain, node) = (Scene::new().trust.domain, key());
    let mut members = Membership::new(domain, MembershipLimits::default());
    let sign = async |sequence| Signed::sign(record(node.address(), sequence, NOW + 600), &domain, &*node).await.unwrap();
    let ahead = (NOW + CLOCK_SKEW_SECONDS + 1) * 1_000;
    for sequence in [ahead, u64::MAX] {
        let refused = members.register(sign(sequence).await, NOW);
        assert!(matches!(&refused, Err(RegistryError::Invalid { field, .. }) if field == "record.sequence"), "{refused:?}");
    }
    members.register(sign(ahead - 1).await, NOW).unwrap();
    let beat = |sequence| Heartbeat { node: node.address(), sequence, sent_at: NOW };
    let refused = members.heartbeat(&Signed::sign(beat(u64::MAX), &domain, &*node).await.unwrap(), NOW);
    assert!(matches!(&refused, Err(RegistryError::Invalid { field, .. }) if field == "heartbeat.sequence"), "{refused:?}");
    members.heartbeat(&Signed::sign(beat(ahead), &domain, &*node).await.unwrap(), NOW + 1).unwrap();
    let farewell = Signed::sign(Deregistration { node: node.address(), sequence: u64::MAX }, &domain, &*node).await.unwrap();
    let refused = members.deregister(&farewell, NOW);
    assert!(matches!(&refused, Err(RegistryError::Invalid { field, .. }) if field == "departure.sequence"), "{refused:?}");
}
