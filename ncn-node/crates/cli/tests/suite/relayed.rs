//! What a gateway pays gas for on behalf of its clients is bounded.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use ncn_client::{Client, Order, RelayedPayer, grpc::GrpcTransport};
use ncn_core::{
    B256, Confinement, DynSigner, Execution, Executor, ExecutorError, PaymentAuthorization, PaymentConfirmation, PaymentSubmission,
    Transport as _, TransportError, Value,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use ncn_devnet::{LocalNetwork, quickstart};
use ncn_executor::EngineExecutor;
use ncn_node::gateway::GatewayOptions;

use crate::{
    scene::{key, network, tokens},
    wait::{TIMEOUT, eventually},
};

/// Takes every task, and never begins it.
struct Stalled(EngineExecutor);

#[async_trait]
impl Executor for Stalled {
    fn formats(&self) -> Vec<ModelFormat> {
        self.0.formats()
    }

    fn confinement(&self, _: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, package: &ModelPackage) -> Result<(), ExecutorError> {
        self.0.load(package).await
    }

    async fn unload(&self, digest: &B256) -> Result<(), ExecutorError> {
        self.0.unload(digest).await
    }

    async fn run(&self, _: Execution) -> Result<Outputs, ExecutorError> {
        std::future::pending().await
    }
}

fn image() -> [(&'static str, Value); 1] {
    [("image", Value::png(quickstart::SAMPLE))]
}

fn order() -> Order {
    Order::new(quickstart::NAME, image())
}

/// A client with a token, which the gateway's transactions move.
async fn relayed(network: &LocalNetwork, signer: &DynSigner) -> Client {
    let transport = Arc::new(GrpcTransport::new(&network.gateway_url()).unwrap());
    let trust = transport.network().await.unwrap().trust_root;
    let payer = Arc::new(RelayedPayer::new(transport.clone(), trust, signer.clone()));
    let client = Client::builder().timeout(TIMEOUT).transport(transport).payer(payer);
    client.signer(signer.clone()).max_price(tokens(1)).build().unwrap()
}

async fn rich(network: &LocalNetwork) -> DynSigner {
    let signer = key();
    network.funder().transfer(signer.address(), tokens(1)).await.unwrap();
    signer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_worth_less_than_its_gas_is_not_brought_to_the_chain() {
    let options = GatewayOptions { least_relayed: tokens(1), ..GatewayOptions::default() };
    let network = network().gateway(move |gateway| gateway.options(options)).start().await.unwrap();
    let signer = rich(&network).await;
    let client = relayed(&network, &signer).await;
    let quoted = client.submit(order()).await.unwrap();
    let quote = quoted.quote().clone();
    let refused = quoted.pay().await.err().unwrap();
    assert!(refused.to_string().contains("pay in another way"), "{refused}");
    assert!(!refused.is_paid(), "nothing was signed: {refused}");

    // Nor is what a client signs all the same.
    let trust = network.trust_root().await.unwrap();
    let authorization = PaymentAuthorization::transfer(&trust, &quote, &signer).await.unwrap();
    let proof = PaymentSubmission::Authorization(authorization);
    let request_id = quote.request_id;
    let refused = network.gateway().confirm_payment(PaymentConfirmation { request_id, proof }).await.unwrap_err();
    assert!(matches!(&refused, TransportError::InvalidRequest { field, .. } if field == "payment"), "{refused}");
    assert_eq!(network.funder().balance(signer.address()).await.unwrap(), tokens(1));
    // The client's own transaction is.
    let answer = network.client().await.unwrap().build().unwrap().infer(quickstart::NAME, image()).await.unwrap();
    assert_eq!(answer.output.text("label"), Some("7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_withdraws_again_and_again_waits() {
    let network = network().executor(Arc::new(Stalled(EngineExecutor::built_in()))).start().await.unwrap();
    let signer = rich(&network).await;
    let client = relayed(&network, &signer).await;
    let withdraw = async |client: &Client| {
        let paid = client.submit(order()).await.unwrap().pay().await?;
        paid.cancel().await.unwrap();
        let ended = paid.finish().await.unwrap_err();
        assert!(ended.to_string().contains("given the payment back") || !ended.is_paid(), "{ended}");
        Ok::<_, ncn_client::ClientError>(())
    };
    for _ in 0..4 {
        withdraw(&client).await.unwrap();
        let has_it_back = async || network.funder().balance(signer.address()).await.unwrap() == tokens(1);
        eventually("the payment is back", has_it_back).await;
    }
    // The count is made when the refund is seen, which may be a moment after it is on the chain.
    let quoted = client.submit(order()).await.unwrap();
    let trust = network.trust_root().await.unwrap();
    let quote = quoted.quote().clone();
    let authorization = PaymentAuthorization::transfer(&trust, &quote, &signer).await.unwrap();
    let proof = PaymentSubmission::Authorization(authorization);
    let confirmation = PaymentConfirmation { request_id: quote.request_id, proof };
    let refused = network.gateway().confirm_payment(confirmation).await.unwrap_err();
    let TransportError::Overloaded { retry_after } = refused else { panic!("{refused}") };
    assert!(retry_after.as_secs() > 3_000, "{retry_after:?}");
    assert_eq!(network.funder().balance(signer.address()).await.unwrap(), tokens(1), "no gas is paid for it");
    // Others do not wait, nor does this client that pays for its own transactions.
    let other = rich(&network).await;
    withdraw(&relayed(&network, &other).await).await.unwrap();
    network.ledger(signer).escrow(&quote).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_signed_is_not_counted_as_the_clients_payment() {
    let network = network().executor(Arc::new(Stalled(EngineExecutor::built_in()))).start().await.unwrap();
    let (signer, stranger) = (rich(&network).await, key());
    let transport = Arc::new(GrpcTransport::new(&network.gateway_url()).unwrap());
    let client = Client::builder().timeout(TIMEOUT).transport(transport).payer(Arc::new(network.ledger(signer.clone())));
    let client = client.signer(signer.clone()).max_price(tokens(1)).build().unwrap();
    let trust = network.trust_root().await.unwrap();
    for _ in 0..4 {
        let quoted = client.submit(order()).await.unwrap();
        let authorization = PaymentAuthorization::transfer(&trust, quoted.quote(), &stranger).await.unwrap();
        let proof = PaymentSubmission::Authorization(authorization);
        let confirmation = PaymentConfirmation { request_id: quoted.request_id(), proof };
        network.gateway().confirm_payment(confirmation).await.unwrap_err();
        let paid = quoted.pay().await.unwrap();
        paid.cancel().await.unwrap();
        paid.finish().await.unwrap_err();
    }
    // It has paid for all of its transactions itself: the gateway brings its next payment to the chain.
    let paid = relayed(&network, &signer).await.submit(order()).await.unwrap().pay().await.unwrap();
    paid.cancel().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_take_every_place() {
    let options = GatewayOptions { max_unpaid_of_one: 3, max_tasks_of_one: 4, ..GatewayOptions::default() };
    let network = network().gateway(move |gateway| gateway.options(options)).start().await.unwrap();
    let (signer, other) = (rich(&network).await, rich(&network).await);
    let client = relayed(&network, &signer).await;
    let mut unpaid = Vec::new();
    for _ in 0..3 {
        unpaid.push(client.submit(order()).await.unwrap());
    }
    let busy = client.submit(order()).await.err().unwrap();
    assert!(busy.to_string().contains("busy") || busy.to_string().contains("again"), "{busy}");
    relayed(&network, &other).await.submit(order()).await.unwrap();
    // One that is paid leaves its place among these, and is remembered.
    let paid = unpaid.pop().unwrap();
    let paid_id = paid.quote().request_id;
    paid.pay().await.unwrap().finish().await.unwrap();
    unpaid.push(client.submit(order()).await.unwrap());
    client.submit(order()).await.err().unwrap();
    // Of those that have ended, one gives way to the next.
    let withdrawn = unpaid.pop().unwrap();
    let ended = [paid_id, withdrawn.quote().request_id];
    withdrawn.cancel().await.unwrap();
    eventually("there is room again", async || client.submit(order()).await.is_ok()).await;
    let gateway = network.gateway();
    let known = join_all(ended.map(|request| gateway.status(request))).await;
    assert_eq!(known.iter().filter(|status| status.is_ok()).count(), 1, "{known:?}");
    client.submit(order()).await.err().unwrap();
}
