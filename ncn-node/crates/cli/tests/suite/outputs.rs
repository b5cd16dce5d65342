//! Outputs that break what bounds them, from models that write to the node's pipes by themselves, and from executors: the request fails
//! and is paid back, the node keeps no more than it says, and the next request is served.

use std::{fs, sync::Arc, time::Duration};

use alloy_primitives::B256;
use async_trait::async_trait;
use futures::{StreamExt as _, future::join_all, stream};
use ncn_core::{
    Confinement, Execution, Executor, ExecutorError, ExecutorExt as _, OutputChunk, Usage, Value, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use ncn_devnet::{LocalNetwork, quickstart};
use ncn_executor::WorkerExecutor;
use serde_json::json;

use crate::{
    harmful::{Customer, changed},
    python::{Package, executor, package, python, said, say},
};

/// A model that puts answers together by hand, and writes them to every pipe that it finds: in its fork, to its worker; and past it,
/// to whatever `load` could find.
const FORGER: &str = r#"import fcntl, os, stat, time

def pipes(sockets=False):
    found = []
    for fd in range(3, 256):
        try:
            mode, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError:
            continue
        if stat.S_ISFIFO(mode) and flags & os.O_ACCMODE == os.O_WRONLY or sockets and stat.S_ISSOCK(mode):
            found.append(fd)
    return found

NODE = []

def load(model_dir):
    NODE.extend(os.dup(fd) for fd in pipes(sockets=True))

def varint(number):
    bytes_ = b''
    while number > 127:
        bytes_ += bytes([number & 127 | 128])
        number >>= 7
    return bytes_ + bytes([number])

def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content

def frame(content, id=0):
    message = b'\x08' + varint(id) + content
    return len(message).to_bytes(4, 'big') + message

def chunk(values, id=0):
    return frame(field(4, values), id)

def file(name, media_type, data):
    return field(1, field(1, name) + field(4, field(1, media_type) + field(2, data)))

def text(name, words):
    return field(1, field(1, name) + field(3, words))

def write(fd, data):
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view):]
        except BlockingIOError:
            time.sleep(0.001)

def infer(inputs):
    say = inputs['say']
    own = [fd for fd in pipes() if fd not in NODE]
    def send(data, times):
        for _ in range(times):
            for fd in own: write(fd, data)
        time.sleep(600)
    many = 7 << 20
    if say == 'type': send(chunk(file(b'out', b'x' * many, b'')), 40)
    if say == 'name': send(chunk(text(b'x' * many, b'y')), 40)
    if say == 'undeclared': send(chunk(text(b'other', b'y')), 40)
    if say == 'kind': send(chunk(text(b'out', b'y')), 40)
    if say == 'replaced': send(chunk(file(b'out', b'text/plain', bytes(1 << 20))), 400)
    if say == 'padding': send(frame(field(15, bytes(many)) + field(4, file(b'out', b'a/b', b'y'))), 40)
    if say == 'tiny': send(chunk(text(b'said', b'y')) * 1000, 200)
    if say == 'empty': send(chunk(b'') * 1000, 200)
    if say == 'values': send(chunk(b'\x0a\x00' * (many // 2)), 40)
    if say == 'shape': send(chunk(field(1, field(2, field(2, b'\x01' * many)))), 40)
    if say == 'giant': send(b'\xff' * many, 40)
    if say == 'large': send(chunk(text(b'said', b'y' * (9 << 20))), 40)
    if say == 'error': send(frame(field(5, b'"' + b'y' * many)), 40)
    if say == 'node':
        while True:
            for id in range(2, 40):
                for fd in NODE: write(fd, chunk(file(b'out', b'text/plain', bytes(1 << 18)), id))
    if say == 'node-giant':
        for fd in NODE: write(fd, b'\xff' * many)
        time.sleep(600)
    return {'out': b'', 'said': say + '!'}
"#;

/// How each of them ends.
const FORGED: &[(&str, &str)] = &[
    ("type", "output values.file.media_type: has 7340032 bytes"),
    ("name", "output `xxx"),
    ("undeclared", "output `other`: the manifest does not list this output"),
    ("kind", "output `out`: is of another type than the manifest says"),
    ("replaced", "output has more than"),
    ("padding", "output has more than"),
    ("tiny", "output has more than"),
    ("empty", "output has more than"),
    ("values", "the model failed: its process says something"),
    ("shape", "the model failed: its process says something"),
    ("giant", "the model failed: its process says something"),
    ("large", "the model failed: its process says something"),
    ("error", "the model failed: its error has"),
    // What leads to the worker is closed in its requests.
    ("node", "the model failed: OSError: [Errno 9] Bad file descriptor"),
    ("node-giant", "the model failed: OSError: [Errno 9] Bad file descriptor"),
];

const LONG: Duration = Duration::from_mins(5);
/// How much the process may grow: this test's share of it is below 200 MiB, the rest is for tests beside it. It was gigabytes.
const GROWTH: u64 = 1 << 30;

async fn forger() -> (WorkerExecutor, Package) {
    let outputs = json!([{ "type": "file", "name": "out" }, { "type": "text", "name": "said" }]);
    let package = package(FORGER, &json!([{ "type": "text", "name": "say" }]), &outputs);
    let executor = executor(&python().await);
    executor.load(&package.package).await.unwrap();
    (executor, package)
}

/// The most memory that this process has had.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_forges_fails_its_request_alone() {
    let (executor, package) = forger().await;
    let before = peak();
    for (forged, expected) in FORGED {
        let error = executor.run_to_end(say(&package, forged, LONG)).await.expect_err(forged);
        assert!(error.to_string().starts_with(expected), "{forged}: {error}");
        assert!(error.to_string().len() < 1_000, "{forged}: {} bytes of error", error.to_string().len());
        assert!(!error.is_retryable(), "{forged}: {error}");
        assert_eq!(said(&executor, &package, "after").await.as_deref(), Ok("after!"), "{forged}");
    }
    let grown = peak().saturating_sub(before);
    assert!(grown < GROWTH, "{} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_nobody_reads_are_bounded() {
    let (executor, package) = forger().await;
    let before = peak();
    let mut unread = Vec::new();
    for forged in ["replaced"; 4] {
        unread.push(executor.run(say(&package, forged, LONG)).await.unwrap());
    }
    // Their first parts have come, and the others have nowhere to go but into the queues.
    let first = join_all(unread.iter_mut().map(|outputs| outputs.next())).await;
    assert!(first.iter().all(Option::is_some));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ends = join_all(unread.into_iter().map(futures::StreamExt::collect::<Vec<_>>)).await;
    for end in ends.iter().zip(first).map(|(end, first)| end.last().cloned().or(first)) {
        assert!(matches!(end, Some(Err(_))), "{end:?}");
    }
    assert_eq!(said(&executor, &package, "after").await.as_deref(), Ok("after!"));
    let grown = peak().saturating_sub(before);
    assert!(grown < GROWTH, "{} MiB", grown >> 20);
}

/// Gives what it is told, whatever the manifest says.
struct Gives(Result<Values, ExecutorError>, Usage);

#[async_trait]
impl Executor for Gives {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Onnx]
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, _package: &ModelPackage) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn unload(&self, _digest: &B256) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn run(&self, _execution: Execution) -> Result<Outputs, ExecutorError> {
        let usage = self.1;
        let part = self.0.clone().map(|values| OutputChunk::last(values, usage));
        Ok(stream::iter([part]).boxed())
    }
}

#[tokio::test]
async fn a_node_signs_what_the_manifest_promises() {
    let usage = Usage { input_units: 1, output_units: 1, duration_micros: u64::MAX };
    let good = Values::from([("text", "x")]);
    let cases = [
        (Ok(Values::new()), usage, "`text`: the model did not give this output"),
        (Ok([("text", "x"), ("more", "y")].into()), usage, "`more`: the manifest does not list this output"),
        (Ok([("text", Value::png(&b"x"[..]))].into()), usage, "`text`: is of another type"),
        (Ok([("text", "x".repeat(9 << 20).as_str())].into()), usage, "has more than 8388608 bytes"),
        (Err(ExecutorError::Failed("x".repeat(20 << 20))), usage, "the model failed: xxx"),
    ];
    for (given, usage, expected) in cases {
        let network = network(Gives(given, usage)).await;
        let reason = Customer::of(&network).await.fails(quickstart::NAME, image()).await;
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
    let network = network(Gives(Ok(good), Usage { input_units: 1, output_units: u64::MAX, ..usage })).await;
    let answer = network.client().await.unwrap().build().unwrap().infer(quickstart::NAME, image()).await.unwrap();
    assert_eq!(answer.usage().output_units, 2, "no more than one byte in one part has room for");
    let micros = answer.usage().duration_micros;
    assert!(micros < 60_000_000, "the node has a clock of its own: {micros}");
}

fn image() -> Values {
    [("image", Value::png(quickstart::SAMPLE))].into()
}

/// A network whose model promises one text.
async fn network(gives: Gives) -> LocalNetwork {
    let directory = tempfile::tempdir().unwrap();
    let package = changed(directory.path(), |manifest| manifest["outputs"] = json!([{ "type": "text", "name": "text" }]));
    LocalNetwork::builder().executor(Arc::new(gives)).models(vec![package]).start().await.unwrap()
}
