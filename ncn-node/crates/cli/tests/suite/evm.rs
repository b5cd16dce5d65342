//! The ledger behind JSON-RPC when things go wrong: on the embedded chain's server, and on anvil.

mod endpoints;
mod finality;
mod foreign;
mod proxy;
mod refusals;
mod sending;

use std::{
    slice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use alloy_primitives::{Address, B256, TxKind, U64, U128, U256};
use alloy_sol_types::SolCall;
use futures::{StreamExt as _, future::join_all};
use ncn_client::evm::{
    Call, EvmBackend as _, EvmError, EvmLedger, EvmReader as _, InferencePayment, JsonRpc, LogFilter, PaymentChannel, RpcOptions,
    SendOptions, ValidatorRegistry,
};
use ncn_core::{
    Amount, ChainView, ChannelParams, DynSigner, LedgerError, Message as _, PaymentAuthorization, PaymentChange, PaymentChanges,
    PaymentLedger, PaymentRef, PaymentStatus, Quote,
};
use ncn_devnet::{EmbeddedChain, RpcServer};
use proxy::Proxy;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    anvil::{Anvil, FAST, Remote, ask},
    money::Contracts as _,
    scene::{flat_quote, key, tokens},
    wait::{TIMEOUT, eventually, in_time},
};

const CHAIN_ID: u64 = 31_337;
const POLLS: RpcOptions = RpcOptions { confirmations: 1, poll: FAST, timeout: TIMEOUT, first_block: 0, log_range: 5_000 };

fn hasty() -> SendOptions {
    SendOptions { bump_after: Duration::from_millis(300), timeout: TIMEOUT, ..SendOptions::default() }
}

enum Node {
    Embedded(Arc<EmbeddedChain>, #[allow(dead_code, reason = "it serves as long as it is there")] RpcServer),
    Anvil(#[allow(dead_code, reason = "it runs as long as it is there")] Anvil),
}

/// A chain behind JSON-RPC with the contracts on it.
struct Scene {
    node: Node,
    url: String,
    remote: Remote,
}

impl Scene {
    async fn embedded() -> Self {
        let chain = Arc::new(EmbeddedChain::new(CHAIN_ID));
        let server = serve(&chain).await;
        let url = server.url();
        Self::new(Node::Embedded(chain, server), url).await
    }

    async fn anvil() -> Self {
        let anvil = Anvil::start(&[]);
        let url = anvil.url.clone();
        Self::new(Node::Anvil(anvil), url).await
    }

    async fn new(node: Node, url: String) -> Self {
        let backend = Arc::new(JsonRpc::connect(slice::from_ref(&url), Some(CHAIN_ID), POLLS).await.unwrap());
        let remote = Remote::new(&url, backend).await;
        Self { node, url, remote }
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        ask(&self.url, method, params).await
    }

    async fn mine(&self) {
        self.ask("evm_mine", json!([])).await;
    }

    /// A block every 50 ms from now on, of whatever waits.
    async fn mines_regularly(&self) -> AbortOnDropHandle<()> {
        self.ask("evm_setAutomine", json!([false])).await;
        let url = self.url.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                ask(&url, "evm_mine", json!([])).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }))
    }

    /// Other blocks for the newest, without what was in them.
    async fn reorg(&self, depth: u64) {
        match self.node {
            Node::Embedded(..) => self.ask("ncn_reorg", json!([depth, true])).await,
            Node::Anvil(_) => self.ask("anvil_reorg", json!([depth, []])).await,
        };
    }

    async fn fault(&self, mode: &str, count: u64, method: &str) {
        self.ask("ncn_fault", json!([{ "mode": mode, "count": count, "method": method }])).await;
    }

    /// An account with gas and tokens.
    async fn account(&self, tokens: Amount) -> DynSigner {
        let signer = key();
        self.remote.account(signer.clone(), tokens).await;
        signer
    }

    /// The contracts as another process would see them.
    async fn connect(&self, signer: &DynSigner, options: RpcOptions, send: SendOptions) -> EvmLedger {
        self.connect_by(slice::from_ref(&self.url), signer, options, send).await
    }

    async fn connect_by(&self, urls: &[String], signer: &DynSigner, options: RpcOptions, send: SendOptions) -> EvmLedger {
        let backend = Arc::new(JsonRpc::connect(urls, Some(CHAIN_ID), options).await.unwrap());
        EvmLedger::connect(backend, self.remote.deployer.deployment(), signer.clone(), send).await.unwrap()
    }

    async fn backend(&self) -> JsonRpc {
        JsonRpc::connect(slice::from_ref(&self.url), None, POLLS).await.unwrap()
    }

    async fn quote(&self, client: &DynSigner, total: Amount) -> Quote {
        let epoch = ChainView::trust(&self.remote.deployer, 0).await.unwrap().current().clone();
        let expiry = self.remote.deployer.now().await.unwrap() + 3_600;
        flat_quote(&epoch, B256::random(), [client.address(), Address::random(), Address::random()], total, expiry)
    }

    async fn balance(&self, owner: Address) -> Amount {
        self.remote.deployer.balance(owner).await.unwrap()
    }

    async fn state(&self, quote: &Quote) -> PaymentStatus {
        self.remote.deployer.payment(quote.client, quote.request_id).await.unwrap()
    }

    /// How many transactions of an account are in blocks, and with those that wait.
    async fn nonces(&self, account: Address) -> (u64, u64) {
        let count = async |tag: &str| number(&self.ask("eth_getTransactionCount", json!([account, tag])).await);
        (count("latest").await, count("pending").await)
    }

    /// Waits until so many transactions of an account wait.
    async fn until_pending(&self, account: Address, count: u64) {
        eventually("so many wait", async || {
            let (mined, pending) = self.nonces(account).await;
            pending - mined == count
        })
        .await;
    }

    /// What an account's waiting transaction offers for gas.
    async fn offer(&self, account: Address) -> u128 {
        let pool = self.ask("txpool_content", json!([])).await;
        let of = |(owner, waiting): (&String, &Value)| {
            let first = || waiting.as_object()?.values().next()?.get("maxFeePerGas").cloned();
            owner.eq_ignore_ascii_case(&account.to_string()).then(first).flatten()
        };
        let offer = pool["pending"].as_object().unwrap().iter().find_map(of).unwrap_or_default();
        serde_json::from_value(offer).map_or(0, |offer: U128| offer.to())
    }

    /// Why the chain would not do this, in the ledger's words.
    async fn refusal(&self, from: &DynSigner, to: Address, call: impl SolCall) -> LedgerError {
        let call = Call { from: from.address(), to: TxKind::Call(to), input: call.abi_encode().into() };
        self.backend().await.estimate(&call).await.unwrap_err().into()
    }
}

async fn serve(chain: &Arc<EmbeddedChain>) -> RpcServer {
    RpcServer::start(chain.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap()
}

fn number(value: &Value) -> u64 {
    serde_json::from_value::<U64>(value.clone()).unwrap().to()
}

/// The next events of a stream.
async fn next(events: &mut PaymentChanges, count: usize) -> Vec<PaymentChange> {
    in_time("there are that many events", events.take(count).map(Result::unwrap).collect()).await
}

fn escrowing(ledger: &Arc<EvmLedger>, quote: &Quote) -> JoinHandle<Result<B256, LedgerError>> {
    let (ledger, quote) = (ledger.clone(), quote.clone());
    tokio::spawn(async move { ledger.escrow(&quote).await })
}

fn transferring(ledger: &Arc<EvmLedger>, to: Address) -> JoinHandle<Result<B256, LedgerError>> {
    let ledger = ledger.clone();
    tokio::spawn(async move { ledger.transfer(to, tokens(1)).await })
}
