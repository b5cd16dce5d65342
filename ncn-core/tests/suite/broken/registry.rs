//! Registries with a flaw each.

use super::*;

/// What is wrong with a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    ApprovesAnyQuote,
    TakesAnyHeartbeat,
    NeedsNoGateway,
    ForgetsToSayWhoLeft,
    IsSyncedTooEarly,
    ForgetsWhatItApproved,
    MakesManifestsUp,
    ForgetsWhoAnswered,
}

struct BrokenRegistry {
    scene: Scene,
    flaw: Flaw,
}

#[async_trait]
impl Directory for BrokenRegistry {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.scene.registry.register(record).await
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        let taken = self.scene.registry.heartbeat(heartbeat).await;
        if self.flaw == Flaw::TakesAnyHeartbeat { Ok(()) } else { taken }
    }

    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError> {
        self.scene.registry.deregister(deregistration).await
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        self.scene.registry.discover(query).await
    }

    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError> {
        let changes = self.scene.registry.watch(query).await?;
        let gone = |change: &Result<NodeChange, RegistryError>| matches!(change, Ok(NodeChange::Gone(_)));
        Ok(match self.flaw {
            Flaw::ForgetsToSayWhoLeft => changes.filter(move |change| ready(!gone(change))).boxed(),
            Flaw::IsSyncedTooEarly => stream::iter([Ok(NodeChange::Synced)]).chain(changes).boxed(),
            _ => changes,
        })
    }
}

#[async_trait]
impl Catalog for BrokenRegistry {
    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        self.scene.registry.register_subnet(subnet).await
    }

    async fn subnet(&self, id: B256) -> Result<ApprovedSubnet, RegistryError> {
        self.scene.registry.subnet(id).await
    }

    async fn subnets(&self, after: B256) -> Result<Vec<Arc<ApprovedSubnet>>, RegistryError> {
        self.scene.registry.subnets(after).await
    }

    async fn register_manifest(&self, subnet: B256, manifest: Bytes) -> Result<(), RegistryError> {
        self.scene.registry.register_manifest(subnet, manifest).await
    }

    async fn manifest(&self, digest: B256) -> Result<Bytes, RegistryError> {
        let found = self.scene.registry.manifest(digest).await;
        if self.flaw == Flaw::MakesManifestsUp { Ok(found.unwrap_or_default()) } else { found }
    }
}

#[async_trait]
impl Mempool for BrokenRegistry {
    async fn announce(&self, pending: Signed<PendingRequests>) -> Result<(), RegistryError> {
        self.scene.registry.announce(pending).await
    }

    async fn pending(&self, subnet: B256, request: RequestId) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        self.scene.registry.pending(subnet, request).await
    }

    async fn pending_of(&self, gateway: Address) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        self.scene.registry.pending_of(gateway).await
    }
}

#[async_trait]
impl Attestors for BrokenRegistry {
    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<QuorumCertificate, RegistryError> {
        let approved = self.scene.registry.preprocessing(request).await;
        if self.flaw == Flaw::ApprovesAnyQuote { Ok(approved.unwrap_or_default()) } else { approved }
    }

    async fn completion(&self, request: CompletionRequest) -> Result<QuorumCertificate, RegistryError> {
        let approved = self.scene.registry.completion(request).await;
        match &approved {
            Err(RegistryError::Refused(reason)) if self.flaw == Flaw::ForgetsWhatItApproved && reason.starts_with("completion") => {
                Ok(QuorumCertificate::default())
            }
            Err(RegistryError::Refused(reason)) if self.flaw == Flaw::NeedsNoGateway && reason.starts_with("authorization") => {
                Ok(QuorumCertificate::default())
            }
            _ => approved,
        }
    }

    async fn settlement(&self, request: Arc<BatchRequest>) -> Result<QuorumCertificate, RegistryError> {
        self.scene.registry.settlement(request).await
    }

    async fn answer_times(&self) -> Result<Vec<AnswerTime>, RegistryError> {
        let times = self.scene.registry.answer_times().await;
        if self.flaw == Flaw::ForgetsWhoAnswered { Ok(Vec::new()) } else { times }
    }
}

#[async_trait]
impl RegistryFixture for BrokenRegistry {
    fn registry(&self) -> &dyn Registry {
        self
    }

    async fn epoch(&self) -> Epoch {
        self.scene.epoch().await
    }

    fn now(&self) -> UnixTime {
        crate::scene::NOW
    }

    async fn pay(&self, _: &DynSigner, _: &Quote) {}
}

#[tokio::test]
async fn broken_registries_are_caught() {
    let caught = [
        (Flaw::ApprovesAnyQuote, "a price is the subnet's"),
        (Flaw::TakesAnyHeartbeat, "a heartbeat is not replayed"),
        (Flaw::NeedsNoGateway, "the gateway's word is for one result"),
        (Flaw::ForgetsToSayWhoLeft, "who left is told, a heartbeat is not"),
        (Flaw::IsSyncedTooEarly, "a watch begins with all that is live"),
        (Flaw::ForgetsWhatItApproved, "no two results of one node are approved for a request"),
        (Flaw::MakesManifestsUp, "an unknown manifest is said so"),
        (Flaw::ForgetsWhoAnswered, "who has approved is counted"),
    ];
    for (flaw, rule) in caught {
        let broken = BrokenRegistry { scene: Scene::new(), flaw };
        let violation = conformance::registry(&broken).await.unwrap_err();
        assert_eq!(violation.rule, rule, "{flaw:?}: {violation}");
    }
}
