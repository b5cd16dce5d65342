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
    Amount, Authorisation, BatchSettler, ChainView, Channel, ChannelTerms, EscrowState, LedgerError, LedgerEvent, Message as _,
    PaymentLedger, PaymentTree, Quote, RequestId, Settlement, Signature, TrustRoot, UnixTime,
    channel::{CertifiedBatch, escrow_digest},
    ledger::LedgerEvents,
    message::subnet_id,
    validation::MAX_ESCROW_SECONDS,
};

/// The contracts' rules in a few lines of Rust: a chain of one transaction a block, shared by the ledgers that look at it.
#[derive(Debug)]
pub struct MemoryChain {
    state: Mutex<Ledger>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) trust: TrustRoot,
    pub(super) now: UnixTime,
    /// How many transactions there were.
    blocks: u64,
    balances: HashMap<Address, Amount>,
    escrows: HashMap<(Address, RequestId), EscrowState>,
    pub(super) channels: Channels,
    /// Their owners, by id.
    subnets: HashMap<B256, Address>,
    events: Vec<LedgerEvent>,
    waiting: Vec<Waker>,
}

impl MemoryChain {
    /// An empty chain of the network `trust`, at this time.
    pub fn new(trust: TrustRoot, now: UnixTime) -> Arc<Self> {
        let ledger = Ledger {
            trust,
            now,
            blocks: 0,
            balances: HashMap::new(),
            escrows: HashMap::new(),
            channels: Channels::default(),
            subnets: HashMap::new(),
            events: Vec::new(),
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

    /// The chain as `account` sees it.
    pub fn ledger(self: &Arc<Self>, account: Address) -> MemoryLedger {
        MemoryLedger { chain: self.clone(), account }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
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

    fn escrow_state(&self, quote: &Quote) -> EscrowState {
        self.escrows.get(&(quote.client, quote.request_id)).copied().unwrap_or(EscrowState::None)
    }

    /// Moves a request on by a transaction of its own.
    fn transact(&mut self, quote: &Quote, state: impl FnOnce(B256) -> EscrowState) -> B256 {
        let (block, transaction) = self.mine();
        let state = state(transaction);
        self.escrows.insert((quote.client, quote.request_id), state);
        self.events.push(LedgerEvent { client: quote.client, request_id: quote.request_id, state, block });
        self.waiting.drain(..).for_each(Waker::wake);
        transaction
    }

    /// Escrows a quote that its client agrees to.
    fn escrow(&mut self, quote: &Quote) -> Result<B256, LedgerError> {
        let hash = quote.struct_hash();
        match self.escrow_state(quote) {
            EscrowState::None => {}
            EscrowState::Escrowed { quote, transaction } if quote == hash => return Ok(transaction),
            other => return Err(LedgerError::WrongState { request_id: quote.request_id, actual: format!("{other:?}") }),
        }
        let invalid = |field: &str, problem: &str| Err(LedgerError::InvalidQuote { field: field.into(), problem: problem.into() });
        if quote.total.is_zero() {
            return invalid("total", "is zero");
        }
        if quote.gateway == Address::ZERO || quote.compute == Address::ZERO {
            return invalid("gateway, compute", "must not be zero");
        }
        if !quote.split.is_valid() {
            return invalid("split", "is more than the whole");
        }
        if quote.expiry <= self.now || quote.expiry - self.now > MAX_ESCROW_SECONDS {
            return invalid("expiry", "has to be in the future, and within a week");
        }
        self.debit(quote.client, quote.total)?;
        Ok(self.transact(quote, |transaction| EscrowState::Escrowed { quote: hash, transaction }))
    }

    /// The escrow of exactly this quote, or why there is none.
    fn escrowed(&self, quote: &Quote) -> Result<(), LedgerError> {
        match self.escrow_state(quote) {
            EscrowState::Escrowed { quote: hash, .. } if hash == quote.struct_hash() => Ok(()),
            other => Err(LedgerError::WrongState { request_id: quote.request_id, actual: format!("{other:?}") }),
        }
    }
}

/// A [`MemoryChain`], as one account sees it.
#[derive(Clone, Debug)]
pub struct MemoryLedger {
    chain: Arc<MemoryChain>,
    account: Address,
}

#[async_trait]
impl PaymentLedger for MemoryLedger {
    fn account(&self) -> Address {
        self.account
    }

    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        ChainView::trust_root(self).await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        ChainView::now(self).await
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        Ok(self.chain.lock().balance(owner))
    }

    async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError> {
        if quote.client != self.account {
            return Err(LedgerError::NotAllowed("client: only the client itself can escrow for its request".into()));
        }
        self.chain.lock().escrow(quote)
    }

    async fn accept(&self, quote: &Quote, authorisation: &Authorisation) -> Result<B256, LedgerError> {
        let Authorisation::Transfer(signature) = authorisation else {
            return Err(LedgerError::Unsupported("keep vouchers: pay into escrow"));
        };
        let mut ledger = self.chain.lock();
        let signed = signature.verify(&escrow_digest(&ledger.trust, quote), quote.client);
        signed.map_err(|error| LedgerError::NotAllowed(format!("transfer: {error}")))?;
        ledger.escrow(quote)
    }

    async fn settle(&self, settlement: &Settlement) -> Result<B256, LedgerError> {
        let Settlement { quote, certificate, .. } = settlement;
        let completion = settlement.completion();
        let mut ledger = self.chain.lock();
        if let Some(transaction) = ledger.escrow_state(quote).settled_for(completion.compute) {
            return Ok(transaction);
        }
        ledger.escrowed(quote)?;
        if self.account != quote.gateway {
            return Err(LedgerError::NotAllowed("gateway: only the quote's gateway can settle".into()));
        }
        if ledger.now > quote.expiry {
            return Err(LedgerError::Expired(quote.expiry));
        }
        let trust = ledger.trust.clone();
        certificate
            .verify(&completion.digest(&trust.domain), &quote.request_id, &trust)
            .map_err(|error| LedgerError::Certificate(error.to_string()))?;
        let tree = PaymentTree::new(quote, completion.compute, &certificate.validators(), trust.treasury)
            .map_err(|error| LedgerError::Reverted(error.to_string()))?;
        for payout in tree.payouts {
            ledger.credit(payout.address, payout.amount);
        }
        Ok(ledger.transact(quote, |transaction| EscrowState::Completed { transaction, compute: Some(completion.compute) }))
    }

    async fn refund(&self, quote: &Quote) -> Result<B256, LedgerError> {
        let mut ledger = self.chain.lock();
        if let EscrowState::Refunded { transaction } = ledger.escrow_state(quote) {
            return Ok(transaction);
        }
        ledger.escrowed(quote)?;
        if ledger.now <= quote.expiry && self.account != quote.gateway {
            return Err(LedgerError::NotExpired(quote.expiry));
        }
        ledger.credit(quote.client, quote.total);
        Ok(ledger.transact(quote, |transaction| EscrowState::Refunded { transaction }))
    }

    async fn escrow_state(&self, client: Address, request_id: RequestId) -> Result<EscrowState, LedgerError> {
        ChainView::escrow_state(self, client, request_id).await
    }

    async fn events(&self, from_block: u64) -> Result<LedgerEvents, LedgerError> {
        let chain = self.chain.clone();
        let mut next = chain.lock().events.partition_point(|event| event.block < from_block);
        let events = stream::poll_fn(move |context| {
            let mut ledger = chain.lock();
            let Some(event) = ledger.events.get(next).copied() else {
                ledger.waiting.push(context.waker().clone());
                return Poll::Pending;
            };
            next += 1;
            Poll::Ready(Some(Ok(event)))
        });
        Ok(events.boxed())
    }
}

#[async_trait]
impl ChainView for MemoryLedger {
    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        Ok(self.chain.lock().trust.clone())
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        Ok(self.chain.lock().now)
    }

    async fn escrow_state(&self, client: Address, request_id: RequestId) -> Result<EscrowState, LedgerError> {
        Ok(self.chain.lock().escrows.get(&(client, request_id)).copied().unwrap_or(EscrowState::None))
    }

    async fn channel(&self, id: B256) -> Result<Option<Channel>, LedgerError> {
        Ok(self.chain.lock().channels.get(id))
    }

    async fn charged_root(&self, channel: B256, settled_before: Amount) -> Result<Option<B256>, LedgerError> {
        Ok(self.chain.lock().channels.charged_root(channel, settled_before))
    }

    async fn has_stake(&self, account: Address) -> Result<bool, LedgerError> {
        Ok(self.chain.lock().trust.validators.contains(&account))
    }

    async fn subnet_owner(&self, subnet: B256) -> Result<Option<Address>, LedgerError> {
        Ok(self.chain.lock().subnets.get(&subnet).copied())
    }
}

#[async_trait]
impl BatchSettler for MemoryLedger {
    async fn settle_batch(&self, batch: &CertifiedBatch) -> Result<B256, LedgerError> {
        self.chain.lock().settle_batch(self.account, batch)
    }
}

impl MemoryLedger {
    /// Brings the deposit of this account's channel up to `deposit`, opening it when there is none, and its expiry to `expiry`.
    pub fn fund_channel(&self, terms: &ChannelTerms, deposit: Amount, expiry: UnixTime) -> Result<B256, LedgerError> {
        self.chain.lock().fund_channel(self.account, terms, deposit, expiry)
    }

    /// Gives the rest of a deposit back to its client: for its gateway, and for whoever has the gateway's signature over a
    /// [`crate::ChannelClose`], at any time; for anyone after the expiry.
    pub fn close_channel(&self, terms: &ChannelTerms, agreement: Option<Signature>) -> Result<B256, LedgerError> {
        self.chain.lock().close_channel(self.account, terms, agreement)
    }

    /// Creates this account's subnet of this name.
    pub fn create_subnet(&self, name: &str) {
        let id = subnet_id(self.account, name);
        self.chain.lock().subnets.insert(id, self.account);
    }
}
