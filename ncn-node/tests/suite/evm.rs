//! The ledger behind JSON-RPC when things go wrong: on the embedded chain's server, and on anvil.

mod proxy;

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
    Amount, ChannelParams, DynSigner, FeeSplit, LedgerError, Message as _, PaymentAuthorization, PaymentChange, PaymentChanges,
    PaymentLedger, PaymentRef, PaymentStatus, Quote,
};
use ncn_node::devnet::{EmbeddedChain, RpcServer};
use proxy::Proxy;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    anvil::{Anvil, FAST, Remote, ask},
    money::Contracts as _,
    scene::{key, tokens},
    wait::{PATIENCE, eventually, in_time},
};

const CHAIN_ID: u64 = 31_337;
const POLLS: RpcOptions = RpcOptions { confirmations: 1, poll: FAST, timeout: PATIENCE, first_block: 0, log_range: 5_000 };

fn hasty() -> SendOptions {
    SendOptions { bump_after: Duration::from_millis(300), timeout: PATIENCE, ..SendOptions::default() }
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
        Quote {
            request_id: B256::random(),
            client: client.address(),
            gateway: Address::random(),
            compute: Address::random(),
            model_digest: B256::random(),
            total,
            split: FeeSplit::default(),
            expiry: self.remote.deployer.now().await.unwrap() + 3_600,
            trust_root: self.remote.deployer.trust_root().await.unwrap().hash(),
        }
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

async fn pays_from_everywhere_at_once(scene: &Scene) {
    let account = scene.account(tokens(40)).await;
    let here = scene.connect(&account, POLLS, hasty()).await;
    let there = scene.connect(&account, POLLS, hasty()).await;
    let handles = [here.with_signer(account.clone()), there.with_signer(account.clone()), here, there].map(Arc::new);
    let to = Address::random();
    let mut running = Vec::new();
    for n in 0..32 {
        let handle = &handles[n % 4];
        // Every handle does both.
        let escrow = n / 4 % 2 == 0;
        running.push(if escrow { escrowing(handle, &scene.quote(&account, tokens(1)).await) } else { transferring(handle, to) });
    }
    let mut hashes = Vec::new();
    for (n, done) in join_all(running).await.into_iter().enumerate() {
        hashes.push(done.unwrap().unwrap_or_else(|error| panic!("number {n}: {error}")));
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 32);
    assert_eq!(scene.nonces(account.address()).await, (32, 32), "no more transactions than there had to be, and no gap");
    assert_eq!((scene.balance(account.address()).await, scene.balance(to).await), (tokens(8), tokens(16)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_in_two_processes() {
    let scene = Scene::embedded().await;
    pays_from_everywhere_at_once(&scene).await;
    let _miner = scene.mines_regularly().await;
    pays_from_everywhere_at_once(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_in_two_processes_on_anvil() {
    let scene = Scene::anvil().await;
    pays_from_everywhere_at_once(&scene).await;
    let _miner = scene.mines_regularly().await;
    pays_from_everywhere_at_once(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_given_up_leaves_no_gap() {
    let scene = Scene::embedded().await;
    let account = scene.account(tokens(9)).await;
    let stuck = Arc::new(AtomicBool::new(true));
    let loses = stuck.clone();
    // Not even handed on.
    let proxy = Proxy::before(&scene.url, move |method| method == "eth_sendRawTransaction" && loses.load(Ordering::Relaxed)).await;
    let ledger = Arc::new(scene.connect_by(&[proxy.url()], &account, POLLS, hasty()).await);
    let to = Address::random();
    let (first, second) = (transferring(&ledger, to), transferring(&ledger, to));
    let handed_in = || proxy.count("eth_sendRawTransaction");
    eventually("both were refused", async || handed_in() >= 4).await;
    first.abort();
    let _ = first.await;
    // What it was handing in at that moment has come to its end as well, once the other one was refused a few times more.
    let before = handed_in();
    eventually("the other one goes on", async || handed_in() >= before + 4).await;
    stuck.store(false, Ordering::Relaxed);
    let third = transferring(&ledger, to);
    second.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    assert_eq!((scene.nonces(account.address()).await, scene.balance(to).await), ((2, 2), tokens(2)));
}

async fn base_fee(scene: &Scene) -> u128 {
    let block = scene.ask("eth_getBlockByNumber", json!(["latest", false])).await;
    serde_json::from_value::<U128>(block["baseFeePerGas"].clone()).unwrap().to()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_transaction_is_bumped_up_to_the_limit() {
    let scene = Scene::anvil().await;
    let account = scene.account(tokens(9)).await;
    let rises = async |to: u128| {
        scene.ask("anvil_setNextBlockBaseFeePerGas", json!([U128::from(to)])).await;
        scene.mine().await;
    };
    scene.ask("evm_setAutomine", json!([false])).await;
    rises(1_000_000_000).await;
    let ledger = Arc::new(scene.connect(&account, POLLS, hasty()).await);
    let to = Address::random();
    let transfer = transferring(&ledger, to);
    scene.until_pending(account.address(), 1).await;
    let first = scene.offer(account.address()).await;
    // Far above twice what was offered.
    rises(20_000_000_000).await;
    assert_eq!(scene.nonces(account.address()).await.0, 0, "it is not in the block");
    eventually("more is offered", async || scene.offer(account.address()).await > first).await;
    // Now and then there is a block; in each, gas is an eighth cheaper.
    eventually("it is taken", async || {
        scene.mine().await;
        tokio::time::sleep(hasty().bump_after).await;
        transfer.is_finished()
    })
    .await;
    let hash = transfer.await.unwrap().unwrap();
    let sent = scene.ask("eth_getTransactionByHash", json!([hash])).await;
    let offer: U128 = serde_json::from_value(sent["maxFeePerGas"].clone()).unwrap();
    assert!(offer.to::<u128>() > 5_000_000_000, "it is a replacement: {sent}");
    for _ in 0..3 {
        scene.mine().await;
    }
    assert_eq!((scene.nonces(account.address()).await, scene.balance(to).await), ((1, 1), tokens(1)), "it landed once");

    // What is too dear at once is not sent.
    let limit = base_fee(&scene).await / 2;
    let frugal = SendOptions { max_fee_per_gas: limit, timeout: Duration::from_secs(10), ..hasty() };
    let ledger = Arc::new(scene.connect(&account, POLLS, frugal).await);
    let refused = ledger.transfer(to, tokens(1)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Unreachable(_)), "{refused:?}");
    let says = format!("the limit is {limit}: wait, or raise the limit");
    assert!(refused.to_string().contains(&says), "{refused}");
    assert_eq!(scene.nonces(account.address()).await, (1, 1));

    // What becomes too dear waits, and whoever waited hears why.
    rises(limit / 2).await;
    let transfer = transferring(&ledger, to);
    scene.until_pending(account.address(), 1).await;
    rises(limit * 3).await;
    let refused = transfer.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("was not taken within 10s") && refused.to_string().contains(&says), "{refused}");
    assert_eq!(scene.balance(to).await, tokens(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_waits_at_its_price_when_there_is_no_coin_for_more() {
    let scene = Scene::embedded().await;
    // Gas is free here, and the account has no coin at all.
    let account = key();
    scene.remote.deployer.transfer(account.address(), tokens(1)).await.unwrap();
    scene.ask("evm_setAutomine", json!([false])).await;
    let impatient = SendOptions { bump_after: Duration::from_millis(20), ..hasty() };
    let ledger = Arc::new(scene.connect(&account, POLLS, impatient).await);
    let to = Address::random();
    let transfer = transferring(&ledger, to);
    scene.until_pending(account.address(), 1).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!transfer.is_finished());
    }
    scene.mine().await;
    transfer.await.unwrap().unwrap();
    assert_eq!(scene.balance(to).await, tokens(1));
}

async fn waits_for_three_blocks(scene: &Scene) {
    let client = scene.account(tokens(1)).await;
    scene.ask("evm_setAutomine", json!([false])).await;
    scene.ask("anvil_mine", json!(["0x3"])).await;
    let careful = RpcOptions { confirmations: 3, ..POLLS };
    let ledger = Arc::new(scene.connect(&client, careful, hasty()).await);
    let quote = scene.quote(&client, tokens(1)).await;
    let final_state = async || ledger.payment(quote.client, quote.request_id).await.unwrap();
    let escrow = escrowing(&ledger, &quote);
    scene.until_pending(client.address(), 1).await;
    for _ in 0..2 {
        scene.mine().await;
        tokio::time::sleep(FAST * 10).await;
        assert!(!escrow.is_finished(), "not deep enough");
    }
    assert!(matches!(scene.state(&quote).await, PaymentStatus::Held { .. }), "the newest block has it");
    assert_eq!(final_state().await, PaymentStatus::Unpaid, "three blocks do not");
    assert_eq!(ledger.balance(client.address()).await.unwrap(), tokens(1));
    let told = async || ledger.changes(0).await.unwrap();
    assert!(tokio::time::timeout(FAST * 10, told().await.next()).await.is_err(), "nothing has happened yet");

    scene.reorg(2).await;
    assert_eq!(scene.state(&quote).await, PaymentStatus::Unpaid, "it is gone");
    scene.until_pending(client.address(), 1).await;
    for _ in 0..2 {
        scene.mine().await;
        tokio::time::sleep(FAST * 10).await;
        assert!(!escrow.is_finished(), "not deep enough after the reorganization");
    }
    scene.mine().await;
    let transaction = escrow.await.unwrap().unwrap();
    let escrowed = PaymentStatus::Held { quote: quote.struct_hash(), by: PaymentRef::Transaction(transaction) };
    assert_eq!((final_state().await, scene.nonces(client.address()).await), (escrowed.clone(), (1, 1)));
    assert_eq!(next(&mut told().await, 1).await[0].status, escrowed);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_confirmations_and_a_reorganization_before() {
    waits_for_three_blocks(&Scene::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_confirmations_and_a_reorganization_before_on_anvil() {
    waits_for_three_blocks(&Scene::anvil().await).await;
}

async fn notices_that_a_payment_disappears(scene: &Scene) {
    let client = scene.account(tokens(3)).await;
    let ledger = scene.connect(&client, POLLS, hasty()).await;
    let mut events = scene.connect(&key(), POLLS, hasty()).await.changes(0).await.unwrap();
    let (kept, dropped, later) =
        (scene.quote(&client, tokens(1)).await, scene.quote(&client, tokens(1)).await, scene.quote(&client, tokens(1)).await);
    ledger.escrow(&kept).await.unwrap();
    let first = ledger.escrow(&dropped).await.unwrap();
    let ids = |events: Vec<PaymentChange>| events.into_iter().map(|event| event.request_id).collect::<Vec<_>>();
    assert_eq!(ids(next(&mut events, 2).await), [kept.request_id, dropped.request_id]);

    scene.reorg(1).await;
    assert_eq!(ledger.payment(client.address(), dropped.request_id).await.unwrap(), PaymentStatus::Unpaid);
    assert_eq!(scene.balance(client.address()).await, tokens(2), "it was given back");
    ledger.escrow(&later).await.unwrap();
    // Told again from a block before: without what has disappeared.
    assert_eq!(ids(next(&mut events, 2).await), [kept.request_id, later.request_id]);
    // It can be paid again, and is.
    let again = ledger.escrow(&dropped).await.unwrap();
    let event = next(&mut events, 1).await.remove(0);
    assert_eq!(event.status, PaymentStatus::Held { quote: dropped.struct_hash(), by: PaymentRef::Transaction(again) });
    assert_ne!(again, first);
    assert_eq!(scene.balance(client.address()).await, Amount::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_disappears_is_noticed() {
    notices_that_a_payment_disappears(&Scene::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_disappears_is_noticed_on_anvil() {
    notices_that_a_payment_disappears(&Scene::anvil().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_on_after_a_restart() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(40)).await;
    let ledger = Arc::new(scene.connect(&client, POLLS, hasty()).await);
    // What was seen of the chain is old until it is looked at again, and few blocks of logs are told at once.
    let slow = RpcOptions { poll: Duration::from_millis(100), log_range: 2, ..POLLS };
    let mut following = scene.connect(&key(), slow, hasty()).await.changes(0).await.unwrap();
    // Followed while it happens: blocks come between any two questions.
    let following = tokio::spawn(async move { (next(&mut following, 30).await, following) });
    let mut quotes = Vec::new();
    for _ in 0..30 {
        let quote = scene.quote(&client, tokens(1)).await;
        ledger.escrow(&quote).await.unwrap();
        // Whoever pays and whoever asks see it at once.
        assert!(matches!(scene.state(&quote).await, PaymentStatus::Held { .. }));
        quotes.push(quote.request_id);
    }
    let (told, mut following) = following.await.unwrap();
    assert_eq!(told.iter().map(|event| event.request_id).collect::<Vec<_>>(), quotes, "none is lost, none told twice");

    let mut resumed = scene.connect(&key(), slow, hasty()).await.changes(told[19].block + 1).await.unwrap();
    assert_eq!(next(&mut resumed, 10).await, told[20..]);
    let quote = scene.quote(&client, tokens(1)).await;
    ledger.escrow(&quote).await.unwrap();
    for events in [&mut following, &mut resumed] {
        assert_eq!(next(events, 1).await[0].request_id, quote.request_id);
    }

    // An outage ends the stream with an error; it goes on from where it was.
    scene.fault("error", 1, "eth_getLogs").await;
    let last = scene.quote(&client, tokens(1)).await;
    ledger.refund(&last).await.unwrap_err();
    ledger.transfer(Address::random(), tokens(1)).await.unwrap();
    let ended = in_time("the stream ends", following.next()).await.unwrap();
    assert!(matches!(ended, Err(LedgerError::Unreachable(_))), "{ended:?}");
    let mut following = scene.connect(&key(), slow, hasty()).await.changes(told[29].block + 1).await.unwrap();
    assert_eq!(next(&mut following, 1).await[0].request_id, quote.request_id);
}

/// An address where nobody listens, nor will as long as this is there: it has the port.
struct Nobody(tokio::net::TcpSocket);

impl Nobody {
    fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_endpoint_is_asked() {
    let scene = Scene::embedded().await;
    let Node::Embedded(chain, _) = &scene.node else { unreachable!() };
    let client = scene.account(tokens(9)).await;
    let silent = serve(chain).await;
    ask(&silent.url(), "ncn_fault", json!([{ "mode": "timeout", "count": 1_000 }])).await;
    let failing = serve(chain).await;
    ask(&failing.url(), "ncn_fault", json!([{ "mode": "error", "count": 1_000 }])).await;
    let breaks = Proxy::answering(&scene.url, |_, answer| *answer = Value::Null).await;
    let babbles = Proxy::answering(&scene.url, |_, answer| answer["result"] = json!("0xgarbage")).await;
    let lies = Proxy::answering(&scene.url, |method, answer| {
        if method != "eth_chainId" {
            answer["result"] = json!({ "number": "0x1" });
        }
    })
    .await;
    let hasty_polls = RpcOptions { timeout: Duration::from_secs(5), ..POLLS };
    let nobody = Nobody::new();
    for (n, bad) in [nobody.url(), silent.url(), failing.url(), breaks.url(), babbles.url(), lies.url()].into_iter().enumerate() {
        let ledger = scene.connect_by(&[bad, scene.url.clone()], &client, hasty_polls, hasty()).await;
        let quote = scene.quote(&client, tokens(1)).await;
        ledger.escrow(&quote).await.unwrap_or_else(|error| panic!("{n}: {error}"));
        assert_eq!(scene.balance(client.address()).await, tokens(8 - n as u64));
    }

    // One that stops in the middle.
    let up = Arc::new(AtomicBool::new(true));
    let stops = up.clone();
    let first = Proxy::answering(&scene.url, move |_, answer| {
        if !stops.load(Ordering::Relaxed) {
            *answer = Value::Null;
        }
    })
    .await;
    let second = format!("{}/v3/secret?key=secret", nobody.url());
    let options = RpcOptions { timeout: Duration::from_secs(5), ..POLLS };
    let urls = [format!("{}/v3/secret?key=secret", first.url()), second.clone(), silent.url()];
    let ledger = scene.connect_by(&urls, &client, options, hasty()).await;
    up.store(false, Ordering::Relaxed);
    let all = [&first.url(), second.split("/v3").next().unwrap(), &silent.url()];
    let refused = ledger.balance(client.address()).await.unwrap_err().to_string();
    let unconnected = JsonRpc::connect(&urls, None, options).await.err().unwrap().to_string();
    for refused in [refused, unconnected] {
        assert!(all.iter().all(|origin| refused.contains(*origin)) && !refused.contains("secret"), "{refused}");
        assert!(refused.contains("HTTP status 500") && refused.contains("within 5s"), "{refused}");
    }
    let none = JsonRpc::connect(&[], None, options).await.err().unwrap().to_string();
    assert!(none.contains("none is given"), "{none}");
    for (url, problem) in [("127.0.0.1:1", "endpoint: is no URL"), ("ftp://127.0.0.1", "endpoint: begins with neither")] {
        let refused = JsonRpc::connect(&[url.into()], None, options).await.err().unwrap().to_string();
        assert!(refused.starts_with(problem), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_another_chain_is_asked_nothing() {
    let scene = Scene::embedded().await;
    let account = scene.account(tokens(1)).await;
    let other = serve(&Arc::new(EmbeddedChain::new(5))).await;
    let switched = Arc::new(AtomicBool::new(true));
    let switch = switched.clone();
    let foreign = Proxy::answering(&other.url(), move |_, answer| {
        if !switch.load(Ordering::Relaxed) {
            *answer = Value::Null;
        }
    })
    .await;
    let (good, bad) = (scene.url.clone(), foreign.url());
    let wrong = |expected, actual, endpoint: &str| Some(EvmError::WrongChain { endpoint: endpoint.into(), actual, expected });
    for (urls, chain_id) in [
        (vec![good.clone(), bad.clone()], Some(CHAIN_ID)),
        (vec![bad.clone(), good.clone()], Some(CHAIN_ID)),
        (vec![bad.clone()], Some(CHAIN_ID)),
        (vec![good.clone(), bad.clone()], None),
    ] {
        assert_eq!(JsonRpc::connect(&urls, chain_id, POLLS).await.err(), wrong(CHAIN_ID, 5, &bad), "{urls:?}");
    }
    assert_eq!(JsonRpc::connect(&[bad.clone(), good.clone()], None, POLLS).await.err(), wrong(5, CHAIN_ID, &good));

    // One that comes back as another chain.
    switched.store(false, Ordering::Relaxed);
    let working = Arc::new(AtomicBool::new(true));
    let works = working.clone();
    let first = Proxy::before(&scene.url, move |_| !works.load(Ordering::Relaxed)).await;
    let ledger = scene.connect_by(&[first.url(), bad.clone()], &account, POLLS, hasty()).await;
    switched.store(true, Ordering::Relaxed);
    working.store(false, Ordering::Relaxed);
    let refused = ledger.transfer(Address::random(), tokens(1)).await.unwrap_err();
    assert_eq!(refused.to_string(), wrong(CHAIN_ID, 5, &bad).unwrap().to_string());
    assert!(refused.to_string().contains(&format!("use an endpoint of chain {CHAIN_ID}")), "{refused}");
    assert!(matches!(refused, LedgerError::NotAllowed(_)));
    assert_eq!(foreign.count("eth_chainId"), foreign.total(), "nothing else was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_answer_is_lost_is_made_once() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(9)).await;
    let ledger = scene.connect(&client, POLLS, hasty()).await;
    for mode in ["lost", "garbage"] {
        scene.fault(mode, 1, "eth_sendRawTransaction").await;
        let quote = scene.quote(&client, tokens(1)).await;
        let transaction = ledger.escrow(&quote).await.unwrap();
        assert_eq!(
            scene.state(&quote).await,
            PaymentStatus::Held { quote: quote.struct_hash(), by: PaymentRef::Transaction(transaction) }
        );
    }
    // What is asked about it afterwards may fail too.
    for mode in ["error", "lost", "garbage"] {
        scene.fault(mode, 1, "eth_getTransactionReceipt").await;
        ledger.transfer(Address::random(), tokens(1)).await.unwrap();
    }
    assert_eq!((scene.nonces(client.address()).await, scene.balance(client.address()).await), ((5, 5), tokens(4)));
    // What fails before costs nothing.
    scene.fault("garbage", 1, "eth_getTransactionCount").await;
    let refused = ledger.transfer(Address::random(), tokens(1)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Malformed(_)), "{refused:?}");
    assert_eq!((scene.nonces(client.address()).await, scene.balance(client.address()).await), ((5, 5), tokens(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_answer_is_lost_is_not_made_again_by_the_next_endpoint() {
    let scene = Scene::anvil().await;
    let account = scene.account(tokens(9)).await;
    let first = Proxy::answering(&scene.url, |method, answer| {
        if method == "eth_sendRawTransaction" {
            *answer = Value::Null;
        }
    })
    .await;
    // Anvil says that the nonce is too low: the transaction is in a block by then.
    let ledger = scene.connect_by(&[first.url(), scene.url.clone()], &account, POLLS, hasty()).await;
    let to = Address::random();
    ledger.transfer(to, tokens(1)).await.unwrap();
    assert_eq!((scene.balance(to).await, scene.nonces(account.address()).await), (tokens(1), (1, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_problem_and_the_remedy() {
    let scene = Scene::anvil().await;
    let deployer = &scene.remote.deployer;
    let poor = key();
    deployer.transfer(poor.address(), tokens(5)).await.unwrap();
    let ledger = scene.connect(&poor, POLLS, hasty()).await;
    let refused = ledger.escrow(&scene.quote(&poor, tokens(1)).await).await.unwrap_err();
    assert!(matches!(refused, LedgerError::NotAllowed(_)), "{refused:?}");
    assert!(refused.to_string().contains("give it some of the chain's own coin, or have a gateway relay"), "{refused}");

    let (client, gateway) = (scene.account(tokens(5)).await, scene.account(Amount::ZERO).await);
    let ledger = scene.connect(&client, POLLS, hasty()).await;
    let (owner, balance, needed) = (client.address(), tokens(5), tokens(6));
    let broke = LedgerError::InsufficientFunds { owner, balance, needed };
    assert_eq!(ledger.escrow(&scene.quote(&client, needed).await).await, Err(broke.clone()));
    assert_eq!(ledger.transfer(Address::random(), needed).await, Err(broke));
    assert!(ledger.stake(Amount::TOKEN).await.unwrap_err().to_string().contains("StakeBelowMinimum"));
    let stake = ledger.stake(Amount::TOKEN).await.unwrap_err().to_string();
    let figures = [format!("stake: {}", tokens(1).units()), format!("minimum: {}", tokens(100).units())];
    assert!(figures.iter().all(|figure| stake.contains(figure)), "{stake}");
    let nameless = ledger.create_subnet("", tokens(10)).await.unwrap_err();
    assert_eq!(nameless, LedgerError::Reverted("InvalidName { length: 0 }".into()));

    let registry = registry(&scene).await;
    let register = ValidatorRegistry::registerValidatorCall { amount: U256::from(tokens(100).units()) };
    let refused = scene.refusal(&gateway, registry, register).await;
    let (spender, allowance, needed) = (registry, Amount::ZERO, tokens(100));
    assert_eq!(refused, LedgerError::InsufficientAllowance { spender, allowance, needed });

    let deployment = deployer.deployment();
    let quote = scene.quote(&client, tokens(1)).await;
    ledger.escrow(&quote).await.unwrap();
    let stranger = scene.connect(&gateway, POLLS, hasty()).await;
    assert_eq!(stranger.refund(&quote).await, Err(LedgerError::NotExpired(quote.expiry)));
    assert!(stranger.escrow(&quote).await.is_ok(), "it is paid already, whoever asks");
    let withdraw = scene.refusal(&gateway, registry, ValidatorRegistry::withdrawStakeCall {}).await.to_string();
    assert!(withdraw.contains("NotLeaving"), "{withdraw}");

    let terms = ChannelParams { client: client.address(), gateway: gateway.address(), salt: B256::random() };
    let expiry = deployer.now().await.unwrap() + 24 * 3_600;
    ledger.fund_channel(&terms, tokens(2), expiry).await.unwrap();
    let solidity = PaymentChannel::ChannelTerms { client: terms.client, gateway: terms.gateway, salt: terms.salt };
    let open = PaymentChannel::openCall { terms: solidity.clone(), amount: 1, expiry };
    let of = |problem: String| LedgerError::Channel { channel: terms.id(), problem };
    let refused = scene.refusal(&client, deployment.channels, open).await;
    assert_eq!(refused, of(format!("is open already, with a deposit of {}", tokens(2).units())));
    let waits = of(format!("is open until {expiry}: ask its gateway to close it, or wait until then"));
    assert_eq!(ledger.close_channel(&terms, None).await, Err(waits));
    stranger.close_channel(&terms, None).await.unwrap();
    let closed = of("is closed: open another with a new salt".into());
    assert_eq!(ledger.fund_channel(&terms, tokens(2), expiry).await, Err(closed.clone()));
    let top_up = PaymentChannel::topUpCall { terms: solidity, amount: 1, expiry };
    assert_eq!(scene.refusal(&client, deployment.channels, top_up).await, closed);
}

async fn registry(scene: &Scene) -> Address {
    let input = InferencePayment::registryCall {}.abi_encode().into();
    let call = Call { from: Address::ZERO, to: TxKind::Call(scene.remote.deployer.deployment().payment), input };
    InferencePayment::registryCall::abi_decode_returns(&scene.backend().await.call(&call).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_is_asked_once() {
    let scene = Scene::anvil().await;
    let proxy = Proxy::answering(&scene.url, |_, _| ()).await;
    let client = scene.account(tokens(5)).await;
    let ledger = scene.connect_by(&[proxy.url()], &client, POLLS, SendOptions::default()).await;
    let mut late = scene.quote(&client, tokens(1)).await;
    late.expiry = 1;
    let refused = ledger.escrow(&late).await.unwrap_err();
    assert!(
        !refused.is_retryable() && matches!(&refused, LedgerError::InvalidQuote { field, .. } if field == "expiry"),
        "{refused}"
    );
    assert_eq!((proxy.count("eth_estimateGas"), proxy.count("eth_sendRawTransaction")), (1, 0));

    scene.ask("anvil_setBalance", json!([client.address(), "0x0"])).await;
    let refused = ledger.escrow(&scene.quote(&client, tokens(1)).await).await.unwrap_err();
    assert!(!refused.is_retryable(), "{refused}");
    assert!(proxy.count("eth_estimateGas") <= 2 && proxy.count("eth_sendRawTransaction") <= 1);

    // A node's words that are of no known kind.
    let stubborn = Proxy::answering(&scene.url, |method, answer| {
        if method == "eth_sendRawTransaction" {
            *answer = json!({ "jsonrpc": "2.0", "id": answer["id"], "error": { "code": -32_000, "message": "no such luck" } });
        }
    })
    .await;
    scene.ask("anvil_setBalance", json!([client.address(), "0x56bc75e2d63100000"])).await;
    let ledger = scene.connect_by(&[stubborn.url(), scene.url.clone()], &client, POLLS, SendOptions::default()).await;
    let refused = ledger.transfer(Address::random(), tokens(1)).await.unwrap_err();
    assert_eq!((refused, stubborn.count("eth_sendRawTransaction")), (LedgerError::Reverted("no such luck".into()), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_answers_are_told_by_method_and_field() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(1)).await;
    let quote = scene.quote(&client, tokens(1)).await;
    let ledger = scene.connect(&client, POLLS, hasty()).await;
    let hash = ledger.escrow(&quote).await.unwrap();
    let payment = scene.remote.deployer.deployment().payment;
    let filter = LogFilter { address: payment, topic1: Some(quote.request_id), ..LogFilter::default() };
    let block = scene.ask("eth_getTransactionReceipt", json!([hash])).await["blockNumber"].clone();
    for (method, field, wrong) in [
        ("eth_blockNumber", "result", json!("0xgarbage")),
        ("eth_blockNumber", "result", json!({})),
        ("eth_blockNumber", "result", Value::Null),
        ("eth_estimateGas", "result", json!("0xfffffffffffffffffffff")),
        ("eth_call", "result", json!("0x123")),
        ("eth_getTransactionCount", "result", json!([1])),
        ("eth_maxPriorityFeePerGas", "result", json!("many")),
        ("eth_getBlockByNumber", "result.number", json!("latest")),
        ("eth_getBlockByNumber", "result.number", json!("0x1234567")),
        ("eth_getBlockByNumber", "result.hash", json!("0x12")),
        ("eth_getBlockByNumber", "result.timestamp", Value::Null),
        ("eth_getBlockByNumber", "result.baseFeePerGas", json!("-1")),
        ("eth_getTransactionReceipt", "result.transactionHash", json!(B256::ZERO)),
        ("eth_getTransactionReceipt", "result.status", Value::Null),
        ("eth_getTransactionReceipt", "result.status", json!("0x2")),
        ("eth_getTransactionReceipt", "result.gasUsed", json!("much")),
        ("eth_getTransactionReceipt", "result.contractAddress", json!("0x1")),
        ("eth_getLogs", "result", json!({})),
        ("eth_getLogs", "result.0.address", json!(Address::ZERO)),
        ("eth_getLogs", "result.0.blockNumber", json!("0xffffff")),
        ("eth_getLogs", "result.0.topics", json!([B256::ZERO])),
        ("eth_getLogs", "result.0.topics", json!([B256::ZERO, quote.request_id, B256::ZERO, B256::ZERO, B256::ZERO])),
        ("eth_getLogs", "result.0.data", json!("data")),
        ("eth_getLogs", "result.0.transactionHash", Value::Null),
    ] {
        let (path, value) = (format!("/{}", field.replace('.', "/")), wrong.clone());
        let proxy = Proxy::answering(&scene.url, move |asked, answer| {
            if asked == method
                && let Some(field) = answer.pointer_mut(&path)
            {
                *field = value.clone();
            }
        })
        .await;
        let backend = JsonRpc::connect(&[proxy.url()], None, POLLS).await.unwrap();
        let call =
            Call { from: Address::ZERO, to: TxKind::Call(payment), input: InferencePayment::tokenCall {}.abi_encode().into() };
        let refused = match method {
            "eth_blockNumber" => backend.block_after(0).await.err(),
            "eth_getBlockByNumber" if field.ends_with("baseFeePerGas") => backend.fees().await.err(),
            "eth_getBlockByNumber" => backend.block_hash(number(&block)).await.err(),
            "eth_estimateGas" => backend.estimate(&call).await.err(),
            "eth_call" => backend.call(&call).await.err(),
            "eth_getTransactionCount" => backend.nonces(client.address()).await.err(),
            "eth_maxPriorityFeePerGas" => backend.fees().await.err(),
            "eth_getTransactionReceipt" => backend.transaction_receipt(hash).await.err(),
            _ => backend.logs(filter).await.err(),
        };
        let Some(EvmError::Malformed { method: said, problem }) = &refused else { panic!("{method} {wrong}: {refused:?}") };
        let name = field.rsplit('.').next().unwrap();
        assert!(*said == method && problem.starts_with(&format!("{name}: ")), "{method} {field}: {refused:?}");
        let error = LedgerError::from(refused.unwrap());
        assert!(matches!(error, LedgerError::Malformed(_)) && !error.is_retryable());
    }

    // A receipt that stays malformed pays nobody, and whoever waited hears of the field.
    let proxy = Proxy::answering(&scene.url, |method, answer| {
        if method == "eth_getTransactionReceipt" && answer["result"].is_object() {
            answer["result"]["gasUsed"] = json!("much");
        }
    })
    .await;
    let impatient = SendOptions { timeout: Duration::from_millis(300), ..hasty() };
    let ledger = scene.connect_by(&[proxy.url()], &client, POLLS, impatient).await;
    let refused = ledger.transfer(Address::random(), Amount::ZERO).await.unwrap_err();
    assert!(refused.to_string().contains("eth_getTransactionReceipt") && refused.to_string().contains("gasUsed: "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn authorizations_are_checked_before_anything_is_sent() {
    let scene = Scene::embedded().await;
    let proxy = Proxy::answering(&scene.url, |_, _| ()).await;
    let (client, gateway) = (scene.account(tokens(5)).await, scene.account(Amount::ZERO).await);
    let relays = scene.connect_by(&[proxy.url()], &gateway, POLLS, hasty()).await;
    let trust = relays.trust_root().await.unwrap();
    let (mut quote, other) = (scene.quote(&client, tokens(1)).await, scene.quote(&client, tokens(1)).await);
    quote.gateway = gateway.address();
    let sent = || proxy.count("eth_sendRawTransaction");
    let authorization = PaymentAuthorization::transfer(&trust, &quote, &client).await.unwrap();
    let mut dear = quote.clone();
    dear.total = tokens(2);
    for (signed, by) in [(&other, &client), (&dear, &client), (&quote, &gateway)] {
        let wrong = PaymentAuthorization::transfer(&trust, signed, by).await.unwrap();
        let refused = relays.redeem(&quote, &wrong).await.unwrap_err();
        assert!(matches!(&refused, LedgerError::NotAllowed(problem) if problem.starts_with("transfer: ")), "{refused:?}");
    }
    assert_eq!(sent(), 0);
    let paid = relays.redeem(&quote, &authorization).await.unwrap();
    assert_eq!((relays.redeem(&quote, &authorization).await, sent()), (Ok(paid), 1), "again is as good as once");
    assert_eq!(scene.balance(client.address()).await, tokens(4));
    relays.refund(&quote).await.unwrap();
    let replayed = relays.redeem(&quote, &authorization).await.unwrap_err();
    assert!(!replayed.is_retryable() && matches!(replayed, LedgerError::WrongState { .. }), "{replayed:?}");
    assert_eq!((sent(), scene.balance(client.address()).await), (2, tokens(5)), "the payment and the refund, and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_refunds_second_gets_the_first_ones_transaction() {
    for scene in [Scene::embedded().await, Scene::anvil().await] {
        let (client, one, two) =
            (scene.account(tokens(1)).await, scene.account(Amount::ZERO).await, scene.account(Amount::ZERO).await);
        let quote = scene.quote(&client, tokens(1)).await;
        scene.connect(&client, POLLS, hasty()).await.escrow(&quote).await.unwrap();
        // Now anyone can.
        scene.ask("evm_increaseTime", json!([7 * 24 * 3_600])).await;
        scene.mine().await;
        scene.ask("evm_setAutomine", json!([false])).await;
        // A node may estimate on top of what waits: neither is handed in before both are estimated.
        let estimated = Arc::new(AtomicUsize::new(0));
        let (early, counted) = (estimated.clone(), estimated.clone());
        let refuses = move |method: &str| method == "eth_sendRawTransaction" && early.load(Ordering::SeqCst) < 2;
        let counts = move |method: &str, _: &mut Value| {
            counted.fetch_add(usize::from(method == "eth_estimateGas"), Ordering::SeqCst);
        };
        let proxy = Proxy::start(&scene.url, Arc::new(refuses), Arc::new(counts)).await;
        let mut refunding = Vec::new();
        for signer in [&one, &two] {
            let ledger = scene.connect_by(&[proxy.url()], signer, POLLS, hasty()).await;
            let quote = quote.clone();
            refunding.push(tokio::spawn(async move { ledger.refund(&quote).await }));
        }
        let waiting = async {
            scene.until_pending(one.address(), 1).await;
            scene.until_pending(two.address(), 1).await;
        };
        tokio::select! {
            () = waiting => {}
            (ended, ..) = futures::future::select_all(&mut refunding) => panic!("a refund ended before there was a block: {ended:?}"),
        }
        scene.mine().await;
        let transaction = refunding.remove(0).await.unwrap().unwrap();
        assert_eq!(refunding.remove(0).await.unwrap(), Ok(transaction));
        assert!(matches!(scene.state(&quote).await, PaymentStatus::Refunded { by } if by == PaymentRef::Transaction(transaction)));
        assert_eq!(
            (scene.nonces(one.address()).await, scene.nonces(two.address()).await),
            ((1, 1), (1, 1)),
            "both are in the block"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_requests_of_the_same_id_hide_nothing() {
    let scene = Scene::embedded().await;
    let (client, squatter) = (scene.account(tokens(1)).await, scene.account(tokens(1)).await);
    let near = RpcOptions { log_range: 1, ..POLLS };
    let ledger = scene.connect(&client, near, hasty()).await;
    let quote = scene.quote(&client, tokens(1)).await;
    let transaction = ledger.escrow(&quote).await.unwrap();
    let same = Quote { client: squatter.address(), ..quote.clone() };
    scene.connect(&squatter, POLLS, hasty()).await.escrow(&same).await.unwrap();
    let state = ledger.payment(client.address(), quote.request_id).await.unwrap();
    assert_eq!(state, PaymentStatus::Held { quote: quote.struct_hash(), by: PaymentRef::Transaction(transaction) });
}
