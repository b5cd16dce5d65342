use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use crate::{
    AnswerTime, Approval, ApprovedSubnet, Attestors, BatchRequest, Catalog, Committee, CompletionRequest, Deregistration,
    Directory, DynSigner, Heartbeat, InferenceRequest, Message as _, NodeChanges, NodeQuery, NodeRecord, PreprocessingRequest,
    QuorumCertificate, RegistryError, RequestId, Signed, Subnet, TrustHistory, TrustRoot, UnixTime,
    evidence::ApprovalKey,
    membership::{Membership, MembershipLimits, Origin, SharedMembership},
    mempool::{Mempool, PendingRequests},
    registry::{SUBNETS_PAGE, manifest_digest},
    trust::{Quorum, Tenure},
    validation::{self, ValidationContext},
};

/// Tells the time; the core has no clock of its own.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// A registry in one process: a membership table, and validators whose keys are at hand.
pub struct MemoryRegistry {
    trust: TrustRoot,
    validators: Vec<DynSigner>,
    membership: Arc<SharedMembership>,
    clock: Clock,
    approved: Mutex<HashMap<ApprovalKey, B256>>,
    manifests: Mutex<HashMap<B256, Bytes>>,
    /// How often each validator has approved something.
    approvals: Mutex<BTreeMap<Address, u64>>,
}

impl MemoryRegistry {
    /// A registry of the network `trust`, with these validators.
    pub fn new(trust: TrustRoot, validators: Vec<DynSigner>, clock: Clock) -> Self {
        let membership = SharedMembership::new(Membership::new(trust.domain, MembershipLimits::default()));
        Self {
            trust,
            validators,
            membership,
            clock,
            approved: Mutex::default(),
            manifests: Mutex::default(),
            approvals: Mutex::default(),
        }
    }

    /// The network, which has been as it is since its first second.
    fn history(&self, now: UnixTime) -> TrustHistory {
        let TrustRoot { threshold, committee_size, .. } = self.trust;
        let member = |validator: &Address| Tenure { validator: *validator, from: 1, until: UnixTime::MAX };
        let members = self.trust.validators.iter().map(member).collect();
        TrustHistory::new(now, self.trust.clone(), members, vec![Quorum { since: 1, threshold, committee_size }])
    }

    /// Has the check pass, once: all validators here judge in the same context.
    fn judge(
        &self,
        order: &InferenceRequest,
        nodes: impl IntoIterator<Item = Address>,
        check: impl FnOnce(&ValidationContext<'_>) -> Result<(), RegistryError>,
    ) -> Result<(), RegistryError> {
        let now = (self.clock)();
        self.membership.read(|membership| {
            let subnet = membership.subnet(&order.subnet)?.subnet();
            let records = nodes.into_iter().flat_map(|node| {
                let query = NodeQuery { node: Some(node), ..NodeQuery::default() };
                membership.discover(&query, now)
            });
            let nodes: Vec<_> = records.map(|record| record.message).collect();
            check(&ValidationContext { trust: &self.history(now), subnet: Some(subnet), nodes: &nodes, now })
        })
    }

    async fn certify(&self, committees: &[Committee], digest: &B256) -> Result<QuorumCertificate, RegistryError> {
        let mut approvals: BTreeMap<Address, Approval> = BTreeMap::new();
        for Committee { threshold, members } in committees {
            let need = usize::from(*threshold);
            let judges = self.validators.iter().filter(|validator| members.contains(&validator.address()));
            for validator in judges.take(need) {
                approvals.insert(validator.address(), Approval::sign(digest, &**validator).await?);
            }
            let have = members.iter().filter(|member| approvals.contains_key(*member)).count();
            if have < need {
                return Err(RegistryError::TooFewApprovals { have, need, reasons: "no more of the committee are here".into() });
            }
        }
        let mut counted = self.approvals.lock().unwrap_or_else(PoisonError::into_inner);
        for validator in approvals.keys() {
            *counted.entry(*validator).or_default() += 1;
        }
        drop(counted);
        Ok(QuorumCertificate::new(approvals.into_values().collect()))
    }
}

#[async_trait]
impl Directory for MemoryRegistry {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.membership.update(|membership| membership.register(record, Origin::default(), (self.clock)())).map(drop)
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        self.membership.update(|membership| membership.heartbeat(&heartbeat, (self.clock)()))
    }

    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError> {
        self.membership.update(|membership| membership.deregister(&deregistration, (self.clock)())).map(drop)
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        Ok(self.membership.read(|membership| membership.discover(&query, (self.clock)())))
    }

    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError> {
        let clock = self.clock.clone();
        // The core has no timer: silence is noticed with the next change.
        Ok(self.membership.watch(query, move || clock(), stream::pending().boxed()))
    }
}

#[async_trait]
impl Catalog for MemoryRegistry {
    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        let digest = subnet.verify(&self.trust.domain);
        let digest = digest.map_err(|error| RegistryError::invalid("subnet.signature", error.to_string()))?;
        let committee = ApprovedSubnet::committee(&subnet.message, &self.trust);
        let approvals = self.certify(&[committee], &digest).await?;
        let approved = ApprovedSubnet { definition: subnet, approvals };
        self.membership.update(|membership| membership.register_subnet(approved, (self.clock)())).map(drop)
    }

    async fn subnet(&self, id: B256) -> Result<ApprovedSubnet, RegistryError> {
        self.membership.read(|membership| membership.subnet(&id).cloned())
    }

    async fn subnets(&self, after: B256) -> Result<Vec<Arc<ApprovedSubnet>>, RegistryError> {
        Ok(self.membership.read(|membership| membership.subnets(after, SUBNETS_PAGE)))
    }

    async fn register_manifest(&self, subnet: B256, manifest: Bytes) -> Result<(), RegistryError> {
        let digest = manifest_digest(&manifest)?;
        self.membership.read(|membership| membership.subnet(&subnet)?.lists(&digest))?;
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, manifest);
        Ok(())
    }

    async fn manifest(&self, digest: B256) -> Result<Bytes, RegistryError> {
        let manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        manifests.get(&digest).cloned().ok_or(RegistryError::UnknownManifest(digest))
    }
}

#[async_trait]
impl Mempool for MemoryRegistry {
    async fn announce(&self, pending: Signed<PendingRequests>) -> Result<(), RegistryError> {
        self.membership.update(|membership| membership.announce(pending, (self.clock)())).map(drop)
    }

    async fn pending(&self, subnet: B256, request: RequestId) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        Ok(self.membership.read(|membership| membership.pending(subnet, request, (self.clock)()).cloned()))
    }

    async fn pending_of(&self, gateway: Address) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        Ok(self.membership.read(|membership| membership.pending_requests().pending_of(&gateway, (self.clock)()).cloned()))
    }
}

#[async_trait]
impl Attestors for MemoryRegistry {
    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<QuorumCertificate, RegistryError> {
        validation::signed_order(&request, &self.trust.domain)?;
        let (order, quote) = (&request.request.message, &request.quote);
        self.judge(order, [quote.compute], |context| validation::preprocessing(&request, context))?;
        self.certify(&[quote.committee_of(&self.trust)?], &quote.digest(&self.trust.domain)).await
    }

    async fn completion(&self, request: CompletionRequest) -> Result<QuorumCertificate, RegistryError> {
        let completion = validation::authorization(&request, &self.trust.domain)?;
        if validation::claiming_attempt(&request).is_some() {
            return Err(RegistryError::Refused("authorization: this registry sees no chain, and judges for gateways only".into()));
        }
        let nodes = completion.contributions.iter().map(|contribution| contribution.compute);
        self.judge(&request.request.message, nodes, |context| validation::completion(&request, context))?;
        let key = ApprovalKey::of(&completion, request.authorization.message.author);
        let hash = completion.struct_hash();
        if *self.approved.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(hash) != hash {
            return Err(RegistryError::Refused("completion: another one of this request was approved before".into()));
        }
        self.certify(&[request.quote.committee_of(&self.trust)?], &completion.digest(&self.trust.domain)).await
    }

    async fn settlement(&self, request: Arc<BatchRequest>) -> Result<QuorumCertificate, RegistryError> {
        validation::settlement(&request, &self.trust)?;
        for entry in &request.batch.entries {
            let verified = entry.verify(&self.history((self.clock)()));
            verified.map_err(|error| RegistryError::Refused(error.to_string()))?;
        }
        let digest = request.batch.settlement.digest(&self.trust.channel_domain());
        self.certify(&request.committees, &digest).await
    }

    async fn answer_times(&self) -> Result<Vec<AnswerTime>, RegistryError> {
        // They are asked when they are needed, and none of them is waited for.
        let counted = self.approvals.lock().unwrap_or_else(PoisonError::into_inner);
        let time = |(validator, count): (&Address, &u64)| AnswerTime {
            validator: *validator,
            asked: *count,
            approved: *count,
            mean: Duration::ZERO,
        };
        Ok(counted.iter().map(time).collect())
    }
}
