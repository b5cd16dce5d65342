use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use alloy_primitives::{Address, B256, keccak256};
use async_trait::async_trait;
use futures::{StreamExt as _, stream};

use super::channels::Channels;
use crate::{
    Amount, BatchSettler, ChainView, Channel, ChannelParams, DynSigner, LedgerError, Message as _, Payer, PaymentAuthorization,
    PaymentChange, PaymentChanges, PaymentLedger, PaymentRef, PaymentStatus, PayoutSchedule, Quote, Receipt, RequestId, Settlement,
    Signature, TaskCapability, TrustHistory, TrustRoot, UnixTime,
    channel::{CertifiedBatch, VoucherError, escrow_digest},
    ledger::sign_close,
    message::subnet_id,
    receipt::Payment,
    trust::{Quorum, Tenure},
    validation::{self, CLAIM_SECONDS},
};

/// The contracts' rules in a few lines of Rust: a chain of one transaction a block, shared by the ledgers that look at it.
#[derive(Debug)]
pub struct MemoryChain {
    state: Mutex<Ledger>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// The network as it is now.
    pub(super) trust: TrustRoot,
    tenures: Vec<Tenure>,
    pub(super) now: UnixTime,
    /// How many transactions there were.
    blocks: u64,
    balances: HashMap<Address, Amount>,
    escrows: HashMap<(Address, RequestId), PaymentStatus>,
    pub(super) channels: Channels,
    /// Their owners, by id.
    subnets: HashMap<B256, Address>,
    changes: Vec<PaymentChange>,
    waiting: Vec<Waker>,
}

impl MemoryChain {
    /// An empty chain of the network `trust`, at this time.
    pub fn new(trust: TrustRoot, now: UnixTime) -> Arc<Self> {
        let member = |validator: &Address| Tenure { validator: *validator, from: 1, until: UnixTime::MAX };
        let ledger = Ledger {
            tenures: trust.validators.iter().map(member).collect(),
            trust,
            now,
            blocks: 0,
            balances: HashMap::new(),
            escrows: HashMap::new(),
            channels: Channels::default(),
            subnets: HashMap::new(),
            changes: Vec::new(),
            waiting: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(ledger) })
    }

    /// Makes tokens out of nothing.
    pub fn mint(&self, owner: Address, amount: Amount) {
        let mut ledger = self.lock();
        ledger.credit(owner, amount);
    }

    /// Lets time pass.
    pub fn advance(&self, seconds: u64) {
        self.lock().now += seconds;
    }

    /// Who judges from the next second on.
    pub fn set_validators(&self, validators: &[Address]) {
        let mut ledger = self.lock();
        let next = ledger.now + 1;
        for tenure in ledger.tenures.iter_mut().filter(|tenure| !validators.contains(&tenure.validator)) {
            tenure.until = tenure.until.min(next);
        }
        for validator in validators {
            let stays = |tenure: &Tenure| tenure.validator == *validator && tenure.until > next;
            if !ledger.tenures.iter().any(stays) {
                ledger.tenures.push(Tenure { validator: *validator, from: next, until: UnixTime::MAX });
            }
        }
        ledger.now = next;
        ledger.trust = ledger.read().current().trust.clone();
    }

    /// The chain as this account sees it.
    pub fn ledger(self: &Arc<Self>, signer: DynSigner) -> MemoryLedger {
        MemoryLedger { chain: self.clone(), signer }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn read(&self) -> TrustHistory {
        let TrustRoot { threshold, committee_size, .. } = self.trust;
        let quorum = Quorum { since: 1, threshold, committee_size };
        TrustHistory::new(self.now, self.trust.clone(), self.tenures.clone(), vec![quorum])
    }

    fn history(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        if self.now < epoch {
            return Err(LedgerError::Unreachable(format!("the chain is not at {epoch} yet")));
        }
        Ok(Arc::new(self.read()))
    }

    fn balance(&self, owner: Address) -> Amount {
        self.balances.get(&owner).copied().unwrap_or_default()
    }

    pub(super) fn credit(&mut self, owner: Address, amount: Amount) {
        let balance = self.balances.entry(owner).or_default();
        *balance = [*balance, amount].into_iter().sum();
    }

    pub(super) fn debit(&mut self, owner: Address, needed: Amount) -> Result<(), LedgerError> {
        let balance = self.balance(owner);
        let rest = balance.checked_sub(needed).ok_or(LedgerError::InsufficientFunds { owner, balance, needed })?;
        self.balances.insert(owner, rest);
        Ok(())
    }

    /// The next block, and the transaction that it is made of.
    pub(super) fn mine(&mut self) -> (u64, B256) {
        let block = self.blocks;
        self.blocks += 1;
        (block, keccak256(block.to_be_bytes()))
    }

    fn payment(&self, quote: &Quote) -> PaymentStatus {
        self.escrows.get(&(quote.client, quote.request_id)).cloned().unwrap_or(PaymentStatus::Unpaid)
    }

    /// Moves a request on by a transaction of its own.
    fn transact(&mut self, quote: &Quote, status: impl FnOnce(PaymentRef) -> PaymentStatus) -> PaymentRef {
        let (block, transaction) = self.mine();
        let by = PaymentRef::Transaction(transaction);
        let status = status(by.clone());
        self.escrows.insert((quote.client, quote.request_id), status.clone());
        self.changes.push(PaymentChange { client: quote.client, request_id: quote.request_id, status, block });
        self.waiting.drain(..).for_each(Waker::wake);
        by
    }

    /// Escrows a quote that its client agrees to.
    fn escrow(&mut self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        let hash = quote.struct_hash();
        match self.payment(quote) {
            PaymentStatus::Unpaid => {}
            PaymentStatus::Held { quote, by } if quote == hash => return Ok(by),
            other => return Err(LedgerError::WrongState { request_id: quote.request_id, actual: other.to_string() }),
        }
        validation::payable(quote, self.now)?;
        self.debit(quote.client, quote.total)?;
        Ok(self.transact(quote, |by| PaymentStatus::Held { quote: hash, by }))
    }

    /// The escrow of exactly this quote, or why there is none.
    fn escrowed(&self, quote: &Quote) -> Result<(), LedgerError> {
        match self.payment(quote) {
            PaymentStatus::Held { quote: hash, .. } | PaymentStatus::GivenUp { quote: hash, .. } if hash == quote.struct_hash() => {
                Ok(())
            }
            other => Err(LedgerError::WrongState { request_id: quote.request_id, actual: other.to_string() }),
        }
    }
}

/// A [`MemoryChain`], as one account sees it.
#[derive(Clone)]
pub struct MemoryLedger {
    chain: Arc<MemoryChain>,
    signer: DynSigner,
}

#[async_trait]
impl PaymentLedger for MemoryLedger {
    fn account(&self) -> Address {
        self.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.chain.lock().history(epoch)
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        Ok(self.chain.lock().balance(owner))
    }

    async fn redeem(&self, quote: &Quote, authorization: &PaymentAuthorization) -> Result<PaymentRef, LedgerError> {
        let PaymentAuthorization::Transfer(signature) = authorization else { return Err(VoucherError::not_taken().into()) };
        let mut ledger = self.chain.lock();
        let signed = signature.verify(&escrow_digest(&ledger.trust, quote), quote.client);
        signed.map_err(|error| LedgerError::NotAllowed(format!("transfer: {error}")))?;
        ledger.escrow(quote)
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        Ok(self.payment(client, request_id))
    }

    async fn settle(&self, settlement: &Settlement) -> Result<PaymentRef, LedgerError> {
        let Settlement { quote, committee, completion, certificate, .. } = settlement;
        let mut ledger = self.chain.lock();
        if let Some(by) = ledger.payment(quote).settled_for(completion.struct_hash()) {
            return Ok(by.clone());
        }
        ledger.escrowed(quote)?;
        let claimable_until = quote.expiry + CLAIM_SECONDS;
        if ledger.now > claimable_until {
            return Err(LedgerError::Expired(claimable_until));
        }
        if committee.struct_hash() != quote.committee {
            return Err(LedgerError::Certificate("committee: is another one than the quote's".into()));
        }
        let trust = ledger.trust.clone();
        certificate
            .verify(&completion.digest(&trust.domain), committee)
            .map_err(|error| LedgerError::Certificate(error.to_string()))?;
        let tree = PayoutSchedule::new(quote, completion, &certificate.validators(), trust.treasury)
            .map_err(|error| LedgerError::Reverted(error.to_string()))?;
        let above = || LedgerError::Reverted(format!("cost: {} is more than the total of {}", tree.total, quote.total));
        let rest = quote.total.checked_sub(tree.total).ok_or_else(above)?;
        for payout in tree.payouts {
            ledger.credit(payout.address, payout.amount);
        }
        ledger.credit(quote.client, rest);
        Ok(ledger.transact(quote, |by| PaymentStatus::PaidOut { by, completion: Some(completion.struct_hash()) }))
    }

    async fn refund(&self, quote: &Quote, consent: Option<&Signature>) -> Result<PaymentRef, LedgerError> {
        let mut ledger = self.chain.lock();
        if let PaymentStatus::Refunded { by } = ledger.payment(quote) {
            return Ok(by);
        }
        ledger.escrowed(quote)?;
        let (now, is_gateway) = (ledger.now, self.account() == quote.gateway);
        let end = |from: UnixTime| from.min(quote.expiry) + CLAIM_SECONDS + 1;
        let given_up = match ledger.payment(quote) {
            PaymentStatus::GivenUp { refundable_at, .. } => Some(refundable_at),
            _ => None,
        };
        let agreed = if let Some(consent) = consent.filter(|_| is_gateway) {
            let signed = consent.verify(&TaskCapability::cancel(quote).digest(&ledger.trust.domain), quote.client);
            signed.map_err(|error| LedgerError::NotAllowed(format!("consent: {error}")))?;
            true
        } else {
            given_up.is_some() && self.account() == quote.client
        };
        let mut refundable_at = given_up.unwrap_or_else(|| end(quote.expiry));
        if !agreed && now < refundable_at {
            if given_up.is_none() && is_gateway {
                refundable_at = end(now);
                let hash = quote.struct_hash();
                ledger.transact(quote, |_| PaymentStatus::GivenUp { quote: hash, refundable_at });
            }
            return Err(LedgerError::NotRefundable(refundable_at));
        }
        ledger.credit(quote.client, quote.total);
        Ok(ledger.transact(quote, |by| PaymentStatus::Refunded { by }))
    }

    async fn changes(&self, from_block: u64) -> Result<PaymentChanges, LedgerError> {
        let chain = self.chain.clone();
        let mut next = chain.lock().changes.partition_point(|change| change.block < from_block);
        let changes = stream::poll_fn(move |context| {
            let mut ledger = chain.lock();
            let Some(change) = ledger.changes.get(next).cloned() else {
                ledger.waiting.push(context.waker().clone());
                return Poll::Pending;
            };
            next += 1;
            Poll::Ready(Some(Ok(change)))
        });
        Ok(changes.boxed())
    }

    async fn cooperative_close(&self, terms: &ChannelParams) -> Result<(Amount, Signature), LedgerError> {
        sign_close(self, terms, &self.signer).await
    }
}

#[async_trait]
impl Payer for MemoryLedger {
    fn account(&self) -> Address {
        self.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.chain.lock().history(epoch)
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        Ok(self.now())
    }

    async fn pay(&self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        if quote.client != self.account() {
            return Err(LedgerError::NotAllowed("client: only the client itself can escrow for its request".into()));
        }
        self.chain.lock().escrow(quote)
    }

    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        Ok(self.payment(quote.client, quote.request_id))
    }

    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        Ok(PaymentStatus::Refunded { by: self.refund(quote, None).await? })
    }

    async fn check(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        let refuse = |problem: String| Err(LedgerError::NotAllowed(format!("payment: {problem}")));
        let Payment::Escrow { transaction, settlement } = receipt.payment else {
            return refuse("is a channel's, and the chain is to hold an escrow".into());
        };
        let (client, request_id) = (receipt.quote.client, receipt.request_id());
        self.payment(client, request_id).check_settled(settlement, receipt.completion.struct_hash())?;
        let quote = receipt.quote.struct_hash();
        let escrowed = self.chain.lock().changes.iter().any(|change| {
            (change.client, change.request_id) == (client, request_id)
                && change.status.payment_of(quote) == Some(&PaymentRef::Transaction(transaction))
        });
        if escrowed { Ok(()) } else { refuse(format!("was not escrowed by {transaction}")) }
    }

    async fn release(&self, _: &Quote, _: Option<Amount>) {}
}

#[async_trait]
impl ChainView for MemoryLedger {
    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.chain.lock().history(epoch)
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        Ok(self.now())
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        Ok(self.payment(client, request_id))
    }

    async fn channel(&self, id: B256) -> Result<Option<Channel>, LedgerError> {
        Ok(self.chain.lock().channels.get(id))
    }

    async fn channel_payouts(&self, account: Address, from_block: Option<u64>) -> Result<(Amount, u64), LedgerError> {
        let ledger = self.chain.lock();
        let from = from_block.unwrap_or(ledger.blocks);
        Ok((ledger.channels.paid_to(account, from), from.max(ledger.blocks)))
    }

    async fn charged_root(&self, channel: B256, settled_before: Amount) -> Result<Option<B256>, LedgerError> {
        Ok(self.chain.lock().channels.charged_root(channel, settled_before))
    }

    async fn subnet_owner(&self, subnet: B256) -> Result<Option<Address>, LedgerError> {
        Ok(self.chain.lock().subnets.get(&subnet).copied())
    }

    async fn stake(&self, _: Address) -> Result<Amount, LedgerError> {
        // Its validators are said, and stake nothing.
        Ok(Amount::ZERO)
    }
}

#[async_trait]
impl BatchSettler for MemoryLedger {
    async fn settle_batch(&self, batch: &CertifiedBatch) -> Result<B256, LedgerError> {
        self.chain.lock().settle_batch(self.account(), batch)
    }
}

impl MemoryLedger {
    /// Whose account it is.
    pub fn account(&self) -> Address {
        self.signer.address()
    }

    /// The network.
    pub fn trust_root(&self) -> TrustRoot {
        self.chain.lock().trust.clone()
    }

    /// The chain's time.
    pub fn now(&self) -> UnixTime {
        self.chain.lock().now
    }

    /// Where a request's payment is.
    pub fn payment(&self, client: Address, request_id: RequestId) -> PaymentStatus {
        self.chain.lock().escrows.get(&(client, request_id)).cloned().unwrap_or(PaymentStatus::Unpaid)
    }

    /// Brings the deposit of this account's channel up to `deposit`, opening it when there is none, and its expiry to `expiry`.
    pub fn fund_channel(&self, terms: &ChannelParams, deposit: Amount, expiry: UnixTime) -> Result<B256, LedgerError> {
        self.chain.lock().fund_channel(self.account(), terms, deposit, expiry)
    }

    /// Gives the rest of a deposit back to its client: for its gateway, and for whoever has the gateway's signature over a
    /// [`crate::ChannelClose`], at any time; for anyone after the expiry.
    pub fn close_channel(&self, terms: &ChannelParams, agreement: Option<Signature>) -> Result<B256, LedgerError> {
        self.chain.lock().close_channel(self.account(), terms, agreement)
    }

    /// Creates this account's subnet of this name.
    pub fn create_subnet(&self, name: &str) {
        let id = subnet_id(self.account(), name);
        self.chain.lock().subnets.insert(id, self.account());
    }
}
