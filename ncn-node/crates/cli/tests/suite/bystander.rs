//! A bystander with a copy of everything, and a node of its own: nothing of another's payment is for it.

use std::time::Duration;

use ncn_client::unix_now;
use ncn_client::{
    Client, Order,
    grpc::{GrpcRegistry, GrpcValidator},
};
use ncn_core::{
    Amount, Attestors as _, B256, CompletionAuthorization, CompletionRequest, Confinement, Delivery, Directory as _, Dispatch,
    DispatchError, DynSigner, InferenceRequest, InferenceResult, Message as _, NodeQuery, NodeRecord, NodeRole, Quote,
    RegistryError, Signed, Submission, Transport, TransportError, Validator as _, Value, Values,
};
use ncn_devnet::{LocalNetwork, quickstart};
use std::sync::{Arc, Mutex};

use crate::{
    scene::{delivered, key, network, result_of},
    tamper::{Tamper, Tampered},
};

/// A transport that shows a bystander the order that goes through.
struct Overheard {
    inner: Arc<dyn Transport>,
    order: Arc<Mutex<Option<Signed<InferenceRequest>>>>,
}

#[async_trait::async_trait]
impl Tamper for Overheard {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    async fn submit(&self, submission: Submission) -> Result<ncn_core::TaskStatus, TransportError> {
        *self.order.lock().unwrap() = Some(submission.request.clone());
        self.inner.submit(submission).await
    }

    async fn confirm_payment(&self, _: &ncn_core::PaymentConfirmation) -> Result<(), TransportError> {
        // The bystander is faster than the client's hint.
        Ok(())
    }
}

/// The bystander's node, registered for nothing, and its result for an order that it has overheard.
async fn theft(
    network: &LocalNetwork,
    registry: &GrpcRegistry,
    order: Signed<InferenceRequest>,
    quote: Quote,
) -> CompletionRequest {
    let thief = key();
    let domain = network.trust_root().await.unwrap().domain;
    let record = NodeRecord {
        node: thief.address(),
        role: NodeRole::Compute,
        subnet: order.message.subnet,
        endpoint: String::new(),
        models: vec![order.message.model_digest],
        confinement: Confinement::None,
        sequence: 1,
        expires_at: unix_now() + 600,
    };
    registry.register(Signed::sign(record, &domain, &*thief).await.unwrap()).await.unwrap();
    let result = InferenceResult {
        input_hash: order.message.input_hash,
        output_hash: Values::from([("label", "0")]).hash(),
        ..result_of(&quote, thief.address())
    };
    let delivery = delivered(result, &thief, &domain).await;
    let authorization = authorize(&quote, &delivery, &thief, &domain).await;
    // The gateway has signed none for it.
    let message = Dispatch {
        gateway: quote.gateway,
        compute: thief.address(),
        quote: quote.struct_hash(),
        attempt: 0,
        resumed_from: B256::ZERO,
    };
    let mut dispatch = Signed::sign(Dispatch { gateway: thief.address(), ..message }, &domain, &*thief).await.unwrap();
    dispatch.message = message;
    let dispatches = vec![dispatch];
    CompletionRequest {
        request: order,
        quote,
        delivery,
        preprocessing: None,
        voucher: None,
        dispatches,
        acknowledgement: None,
        authorization,
    }
}

async fn authorize(
    quote: &Quote,
    delivery: &Delivery,
    signer: &DynSigner,
    domain: &ncn_core::Domain,
) -> Signed<CompletionAuthorization> {
    let completion = delivery.completion(quote).unwrap().struct_hash();
    let message = CompletionAuthorization { author: signer.address(), completion };
    Signed::sign(message, domain, &**signer).await.unwrap()
}

#[tokio::test]
async fn nobody_but_the_gateway_says_whose_result_is_paid() {
    let network = network().start().await.unwrap();
    let registry = GrpcRegistry::new(&network.registry_urls()[0]).unwrap();
    let signer = key();
    network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
    let order = Arc::new(Mutex::new(None));
    let transport = Arc::new(Tampered(Overheard { inner: network.gateway(), order: order.clone() }));
    let ledger = Arc::new(network.ledger(signer.clone()));
    let client = Client::builder().transport(transport).payer(ledger).signer(signer).build().unwrap();
    let seven = [("image", Value::png(quickstart::SAMPLE))];
    let quoted = client.submit(Order::new(quickstart::NAME, seven).max_price(Amount::TOKEN)).await.unwrap();
    let quote = quoted.quote().clone();
    let order = order.lock().unwrap().clone().unwrap();
    let theft = theft(&network, &registry, order, quote.clone()).await;
    let paid = quoted.pay().await.unwrap();

    // The registry node refuses it, and so does each validator when it is asked itself.
    let refused = registry.completion(theft.clone()).await;
    let unsigned =
        |refused: &Result<_, RegistryError>| matches!(refused, Err(RegistryError::Dispatch(DispatchError::Signature(_))));
    assert!(unsigned(&refused.as_ref().map(drop).map_err(Clone::clone)), "{refused:?}");
    let validators = NodeQuery { role: Some(NodeRole::Validator), ..NodeQuery::default() };
    let validators = registry.discover(validators).await.unwrap();
    assert_eq!(validators.len(), 5);
    for record in validators {
        let validator = GrpcValidator::new(record.message.node, &record.message.endpoint).unwrap();
        let refused = validator.completion(&theft).await;
        assert!(unsigned(&refused.as_ref().map(drop).map_err(Clone::clone)), "{refused:?}");
    }

    let answer = tokio::time::timeout(Duration::from_mins(1), paid.finish()).await.unwrap().unwrap();
    assert_eq!(answer.output.text("label"), Some("7"));
    let thief = theft.delivery.results[0].message.compute;
    assert_ne!(answer.receipt.completion.contributions[0].compute, thief);
    assert_eq!(network.funder().balance(thief).await.unwrap(), Amount::ZERO);
    assert_eq!(quote.request_id, answer.receipt.request.message.digest(&answer.receipt.trust_root.domain));
}
