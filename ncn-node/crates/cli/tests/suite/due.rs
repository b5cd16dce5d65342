//! The node's due: a gateway that lies, gives up or vanishes does not keep the pay of a node that has served.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_client::unix_now;
use ncn_core::{
    Address, Amount, B256, Collected, CompletionAuthorization, CompletionRequest, Compute, ComputeError, ComputeEvent, ComputeTask,
    Confinement, Delivery, Dispatch, DynSigner, Execution, Executor, ExecutorError, FeeSplit, FinishReason, InferenceRequest,
    InferenceResult, Message as _, OutputChunk, PaymentLedger, PaymentStatus, PreprocessingRequest, QuorumCertificate, Quote,
    Reservation, Signature, Signed, Subnet, SubnetModel, TaskCapability, Units, Usage, Value, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
    trust::draw_of,
    validation::{CLAIM_SECONDS, CLAIM_TURN_SECONDS},
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
    wait::{eventually, in_time},
};

const WORDS: u64 = 40;
const BASE: u128 = 1_000_000;
const WORD: u128 = 1_000;
/// How long the orders here may take.
const LIFETIME: u64 = 600;

/// Says as many words, and then nothing more.
struct Words(u64);

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
struct Scene {
    network: InProcess,
    gateway: DynSigner,
    client: DynSigner,
    node: RunningComputeNode,
    compute: DynSigner,
    store: Arc<MemoryStore>,
    package: ModelPackage,
    subnet: B256,
    _files: tempfile::TempDir,
}

/// The node, with what it has kept.
async fn start(
    network: &InProcess,
    compute: &DynSigner,
    subnet: B256,
    package: ModelPackage,
    words: u64,
    store: Arc<MemoryStore>,
) -> RunningComputeNode {
    let ledger = network.chain.ledger(compute.clone());
    let (executor, registry) = (Arc::new(Words(words)), network.registry.clone());
    let node = ComputeNode::builder(compute.clone(), subnet, executor, ledger.clone(), registry.clone()).models(vec![package]);
    node.claims(ledger, registry, SharedStore::new(store).unwrap()).start().await.unwrap()
}

impl Scene {
    async fn new(words: u64) -> Self {
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
        let subnet = Subnet { owner: gateway.address(), name: "due".into(), models: vec![listed], split, version: 1 };
        network.chain.create_subnet(&gateway, &subnet.name).await;
        let id = subnet.id();
        let subnet = Signed::sign(subnet, &network.trust.domain, &*gateway).await.unwrap();
        network.registry.register_subnet(subnet).await.unwrap();
        let store = Arc::<MemoryStore>::default();
        let node = start(&network, &compute, id, package.clone(), words, store.clone()).await;
        Self { network, gateway, client, node, compute, store, package, subnet: id, _files: files }
    }

    /// The node crashes, and is started again.
    async fn restart(self) -> Self {
        drop(self.node);
        let node = start(&self.network, &self.compute, self.subnet, self.package.clone(), WORDS, self.store.clone()).await;
        Self { node, ..self }
    }

    async fn sign<T: ncn_core::crypto::Authored>(&self, message: T, key: &DynSigner) -> Signed<T> {
        Signed::sign(message, &self.network.trust.domain, &**key).await.unwrap()
    }

    /// An order that is approved and paid, as its gateway dispatches it.
    async fn task(&self) -> ComputeTask {
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
        self.network.chain.ledger(self.client.clone()).escrow(&quote).await.unwrap();
        let dispatches = vec![self.dispatch(&quote, self.address()).await];
        let finish_by = quote.expiry;
        ComputeTask { request, quote, preprocessing, before: Vec::new(), dispatches, voucher: None, inputs, finish_by }
    }

    async fn dispatch(&self, quote: &Quote, compute: Address) -> Signed<Dispatch> {
        let (gateway, quote, resumed_from) = (self.gateway.address(), quote.struct_hash(), B256::ZERO);
        self.sign(Dispatch { gateway, compute, quote, attempt: 0, resumed_from }, &self.gateway).await
    }

    fn address(&self) -> Address {
        self.node.node().address()
    }

    async fn balance(&self, account: Address) -> Amount {
        self.network.chain.deployer.balance(account).await.unwrap()
    }

    /// The node runs a task, until it has no more to say. Returns its last word, and the text that it has given.
    async fn run(&self, task: &ComputeTask) -> (Signed<InferenceResult>, String) {
        let Quote { request_id, model_digest, expiry, .. } = task.quote;
        let node = self.node.node();
        node.reserve(Reservation { request_id, model_digest, expires_at: expiry }).await.unwrap();
        let mut events = node.execute(task.clone()).await.unwrap();
        let (mut word, mut text) = (None, String::new());
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(2), events.next()).await {
            match event.unwrap() {
                ComputeEvent::Chunk(part) => text.push_str(part.values.text("text").unwrap()),
                ComputeEvent::Checkpoint(signed) => word = Some(signed),
                ComputeEvent::Finished(signed) => return (signed, text),
                _ => {}
            }
        }
        (word.unwrap(), text)
    }

    /// The certificate that an honest gateway gets.
    async fn certificate(&self, task: &ComputeTask, result: Signed<InferenceResult>) -> QuorumCertificate {
        let request = self.completion(task, result, &self.gateway).await;
        self.network.registry.completion(request).await.unwrap()
    }

    async fn completion(&self, task: &ComputeTask, result: Signed<InferenceResult>, author: &DynSigner) -> CompletionRequest {
        let finish = result.message.finish.unwrap_or(FinishReason::NodeLost);
        let delivery = Delivery { results: vec![result], finish };
        let completion = delivery.completion(&task.quote).unwrap().struct_hash();
        let authorization = self.sign(CompletionAuthorization { author: author.address(), completion }, author).await;
        let (request, quote, dispatches) = (task.request.clone(), task.quote.clone(), task.dispatches.clone());
        let preprocessing = (author.address() != quote.gateway).then(|| task.preprocessing.clone());
        CompletionRequest { request, quote, delivery, preprocessing, voucher: None, dispatches, authorization }
    }

    /// The node looks after what it is owed, however long that has been.
    async fn look(&self) {
        in_time("the node looks at its claims", self.node.claims().unwrap().look(Instant::now() + Duration::from_hours(1))).await;
    }

    /// Lets time pass, and a block come.
    fn pass(&self, seconds: u64) {
        self.network.chain.chain.advance(seconds);
        self.network.chain.chain.mine();
    }

    async fn status(&self, quote: &Quote) -> PaymentStatus {
        self.network.chain.deployer.payment(quote.client, quote.request_id).await.unwrap()
    }

    /// The gateway gives a request up.
    async fn give_up(&self, quote: &Quote, consent: Option<&Signature>) -> bool {
        PaymentLedger::refund(&*self.network.chain.ledger(self.gateway.clone()), quote, consent).await.is_ok()
    }

    /// What the node has of a request of so many words, with the default split between one node and three validators.
    fn share(words: u64) -> std::ops::RangeInclusive<Amount> {
        let cost = BASE + WORD * u128::from(words);
        Amount::new(cost * 80 / 100)..=Amount::new(cost * 80 / 100 + 5)
    }
}

fn words(count: u64) -> String {
    let words: Vec<_> = (1..=count).map(|number| format!("{number} ")).collect();
    words.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_part_is_handed_over_for_the_certificate_alone() {
    let scene = Scene::new(WORDS).await;
    let (task, other) = (scene.task().await, scene.task().await);
    let (result, text) = scene.run(&task).await;
    assert_eq!(text, words(WORDS - 1), "all but the last");
    let others = {
        let (result, _) = scene.run(&other).await;
        scene.certificate(&other, result).await
    };
    let (node, request_id) = (scene.node.node(), task.quote.request_id);
    for certificate in [QuorumCertificate::default(), task.preprocessing.clone(), others] {
        let refused = node.collect(request_id, certificate).await;
        assert!(matches!(refused, Err(ComputeError::InvalidTask(_))), "{refused:?}");
    }
    let certificate = scene.certificate(&task, result).await;
    // An answer may get lost.
    for _ in 0..2 {
        let Collected { output, last } = node.collect(request_id, certificate.clone()).await.unwrap();
        assert_eq!(output.text("text"), Some(&*words(WORDS)));
        assert_eq!(last.unwrap().values.text("text"), Some(&*format!("{WORDS} ")));
    }
    node.release(request_id).await;
    assert!(matches!(node.collect(request_id, certificate).await, Err(ComputeError::Unavailable(_))), "it is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_runs_what_its_gateway_has_not_dispatched() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let Quote { request_id, model_digest, expiry, .. } = task.quote;
    let stranger = key();
    let message = task.dispatches[0].message;
    let strangers = scene.sign(Dispatch { gateway: stranger.address(), ..message }, &stranger).await;
    let spoilt: [(&str, ComputeTask); 5] = [
        ("there are 0", ComputeTask { dispatches: Vec::new(), ..task.clone() }),
        ("dispatch.gateway", ComputeTask { dispatches: vec![strangers], ..task.clone() }),
        (
            "dispatch.compute",
            ComputeTask { dispatches: vec![scene.dispatch(&task.quote, stranger.address()).await], ..task.clone() },
        ),
        ("preprocessing", ComputeTask { preprocessing: QuorumCertificate::default(), ..task.clone() }),
        (
            "dispatch.quote",
            ComputeTask {
                dispatches: vec![scene.dispatch(&Quote { expiry: expiry + 1, ..task.quote.clone() }, scene.address()).await],
                ..task.clone()
            },
        ),
    ];
    for (problem, task) in spoilt {
        scene.node.node().reserve(Reservation { request_id, model_digest, expires_at: expiry }).await.unwrap();
        match scene.node.node().execute(task).await.map(drop) {
            Err(ComputeError::InvalidTask(reason)) => assert!(reason.contains(problem), "{problem}: {reason}"),
            other => panic!("{problem}: {other:?}"),
        }
    }
    assert_eq!(scene.run(&task).await.0.message.finish, Some(FinishReason::Stop));
}

#[test]
fn two_nodes_for_one_attempt_are_evidence() {
    let [one, other] = [1, 2].map(|byte| Dispatch {
        gateway: Address::repeat_byte(9),
        compute: Address::repeat_byte(byte),
        quote: B256::ZERO,
        attempt: 0,
        resumed_from: B256::ZERO,
    });
    assert!(one.contradicts(&other) && !one.contradicts(&one));
    assert!(one.contradicts(&Dispatch { resumed_from: B256::repeat_byte(1), ..one }));
    assert!(!one.contradicts(&Dispatch { attempt: 1, ..other }), "one after the other");
    assert!(!one.contradicts(&Dispatch { gateway: Address::ZERO, ..other }), "another gateway's");
}

/// Whatever the gateway does with what it has: nothing, or give the request up.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_paid_that_its_gateway_does_not_settle() {
    for (collected, gives_up) in [(false, false), (false, true), (true, false), (true, true)] {
        let scene = Scene::new(WORDS).await;
        let task = scene.task().await;
        let (result, _) = scene.run(&task).await;
        if collected {
            let certificate = scene.certificate(&task, result).await;
            scene.node.node().collect(task.quote.request_id, certificate).await.unwrap();
        }
        if !collected {
            scene.look().await;
            assert!(matches!(scene.status(&task.quote).await, PaymentStatus::Held { .. }), "a gateway has time until the expiry");
        }
        assert_eq!(scene.node.claims().unwrap().count(), 1);
        if gives_up {
            assert!(!scene.give_up(&task.quote, None).await, "not at once");
        } else {
            scene.pass(LIFETIME + 1);
        }
        if !collected {
            scene.look().await;
            assert_eq!(scene.balance(scene.address()).await, Amount::ZERO, "later attempts come first");
            scene.pass(2 * CLAIM_TURN_SECONDS + 1);
        }
        scene.look().await;
        let status = scene.status(&task.quote).await;
        assert!(matches!(status, PaymentStatus::PaidOut { .. }), "{collected} {gives_up}: {status}");
        // What was not handed over is not paid for.
        let given = if collected { WORDS } else { WORDS - 1 };
        assert!(Scene::share(given).contains(&scene.balance(scene.address()).await));
        let cost = Amount::new(BASE + WORD * u128::from(given));
        assert_eq!(scene.balance(task.quote.client).await.checked_add(cost), Some(tokens(1)), "the client pays the price");
        assert_eq!(scene.node.claims().unwrap().count(), 0);
    }
}

/// What was streamed and signed is paid for, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_paid_for_the_beginning_of_an_output() {
    let scene = Scene::new(WORDS / 2).await;
    let task = scene.task().await;
    let (result, text) = scene.run(&task).await;
    let given = result.message.parts;
    assert_eq!((text, result.message.finish), (words(given), None));
    assert_eq!(given, WORDS / 2 - 1, "the newest is held back");
    scene.give_up(&task.quote, None).await;
    scene.pass(2 * CLAIM_TURN_SECONDS + 1);
    scene.look().await;
    assert!(Scene::share(given).contains(&scene.balance(scene.address()).await));
}

/// A certificate is presented as soon as its gateway has had a moment to do so: until then the gateway may end the escrow in another way.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_presents_its_certificate_itself() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let (result, _) = scene.run(&task).await;
    let certificate = scene.certificate(&task, result).await;
    // Collected again and again, it is due no later.
    for _ in 0..3 {
        scene.node.node().collect(task.quote.request_id, certificate.clone()).await.unwrap();
    }
    scene.node.claims().unwrap().look(Instant::now()).await;
    assert!(matches!(scene.status(&task.quote).await, PaymentStatus::Held { .. }), "its gateway has a moment");
    scene.look().await;
    assert!(matches!(scene.status(&task.quote).await, PaymentStatus::PaidOut { .. }));
    assert!(Scene::share(WORDS).contains(&scene.balance(scene.address()).await));
}

/// Nothing is handed over for a certificate that does not pay any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_an_escrow_that_has_ended_collects_nothing() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let (result, _) = scene.run(&task).await;
    let certificate = scene.certificate(&task, result).await;
    let digest = TaskCapability::cancel(&task.quote).digest(&scene.network.trust.domain);
    let consent = Signature::sign(&digest, &*scene.client).await.unwrap();
    assert!(scene.give_up(&task.quote, Some(&consent)).await);
    let refused = scene.node.node().collect(task.quote.request_id, certificate).await;
    assert!(matches!(refused, Err(ComputeError::Unavailable(_))), "{refused:?}");
}

/// A gateway that has a request run again, and changes its subnet, changes nothing about what the node is owed.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_only_grows_and_does_not_depend_on_the_subnet() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    scene.run(&task).await;
    let Quote { request_id, model_digest, expiry, .. } = task.quote;
    scene.node.node().reserve(Reservation { request_id, model_digest, expires_at: expiry }).await.unwrap();
    let mut again = scene.node.node().execute(task.clone()).await.unwrap();
    assert!(matches!(again.next().await, Some(Ok(ComputeEvent::Chunk(_)))));
    drop(again);
    let gone =
        Subnet { owner: scene.gateway.address(), name: "due".into(), models: Vec::new(), split: FeeSplit::default(), version: 2 };
    scene.network.registry.register_subnet(scene.sign(gone, &scene.gateway).await).await.unwrap();
    scene.give_up(&task.quote, None).await;
    scene.pass(2 * CLAIM_TURN_SECONDS);
    scene.look().await;
    assert!(Scene::share(WORDS - 1).contains(&scene.balance(scene.address()).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_restarted_knows_what_it_is_owed() {
    for collected in [false, true] {
        let mut scene = Scene::new(WORDS).await;
        let task = scene.task().await;
        let (result, _) = scene.run(&task).await;
        if collected {
            let certificate = scene.certificate(&task, result).await;
            scene.node.node().collect(task.quote.request_id, certificate).await.unwrap();
        }
        scene = scene.restart().await;
        scene.give_up(&task.quote, None).await;
        scene.pass(2 * CLAIM_TURN_SECONDS);
        let given = if collected { WORDS } else { WORDS - 1 };
        // The node itself may be looking at it: it does so when it is started.
        eventually("the node is paid", async || {
            scene.look().await;
            Scene::share(given).contains(&scene.balance(scene.address()).await)
        })
        .await;
        eventually("what is paid is forgotten", async || scene.node.claims().unwrap().count() == 0).await;
        scene = scene.restart().await;
        assert_eq!(scene.node.claims().unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_agrees_has_its_payment_back_at_once() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let digest = TaskCapability::cancel(&task.quote).digest(&scene.network.trust.domain);
    let consent = Signature::sign(&digest, &*scene.client).await.unwrap();
    assert!(scene.give_up(&task.quote, Some(&consent)).await);
    assert_eq!(scene.balance(task.quote.client).await, tokens(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_claims_goes_back_to_the_client() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    drop(scene.run(&task).await);
    scene.network.chain.chain.advance(LIFETIME + CLAIM_SECONDS + 2);
    let anyone = scene.network.chain.ledger(key());
    anyone.refund(&task.quote, None).await.unwrap();
    assert_eq!(scene.balance(task.quote.client).await, tokens(1));
    // Too late, and no reason to try for ever.
    scene.look().await;
    assert_eq!((scene.node.claims().unwrap().count(), scene.balance(scene.address()).await), (0, Amount::ZERO));
}

/// A node that brings its own completion is heard only where its gateway is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_go_behind_its_gateways_back() {
    let scene = Scene::new(WORDS).await;
    let (task, thief) = (scene.task().await, key());
    let (result, _) = scene.run(&task).await;
    let theft = scene.completion(&task, result, &thief).await;
    let refused = scene.network.registry.completion(theft.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("authorization.author"), "{refused}");
    scene.give_up(&task.quote, None).await;
    let refused = scene.network.registry.completion(theft).await.unwrap_err().to_string();
    assert!(refused.contains("authorization.author"), "also when the request is given up: {refused}");
}
