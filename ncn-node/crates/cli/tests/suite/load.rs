//! Many clients at once: everyone is served, and the sums are right.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use ncn_client::{Client, ClientConfig};
use ncn_core::{Amount, PayeeRole, Value};
use ncn_devnet::quickstart;

use crate::scene::{key, network};

const CLIENTS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_clients_at_once() {
    let network = Arc::new(network().start().await.unwrap());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let signer = key();
        network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
        let ledger = Arc::new(network.ledger(signer.clone()));
        let timeout = Duration::from_mins(5);
        let builder = Client::builder().config(ClientConfig::batch()).timeout(timeout).gateway(network.gateway_url());
        clients.push((builder.payer(ledger.clone()).signer(signer).max_price(Amount::TOKEN).build().unwrap(), ledger));
    }
    let fees = network.funder().balance(network.treasury()).await.unwrap();
    let served = clients.iter().map(|(client, ledger)| async move {
        let answer = client.infer(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).await.unwrap();
        assert_eq!(answer.output.text("label"), Some("7"));
        let left = ledger.balance(ledger.account()).await.unwrap();
        assert_eq!(left.checked_add(answer.receipt.payments.total), Some(Amount::TOKEN));
        answer.receipt
    });
    let receipts = join_all(served).await;

    let chain = network.funder();
    let earned = |role| Amount::checked_sum(receipts.iter().map(|receipt| receipt.payments.paid_to(role))).unwrap();
    assert_eq!(chain.balance(network.gateway_address()).await.unwrap(), earned(PayeeRole::Gateway));
    let treasury = chain.balance(network.treasury()).await.unwrap();
    assert_eq!(treasury.checked_sub(fees), Some(earned(PayeeRole::Treasury)));
    let mut computed = Amount::ZERO;
    for node in network.compute_addresses() {
        let balance = chain.balance(node).await.unwrap();
        assert!(!balance.is_zero(), "every node has its share of the work");
        computed = computed.checked_add(balance).unwrap();
    }
    assert_eq!(computed, earned(PayeeRole::Compute));
    let held = chain.balance(network.trust_root().await.unwrap().domain.contract).await.unwrap();
    assert_eq!(held, Amount::ZERO, "nothing stays in escrow");
}
