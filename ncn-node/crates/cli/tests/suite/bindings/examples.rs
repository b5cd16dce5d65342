//! The examples in other languages, as people run them.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use super::kotlin;
use crate::{cli::Devnet, real_models, scene::repository};

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
    let said = good(batch.args(["--count", "60", "--at-once", "16"]));
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
