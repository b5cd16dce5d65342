//! Registry nodes as processes, as operators run them: what they say, and that no request is lost when one of them is killed.

#[cfg(target_os = "linux")]
mod hosts;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use ncn_client::{Client, Order, Payment, evm::EvmLedger};
use ncn_core::Value;
use ncn_devnet::{quickstart, well_known_key, well_known_secret};
use serde_json::Value as Json;

use crate::{
    cli::Devnet,
    scene::ncn,
    wait::{TIMEOUT, eventually, eventually_blocking},
};

/// The processes of a network of their own, on the chain of a development network.
struct Scene {
    devnet: Devnet,
    files: tempfile::TempDir,
}

/// A process that ends with the test.
struct Program {
    process: Child,
    said: Vec<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        // SIGKILL: nothing is closed, flushed or said.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Program {
    /// Sends it a signal: its name without `SIG`.
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// The first URL, or what begins like this, that it has said.
    fn word(&self, start: &str) -> String {
        let mut words = self.said.iter().flat_map(|line| line.split_whitespace());
        words.find(|word| word.starts_with(start)).unwrap().to_owned()
    }
}

impl Scene {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let devnet = Devnet::start_with(files.path(), &[]);
        Self { devnet, files }
    }

    fn here(&self) -> &Path {
        self.files.path()
    }

    fn key(&self, role: &str, number: usize) -> String {
        let path = self.here().join(format!("{role}-{number}.key"));
        fs::write(&path, well_known_secret(role, number).to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ncn());
        command.args(arguments).env("NCN_MODELS", self.here().join("store")).current_dir(self.here()).env_remove("NCN_RPC");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Json {
        serde_json::from_str(&self.good(&[arguments, &["--json"]].concat())).unwrap()
    }

    fn bad(&self, arguments: &[&str], status: i32, says: &str) {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.contains(says) && error.lines().count() == 1, "{arguments:?}: {error}");
    }

    /// Starts a program, and returns once it has said a line that begins like this.
    fn start(&self, arguments: &[&str], ready: &'static str) -> Program {
        Self::launch(self.command(arguments), ready)
    }

    fn launch(mut command: Command, ready: &'static str) -> Program {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let (output, (sender, lines)) = (process.stdout.take().unwrap(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            let mut said = Vec::new();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let is_ready = line.starts_with(ready);
                said.push(line);
                if is_ready {
                    let _ = sender.send(std::mem::take(&mut said));
                }
            }
        });
        let mut program = Program { process, said: Vec::new() };
        program.said = lines.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("{command:?} did not start"));
        program
    }

    /// A registry node, which with a number is that validator.
    fn registry(&self, number: usize, listen: &str, p2p: &str, bootstrap: Option<&str>) -> Program {
        let (state, key) = (format!("registry-{number}"), self.key("validator", number));
        let node = ["registry", "--rpc", &self.devnet.rpc, "--listen", listen, "--p2p", p2p, "--state", &state];
        let bootstrap = bootstrap.map(|address| ["--bootstrap", address]);
        let more = bootstrap.as_ref().map_or(&[][..], |bootstrap| bootstrap);
        self.start(&[&node[..], more, &["--validator-key", &key]].concat(), "it is the validator")
    }
}

const ANY: &str = "127.0.0.1:0";

/// A port of this machine that nobody has now: a process that is to be started again needs the same one.
fn free_address() -> String {
    std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap().to_string()
}

#[test]
fn what_registry_nodes_know_is_shown() {
    let scene = Scene::new();
    let registries = ["--registry", &scene.devnet.registries];
    let all = |command: &[&str]| scene.json(&[command, &registries[..]].concat());
    let first = ["--registry", &scene.devnet.registry];
    let one = |command: &[&str]| scene.json(&[command, &first[..]].concat());

    let status = all(&["registry", "status"]);
    assert_eq!(status.as_object().unwrap().len(), 3);
    for status in status.as_object().unwrap().values() {
        assert_eq!((&status["nodes"], &status["subnets"]), (&8.into(), &1.into()), "{status}");
        assert!(status["peer"].as_str().unwrap().starts_with("12D3Koo") && !status["addresses"].as_array().unwrap().is_empty());
        assert!(!status["peers"].as_array().unwrap().is_empty(), "{status}");
    }
    assert_eq!(all(&["registry", "peers"]).as_object().unwrap().len(), 3);
    assert_eq!(one(&["registry", "nodes"]).as_array().unwrap().len(), 8);
    assert_eq!(one(&["registry", "validators"]).as_array().unwrap().len(), 5);
    let subnets = one(&["registry", "subnets"]);
    assert_eq!(subnets[0]["name"], "quickstart");
    assert_eq!(one(&["subnet", "list"]), subnets);
    let shown = one(&["subnet", "show", "quickstart"]);
    assert_eq!(shown["nodes"].as_array().unwrap().len(), 3, "a gateway and two compute nodes");
    assert_eq!(one(&["subnet", "show", shown["id"].as_str().unwrap()])["id"], shown["id"]);
    assert!(
        scene.good(&[&["registry", "status"], &first[..]].concat()).contains("knows      8 nodes, 1 subnets, 0 pending requests")
    );
    scene.bad(&[&["subnet", "show", "nothing"], &first[..]].concat(), 2, "subnet nothing: the registry knows none of this name");
    scene.bad(&["registry", "status", "--registry", "http://127.0.0.1:1"], 1, "http://127.0.0.1:1: ");

    let own = ["--key", "keys/client-0.key", "--rpc", &scene.devnet.rpc];
    let create = ["subnet", "create", "--subnet", "mine"];
    scene.bad(&[&create[..], &first, &own, &["--max-fee", "1"]].concat(), 2, "--max-fee: creating the subnet costs 10 NCN");
    let made = one(&[&create[..], &own].concat());
    assert_eq!((&made["name"], &made["models"][0]["name"]), (&"mine".into(), &quickstart::NAME.into()));
    let everywhere = || {
        let statuses = all(&["registry", "status"]);
        statuses.as_object().unwrap().values().all(|status| status["subnets"] == 2)
    };
    eventually_blocking("every registry node knows the subnet", everywhere);
    let again = one(&[&create[..], &own].concat());
    assert_eq!(again["id"], made["id"], "creating it again pays nothing, and says again what it offers");
    scene.bad(&[&["subnet", "join", "mine"], &first[..]].concat(), 1, "none of its gateways is on the network now");

    let node = well_known_key("compute", 0).address();
    let key = scene.key("compute", 0);
    let left = one(&["subnet", "leave", "--key", &key, "--rpc", &scene.devnet.rpc]);
    assert_eq!(left["left"], serde_json::json!(node));
    let stranger = ["subnet", "leave", "--key", "keys/client-1.key", "--rpc", &scene.devnet.rpc];
    scene.bad(&[&stranger[..], &first].concat(), 1, "is not registered");
}

#[test]
fn a_node_joins_a_subnet_with_nothing_but_its_name() {
    let scene = Scene::new();
    let package = crate::scene::repository("ncn-node/models/digits");
    scene.good(&["model", "add", package.to_str().unwrap(), "--store", "origin"]);
    let server = scene.start(&["model", "serve", "--store", "origin", "--listen", ANY], "serving");
    let (rpc, registries, source) = (&*scene.devnet.rpc, &*scene.devnet.registries, server.word("http://"));
    let gateway = ["gateway", "--listen", ANY, "--registry", registries, "--rpc", rpc, "--key", "keys/client-0.key"];
    let gateway = [&gateway[..], &["--state", "gateway", "--subnet", "mine", "--model-source", &source]].concat();
    let gateway = scene.start(&gateway, "gateway 0x");

    scene.bad(&["subnet", "join", "mine", "--registry", registries, "--model", "cats"], 2, "--model: the subnet offers: digits");
    let joined = scene.json(&["subnet", "join", "mine", "--registry", registries]);
    assert_eq!(joined["gateways"][0], gateway.word("http://"));
    let told = scene.good(&["subnet", "join", "mine", "--registry", registries]);
    let words: Vec<_> = told.trim().strip_prefix("run: ncn ").unwrap().split(' ').collect();
    let key = scene.key("compute", 7);
    let words: Vec<_> = words.into_iter().map(|word| if word == "FILE" { &*key } else { word }).collect();
    let words: Vec<_> = words.into_iter().map(|word| if word == "URL" { rpc } else { word }).collect();
    let _node = scene.start(&words, "compute node 0x");
    let serves = || scene.json(&["subnet", "show", "mine", "--registry", registries])["nodes"].as_array().unwrap().len() == 2;
    eventually_blocking("the node is in the subnet", serves);
}

/// Two gateways coordinate in one subnet, which one compute node serves; nobody is given a manifest but the owner.
#[test]
fn two_gateways_share_a_subnet() {
    let scene = Scene::new();
    let package = crate::scene::repository("ncn-node/models/digits");
    scene.good(&["model", "add", package.to_str().unwrap(), "--store", "origin"]);
    let server = scene.start(&["model", "serve", "--store", "origin", "--listen", ANY], "serving");
    let (rpc, registries, source) = (&*scene.devnet.rpc, &*scene.devnet.registries, server.word("http://"));
    let gateway = |key: &'static str, more: &[&str]| {
        let gateway = ["gateway", "--listen", ANY, "--registry", registries, "--rpc", rpc, "--key", key];
        [
            &gateway[..],
            &["--subnet", "shared", "--model-source", &source, "--state", if more[0] == "--owner" { "second" } else { "first" }],
            more,
        ]
        .concat()
        .into_iter()
        .map(ToOwned::to_owned)
        .collect()
    };
    let start = |arguments: Vec<String>| {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        scene.start(&arguments, "gateway 0x")
    };
    let (owner, member) = (well_known_key("client", 0).address().to_string(), well_known_key("compute", 5).address().to_string());
    let key: &'static str = scene.key("compute", 5).leak();
    let refused = |status, says| {
        let arguments: Vec<String> = gateway(key, &["--owner", &owner]);
        scene.bad(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), status, says);
    };
    refused(1, "is not registered: its owner has to register it first");
    let own = ["subnet", "create", "--subnet", "shared", "--registry", registries, "--rpc", rpc, "--key", "keys/client-0.key"];
    scene.good(&own);
    let everywhere = || {
        let statuses = scene.json(&["registry", "status", "--registry", registries]);
        statuses.as_object().unwrap().values().all(|status| status["subnets"] == 2)
    };
    eventually_blocking("every registry node knows the subnet", everywhere);
    refused(2, "does not name this gateway");
    let first = start(gateway("keys/client-0.key", &["--with-gateway", &member]));
    let shown = || scene.json(&["subnet", "show", "shared", "--registry", registries]);
    assert_eq!(shown()["gateways"], serde_json::json!([member.to_lowercase()]));
    let digest = shown()["models"][0]["digest"].as_str().unwrap().to_owned();
    // Every registry node finds the manifest by its digest, though the gateway has brought it to one.
    for url in registries.split(',') {
        let pull = ["model", "pull", &digest, "--registry", url, "--store", url.rsplit_once(':').unwrap().1];
        let found = || scene.run(&pull).status.success();
        eventually_blocking("a registry node finds the manifest", found);
    }
    scene.bad(&["model", "pull", "digits", "--registry", registries], 2, "the registry knows models by their digests");

    let second = start(gateway(key, &["--owner", &owner]));
    let urls = [first.word("http://"), second.word("http://")];
    let node = ["compute", "--gateway", &urls.join(","), "--registry", registries, "--rpc", rpc, "--model", "digits"];
    let _node = scene.start(&[&node[..], &["--key", &scene.key("compute", 7)]].concat(), "compute node 0x");
    for url in &urls {
        let infer =
            ["infer", "--gateway", url, "--rpc", rpc, "--key", "keys/client-1.key", "--model", "digits", "--yes", "--input"];
        let answered = || {
            String::from_utf8_lossy(&scene.run(&[&infer[..], &[crate::scene::digit(7).to_str().unwrap()]].concat()).stdout)
                .contains("label: 7")
        };
        eventually_blocking("a gateway has the node", answered);
    }
}

/// Any registry node is killed while requests come, and comes back: none of them is lost, and nobody pays for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_when_a_registry_node_is_killed() {
    let scene = tokio::task::spawn_blocking(Scene::new).await.unwrap();
    let (first, first_p2p) = (free_address(), free_address());
    let mut nodes = vec![scene.registry(0, &first, &first_p2p, None)];
    let known = nodes[0].said.iter().find(|line| line.contains("/tcp/")).unwrap().split(' ').next_back().unwrap().to_owned();
    for number in 1..5 {
        nodes.push(scene.registry(number, ANY, ANY, Some(&known)));
    }
    let urls: Vec<_> = nodes.iter().map(|node| node.word("http://")).collect();
    let (rpc, registries) = (&*scene.devnet.rpc, urls[..3].join(","));
    let everyone = || {
        let statuses = scene.json(&["registry", "status", "--registry", &urls.join(",")]);
        statuses.as_object().unwrap().values().all(|status| status["nodes"] == 5)
    };
    eventually_blocking("everyone knows everyone", everyone);

    let gateway = ["gateway", "--listen", ANY, "--registry", &registries, "--rpc", rpc, "--key", "keys/client-0.key"];
    let gateway = scene.start(&[&gateway[..], &["--state", "gateway", "--subnet", "killed"]].concat(), "gateway 0x");
    let url = gateway.word("http://");
    // There is a `..` in it, which a confined worker could not follow.
    let package = crate::scene::repository("ncn-node/models/digits");
    let node = ["compute", "--gateway", &url, "--registry", &registries, "--rpc", rpc, "--model", package.to_str().unwrap()];
    let _node = scene.start(&[&node[..], &["--key", &scene.key("compute", 7)]].concat(), "compute node 0x");

    let ledger = ledger(rpc, 1).await;
    let client = Client::builder().gateway(&url).payment(Payment::OnChain(ledger)).timeout(TIMEOUT);
    let client = client.max_price(ncn_core::Amount::TOKEN).build().unwrap();
    let (ended, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let asking = join_all((0..4).map(|_| {
        let (client, ended, answered) = (client.clone(), ended.clone(), answered.clone());
        tokio::spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                let order = Order::new(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]);
                let quoted = client.submit(order.timeout(Duration::from_secs(90))).await.expect("no request is refused");
                let answer = quoted.pay().await.expect("no payment is lost").finish().await.expect("no request is lost");
                assert_eq!(answer.output.text("label"), Some("7"));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    }));
    let more = async |answered: &AtomicU32| {
        let before = answered.load(Ordering::Relaxed);
        eventually("requests are answered", async || answered.load(Ordering::Relaxed) >= before + 12).await;
    };
    let asking = tokio::spawn(asking);
    more(&answered).await;
    // The one that the gateway prefers, and that knows the most.
    nodes.remove(0);
    more(&answered).await;
    nodes.insert(0, scene.registry(0, &first, &first_p2p, None));
    more(&answered).await;
    // Another one: of five validators four are left.
    nodes.remove(1);
    more(&answered).await;
    ended.store(true, Ordering::Relaxed);
    for asked in asking.await.unwrap() {
        asked.unwrap();
    }
    println!("{} requests were answered", answered.load(Ordering::Relaxed));
}

/// A gateway that is told to stop while requests come gives everyone who has paid an answer first.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_owes_nobody() {
    let scene = tokio::task::spawn_blocking(Scene::new).await.unwrap();
    let (rpc, registries) = (&*scene.devnet.rpc, &*scene.devnet.registries);
    let metrics = free_address();
    let config =
        format!("listen = \"{ANY}\"\nregistry = \"{registries}\"\nrpc = \"{rpc}\"\nmetrics = \"{metrics}\"\ndrain = 120\n");
    fs::write(scene.here().join("gateway.toml"), config + "key = \"keys/client-0.key\"\nstate = \"gateway\"\nsubnet = \"stops\"\n")
        .unwrap();
    let mut gateway = scene.start(&["gateway", "--config", "gateway.toml"], "gateway 0x");
    let url = gateway.word("http://");
    let package = crate::scene::repository("ncn-node/models/digits");
    let node = ["compute", "--gateway", &url, "--registry", registries, "--rpc", rpc, "--model", package.to_str().unwrap()];
    let node = scene.start(&[&node[..], &["--key", &scene.key("compute", 7)]].concat(), "compute node 0x");

    let client = Client::builder().gateway(url.replace("http:", "grpc:")).payment(Payment::OnChain(ledger(rpc, 1).await));
    let client = client.timeout(TIMEOUT).max_price(ncn_core::Amount::TOKEN).build().unwrap();
    let (stopping, paid, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let asking = join_all((0..8).map(|_| {
        let (client, stopping, paid, answered) = (client.clone(), stopping.clone(), paid.clone(), answered.clone());
        tokio::spawn(async move {
            loop {
                let order =
                    Order::new(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).timeout(Duration::from_mins(1));
                let quoted = client.submit(order).await;
                let Ok(quoted) = quoted else {
                    assert!(stopping.load(Ordering::Relaxed), "nothing is refused before");
                    return;
                };
                let running = quoted.pay().await.expect("it is paid");
                paid.fetch_add(1, Ordering::Relaxed);
                running.finish().await.expect("what is paid is answered");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    }));
    let asking = tokio::spawn(asking);
    eventually("requests are answered", async || answered.load(Ordering::Relaxed) >= 12).await;
    let text = async || reqwest::get(format!("http://{metrics}/metrics")).await.unwrap().text().await.unwrap();
    let measured = text().await;
    for name in
        ["ncn_gateway_requests_total{outcome=\"completed\"}", "ncn_gateway_earned_tokens", "ncn_gateway_state_seconds_bucket"]
    {
        assert!(measured.contains(name), "{name}: {measured}");
    }
    let on_its_port = reqwest::get(format!("{url}/metrics")).await.unwrap().status();
    assert_eq!(on_its_port, 404, "they are at their own address only");
    stopping.store(true, Ordering::Relaxed);
    gateway.signal("TERM");
    for asked in asking.await.unwrap() {
        asked.unwrap();
    }
    let status = tokio::task::spawn_blocking(move || gateway.process.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(paid.load(Ordering::Relaxed), answered.load(Ordering::Relaxed));
    println!("{} requests were answered", answered.load(Ordering::Relaxed));
    drop(node);
}

async fn ledger(rpc: &str, number: usize) -> EvmLedger {
    use ncn_client::evm::{JsonRpc, RpcOptions, SendOptions};
    let backend = Arc::new(JsonRpc::connect(&[rpc.to_owned()], None, RpcOptions::default()).await.unwrap());
    let deployment = ncn_devnet::well_known_deployment();
    EvmLedger::connect(backend, deployment, well_known_key("client", number), SendOptions::default()).await.unwrap()
}
