//! No price is paid unseen: what a library's caller has to limit, or to look at.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use ncn_client::{Client, ClientBuilder, ClientConfig, ClientError, Order, Payment, RelayedPayer, grpc::GrpcTransport};
use ncn_core::{Amount, LedgerError, ModelInfo, Transport, TransportError, Value};
use ncn_devnet::quickstart;

use crate::{
    scene::{Chain, key, network, tokens},
    tamper::{Tamper, Tampered},
};

fn seven() -> [(&'static str, Value); 1] {
    [("image", Value::png(quickstart::SAMPLE))]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_limit_pays_only_what_it_was_shown() {
    let network = network().start().await.unwrap();
    let signer = key();
    network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
    let ledger = Arc::new(network.ledger(signer.clone()));
    let builder = Client::builder().gateway(network.gateway_url()).payer(ledger.clone()).signer(signer);
    let price = quickstart::model().unwrap().manifest().price().base;

    let careless = builder.clone().build().unwrap();
    let refused = careless.infer(quickstart::NAME, seven()).await.unwrap_err();
    assert_eq!(refused, ClientError::PriceUnseen { model: quickstart::NAME.into(), price });
    assert!(refused.is_input() && !refused.is_paid(), "{refused}");
    for named in ["0.01 NCN", "ClientBuilder::max_price", "submit the order"] {
        assert!(refused.to_string().contains(named), "{refused}");
    }
    let mean = builder.clone().max_price(Amount::new(1)).build().unwrap();
    let expensive = ClientError::TooExpensive { price, limit: Amount::new(1) };
    assert_eq!(mean.infer(quickstart::NAME, seven()).await.unwrap_err(), expensive);
    assert_eq!(mean.submit(Order::new(quickstart::NAME, seven())).await.err(), Some(expensive));
    assert_eq!(ledger.balance(ledger.account()).await.unwrap(), Amount::TOKEN);

    // The order's limit goes before the client's, and the quote may be looked at instead of setting one.
    mean.submit(Order::new(quickstart::NAME, seven()).max_price(Amount::TOKEN)).await.unwrap().cancel().await.unwrap();
    let quoted = careless.submit(Order::new(quickstart::NAME, seven())).await.unwrap();
    assert_eq!(quoted.quote().total, price);
    let answer = quoted.pay().await.unwrap().finish().await.unwrap();
    assert_eq!(answer.output.text("label"), Some("7"));
    // A generous limit is no offer: the order states the listed price, and a dearer quote would be refused.
    let generous = builder.max_price(Amount::TOKEN).build().unwrap();
    let answer = generous.infer(quickstart::NAME, seven()).await.unwrap();
    assert_eq!(answer.receipt.request.message.max_price, price);
}

/// A gateway whose list of models is counted, and shows another price the first time.
struct Listing {
    gateway: Arc<dyn Transport>,
    asked: Arc<AtomicUsize>,
    first: Amount,
}

#[async_trait]
impl Tamper for Listing {
    fn inner(&self) -> &dyn Transport {
        &*self.gateway
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        let mut models = self.gateway.models().await?;
        if self.asked.fetch_add(1, Ordering::SeqCst) == 0 {
            for info in &mut models {
                info.price.base = self.first;
            }
        }
        Ok(models)
    }
}

#[tokio::test]
async fn the_list_of_models_is_asked_for_once_and_again_when_it_has_changed() {
    let network = network().start().await.unwrap();
    let price = quickstart::model().unwrap().manifest().price().base;
    let asked_after = async |first: Amount, limit: Amount, age: Duration| {
        let (signer, asked) = (key(), Arc::new(AtomicUsize::new(0)));
        network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
        let transport = Arc::new(Tampered(Listing { gateway: network.gateway(), asked: asked.clone(), first }));
        let payment = Payment::OnChain(network.ledger(signer));
        let config = ClientConfig { max_offer_age: age, ..ClientConfig::default() };
        let client = Client::builder().transport(transport).payment(payment).config(config).max_price(limit).build().unwrap();
        assert_eq!(client.models().await.unwrap()[0].price.base, first);
        let mut totals = Vec::new();
        for _ in 0..2 {
            totals.push(client.infer(quickstart::NAME, seven()).await.map(|answer| answer.receipt.quote.total));
        }
        (totals, asked.load(Ordering::SeqCst))
    };
    let long = Duration::from_hours(1);
    let (paid, unseen) = (vec![Ok(price); 2], Amount::new(price.units() - 1));
    assert_eq!(asked_after(price, Amount::TOKEN, long).await, (paid.clone(), 1), "nothing has changed");
    assert_eq!(asked_after(unseen, Amount::TOKEN, long).await, (paid.clone(), 2), "it has become dearer");
    assert_eq!(asked_after(tokens(9), Amount::TOKEN, long).await, (paid.clone(), 2), "it has become cheaper");
    assert_eq!(asked_after(price, Amount::TOKEN, Duration::ZERO).await, (paid, 3), "nothing is remembered");
    let refused = Err(ClientError::TooExpensive { price, limit: unseen });
    assert_eq!(asked_after(unseen, unseen, long).await.0, vec![refused; 2], "dearer than the limit");
}

#[tokio::test]
async fn a_client_without_a_way_to_pay_says_what_is_missing() {
    let trust = Chain::new(3).await.deployer.trust_root().await.unwrap();
    let builder = || Client::builder().gateway("http://127.0.0.1:1").signer(key());
    let problem = |builder: ClientBuilder| builder.build().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(problem(builder()).starts_with("payment: is missing"));
    let payer = Arc::new(RelayedPayer::new(Arc::new(GrpcTransport::new("http://127.0.0.1:1").unwrap()), trust, key()));
    assert!(problem(builder().payer(payer).payment(Payment::Relayed)).starts_with("payment: is given twice"));
    assert!(problem(builder().payment(Payment::Relayed)).starts_with("trust: is missing"));
    assert!(problem(builder().payment(Payment::Channel("no such file".into()))).starts_with("payment: channel no such file: "));
}

#[tokio::test]
async fn a_subnet_s_fee_is_bounded_by_its_owner() {
    let chain = Chain::new(3).await;
    let owner = key();
    chain.deployer.transfer(owner.address(), tokens(100)).await.unwrap();
    let account = chain.deployer.with_signer(owner.clone());
    assert_eq!(account.subnet_fee("mine").await.unwrap(), tokens(10));
    let refused = account.create_subnet("mine", Amount::TOKEN).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::NotAllowed(problem) if problem.contains("costs 10 NCN")), "{refused}");
    assert_eq!(account.balance(owner.address()).await.unwrap(), tokens(100));
    account.create_subnet("mine", tokens(10)).await.unwrap();
    assert_eq!(account.balance(owner.address()).await.unwrap(), tokens(90));
    assert_eq!(account.subnet_fee("mine").await.unwrap(), Amount::ZERO, "it is created already");
}
