//! A gateway that crashes at any point goes on where it was: one result, one payment.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use ncn_client::unix_now;
use ncn_core::{
    Amount, B256, CapabilityScope, Compute, DynSigner, Event, FeeSplit, InferenceRequest, Message as _, PaymentConfirmation,
    PaymentSubmission, Registry, RequestId, Signed, Submission, Subnet, SubnetModel, TaskCapability, TaskEvent, Transport,
    TransportExt as _, Value, Values,
};
use ncn_devnet::quickstart;
use ncn_executor::EngineExecutor;
use ncn_node::{
    compute::ComputeNode,
    gateway::{
        Gateway,
        journal::{Journal, JournalError, MemoryJournal},
    },
    node::RunningGateway,
    presence::Registration,
    store::Store,
};
use tokio::sync::Notify;

use crate::{
    money::Contracts as _,
    scene::{Behavior, InProcess, key, tokens},
    wait::{TIMEOUT, in_time},
};

/// Where the power goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    BeforeKeeping,
    AfterKeeping,
}

/// A journal whose gateway loses power at the `at`th event: nothing happens from then on.
struct CrashingJournal {
    kept: Arc<MemoryJournal>,
    at: usize,
    crash: Crash,
    events: AtomicUsize,
    crashed: Notify,
}

#[async_trait]
impl Journal for CrashingJournal {
    async fn begin(&self, request_id: RequestId, submission: &Submission) -> Result<(), JournalError> {
        self.kept.begin(request_id, submission).await
    }

    async fn append(&self, request_id: RequestId, event: &Event) -> Result<(), JournalError> {
        if self.events.fetch_add(1, Ordering::SeqCst) + 1 == self.at {
            if self.crash == Crash::AfterKeeping {
                self.kept.append(request_id, event).await?;
            }
            self.crashed.notify_one();
            return std::future::pending().await;
        }
        self.kept.append(request_id, event).await
    }

    async fn forget(&self, request_id: RequestId) -> Result<(), JournalError> {
        self.kept.forget(request_id).await
    }

    async fn replay(&self) -> Result<Vec<(Submission, Vec<Event>)>, JournalError> {
        self.kept.replay().await
    }
}

/// A network in one process whose gateway can be started again.
pub(crate) struct Scene {
    pub(crate) network: InProcess,
    pub(crate) gateway: DynSigner,
    pub(crate) compute: Arc<dyn Compute>,
    stores: tempfile::TempDir,
    _presence: Registration,
}

impl Scene {
    pub(crate) async fn new(directory: &Path) -> Self {
        let network = InProcess::new(&[Behavior::Honest; 5]).await;
        let (gateway, compute) = (key(), key());
        let domain = network.trust.domain;
        let (executor, ledger) = (Arc::new(EngineExecutor::built_in()), network.chain.ledger(compute.clone()));
        let subnet = subnet(&gateway);
        network.chain.create_subnet(&gateway, &subnet.name).await;
        let subnet = subnet.id();
        let mut node = ComputeNode::new(compute.clone(), domain, subnet, executor, ledger, 4);
        node.add_model(quickstart::unpack(directory).unwrap()).await.unwrap();
        let announcement = node.announcement();
        let presence = Registration::start(network.registry.clone(), compute, domain, announcement).await.unwrap();
        let stores = tempfile::tempdir().unwrap();
        Self { network, gateway, compute: Arc::new(node), stores, _presence: presence }
    }

    async fn start(&self, journal: Arc<dyn Journal>) -> RunningGateway {
        self.start_with(journal, self.network.registry.clone()).await
    }

    pub(crate) async fn start_with(&self, journal: Arc<dyn Journal>, registry: Arc<dyn Registry>) -> RunningGateway {
        // Each has a store of its own for channels, which is not used here.
        let store = Store::open(&self.stores.path().join(B256::random().to_string())).unwrap();
        let account = self.network.chain.ledger(self.gateway.clone());
        let gateway = Gateway::builder(self.gateway.clone(), subnet(&self.gateway), account, registry, store);
        let gateway = gateway.manifests(vec![quickstart::MANIFEST.into()]).journal(journal).start().await.unwrap();
        gateway.gateway().attach(self.compute.clone());
        gateway
    }
}

fn subnet(owner: &DynSigner) -> Subnet {
    let model = quickstart::model().unwrap();
    let listed = SubnetModel { name: "digits".into(), digest: model.digest(), price: model.manifest().price };
    Subnet { owner: owner.address(), name: "recovery".into(), models: vec![listed], split: FeeSplit::default(), version: 1 }
}

/// One client's order, which it submits, pays and follows at whichever gateway is up.
pub(crate) struct Client {
    submission: Submission,
    access: Signed<TaskCapability>,
    pub(crate) ledger: Arc<ncn_client::evm::EvmLedger>,
}

impl Client {
    pub(crate) async fn new(scene: &Scene) -> Self {
        let (key, model) = (key(), quickstart::model().unwrap());
        let ledger = scene.network.chain.account(key.clone(), Amount::TOKEN).await;
        let domain = scene.network.trust.domain;
        let inputs = Values::from([("image", Value::png(quickstart::SAMPLE))]);
        let order = InferenceRequest {
            client: key.address(),
            subnet: subnet(&scene.gateway).id(),
            model_digest: model.digest(),
            input_hash: inputs.hash(),
            parameters: "{}".into(),
            max_price: model.manifest().price,
            deadline: unix_now() + 600,
            nonce: B256::random(),
        };
        let access = TaskCapability { client: key.address(), request_id: order.digest(&domain), purpose: CapabilityScope::Follow };
        let access = Signed::sign(access, &domain, &*key).await.unwrap();
        let request = Signed::sign(order, &domain, &*key).await.unwrap();
        Self { submission: Submission { request, inputs }, access, ledger }
    }

    pub(crate) async fn serve(&self, gateway: &dyn Transport) -> TaskEvent {
        let status = gateway.submit(self.submission.clone()).await.unwrap();
        if let Some(quote) = &status.quote
            && status.outcome().is_none()
            && let Ok(transaction) = self.ledger.escrow(quote).await
        {
            let request_id = status.request_id;
            gateway
                .confirm_payment(PaymentConfirmation { request_id, proof: PaymentSubmission::Transaction(transaction) })
                .await
                .unwrap();
        }
        gateway.last_update(self.access.clone()).await.unwrap()
    }
}

async fn crashes_and_goes_on(at: usize, crash: Crash) {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene::new(directory.path()).await;
    let client = Client::new(&scene).await;
    let kept = Arc::new(MemoryJournal::default());
    let journal = Arc::new(CrashingJournal { kept: kept.clone(), at, crash, events: AtomicUsize::new(0), crashed: Notify::new() });

    let first = scene.start(journal.clone()).await;
    tokio::select! {
        update = client.serve(&**first.gateway()) => panic!("event {at} never came: {update:?}"),
        () = journal.crashed.notified() => {}
        () = tokio::time::sleep(TIMEOUT) => panic!("event {at} never came"),
    }
    drop(first);

    let second = scene.start(kept).await;
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
        crashes_and_goes_on(at, Crash::BeforeKeeping).await;
    }
}

#[tokio::test]
async fn a_crash_after_any_event_is_kept() {
    for at in 1..=6 {
        crashes_and_goes_on(at, Crash::AfterKeeping).await;
    }
}
