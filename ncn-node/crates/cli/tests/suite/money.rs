//! Every way to pay, and every ledger of a gateway, keeps its trait's contract: on each kind of chain, around it, and by signature.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use ncn_client::{
    ChannelPayer, PayerChannel, RelayedPayer,
    evm::{EvmLedger, JsonRpc, RpcOptions},
};
use ncn_core::{
    Address, Amount, B256, BatchSettler, ChannelParams, DynSigner, LedgerError, ModelInfo, NetworkInfo, Outcome, Payer,
    PaymentConfirmation, PaymentLedger, PaymentStatus, PaymentSubmission, Quote, RequestId, Signature, Signed, State, Submission,
    TaskCapability, TaskStatus, Ticket, Transport, TransportError, TrustHistory, UnixTime,
    conformance::{self, ChainFixture, LedgerFixture, PayerFixture},
    transport::Updates,
};
use ncn_devnet::{EmbeddedChain, RpcServer};
use ncn_node::channel::{BatchPolicy, ChannelProcessor};

use crate::{
    anvil::{Anvil, FAST, Remote},
    scene::{Behavior, Chain, InProcess},
};

/// A chain with the network's contracts.
#[async_trait]
pub(crate) trait Contracts: Send + Sync {
    fn deployer(&self) -> &EvmLedger;

    fn validators(&self) -> Vec<DynSigner>;

    /// Gives an account what it takes to send transactions.
    async fn prepare(&self, account: Address);

    /// Lets the chain's time pass.
    async fn pass(&self, seconds: u64);

    /// A new account with these tokens.
    async fn account(&self, signer: DynSigner, tokens: Amount) -> Arc<EvmLedger> {
        self.prepare(signer.address()).await;
        self.deployer().transfer(signer.address(), tokens).await.unwrap();
        Arc::new(self.deployer().with_signer(signer))
    }
}

/// The money of a chain, as the suites need it.
struct OnChain<C>(C);

#[async_trait]
impl<C: Contracts> ChainFixture for OnChain<C> {
    async fn mint(&self, account: &DynSigner, tokens: Amount) {
        self.0.account(account.clone(), tokens).await;
    }

    async fn settler(&self, signer: DynSigner) -> Arc<dyn BatchSettler> {
        Arc::new(self.0.deployer().with_signer(signer))
    }

    async fn fund_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelParams,
        deposit: Amount,
        expiry: UnixTime,
    ) -> Result<B256, LedgerError> {
        self.0.deployer().with_signer(signer).fund_channel(terms, deposit, expiry).await
    }

    async fn close_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelParams,
        agreement: Option<Signature>,
    ) -> Result<B256, LedgerError> {
        self.0.deployer().with_signer(signer).close_channel(terms, agreement).await
    }

    fn validators(&self) -> Vec<DynSigner> {
        self.0.validators()
    }

    async fn advance(&self, seconds: u64) {
        self.0.pass(seconds).await;
    }
}

#[async_trait]
impl<C: Contracts> LedgerFixture for OnChain<C> {
    fn chain(&self) -> &dyn ChainFixture {
        self
    }

    async fn ledger(&self, signer: DynSigner) -> Arc<dyn PaymentLedger> {
        Arc::new(self.0.deployer().with_signer(signer))
    }
}

#[async_trait]
impl<C: Contracts> PayerFixture for OnChain<C> {
    fn gateways(&self) -> &dyn LedgerFixture {
        self
    }

    async fn payer(&self, signer: DynSigner, purse: Amount, _: &Arc<dyn PaymentLedger>) -> Arc<dyn Payer> {
        self.0.account(signer, purse).await
    }

    fn sees_chain(&self) -> bool {
        true
    }
}

/// Runs the suites of a gateway's ledger, a client's payer and a chain's view, on one chain.
async fn keeps_the_contracts(chain: impl Contracts) {
    let chain = OnChain(chain);
    let rules = conformance::ledger(&chain).await.unwrap();
    assert!(rules.len() > 30, "{rules:?}");
    let rules = conformance::payer(&chain).await.unwrap();
    assert!(rules.len() > 20, "{rules:?}");
    let rules = conformance::chain(&chain).await.unwrap();
    assert!(rules.len() > 30, "{rules:?}");
}

#[tokio::test]
async fn the_embedded_chain() {
    keeps_the_contracts(Chain::new(7).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_chain_over_json_rpc() {
    let server = RpcServer::start(Arc::new(EmbeddedChain::new(31_337)), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let options = RpcOptions { poll: FAST, ..RpcOptions::default() };
    let backend = Arc::new(JsonRpc::connect(&[server.url()], None, options).await.unwrap());
    keeps_the_contracts(Remote::new(&server.url(), backend).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anvil() {
    let anvil = Anvil::start(&[]);
    let backend = anvil.backend(RpcOptions { poll: FAST, ..RpcOptions::default() }).await;
    keeps_the_contracts(Remote::new(&anvil.url, backend).await).await;
}

/// Gateways that take vouchers: a processor around the chain for each of them.
struct Processed {
    network: InProcess,
    chain: OnChain<Chain>,
    directory: tempfile::TempDir,
    ledgers: Mutex<HashMap<Address, ChannelProcessor>>,
}

impl Processed {
    async fn new() -> Self {
        let network = InProcess::new(&[Behavior::Honest; 5]).await;
        let chain = OnChain(network.chain.clone());
        Self { network, chain, directory: tempfile::tempdir().unwrap(), ledgers: Mutex::default() }
    }
}

#[async_trait]
impl LedgerFixture for Processed {
    fn chain(&self) -> &dyn ChainFixture {
        &self.chain
    }

    async fn ledger(&self, signer: DynSigner) -> Arc<dyn PaymentLedger> {
        let open = || {
            let (chain, registry) = (self.network.chain.ledger(signer.clone()), self.network.registry.clone());
            let path = self.directory.path().join(signer.address().to_string());
            ChannelProcessor::open(chain, registry, signer.clone(), &path, BatchPolicy::default()).unwrap()
        };
        // A file has one owner: the same signer again gets the same processor.
        Arc::new(self.ledgers.lock().unwrap().entry(signer.address()).or_insert_with(open).clone())
    }
}

#[tokio::test]
async fn the_channel_processor() {
    let processed = Processed::new().await;
    let rules = conformance::ledger(&processed).await.unwrap();
    assert!(rules.contains(&"a captured voucher is earned, and not paid out before it is charged"), "{rules:?}");
}

/// The part of a gateway that redeems what clients sign, for any quote that it is asked to pay.
struct Cashier {
    ledger: Arc<dyn PaymentLedger>,
    quotes: Arc<Mutex<HashMap<RequestId, Quote>>>,
}

#[async_trait]
impl Transport for Cashier {
    async fn tickets(&self, _: u32) -> Result<Vec<Ticket>, TransportError> {
        Err(TransportError::Refused("a cashier takes no orders".into()))
    }

    async fn submit(&self, _: Submission) -> Result<TaskStatus, TransportError> {
        Err(TransportError::Refused("a cashier takes no orders".into()))
    }

    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError> {
        let quote = self.quotes.lock().unwrap().get(&confirmation.request_id).cloned();
        let quote = quote.ok_or(TransportError::UnknownTask(confirmation.request_id))?;
        let PaymentSubmission::Authorization(authorization) = confirmation.proof else { return Ok(()) };
        let redeemed = self.ledger.redeem(&quote, &authorization).await;
        redeemed.map(drop).map_err(|error| match error {
            LedgerError::VoucherTooLow { cumulative, needed } => TransportError::VoucherTooLow { cumulative, needed },
            error => TransportError::invalid("payment", error.to_string()),
        })
    }

    async fn updates(&self, access: Signed<TaskCapability>, _: u64) -> Result<Updates, TransportError> {
        Err(TransportError::UnknownTask(access.message.request_id))
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        let quote = self.quotes.lock().unwrap().get(&request_id).cloned().ok_or(TransportError::UnknownTask(request_id))?;
        let status =
            self.ledger.status(quote.client, request_id).await.map_err(|error| TransportError::Internal(error.to_string()))?;
        let state = match status {
            PaymentStatus::Unpaid => State::AwaitingPayment,
            PaymentStatus::Held { .. } => State::Executing,
            PaymentStatus::GivenUp { .. } => State::Refunding,
            PaymentStatus::Earned { .. } | PaymentStatus::PaidOut { .. } => State::Ended(Outcome::Completed),
            PaymentStatus::Refunded { .. } => State::Ended(Outcome::Refunded),
        };
        Ok(TaskStatus { request_id, state, quote: Some(quote), preprocessing: None, failure: None })
    }

    async fn cancel(&self, access: Signed<TaskCapability>) -> Result<(), TransportError> {
        Err(TransportError::UnknownTask(access.message.request_id))
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        Ok(Vec::new())
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        let trust_root = self.ledger.trust_root().await.map_err(|error| TransportError::Internal(error.to_string()))?;
        Ok(NetworkInfo { gateway: self.ledger.account(), trust_root, model_sources: Vec::new(), least_relayed: Amount::ZERO })
    }

    async fn close_channel(&self, _: ChannelParams, _: Signed<TaskCapability>) -> Result<(Amount, Signature), TransportError> {
        Err(TransportError::Refused("a cashier closes nothing".into()))
    }
}

/// How the clients of a processor's gateways sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Transfer,
    Voucher,
}

/// Clients that sign, at a gateway with a cashier; with a chain to look at or without.
struct Signing {
    gateways: Processed,
    by: By,
    chain: bool,
    quotes: Arc<Mutex<HashMap<RequestId, Quote>>>,
    channels: Mutex<HashMap<Address, Arc<PayerChannel>>>,
}

/// Lets the cashier know the quotes that its client is asked to pay, as a gateway knows its own.
struct Quoting {
    payer: Box<dyn Payer>,
    quotes: Arc<Mutex<HashMap<RequestId, Quote>>>,
}

#[async_trait]
impl Payer for Quoting {
    fn account(&self) -> Address {
        self.payer.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.payer.trust(epoch).await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.payer.now().await
    }

    async fn pay(&self, quote: &Quote) -> Result<ncn_core::PaymentRef, LedgerError> {
        self.quotes.lock().unwrap().insert(quote.request_id, quote.clone());
        self.payer.pay(quote).await
    }

    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        self.payer.status(quote).await
    }

    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        self.payer.reclaim(quote).await
    }

    async fn check(&self, receipt: &ncn_core::Receipt) -> Result<(), LedgerError> {
        self.payer.check(receipt).await
    }

    async fn release(&self, quote: &Quote, cost: Option<Amount>) {
        self.payer.release(quote, cost).await;
    }
}

#[async_trait]
impl PayerFixture for Signing {
    fn gateways(&self) -> &dyn LedgerFixture {
        &self.gateways
    }

    async fn payer(&self, signer: DynSigner, purse: Amount, gateway: &Arc<dyn PaymentLedger>) -> Arc<dyn Payer> {
        self.gateways.chain.mint(&signer, purse).await;
        let (trust, quotes) = (gateway.trust_root().await.unwrap(), self.quotes.clone());
        let transport = Arc::new(Cashier { ledger: gateway.clone(), quotes: quotes.clone() });
        let chain = self.gateways.network.chain.ledger(signer.clone());
        if self.by == By::Transfer {
            let payer = RelayedPayer::new(transport, trust, signer).with_chain(self.chain.then_some(chain as _));
            return Arc::new(Quoting { payer: Box::new(payer), quotes });
        }
        let known = self.channels.lock().unwrap().get(&signer.address()).cloned();
        let channel = match known {
            Some(channel) => channel,
            None => {
                let terms = ChannelParams { client: signer.address(), gateway: gateway.account(), salt: B256::random() };
                let expiry = chain.now().await.unwrap() + 24 * 3_600;
                chain.fund_channel(&terms, purse, expiry).await.unwrap();
                let channel = Arc::new(PayerChannel::new(terms, purse, expiry));
                self.channels.lock().unwrap().insert(signer.address(), channel.clone());
                channel
            }
        };
        let payer = ChannelPayer::new(transport, trust, signer, channel).with_chain(self.chain.then_some(chain as _));
        Arc::new(Quoting { payer: Box::new(payer), quotes })
    }

    fn sees_chain(&self) -> bool {
        self.chain
    }
}

async fn pays_by(by: By, chain: bool) {
    let fixture = Signing { gateways: Processed::new().await, by, chain, quotes: Arc::default(), channels: Mutex::default() };
    let rules = conformance::payer(&fixture).await.unwrap_or_else(|violation| panic!("{by:?}, chain {chain}: {violation}"));
    assert!(rules.len() > 20, "{rules:?}");
}

#[tokio::test]
async fn the_relayed_payer() {
    pays_by(By::Transfer, false).await;
    pays_by(By::Transfer, true).await;
}

#[tokio::test]
async fn the_channel_payer() {
    pays_by(By::Voucher, false).await;
    pays_by(By::Voucher, true).await;
}
