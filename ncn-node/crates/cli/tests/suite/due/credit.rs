//! What a gateway's vouchers pay, only the gateway settles: a node lets it owe so much and no more.

use std::sync::Arc;

use ncn_client::unix_now;
use ncn_core::{
    Amount, B256, ChannelParams, Compute as _, ComputeError, ComputeTask, Delivery, FinishReason, InferenceResult,
    PaymentAuthorization, PaymentLedger as _, Reservation, Settlement, Signed, SignedVoucher,
};
use ncn_node::{
    channel::{BatchPolicy, ChannelProcessor},
    store::{MemoryStore, SharedStore},
};

use super::scene::{Scene, WORDS};
use crate::wait::eventually;

/// A client's channel with the scene's gateway.
struct Payer {
    terms: ChannelParams,
    promised: u128,
    number: u64,
}

impl Payer {
    async fn new(scene: &Scene) -> Self {
        let terms = ChannelParams { client: scene.client.address(), gateway: scene.gateway.address(), salt: B256::random() };
        let ledger = scene.network.chain.ledger(scene.client.clone());
        ledger.fund_channel(&terms, Amount::new(Amount::TOKEN.units() / 2), unix_now() + 7 * 24 * 3_600).await.unwrap();
        Self { terms, promised: 0, number: 0 }
    }

    /// The next order, with its voucher.
    async fn task(&mut self, scene: &Scene) -> ComputeTask {
        let task = scene.order().await;
        self.promised += task.quote.total.units();
        let (promised, trust) = (Amount::new(self.promised), &scene.network.trust);
        let voucher = SignedVoucher::sign(self.terms, &task.quote, self.number, promised, trust, &scene.client).await.unwrap();
        self.number += 1;
        ComputeTask { voucher: Some(voucher), ..task }
    }
}

/// Why the node does not run a task.
async fn refusal(scene: &Scene, task: &ComputeTask) -> ComputeError {
    let reservation =
        Reservation { request_id: task.quote.request_id, model_digest: task.quote.model_digest, expires_at: task.quote.expiry };
    scene.node.node().reserve(reservation).await.unwrap();
    scene.node.node().execute(task.clone()).await.map(drop).unwrap_err()
}

async fn refused(scene: &Scene, task: &ComputeTask) {
    match refusal(scene, task).await {
        ComputeError::Unavailable(problem) => assert!(problem.contains("settle first"), "{problem}"),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_does_not_settle_its_channels_is_served_for_so_much_and_no_more() {
    let scene = Scene::new(WORDS).await;
    let mut payer = Payer::new(&scene).await;
    let (first, second, third) = (payer.task(&scene).await, payer.task(&scene).await, payer.task(&scene).await);
    let (result, _) = scene.run(&first).await;
    scene.run(&second).await;
    refused(&scene, &third).await;
    // What an escrow pays is not lent.
    scene.run(&scene.task().await).await;
    refused(&scene, &third).await;

    // The gateway settles one of the two.
    let ledger = settling(&scene);
    settle(&scene, &ledger, &first, result).await;
    eventually("the node is paid", async || Scene::share(WORDS).contains(&scene.balance(scene.address()).await)).await;
    runs(&scene, &third).await;
    scene.run(&third).await;
    refused(&scene, &payer.task(&scene).await).await;
}

/// What is paid of a request is less than it costs, and all that is owed for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_settles_is_served_again_and_again() {
    let scene = Scene::new(WORDS).await;
    let (mut payer, ledger) = (Payer::new(&scene).await, settling(&scene));
    for round in 1..=8 {
        let task = payer.task(&scene).await;
        runs(&scene, &task).await;
        let (result, _) = scene.run(&task).await;
        settle(&scene, &ledger, &task, result).await;
        let paid = |balance: Amount| balance.units() >= Scene::share(WORDS).start().units() * round;
        eventually("the node is paid", async || paid(scene.balance(scene.address()).await)).await;
    }
}

/// The gateway's ledger, which settles when it is told.
fn settling(scene: &Scene) -> ChannelProcessor {
    let (signer, account) = (scene.gateway.clone(), scene.network.chain.ledger(scene.gateway.clone()));
    let store = SharedStore::new(Arc::<MemoryStore>::default()).unwrap();
    let registry = scene.network.registry.clone();
    ChannelProcessor::start(account.clone(), account, registry, signer, store, BatchPolicy::default()).unwrap()
}

async fn settle(scene: &Scene, ledger: &ChannelProcessor, task: &ComputeTask, result: Signed<InferenceResult>) {
    let ComputeTask { quote, voucher, .. } = task.clone();
    ledger.redeem(&quote, &PaymentAuthorization::Voucher(voucher.unwrap())).await.unwrap();
    let certificate = scene.certificate(task, result.clone()).await;
    let delivery = Delivery { results: vec![result], finish: FinishReason::Stop };
    let committee = scene.network.trust.committee(&quote.salt, &quote.request_id);
    ledger.settle(&Settlement::new(quote, committee, delivery, certificate).unwrap()).await.unwrap();
    ledger.flush();
}

/// The node runs it, as soon as it asks the chain again.
async fn runs(scene: &Scene, task: &ComputeTask) {
    eventually("the node takes a voucher again", async || {
        let (node, task) = (scene.node.node(), task.clone());
        let request_id = task.quote.request_id;
        node.reserve(Reservation { request_id, model_digest: task.quote.model_digest, expires_at: task.quote.expiry })
            .await
            .unwrap();
        node.execute(task).await.is_ok()
    })
    .await;
}
