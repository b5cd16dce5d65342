//! `ncn model` as people run it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use ncn_models::ModelStore;
use ncn_node::gateway::GatewayOptions;
use serde_json::{Value, json};

use crate::{
    models::{content, package, server::Behavior, server::Server},
    scene::{ncn, network, repository},
    wait::eventually_blocking,
};

fn command(store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(ncn());
    command.arg("model").args(arguments).env("NCN_MODELS", store);
    command
}

fn run(store: &Path, arguments: &[&str]) -> Output {
    command(store, arguments).output().unwrap()
}

fn good(store: &Path, arguments: &[&str]) -> String {
    let output = run(store, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {error}");
    assert_eq!(error, "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn fails(store: &Path, arguments: &[&str], status: i32, says: &str) {
    let output = run(store, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
    assert!(error.starts_with("error: ") && error.contains(says) && error.lines().count() == 1, "{arguments:?}: {error}");
}

fn digest_of(line: &str) -> String {
    line.split_whitespace().nth(2).unwrap().to_owned()
}

/// Waits until so much of some file has come.
fn wait_for(store: &Path, bytes: u64) {
    let partial = || {
        let mut entries = fs::read_dir(store.join("blobs/sha256")).ok()?.flatten();
        entries.find(|entry| entry.path().extension().is_some_and(|extension| extension == "partial"))
    };
    let there = || partial().and_then(|entry| entry.metadata().ok()).map_or(0, |there| there.len());
    eventually_blocking("so much comes", || there() >= bytes);
}

#[test]
fn the_life_of_a_package() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    assert!(good(&store, &["list"]).starts_with("no models in "));
    assert_eq!(good(&store, &["list", "--json"]), "[]\n");
    assert_eq!(good(&store, &["verify"]), "");

    let package = package("tiny", "1.2", &[("a.bin", &content(1_500, 1)), ("b.bin", b"b")]);
    let path = package.path().to_str().unwrap();
    let line = good(&store, &["pack", "--no-load", path]);
    assert!(line.starts_with("tiny 1.2 ") && digest_of(&line).len() == 64, "{line}");
    assert_eq!(good(&store, &["add", path]), line);
    let digest = digest_of(&line);
    let list = good(&store, &["list"]);
    let rows: Vec<Vec<_>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [
            vec!["NAME", "VERSION", "FORMAT", "SIZE", "DIGEST", "FILES"],
            vec!["tiny", "1.2", "echo", "1.50", "kB", &digest[..12], "complete"],
        ]
    );
    assert_eq!(good(&store, &["verify", "tiny"]), "tiny 1.2: whole\n");

    let blob =
        fs::read_dir(store.join("blobs/sha256")).unwrap().map(|e| e.unwrap()).find(|e| e.metadata().unwrap().len() > 1).unwrap();
    fs::remove_file(blob.path()).unwrap();
    fs::write(blob.path(), content(1_500, 2)).unwrap();
    let output = run(&store, &["verify"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        told,
        format!("tiny 1.2: a.bin was corrupt or missing\ntiny 1.2: fetch it again with: ncn model pull {digest} --from URL\n")
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: 1 of 1 models are not whole\n");
    let listed: Value = serde_json::from_str(&good(&store, &["list", "--json"])).unwrap();
    assert_eq!((&listed[0]["complete"], &listed[0]["missing"][0]["bytes"]), (&false.into(), &1_500.into()));
    assert!(good(&store, &["list"]).contains("1.50 kB to fetch, 1 of 2 files"));
    fails(
        &store,
        &["push", "tiny", "--to", &format!("file://{}/out", directory.path().display())],
        2,
        "ncn model pull tiny --from URL",
    );
    good(&store, &["add", path]);
    assert_eq!(good(&store, &["verify"]), "tiny 1.2: whole\n");

    assert_eq!(good(&store, &["remove", "tiny@1.2"]), "removed tiny 1.2, 1.50 kB freed\n");
    fails(&store, &["remove", "tiny"], 2, "is not in the store: see `ncn model list`");
    fails(&store, &["pull", "tiny"], 2, "is not in the store");
    fails(&store, &["add", "/no/such/directory"], 2, "/no/such/directory: there is no package");
    fails(&store, &["pull", "tiny", "--from", "/tmp"], 2, "is no URL");
    fails(&store, &["pull", "tiny", "--from", "http://127.0.0.1:1"], 1, "Connection refused");
    fails(&store, &["pull", "tiny", "--gateway", "http://127.0.0.1:1"], 1, "unreachable");
    fails(&store, &["serve", "--listen", "192.0.2.1:1"], 2, "--listen 192.0.2.1:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_interrupted_or_killed_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let origin = ModelStore::open(directory.path().join("origin")).unwrap();
    let all = content(2_000_000, 1);
    let model = origin.add(package("large", "1", &[("large.bin", &all)]).path()).await.unwrap();
    let store = directory.path().join("store");
    let tested = tokio::task::spawn_blocking({
        let runtime = tokio::runtime::Handle::current();
        let (origin, store) = (origin.directory().to_owned(), store.clone());
        move || {
            let start = |behavior| runtime.block_on(Server::start(&origin, behavior));
            for (byte, signal, code) in [(500_000, "-INT", 130), (900_000, "-KILL", 0), (1_300_000, "-TERM", 143)] {
                let stuck = start(Behavior::StopsAt { byte });
                let mut process =
                    command(&store, &["pull", "large", "--from", stuck.url()]).stderr(Stdio::piped()).spawn().unwrap();
                wait_for(&store, byte as u64);
                Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap();
                let status = process.wait().unwrap();
                let mut error = String::new();
                std::io::Read::read_to_string(process.stderr.as_mut().unwrap(), &mut error).unwrap();
                if signal != "-KILL" {
                    assert_eq!(
                        (status.code(), error.as_str()),
                        (Some(code), "error: interrupted; what was fetched is kept: the same command goes on with it\n")
                    );
                }
                assert!(good(&store, &["list"]).contains("to fetch, 1 of 1 files"));
            }
            let honest = start(Behavior::Honest);
            good(&store, &["pull", "large", "--from", honest.url()]);
            assert_eq!(honest.asked("/blobs/").iter().map(|(_, start)| *start).collect::<Vec<_>>(), [Some(1_300_000)]);
        }
    });
    tested.await.unwrap();
    let package = ModelStore::open(store).unwrap().package(&hex::encode(model.digest())).await.unwrap();
    assert_eq!(fs::read(package.directory.join("large.bin")).unwrap(), all);
}

/// A process that serves its store, until the test ends.
struct Peer(Child, String);

impl Peer {
    fn start(store: &Path) -> Self {
        let mut process = command(store, &["serve", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().last().unwrap().to_owned();
        Self(process, url)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_processes_pull_from_a_peer_into_one_store() {
    let directory = tempfile::tempdir().unwrap();
    let (origin, store) = (directory.path().join("origin"), directory.path().join("store"));
    let files: Vec<_> = (0..8).map(|n| (format!("{n}.bin"), content(1_000_000, n))).collect();
    let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
    let line = good(&origin, &["add", package("many", "1", &files).path().to_str().unwrap()]);
    let peer = Peer::start(&origin);
    let pulls: Vec<_> =
        (0..4).map(|_| command(&store, &["pull", "many", "--from", &peer.1]).stdout(Stdio::piped()).spawn().unwrap()).collect();
    for pull in pulls {
        let output = pull.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), line);
    }
    assert_eq!(good(&store, &["verify"]), "many 1: whole\n");
    let blobs: Vec<PathBuf> = fs::read_dir(store.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(blobs.len(), 8, "nothing else is left: {blobs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compute_node_finds_the_files_of_its_gateways_models() {
    let directory = tempfile::tempdir().unwrap();
    let (origin, store) = (directory.path().join("origin"), directory.path().join("store"));
    let digits = repository("ncn-node/models/digits");
    let line = good(&origin, &["add", digits.to_str().unwrap()]);
    let peer = Peer::start(&origin);
    let model_sources = vec!["file:///etc".into(), "http://127.0.0.1:1".into(), peer.1.clone()];
    let network = network()
        .gateway(|gateway| gateway.options(GatewayOptions { model_sources, ..GatewayOptions::default() }))
        .start()
        .await
        .unwrap();
    let gateway = network.gateway_url();
    let output = tokio::task::spawn_blocking(move || {
        fails(&store, &["pull", "dogs", "--gateway", &gateway], 2, "it has: digits");
        run(&store, &["pull", "digits", "--gateway", &gateway])
    });
    let output = output.await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), line);
    assert!(error.contains("file:///etc: is a directory on whatever machine named it"), "{error}");
}

#[test]
fn a_manifest_is_drafted_from_a_graph_and_held_against_it() {
    let directory = tempfile::tempdir().unwrap();
    let package = directory.path().join("my digits");
    fs::create_dir(&package).unwrap();
    let run = |arguments: &[&str]| {
        let package = package.to_str().unwrap();
        let output = Command::new(ncn()).arg("model").args(arguments).arg(package).current_dir(directory.path()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    };
    let (status, said) = run(&["init"]);
    assert!(status == 2 && said.contains("no file of a model"), "{said}");
    fs::copy(repository("ncn-node/models/digits/model.onnx"), package.join("model.onnx")).unwrap();
    let (status, said) = run(&["init"]);
    assert!(status == 0 && said.contains("ncn model pack"), "{said}");
    let manifest = package.join("manifest.json");
    let mut drafted: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    assert_eq!(drafted["inputs"], json!([{ "type": "tensor", "name": "image", "dtype": "f32", "shape": ["batch", 1, 8, 8] }]));
    assert_eq!(drafted["outputs"], json!([{ "type": "tensor", "name": "scores", "dtype": "f32", "shape": ["batch", 10] }]));
    assert_eq!((&drafted["name"], &drafted["entry"]), (&json!("my-digits"), &json!("model.onnx")));
    let (status, said) = run(&["pack"]);
    assert!(status == 0 && said.contains("it loads"), "{said}");
    assert_eq!(run(&["init"]).0, 2, "there is one already");

    drafted["outputs"][0]["shape"] = json!(["batch", 11]);
    fs::write(&manifest, drafted.to_string()).unwrap();
    let (status, said) = run(&["pack"]);
    assert!(status == 1 && said.contains("does not load") && said.contains("scores"), "{said}");
    assert_eq!(run(&["pack", "--no-load"]).0, 0);
}
