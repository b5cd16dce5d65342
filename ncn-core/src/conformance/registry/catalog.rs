//! Subnets, manifests, and pending requests.

use std::sync::Arc;

use super::*;
use crate::{RequestId, TrustHistory, mempool::PendingRequests, registry::ApprovedSubnet};

pub(super) async fn subnets(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let registry = scene.registry();
    let id = scene.subnet.id();
    let unknown = registry.subnet(id).await;
    rules.check("an unknown subnet is said so", unknown == Err(RegistryError::UnknownSubnet(id)), unknown)?;
    let signed = scene.sign(scene.subnet.clone(), &scene.gateway).await;
    let mut forged = signed.clone();
    if let Some(model) = forged.message.models.first_mut() {
        model.price.base = Amount::new(1);
    }
    rules.refused("a forged subnet is refused", registry.register_subnet(forged).await, RegistryError::is_retryable)?;
    scene.fixture.create_subnet(&scene.gateway, &scene.subnet.name).await;
    rules.ok("an owner defines its subnet", registry.register_subnet(signed.clone()).await)?;
    rules.ok("defining it again changes nothing", registry.register_subnet(signed.clone()).await)?;
    let found = rules.ok("a subnet is found", registry.subnet(id).await)?;
    rules.check("a subnet is found as it was signed", found.definition == signed, &found)?;
    let verified = found.verify(&TrustHistory::fixed(scene.trust.clone()));
    rules.check("M of N validators have approved a subnet", verified.is_ok(), verified)?;
    let mut listed = Vec::new();
    loop {
        let after = listed.last().map_or(B256::ZERO, |subnet: &ApprovedSubnet| subnet.subnet().id());
        let page = rules.ok("subnets are listed", registry.subnets(after).await)?;
        let ids = [after].into_iter().chain(page.iter().map(|subnet| subnet.subnet().id()));
        rules.check("subnets are listed in the order of their ids", ids.is_sorted_by(|a, b| a < b), &page)?;
        if page.is_empty() {
            break;
        }
        listed.extend(page.into_iter().map(Arc::unwrap_or_clone));
    }
    rules.check("every subnet is listed", listed.contains(&found), listed)?;
    manifests(rules, registry, &scene.subnet).await?;
    let twice = Subnet { gateways: vec![MEMBER.into(); 2], version: 2, ..scene.subnet.clone() };
    let twice = registry.register_subnet(scene.sign(twice, &scene.gateway).await).await;
    rules.refused("each gateway is named once", twice, RegistryError::is_retryable)?;
    let mut other = scene.subnet.clone();
    other.split.gateway_bps += 1;
    let other = scene.sign(other, &scene.gateway).await;
    let stale = registry.register_subnet(other).await;
    rules.check("one version has one definition", matches!(stale, Err(RegistryError::Stale { .. })), stale)
}

async fn manifests(rules: &mut Rules, registry: &dyn Registry, subnet: &Subnet) -> Result<(), Violation> {
    let (id, manifest) = (subnet.id(), Bytes::from_static(MANIFEST));
    let digest = rules.ok("a manifest is read", manifest_digest(&manifest))?;
    let unknown = registry.manifest(digest).await;
    rules.check("an unknown manifest is said so", unknown == Err(RegistryError::UnknownManifest(digest)), unknown)?;
    let nowhere = registry.register_manifest([7; 32].into(), manifest.clone()).await;
    rules.check("a manifest is of a subnet", nowhere == Err(RegistryError::UnknownSubnet([7; 32].into())), nowhere)?;
    let other = [&manifest[..], b" "].concat();
    let refused = registry.register_manifest(id, other.into()).await;
    rules.refused("a manifest is of a model that its subnet lists", refused, RegistryError::is_retryable)?;
    rules.ok("a subnet's manifest is kept", registry.register_manifest(id, manifest.clone()).await)?;
    rules.ok("keeping it again changes nothing", registry.register_manifest(id, manifest.clone()).await)?;
    let found = registry.manifest(digest).await;
    rules.check("a manifest is found by its digest", found.as_ref() == Ok(&manifest), found)
}

pub(super) async fn pending(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let (registry, subnet, gateway) = (scene.registry(), scene.subnet.id(), scene.gateway.address());
    let (first, second): (RequestId, RequestId) = ([1; 32].into(), [2; 32].into());
    let now = scene.fixture.now();
    let said = PendingRequests { gateway, subnet, requests: vec![first], sequence: now * 1_000, expires_at: now + 60 };
    let nobody = registry.pending(subnet, first).await;
    rules.check("nobody works on an unknown request", nobody == Ok(None), nobody)?;
    let other = key();
    let stranger = scene.sign(PendingRequests { gateway: other.address(), ..said.clone() }, &other).await;
    rules.refused("only gateways of the subnet announce", registry.announce(stranger).await, RegistryError::is_retryable)?;
    let mut forged = scene.sign(said.clone(), &scene.gateway).await;
    forged.message.requests = vec![second];
    rules.refused("an announcement is its gateway's", registry.announce(forged).await, RegistryError::is_retryable)?;
    let late = scene.sign(PendingRequests { expires_at: now - 1, ..said.clone() }, &scene.gateway).await;
    rules.refused("an announcement expires", registry.announce(late).await, RegistryError::is_retryable)?;
    let old = scene.sign(said.clone(), &scene.gateway).await;
    rules.ok("a gateway announces", registry.announce(old.clone()).await)?;
    rules.ok("announcing the same again changes nothing", registry.announce(old.clone()).await)?;
    let found = registry.pending(subnet, first).await;
    rules.check("who works on a request is found", found == Ok(Some(old.clone())), found)?;
    let elsewhere = registry.pending([7; 32].into(), first).await;
    rules.check("a request is of its subnet", elsewhere == Ok(None), elsewhere)?;
    let new = scene.sign(PendingRequests { requests: vec![second], sequence: said.sequence + 1, ..said }, &scene.gateway).await;
    rules.ok("a gateway announces anew", registry.announce(new.clone()).await)?;
    let gone = registry.pending(subnet, first).await;
    rules.check("the newest announcement counts alone", gone == Ok(None), gone)?;
    let replayed = registry.announce(old).await;
    rules.check("an announcement is not replayed", matches!(replayed, Err(RegistryError::Stale { .. })), replayed)?;
    let all = registry.pending_of(gateway).await;
    rules.check("what a gateway works on is found", all == Ok(Some(new)), all)
}
