//! Real models on a network of real processes, as people run them.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    iter,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Instant,
};

use ncn_devnet::quickstart;
use ncn_executor::sandbox::HELPER_VARIABLE;
use ncn_models::MANIFEST_FILE;
use serde_json::Value;

use crate::{
    cli::Devnet,
    real_models,
    scene::{digit, helper, ncn},
    wait::TIMEOUT,
};

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(ncn()).args(arguments).env("NCN_MODELS", directory.join("store")).current_dir(directory).output().unwrap()
}

fn good(directory: &Path, arguments: &[&str]) -> String {
    let output = run(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(directory: &Path, arguments: &[&str], status: i32, says: &str) {
    let output = run(directory, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
    assert!(error.starts_with("error: ") && error.contains(says) && error.lines().count() == 1, "{arguments:?}: {error}");
}

/// A compute node's process, which ends with the test.
struct Node(Child);

impl Node {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(ncn());
        command.args(arguments).env("NCN_MODELS", directory.join("store")).env(HELPER_VARIABLE, helper()).current_dir(directory);
        let mut node = Self(command.stdout(Stdio::piped()).spawn().unwrap());
        let (output, (sender, line)) = (node.0.stdout.take().unwrap(), std::sync::mpsc::channel());
        std::thread::spawn(move || sender.send(BufReader::new(output).lines().next()));
        let line = line.recv_timeout(TIMEOUT).expect("it says in time that it is ready");
        assert!(line.is_some_and(|line| line.unwrap().starts_with("compute node 0x")), "it did not start");
        node
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn language_and_embedding_models_answer_on_a_devnet() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let (smollm2, minilm) = (real_models::directory("smollm2"), real_models::directory("minilm"));
    good(here, &["model", "add", minilm.to_str().unwrap()]);
    let store = here.join("store");
    let models = ["--model", smollm2.to_str().unwrap(), "--model", "minilm", "--store", store.to_str().unwrap()];
    let devnet = Devnet::start_with(here, &models);
    let request = ["infer", "--gateway", &devnet.gateway, "--rpc", &devnet.rpc, "--key", "keys/client-0.key", "--yes"];
    let ask = |more: &[&str]| good(here, &[&request[..], more].concat());

    // What an earlier run has left behind is not this one's to take away.
    let left = here.join("ncn-receipt.json.unfinished");
    fs::write(&left, "an earlier quote").unwrap();
    let counting = "prompt=1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,";
    let counted = ask(&["--model", "smollm2", "--text", counting, "--parameters", r#"{"max_tokens":8}"#]);
    assert!(counted.contains("text:  12, 13,"), "{counted}");
    assert_eq!(fs::read_to_string(&left).unwrap(), "an earlier quote");
    let unfinished = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".unfinished");
    assert_eq!(fs::read_dir(here).unwrap().filter(|entry| unfinished(&entry.as_ref().unwrap().file_name())).count(), 1);
    let vector = ask(&["--model", "minilm", "--text", "The cat sits on the mat.", "--json"]);
    let vector: Value = serde_json::from_str(&vector).unwrap();
    assert!(vector["output"]["embedding"].is_object() || vector["output"]["embedding"].is_array(), "{vector}");
    fails(
        here,
        &[&request[..], &["--model", "smollm2", "--text", counting, "--parameters", r#"{"max_tokens":0}"#]].concat(),
        2,
        "`parameters.max_tokens`: ask for at least 1 token",
    );
    fails(here, &[&request[..], &["--model", "smollm2", "--text", ""]].concat(), 2, "prompt: is empty");
    fails(here, &["devnet", "--onnxruntime", "/nonexistent/lib.so"], 2, "--onnxruntime: ");
    fails(here, &["devnet", "--engine", "nowhere"], 2, "--engine: ");
    fails(here, &["devnet", "--model", "./nothing"], 2, "--model ./nothing: there is no package");
}

#[test]
fn a_compute_node_joins_fetches_its_model_and_serves() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let devnet = Devnet::start_with(here, &[]);
    let seven = digit(7);
    let request = ["infer", "--gateway", &devnet.gateway, "--rpc", &devnet.rpc, "--key", "keys/client-0.key", "--yes"];
    let request = [&request[..], &["--model", quickstart::NAME, "--input", seven.to_str().unwrap(), "--json"]].concat();
    let node = ["compute", "--gateway", &devnet.gateway, "--registry", &devnet.registry, "--rpc", &devnet.rpc];
    let node = [&node[..], &["--key", "keys/client-1.key", "--sandbox", "strict"]].concat();

    let package = here.join("digits");
    fs::create_dir(&package).unwrap();
    quickstart::unpack(&package).unwrap();
    fs::write(package.join(MANIFEST_FILE), quickstart::MANIFEST).unwrap();
    let other = real_models::directory("minilm");
    fails(here, &node, 2, "--model is missing: the gateway offers: digits");
    fails(here, &[&node[..], &["--model", other.to_str().unwrap()]].concat(), 2, "the gateway does not offer it");
    // This gateway was not told where its models' files are.
    fails(here, &[&node[..], &["--model", quickstart::NAME]].concat(), 1, "names no source of model files");

    good(here, &["model", "add", package.to_str().unwrap()]);
    let _node = Node::start(here, &[&node[..], &["--model", quickstart::NAME]].concat());
    let address = ncn_devnet::well_known_key("client", 1).address().to_string();
    // On a busy machine it may have been slow to answer at first, and is then asked last for a minute.
    let started = Instant::now();
    let served = iter::repeat_with(|| started.elapsed() < TIMEOUT).take_while(|in_time| *in_time).any(|_| {
        let answer = good(here, &request);
        let receipt: Value = serde_json::from_slice(&fs::read(here.join("ncn-receipt.json")).unwrap()).unwrap();
        assert!(answer.contains("\"7\""), "{answer}");
        let result = &receipt["delivery"]["results"][0]["message"];
        let ours = result["compute"].as_str().is_some_and(|compute| compute.eq_ignore_ascii_case(&address));
        assert!(!ours || result["confinement"] == "full", "{result}");
        ours
    });
    assert!(served, "none of the requests was for the new node");
}
