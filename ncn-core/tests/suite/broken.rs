//! Deliberately broken implementations: each suite has to catch them.

use std::sync::Arc;

use async_trait::async_trait;
use ncn_core::channel::Batch;
use ncn_core::{
    Address, Amount, B256, Certificate, CompletionRequest, Confinement, Departure, DynSigner, EscrowState, Execution, Executor,
    ExecutorError, Heartbeat, LedgerError, NodeQuery, NodeRecord, PaymentLedger, PreprocessingRequest, Quote, Registry,
    RegistryError, RequestId, Settlement, Signed, Subnet, TrustRoot, UnixTime,
    conformance::{self, LedgerFixture, RegistryFixture},
    executor::{ModelPackage, Outputs},
    ledger::LedgerEvents,
    memory::EchoExecutor,
    model::ModelFormat,
};

use crate::{conformance::echo_fixture, scene::Scene};

/// What is wrong with a ledger.
#[derive(Clone, Copy, Debug)]
enum Fault {
    EscrowsForAnyone,
    RefundsEarly,
    ForgetsRefunds,
    ReportsAnotherTransaction,
}

struct BrokenLedger(Arc<dyn PaymentLedger>, Fault);

#[async_trait]
impl PaymentLedger for BrokenLedger {
    fn account(&self) -> Address {
        self.0.account()
    }

    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        self.0.trust_root().await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.0.now().await
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        self.0.balance(owner).await
    }

    async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError> {
        match (self.1, self.0.escrow(quote).await) {
            (Fault::EscrowsForAnyone, Err(LedgerError::NotAllowed(_))) => Ok(B256::ZERO),
            (Fault::ReportsAnotherTransaction, Ok(_)) => Ok(B256::repeat_byte(1)),
            (_, result) => result,
        }
    }

    async fn settle(&self, settlement: &Settlement) -> Result<B256, LedgerError> {
        self.0.settle(settlement).await
    }

    async fn refund(&self, quote: &Quote) -> Result<B256, LedgerError> {
        match (self.1, self.0.refund(quote).await) {
            (Fault::RefundsEarly, Err(LedgerError::NotExpired(_))) => Ok(B256::ZERO),
            (_, result) => result,
        }
    }

    async fn escrow_state(&self, client: Address, request_id: RequestId) -> Result<EscrowState, LedgerError> {
        match (self.1, self.0.escrow_state(client, request_id).await) {
            (Fault::ForgetsRefunds, Ok(EscrowState::Refunded { .. })) => Ok(EscrowState::None),
            (_, result) => result,
        }
    }

    async fn events(&self, from_block: u64) -> Result<LedgerEvents, LedgerError> {
        self.0.events(from_block).await
    }
}

struct BrokenChain(Scene, Fault);

#[async_trait]
impl LedgerFixture for BrokenChain {
    async fn account(&self, signer: DynSigner, tokens: Amount) -> Arc<dyn PaymentLedger> {
        Arc::new(BrokenLedger(self.0.account(signer, tokens).await, self.1))
    }

    fn validators(&self) -> Vec<DynSigner> {
        self.0.validators()
    }

    async fn advance(&self, seconds: u64) {
        self.0.advance(seconds).await;
    }
}

#[tokio::test]
async fn broken_ledgers_are_caught() {
    let caught = [
        (Fault::EscrowsForAnyone, "nobody escrows for another"),
        (Fault::RefundsEarly, "before expiry only the gateway gives back"),
        (Fault::ForgetsRefunds, "a refunded request is refunded"),
        (Fault::ReportsAnotherTransaction, "everyone sees the escrow and its transaction"),
    ];
    for (fault, rule) in caught {
        let violation = conformance::ledger(&BrokenChain(Scene::new(), fault)).await.unwrap_err();
        assert_eq!(violation.rule, rule, "{fault:?}: {violation}");
    }
}

/// A registry that takes heartbeats without looking at them, and certificates from the cupboard.
struct BrokenRegistry {
    scene: Scene,
    approves_anything: bool,
}

#[async_trait]
impl Registry for BrokenRegistry {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.scene.registry.register(record).await
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        let taken = self.scene.registry.heartbeat(heartbeat).await;
        if self.approves_anything { taken } else { Ok(()) }
    }

    async fn deregister(&self, departure: Signed<Departure>) -> Result<(), RegistryError> {
        self.scene.registry.deregister(departure).await
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        self.scene.registry.discover(query).await
    }

    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        self.scene.registry.register_subnet(subnet).await
    }

    async fn subnet(&self, id: B256) -> Result<Signed<Subnet>, RegistryError> {
        self.scene.registry.subnet(id).await
    }

    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<Certificate, RegistryError> {
        let approved = self.scene.registry.preprocessing(request).await;
        if self.approves_anything { Ok(approved.unwrap_or_default()) } else { approved }
    }

    async fn completion(&self, request: CompletionRequest) -> Result<Certificate, RegistryError> {
        self.scene.registry.completion(request).await
    }

    async fn settlement(&self, batch: Arc<Batch>) -> Result<Certificate, RegistryError> {
        self.scene.registry.settlement(batch).await
    }
}

#[async_trait]
impl RegistryFixture for BrokenRegistry {
    fn registry(&self) -> &dyn Registry {
        self
    }

    async fn trust_root(&self) -> TrustRoot {
        self.scene.trust.clone()
    }

    fn now(&self) -> UnixTime {
        crate::scene::NOW
    }

    async fn pay(&self, _: &DynSigner, _: &Quote) {}
}

#[tokio::test]
async fn broken_registries_are_caught() {
    for (approves_anything, rule) in [(true, "a price is the subnet's"), (false, "a heartbeat is not replayed")] {
        let broken = BrokenRegistry { scene: Scene::new(), approves_anything };
        assert_eq!(conformance::registry(&broken).await.unwrap_err().rule, rule);
    }
}

/// An executor that does not check its inputs.
struct CarelessExecutor(EchoExecutor);

#[async_trait]
impl Executor for CarelessExecutor {
    fn formats(&self) -> Vec<ModelFormat> {
        self.0.formats()
    }

    fn confinement(&self) -> Confinement {
        self.0.confinement()
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        self.0.load(package).await
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        self.0.unload(model_digest).await
    }

    async fn run(&self, mut execution: Execution) -> Result<Outputs, ExecutorError> {
        execution.inputs = echo_fixture().inputs;
        self.0.run(execution).await
    }
}

#[tokio::test]
async fn a_careless_executor_is_caught() {
    let violation = conformance::executor(&CarelessExecutor(EchoExecutor::default()), &echo_fixture()).await.unwrap_err();
    assert_eq!(violation.rule, "bad inputs are refused by name");
}
