//! Registry nodes on hosts of their own: network namespaces behind a bridge, which exist in a namespace of the test's and end with it.

use std::{net::SocketAddr, os::unix::fs::MetadataExt as _};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::*;

const BRIDGE: &str = "10.77.0.1";
const LOCAL: &str = "127.0.0.1";

/// A host: a process that keeps its network namespace, and one end of a cable.
struct Host {
    number: usize,
    keeper: Child,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Host {
    fn new(number: usize) -> Self {
        let keeper = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let host = Self { number, keeper };
        let (own, pid) = (fs::metadata("/proc/self/ns/net").unwrap().ino(), host.keeper.id());
        let has_own = || fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|namespace| namespace.ino() != own);
        eventually_blocking("the host has a network of its own", has_own);
        ip(&format!("link add cable{number} type veth peer name eth0 netns {pid}"));
        ip(&format!("link set cable{number} master bridge up"));
        for inside in ["link set lo up".into(), format!("addr add {}/24 dev eth0", host.address()), "link set eth0 up".into()] {
            let arguments = inside.split(' ');
            let status = host.enter("ip").args(arguments).status().unwrap();
            assert!(status.success(), "ip {inside}");
        }
        host
    }

    fn address(&self) -> String {
        format!("10.77.0.{}", 10 + self.number)
    }

    /// A program on this host.
    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.keeper.id().to_string(), "--net", program]);
        command
    }

    /// Pulls the cable out, or puts it in again: nobody is told.
    fn connect(&self, is_connected: bool) {
        ip(&format!("link set cable{} {}", self.number, if is_connected { "up" } else { "down" }));
    }

    /// A registry node here, which is this validator.
    fn registry(&self, scene: &Scene, rpc: &str, bootstrap: Option<&str>) -> Program {
        let (listen, p2p) = (format!("{}:50050", self.address()), format!("{}:8828", self.address()));
        let (state, key) = (format!("host-{}", self.number), scene.key("validator", self.number));
        let node = ["registry", "--rpc", rpc, "--listen", &listen, "--p2p", &p2p, "--state", &state, "--validator-key", &key];
        let bootstrap = bootstrap.map(|address| ["--bootstrap", address]);
        let mut command = self.enter(ncn().to_str().unwrap());
        command.args(node).args(bootstrap.iter().flatten()).current_dir(scene.here());
        Scene::launch(command, "it is the validator")
    }
}

/// The chain's JSON-RPC is on loopback only, and answers who asks for that: this carries it to the hosts, as if they did.
async fn carry(rpc: &str) -> String {
    let to: SocketAddr = rpc.strip_prefix("http://").unwrap().parse().unwrap();
    let listener = TcpListener::bind((BRIDGE, to.port())).await.unwrap();
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut answers, mut to) = TcpStream::connect(to).await?.into_split();
                let (mut from, mut back) = from.into_split();
                tokio::try_join!(tokio::io::copy(&mut answers, &mut back), pass_on(&mut from, &mut to))
            });
        }
    });
    rpc.replace(LOCAL, BRIDGE)
}

/// Names this machine in requests, in as many bytes.
async fn pass_on(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> std::io::Result<u64> {
    let mut request = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut request).await?;
        let Some(request) = request.get_mut(..length).filter(|request| !request.is_empty()) else { return Ok(0) };
        if let Some(at) = request.windows(BRIDGE.len()).position(|bytes| bytes == BRIDGE.as_bytes()) {
            request[at..at + LOCAL.len()].copy_from_slice(LOCAL.as_bytes());
        }
        to.write_all(request).await?;
    }
}

/// Set in the process that has a namespace of its own.
const INSIDE: &str = "NCN_TEST_NETWORK_NAMESPACE";

#[test]
fn hosts_that_are_cut_off() {
    let tries = Command::new("unshare").args(["--net", "ip", "link", "add", "bridge", "type", "bridge"]).output();
    match tries {
        Ok(output) if output.status.success() => {}
        Ok(output) => return println!("skipped: no network namespaces here: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => return println!("skipped: unshare: {error}"),
    }
    let mut inside = Command::new("unshare");
    inside.arg("--net").arg(std::env::current_exe().unwrap()).env(INSIDE, "1");
    let status = inside.args(["registry_cli::hosts::inside", "--exact", "--ignored", "--nocapture"]).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "hosts_that_are_cut_off runs it in a network namespace"]
async fn inside() {
    assert!(std::env::var_os(INSIDE).is_some(), "this changes the network that it is in: run hosts_that_are_cut_off");
    for arguments in ["link set lo up", "link add bridge type bridge", "addr add 10.77.0.1/24 dev bridge", "link set bridge up"] {
        ip(arguments);
    }
    let scene = tokio::task::spawn_blocking(Scene::new).await.unwrap();
    let (local, rpc) = (scene.devnet.rpc.as_str(), carry(&scene.devnet.rpc).await);
    let hosts: Vec<_> = (0..5).map(Host::new).collect();
    let mut nodes = vec![hosts[0].registry(&scene, &rpc, None)];
    let first = nodes[0].said.iter().find(|line| line.contains("/tcp/")).unwrap().split(' ').next_back().unwrap().to_owned();
    nodes.extend(hosts[1..].iter().map(|host| host.registry(&scene, &rpc, Some(&first))));
    let urls: Vec<_> = nodes.iter().map(|node| node.word("http://")).collect();
    let registries = urls.join(",");
    let everyone = || {
        let statuses = scene.json(&["registry", "status", "--registry", &registries]);
        statuses.as_object().unwrap().values().all(|status| status["nodes"] == 5)
    };
    eventually_blocking("everyone knows everyone", everyone);
    let gateway = ["gateway", "--listen", ANY, "--registry", &registries, "--rpc", local, "--key", "keys/client-0.key"];
    let gateway = scene.start(&[&gateway[..], &["--state", "gateway", "--subnet", "hosts"]].concat(), "gateway 0x");
    let url = gateway.word("http://");
    let package = crate::scene::repository("ncn-node/models/digits");
    let node = ["compute", "--gateway", &url, "--registry", &registries, "--rpc", local, "--model", package.to_str().unwrap()];
    let _node = scene.start(&[&node[..], &["--key", &scene.key("compute", 7)]].concat(), "compute node 0x");

    let ledger = ledger(local, 1).await;
    let balance = async || ledger.balance(ledger.account()).await.unwrap();
    let client = Client::builder().gateway(&url).payment(Payment::OnChain(ledger.clone())).timeout(TIMEOUT);
    let client = client.max_price(ncn_core::Amount::TOKEN).build().unwrap();
    let submit = async || {
        let order = Order::new(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]);
        client.submit(order.timeout(Duration::from_secs(90))).await
    };
    let served = async || {
        let Ok(quoted) = submit().await else { return false };
        let answer = quoted.pay().await.unwrap().finish().await.unwrap();
        answer.output.text("label") == Some("7")
    };
    eventually("all hosts are there", async || Box::pin(served()).await).await;
    // The one that the gateway asks first, and another: three of five are left.
    hosts[0].connect(false);
    hosts[1].connect(false);
    assert!(served().await, "three validators are enough, whichever host is gone");
    hosts[2].connect(false);
    let before = balance().await;
    let refused = submit().await.map(drop).unwrap_err();
    assert_eq!(balance().await, before, "{refused}");
    for host in &hosts[..3] {
        host.connect(true);
    }
    eventually("the hosts are back", async || Box::pin(served()).await).await;
}
