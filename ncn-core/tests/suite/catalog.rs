//! What subnets and pending requests count by.

use ncn_core::{
    Address, Approval, ApprovedSubnet, B256, DynSigner, FeeSplit, Message as _, Price, QuorumCertificate, RegistryError, Signed,
    Subnet, SubnetModel, TrustHistory,
    membership::{Membership, MembershipLimits, SMALL_SUBNET_BYTES},
    mempool::{MAX_PENDING, MAX_PENDING_SECONDS, PendingRequests, PendingTable},
};

use crate::scene::{NOW, Scene, key};

fn subnet(owner: &DynSigner, version: u64) -> Subnet {
    Subnet {
        owner: owner.address(),
        name: "one".into(),
        gateways: Vec::new(),
        models: Vec::new(),
        split: FeeSplit::default(),
        version,
    }
}

async fn approved(scene: &Scene, subnet: Subnet, owner: &DynSigner, by: &[DynSigner]) -> ApprovedSubnet {
    let definition = Signed::sign(subnet, &scene.trust.domain, &**owner).await.unwrap();
    let digest = definition.message.digest(&scene.trust.domain);
    let mut approvals = Vec::new();
    for validator in by {
        approvals.push(Approval::sign(&digest, &**validator).await.unwrap());
    }
    ApprovedSubnet { definition, approvals: QuorumCertificate::new(approvals) }
}

#[tokio::test]
async fn exactly_m_validators_approve_a_subnet() {
    let (scene, owner) = (Scene::new(), key());
    let (trust, need) = (TrustHistory::fixed(scene.trust.clone()), usize::from(scene.trust.threshold));
    let field = |approved: &ApprovedSubnet| match approved.verify(&trust) {
        Err(RegistryError::Invalid { field, .. }) => field,
        verified => format!("{verified:?}"),
    };
    let some = |number: usize| &scene.validators[..number];
    let good = approved(&scene, subnet(&owner, 1), &owner, some(need)).await;
    good.verify(&trust).unwrap();
    // Nobody who passes it on adds to it or takes away from it: it has few forms, all of them small.
    for number in [0, need - 1, need + 1] {
        assert_eq!(field(&approved(&scene, subnet(&owner, 1), &owner, some(number)).await), "subnet.approvals");
    }
    let mut strangers = some(need - 1).to_vec();
    strangers.push(key());
    assert_eq!(field(&approved(&scene, subnet(&owner, 1), &owner, &strangers).await), "subnet.approvals");
    let other = approved(&scene, subnet(&owner, 2), &owner, some(need)).await;
    let mixed = ApprovedSubnet { definition: good.definition.clone(), approvals: other.approvals };
    assert_eq!(field(&mixed), "subnet.approvals.signature");
    let mut twice = good.approvals.approvals().to_vec();
    twice[1] = twice[0];
    let twice = ApprovedSubnet { definition: good.definition.clone(), approvals: QuorumCertificate::new(twice) };
    assert_eq!(field(&twice), "subnet.approvals.signature");
    let definition = Signed { signature: twice.definition.signature, message: subnet(&owner, 9) };
    assert_eq!(field(&ApprovedSubnet { definition, ..good.clone() }), "subnet.signature");
    let one = ApprovedSubnet::committee(&subnet(&owner, 7), &scene.trust);
    let another = Subnet { gateways: vec![Address::repeat_byte(1)], ..subnet(&owner, 7) };
    assert_eq!(ApprovedSubnet::committee(&another, &scene.trust), one, "two definitions of one version have the same judges");
}

#[tokio::test]
async fn a_subnet_is_defined_anew_by_newer_versions_only() {
    let (scene, owner) = (Scene::new(), key());
    let mut members = Membership::new(scene.trust.domain, MembershipLimits::default());
    let digest = B256::repeat_byte(5);
    let model = SubnetModel { name: "m".into(), digest, price: Price::flat(ncn_core::Amount::new(1)) };
    let with = |version, models| Subnet { models, ..subnet(&owner, version) };
    let future = approved(&scene, with(u64::MAX, Vec::new()), &owner, &[]).await;
    let refused = members.register_subnet(future, NOW).unwrap_err();
    assert!(matches!(&refused, RegistryError::Invalid { field, .. } if field == "subnet.version"), "{refused}");

    let first = approved(&scene, with(1, vec![model.clone()]), &owner, &scene.validators[..2]).await;
    assert!(members.register_subnet(first.clone(), NOW).unwrap() && members.lists(&digest));
    let renewed = approved(&scene, with(1, vec![model]), &owner, &scene.validators[1..3]).await;
    assert!(!members.register_subnet(renewed.clone(), NOW).unwrap(), "the first approvals stay");
    members.renew(renewed.clone());
    assert_eq!(members.subnet(&first.subnet().id()).unwrap(), &renewed);
    members.renew(approved(&scene, with(2, Vec::new()), &owner, &[]).await);
    assert_eq!(members.subnet(&first.subnet().id()).unwrap(), &renewed, "another definition is none of its approvals");
    assert!(members.register_subnet(approved(&scene, with(2, Vec::new()), &owner, &[]).await, NOW).unwrap());
    assert!(!members.lists(&digest), "the newest version offers nothing");
    let stale = members.register_subnet(first, NOW);
    assert_eq!(stale, Err(RegistryError::Stale { given: 1, known: 2 }));
}

#[tokio::test]
async fn large_subnets_leave_room_for_small_ones() {
    let scene = Scene::new();
    let model = |number: u16| {
        let mut digest = B256::ZERO;
        digest[..2].copy_from_slice(&number.to_be_bytes());
        SubnetModel { name: "m".repeat(256), digest, price: Price::flat(ncn_core::Amount::new(1)) }
    };
    let with = |owner: &DynSigner, version, models| Subnet { models: (0..models).map(model).collect(), ..subnet(owner, version) };
    let one = with(&key(), 1, 512).kept_bytes();
    assert!(with(&key(), 1, 8).kept_bytes() < SMALL_SUBNET_BYTES && one > 128 << 10);
    let bounds = MembershipLimits { subnet_bytes: 3 * one, subnets: 8, ..MembershipLimits::default() };
    let mut members = Membership::new(scene.trust.domain, bounds);
    let owners: Vec<_> = (0..4).map(|_| key()).collect();
    let mut takes = async |owner, version, models| {
        members.register_subnet(approved(&scene, with(owner, version, models), owner, &[]).await, NOW)
    };
    for owner in &owners[..3] {
        assert_eq!(takes(owner, 1, 512).await, Ok(true));
    }
    assert!(matches!(takes(&owners[3], 1, 512).await, Err(RegistryError::Overloaded(_))));
    assert_eq!(takes(&owners[3], 1, 8).await, Ok(true), "a small one has room");
    // A newer definition takes the room of the older one.
    assert!(matches!(takes(&owners[0], 2, 513).await, Err(RegistryError::Overloaded(_))));
    assert_eq!(takes(&owners[0], 2, 511).await, Ok(true));
    assert_eq!(takes(&owners[1], 2, 8).await, Ok(true));
    assert_eq!(takes(&owners[3], 2, 512).await, Ok(true), "there is room again");
}

#[tokio::test]
async fn a_gateway_that_is_sent_away_has_no_pending_requests() {
    let (scene, owner, member) = (Scene::new(), key(), key());
    let mut members = Membership::new(scene.trust.domain, MembershipLimits::default());
    let with = |version, gateways| Subnet { gateways, ..subnet(&owner, version) };
    let shared = with(1, vec![member.address()]);
    let (id, request) = (shared.id(), B256::repeat_byte(1));
    let pending = |sequence| PendingRequests {
        gateway: member.address(),
        subnet: id,
        requests: vec![request],
        sequence,
        expires_at: NOW + MAX_PENDING_SECONDS,
    };
    let sign = async |pending| Signed::sign(pending, &scene.trust.domain, &*member).await.unwrap();
    assert_eq!(members.announce(sign(pending(1)).await, NOW), Err(RegistryError::UnknownSubnet(id)));
    members.register_subnet(approved(&scene, shared, &owner, &[]).await, NOW).unwrap();
    assert!(members.announce(sign(pending(1)).await, NOW).unwrap());
    assert!(members.pending(id, request, NOW).is_some());
    assert!(members.pending(id, request, NOW + MAX_PENDING_SECONDS + 1).is_none(), "it expires");
    members.register_subnet(approved(&scene, with(2, Vec::new()), &owner, &[]).await, NOW).unwrap();
    assert!(members.pending(id, request, NOW).is_none() && members.pending_requests().is_empty());
    let refused = members.announce(sign(pending(2)).await, NOW).unwrap_err();
    assert!(matches!(&refused, RegistryError::Invalid { field, .. } if field == "pending.gateway"), "{refused}");
}

#[tokio::test]
async fn pending_requests_are_counted_and_bounded() {
    let (scene, gateway) = (Scene::new(), key());
    let mut table = PendingTable::default();
    let mut take = async |requests: Vec<B256>, sequence| {
        let (gateway_address, subnet) = (gateway.address(), B256::ZERO);
        let pending = PendingRequests { gateway: gateway_address, subnet, requests, sequence, expires_at: NOW + 1 };
        table.take(Signed::sign(pending, &scene.trust.domain, &*gateway).await.unwrap(), &scene.trust.domain, NOW)
    };
    let number = |number: usize| B256::left_padding_from(&number.to_be_bytes());
    let field = |taken: Result<bool, RegistryError>| match taken {
        Err(RegistryError::Invalid { field, .. }) => field,
        taken => format!("{taken:?}"),
    };
    // The same one many times would take room for many, and count for one.
    assert_eq!(field(take(vec![number(1); 2], 1).await), "pending.requests");
    assert_eq!(field(take((0..=MAX_PENDING).map(number).collect(), 1).await), "pending.requests");
    assert_eq!(field(take(Vec::new(), u64::MAX).await), "pending.sequence");
    assert!(take((0..MAX_PENDING).map(number).collect(), 1).await.unwrap());
    assert!(take(vec![number(7)], 2).await.unwrap());
    assert_eq!(take(vec![number(8)], 1).await, Err(RegistryError::Stale { given: 1, known: 2 }));
    assert_eq!(table.len(), 1, "the newest announcement is the whole of it");
}
