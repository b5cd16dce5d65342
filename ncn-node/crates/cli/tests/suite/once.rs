//! One authorization, presented again and again, pays once and serves once.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use ncn_client::{
    PayerChannel,
    evm::{EvmBackend as _, EvmLedger},
    grpc::GrpcRegistry,
    unix_now,
};
use ncn_core::{
    Amount, CapabilityScope, ChainView as _, ChannelParams, DynSigner, ExecutorError, FeeSplit, InferenceRequest,
    PaymentAuthorization, PaymentConfirmation, PaymentSubmission, Quote, Signed, Submission, Subnet, SubnetModel, TaskCapability,
    TaskEvent, Transport, TransportError, TransportExt as _, TrustRoot, Value, Values,
};
use ncn_devnet::{LocalNetwork, Mining, quickstart};
use ncn_node::{channel::BatchPolicy, gateway::Gateway, node::RunningGateway, store::SharedStore};

use crate::{
    executor::{Failing, failing},
    scene::{key, tokens},
    wait::eventually,
};

/// How often the authorization is presented, half of the times at the wrong gateway.
const REPLAYS: usize = 250;

struct Scene {
    network: LocalNetwork,
    executor: Arc<Failing>,
    other: RunningGateway,
    trust: TrustRoot,
    client: DynSigner,
    account: EvmLedger,
    _files: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let executor = failing(ExecutorError::Worker("never".into()), 0);
        let settle = BatchPolicy { max_requests: 1, ..BatchPolicy::default() };
        let network = LocalNetwork::builder()
            .executor(executor.clone())
            .gateway(move |gateway| gateway.batch_policy(settle))
            .start()
            .await
            .unwrap();
        let files = tempfile::tempdir().unwrap();
        let other = second_gateway(&network, files.path()).await;
        let client = key();
        network.funder().transfer(client.address(), tokens(1)).await.unwrap();
        let (trust, account) = (network.trust_root().await.unwrap(), network.ledger(client.clone()));
        Self { network, executor, other, trust, client, account, _files: files }
    }

    /// An order that the first gateway has quoted.
    async fn quoted(&self) -> (Submission, Quote) {
        let gateway = self.network.gateway();
        let info = gateway.model_named(quickstart::NAME).await.unwrap().unwrap();
        let inputs = Values::from([("image", Value::png(quickstart::SAMPLE))]);
        let ticket = gateway.tickets(1).await.unwrap()[0];
        let order = InferenceRequest {
            client: self.client.address(),
            subnet: info.subnet,
            model_digest: info.model.digest(),
            input_hash: inputs.hash(),
            parameters: "{}".into(),
            max_price: info.price.base,
            deadline: unix_now() + 600,
            nonce: B256::random(),
            draw: ticket.draw,
        };
        let request = Signed::sign(order, &self.trust.domain, &*self.client).await.unwrap();
        let submission = Submission { request, inputs, ticket: ticket.id };
        let quote = gateway.submit(submission.clone()).await.unwrap().quote.unwrap();
        (submission, quote)
    }

    /// Presents the authorization to both gateways, all at once, and the order with it; returns who took it.
    async fn replay(&self, submission: &Submission, quote: &Quote, authorization: &PaymentAuthorization) {
        let confirmation =
            PaymentConfirmation { request_id: quote.request_id, proof: PaymentSubmission::Authorization(*authorization) };
        let other: Arc<dyn Transport> = self.other.gateway().clone();
        let presented = (0..REPLAYS).map(|n| {
            let (right, submission) = (n % 2 == 0, submission.clone());
            let gateway = if right { self.network.gateway() } else { other.clone() };
            tokio::spawn(async move {
                // The same order is the same request; at the wrong gateway it is none.
                let submitted = gateway.submit(submission).await;
                assert_eq!(submitted.is_ok(), right, "{submitted:?}");
                (right, gateway.confirm_payment(confirmation).await)
            })
        });
        for answer in futures::future::join_all(presented).await {
            match answer.unwrap() {
                (true, answer) => assert_eq!(answer, Ok(()), "a replay is as good as the first"),
                (false, answer) => assert!(matches!(answer, Err(TransportError::UnknownTask(_))), "{answer:?}"),
            }
        }
    }

    /// What came of it.
    async fn served(&self, quote: &Quote) {
        let access = TaskCapability { client: self.client.address(), request_id: quote.request_id, scope: CapabilityScope::Follow };
        let access = Signed::sign(access, &self.trust.domain, &*self.client).await.unwrap();
        let last = self.network.gateway().last_update(access).await.unwrap();
        let TaskEvent::Delivered { receipt, .. } = last else { panic!("{last:?}") };
        receipt.verify(&self.trust).unwrap();
        assert_eq!(self.executor.runs.load(Ordering::SeqCst), 1, "one grant");
    }
}

/// A gateway beside the network's own, with a subnet of the same model.
async fn second_gateway(network: &LocalNetwork, files: &Path) -> RunningGateway {
    let signer = key();
    let model = quickstart::model().unwrap();
    let listed = SubnetModel { name: "digits".into(), digest: model.digest(), price: model.manifest().price() };
    let subnet = Subnet {
        owner: signer.address(),
        name: "other".into(),
        gateways: Vec::new(),
        models: vec![listed],
        split: FeeSplit::default(),
        version: 1,
    };
    network.funder().transfer(signer.address(), tokens(10)).await.unwrap();
    let account = network.ledger(signer.clone());
    account.create_subnet(&subnet.name, tokens(10)).await.unwrap();
    let registry = Arc::new(GrpcRegistry::new(&network.registry_urls()[0]).unwrap());
    let store = SharedStore::open(&files.join("other.redb")).unwrap();
    let gateway = Gateway::builder(signer, subnet, Arc::new(account), registry, store);
    gateway.manifests(vec![quickstart::MANIFEST.into()]).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voucher_presented_250_times_to_two_gateways() {
    let scene = Scene::new().await;
    let terms = ChannelParams { client: scene.client.address(), gateway: scene.network.gateway_address(), salt: B256::random() };
    let expiry = unix_now() + 7 * 24 * 3_600;
    scene.account.fund_channel(&terms, tokens(1), expiry).await.unwrap();
    let channel = PayerChannel::new(terms, tokens(1), expiry);
    let (submission, quote) = scene.quoted().await;
    let payment = channel.pay(&quote, &scene.trust, &scene.client).await.unwrap();
    assert_eq!(channel.pay(&quote, &scene.trust, &scene.client).await.unwrap(), payment, "a retry presents the same voucher");
    scene.replay(&submission, &quote, &PaymentAuthorization::Voucher(payment)).await;
    scene.served(&quote).await;

    // After it was settled, too.
    let settled = async || scene.account.channel(terms.id()).await.unwrap().unwrap().settled;
    eventually("the voucher is settled", async || !settled().await.is_zero()).await;
    scene.replay(&submission, &quote, &PaymentAuthorization::Voucher(payment)).await;
    scene.served(&quote).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(settled().await, quote.total, "one charge");

    // The voucher of one request does not pay another.
    let (_, another) = scene.quoted().await;
    let proof = PaymentSubmission::Authorization(PaymentAuthorization::Voucher(payment));
    let confirmation = PaymentConfirmation { request_id: another.request_id, proof };
    let refused = scene.network.gateway().confirm_payment(confirmation).await;
    assert!(
        matches!(&refused, Err(TransportError::InvalidRequest { problem, .. }) if problem.contains("requestId")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_presented_250_times_to_two_gateways() {
    let scene = Scene::new().await;
    let (submission, quote) = scene.quoted().await;
    let transfer = PaymentAuthorization::transfer(&scene.trust, &quote, &scene.client).await.unwrap();
    assert_eq!(
        PaymentAuthorization::transfer(&scene.trust, &quote, &scene.client).await.unwrap(),
        transfer,
        "a retry presents the same"
    );
    scene.replay(&submission, &quote, &transfer).await;
    scene.served(&quote).await;
    scene.replay(&submission, &quote, &transfer).await;
    let left = scene.account.balance(scene.client.address()).await.unwrap();
    assert_eq!(tokens(1).checked_sub(left), Some(quote.total), "one charge");
    assert_eq!(scene.account.balance(scene.trust.domain.contract).await.unwrap(), Amount::ZERO);

    // The authorization of one quote does not pay another.
    let (_, another) = scene.quoted().await;
    let confirmation = PaymentConfirmation { request_id: another.request_id, proof: PaymentSubmission::Authorization(transfer) };
    let refused = scene.network.gateway().confirm_payment(confirmation).await;
    assert!(matches!(&refused, Err(TransportError::InvalidRequest { problem, .. }) if problem.contains("transfer")), "{refused:?}");
}

/// Twice 200 presentations of two requests' authorizations, within a block: two transactions, and everybody has the same answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_presented_200_times_in_a_block_is_one_transaction() {
    let scene = Scene::new().await;
    let (chain, gateway) = (scene.network.chain(), scene.network.gateway_address());
    let mined = async || chain.nonces(gateway).await.unwrap().mined;
    let mut presented = Vec::new();
    let mut quotes = Vec::new();
    for _ in 0..2 {
        let (_, quote) = scene.quoted().await;
        let transfer = PaymentAuthorization::transfer(&scene.trust, &quote, &scene.client).await.unwrap();
        let proof = PaymentSubmission::Authorization(transfer);
        presented.push(PaymentConfirmation { request_id: quote.request_id, proof });
        quotes.push(quote);
    }
    let before = mined().await;
    chain.set_mining(Mining::Every(Duration::from_millis(500)));
    let presenting = (0..400).map(|n| {
        let (gateway, confirmation) = (scene.network.gateway(), presented[n % 2]);
        tokio::spawn(async move { gateway.confirm_payment(confirmation).await })
    });
    for answer in futures::future::join_all(presenting).await {
        assert_eq!(answer.unwrap(), Ok(()));
    }
    for quote in &quotes {
        let access =
            TaskCapability { client: scene.client.address(), request_id: quote.request_id, scope: CapabilityScope::Follow };
        let access = Signed::sign(access, &scene.trust.domain, &*scene.client).await.unwrap();
        let last = scene.network.gateway().last_update(access).await.unwrap();
        assert!(matches!(last, TaskEvent::Delivered { .. }), "{last:?}");
    }
    assert_eq!(mined().await - before, 4, "a payment and a settlement for each of the two");
}

/// Tokens for one of many requests that are paid within a block: one transaction, not many of which all but one are refused.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_cannot_pay_together_is_not_brought_to_the_chain_together() {
    let scene = Scene::new().await;
    let (chain, gateway) = (scene.network.chain(), scene.network.gateway_address());
    let mined = async || chain.nonces(gateway).await.unwrap().mined;
    let mut presented = Vec::new();
    let mut price = Amount::ZERO;
    for _ in 0..10 {
        let (_, quote) = scene.quoted().await;
        price = quote.total;
        let transfer = PaymentAuthorization::transfer(&scene.trust, &quote, &scene.client).await.unwrap();
        let proof = PaymentSubmission::Authorization(transfer);
        presented.push(PaymentConfirmation { request_id: quote.request_id, proof });
    }
    scene.account.transfer(scene.network.funder().account(), tokens(1).checked_sub(price).unwrap()).await.unwrap();
    let before = mined().await;
    chain.set_mining(Mining::Every(Duration::from_secs(2)));
    let presenting = presented.into_iter().map(|confirmation| {
        let gateway = scene.network.gateway();
        tokio::spawn(async move { (confirmation.request_id, gateway.confirm_payment(confirmation).await) })
    });
    let answers: Vec<_> = futures::future::join_all(presenting).await.into_iter().map(Result::unwrap).collect();
    let paid: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_ok()).map(|(request_id, _)| *request_id).collect();
    let [request_id] = paid[..] else { panic!("{answers:?}") };
    let access = TaskCapability { client: scene.client.address(), request_id, scope: CapabilityScope::Follow };
    let access = Signed::sign(access, &scene.trust.domain, &*scene.client).await.unwrap();
    let last = scene.network.gateway().last_update(access).await.unwrap();
    assert!(matches!(last, TaskEvent::Delivered { .. }), "{last:?}");
    assert_eq!(mined().await - before, 2, "a payment and a settlement");
}

/// A stranger's authorization costs nothing and does not get in the way; one that the chain refuses is not tried again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_transfer_is_not_tried_in_a_loop() {
    let scene = Scene::new().await;
    let (_, quote) = scene.quoted().await;
    let confirm = async |authorization| {
        let proof = PaymentSubmission::Authorization(authorization);
        scene.network.gateway().confirm_payment(PaymentConfirmation { request_id: quote.request_id, proof }).await
    };
    let strangers = PaymentAuthorization::transfer(&scene.trust, &quote, &key()).await.unwrap();
    let refused = confirm(strangers).await;
    assert!(matches!(&refused, Err(TransportError::InvalidRequest { problem, .. }) if problem.contains("transfer")), "{refused:?}");

    // The client's tokens are gone until later.
    let funder = scene.network.funder().account();
    scene.account.transfer(funder, tokens(1)).await.unwrap();
    let transfer = PaymentAuthorization::transfer(&scene.trust, &quote, &scene.client).await.unwrap();
    let refused = Instant::now();
    let poor = confirm(transfer).await;
    assert!(matches!(&poor, Err(TransportError::InvalidRequest { problem, .. }) if problem.contains("fund it")), "{poor:?}");
    scene.network.funder().transfer(scene.client.address(), tokens(1)).await.unwrap();
    // The chain would take it by now. It is not asked for two seconds, unless a slow machine has used these up.
    let again = confirm(transfer).await;
    assert!(again == poor || refused.elapsed() >= Duration::from_secs(2), "{again:?}");
    tokio::time::timeout(Duration::from_secs(30), async {
        while confirm(transfer).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("it is tried again later");
}
