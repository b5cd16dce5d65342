//! The examples in other languages, as people run them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use super::kotlin;
use crate::{browser::Browser, cli::Devnet, real_models, scene::repository};

fn python(example: &str) -> Command {
    let mut program = Command::new(repository("target/examples/python/bin/python"));
    program.arg(repository("examples/python").join(example));
    program
}

fn good(example: &mut Command) -> String {
    let Output { status, stdout, stderr } = example.output().unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{example:?}: {said}{}", String::from_utf8_lossy(&stderr));
    said
}

/// A network that has models of packages.
fn devnet(directory: &Path, models: &[&str]) -> Devnet {
    let packages: Vec<_> = models.iter().map(|name| real_models::directory(name).to_string_lossy().into_owned()).collect();
    let arguments: Vec<_> = packages.iter().flat_map(|package| ["--model", package]).collect();
    Devnet::start_with(directory, &arguments)
}

#[test]
fn a_chat_and_a_search_in_python() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = devnet(directory.path(), &["smollm2", "minilm"]);
    let texts = directory.path().join("texts");
    std::fs::create_dir(&texts).unwrap();
    let paragraphs = "The cat sleeps on the warm windowsill all day.\n\nInterest rates were raised by the central bank again.";
    std::fs::write(texts.join("notes.txt"), paragraphs).unwrap();
    let mut search = python("search.py");
    let found = good(search.arg(&texts).args(["Where does the pet rest?", "--gateway", &devnet.gateway]));
    assert!(found.lines().next().unwrap().contains("notes.txt: The cat sleeps"), "{found}");
    assert!(found.contains("3 embeddings for 0.0300 tokens"), "{found}");

    let mut chat = python("chat.py");
    chat.args(["--gateway", &devnet.gateway, "--most", "6"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut chat = chat.spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"What is the capital of France?\nAnd of Italy?\n").unwrap();
    let said = chat.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && text.matches("approved by 3 validators").count() == 2, "{text}");
    let answers: Vec<_> = text.split("you: model: ").skip(1).filter_map(|answer| answer.lines().next()).collect();
    // The reason why it ends is no word of its.
    assert!(answers.len() == 2 && answers.iter().all(|answer| answer.len() > 1 && !answer.ends_with("length")), "{text}");
    assert!(text.contains("0.0200 tokens were spent"), "{text}");
}

#[test]
fn a_batch_in_python() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = devnet(directory.path(), &[]);
    let mut batch = python("batch.py");
    batch.arg(repository("examples/data")).args(["--gateway", &devnet.gateway, "--rpc", &devnet.rpc]);
    let said = good(batch.args(["--count", "60", "--at-once", "16"]).current_dir(directory.path()));
    assert!(said.contains("0:6 1:6 2:6 3:6 4:6 5:6 6:6 7:6 8:6 9:6"), "{said}");
    assert!(said.contains("60 answers for 0.60 tokens; 0.16 came back"), "{said}");
}

#[test]
fn a_notebook() {
    const EXECUTE: &str = "
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbformat.validate(notebook)
nbclient.NotebookClient(notebook, timeout=120, kernel_name='python3').execute()
for cell in notebook.cells:
    for output in cell.get('outputs', []):
        print(output['data'].get('text/html', output['data']['text/plain']))
";
    let directory = tempfile::tempdir().unwrap();
    let devnet = devnet(directory.path(), &[]);
    let mut notebook = Command::new(repository("target/examples/python/bin/python"));
    notebook.arg("-c").arg(EXECUTE).arg(repository("examples/python/digits.ipynb")).env("NCN_GATEWAY", &devnet.gateway);
    // Its kernel is that of the environment, and nothing of what the user has.
    notebook.env("NCN_IMAGE", repository("examples/data/7.png")).env("JUPYTER_DATA_DIR", directory.path());
    let shown = good(notebook.env("IPYTHONDIR", directory.path()));
    assert!(shown.contains("['digits']") && shown.contains("['7', '7', '7', '7']"), "{shown}");
    assert!(
        shown.contains("<table>") && shown.contains("approved by 3 validators") && shown.contains("(True, 3, 0.01)"),
        "{shown}"
    );
}

#[test]
fn a_question_in_kotlin() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = devnet(directory.path(), &[]);
    let ask = |model: &str| {
        let seven = repository("examples/data/7.png");
        kotlin("AskKt").arg(&devnet.gateway).args([model, "image"]).arg(seven).output().unwrap()
    };
    let asked = ask("digits");
    let said = String::from_utf8_lossy(&asked.stdout);
    assert!(asked.status.success() && said.contains("label: 7") && said.contains("approved by 3 validators"), "{asked:?}");
    let refused = ask("nothing");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).starts_with("UNKNOWN_MODEL: "), "{refused:?}");
}

/// Ends with the test.
struct Served(Child, String);

impl Served {
    fn start() -> Self {
        let mut server = Command::new("node");
        server.arg(repository("examples/browser/serve.js")).arg("0").stdout(Stdio::piped());
        let mut server = server.spawn().unwrap();
        let mut url = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self(server, url.trim().into())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A wallet that a page finds, as EIP-1193 says, with this key.
fn wallet(secret: &str) -> String {
    format!(
        "import('viem/accounts').then(({{ privateKeyToAccount }}) => {{
            const account = privateKeyToAccount('{secret}');
            const calls = {{
                eth_requestAccounts: () => [account.address],
                eth_signTypedData_v4: ([, data]) => account.signTypedData(JSON.parse(data)),
            }};
            window.ethereum = {{ request: async ({{ method, params }}) => calls[method](params) }};
        }})"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_pays_by_a_wallets_signature() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = devnet(directory.path(), &[]);
    let served = Served::start();
    let browser = Browser::open((900, 700)).await;
    browser.go(&format!("{}?gateway={}", served.1, devnet.gateway)).await;
    browser.wait_for("document.querySelectorAll('button').length === 10").await;
    let ask = async |digit: u8, says: &str| {
        let said = "document.getElementById('says').textContent";
        browser.run(&format!("{said} = ''; document.querySelectorAll('button')[{digit}].click()")).await;
        browser.wait_for(&format!("{said} && {said} !== 'Asking...'")).await;
        let said = browser.run(&format!("return {said}")).await;
        assert!(said.as_str().unwrap().contains(says), "{said}");
        said.as_str().unwrap().to_owned()
    };
    ask(7, "No answer: There is no wallet in this browser.").await;
    let secret = std::fs::read_to_string(directory.path().join("keys/client-2.key")).unwrap();
    browser.run(&wallet(secret.trim())).await;
    browser.wait_for("window.ethereum").await;
    browser.run("window.asked = []; window.confirm = (what) => (window.asked.push(what), false)").await;
    ask(7, "No answer: the spend policy does not allow it").await;
    assert_eq!(browser.run("return window.asked").await, serde_json::json!(["Pay at most 0.01 tokens for digits?"]));
    browser.run("window.confirm = () => true").await;
    let said = ask(7, "It is a 7.").await;
    assert!(said.contains("Paid 0.01 tokens.") && said.contains("approved by 3 validators"), "{said}");
    if let Some(path) = std::env::var_os("NCN_PICTURES") {
        browser.picture(&Path::new(&path).join("wallet.png")).await;
    }
    browser.run("document.getElementById('gateway').value = 'http://127.0.0.1:1'").await;
    ask(7, "cannot be reached").await;
}
