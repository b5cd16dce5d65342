//! Money under kill -9: the gateway, which settles, is killed at random points under load and started again, twenty times. No request
//! is lost, none is charged twice, every one ends settled or refunded. Run it with `cargo xtask chaos money`.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use alloy_primitives::B256;
use alloy_signer_local::PrivateKeySigner;
use ncn_client::{
    ChannelPayer, Client, ClientError, Order, PayerChannel, RelayedPayer,
    evm::EvmLedger,
    grpc::{GrpcRegistry, GrpcTransport},
    unix_now,
};
use ncn_core::{Amount, ChainView, ChannelParams, DynSigner, Payer, TrustRoot, Value};
use ncn_devnet::{RpcServer, quickstart};
use ncn_executor::EngineExecutor;
use ncn_node::{
    compute::ComputeNode,
    node::{RunningComputeNode, RunningRegistryNode, RunningValidator},
    registry::{RegistryNode, ValidatorNode},
};

use crate::scene::{Chain, key, ncn, tokens};

const KILLS: u32 = 20;
/// Clients that pay out of a channel, and clients that pay by transfers, all at once.
const CHANNELS: usize = 6;
const ESCROWS: usize = 2;
/// How long a gateway lives, in milliseconds.
const LIFE: std::ops::Range<u64> = 200..3_000;
/// How long everything may take to come to its end after the last kill.
const END: Duration = Duration::from_mins(3);

/// Everything but the gateway.
struct Scene {
    rpc: RpcServer,
    deployer: EvmLedger,
    registry_node: RunningRegistryNode,
    gateway: DynSigner,
    gateway_url: String,
    files: tempfile::TempDir,
    _validators: Vec<RunningValidator>,
    _computes: Vec<RunningComputeNode>,
}

impl Scene {
    async fn new() -> Self {
        let local = || "127.0.0.1:0".parse().unwrap();
        let Chain { chain, deployer, validators: keys } = Chain::new(5).await;
        let rpc = RpcServer::start(chain, local()).await.unwrap();
        let registry_node = RegistryNode::builder(Arc::new(deployer.with_signer(key()))).start().await.unwrap();
        let registry = || Arc::new(GrpcRegistry::new(&registry_node.url()).unwrap());
        let mut validators = Vec::new();
        for key in keys {
            let ledger = Arc::new(deployer.with_signer(key.clone()));
            validators.push(ValidatorNode::builder(key, registry(), ledger).start().await.unwrap());
        }

        let files = tempfile::tempdir().unwrap();
        let secret = PrivateKeySigner::random();
        std::fs::write(files.path().join("gateway.key"), secret.to_bytes().to_string()).unwrap();
        let gateway: DynSigner = Arc::new(secret);
        deployer.transfer(gateway.address(), tokens(10)).await.unwrap();
        // A port that is free now; the gateway comes back to it each time.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let gateway_url = format!("http://127.0.0.1:{port}");

        let package = quickstart::unpack(files.path()).unwrap();
        let subnet = ncn_core::message::subnet_id(gateway.address(), "quickstart");
        let mut computes = Vec::new();
        for _ in 0..2 {
            let key = key();
            let ledger = Arc::new(deployer.with_signer(key.clone()));
            let executor = Arc::new(EngineExecutor::built_in());
            let node = ComputeNode::builder(key, subnet, executor, ledger, registry()).models(vec![package.clone()]).capacity(256);
            computes.push(node.gateway(gateway.address(), &gateway_url).start().await.unwrap());
        }
        Self { rpc, deployer, registry_node, gateway, gateway_url, files, _validators: validators, _computes: computes }
    }

    /// Starts the gateway's process, and returns once it listens.
    fn start_gateway(&self) -> Gateway {
        let address = self.gateway_url.strip_prefix("http://").unwrap();
        let (key, contracts) = (self.files.path().join("gateway.key"), self.files.path().join("contracts.json"));
        std::fs::write(&contracts, serde_json::to_vec(&self.deployer.deployment()).unwrap()).unwrap();
        let argument = |path: &Path| path.to_str().unwrap().to_owned();
        let mut process = Command::new(ncn())
            .args(["gateway", "--listen", address, "--registry", &self.registry_node.url(), "--rpc", &self.rpc.url()])
            .args(["--contracts", &argument(&contracts), "--key", &argument(&key)])
            .args(["--state", &argument(&self.files.path().join("state"))])
            .args(["--settle-after", "1", "--settle-requests", "20"])
            .args(["--stream-orders", "1000000", "--stream-calls", "1000000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("listens at"), "the gateway did not start: {line}");
        Gateway(process)
    }

    fn client(&self, signer: &DynSigner, trust: &TrustRoot, channel: Option<Arc<PayerChannel>>) -> Client {
        let transport = Arc::new(GrpcTransport::new(&self.gateway_url).unwrap());
        let (trust, payer_signer) = (trust.clone(), signer.clone());
        let payer: Arc<dyn Payer> = match channel {
            Some(channel) => Arc::new(ChannelPayer::new(transport.clone(), trust, payer_signer, channel)),
            None => Arc::new(RelayedPayer::new(transport.clone(), trust, payer_signer)),
        };
        Client::builder().transport(transport).payer(payer).signer(signer.clone()).build().unwrap()
    }
}

/// The gateway's process; killed when it is dropped.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        // SIGKILL: nothing is closed, flushed or said.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a client had of its requests.
#[derive(Default)]
struct Tally {
    answered: u32,
    paid: u128,
    refunded: u32,
    unpaid: u32,
}

/// One request after the other until the end.
async fn ask_until(client: Client, ended: Arc<AtomicBool>, progress: Arc<AtomicU32>) -> Tally {
    let mut tally = Tally::default();
    while !ended.load(Ordering::Relaxed) {
        let inputs = [("image", Value::png(quickstart::SAMPLE))];
        let order = Order::new(quickstart::NAME, inputs).timeout(Duration::from_secs(90));
        let quoted = match client.submit(order).await {
            Ok(quoted) => quoted,
            // Nothing was signed yet: the gateway is away.
            Err(error) => {
                assert!(!error.is_paid(), "{error}");
                tally.unpaid += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let answered = match quoted.pay().await {
            Ok(paid) => paid.finish().await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(answer) => {
                assert_eq!(answer.output.text("label"), Some("7"));
                tally.answered += 1;
                tally.paid += answer.receipt.payments.total.units();
                progress.fetch_add(1, Ordering::Relaxed);
            }
            // Out of a channel only the gateway says so: the amount stays reserved.
            Err(ClientError::Refunded { .. } | ClientError::Unproven(_)) => tally.refunded += 1,
            Err(error) if !error.is_paid() => tally.unpaid += 1,
            Err(error) => panic!("a request neither ended nor came back: {error}"),
        }
    }
    tally
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo xtask chaos money"]
async fn money() {
    let scene = Scene::new().await;
    let gateway = scene.start_gateway();
    let trust = ChainView::trust_root(&scene.deployer).await.unwrap();
    let (ended, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let deposit = tokens(50);

    let mut clients = BTreeMap::new();
    for n in 0..CHANNELS + ESCROWS {
        let signer = key();
        scene.deployer.transfer(signer.address(), deposit).await.unwrap();
        let channel = if n < CHANNELS {
            let terms = ChannelParams { client: signer.address(), gateway: scene.gateway.address(), salt: B256::random() };
            let expiry = unix_now() + 24 * 3_600;
            scene.deployer.with_signer(signer.clone()).fund_channel(&terms, deposit, expiry).await.unwrap();
            Some(Arc::new(PayerChannel::new(terms, deposit, expiry)))
        } else {
            None
        };
        let client = scene.client(&signer, &trust, channel.clone());
        let asking = tokio::spawn(ask_until(client, ended.clone(), progress.clone()));
        clients.insert(signer.address(), (channel, asking));
    }

    let mut running = Some(gateway);
    for kill in 1..=KILLS {
        let life = LIFE.start + u64::from_be_bytes(B256::random()[..8].try_into().unwrap()) % (LIFE.end - LIFE.start);
        tokio::time::sleep(Duration::from_millis(life)).await;
        let before = progress.load(Ordering::Relaxed);
        drop(running.take());
        running = Some(scene.start_gateway());
        println!("kill {kill:>2} after {life:>4} ms, {before} requests answered so far");
    }

    // No new requests; those in flight come to their end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ended.store(true, Ordering::Relaxed);
    let mut all = Tally::default();
    let mut expected = BTreeMap::new();
    for (client, (channel, asking)) in clients {
        let tally = tokio::time::timeout(END, asking).await.expect("a request hangs").unwrap();
        all.answered += tally.answered;
        all.refunded += tally.refunded;
        all.unpaid += tally.unpaid;
        all.paid += tally.paid;
        expected.insert(client, (channel, tally.paid));
    }

    // Everything that was answered is settled, to the unit, and nothing else is.
    let settled = async {
        loop {
            let mut open = 0;
            for (channel, paid) in expected.values() {
                if let Some(channel) = channel {
                    let known = scene.deployer.channel(channel.terms().id()).await.unwrap().unwrap();
                    assert!(known.settled.units() <= *paid, "charged {} for {paid}: twice", known.settled.units());
                    open += u32::from(known.settled.units() != *paid);
                }
            }
            if open == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(END, settled).await.expect("something that was answered is never settled: lost");
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (client, (channel, paid)) in &expected {
        match channel {
            Some(channel) => {
                let known = scene.deployer.channel(channel.terms().id()).await.unwrap().unwrap();
                assert_eq!(known.settled.units(), *paid, "charged exactly what was answered");
                assert_eq!(channel.sums().spent.units(), *paid);
                assert!(channel.sums().reserved <= channel.sums().deposit);
            }
            None => {
                let left = scene.deployer.balance(*client).await.unwrap();
                assert_eq!(deposit.units() - left.units(), *paid, "escrows ended completed or refunded");
            }
        }
    }
    let held = scene.deployer.balance(trust.domain.contract).await.unwrap();
    assert_eq!(held, Amount::ZERO, "no escrow is left behind");
    drop(running);
    println!(
        "{KILLS} kills: {} requests answered and settled (100 %), {} refunded, {} turned away unpaid; 0 lost, 0 double; {} base units",
        all.answered, all.refunded, all.unpaid, all.paid
    );
    assert!(all.answered > KILLS, "there was hardly any load");
}
