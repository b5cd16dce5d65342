//! A network for clients in any language: models that say words, and gateways that lie.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_core::{
    B256, Confinement, DataType, DynSigner, Execution, Executor, ExecutorError, FinishReason, Model, ModelInfo, NetworkInfo,
    OutputChunk, Signed, Submission, TaskCapability, TaskEvent, TaskStatus, Tensor, Transport, TransportError, Update, Usage,
    Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
    transport::Updates,
};
use ncn_devnet::{LocalNetwork, quickstart, well_known_key};
use ncn_executor::{EngineExecutor, ExecutorRouter};
use ncn_node::{
    gateway::http_routes,
    server::{LOOPBACK, Server},
};
use serde_json::{Value as Json, json};

use crate::{
    liars::{made_up, seal},
    scene::{key, tokens},
    tamper::{Tamper, Tampered},
    wait::eventually,
};

/// How many words the model `words` says, and what is paid for a request of any of these models.
const WORDS: usize = 12;
const PRICE: &str = "10000000000000000";
/// What it waits before each, so that its node signs some of them before the last.
const PAUSE: Duration = Duration::from_millis(50);
/// What the model `slow` waits before each word.
const SLOW: Duration = Duration::from_millis(20);

/// How often, and how many times, the model `clock` says what time it is.
const TICK: Duration = Duration::from_millis(3);
const TICKS: usize = 300;

/// Runs of a model from their first word on.
#[derive(Default)]
pub(super) struct Runs {
    pub(super) running: usize,
    /// How many words the newest has said.
    pub(super) words: usize,
    /// When each of those that are over was so: nobody asks it for more.
    pub(super) over: Vec<SystemTime>,
}

struct Run(Arc<Mutex<Runs>>);

impl Drop for Run {
    fn drop(&mut self) {
        let mut runs = self.0.lock().unwrap();
        runs.running -= 1;
        runs.over.push(SystemTime::now());
    }
}

/// Says words, or gives an embedding, by the model's name.
#[derive(Default)]
struct Scripted {
    names: Mutex<BTreeMap<B256, String>>,
    slow: Arc<Mutex<Runs>>,
}

fn word(number: usize, last: bool) -> OutputChunk {
    let usage = Usage { input_units: 1, output_units: 1, duration_micros: 1 };
    let values = Values::from([("text", format!("{number} ").as_str())]);
    OutputChunk { values, usage, finish: last.then_some(FinishReason::Stop) }
}

#[async_trait]
impl Executor for Scripted {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Echo]
    }

    fn confinement(&self, _: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let name = package.model.manifest().name.clone();
        self.names.lock().unwrap().insert(package.model.digest(), name);
        Ok(())
    }

    async fn unload(&self, _: &B256) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let name = self.names.lock().unwrap()[&execution.model_digest].clone();
        Ok(match name.as_str() {
            "embed" => {
                let numbers: Vec<u8> = [0.5_f32, -1.0, 2.0].iter().flat_map(|number| number.to_le_bytes()).collect();
                let tensor = Tensor::new(DataType::F32, vec![1, 3], numbers).unwrap();
                let usage = Usage { input_units: 1, output_units: 1, duration_micros: 1 };
                stream::iter([Ok(OutputChunk::last(Values::from([("embedding", tensor)]), usage))]).boxed()
            }
            "clock" => {
                let say = |number| async move {
                    tokio::time::sleep(TICK).await;
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
                    let values = Values::from([("text", format!("{now} ").as_str())]);
                    Ok(OutputChunk { values, ..word(number, number == TICKS) })
                };
                stream::iter(1..=TICKS).then(say).boxed()
            }
            "slow" => {
                self.slow.lock().unwrap().running += 1;
                let run = Run(self.slow.clone());
                let say = move |number| {
                    run.0.lock().unwrap().words = number;
                    async move {
                        tokio::time::sleep(SLOW).await;
                        Ok(word(number, false))
                    }
                };
                stream::iter(1..).then(say).boxed()
            }
            _ => {
                let say = |number| async move {
                    tokio::time::sleep(PAUSE).await;
                    Ok(word(number, number == WORDS))
                };
                stream::iter(1..=WORDS).then(say).boxed()
            }
        })
    }
}

/// A model that is only scripted.
fn scripted(name: &str, inputs: &[&str], output: &Json) -> ModelPackage {
    let inputs: Vec<_> = inputs.iter().map(|name| json!({ "type": "text", "name": name, "optional": true })).collect();
    let manifest = json!({
        "name": name, "version": "1.0.0", "description": "For tests.", "licence": "MIT OR Apache-2.0", "format": "echo",
        "task": "text-generation", "entry": "", "files": [], "inputs": inputs, "outputs": [output],
        "limits": { "memory_bytes": 1_000_000, "deadline_ms": 60_000 }, "price": PRICE,
    });
    ModelPackage { model: Arc::new(Model::parse(manifest.to_string()).unwrap()), directory: std::env::temp_dir() }
}

/// What a gateway lies about to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// It is another network's.
    Network,
    /// It lists another price than it asks for.
    Price,
    /// Its model needs a day.
    Deadline,
    /// It makes up the validators' approvals of its quote.
    Approvals,
    /// It asks for something else than what was approved.
    Total,
    /// One of the parts is another one.
    Parts,
    /// The output is another one.
    Output,
    /// The receipt states a lower payment, and is sealed again.
    Receipt,
    /// It is no lie: a node is lost that has given a part more than it has signed, and the next one goes on after those.
    Takeover,
}

const LIES: [(&str, Lie); 9] = [
    ("a takeover", Lie::Takeover),
    ("another network", Lie::Network),
    ("another price", Lie::Price),
    ("a day", Lie::Deadline),
    ("made-up approvals", Lie::Approvals),
    ("another total", Lie::Total),
    ("another part", Lie::Parts),
    ("another output", Lie::Output),
    ("another receipt", Lie::Receipt),
];

struct Liar {
    honest: Arc<dyn Transport>,
    lie: Lie,
}

/// After the first checkpoint, one more part, and that another node takes over.
fn with_a_takeover(updates: Updates, from: u64) -> Updates {
    let (mut index, mut is_over) = (from, false);
    let more = move |update: Result<Update, TransportError>| {
        let mut events = Vec::new();
        match update {
            Ok(Update { event: TaskEvent::Checkpoint(signed), .. }) if !is_over => {
                is_over = true;
                let node = signed.message.compute;
                events.push(Ok(TaskEvent::Checkpoint(signed)));
                events.push(Ok(TaskEvent::Chunk(word(0, false))));
                events.push(Ok(TaskEvent::Takeover(node)));
            }
            update => events.push(update.map(|update| update.event)),
        }
        let number = |event: Result<TaskEvent, TransportError>| {
            index += 1;
            event.map(|event| Update { index: index - 1, event })
        };
        stream::iter(events.into_iter().map(number).collect::<Vec<_>>())
    };
    updates.flat_map(more).boxed()
}

#[async_trait]
impl Tamper for Liar {
    fn inner(&self) -> &dyn Transport {
        &*self.honest
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        let mut info = self.honest.network().await?;
        if self.lie == Lie::Network {
            info.trust_root.validators[0] = key().address();
            info.trust_root.validators.sort();
        }
        Ok(info)
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        let mut models = self.honest.models().await?;
        for info in &mut models {
            match self.lie {
                Lie::Price => info.price.base = ncn_core::Amount::new(info.price.base.units() + 1),
                Lie::Deadline => info.least_timeout = Duration::from_hours(24),
                _ => {}
            }
        }
        Ok(models)
    }

    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        let mut status = self.honest.submit(submission).await?;
        if self.lie == Lie::Approvals {
            status.preprocessing = Some(made_up().await);
        }
        if let (Lie::Total, Some(quote)) = (self.lie, &mut status.quote) {
            quote.total = ncn_core::Amount::new(quote.total.units() - 1);
        }
        Ok(status)
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        let lie = self.lie;
        if lie == Lie::Takeover {
            return Ok(with_a_takeover(self.honest.updates(access, from).await?, from));
        }
        let change = move |update: Result<Update, TransportError>| async move {
            let Update { index, event } = update?;
            let event = match (lie, event) {
                (Lie::Parts, TaskEvent::Chunk(mut chunk)) if chunk.values.text("text") == Some("2 ") => {
                    chunk.values.insert("text", "two ");
                    TaskEvent::Chunk(chunk)
                }
                (Lie::Output, TaskEvent::Delivered { mut output, receipt }) => {
                    output.insert("text", "forged");
                    TaskEvent::Delivered { output, receipt }
                }
                (Lie::Receipt, TaskEvent::Delivered { output, mut receipt }) => {
                    receipt.payments.total = ncn_core::Amount::new(1);
                    seal(&mut receipt, &well_known_key("gateway", 0)).await;
                    TaskEvent::Delivered { output, receipt }
                }
                (_, event) => event,
            };
            Ok(Update { index, event })
        };
        Ok(self.honest.updates(access, from).await?.then(change).boxed())
    }
}

/// A network, an honest gateway and those that lie, and a client's key with tokens.
pub(super) struct Scene {
    pub(super) network: LocalNetwork,
    pub(super) gateways: BTreeMap<String, String>,
    pub(super) hash: B256,
    pub(super) secret: String,
    slow: Arc<Mutex<Runs>>,
    _liars: Vec<Server>,
    _files: tempfile::TempDir,
}

impl Scene {
    pub(super) async fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let text = json!({ "type": "text", "name": "text" });
        let embedding = json!({ "type": "tensor", "name": "embedding", "dtype": "f32", "shape": [1, 3] });
        let models = vec![
            quickstart::unpack(files.path()).unwrap(),
            scripted("words", &["prompt", "messages"], &text),
            scripted("slow", &["prompt"], &text),
            scripted("clock", &["prompt"], &text),
            scripted("embed", &["text"], &embedding),
        ];
        let scripted = Scripted::default();
        let slow = scripted.slow.clone();
        let executor = ExecutorRouter::new(vec![Arc::new(EngineExecutor::built_in()), Arc::new(scripted)]);
        let network = LocalNetwork::builder().well_known_keys().executor(Arc::new(executor)).models(models).start().await.unwrap();
        let hash = network.trust_root().await.unwrap().hash();
        let mut gateways = BTreeMap::from([("honest".to_owned(), network.gateway_url())]);
        let mut liars = Vec::new();
        for (name, lie) in LIES {
            let transport = Arc::new(Tampered(Liar { honest: network.gateway(), lie }));
            let server = Server::start(LOOPBACK.into(), http_routes(transport)).unwrap();
            gateways.insert(name.into(), server.url());
            liars.push(server);
        }
        let secret = B256::random();
        let scene = Self { network, gateways, hash, secret: secret.to_string(), slow, _liars: liars, _files: files };
        scene.network.funder().transfer(scene.signer().address(), tokens(5)).await.unwrap();
        scene
    }

    pub(super) fn signer(&self) -> DynSigner {
        Arc::new(self.secret.parse::<alloy_signer_local::PrivateKeySigner>().unwrap())
    }

    /// What the model `slow` does.
    pub(super) fn slow(&self) -> MutexGuard<'_, Runs> {
        self.slow.lock().unwrap()
    }

    /// Waits until the run of the model `slow` that a client has dropped is over.
    pub(super) async fn is_idle(&self) {
        eventually("the compute node is idle", async || self.slow().running == 0 && self.slow().over.len() == 1).await;
    }

    /// Where everything is, for a program in another language.
    pub(super) fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("NCN_GATEWAYS", json!(self.gateways).to_string()),
            ("NCN_NETWORK", self.hash.to_string()),
            ("NCN_KEY", self.secret.clone()),
        ]
    }
}
