//! A gateway that crashes at any point goes on where it was: one result, one payment.

use std::{
    convert::identity,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use ncn_client::unix_now;
use ncn_core::{
    Amount, B256, CapabilityScope, Domain, DynSigner, Executor, FeeSplit, InferenceRequest, Outcome, PaymentAuthorization,
    PaymentConfirmation, PaymentLedger as _, PaymentStatus, PaymentSubmission, Registry, Signed, State, Submission, Subnet,
    SubnetModel, TaskCapability, TaskEvent, TaskStatus, Transport, TransportError, Value, Values,
};
use ncn_devnet::quickstart;
use ncn_executor::EngineExecutor;
use ncn_node::{
    compute::ComputeNode,
    gateway::{Gateway, GatewayOptions},
    node::{GatewayBuilder, RunningGateway},
    registration::Registration,
    store::{MemoryStore, Op, Row, SharedStore, Store, StoreError, Table},
};
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    harmful::changed,
    money::Contracts as _,
    scene::{Behavior, InProcess, key, tokens},
    streams::Words,
    wait::{TIMEOUT, eventually, in_time},
};

/// Where the power goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    BeforeKeeping,
    AfterKeeping,
}

/// A store whose gateway loses power at the `at`th event: nothing happens from then on.
struct CrashingStore {
    /// What outlives a gateway.
    kept: Arc<MemoryStore>,
    at: usize,
    crash: Crash,
    events: AtomicUsize,
    crashed: Arc<Notify>,
}

impl Store for CrashingStore {
    fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
        let events = ops.iter().filter(|op| op.table() == "journal.events").count();
        if self.events.fetch_add(events, Ordering::SeqCst) + events >= self.at {
            if self.crash == Crash::AfterKeeping {
                self.kept.commit(ops)?;
            }
            self.crashed.notify_one();
            loop {
                std::thread::park();
            }
        }
        self.kept.commit(ops)
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
        self.kept.scan(table, prefix)
    }
}

/// A network in one process whose gateway can be started again.
pub(crate) struct Scene {
    pub(crate) network: InProcess,
    pub(crate) gateway: DynSigner,
    pub(crate) compute: Arc<ComputeNode>,
    pub(crate) compute_key: DynSigner,
    _registration: Registration,
}

impl Scene {
    pub(crate) async fn new(directory: &Path) -> Self {
        let network = InProcess::new(&[Behavior::Honest; 5]).await;
        let gateway = key();
        network.chain.create_subnet(&gateway, &subnet(&gateway).name).await;
        let (compute_key, compute) = compute(&network, &gateway, directory, Arc::new(EngineExecutor::built_in())).await;
        let registration = register(&network, &compute_key, &compute).await;
        Self { network, gateway, compute, compute_key, _registration: registration }
    }

    /// Another compute node, which is on the network as soon as this has happened.
    pub(crate) async fn another(
        &self,
        directory: &Path,
        so_far: impl Future<Output = ()>,
    ) -> (Arc<ComputeNode>, impl Future<Output = Registration>) {
        let (key, node) = compute(&self.network, &self.gateway, directory, Arc::new(EngineExecutor::built_in())).await;
        let registered = node.clone();
        (node, async move {
            so_far.await;
            register(&self.network, &key, &registered).await
        })
    }

    /// Another compute node, which runs its models so.
    pub(crate) async fn with(&self, directory: &Path, executor: Arc<dyn Executor>) -> (Arc<ComputeNode>, Registration) {
        let (key, node) = compute(&self.network, &self.gateway, directory, executor).await;
        let registration = register(&self.network, &key, &node).await;
        (node, registration)
    }

    async fn start(&self, store: impl Store + 'static) -> RunningGateway {
        self.start_with(store, self.network.registry.clone()).await
    }

    pub(crate) async fn start_with(&self, store: impl Store + 'static, registry: Arc<dyn Registry>) -> RunningGateway {
        self.start_as(subnet(&self.gateway), store, registry).await
    }

    async fn start_as(&self, subnet: Subnet, store: impl Store + 'static, registry: Arc<dyn Registry>) -> RunningGateway {
        self.start_by(self.gateway.clone(), subnet, store, registry).await
    }

    async fn start_by(
        &self,
        signer: DynSigner,
        subnet: Subnet,
        store: impl Store + 'static,
        registry: Arc<dyn Registry>,
    ) -> RunningGateway {
        let store = SharedStore::new(store).unwrap();
        let account = self.network.chain.ledger(signer.clone());
        self.run(Gateway::builder(signer, subnet, account, registry, store)).await
    }

    /// With these options, and this registry.
    pub(crate) async fn start_limited(&self, options: GatewayOptions, registry: Arc<dyn Registry>) -> RunningGateway {
        let (store, account) = (SharedStore::new(MemoryStore::default()).unwrap(), self.network.chain.ledger(self.gateway.clone()));
        let gateway = Gateway::builder(self.gateway.clone(), subnet(&self.gateway), account, registry, store);
        self.run(gateway.options(options)).await
    }

    async fn run(&self, gateway: GatewayBuilder) -> RunningGateway {
        let gateway = gateway.manifests(vec![quickstart::MANIFEST.into()]).start().await.unwrap();
        gateway.gateway().attach(self.compute.clone());
        gateway
    }
}

/// A compute node of the gateway's subnet, and its key.
async fn compute(
    network: &InProcess,
    gateway: &DynSigner,
    directory: &Path,
    executor: Arc<dyn Executor>,
) -> (DynSigner, Arc<ComputeNode>) {
    let key = key();
    let (subnet, ledger) = (subnet(gateway).id(), network.chain.ledger(key.clone()));
    let mut node = ComputeNode::new(key.clone(), network.trust.domain, subnet, executor, ledger, 64);
    node.add_model(quickstart::unpack(directory).unwrap()).await.unwrap();
    (key, Arc::new(node))
}

async fn register(network: &InProcess, key: &DynSigner, node: &ComputeNode) -> Registration {
    Registration::start(network.registry.clone(), key.clone(), network.trust.domain, node.descriptor()).await.unwrap()
}

fn subnet(owner: &DynSigner) -> Subnet {
    let model = quickstart::model().unwrap();
    let listed = SubnetModel { name: "digits".into(), digest: model.digest(), price: model.manifest().price() };
    Subnet {
        owner: owner.address(),
        name: "recovery".into(),
        gateways: Vec::new(),
        models: vec![listed],
        split: FeeSplit::default(),
        version: 1,
    }
}

/// One client's order, which it submits, pays and follows at whichever gateway is up.
pub(crate) struct Client {
    key: DynSigner,
    domain: Domain,
    /// Without the draw of a ticket.
    order: InferenceRequest,
    submission: Mutex<Option<Submission>>,
    pub(crate) ledger: Arc<ncn_client::evm::EvmLedger>,
}

impl Client {
    pub(crate) async fn new(scene: &Scene) -> Self {
        Self::with_deadline(scene, 600).await
    }

    /// With so many seconds left.
    async fn with_deadline(scene: &Scene, seconds: u64) -> Self {
        let (key, model) = (key(), quickstart::model().unwrap());
        let ledger = scene.network.chain.account(key.clone(), Amount::TOKEN).await;
        let order = InferenceRequest {
            client: key.address(),
            subnet: subnet(&scene.gateway).id(),
            model_digest: model.digest(),
            input_hash: Self::inputs().hash(),
            parameters: "{}".into(),
            max_price: model.manifest().price().base,
            deadline: unix_now() + seconds,
            nonce: B256::random(),
            draw: B256::ZERO,
        };
        Self { key, domain: scene.network.trust.domain, order, submission: Mutex::default(), ledger }
    }

    fn inputs() -> Values {
        Values::from([("image", Value::png(quickstart::SAMPLE))])
    }

    /// The order as it was submitted before, or with a ticket of this gateway when it does not know it.
    pub(crate) async fn submit(&self, gateway: &dyn Transport) -> Result<TaskStatus, TransportError> {
        let before = self.submission.lock().unwrap().clone();
        if let Some(submission) = before {
            match gateway.submit(submission).await {
                Err(TransportError::InvalidRequest { field, .. }) if field == "request.draw" => {}
                submitted => return submitted,
            }
        }
        let ticket = gateway.tickets(1).await.unwrap()[0];
        let order = InferenceRequest { draw: ticket.draw, ..self.order.clone() };
        let request = Signed::sign(order, &self.domain, &*self.key).await.unwrap();
        let submission = Submission { request, inputs: Self::inputs(), ticket: ticket.id };
        *self.submission.lock().unwrap() = Some(submission.clone());
        gateway.submit(submission).await
    }

    pub(crate) async fn serve(&self, gateway: &dyn Transport) -> TaskEvent {
        let status = self.submit(gateway).await.unwrap();
        let request_id = status.request_id;
        if let Some(quote) = &status.quote
            && status.outcome().is_none()
            && let Ok(transaction) = self.ledger.escrow(quote).await
        {
            gateway
                .confirm_payment(PaymentConfirmation { request_id, proof: PaymentSubmission::Transaction(transaction) })
                .await
                .unwrap();
        }
        let access =
            |scope| Signed::sign(TaskCapability { client: self.key.address(), request_id, scope }, &self.domain, &*self.key);
        let mut updates = gateway.updates(access(CapabilityScope::Follow).await.unwrap(), 0).await.unwrap();
        loop {
            match updates.next().await.unwrap().unwrap().event {
                TaskEvent::GivenUp(_) => gateway.cancel(access(CapabilityScope::Cancel).await.unwrap()).await.unwrap(),
                event if event.is_last() => return event,
                _ => {}
            }
        }
    }
}

/// Goes on with this subnet.
async fn crashes_and_goes_on(at: usize, crash: Crash, goes_on_as: impl FnOnce(Subnet) -> Subnet) {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::new(directory.path()).await;
    let client = Client::new(&scene).await;
    let (kept, crashed) = (Arc::<MemoryStore>::default(), Arc::new(Notify::new()));
    let store = CrashingStore { kept: kept.clone(), at, crash, events: AtomicUsize::new(0), crashed: crashed.clone() };

    let first = scene.start(store).await;
    tokio::select! {
        update = client.serve(&**first.gateway()) => panic!("event {at} never came: {update:?}"),
        () = crashed.notified() => {}
        () = tokio::time::sleep(TIMEOUT) => panic!("event {at} never came"),
    }
    drop(first);

    let subnet = goes_on_as(subnet(&scene.gateway));
    let second = scene.start_as(subnet, kept, scene.network.registry.clone()).await;
    let update = in_time("the second gateway goes on", client.serve(&**second.gateway())).await;
    let TaskEvent::Delivered { output, receipt } = update else { panic!("{crash:?} of event {at}: {update:?}") };
    assert_eq!(output.text("label"), Some("7"));
    receipt.verify(&scene.network.trust).unwrap();
    assert!(receipt.matches_output(&output));

    let price = receipt.payments.total;
    let left = client.ledger.balance(client.ledger.account()).await.unwrap();
    assert_eq!(left.checked_add(price), Some(Amount::TOKEN), "{crash:?} of event {at}: paid once");
    for payout in &receipt.payments.payouts {
        let balance = client.ledger.balance(payout.address).await.unwrap();
        // The treasury has had the fee for the subnet before.
        let before = if payout.address == scene.network.trust.treasury { tokens(10) } else { Amount::ZERO };
        assert_eq!(balance.checked_sub(before), Some(payout.amount), "{crash:?} of event {at}: {payout:?}");
    }
}

/// A good request has six events: reserved, approved, paid, executed, approved, settled.
#[tokio::test]
async fn a_crash_before_any_event_is_kept() {
    for at in 1..=6 {
        crashes_and_goes_on(at, Crash::BeforeKeeping, identity).await;
    }
}

#[tokio::test]
async fn a_crash_after_any_event_is_kept() {
    for at in 1..=6 {
        crashes_and_goes_on(at, Crash::AfterKeeping, identity).await;
    }
}

/// Validators have approved the quote, and judge the result by what the subnet is by then.
#[tokio::test]
async fn a_paid_request_keeps_its_price_when_the_subnet_changes() {
    let dearer = |mut subnet: Subnet| {
        subnet.version += 1;
        subnet.split.gateway_bps += 100;
        subnet.models[0].price.base = Amount::TOKEN;
        subnet
    };
    for at in [2, 3, 4] {
        crashes_and_goes_on(at, Crash::AfterKeeping, dearer).await;
    }
}

#[tokio::test]
async fn another_gateway_says_who_has_a_request() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::new(directory.path()).await;
    let (client, member, registry) = (Client::new(&scene).await, key(), scene.network.registry.clone());
    let shared = Subnet { gateways: vec![member.address()], ..subnet(&scene.gateway) };
    let first = scene.start_as(shared.clone(), MemoryStore::default(), registry.clone()).await;
    let second = scene.start_by(member, shared, MemoryStore::default(), registry).await;
    let request_id = client.submit(&**first.gateway()).await.unwrap().request_id;
    let taken = TransportError::TakenElsewhere { request_id, gateway: scene.gateway.address() };
    let asked = async || second.gateway().status(request_id).await.unwrap_err();
    eventually("the other gateway hears of it", async || asked().await == taken).await;
    let submission = client.submission.lock().unwrap().clone().unwrap();
    assert_eq!(second.gateway().submit(submission).await.unwrap_err(), taken);
    // It is only what a gateway says: the request goes on where it is.
    let update = in_time("the request is served", client.serve(&**first.gateway())).await;
    assert!(matches!(update, TaskEvent::Delivered { .. }), "{update:?}");
    eventually("it is nobody's any more", async || asked().await == TransportError::UnknownTask(request_id)).await;
}

/// A store that has no room for what a compute node gave.
struct Tight(MemoryStore);

impl Store for Tight {
    fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
        let large = |op: &Op| matches!(op, Op::Put { value, .. } if value.windows(7).any(|part| part == b"xecuted"));
        if ops.iter().any(large) { Err(StoreError::failed(std::io::Error::other("no space left"))) } else { self.0.commit(ops) }
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
        self.0.scan(table, prefix)
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_kept_does_not_stop_the_clock() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::new(directory.path()).await;
    let client = Client::with_deadline(&scene, 40).await;
    let gateway = scene.start(Tight(MemoryStore::default())).await;
    let update = in_time("the request ends", client.serve(&**gateway.gateway())).await;
    assert!(matches!(&update, TaskEvent::Failed { outcome: Outcome::Refunded, .. }), "{update:?}");
    let left = client.ledger.balance(client.ledger.account()).await.unwrap();
    assert_eq!(left, Amount::TOKEN, "its payment is back");
}

/// The gateway's memory of what it has passed on goes with it; that it did stays.
#[tokio::test]
async fn what_was_streamed_before_a_crash_is_not_given_back_at_the_clients_word() {
    let directory = tempfile::tempdir().unwrap();
    let package = changed(directory.path(), |manifest| manifest["outputs"] = json!([{ "type": "text", "name": "text" }]));
    let network = InProcess::new(&[Behavior::Honest; 5]).await;
    let (owner, node_key, signer, domain) = (key(), key(), key(), network.trust.domain);
    let subnet = Subnet { models: vec![SubnetModel::of(&package.model)], ..subnet(&owner) };
    network.chain.create_subnet(&owner, &subnet.name).await;
    let words = Arc::new(Words::new(1_000, Duration::from_millis(20)));
    let mut node = ComputeNode::new(node_key.clone(), domain, subnet.id(), words, network.chain.ledger(node_key.clone()), 4);
    node.add_model(package.clone()).await.unwrap();
    let node = Arc::new(node);
    let _registration = register(&network, &node_key, &node).await;
    let kept = Arc::<MemoryStore>::default();
    let start = async || {
        let (account, store) = (network.chain.ledger(owner.clone()), SharedStore::new(kept.clone()).unwrap());
        let gateway = Gateway::builder(owner.clone(), subnet.clone(), account, network.registry.clone(), store);
        gateway.manifests(vec![package.model.bytes().clone()]).start().await.unwrap()
    };

    let before = start().await;
    before.gateway().attach(node.clone());
    let ledger = network.chain.account(signer.clone(), Amount::TOKEN).await;
    let client = ncn_client::Client::builder().transport(before.gateway().clone()).payer(ledger.clone()).signer(signer.clone());
    let order = ncn_client::Order::new(quickstart::NAME, Client::inputs()).timeout(TIMEOUT * 2);
    let mut events = client.build().unwrap().submit(order).await.unwrap().events().await.unwrap().resumable();
    let part = in_time("a part", events.next()).await;
    assert!(matches!(part, Some(Ok(ncn_client::InferenceEvent::Part(_)))), "{part:?}");
    let request_id = events.paid().request_id();
    drop((events, before));

    // Its node does not come back.
    let after = start().await;
    let cancel = async || {
        let capability = TaskCapability { client: signer.address(), request_id, scope: CapabilityScope::Cancel };
        after.gateway().cancel(Signed::sign(capability, &domain, &*signer).await.unwrap()).await.unwrap();
    };
    cancel().await;
    eventually("it is given up", async || after.gateway().status(request_id).await.unwrap().state == State::Refunding).await;
    cancel().await;
    let status = async || ledger.status(signer.address(), request_id).await.unwrap();
    eventually("the chain knows", async || !matches!(status().await, PaymentStatus::Held { .. })).await;
    assert!(matches!(status().await, PaymentStatus::GivenUp { .. }), "its node has time to claim: {}", status().await);
}

#[tokio::test]
async fn who_does_not_pay_in_time_has_no_place() {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::new(directory.path()).await;
    let client = Client::new(&scene).await;
    let options = GatewayOptions { payment_window: Duration::from_secs(1), max_unpaid: 1, ..GatewayOptions::default() };
    let gateway = scene.start_limited(options, scene.network.registry.clone()).await;
    // Whose word is worth nothing waits no longer for it.
    let poor = Client::new(&scene).await;
    poor.ledger.transfer(client.key.address(), Amount::TOKEN).await.unwrap();
    let status = poor.submit(&**gateway.gateway()).await.unwrap();
    let word = PaymentAuthorization::transfer(&scene.network.trust, &status.quote.unwrap(), &poor.key).await.unwrap();
    let confirmation = PaymentConfirmation { request_id: status.request_id, proof: PaymentSubmission::Authorization(word) };
    gateway.gateway().confirm_payment(confirmation).await.unwrap_err();
    let asked = async || gateway.gateway().status(status.request_id).await.unwrap();
    eventually("it is over", async || asked().await.outcome() == Some(Outcome::Expired)).await;

    let status = client.submit(&**gateway.gateway()).await.unwrap();
    let other = Client::new(&scene).await;
    assert!(matches!(other.submit(&**gateway.gateway()).await, Err(TransportError::Overloaded { .. })), "one waits");
    let asked = async || gateway.gateway().status(status.request_id).await.unwrap();
    eventually("it is over", async || asked().await.outcome() == Some(Outcome::Expired)).await;
    let quote = asked().await.quote.unwrap();
    assert!(quote.expiry > unix_now() + 60, "long before its deadline");
    in_time("the other one is served", other.serve(&**gateway.gateway())).await;
    client.ledger.escrow(&quote).await.unwrap();
    eventually("late money is given back", async || asked().await.state == State::Refunding).await;
}
