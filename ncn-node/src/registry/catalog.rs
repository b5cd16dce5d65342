//! The registry node's part that knows the subnets, their models, and their pending requests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use ncn_client::unix_now;
use ncn_core::{
    Address, ApprovedSubnet, B256, Catalog, QuorumCertificate, RegistryError, RequestId, Signed, Subnet, Validator,
    membership::News,
    mempool::{Mempool, PendingRequests},
    registry::{MAX_REGISTERED_MANIFEST, SUBNETS_PAGE, manifest_digest},
};

use super::{RegistryNode, VALIDATOR_TIMEOUT, trust};

/// How many bytes of manifests are kept, in all and of one subnet's.
const MAX_MANIFEST_BYTES: usize = 32 << 20;
const MAX_MANIFEST_BYTES_OF_ONE: usize = 64 * MAX_REGISTERED_MANIFEST;

/// The manifests that were brought here, with the subnet that each was brought for.
#[derive(Default)]
pub(super) struct Manifests(Mutex<HashMap<B256, (B256, Bytes)>>);

impl Manifests {
    /// Where there is no room, those go that no subnet lists any more.
    fn keep(&self, digest: B256, subnet: B256, manifest: Bytes, is_listed: impl Fn(&B256) -> bool) -> Result<(), RegistryError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.contains_key(&digest) {
            return Ok(());
        }
        let is_full = |kept: &HashMap<B256, (B256, Bytes)>| {
            let bytes = |of: Option<B256>| -> usize {
                let counted = kept.values().filter(|(subnet, _)| of.is_none_or(|of| of == *subnet));
                counted.map(|(_, other)| other.len()).sum::<usize>() + manifest.len()
            };
            bytes(None) > MAX_MANIFEST_BYTES || bytes(Some(subnet)) > MAX_MANIFEST_BYTES_OF_ONE
        };
        if is_full(&kept) {
            kept.retain(|digest, _| is_listed(digest));
        }
        if is_full(&kept) {
            return Err(RegistryError::Overloaded("it keeps no more manifests of this subnet".into()));
        }
        kept.insert(digest, (subnet, manifest));
        Ok(())
    }

    fn get(&self, digest: &B256) -> Option<Bytes> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(digest).map(|(_, manifest)| manifest.clone())
    }
}

#[async_trait]
impl Catalog for RegistryNode {
    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        let digest = subnet.verify(&self.domain);
        let digest = self.counted(digest.map_err(|error| RegistryError::invalid("subnet.signature", error.to_string())))?;
        let id = subnet.message.id();
        let defined = self.membership.read(|membership| membership.definable(&subnet.message, unix_now()));
        let is_known = self.counted(defined)?.is_none();
        let trust = trust(&*self.ledger, 0).await?;
        // Where validators have left that have approved it, others are asked.
        if is_known && self.subnet(id).await?.verify(&trust).is_ok() {
            return Ok(());
        }
        self.counted(self.subnets.is_created(&subnet.message).await)?;
        let committee = ApprovedSubnet::committee(&subnet.message, &trust.current().trust);
        let definition = Arc::new(subnet);
        let ask = |validator: Arc<dyn Validator>| -> BoxFuture<'static, _> {
            let subnet = definition.clone();
            Box::pin(async move { validator.subnet(&subnet).await })
        };
        let (approvals, enough) = self.collect(&trust, &[committee], digest, VALIDATOR_TIMEOUT, ask).await;
        enough?;
        let approvals = QuorumCertificate::new(approvals);
        self.take(News::Subnet(ApprovedSubnet { definition: Arc::unwrap_or_clone(definition), approvals })).await
    }

    async fn subnet(&self, id: B256) -> Result<ApprovedSubnet, RegistryError> {
        self.membership.read(|membership| membership.subnet(&id).cloned())
    }

    async fn subnets(&self, after: B256) -> Result<Vec<Arc<ApprovedSubnet>>, RegistryError> {
        Ok(self.membership.read(|membership| membership.subnets(after, SUBNETS_PAGE)))
    }

    async fn register_manifest(&self, subnet: B256, manifest: Bytes) -> Result<(), RegistryError> {
        let digest = self.counted(manifest_digest(&manifest))?;
        self.counted(self.membership.read(|membership| membership.subnet(&subnet)?.lists(&digest)))?;
        self.counted(self.manifests.keep(digest, subnet, manifest, |other| self.lists(other)))
    }

    async fn manifest(&self, digest: B256) -> Result<Bytes, RegistryError> {
        self.manifests.get(&digest).ok_or(RegistryError::UnknownManifest(digest))
    }
}

#[async_trait]
impl Mempool for RegistryNode {
    async fn announce(&self, pending: Signed<PendingRequests>) -> Result<(), RegistryError> {
        self.take(News::Pending(pending)).await
    }

    async fn pending(&self, subnet: B256, request: RequestId) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        Ok(self.membership.read(|membership| membership.pending(subnet, request, unix_now()).cloned()))
    }

    async fn pending_of(&self, gateway: Address) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        Ok(self.membership.read(|membership| membership.pending_requests().pending_of(&gateway, unix_now()).cloned()))
    }
}
