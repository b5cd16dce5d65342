//! What users of such programs expect without being told.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::Path,
    process::{Command, Output, Stdio},
    time::Instant,
};

use ncn_executor::sandbox::HELPER_VARIABLE;
use serde_json::Value;

use crate::{
    scene::{digit, helper, ncn, repository},
    wait::TIMEOUT,
};

fn run(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(ncn());
    command.args(arguments).current_dir(directory).env_remove("NCN_MODELS").envs(variables.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_is_a_command_too() {
    let here = tempfile::tempdir().unwrap();
    for arguments in [&["help"][..], &["help", "infer"], &["help", "channel", "open"], &["--help"], &["channel", "help"]] {
        let output = run(here.path(), arguments, &[]);
        assert!(output.status.success() && text(&output.stdout).contains("Usage: ncn"), "{arguments:?}: {}", text(&output.stderr));
    }
}

/// A variable that is set to nothing is not set.
#[test]
fn an_empty_variable_is_none() {
    let here = tempfile::tempdir().unwrap();
    let data = here.path().join("data");
    let listed = run(here.path(), &["model", "list"], &[("NCN_MODELS", ""), ("XDG_DATA_HOME", data.to_str().unwrap())]);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    assert!(data.join("ncn/models").is_dir());
}

/// Some parents have SIGCHLD ignored, and what they start inherits that.
#[test]
fn it_waits_for_its_children_whatever_its_parent_ignores() {
    let started = Instant::now();
    let script = r#"trap '' CHLD; exec "$0" doctor --json"#;
    let output = Command::new("sh").args(["-c", script]).arg(ncn()).env(HELPER_VARIABLE, helper()).output().unwrap();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(started.elapsed() < TIMEOUT && all["level"] == "full", "{all} {}", text(&output.stderr));
}

#[test]
fn a_receipt_is_read_with_the_mark_of_an_editor() {
    let here = tempfile::tempdir().unwrap();
    let receipt = fs::read(repository("docs/receipt.json")).unwrap();
    fs::write(here.path().join("marked.json"), [&b"\xef\xbb\xbf"[..], &receipt].concat()).unwrap();
    let verified = run(here.path(), &["verify", "marked.json"], &[]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

#[test]
fn files_may_have_any_name_and_links_stay_links() {
    let here = tempfile::tempdir().unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"image=\xff\xfe.png");
    fs::copy(digit(7), here.path().join(odd)).unwrap();
    fs::create_dir(here.path().join("kept")).unwrap();
    fs::write(here.path().join("kept/receipt.json"), "").unwrap();
    symlink("kept/receipt.json", here.path().join("link.json")).unwrap();
    let demo = |receipt: &str| {
        let mut command = Command::new(ncn());
        command.args(["demo", "--receipt", receipt, "--input"]).arg(odd).current_dir(here.path());
        command.output().unwrap()
    };
    let served = demo("link.json");
    assert!(served.status.success() && text(&served.stdout).contains("label: 7"), "{}", text(&served.stderr));
    assert!(fs::symlink_metadata(here.path().join("link.json")).unwrap().is_symlink());
    assert!(run(here.path(), &["verify", "kept/receipt.json"], &[]).status.success());

    symlink("nowhere/at-all.json", here.path().join("dangling.json")).unwrap();
    for (receipt, says) in [("dangling.json", "leads nowhere"), (&"r".repeat(300), "too long")] {
        let refused = demo(receipt);
        assert!(refused.status.code() == Some(2) && text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
    }
}

#[test]
fn what_makes_the_doctor_blind_is_said() {
    let here = tempfile::tempdir().unwrap();
    let helper = helper();
    for (variable, value, says) in
        [("TMPDIR", "/nonexistent", "have TMPDIR name one"), (HELPER_VARIABLE, "/bin/true", "says nothing of layers")]
    {
        let mut command = Command::new(ncn());
        command.args(["doctor", "--json"]).current_dir(here.path()).env(HELPER_VARIABLE, &helper).env(variable, value);
        let output = command.output().unwrap();
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let layers = all["confinement"].as_array().unwrap().iter().find(|item| item["name"] == "layers").unwrap();
        assert!(layers["missing"].as_str().unwrap().contains(says), "{all}");
        assert!(all["refused"].as_str().is_some_and(|why| !why.is_empty()), "{all}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn it_listens_where_a_name_leads_and_ends_with_its_terminal() {
    let here = tempfile::tempdir().unwrap();
    let temporary = here.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(ncn());
    command.args(["devnet", "--rpc", "localhost:0", "--gateway", "localhost:0", "--registry", "localhost:0"]);
    command.current_dir(here.path()).env("TMPDIR", &temporary).stdout(Stdio::piped());
    let mut devnet = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(devnet.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty());
    assert!(fs::read_dir(&temporary).unwrap().count() > 0);
    Command::new("kill").args(["-HUP", &devnet.id().to_string()]).status().unwrap();
    assert_eq!(devnet.wait().unwrap().code(), Some(0));
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [""; 0], "nothing is left behind");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (arguments, says) in [
        (["devnet", "--gateway", &taken], "--gateway 127.0.0.1"),
        (["devnet", "--registry", &taken], "--registry 127.0.0.1"),
        (["devnet", "--rpc", "nowhere"], "write ADDRESS:PORT"),
    ] {
        let refused = run(here.path(), &arguments, &[]);
        assert!(refused.status.code() == Some(2) && text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
    }
}

/// One variable names the Python of everything that is looked for in one.
#[test]
fn what_python_has_is_looked_for_in_the_one_that_is_named() {
    let here = tempfile::tempdir().unwrap();
    let python = repository("target/venv/bin/python");
    let output = run(here.path(), &["doctor", "--json"], &[("NCN_PYTHON", python.to_str().unwrap())]);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = all["engines"].as_array().unwrap().iter().filter_map(|engine| engine["found"].as_str());
    let libraries: Vec<_> = found.filter(|found| found.contains("libonnxruntime")).collect();
    assert!(libraries.iter().any(|found| found.contains("target/venv")), "{all}");
}

#[test]
fn the_log_has_a_line_for_each_request_and_each_movement_of_its_money() {
    let directory = tempfile::tempdir().unwrap();
    let shown =
        Command::new(ncn()).arg("demo").env("NCN_LOG", "info").env("NO_COLOR", "1").current_dir(directory.path()).output().unwrap();
    let log = String::from_utf8(shown.stderr).unwrap();
    let lines = |of: &str| log.lines().filter(|line| line.contains(of)).collect::<Vec<_>>();
    for line in ["a request is paid for", "a request has run", "a request is settled", "a request is delivered"] {
        assert_eq!(lines(line).len(), 1, "{line}: {log}");
    }
    let delivered = lines("a request is delivered")[0];
    assert!(delivered.contains("cost=0.01 NCN") && delivered.contains("earned=0.0"), "{delivered}");
}
