//! A chain's provider that is behind, or that refuses.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use ncn_client::evm::EvmLedger;
use ncn_core::{
    Address, Amount, B256, BatchSettler, ChainView, Channel, ChannelParams, LedgerError, PaymentAuthorization, PaymentChanges,
    PaymentLedger, PaymentRef, PaymentStatus, Quote, RequestId, Settlement, Signature, TrustHistory, UnixTime,
    channel::CertifiedBatch,
};

/// A chain as a provider shows it that is behind for some channels, or refuses some settlements.
pub(crate) struct Provider {
    pub(crate) chain: Arc<EvmLedger>,
    pub(crate) stale: Mutex<HashMap<B256, Channel>>,
    /// How many settlements of batches are refused from now on.
    pub(crate) refusals: AtomicUsize,
}

impl Provider {
    pub(crate) fn new(chain: Arc<EvmLedger>, refusals: usize) -> Self {
        Self { chain, stale: Mutex::default(), refusals: refusals.into() }
    }
}

#[async_trait]
impl PaymentLedger for Provider {
    fn account(&self) -> Address {
        self.chain.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        ChainView::trust(&*self.chain, epoch).await
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        self.chain.balance(owner).await
    }

    async fn redeem(&self, quote: &Quote, authorization: &PaymentAuthorization) -> Result<PaymentRef, LedgerError> {
        self.chain.redeem(quote, authorization).await
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        self.chain.payment(client, request_id).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<PaymentRef, LedgerError> {
        self.chain.settle(settlement).await
    }

    async fn refund(&self, quote: &Quote, consent: Option<&Signature>) -> Result<PaymentRef, LedgerError> {
        PaymentLedger::refund(&*self.chain, quote, consent).await
    }

    async fn changes(&self, from_block: u64) -> Result<PaymentChanges, LedgerError> {
        self.chain.changes(from_block).await
    }

    async fn cooperative_close(&self, terms: &ChannelParams) -> Result<(Amount, Signature), LedgerError> {
        self.chain.cooperative_close(terms).await
    }
}

#[async_trait]
impl ChainView for Provider {
    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        ChainView::trust(&*self.chain, epoch).await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.chain.now().await
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        self.chain.payment(client, request_id).await
    }

    async fn subnet_owner(&self, subnet: B256) -> Result<Option<Address>, LedgerError> {
        self.chain.subnet_owner(subnet).await
    }

    async fn stake(&self, validator: Address) -> Result<Amount, LedgerError> {
        ChainView::stake(&*self.chain, validator).await
    }

    async fn channel_payouts(&self, account: Address, from_block: Option<u64>) -> Result<(Amount, u64), LedgerError> {
        self.chain.channel_payouts(account, from_block).await
    }

    async fn charged_root(&self, channel: B256, settled_before: Amount) -> Result<Option<B256>, LedgerError> {
        self.chain.charged_root(channel, settled_before).await
    }

    async fn channel(&self, id: B256) -> Result<Option<Channel>, LedgerError> {
        let stale = self.stale.lock().unwrap().get(&id).copied();
        if stale.is_some() { Ok(stale) } else { self.chain.channel(id).await }
    }
}

#[async_trait]
impl BatchSettler for Provider {
    async fn settle_batch(&self, batch: &CertifiedBatch) -> Result<B256, LedgerError> {
        let refuse = self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if refuse.is_ok() { Err(LedgerError::Reverted("for the test".into())) } else { self.chain.settle_batch(batch).await }
    }
}
