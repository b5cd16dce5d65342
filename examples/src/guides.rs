//! The code of the guides in `docs/`, which has to compile; a test compares.

#![allow(dead_code, unused_variables, clippy::unused_async, clippy::missing_errors_doc, reason = "read in the guides")]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use ncn_client::{
    Client, ClientConfig, Order, PayerChannel, Payment,
    core::{
        Amount, B256, CapabilityScope, ChannelParams, Confinement, Execution, Executor, ExecutorError, Model, OutputChunk, Receipt,
        Registry, Signed, Subnet, TaskCapability, Transport as _, TrustRoot, Usage, Value, Values,
        conformance::ExecutorFixture,
        executor::{ModelPackage, Outputs},
        model::ModelFormat,
    },
    evm::{Deployment, EvmLedger, JsonRpc, RpcOptions, SendOptions},
    grpc::GrpcTransport,
    keystore, unix_now,
};
use ncn_core::DynSigner;
use ncn_node::{gateway::Gateway, store::SharedStore};

fn client(ledger: EvmLedger) -> Result<Client, ncn_client::ClientError> {
    Client::builder()
        .gateway("http://127.0.0.1:50051")
        .payment(Payment::OnChain(ledger))
        .config(ClientConfig::batch())
        .max_price(Amount::TOKEN)
        .build()
}

async fn by_transaction() -> anyhow::Result<EvmLedger> {
    let key = keystore::open(Path::new("key.json"), || std::env::var("NCN_PASSWORD").ok())?;
    let deployment: Deployment = serde_json::from_slice(&std::fs::read("contracts.json")?)?;
    let options = RpcOptions { confirmations: 3, ..RpcOptions::default() };
    let endpoints = ["https://one.example".to_owned(), "https://two.example".to_owned()];
    let chain = Arc::new(JsonRpc::connect(&endpoints, Some(42_161), options).await?);
    let ledger = EvmLedger::connect(chain, deployment, key.clone(), SendOptions::default()).await?;
    Ok(ledger)
}

async fn by_signature(expected: B256, key: DynSigner, limit: Amount) -> anyhow::Result<Client> {
    let transport = Arc::new(GrpcTransport::new("http://127.0.0.1:50051")?);
    let trust = transport.network().await?.trust_root;
    assert_eq!(trust.hash(), expected); // which network you trust, you have to know
    let payment = Payment::Relayed;
    let client = Client::builder().transport(transport).payment(payment).trust(trust).signer(key).max_price(limit).build()?;
    Ok(client)
}

async fn out_of_a_channel(
    key: DynSigner,
    transport: Arc<GrpcTransport>,
    on_chain: EvmLedger,
    deposit: Amount,
    trust: TrustRoot,
) -> anyhow::Result<()> {
    let terms = ChannelParams { client: key.address(), gateway: transport.network().await?.gateway, salt: B256::random() };
    let expiry = unix_now() + 30 * 24 * 60 * 60; // at most 180 days
    drop(PayerChannel::create(Path::new("channel.json"), terms, deposit, expiry)?);
    on_chain.fund_channel(&terms, deposit, expiry).await?; // an EvmLedger

    let payment = Payment::Channel("channel.json".into());

    let access = TaskCapability { client: key.address(), request_id: terms.id(), scope: CapabilityScope::CloseChannel };
    let access = Signed::sign(access, &trust.domain, &*key).await?;
    let (_settled, agreement) = transport.close_channel(terms, access).await?; // waits for requests in flight and their settlement
    on_chain.close_channel(&terms, Some(agreement)).await?;
    Ok(())
}

async fn one_call(client: Client, png: Vec<u8>) -> anyhow::Result<()> {
    let answer = client.infer("digits", [("image", Value::png(png))]).await?;
    println!("{:?}", answer.output.text("label"));
    Ok(())
}

async fn in_steps(client: Client, inputs: Values) -> anyhow::Result<()> {
    let order = Order::new("digits", inputs).max_price(Amount::TOKEN).timeout(Duration::from_mins(5));
    let quoted = client.submit(order).await?; // nothing is paid yet
    println!("{} until {}", quoted.quote().total, quoted.quote().expiry);
    let paid = quoted.clone().pay().await?; // the quote's total is in escrow, or promised
    let answer = paid.finish().await?; // verified, or an error
    Ok(())
}

fn check(json: &[u8], trust: &TrustRoot, output: &Values) -> Result<bool, ncn_client::core::ReceiptError> {
    let receipt = Receipt::from_json(json)?;
    receipt.verify(trust)?;
    Ok(receipt.matches_output(output))
}

async fn gateway(
    account: EvmLedger,
    subnet: Subnet,
    max_fee: Amount,
    key: DynSigner,
    registry: Arc<dyn Registry>,
    manifest: Bytes,
) -> anyhow::Result<()> {
    account.create_subnet(&subnet.name, max_fee).await?; // an EvmLedger; pays the fee, once
    let store = SharedStore::open(Path::new("state/gateway.redb"))?;
    let gateway = Gateway::builder(key, subnet, Arc::new(account), registry, store)
        .manifests(vec![manifest])
        .listen("127.0.0.1:50051".parse::<std::net::SocketAddr>()?)
        .start()
        .await?;
    tokio::signal::ctrl_c().await?;
    gateway.shutdown().await;
    Ok(())
}

/// Gives its inputs back.
#[derive(Default)]
struct MyEngine {
    models: Mutex<HashMap<B256, Arc<Model>>>,
}

#[async_trait]
impl Executor for MyEngine {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Echo]
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None // it runs in this process
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        let model = package.model.clone();
        self.models.lock().unwrap_or_else(PoisonError::into_inner).insert(model.digest(), model);
        Ok(())
    }

    async fn unload(&self, model_digest: &B256) -> Result<(), ExecutorError> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).remove(model_digest);
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let model = self.models.lock().unwrap_or_else(PoisonError::into_inner).get(&execution.model_digest).cloned();
        let model = model.ok_or(ExecutorError::NotLoaded(execution.model_digest))?;
        let tensors = model.manifest().prepare(&execution.inputs, None);
        let tensors = tensors.map_err(|error| ExecutorError::InvalidInput(error.to_string()))?;
        let values = model.manifest().finish(tensors.clone(), &tensors);
        let values = values.map_err(|error| ExecutorError::InvalidOutput(error.to_string()))?;
        let usage = Usage { input_units: 1, output_units: 1, duration_micros: 0 };
        Ok(stream::iter([Ok(OutputChunk::last(values, usage))]).boxed())
    }
}

/// A package without files: one vector in, the same out.
fn fixture() -> ExecutorFixture {
    let manifest = br#"{"name":"echo","version":"1","task":"echo","description":"","licence":"MIT","format":"echo","entry":"","files":[],
        "inputs":[{"type":"tensor","name":"x","dtype":"u8","shape":["n"]}],"outputs":[{"type":"tensor","name":"x","dtype":"u8","shape":["n"]}],
        "limits":{"memory_bytes":1,"deadline_ms":1000},"price":"1"}"#;
    let model = Arc::new(Model::parse(&manifest[..]).unwrap());
    let x = |shape: Vec<usize>| {
        let data = vec![7; shape.iter().product()];
        Values::from([("x", ncn_core::Tensor::new(ncn_core::DataType::U8, shape, data).unwrap())])
    };
    let package = ModelPackage { model, directory: PathBuf::new() };
    ExecutorFixture { package, corrupt: None, inputs: x(vec![3]), outputs: x(vec![3]), bad_inputs: x(vec![3, 1]) }
}

#[tokio::test]
async fn my_engine_keeps_the_contract() {
    let rules = ncn_core::conformance::executor(&MyEngine::default(), &fixture()).await.unwrap();
    assert!(!rules.is_empty());
}

/// All blanks as one, and no lines that only import.
fn plain(code: &str) -> String {
    let kept = code.lines().filter(|line| !line.starts_with("use "));
    kept.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_guides_show_what_compiles() {
    let compiled = plain(include_str!("guides.rs"));
    let mut blocks = 0;
    for guide in ["dapp.md", "node-builder.md"] {
        let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(guide)).unwrap();
        for block in document.split("```rust\n").skip(1).map(|rest| rest.split_once("```").unwrap().0) {
            assert!(compiled.contains(&plain(block)), "{guide}: this is not in examples/src/guides.rs:\n{block}");
            blocks += 1;
        }
    }
    assert!(blocks >= 11, "{blocks}");
}
