//! Requests whose client is cut off: their answers are fetched, and what only the gateway says frees no money.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use alloy_primitives::{B256, U256};
use async_trait::async_trait;
use ncn_client::{
    ChannelPayer, Client, ClientError, Order, PayerChannel, Stored,
    evm::{EvmLedger, JsonRpc, RpcOptions, SendOptions},
    grpc::GrpcTransport,
    unix_now,
};
use ncn_core::{
    Amount, ChannelParams, Confinement, DynSigner, Execution, Executor, ExecutorError, Outcome, PaymentRef, PaymentStatus,
    RequestId, Signed, State, TaskCapability, TaskEvent, TaskStatus, Transport, TransportError, Update, Value,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
    transport::Updates,
    validation::CLAIM_SECONDS,
};
use ncn_devnet::{EmbeddedChain, LocalNetwork, RpcServer, quickstart, well_known_key, well_known_secret};
use ncn_executor::EngineExecutor;
use ncn_node::{
    gateway::{GatewayOptions, http_routes},
    server::{LOOPBACK, Server},
};
use tokio::sync::watch;

use crate::{
    scene::{digit, key, ncn, network, tokens},
    tamper::{Tamper, Tampered},
    wait::eventually,
};

const WEEK: u64 = 7 * 24 * 3_600;

/// Runs models once it is let.
struct Gated {
    engine: EngineExecutor,
    started: AtomicUsize,
    open: watch::Sender<bool>,
}

#[async_trait]
impl Executor for Gated {
    fn formats(&self) -> Vec<ModelFormat> {
        self.engine.formats()
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        self.engine.load(package).await
    }

    async fn unload(&self, digest: &B256) -> Result<(), ExecutorError> {
        self.engine.unload(digest).await
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        self.started.fetch_add(1, Ordering::SeqCst);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        self.engine.run(execution).await
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A network whose chain other processes can reach, and a directory with the first client's key and the contracts.
struct Scene {
    network: LocalNetwork,
    chain: Arc<EmbeddedChain>,
    rpc: RpcServer,
    files: tempfile::TempDir,
}

impl Scene {
    async fn new(executor: Option<Arc<dyn Executor>>) -> Self {
        let chain = Arc::new(EmbeddedChain::new(31_337));
        let rpc = RpcServer::start(chain.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut builder = network().chain(chain.clone());
        if let Some(executor) = executor {
            builder = builder.executor(executor);
        }
        let network = builder.start().await.unwrap();
        let client = well_known_key("client", 0).address();
        network.funder().transfer(client, tokens(10)).await.unwrap();
        chain.fund(client, U256::from(10_u64.pow(18)));
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("client.key"), well_known_secret("client", 0).to_string()).unwrap();
        let contracts = serde_json::to_vec(&network.funder().deployment()).unwrap();
        fs::write(files.path().join("contracts.json"), contracts).unwrap();
        Self { network, chain, rpc, files }
    }

    fn here(&self) -> &Path {
        self.files.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ncn());
        command.args(arguments).args(["--key", "client.key"]).current_dir(self.here()).env_remove("NCN_RPC");
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// What a command that fails says.
    async fn bad(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    fn unfinished(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.here()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.to_string_lossy().ends_with(".unfinished")).collect()
    }

    async fn balance(&self) -> Amount {
        self.network.funder().balance(well_known_key("client", 0).address()).await.unwrap()
    }

    /// Keeps a request as `ncn infer` would.
    fn keep(&self, name: &str, means: &str, stored: &Stored) {
        let file = serde_json::json!({ "gateway": self.network.gateway_url(), "means": means, "stored": stored });
        fs::write(self.here().join(name), file.to_string()).unwrap();
    }
}

/// The id of the request in this file.
fn request_of(path: &Path) -> String {
    let file: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    file["stored"]["quote"]["requestId"].as_str().unwrap().to_owned()
}

fn seven() -> [(&'static str, Value); 1] {
    [("image", Value::png(quickstart::SAMPLE))]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_of_a_program_that_was_killed_is_fetched() {
    let executor =
        Arc::new(Gated { engine: EngineExecutor::built_in(), started: AtomicUsize::new(0), open: watch::Sender::new(false) });
    let scene = Scene::new(Some(executor.clone())).await;
    let (gateway, rpc) = (scene.network.gateway_url(), scene.rpc.url());
    let hash = scene.network.trust_root().await.unwrap().hash().to_string();
    let chain = ["--rpc", &rpc, "--contracts", "contracts.json"];
    let open = ["channel", "open", "--channel", "channel.json", "--gateway", &gateway, "--deposit", "1"];
    scene.good(&[&open[..], &chain].concat()).await;
    let seven = digit(7);
    let infer = ["infer", "--gateway", &gateway, "--model", "digits", "--input", seven.to_str().unwrap(), "--max-price", "1"];

    let price = quickstart::model().unwrap().manifest().price().base;
    for (number, means) in
        [&chain[..], &["--relayed", "--network", &hash], &["--channel", "channel.json", "--network", &hash]].into_iter().enumerate()
    {
        let before = scene.balance().await;
        executor.open.send_replace(false);
        let mut program = scene.command(&[&infer[..], means].concat()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("a paid request runs", async || executor.started.load(Ordering::SeqCst) > number).await;
        program.kill().unwrap();
        program.wait().unwrap();
        executor.open.send_replace(true);

        let [file] = &scene.unfinished()[..] else { panic!("{means:?}: {:?}", scene.unfinished()) };
        let request = request_of(file);
        // Found by its id, by its file, and where it is the only one.
        let fetch = match number {
            0 => ["fetch", &request],
            1 => ["fetch", file.to_str().unwrap()],
            _ => ["fetch", "--json"],
        };
        let fetched = scene.good(&fetch).await;
        assert!(fetched.contains("label: 7") || fetched.contains(r#""label": "7""#), "{means:?}: {fetched}");
        assert_eq!(scene.unfinished(), Vec::<PathBuf>::new(), "{means:?}: the request has ended");
        // The first receipt is not written over by the next ones.
        let receipt = if number == 0 { "ncn-receipt.json".to_owned() } else { format!("ncn-receipt.{request}.json") };
        assert!(
            text(&Command::new(ncn()).args(["verify", &receipt]).current_dir(scene.here()).output().unwrap().stdout)
                .contains(&request)
        );
        let paid = before.checked_sub(scene.balance().await).unwrap();
        assert_eq!(paid, if number < 2 { price } else { Amount::ZERO }, "{means:?}");
    }
    let shown =
        Command::new(ncn()).args(["channel", "show", "--channel", "channel.json"]).current_dir(scene.here()).output().unwrap();
    assert!(text(&shown.stdout).contains("spent       0.01 NCN\nreserved    0 NCN"), "{}", text(&shown.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_program_says_how_to_go_on() {
    let executor =
        Arc::new(Gated { engine: EngineExecutor::built_in(), started: AtomicUsize::new(0), open: watch::Sender::new(false) });
    let scene = Scene::new(Some(executor.clone())).await;
    let (gateway, rpc, seven) = (scene.network.gateway_url(), scene.rpc.url(), digit(7));
    let chain = ["--rpc", &rpc, "--contracts", "contracts.json"];
    let infer = ["infer", "--gateway", &gateway, "--model", "digits", "--input", seven.to_str().unwrap(), "--max-price", "1"];
    let program = scene.command(&[&infer[..], &chain].concat()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("a paid request runs", async || executor.started.load(Ordering::SeqCst) > 0).await;
    rustix::process::kill_process(rustix::process::Pid::from_child(&program), rustix::process::Signal::INT).unwrap();
    let output = tokio::task::spawn_blocking(move || program.wait_with_output().unwrap()).await.unwrap();
    let says = text(&output.stderr);
    executor.open.send_replace(true);
    let chain = chain.join(" ");
    assert!(says.contains(&format!("ncn fetch ncn-receipt.json.unfinished --key client.key {chain}")), "{says}");
    assert!(says.contains(&format!("ncn refund ncn-receipt.json.unfinished {chain} --key client.key")), "{says}");
    // Typed again as it was said.
    let line = says.lines().find_map(|line| line.split_once("ncn fetch ")).unwrap().1;
    let arguments: Vec<_> = ["fetch"].into_iter().chain(line.split_whitespace()).collect();
    let fetched = Command::new(ncn()).args(&arguments).current_dir(scene.here()).output().unwrap();
    assert!(text(&fetched.stdout).contains("label: 7"), "{}", text(&fetched.stderr));
}

/// A gateway that serves and is paid, and says that it was not.
struct Liar {
    gateway: Arc<dyn Transport>,
    lies: AtomicBool,
}

impl Liar {
    fn is_lying(&self) -> bool {
        self.lies.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Tamper for Liar {
    fn inner(&self) -> &dyn Transport {
        &*self.gateway
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        if self.is_lying() {
            let event = TaskEvent::Failed { outcome: Outcome::Refunded, reason: "it broke".into() };
            return Ok(Box::pin(futures::stream::iter([Ok(Update { index: from, event })])));
        }
        self.gateway.updates(access, from).await
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        let mut status = self.gateway.status(request_id).await?;
        if self.is_lying() {
            status.state = State::Ended(Outcome::Refunded);
        }
        Ok(status)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_says_refunded_frees_nothing() {
    let scene = Scene::new(None).await;
    let liar = Arc::new(Tampered(Liar { gateway: scene.network.gateway(), lies: AtomicBool::new(true) }));
    let port: Arc<dyn Transport> = liar.clone();
    let server = Server::start(LOOPBACK.into(), http_routes(port)).unwrap();
    let (gateway, rpc, seven) = (server.url(), scene.rpc.url(), digit(7));
    let hash = scene.network.trust_root().await.unwrap().hash().to_string();
    let chain = ["--rpc", &rpc, "--contracts", "contracts.json"];
    let open = ["channel", "open", "--channel", "channel.json", "--gateway", &gateway, "--deposit", "1"];
    scene.good(&[&open[..], &chain].concat()).await;
    let infer = ["infer", "--gateway", &gateway, "--model", "digits", "--input", seven.to_str().unwrap(), "--max-price", "1"];
    let infer = [&infer[..], &["--network", &hash]].concat();

    for means in [&["--relayed"][..], &["--channel", "channel.json"]] {
        liar.0.lies.store(true, Ordering::SeqCst);
        let says = scene.bad(&[&infer[..], means].concat()).await;
        assert!(says.contains("it is not proven what became of the payment") && says.contains("the gateway says"), "{says}");
        let [file] = &scene.unfinished()[..] else { panic!("{means:?}: {:?}", scene.unfinished()) };
        let stored: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let quote: ncn_core::Quote = serde_json::from_value(stored["stored"]["quote"].clone()).unwrap();
        let named = ncn_core::Message::struct_hash(&quote).to_string();
        assert!(!says.contains(&named), "the quote's hash is no transaction: {says}");
        // A second try to hear something else: the file stays.
        let file = file.to_str().unwrap();
        let again = scene.bad(&["fetch", file]).await;
        assert!(again.contains("--rpc URL") && Path::new(file).exists(), "{again}");
        // The truth, with its receipt, ends it.
        liar.0.lies.store(false, Ordering::SeqCst);
        assert!(scene.good(&["fetch", file]).await.contains("label: 7"));
        assert!(!Path::new(file).exists());
    }
}

/// A client with a channel at the network's gateway.
struct ChannelScene {
    network: LocalNetwork,
    transport: Arc<GrpcTransport>,
    channel: Arc<PayerChannel>,
    signer: DynSigner,
}

impl ChannelScene {
    async fn new() -> Self {
        let options = GatewayOptions { retention: Duration::ZERO, ..GatewayOptions::default() };
        let network = network().gateway(|gateway| gateway.options(options)).start().await.unwrap();
        let signer = key();
        network.funder().transfer(signer.address(), tokens(1)).await.unwrap();
        let terms = ChannelParams { client: signer.address(), gateway: network.gateway_address(), salt: B256::random() };
        let expiry = unix_now() + WEEK;
        network.ledger(signer.clone()).fund_channel(&terms, tokens(1), expiry).await.unwrap();
        let channel = Arc::new(PayerChannel::new(terms, tokens(1), expiry));
        let transport = Arc::new(GrpcTransport::new(&network.gateway_url()).unwrap());
        Self { network, transport, channel, signer }
    }

    async fn ledger(&self) -> ChannelPayer {
        let trust = self.network.trust_root().await.unwrap();
        ChannelPayer::new(self.transport.clone(), trust, self.signer.clone(), self.channel.clone())
    }

    async fn client(&self) -> Client {
        let ledger = Arc::new(self.ledger().await);
        Client::builder().transport(self.transport.clone()).payer(ledger).signer(self.signer.clone()).build().unwrap()
    }

    /// The gateway has served the request, and knows nothing of it any more.
    async fn forgotten(&self, request: RequestId) {
        eventually("the gateway forgets", async || {
            matches!(self.transport.status(request).await, Err(TransportError::UnknownTask(_)))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_has_forgotten_a_request_has_not_thereby_refunded_it() {
    let scene = ChannelScene::new().await;
    let client = scene.client().await;
    let price = quickstart::model().unwrap().manifest().price().base;
    // Charged, while the client is away for longer than the gateway's memory.
    let paid = client.submit(Order::new(quickstart::NAME, seven())).await.unwrap().pay().await.unwrap();
    let request = paid.request_id();
    scene.forgotten(request).await;
    let stored: Stored = serde_json::from_str(&serde_json::to_string(&paid.stored()).unwrap()).unwrap();
    let unproven = scene.client().await.resume(stored).await.unwrap().finish().await.unwrap_err();
    assert!(matches!(&unproven, ClientError::Unproven(says) if says.contains("does not know the request")), "{unproven}");
    assert!(unproven.is_paid());
    assert_eq!(scene.channel.sums().reserved, price, "unknown is not none");
    // So the next voucher allows what the gateway has earned.
    assert_eq!(client.submit(Order::new(quickstart::NAME, seven())).await.unwrap().pay().await.unwrap().quote().total, price);

    // The chain says when all of it was charged.
    scene.network.channels().flush();
    let chain = Arc::new(scene.network.ledger(scene.signer.clone()));
    let ledger = scene.ledger().await.with_chain(Some(chain));
    eventually("the chain has charged both", async || {
        scene.network.channels().flush();
        ledger.reconcile().await.unwrap();
        scene.channel.in_flight().is_empty()
    })
    .await;
    assert_eq!(scene.channel.sums().spent.units(), 2 * price.units());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_lost_count_signs_what_it_has_signed_before() {
    let scene = ChannelScene::new().await;
    let client = scene.client().await;
    let price = quickstart::model().unwrap().manifest().price().base;
    let paid = client.submit(Order::new(quickstart::NAME, seven())).await.unwrap().pay().await.unwrap();
    scene.forgotten(paid.request_id()).await;
    // As clients did that believed their gateways.
    scene.channel.release(paid.request_id(), None).unwrap();
    assert_eq!(scene.channel.sums().available(), tokens(1));
    // The gateway refuses the voucher and names the sum, which the client finds among its own signatures.
    client.submit(Order::new(quickstart::NAME, seven())).await.unwrap().pay().await.unwrap();
    let sums = scene.channel.sums();
    assert_eq!((sums.spent, sums.reserved), (price, price));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_quiet_chain_an_expired_payment_can_be_taken_back() {
    let chain = Arc::new(EmbeddedChain::new(31_337));
    let rpc = RpcServer::start(chain.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let options = GatewayOptions { finish_margin: Duration::ZERO, ..crate::failures::hasty() };
    let network = network().gateway(|gateway| gateway.options(options)).chain(chain.clone()).start().await.unwrap();
    let signer = key();
    network.funder().transfer(signer.address(), tokens(1)).await.unwrap();
    chain.fund(signer.address(), U256::from(10_u64.pow(18)));
    let backend = JsonRpc::connect(&[rpc.url()], None, RpcOptions::default()).await.unwrap();
    let deployment = network.funder().deployment();
    let ledger = EvmLedger::connect(Arc::new(backend), deployment, signer.clone(), SendOptions::default()).await.unwrap();
    let ledger = Arc::new(ledger);
    let client = Client::builder().gateway(network.gateway_url()).payer(ledger.clone()).signer(signer.clone()).build().unwrap();
    let order = Order::new(quickstart::NAME, seven()).timeout(Duration::from_secs(8));
    let quoted = client.submit(order).await.unwrap();
    drop(network);
    let paid = quoted.pay().await.unwrap();
    let (request, refundable_at) = (paid.request_id(), paid.quote().expiry + CLAIM_SECONDS + 1);
    chain.advance(refundable_at.saturating_sub(unix_now()));
    let newest = ledger.now().await.unwrap();
    let by = ledger.refund(paid.quote(), None).await.unwrap();
    // No block has come in the meantime, but for that of the refund.
    assert!(newest < refundable_at && ledger.now().await.unwrap() >= refundable_at);
    let ClientError::Refunded { by: seen, .. } = paid.finish().await.unwrap_err() else { panic!("not refunded") };
    assert_eq!(seen, PaymentRef::Transaction(by));
    let state = ledger.payment(signer.address(), request).await;
    assert_eq!(state, Ok(PaymentStatus::Refunded { by: seen }));
    assert_eq!(ledger.balance(signer.address()).await.unwrap(), tokens(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_says_what_became_of_the_payment() {
    let scene = Scene::new(None).await;
    let (signer, rpc) = (well_known_key("client", 0), scene.rpc.url());
    let ledger = Arc::new(scene.network.ledger(signer.clone()));
    let client = Client::builder().gateway(scene.network.gateway_url()).payer(ledger.clone()).signer(signer).build().unwrap();
    let order = || Order::new(quickstart::NAME, seven()).timeout(Duration::from_mins(10));
    let refund = |file| ["refund", file, "--rpc", &rpc, "--contracts", "contracts.json"];

    let served = client.submit(order()).await.unwrap();
    scene.keep("served.unfinished", "transaction", &served.stored());
    served.pay().await.unwrap().finish().await.unwrap();
    let says = scene.bad(&refund("served.unfinished")).await;
    assert!(says.contains("was served, and paid out by 0x") && says.contains("ncn fetch served.unfinished"), "{says}");
    assert!(scene.here().join("served.unfinished").exists(), "its answer can be fetched");

    let never = client.submit(order()).await.unwrap();
    scene.keep("never.unfinished", "transaction", &never.stored());
    let early = scene.bad(&refund("never.unfinished")).await;
    assert!(early.contains("no block yet"), "{early}");
    let back = client.submit(order()).await.unwrap();
    scene.keep("back.unfinished", "relayed", &back.stored());
    let list = scene.bad(&["fetch"]).await;
    assert!(list.contains("several requests are unfinished: name one") && list.contains("(never.unfinished)"), "{list}");
    let unknown = scene.bad(&["fetch", &B256::repeat_byte(7).to_string()]).await;
    assert!(unknown.contains("has no file beside ncn-receipt.json") && unknown.contains("(back.unfinished)"), "{unknown}");

    let quote = back.quote().clone();
    back.cancel().await.unwrap();
    ledger.escrow(&quote).await.unwrap();
    eventually("the gateway gives it back", async || {
        matches!(ledger.payment(quote.client, quote.request_id).await, Ok(PaymentStatus::Refunded { .. }))
    })
    .await;
    let already = scene.good(&refund("back.unfinished")).await;
    assert!(already.contains("had come back to"), "{already}");
    assert!(!scene.here().join("back.unfinished").exists());

    scene.chain.advance(3_600);
    scene.chain.mine();
    let over = scene.good(&refund("never.unfinished")).await;
    assert!(over.contains("was never paid"), "{over}");
    assert!(!scene.here().join("never.unfinished").exists());
}
