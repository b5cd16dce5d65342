//! A node that does as it should, and its gateway, which is the test.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_client::unix_now;
use ncn_core::{
    Acknowledgement, Address, Amount, B256, Collected, CompletionAuthorization, CompletionRequest, Compute as _, ComputeError,
    ComputeEvent, ComputeTask, Confinement, Delivery, Dispatch, DynSigner, Execution, Executor, ExecutorError, FeeSplit,
    FinishReason, InferenceRequest, InferenceResult, Message as _, OutputChunk, PaymentLedger, PaymentStatus, PreprocessingRequest,
    QuorumCertificate, Quote, Reservation, Signature, Signed, Subnet, SubnetModel, Units, Usage, Value, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
    trust::draw_of,
};
use ncn_devnet::quickstart;
use ncn_node::{
    compute::ComputeNode,
    node::RunningComputeNode,
    store::{MemoryStore, SharedStore},
};
use serde_json::json;

use crate::{
    harmful::changed,
    money::Contracts as _,
    scene::{Behavior, InProcess, key, tokens},
    wait::in_time,
};

pub(super) const WORDS: u64 = 40;
pub(super) const BASE: u128 = 1_000_000;
pub(super) const WORD: u128 = 1_000;
/// How long the orders here may take.
pub(super) const LIFETIME: u64 = 600;

/// Says as many words, and then nothing more.
pub(super) struct Words(u64);

#[async_trait]
impl Executor for Words {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Onnx]
    }

    fn confinement(&self, _: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, _: &ModelPackage) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn unload(&self, _: &B256) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn run(&self, _: Execution) -> Result<Outputs, ExecutorError> {
        let word = |number: u64| {
            let values = Values::from([("text", Value::from(format!("{number} ").as_str()))]);
            let usage = Usage { input_units: 1, output_units: number, duration_micros: 1 };
            Ok(OutputChunk { values, usage, finish: (number == WORDS).then_some(FinishReason::Stop) })
        };
        Ok(stream::iter((1..=self.0).map(word)).chain(stream::pending()).boxed())
    }
}

/// A node that does as it should, and its gateway, which is this test.
pub(super) struct Scene {
    pub(super) network: InProcess,
    pub(super) gateway: DynSigner,
    pub(super) client: DynSigner,
    pub(super) node: RunningComputeNode,
    pub(super) compute: DynSigner,
    pub(super) store: Arc<MemoryStore>,
    pub(super) package: ModelPackage,
    pub(super) subnet: B256,
    pub(super) _files: tempfile::TempDir,
}

/// The node, with what it has kept.
pub(super) async fn start(
    network: &InProcess,
    compute: &DynSigner,
    subnet: B256,
    package: ModelPackage,
    words: u64,
    store: Arc<MemoryStore>,
) -> RunningComputeNode {
    // What two requests and the beginning of a third come to.
    let credit = Amount::new((BASE + WORD * u128::from(WORDS)) * 5 / 2);
    let ledger = network.chain.ledger(compute.clone());
    let (executor, registry) = (Arc::new(Words(words)), network.registry.clone());
    let node = ComputeNode::builder(compute.clone(), subnet, executor, ledger.clone(), registry.clone()).models(vec![package]);
    node.claims(ledger, registry, SharedStore::new(store).unwrap()).credit(credit).start().await.unwrap()
}

impl Scene {
    pub(super) async fn new(words: u64) -> Self {
        let network = InProcess::new(&[Behavior::Honest; 5]).await;
        let (gateway, client, compute) = (key(), key(), key());
        network.chain.account(client.clone(), tokens(1)).await;
        let files = tempfile::tempdir().unwrap();
        let package = changed(files.path(), |manifest| {
            manifest["outputs"] = json!([{ "type": "text", "name": "text" }]);
            manifest["limits"]["max_output_units"] = WORDS.into();
            manifest["price"] = json!({
                "base": BASE.to_string(),
                "input": { "unit": "row", "price": "0" },
                "output": { "unit": "row", "price": WORD.to_string() },
            });
        });
        let listed = SubnetModel::of(&package.model);
        let split = FeeSplit::default();
        let subnet =
            Subnet { owner: gateway.address(), name: "due".into(), gateways: Vec::new(), models: vec![listed], split, version: 1 };
        network.chain.create_subnet(&gateway, &subnet.name).await;
        let id = subnet.id();
        let subnet = Signed::sign(subnet, &network.trust.domain, &*gateway).await.unwrap();
        network.registry.register_subnet(subnet).await.unwrap();
        let store = Arc::<MemoryStore>::default();
        let node = start(&network, &compute, id, package.clone(), words, store.clone()).await;
        Self { network, gateway, client, node, compute, store, package, subnet: id, _files: files }
    }

    /// The node crashes, and is started again.
    pub(super) async fn restart(self) -> Self {
        drop(self.node);
        let node = start(&self.network, &self.compute, self.subnet, self.package.clone(), WORDS, self.store.clone()).await;
        Self { node, ..self }
    }

    pub(super) async fn sign<T: ncn_core::crypto::Authored>(&self, message: T, key: &DynSigner) -> Signed<T> {
        Signed::sign(message, &self.network.trust.domain, &**key).await.unwrap()
    }

    /// An order that is approved and paid into escrow, as its gateway dispatches it.
    pub(super) async fn task(&self) -> ComputeTask {
        let task = self.order().await;
        self.network.chain.ledger(self.client.clone()).escrow(&task.quote).await.unwrap();
        task
    }

    /// An order that is approved, and not paid yet.
    pub(super) async fn order(&self) -> ComputeTask {
        let (salt, inputs) = (B256::random(), Values::from([("image", Value::png(quickstart::SAMPLE))]));
        let order = InferenceRequest {
            client: self.client.address(),
            subnet: self.subnet,
            model_digest: self.package.model.digest(),
            input_hash: inputs.hash(),
            parameters: "{}".into(),
            max_price: tokens(1),
            deadline: unix_now() + LIFETIME,
            nonce: B256::random(),
            draw: draw_of(&salt),
        };
        let (trust, epoch) = (&self.network.trust, self.network.epoch.since);
        let request_id = order.digest(&trust.domain);
        let max_units = Units { input: 1, output: WORDS };
        let quote = Quote {
            request_id,
            client: order.client,
            gateway: self.gateway.address(),
            compute: self.address(),
            model_digest: self.package.model.digest(),
            price: self.package.model.manifest().price(),
            max_units,
            total: self.package.model.manifest().price().cost(max_units).unwrap(),
            split: FeeSplit::default(),
            expiry: order.deadline,
            trust_root: trust.hash(),
            epoch,
            salt,
            committee: trust.committee(&salt, &request_id).struct_hash(),
        };
        let request = self.sign(order, &self.client).await;
        let asked = PreprocessingRequest { request: request.clone(), quote: quote.clone() };
        let preprocessing = self.network.registry.preprocessing(asked).await.unwrap();
        let dispatches = vec![self.dispatch(&quote, self.address()).await];
        let finish_by = quote.expiry;
        ComputeTask {
            request,
            quote,
            preprocessing,
            before: Vec::new(),
            prefix: Values::new(),
            dispatches,
            voucher: None,
            inputs,
            finish_by,
        }
    }

    pub(super) async fn dispatch(&self, quote: &Quote, compute: Address) -> Signed<Dispatch> {
        let (gateway, quote, resumed_from) = (self.gateway.address(), quote.struct_hash(), B256::ZERO);
        self.sign(Dispatch { gateway, compute, quote, attempt: 0, resumed_from }, &self.gateway).await
    }

    pub(super) fn address(&self) -> Address {
        self.node.node().address()
    }

    pub(super) async fn balance(&self, account: Address) -> Amount {
        self.network.chain.deployer.balance(account).await.unwrap()
    }

    /// The node runs a task, until it has no more to say. Returns its last word, and the text that it has given.
    pub(super) async fn run(&self, task: &ComputeTask) -> (Signed<InferenceResult>, String) {
        let Quote { request_id, model_digest, expiry, .. } = task.quote;
        let node = self.node.node();
        node.reserve(Reservation { request_id, model_digest, expires_at: expiry }).await.unwrap();
        let mut events = node.execute(task.clone()).await.unwrap();
        let (mut word, mut text) = (None, String::new());
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(2), events.next()).await {
            match event.unwrap() {
                ComputeEvent::Chunk(part) => text.push_str(part.values.text("text").unwrap()),
                ComputeEvent::Checkpoint(signed) => {
                    node.acknowledge(request_id, self.acknowledgement(&signed).await).await;
                    word = Some(signed);
                }
                ComputeEvent::Finished(signed) => return (signed, text),
                _ => {}
            }
        }
        (word.unwrap(), text)
    }

    /// What a gateway says that has got this.
    pub(super) async fn acknowledgement(&self, result: &Signed<InferenceResult>) -> Signed<Acknowledgement> {
        let (gateway, result) = (self.gateway.address(), result.message.struct_hash());
        self.sign(Acknowledgement { gateway, result }, &self.gateway).await
    }

    /// The node hands an output over, for this certificate and its gateway's word on the result.
    pub(super) async fn collect(
        &self,
        task: &ComputeTask,
        result: &Signed<InferenceResult>,
        certificate: QuorumCertificate,
    ) -> Result<Collected, ComputeError> {
        let acknowledgement = self.acknowledgement(result).await;
        self.node.node().collect(task.quote.request_id, certificate, acknowledgement).await
    }

    /// The certificate that an honest gateway gets.
    pub(super) async fn certificate(&self, task: &ComputeTask, result: Signed<InferenceResult>) -> QuorumCertificate {
        let request = self.completion(task, result, &self.gateway).await;
        self.network.registry.completion(request).await.unwrap()
    }

    pub(super) async fn completion(
        &self,
        task: &ComputeTask,
        result: Signed<InferenceResult>,
        author: &DynSigner,
    ) -> CompletionRequest {
        let finish = result.message.finish.unwrap_or(FinishReason::NodeLost);
        let is_gateway = author.address() == task.quote.gateway;
        let acknowledgement = if is_gateway { None } else { Some(self.acknowledgement(&result).await) };
        let delivery = Delivery { results: vec![result], finish };
        let completion = delivery.completion(&task.quote).unwrap().struct_hash();
        let authorization = self.sign(CompletionAuthorization { author: author.address(), completion }, author).await;
        let (request, quote, dispatches) = (task.request.clone(), task.quote.clone(), task.dispatches.clone());
        let preprocessing = (!is_gateway).then(|| task.preprocessing.clone());
        let voucher = task.voucher;
        CompletionRequest { request, quote, delivery, preprocessing, voucher, dispatches, acknowledgement, authorization }
    }

    /// The node looks after what it is owed, however long that has been.
    pub(super) async fn look(&self) {
        in_time("the node looks at its claims", self.node.claims().unwrap().look(Instant::now() + Duration::from_hours(1))).await;
    }

    /// Lets time pass, and a block come.
    pub(super) fn pass(&self, seconds: u64) {
        self.network.chain.chain.advance(seconds);
        self.network.chain.chain.mine();
    }

    pub(super) async fn status(&self, quote: &Quote) -> PaymentStatus {
        self.network.chain.deployer.payment(quote.client, quote.request_id).await.unwrap()
    }

    /// The gateway gives a request up.
    pub(super) async fn give_up(&self, quote: &Quote, consent: Option<&Signature>) -> bool {
        PaymentLedger::refund(&*self.network.chain.ledger(self.gateway.clone()), quote, consent).await.is_ok()
    }

    /// What the node has of a request of so many words, with the default split between one node and three validators.
    pub(super) fn share(words: u64) -> std::ops::RangeInclusive<Amount> {
        let cost = BASE + WORD * u128::from(words);
        Amount::new(cost * 80 / 100)..=Amount::new(cost * 80 / 100 + 5)
    }
}
