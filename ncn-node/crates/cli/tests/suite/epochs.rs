//! Validators join and leave while requests are on their way: each is judged to its end by those who were there when it was quoted.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ncn_client::{ChannelPayer, Client, PayerChannel, grpc::GrpcTransport, unix_now};
use ncn_core::{Address, Amount, B256, ChainView, ChannelParams, Receipt, Transport as _, Value};
use ncn_devnet::{LocalNetwork, quickstart};
use ncn_node::channel::BatchPolicy;

use crate::{
    scene::{key, network, tokens},
    wait::{TIMEOUT, eventually},
};

/// How long validators come and go.
const TOGGLING: Duration = Duration::from_mins(1);
/// An account joins or leaves this often: in each second there is another set of validators.
const BLOCK: Duration = Duration::from_secs(1);
const CLIENTS: usize = 4;

/// Accounts with the least stake join, and leave again a block later. None of them ever judges anything. Returns them.
async fn toggle(network: &LocalNetwork, until: Instant) -> Vec<Address> {
    let stake = network.funder().minimum_stake().await.unwrap();
    let mut joined = Vec::new();
    while Instant::now() < until {
        let signer = key();
        network.funder().transfer(signer.address(), stake).await.unwrap();
        let account = network.ledger(signer);
        account.stake(stake).await.unwrap();
        joined.push(account.account());
        tokio::time::sleep(BLOCK).await;
        account.unstake().await.unwrap();
        tokio::time::sleep(BLOCK).await;
    }
    joined
}

fn image() -> [(&'static str, Value); 1] {
    [("image", Value::png(quickstart::SAMPLE))]
}

/// One request after the other, by escrow.
async fn escrows(network: &LocalNetwork, until: Instant) -> Vec<Receipt> {
    let client = network.client().await.unwrap().timeout(TIMEOUT * 5).build().unwrap();
    let mut receipts = Vec::new();
    while Instant::now() < until {
        receipts.push(client.infer(quickstart::NAME, image()).await.unwrap().receipt);
    }
    receipts
}

/// One request after the other, out of a channel. Its client trusts whom it was told to, and asks before each.
async fn vouchers(network: &LocalNetwork, until: Instant) -> (B256, Vec<Receipt>) {
    let (signer, deposit, expiry) = (key(), tokens(100), unix_now() + 7 * 24 * 3_600);
    network.funder().transfer(signer.address(), deposit).await.unwrap();
    let terms = ChannelParams { client: signer.address(), gateway: network.gateway_address(), salt: B256::random() };
    network.ledger(signer.clone()).fund_channel(&terms, deposit, expiry).await.unwrap();
    let channel = Arc::new(PayerChannel::new(terms, deposit, expiry));
    let transport = Arc::new(GrpcTransport::new(&network.gateway_url()).unwrap());
    let mut receipts = Vec::new();
    while Instant::now() < until {
        let trust = transport.network().await.unwrap().trust_root;
        let payer = ChannelPayer::new(transport.clone(), trust, signer.clone(), channel.clone());
        let client = Client::builder().timeout(TIMEOUT * 5).transport(transport.clone()).payer(Arc::new(payer));
        let client = client.signer(signer.clone()).max_price(tokens(1)).build().unwrap();
        match client.infer(quickstart::NAME, image()).await {
            Ok(answer) => receipts.push(answer.receipt),
            // The validators have changed since they were asked for. It costs nothing to see.
            Err(error) => assert!(!error.is_paid() && error.to_string().contains("trustRoot"), "{error}"),
        }
    }
    (terms.id(), receipts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_makes_requests_fail_by_joining_and_leaving() {
    let settle = BatchPolicy { max_age: Duration::from_secs(2), ..BatchPolicy::default() };
    let network = network().gateway(move |gateway| gateway.batch_policy(settle)).start().await.unwrap();
    let network = &network;
    let until = Instant::now() + TOGGLING;
    let by_escrow = futures::future::join_all((0..CLIENTS).map(|_| escrows(network, until)));
    let (joined, by_escrow, (channel, by_voucher)) = tokio::join!(toggle(network, until), by_escrow, vouchers(network, until));

    let by_escrow: Vec<Receipt> = by_escrow.into_iter().flatten().collect();
    let all = || by_escrow.iter().chain(&by_voucher);
    println!("{} joined and left; {} requests by escrow, {} by voucher", joined.len(), by_escrow.len(), by_voucher.len());
    let epochs: BTreeSet<_> = all().map(|receipt| receipt.quote.epoch).collect();
    assert!(epochs.len() >= 10, "the validators changed between requests: {epochs:?}");
    let drawn = all().any(|receipt| {
        let committee = receipt.quote.committee_of(&receipt.trust_root).unwrap();
        committee.members.iter().any(|member| joined.contains(member))
    });
    assert!(drawn, "those who joined were drawn, too");

    // Requests of many epochs are settled together.
    let cost = Amount::checked_sum(by_voucher.iter().map(|receipt| receipt.payments.total)).unwrap();
    assert!(by_voucher.len() >= 10, "{}", by_voucher.len());
    eventually("the channel is charged for all of them", async || {
        network.channels().flush();
        network.funder().channel(channel).await.unwrap().unwrap().settled == cost
    })
    .await;
    let held = network.funder().balance(network.trust_root().await.unwrap().domain.contract).await.unwrap();
    assert_eq!(held, Amount::ZERO, "nothing stays in escrow");
}
