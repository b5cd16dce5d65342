//! A gateway behind `https`, with everything real: processes, certificates, handshakes.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use ncn_devnet::quickstart;
use ncn_models::MANIFEST_FILE;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;

use crate::{
    cli::Devnet,
    scene::{digit, ncn},
    wait::{TIMEOUT, eventually_blocking},
};

/// What an authority issues: its own certificate, and one for `localhost` with the key.
fn issue(directory: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = authority.self_signed(&key).unwrap();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    fs::write(directory.join("root.pem"), root.pem()).unwrap();
    fs::write(directory.join("certificate.pem"), certificate.pem()).unwrap();
    fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
}

/// A role's process, which ends with the test.
struct Process(Child);

impl Process {
    /// Starts it, and returns once it says this.
    fn start(mut command: Command, says: &str) -> Self {
        let mut process = Self(command.stdout(Stdio::piped()).spawn().unwrap());
        let (output, (sender, line)) = (process.0.stdout.take().unwrap(), std::sync::mpsc::channel());
        std::thread::spawn(move || sender.send(BufReader::new(output).lines().next()));
        let line = line.recv_timeout(TIMEOUT).expect("it says in time that it is ready");
        let line = line.unwrap_or_else(|| panic!("it did not start")).unwrap();
        assert!(line.contains(says), "{line}");
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program, which trusts these authorities.
fn program(directory: &Path, roots: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(ncn());
    command.args(arguments).current_dir(directory).env("NCN_MODELS", directory.join("store"));
    command.env("SSL_CERT_FILE", directory.join(roots)).env_remove("SSL_CERT_DIR");
    command
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_request_is_served_behind_https() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    issue(here);
    fs::write(here.join("none.pem"), "").unwrap();
    let strange = here.join("strange");
    fs::create_dir(&strange).unwrap();
    issue(&strange);
    let devnet = Devnet::start_with(here, &[]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (listen, url) = (free.to_string(), format!("https://localhost:{}", free.port()));
    let network = ["--registry", &devnet.registry, "--rpc", &devnet.rpc];

    let gateway = ["gateway", "--listen", &listen, "--key", "keys/client-2.key", "--state", "state", "--url", &url];
    let gateway = [&gateway[..], &network].concat();
    for (files, why) in [
        (&["--tls-certificate", "certificate.pem"][..], "--tls-key"),
        (&["--tls-certificate", "nowhere.pem", "--tls-key", "key.pem"], "--tls-certificate nowhere.pem"),
        (&["--tls-certificate", "none.pem", "--tls-key", "key.pem"], "--tls-certificate none.pem: is no PEM"),
        (&["--tls-certificate", "certificate.pem", "--tls-key", "root.pem"], "--tls-key root.pem: is no PEM"),
    ] {
        let refused = program(here, "root.pem", &[&gateway, files].concat()).output().unwrap();
        assert!(refused.status.code() == Some(2) && says(&refused).contains(why), "{files:?}: {}", says(&refused));
    }
    let listening = ["gateway", "--key", "keys/client-2.key", "--state", "state"];
    let long = format!("https://{}:5", "a.".repeat(150));
    for (more, why) in [
        (&["--url", "nonsense"][..], "--url: "),
        (&["--url", "https://localhost:99999"], "--url: "),
        (&["--url", "https://user:secret@localhost:5"], "--url: "),
        (&["--url", "https://localhost:5/path?x=1"], "--url: "),
        (&["--url", &long], "--url: "),
        (&["--url", "http://localhost:5", "--tls-certificate", "certificate.pem", "--tls-key", "key.pem"], "has to be https"),
        (&["--listen", "0.0.0.0:0"], "--listen 0.0.0.0:0: nobody can call that"),
    ] {
        let refused = program(here, "root.pem", &[&listening[..], &network, more].concat()).output().unwrap();
        assert!(refused.status.code() == Some(2) && says(&refused).contains(why), "{more:?}: {}", says(&refused));
        assert!(!says(&refused).contains("secret"), "{}", says(&refused));
    }
    let tls = ["--tls-certificate", "certificate.pem", "--tls-key", "key.pem"];
    let gateway = Process::start(program(here, "root.pem", &[&gateway[..], &tls].concat()), &url);

    let package = here.join("digits");
    fs::create_dir(&package).unwrap();
    quickstart::unpack(&package).unwrap();
    fs::write(package.join(MANIFEST_FILE), quickstart::MANIFEST).unwrap();
    let node = ["compute", "--gateway", &url, "--key", "keys/client-1.key", "--model", "./digits", "--sandbox", "disabled"];
    let _node = Process::start(program(here, "root.pem", &[&node[..], &network].concat()), "compute node 0x");

    let seven = digit(7);
    let request = ["infer", "--gateway", &url, "--rpc", &devnet.rpc, "--key", "keys/client-0.key", "--yes", "--json"];
    let request = [&request[..], &["--model", quickstart::NAME, "--input", seven.to_str().unwrap()]].concat();
    // The node says that it is there before the gateway has admitted it.
    let answered = (0..100).find_map(|_| {
        let output = program(here, "root.pem", &request).output().unwrap();
        if output.status.success() {
            return Some(output);
        }
        assert!(says(&output).contains("no compute node"), "{}", says(&output));
        None
    });
    let answer: Value = serde_json::from_slice(&answered.expect("a node is admitted").stdout).unwrap();
    assert_eq!(answer["output"]["label"], "7", "{answer}");

    let (plain, by_address) = (url.replace("https", "http"), format!("https://{listen}"));
    for (roots, url, why) in [
        ("strange/root.pem", &url, "invalid peer certificate"),
        ("root.pem", &by_address, "invalid peer certificate"),
        ("root.pem", &plain, "unreachable"),
        ("none.pem", &url, "no certificates of authorities"),
    ] {
        let refused = program(here, roots, &["models", "--gateway", url]).output().unwrap();
        assert!(!refused.status.success() && says(&refused).contains(why), "{url}, {why}: {}", says(&refused));
    }
    // A certificate of other authorities takes the place of the first, while the gateway runs; one that cannot be used does not.
    let hang_up = |gateway: &Process| {
        let sent = Command::new("kill").args(["-HUP", &gateway.0.id().to_string()]).status();
        assert!(sent.unwrap().success());
    };
    let trusted = |roots: &str| program(here, roots, &["models", "--gateway", &url]).output().unwrap().status.success();
    for name in ["certificate.pem", "key.pem"] {
        fs::copy(strange.join(name), here.join(name)).unwrap();
    }
    hang_up(&gateway);
    eventually_blocking("the second one is there", || trusted("strange/root.pem"));
    assert!(!trusted("root.pem"));
    fs::copy(here.join("root.pem"), here.join("certificate.pem")).unwrap();
    hang_up(&gateway);
    assert!(trusted("strange/root.pem"), "it stays");
    // Who says nothing does not stay.
    let mut silent = TcpStream::connect(free).unwrap();
    silent.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(silent.read(&mut [0; 64]).unwrap_or_default(), 0, "it is told nothing, and closed");
}
