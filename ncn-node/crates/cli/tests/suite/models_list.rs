//! The program shows prices before they are paid.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use alloy_primitives::Address;
use ncn_core::Amount;
use ncn_devnet::{LocalNetwork, quickstart};
use serde_json::Value;

use crate::scene::{digit, ncn, network};

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(ncn()).args(arguments).current_dir(directory).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A network, a directory with a key that has one token, and the arguments of a request that is paid with it.
struct Shop {
    network: LocalNetwork,
    directory: tempfile::TempDir,
    account: Address,
    hash: String,
}

impl Shop {
    async fn open() -> Self {
        let network = network().start().await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let hash = network.trust_root().await.unwrap().hash().to_string();
        let signer = alloy_signer_local::PrivateKeySigner::random();
        fs::write(directory.path().join("key"), hex::encode(signer.to_bytes())).unwrap();
        network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
        Self { network, directory, account: signer.address(), hash }
    }

    async fn balance(&self) -> Amount {
        self.network.funder().balance(self.account).await.unwrap()
    }

    /// A command about the digit 7, with more arguments.
    fn arguments(&self, command: &str, more: &[&str]) -> Vec<String> {
        let (url, seven) = (self.network.gateway_url(), digit(7));
        let all = [command, "--gateway", &url, "--network", &self.hash, "--model", "digits", "--input", seven.to_str().unwrap()];
        all.iter().chain(more).map(ToString::to_string).collect()
    }

    fn ask(&self, command: &str, more: &[&str]) -> Output {
        let arguments = self.arguments(command, more);
        run(self.directory.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same on a terminal, at which somebody types this line.
    fn ask_on_a_terminal(&self, line: &str) -> Output {
        // Standard output stays a pipe; the other two are the terminal's.
        const TERMINAL: &str = r"
import os, pty, sys
answer, command = sys.argv[1], sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(command[0], command)
shown = b''
answered = False
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    shown += part
    if not answered and b'[y/N]' in shown:
        os.write(terminal, answer.encode() + b'\n')
        answered = True
sys.stdout.write(shown.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
        let mut command = Command::new("python3");
        command.args(["-c", TERMINAL, line]).arg(ncn()).args(self.arguments("infer", &["--relayed", "--key", "key"]));
        command.current_dir(self.directory.path()).output().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_pays_no_price_that_nobody_has_seen() {
    let shop = Shop::open().await;
    let pay = ["--relayed", "--key", "key"];
    let with = |more: &[&str]| shop.ask("infer", &[&pay[..], more].concat());

    let refused = with(&[]);
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("digits costs 0.01 NCN: give --max-price TOKENS, or --yes"), "{error}");
    let refused = with(&["--max-price", "0.009"]);
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("0.01 NCN is more than the limit of 0.009 NCN"), "{error}");
    let refused = with(&["--max-price", "0.009", "--yes"]);
    assert_eq!(refused.status.code(), Some(2), "a limit holds: {}", text(&refused.stderr));
    assert_eq!(shop.balance().await, Amount::TOKEN);
    assert_eq!(fs::read_dir(shop.directory.path()).unwrap().count(), 1, "no receipt, and no quote that could be paid");

    for (price, more) in [(1, &["--yes"][..]), (2, &["--max-price", "0.5"])] {
        let paid = with(more);
        assert!(paid.status.success() && text(&paid.stdout).contains("label: 7"), "{}", text(&paid.stderr));
        assert_eq!(shop.balance().await.units(), Amount::TOKEN.units() - price * Amount::TOKEN.units() / 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_the_price_and_asks() {
    let shop = Shop::open().await;
    for no in ["n", ""] {
        let declined = shop.ask_on_a_terminal(no);
        let shown = text(&declined.stdout);
        assert_eq!(declined.status.code(), Some(1), "{shown}{}", text(&declined.stderr));
        assert!(shown.contains("digits costs 0.01 NCN. Pay? [y/N]") && shown.contains("nothing was signed or paid"), "{shown}");
        assert_eq!(shop.balance().await, Amount::TOKEN);
    }
    let paid = shop.ask_on_a_terminal("y");
    let shown = text(&paid.stdout);
    assert!(paid.status.success() && shown.contains("label: 7"), "{shown}{}", text(&paid.stderr));
    assert_eq!(shop.balance().await.units(), Amount::TOKEN.units() / 100 * 99);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_and_quotes_are_shown_without_paying() {
    let shop = Shop::open().await;
    let url = shop.network.gateway_url();
    let listed = run(shop.directory.path(), &["models", "--gateway", &url]);
    let lines = text(&listed.stdout);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    for line in ["digits 1.0.0: 0.01 NCN a request", "image: PNG of 8x8 pixels, or f32 [batch, 1, 8, 8]", "parameters  none"] {
        assert!(lines.contains(line), "{line}: {lines}");
    }
    let listed = run(shop.directory.path(), &["models", "--gateway", &url, "--json"]);
    let all: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let model = quickstart::model().unwrap();
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!((&all[0]["name"], &all[0]["price"]["base"]), (&"digits".into(), &"10000000000000000".into()));
    assert_eq!((&all[0]["inputs"][0]["name"], &all[0]["parameters"]), (&"image".into(), &Value::Array(Vec::new())));
    assert_eq!(all[0]["digest"], model.digest().to_string());

    let quoted = shop.ask("quote", &["--json"]);
    let quote: Value = serde_json::from_slice(&quoted.stdout).unwrap_or_else(|_| panic!("{}", text(&quoted.stderr)));
    assert_eq!((&quote["total"], &quote["withdrawn"]), (&"10000000000000000".into(), &true.into()));
    let compute: Address = quote["compute"].as_str().unwrap().parse().unwrap();
    assert!(shop.network.compute_addresses().contains(&compute), "{quote}");
    let quoted = shop.ask("quote", &[]);
    assert!(text(&quoted.stdout).contains("price       0.01 NCN a request\n"), "{}", text(&quoted.stdout));
    assert!(text(&quoted.stderr).contains("nothing was paid"), "{}", text(&quoted.stderr));
    assert_eq!(shop.balance().await, Amount::TOKEN);
    assert_eq!(fs::read_dir(shop.directory.path()).unwrap().count(), 1);
}
