//! The embedded chain, and the payout rule on it.

use std::sync::Arc;

use alloy_primitives::{B256, Bytes, TxKind};
use ncn_client::evm::{Call, Deployment, EvmBackend as _, EvmError, EvmReader as _, LogFilter, SendOptions};
use ncn_client::unix_now;
use ncn_core::{Address, Amount, FeeSplit, PayeeRole, PaymentLedger as _, PaymentStatus, PayoutSchedule, Quote};
use ncn_devnet::EmbeddedChain;

use crate::{
    money::Contracts as _,
    scene::{Chain, flat_quote, key, settlement, tokens},
};

/// Settles a payment of this size and split, approved by the first `approvals` validators, and compares every balance with the tree.
async fn settles_by_the_tree(scene: &Chain, total: u128, split: FeeSplit, approvals: usize) {
    let (client, gateway) = (key(), key());
    let epoch = scene.epoch().await;
    let trust = epoch.trust.clone();
    let parties = [client.address(), gateway.address(), Address::random()];
    let expiry = unix_now() + 3_600;
    let quote = Quote { split, ..flat_quote(&epoch, B256::random(), parties, Amount::new(total), expiry) };
    let worker = key();
    let settlement = settlement(&quote, &worker, &trust, &scene.validators, approvals).await;
    let tree = PayoutSchedule::new(&quote, &settlement.completion, &settlement.certificate.validators(), trust.treasury).unwrap();

    let account = scene.account(client, quote.total).await;
    account.escrow(&quote).await.unwrap();
    let mut before = Vec::new();
    for payout in &tree.payouts {
        before.push(account.balance(payout.address).await.unwrap());
    }
    let ledger = scene.ledger(gateway);
    ledger.settle(&settlement).await.unwrap();
    for (payout, before) in tree.payouts.iter().zip(before) {
        let after = account.balance(payout.address).await.unwrap();
        assert_eq!(after.checked_sub(before), Some(payout.amount), "{payout:?} of {total} by {split:?}");
    }
    let held = account.balance(trust.domain.contract).await.unwrap();
    assert_eq!(held, Amount::ZERO, "nothing stays behind");
    assert!(tree.paid_to(PayeeRole::Compute) <= quote.total);
}

#[tokio::test]
async fn solidity_pays_what_rust_computes() {
    let scene = Chain::new(5).await;
    let split = |gateway_bps, validators_bps, treasury_bps| FeeSplit { gateway_bps, validators_bps, treasury_bps };
    for (total, parts, approvals) in [
        (1, FeeSplit::default(), 3),
        (7, FeeSplit::default(), 5),
        (19, FeeSplit::default(), 3),
        (10_000_000_000_000_001, FeeSplit::default(), 4),
        (999_999_999_999, split(0, 0, 0), 3),
        (999_999_999_999, split(10_000, 0, 0), 3),
        (1_000_003, split(0, 10_000, 0), 4),
        (1_000_003, split(3_333, 3_333, 3_334), 3),
        (tokens(1_000).units() - 1, split(1, 9_998, 1), 5),
    ] {
        settles_by_the_tree(&scene, total, parts, approvals).await;
    }
}

#[tokio::test]
async fn nonsense_is_refused_with_a_reason() {
    let chain = EmbeddedChain::new(7);
    for raw in [Bytes::new(), Bytes::from_static(b"no transaction"), vec![2; 200_000].into()] {
        assert!(matches!(chain.send_raw_transaction(raw).await, Err(EvmError::InvalidTransaction(_))));
    }
    assert_eq!(chain.latest_block().await.unwrap().number, 0, "nothing of it made a block");
    // Where there is no contract, a call gives nothing.
    let nothing = Call { from: Address::ZERO, to: TxKind::Call(Address::repeat_byte(9)), input: Bytes::new() };
    assert_eq!(chain.call(&nothing).await.unwrap(), Bytes::new());
    assert!(
        ncn_client::evm::EvmLedger::connect(
            Arc::new(chain),
            Deployment::first_of(Address::repeat_byte(9)),
            key(),
            SendOptions::default()
        )
        .await
        .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_transactions_of_one_account_at_once() {
    let scene = Arc::new(Chain::new(3).await);
    let to = Address::random();
    let transfers = (0..200).map(|_| {
        let scene = scene.clone();
        tokio::spawn(async move { scene.deployer.transfer(to, tokens(1)).await.unwrap() })
    });
    let hashes = futures::future::try_join_all(transfers).await.unwrap();
    assert_eq!(hashes.iter().collect::<std::collections::HashSet<_>>().len(), 200);
    assert_eq!(scene.deployer.balance(to).await.unwrap(), tokens(200));
}

#[tokio::test]
async fn chains_in_one_process_do_not_share_anything() {
    let (one, other) = (Chain::new(3).await, Chain::new(3).await);
    let someone = Address::random();
    one.deployer.transfer(someone, tokens(1)).await.unwrap();
    assert_eq!(one.deployer.balance(someone).await.unwrap(), tokens(1));
    assert_eq!(other.deployer.balance(someone).await.unwrap(), Amount::ZERO);
    one.chain.advance(1_000);
    assert!(one.deployer.now().await.unwrap() >= other.deployer.now().await.unwrap() + 999);
    let filter = LogFilter { address: someone, ..LogFilter::default() };
    assert_eq!(one.chain.logs(filter).await.unwrap(), Vec::new());
    assert_eq!(one.deployer.payment(someone, B256::ZERO).await.unwrap(), PaymentStatus::Unpaid);
}
