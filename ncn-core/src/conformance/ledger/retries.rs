//! Answers that are lost, and callers that begin again: whatever happens in between, money moves once.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use futures::future::BoxFuture;

use super::{PRICE, Scene, times};
use crate::{
    Amount, Authorisation, Channel, ChannelTerms, DynSigner, EscrowState, LedgerError, PaymentLedger, Quote, RequestId, Settlement,
    Signature, TrustRoot, UnixTime,
    channel::CertifiedBatch,
    conformance::{Rules, Violation},
    ledger::LedgerEvents,
};

/// A ledger that carries everything out, and whose first answer of each kind does not arrive.
struct LosesAnswers {
    ledger: Arc<dyn PaymentLedger>,
    lost: Mutex<BTreeSet<&'static str>>,
}

impl LosesAnswers {
    fn answer(&self, call: &'static str, answer: Result<B256, LedgerError>) -> Result<B256, LedgerError> {
        let first = self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(call);
        if first { Err(LedgerError::Unreachable("the answer is lost".into())) } else { answer }
    }
}

#[async_trait]
impl PaymentLedger for LosesAnswers {
    fn account(&self) -> Address {
        self.ledger.account()
    }

    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        self.ledger.trust_root().await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.ledger.now().await
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        self.ledger.balance(owner).await
    }

    async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError> {
        self.answer("escrow", self.ledger.escrow(quote).await)
    }

    async fn settle(&self, settlement: &Settlement) -> Result<B256, LedgerError> {
        self.answer("settle", self.ledger.settle(settlement).await)
    }

    async fn refund(&self, quote: &Quote) -> Result<B256, LedgerError> {
        self.answer("refund", self.ledger.refund(quote).await)
    }

    async fn escrow_state(&self, client: Address, request_id: RequestId) -> Result<EscrowState, LedgerError> {
        self.ledger.escrow_state(client, request_id).await
    }

    async fn events(&self, from_block: u64) -> Result<LedgerEvents, LedgerError> {
        self.ledger.events(from_block).await
    }

    async fn accept(&self, quote: &Quote, authorisation: &Authorisation) -> Result<B256, LedgerError> {
        self.answer("accept", self.ledger.accept(quote, authorisation).await)
    }

    async fn channel(&self, id: B256) -> Result<Option<Channel>, LedgerError> {
        self.ledger.channel(id).await
    }

    async fn fund_channel(&self, terms: &ChannelTerms, deposit: Amount, expiry: UnixTime) -> Result<B256, LedgerError> {
        self.answer("fund", self.ledger.fund_channel(terms, deposit, expiry).await)
    }

    async fn settle_batch(&self, batch: &CertifiedBatch) -> Result<B256, LedgerError> {
        self.answer("settle a batch", self.ledger.settle_batch(batch).await)
    }

    async fn close_channel(&self, terms: &ChannelTerms, agreement: Option<Signature>) -> Result<B256, LedgerError> {
        self.answer("close", self.ledger.close_channel(terms, agreement).await)
    }
}

/// One account: its ledger, and the one that it has after a restart.
struct Account {
    losing: LosesAnswers,
    resumed: Arc<dyn PaymentLedger>,
}

impl Account {
    async fn new(scene: &Scene<'_>, signer: &DynSigner, ledger: &Arc<dyn PaymentLedger>) -> Self {
        let losing = LosesAnswers { ledger: ledger.clone(), lost: Mutex::default() };
        Self { losing, resumed: scene.fixture.account(signer.clone(), Amount::ZERO).await }
    }

    /// Calls without getting an answer, again after a restart, and again.
    async fn insists<'a>(
        &'a self,
        rules: &mut Rules,
        rule: &'static str,
        call: impl Fn(&'a dyn PaymentLedger) -> BoxFuture<'a, Result<B256, LedgerError>>,
    ) -> Result<(), Violation> {
        let lost = call(&self.losing).await;
        rules.check("a lost answer is worth another try", lost.as_ref().is_err_and(LedgerError::is_retryable), lost)?;
        let transaction = rules.ok(rule, call(&*self.resumed).await)?;
        let again = call(&self.losing).await;
        rules.check(rule, again == Ok(transaction), (transaction, again))
    }
}

pub(super) async fn escrows(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let client = Account::new(scene, &scene.client, &scene.paying).await;
    let gateway = Account::new(scene, &scene.gateway, &scene.settling).await;
    let (served, failed) = (scene.quote().await?, scene.quote().await?);
    let authorisation = scene.authorisation(&failed).await;
    let settlement = scene.settlement(&served, scene.threshold()).await;

    client.insists(rules, "an escrow resumes", |ledger| ledger.escrow(&served)).await?;
    gateway.insists(rules, "an authorisation resumes", |ledger| ledger.accept(&failed, &authorisation)).await?;
    has(rules, scene, times(8)).await?;
    gateway.insists(rules, "a refund resumes", |ledger| ledger.refund(&failed)).await?;
    has(rules, scene, times(9)).await?;
    gateway.insists(rules, "a settlement resumes", |ledger| ledger.settle(&settlement)).await?;
    let share = scene.balance(&scene.gateway).await;
    rules.check("a lost answer moves money once", share == Amount::new(PRICE.units() / 10), share)
}

pub(super) async fn channels(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let client = Account::new(scene, &scene.client, &scene.paying).await;
    let gateway = Account::new(scene, &scene.gateway, &scene.settling).await;
    let (terms, expiry) = (scene.terms(), scene.now().await? + super::LIFETIME);
    let batch = scene.requests(&terms, 1, 2).await?;
    let batch = scene.certified(batch, &[(&terms, Amount::ZERO)], scene.threshold()).await;

    client.insists(rules, "the opening of a channel resumes", |ledger| ledger.fund_channel(&terms, times(4), expiry)).await?;
    has(rules, scene, times(6)).await?;
    let client = Account::new(scene, &scene.client, &scene.paying).await;
    client.insists(rules, "a top-up resumes", |ledger| ledger.fund_channel(&terms, times(5), expiry)).await?;
    has(rules, scene, times(5)).await?;
    gateway.insists(rules, "the settlement of a batch resumes", |ledger| ledger.settle_batch(&batch)).await?;
    let share = scene.balance(&scene.gateway).await;
    rules.check("a lost answer moves money once", share == Amount::new(PRICE.units() / 10 * 2), share)?;
    gateway.insists(rules, "the closing of a channel resumes", |ledger| ledger.close_channel(&terms, None)).await?;
    has(rules, scene, times(8)).await
}

async fn has(rules: &mut Rules, scene: &Scene<'_>, wanted: Amount) -> Result<(), Violation> {
    let has = scene.balance(&scene.client).await;
    rules.check("a lost answer moves money once", has == wanted, (wanted, has))
}
