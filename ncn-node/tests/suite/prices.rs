//! No price is paid unseen: what a library's caller has to limit, or to look at.

use std::sync::Arc;

use ncn_client::{Client, ClientError, Order};
use ncn_core::{Amount, LedgerError, Value};
use ncn_node::devnet::quickstart;

use crate::scene::{Chain, key, network, tokens};

fn seven() -> [(&'static str, Value); 1] {
    [("image", Value::png(quickstart::SAMPLE))]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_limit_pays_only_what_it_was_shown() {
    let network = network().start().await.unwrap();
    let signer = key();
    network.treasurer().transfer(signer.address(), Amount::TOKEN).await.unwrap();
    let ledger = Arc::new(network.ledger(signer.clone()));
    let builder = Client::builder().gateway(network.gateway_url()).payer(ledger.clone()).signer(signer);
    let price = quickstart::model().unwrap().manifest().price;

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
