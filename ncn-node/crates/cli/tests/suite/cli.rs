//! The program as people run it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use serde_json::Value;

use crate::scene::{digit, ncn};

fn run(arguments: &[&str], directory: &Path) -> Output {
    Command::new(ncn()).args(arguments).current_dir(directory).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// One line on standard error that starts with `error: ` and says this; nothing on standard output.
fn fails(arguments: &[&str], status: i32, says: &str) {
    let directory = tempfile::tempdir().unwrap();
    let output = run(arguments, directory.path());
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
    assert!(error.lines().last().unwrap().starts_with("error: ") && error.contains(says), "{arguments:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    assert!(!error.trim_end().contains(char::is_control), "{arguments:?}: {error:?}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
}

#[test]
fn the_demo_reads_every_digit_and_pays_to_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    for expected in 0..10 {
        let output = run(&["demo", "--json", "--input", digit(expected).to_str().unwrap()], directory.path());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(all["output"]["label"], expected.to_string());

        let steps = all["steps"].as_array().unwrap();
        assert_eq!(steps.len(), 12);
        assert_eq!((&steps[0]["name"], &steps[11]["name"]), (&"submit".into(), &"deliver".into()));
        assert!(steps.iter().all(|step| step["took_ms"].is_f64() && step["actor"].is_string()));

        let amount = |value: &Value| value.as_str().unwrap().parse::<u128>().unwrap();
        let payments = all["payments"].as_array().unwrap();
        let sum: u128 = payments.iter().map(|payment| amount(&payment["amount"])).sum();
        assert_eq!(sum, amount(&all["total"]));
        let count = |role: &str| payments.iter().filter(|payment| payment["role"] == role).count();
        let roles = (count("compute"), count("gateway"), count("validator"), count("treasury"));
        assert_eq!((roles, payments.len()), ((1, 1, 3, 1), 6));

        let receipt = all["receipt"].as_str().unwrap();
        let verified = run(&["verify", receipt], directory.path());
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        assert!(text(&verified.stdout).starts_with("valid receipt\n"));
    }
}

#[test]
fn the_demo_speaks_to_people() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(&["demo", "--receipt", "r.json"], directory.path());
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for word in ["submit", "preprocessing", "finalize", "label: 7", "treasury", "paid out to the unit", "r.json"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert!(directory.path().join("r.json").exists());
    assert!(text(&output.stderr).contains("models run confined"), "{}", text(&output.stderr));
}

#[test]
fn bad_input_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("text.png"), "not an image").unwrap();
    let mut wrong_size = Vec::new();
    let mut encoder = png::Encoder::new(&mut wrong_size, 28, 28);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&[0; 784]).unwrap();
    std::fs::write(path("large.png"), wrong_size).unwrap();
    let truncated = std::fs::read(digit(3)).unwrap();
    std::fs::write(path("truncated.png"), &truncated[..truncated.len() / 2]).unwrap();

    fails(&["demo", "--input", &path("missing.png")], 2, "No such file");
    fails(&["demo", "--input", &path("text.png")], 2, "send a PNG of 8x8 pixels");
    fails(&["demo", "--input", &path("large.png")], 2, "28x28 pixels, the model takes 8x8: resize it");
    fails(&["demo", "--input", &path("truncated.png")], 2, "not a readable PNG");
    fails(&["demo", "--input", "/"], 2, "directory");
    fails(&["demo", "--receipt", &path("no/such/directory.json")], 2, "cannot write");
    fails(&["demo", "--receipt", "/"], 2, "directory");
    let input = path("input.png");
    std::fs::copy(digit(7), &input).unwrap();
    fails(&["demo", "--input", &input, "--receipt", &input], 2, "is the input file");
    std::fs::write(path("escape.json"), "{\"a\u{1b}[2K\": 1}").unwrap();
    fails(&["verify", &path("escape.json")], 1, "format");
    fails(&["verify", &path("missing.json")], 2, "No such file");
    fails(&["verify", &path("text.png")], 1, "format");
    for usage in [&["demo", "--inptu", "x"][..], &["verify"], &["frobnicate"], &[]] {
        assert_eq!(run(usage, directory.path()).status.code(), Some(2), "{usage:?}");
    }
}

#[test]
fn a_changed_receipt_is_caught() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("r.json");
    let name = file.to_str().unwrap();
    assert!(run(&["demo", "--receipt", name], directory.path()).status.success());
    let good: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    // The core's tests change every place; here, that the program says which check failed.
    let changes: [(&str, Value, &str); 7] = [
        ("/quote/total", "1".into(), "cost"),
        ("/quote/expiry", 5.into(), "completion"),
        ("/delivery/results/0/message/outputHash", format!("0x{}", "7".repeat(64)).into(), "completion"),
        ("/delivery/results/0/signature", good["seal"].clone(), "result.signature"),
        ("/request/message/nonce", format!("0x{}", "7".repeat(64)).into(), "request.signature"),
        ("/payments/payouts/0/amount", "1".into(), "payments"),
        ("/issuedAt", 5.into(), "seal"),
    ];
    for (place, value, check) in changes {
        let mut changed = good.clone();
        *changed.pointer_mut(place).unwrap() = value;
        std::fs::write(&file, changed.to_string()).unwrap();
        fails(&["verify", name], 1, check);
    }
    let trust = directory.path().join("trust.json");
    std::fs::write(&file, good.to_string()).unwrap();
    std::fs::write(&trust, good["trustRoot"].to_string()).unwrap();
    let verified = run(&["verify", name, "--trust-root", trust.to_str().unwrap()], directory.path());
    assert!(text(&verified.stdout).contains("(trusted)"));
    let mut other = good["trustRoot"].clone();
    other["threshold"] = 0.into();
    std::fs::write(&trust, other.to_string()).unwrap();
    fails(&["verify", name, "--trust-root", trust.to_str().unwrap()], 2, "threshold");
    other = good["trustRoot"].clone();
    other["domain"]["chainId"] = 1.into();
    std::fs::write(&trust, other.to_string()).unwrap();
    fails(&["verify", name, "--trust-root", trust.to_str().unwrap()], 1, "not of the trusted");
}

/// The program, kept running until the test ends.
pub(crate) struct Devnet {
    process: std::process::Child,
    pub(crate) gateway: String,
    /// The first registry node.
    pub(crate) registry: String,
    /// All of them.
    pub(crate) registries: String,
    pub(crate) rpc: String,
}

impl Devnet {
    fn start(directory: &Path) -> Self {
        Self::start_with(directory, &[])
    }

    /// With more arguments.
    pub(crate) fn start_with(directory: &Path, more: &[&str]) -> Self {
        Self::start_in(directory, more, &[])
    }

    /// And with these variables in its environment.
    pub(crate) fn start_in(directory: &Path, more: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut process = Command::new(ncn())
            .args(["devnet", "--rpc", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--registry", "127.0.0.1:0", "--keys", "keys"])
            .args(["--settle-after", "1"])
            .args(more)
            .envs(environment.iter().copied())
            .current_dir(directory)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        let (mut gateway, mut registries, mut rpc) = (String::new(), String::new(), String::new());
        for line in std::io::BufRead::lines(lines).map_while(Result::ok) {
            let second = || line.split_whitespace().nth(1).unwrap_or_default().to_owned();
            match line.split_whitespace().next() {
                Some("gateway") => gateway = second(),
                Some("registry") => registries = second(),
                Some("chain") => rpc = second(),
                Some("ready;") => break,
                _ => {}
            }
        }
        assert!(!gateway.is_empty() && !rpc.is_empty(), "it did not start");
        let registry = registries.split(',').next().unwrap_or_default().to_owned();
        Self { process, gateway, registry, registries, rpc }
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Devnet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn three_ways_to_pay_from_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start(directory.path());
    let (gateway, rpc, seven) = (devnet.gateway.as_str(), devnet.rpc.as_str(), digit(7));
    let (key, input) = ("keys/client-0.key", seven.to_str().unwrap());
    let good = |arguments: &[&str]| {
        let output = run(arguments, directory.path());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let request = ["infer", "--gateway", gateway, "--key", key, "--model", "digits", "--input", input, "--yes"];
    let address = good(&["wallet", "show", "--key", key]);
    let balance = || good(&["wallet", "balance", "--rpc", rpc, "--account", address.trim()]);
    assert_eq!(balance(), "1000 NCN\n");
    assert!(good(&[&request[..], &["--rpc", rpc, "--contracts", "keys/contracts.json"]].concat()).contains("label: 7"));
    assert_eq!(balance(), "999.99 NCN\n");
    let kept = good(&[&request[..], &["--relayed", "--output", "out"]].concat());
    assert!(kept.contains("label: 7") && kept.contains("in out/scores.npy"), "{kept}");
    assert_eq!(balance(), "999.98 NCN\n");
    good(&["verify", "ncn-receipt.json"]);
    assert_eq!(std::fs::read_to_string(directory.path().join("out/label.txt")).unwrap(), "7");
    assert!(std::fs::read(directory.path().join("out/scores.npy")).unwrap().starts_with(b"\x93NUMPY\x01\0"));
    let again = run(&[&request[..], &["--relayed", "--output", "out"]].concat(), directory.path());
    assert!(again.status.code() == Some(2) && text(&again.stderr).contains("not empty"), "{}", text(&again.stderr));
    assert!(!directory.path().join("ncn-receipt.json.unfinished").exists(), "nothing is left open");

    let channel = ["--channel", "channel.json", "--rpc", rpc, "--key", key];
    good(&[&["channel", "open", "--gateway", gateway, "--deposit", "1"], &channel[..]].concat());
    for _ in 0..2 {
        assert!(good(&[&request[..], &["--channel", "channel.json"]].concat()).contains("out of channel"));
    }
    good(&[&["channel", "topup", "--amount", "0.5"], &channel[..]].concat());
    assert!(good(&["channel", "show", "--channel", "channel.json"]).contains("available   1.48 NCN"));
    let closed = good(&[&["channel", "close", "--gateway", gateway], &channel[..]].concat());
    assert!(closed.contains("1.48 NCN came back"), "{closed}");
    assert_eq!(balance(), "999.96 NCN\n");

    // What was named by mistake stays as it is.
    let before = std::fs::read(directory.path().join(key)).unwrap();
    let refused = run(&[&request[..], &["--relayed", "--receipt", key]].concat(), directory.path());
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(std::fs::read(directory.path().join(key)).unwrap(), before);
    let wrong = run(&[&request[..], &["--relayed", "--network", &format!("0x{}", "11".repeat(32))]].concat(), directory.path());
    assert!(text(&wrong.stderr).contains("nothing was signed"), "{}", text(&wrong.stderr));
    assert_eq!(balance(), "999.96 NCN\n");
    let status = good(&["validator", "status", "--rpc", rpc]);
    assert_eq!(status.matches(" active").count(), 5, "{status}");
    let deployed = good(&["contracts", "deploy", "--rpc", rpc, "--key", key]);
    assert!(serde_json::from_str::<Value>(&deployed).unwrap()["payment"].is_string());
    std::fs::write(directory.path().join("others.json"), deployed).unwrap();
    let other = run(&[&request[..], &["--rpc", rpc, "--contracts", "others.json"]].concat(), directory.path());
    assert!(other.status.code() == Some(2) && text(&other.stderr).contains("--contracts: pays into"), "{}", text(&other.stderr));
}

/// A proxy that keeps count of what it is asked, and says that it cannot.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let all = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            let _ = BufReader::new(&mut stream).read_line(&mut line);
            all.lock().unwrap().push(line);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (url, asked)
}

#[test]
fn only_the_proxy_that_is_meant_for_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let (digest, account) = ("0".repeat(64), format!("0x{}", "1".repeat(40)));
    let calls = |host: &str| {
        [
            vec!["models".to_owned(), "--gateway".into(), format!("http://{host}")],
            vec!["model".into(), "pull".into(), digest.clone(), "--from".into(), format!("http://{host}/store")],
            ["wallet", "balance", "--account", &account, "--rpc", &format!("http://{host}")].map(str::to_owned).to_vec(),
        ]
    };
    let asked = |variables: &[&str], host: &str| {
        let (url, asked) = proxy();
        for arguments in calls(host) {
            let mut command = Command::new(ncn());
            command.args(&arguments).current_dir(directory.path()).env("NCN_MODELS", directory.path());
            command.envs(variables.iter().map(|name| (*name, &url)));
            assert!(!command.output().unwrap().status.success());
        }
        let all = asked.lock().unwrap();
        all.clone()
    };
    let others = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    for host in ["127.0.0.1:1", "localhost:1", "nowhere.invalid"] {
        assert_eq!(asked(&others, host), [""; 0], "{host}");
    }
    for host in ["127.0.0.1:1", "localhost:1", "[::1]:1"] {
        assert_eq!(asked(&["NCN_PROXY"], host), [""; 0], "{host}");
    }
    let through = asked(&["NCN_PROXY"], "nowhere.invalid");
    for begin in ["GET http://nowhere.invalid/api/v1/models", "GET http://nowhere.invalid/store/", "POST http://nowhere.invalid/ "]
    {
        assert!(through.iter().any(|line| line.starts_with(begin)), "{begin}: {through:?}");
    }
}
