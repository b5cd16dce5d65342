//! A network in memory.

use std::sync::Arc;

use alloy_signer_local::PrivateKeySigner;
use async_trait::async_trait;
use ncn_core::{
    Address, Amount, B256, BatchSettler, ChannelParams, Domain, DynSigner, Epoch, LedgerError, Payer, PaymentLedger, Quote,
    Registry, Signature, TrustRoot, UnixTime,
    conformance::{ChainFixture, LedgerFixture, PayerFixture, RegistryFixture},
    memory::{MemoryChain, MemoryRegistry},
};

pub(crate) const NOW: UnixTime = 1_800_000_000;

pub(crate) fn key() -> DynSigner {
    Arc::new(PrivateKeySigner::random())
}

pub(crate) struct Scene {
    pub(crate) trust: TrustRoot,
    pub(crate) validators: Vec<DynSigner>,
    pub(crate) chain: Arc<MemoryChain>,
    pub(crate) registry: Arc<dyn Registry>,
}

impl Scene {
    /// Seven validators, of whom three of five judge.
    pub(crate) fn new() -> Self {
        let validators: Vec<DynSigner> = (0..7).map(|_| key()).collect();
        let mut addresses: Vec<Address> = validators.iter().map(|validator| validator.address()).collect();
        addresses.sort_unstable();
        let trust = TrustRoot {
            domain: Domain { chain_id: 31_337, contract: Address::repeat_byte(0xcc) },
            token: Address::repeat_byte(0xa1),
            channels: Address::repeat_byte(0xa2),
            validators: addresses,
            threshold: 3,
            committee_size: 5,
            treasury: Address::repeat_byte(0xdd),
        };
        let chain = MemoryChain::new(trust.clone(), NOW);
        let registry = Arc::new(MemoryRegistry::new(trust.clone(), validators.clone(), Arc::new(|| NOW)));
        Self { trust, validators, chain, registry }
    }
}

#[async_trait]
impl ChainFixture for Scene {
    async fn mint(&self, account: &DynSigner, tokens: Amount) {
        self.chain.mint(account.address(), tokens);
    }

    async fn settler(&self, signer: DynSigner) -> Arc<dyn BatchSettler> {
        Arc::new(self.chain.ledger(signer))
    }

    async fn fund_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelParams,
        deposit: Amount,
        expiry: UnixTime,
    ) -> Result<B256, LedgerError> {
        self.chain.ledger(signer).fund_channel(terms, deposit, expiry)
    }

    async fn close_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelParams,
        agreement: Option<Signature>,
    ) -> Result<B256, LedgerError> {
        self.chain.ledger(signer).close_channel(terms, agreement)
    }

    fn validators(&self) -> Vec<DynSigner> {
        self.validators.clone()
    }

    async fn advance(&self, seconds: u64) {
        self.chain.advance(seconds);
    }
}

#[async_trait]
impl LedgerFixture for Scene {
    fn chain(&self) -> &dyn ChainFixture {
        self
    }

    async fn ledger(&self, signer: DynSigner) -> Arc<dyn PaymentLedger> {
        Arc::new(self.chain.ledger(signer))
    }
}

#[async_trait]
impl PayerFixture for Scene {
    fn gateways(&self) -> &dyn LedgerFixture {
        self
    }

    async fn payer(&self, signer: DynSigner, purse: Amount, _: &Arc<dyn PaymentLedger>) -> Arc<dyn Payer> {
        self.mint(&signer, purse).await;
        Arc::new(self.chain.ledger(signer))
    }

    fn sees_chain(&self) -> bool {
        true
    }
}

#[async_trait]
impl RegistryFixture for Scene {
    fn registry(&self) -> &dyn Registry {
        &*self.registry
    }

    async fn epoch(&self) -> Epoch {
        Epoch { since: 1, trust: self.trust.clone() }
    }

    fn now(&self) -> UnixTime {
        NOW
    }

    async fn pay(&self, _: &DynSigner, _: &Quote) {}
}
