//! What receipts are checked against, as the program shows it and takes it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Instant,
};

use serde_json::Value;

use crate::{
    cli::Devnet,
    scene::{digit, ncn},
    wait::TIMEOUT,
};

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(ncn()).args(arguments).current_dir(directory).output().unwrap()
}

fn good(directory: &Path, arguments: &[&str]) -> String {
    let output = run(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn bad(directory: &Path, arguments: &[&str], says: &str) {
    let output = run(directory, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains(says), "{arguments:?}: {error}");
}

#[test]
fn a_network_is_pinned_while_validators_join_and_a_receipt_is_of_its_output() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let devnet = Devnet::start_with(here, &[]);
    let (gateway, rpc, seven) = (devnet.gateway.as_str(), devnet.rpc.as_str(), digit(7));
    let known = |from: &[&str]| {
        let shown: Value = serde_json::from_str(&good(here, &[&["network", "--json"], from].concat())).unwrap();
        let hash = |name: &str| shown[name].as_str().unwrap().to_owned();
        (hash("network"), hash("contracts"))
    };
    let (network, contracts) = known(&["--rpc", rpc, "--save", "trust.json"]);
    assert_eq!(known(&["--gateway", gateway]), (network.clone(), contracts.clone()));
    let seven = seven.to_str().unwrap();
    let infer =
        ["infer", "--gateway", gateway, "--key", "keys/client-0.key", "--model", "digits", "--input", seven, "--yes", "--relayed"];
    good(here, &[&infer[..], &["--network", &network, "--output", "out"]].concat());

    let verify = |more: &[&'static str]| [&["verify", "ncn-receipt.json"], more].concat();
    assert!(good(here, &verify(&[])).contains("compare"));
    good(here, &verify(&["--trust-root", "trust.json"]));
    assert!(good(here, &[&verify(&[])[..], &["--network", &network]].concat()).contains("(trusted)"));
    bad(here, &[&verify(&[])[..], &["--network", &format!("0x{}", "1".repeat(64))]].concat(), "the receipt is of network");
    bad(here, &[&verify(&[])[..], &["--network", &contracts]].concat(), "add --rpc");
    good(here, &verify(&["--output", "out"]));

    // One joins: what pins the validators is stale, what pins the contracts is not.
    good(here, &["validator", "stake", "--rpc", rpc, "--key", "keys/client-1.key", "--amount", "1000"]);
    let to = format!("0x{}", "7".repeat(40));
    let started = Instant::now();
    // It counts from the second after its stake, by the time of the newest block.
    while known(&["--rpc", rpc]).0 == network {
        good(here, &["wallet", "fund", "--rpc", rpc, "--key", "keys/client-2.key", "--to", &to, "--amount", "0.1"]);
        assert!(started.elapsed() < TIMEOUT, "the validator does not count");
    }
    assert_eq!(known(&["--rpc", rpc]).1, contracts);
    let pinned = [&verify(&[])[..], &["--network", &contracts, "--rpc", rpc]].concat();
    assert!(good(here, &pinned).contains("(trusted)"));
    bad(here, &[&infer[..], &["--network", &contracts]].concat(), "add --rpc");
    bad(here, &[&infer[..], &["--network", &contracts, "--rpc", "http://127.0.0.1:1"]].concat(), "nothing was signed");
    let paid = [&infer[..], &["--network", &contracts, "--rpc", rpc]].concat();
    let started = Instant::now();
    // The gateway looks at the chain now and then.
    while !run(here, &paid).status.success() {
        assert!(started.elapsed() < TIMEOUT, "{}", String::from_utf8_lossy(&run(here, &paid).stderr));
    }
    good(here, &pinned);

    fs::write(here.join("out/label.txt"), "8").unwrap();
    bad(here, &verify(&["--output", "out"]), "is not of the output in out");
    bad(here, &verify(&["--output", "keys"]), "output.json");
}
