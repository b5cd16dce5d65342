//! Deliberately broken implementations: each suite has to catch them.

mod registry;

use std::{future::ready, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use ncn_core::BatchRequest;
use ncn_core::channel::CertifiedBatch;
use ncn_core::{
    Address, Amount, AnswerTime, ApprovedSubnet, Attestors, B256, BatchSettler, Catalog, ChainView, Channel, ChannelParams,
    CompletionRequest, Confinement, Deregistration, Directory, DynSigner, Epoch, Execution, Executor, ExecutorError, Heartbeat,
    LedgerError, NodeChange, NodeChanges, NodeQuery, NodeRecord, Payer, PaymentAuthorization, PaymentChanges, PaymentLedger,
    PaymentRef, PaymentStatus, PreprocessingRequest, QuorumCertificate, Quote, Receipt, Registry, RegistryError, RequestId,
    Settlement, Signature, Signed, Subnet, TrustHistory, UnixTime,
    conformance::{self, ChainFixture, LedgerFixture, PayerFixture, RegistryFixture},
    executor::{ModelPackage, Outputs},
    memory::{EchoExecutor, MemoryChain},
    mempool::{Mempool, PendingRequests},
    model::ModelFormat,
};

use crate::{conformance::echo_fixture, scene::Scene};

/// What is wrong with a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    EscrowsForAnyone,
    RefundsEarly,
    ForgetsRefunds,
    ReportsAnotherTransaction,
    AcceptsAnySignature,
    TakesVouchersForNothing,
    TakesOthersCompletionForOnes,
    ClosesOthersChannels,
    OpensAnew,
    PaysBatchesTwice,
    TakesOtherBatchesForDone,
    ClosesForAnyone,
    PaysAgain,
    ForgetsPayments,
    BelievesReceipts,
    ReclaimsNothing,
}

const MADE_UP: PaymentRef = PaymentRef::Transaction(B256::repeat_byte(1));

struct BrokenLedger {
    ledger: Arc<dyn PaymentLedger>,
    signer: DynSigner,
    fault: Fault,
}

#[async_trait]
impl PaymentLedger for BrokenLedger {
    fn account(&self) -> Address {
        self.ledger.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.ledger.trust(epoch).await
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        self.ledger.balance(owner).await
    }

    async fn redeem(&self, quote: &Quote, authorization: &PaymentAuthorization) -> Result<PaymentRef, LedgerError> {
        match (self.fault, self.ledger.redeem(quote, authorization).await) {
            (Fault::AcceptsAnySignature, Err(LedgerError::NotAllowed(_)))
            | (Fault::ReportsAnotherTransaction, Ok(_))
            | (Fault::TakesVouchersForNothing, Err(LedgerError::Voucher(_))) => Ok(MADE_UP),
            (_, result) => result,
        }
    }

    async fn settle(&self, settlement: &Settlement) -> Result<PaymentRef, LedgerError> {
        let quote = &settlement.quote;
        let status = self.ledger.status(quote.client, quote.request_id).await?;
        match (self.fault, self.ledger.settle(settlement).await, status) {
            (Fault::TakesOthersCompletionForOnes, Err(_), PaymentStatus::PaidOut { by, .. }) => Ok(by),
            (_, result, _) => result,
        }
    }

    async fn refund(&self, quote: &Quote, consent: Option<&Signature>) -> Result<PaymentRef, LedgerError> {
        match (self.fault, self.ledger.refund(quote, consent).await) {
            (Fault::RefundsEarly, Err(LedgerError::NotRefundable(_))) => Ok(MADE_UP),
            (_, result) => result,
        }
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        match (self.fault, self.ledger.status(client, request_id).await) {
            (Fault::ForgetsRefunds, Ok(PaymentStatus::Refunded { .. })) => Ok(PaymentStatus::Unpaid),
            (_, result) => result,
        }
    }

    async fn changes(&self, from_block: u64) -> Result<PaymentChanges, LedgerError> {
        self.ledger.changes(from_block).await
    }

    async fn cooperative_close(&self, terms: &ChannelParams) -> Result<(Amount, Signature), LedgerError> {
        match (self.fault, self.ledger.cooperative_close(terms).await) {
            (Fault::ClosesOthersChannels, Err(LedgerError::NotAllowed(_))) => {
                let signature = Signature::sign(&B256::ZERO, &*self.signer).await;
                Ok((Amount::ZERO, signature.map_err(|error| LedgerError::NotAllowed(error.to_string()))?))
            }
            (_, result) => result,
        }
    }
}

/// Pays in a wrong way.
struct BrokenPayer {
    payer: Arc<dyn Payer>,
    fault: Fault,
}

#[async_trait]
impl Payer for BrokenPayer {
    fn account(&self) -> Address {
        self.payer.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.payer.trust(epoch).await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.payer.now().await
    }

    async fn pay(&self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        match (self.fault, self.payer.pay(quote).await) {
            (Fault::EscrowsForAnyone, Err(LedgerError::NotAllowed(_))) => Ok(MADE_UP),
            (Fault::PaysAgain, Ok(_)) => Ok(PaymentRef::Transaction(B256::random())),
            (_, result) => result,
        }
    }

    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        match (self.fault, self.payer.status(quote).await) {
            (Fault::ForgetsPayments, Ok(PaymentStatus::Held { .. })) => Ok(PaymentStatus::Unpaid),
            (_, result) => result,
        }
    }

    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        match self.fault {
            Fault::ReclaimsNothing => self.payer.status(quote).await,
            _ => self.payer.reclaim(quote).await,
        }
    }

    async fn check(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        let checked = self.payer.check(receipt).await;
        if self.fault == Fault::BelievesReceipts { Ok(()) } else { checked }
    }

    async fn release(&self, quote: &Quote, cost: Option<Amount>) {
        self.payer.release(quote, cost).await;
    }
}

/// Settles batches in a wrong way.
struct BrokenSettler {
    chain: Arc<MemoryChain>,
    settler: Arc<dyn BatchSettler>,
    fault: Fault,
}

#[async_trait]
impl ChainView for BrokenSettler {
    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.settler.trust(epoch).await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.settler.now().await
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        self.settler.status(client, request_id).await
    }

    async fn channel(&self, id: B256) -> Result<Option<Channel>, LedgerError> {
        self.settler.channel(id).await
    }

    async fn channel_payouts(&self, account: Address, from_block: Option<u64>) -> Result<(Amount, u64), LedgerError> {
        self.settler.channel_payouts(account, from_block).await
    }

    async fn charged_root(&self, channel: B256, settled_before: Amount) -> Result<Option<B256>, LedgerError> {
        self.settler.charged_root(channel, settled_before).await
    }

    async fn subnet_owner(&self, subnet: B256) -> Result<Option<Address>, LedgerError> {
        self.settler.subnet_owner(subnet).await
    }

    async fn stake(&self, validator: Address) -> Result<Amount, LedgerError> {
        self.settler.stake(validator).await
    }
}

#[async_trait]
impl BatchSettler for BrokenSettler {
    async fn settle_batch(&self, batch: &CertifiedBatch) -> Result<B256, LedgerError> {
        let charge = batch.settlement.charges[0];
        let charged = self.settler.channel(charge.channel).await?.is_some_and(|channel| channel.settled >= charge.settled_after);
        match (self.fault, self.settler.settle_batch(batch).await) {
            (Fault::PaysBatchesTwice, Ok(transaction)) if charged => {
                batch.settlement.payouts.iter().for_each(|payout| self.chain.mint(payout.account, payout.amount));
                Ok(transaction)
            }
            (Fault::TakesOtherBatchesForDone, Err(_)) if charged => Ok(B256::ZERO),
            (_, result) => result,
        }
    }
}

struct BrokenChain(Scene, Fault);

#[async_trait]
impl ChainFixture for BrokenChain {
    async fn mint(&self, account: &DynSigner, tokens: Amount) {
        self.0.mint(account, tokens).await;
    }

    async fn settler(&self, signer: DynSigner) -> Arc<dyn BatchSettler> {
        let settler = self.0.settler(signer).await;
        Arc::new(BrokenSettler { chain: self.0.chain.clone(), settler, fault: self.1 })
    }

    async fn fund_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelParams,
        deposit: Amount,
        expiry: UnixTime,
    ) -> Result<B256, LedgerError> {
        match (self.1, self.0.fund_channel(signer, terms, deposit, expiry).await) {
            (Fault::OpensAnew, Ok(_)) => Ok(B256::random()),
            (_, result) => result,
        }
    }

    async fn close_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelParams,
        agreement: Option<Signature>,
    ) -> Result<B256, LedgerError> {
        let known = self.0.chain.ledger(signer.clone()).channel(terms.id()).await?;
        match (self.1, self.0.close_channel(signer, terms, agreement).await) {
            (Fault::ClosesForAnyone, Err(LedgerError::Channel { .. })) if known.is_some() => Ok(B256::ZERO),
            (_, result) => result,
        }
    }

    fn validators(&self) -> Vec<DynSigner> {
        self.0.validators()
    }

    async fn advance(&self, seconds: u64) {
        self.0.advance(seconds).await;
    }
}

#[async_trait]
impl LedgerFixture for BrokenChain {
    fn chain(&self) -> &dyn ChainFixture {
        self
    }

    async fn ledger(&self, signer: DynSigner) -> Arc<dyn PaymentLedger> {
        let ledger = self.0.ledger(signer.clone()).await;
        Arc::new(BrokenLedger { ledger, signer, fault: self.1 })
    }
}

#[async_trait]
impl PayerFixture for BrokenChain {
    fn gateways(&self) -> &dyn LedgerFixture {
        &self.0
    }

    async fn payer(&self, signer: DynSigner, purse: Amount, gateway: &Arc<dyn PaymentLedger>) -> Arc<dyn Payer> {
        let payer = self.0.payer(signer, purse, gateway).await;
        Arc::new(BrokenPayer { payer, fault: self.1 })
    }

    fn sees_chain(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn broken_ledgers_are_caught() {
    let caught = [
        (Fault::AcceptsAnySignature, "an authorization pays its own quote"),
        (Fault::ReportsAnotherTransaction, "everyone sees the escrow and its transaction"),
        (Fault::RefundsEarly, "before expiry only the gateway gives back"),
        (Fault::ForgetsRefunds, "a refunded request is refunded"),
        (Fault::TakesOthersCompletionForOnes, "another completion is not taken for this one"),
        (Fault::TakesVouchersForNothing, "a voucher that is taken is what pays"),
        (Fault::ClosesOthersChannels, "only a channel's gateway closes it"),
    ];
    for (fault, rule) in caught {
        let violation = conformance::ledger(&BrokenChain(Scene::new(), fault)).await.unwrap_err();
        assert_eq!(violation.rule, rule, "{fault:?}: {violation}");
    }
}

#[tokio::test]
async fn broken_payers_are_caught() {
    let caught = [
        (Fault::EscrowsForAnyone, "nobody pays for another"),
        (Fault::PaysAgain, "what a client pays, its gateway holds"),
        (Fault::ForgetsPayments, "what is paid is held"),
        (Fault::BelievesReceipts, "a voucher is no escrow"),
        (Fault::ReclaimsNothing, "what is not taken back is said to be held"),
    ];
    for (fault, rule) in caught {
        let violation = conformance::payer(&BrokenChain(Scene::new(), fault)).await.unwrap_err();
        assert_eq!(violation.rule, rule, "{fault:?}: {violation}");
    }
}

#[tokio::test]
async fn broken_settlers_are_caught() {
    let caught = [
        (Fault::OpensAnew, "opening again is the same transaction"),
        (Fault::PaysBatchesTwice, "a batch is paid once"),
        (Fault::TakesOtherBatchesForDone, "another settlement of the same requests is not the same"),
        (Fault::ClosesForAnyone, "a stranger closes no channel"),
    ];
    for (fault, rule) in caught {
        let violation = conformance::chain(&BrokenChain(Scene::new(), fault)).await.unwrap_err();
        assert_eq!(violation.rule, rule, "{fault:?}: {violation}");
    }
}

/// An executor that does not check its inputs.
struct CarelessExecutor(EchoExecutor);

#[async_trait]
impl Executor for CarelessExecutor {
    fn formats(&self) -> Vec<ModelFormat> {
        self.0.formats()
    }

    fn confinement(&self, digest: &B256) -> Confinement {
        self.0.confinement(digest)
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
