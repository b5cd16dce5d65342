#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::sync::Arc;

use alloy_signer_local::PrivateKeySigner;
use ncn_core::{
    Address, Amount, B256, Channel, ChannelParams, Domain, DynSigner, FeeSplit, LedgerError, Price, Quote, TrustRoot, Units,
    channel::Numbers,
};

use super::PayerChannel;

const DEPOSIT: Amount = Amount::new(100);
const EXPIRY: u64 = 10_000;

struct Scene {
    signer: DynSigner,
    trust: TrustRoot,
    channel: PayerChannel,
}

impl Scene {
    fn new() -> Self {
        let signer: DynSigner = Arc::new(PrivateKeySigner::random());
        let trust = TrustRoot {
            domain: Domain { chain_id: 1, contract: Address::repeat_byte(1) },
            token: Address::repeat_byte(2),
            channels: Address::repeat_byte(3),
            validators: vec![Address::repeat_byte(4)],
            threshold: 1,
            committee_size: 1,
            treasury: Address::repeat_byte(5),
        };
        let terms = ChannelParams { client: signer.address(), gateway: Address::repeat_byte(6), salt: B256::ZERO };
        Self { signer, trust, channel: PayerChannel::new(terms, DEPOSIT, EXPIRY) }
    }

    fn quote(&self, total: u128) -> Quote {
        Quote {
            request_id: B256::random(),
            client: self.signer.address(),
            gateway: self.channel.terms().gateway,
            compute: Address::repeat_byte(7),
            model_digest: B256::ZERO,
            price: Price::flat(Amount::new(total)),
            max_units: Units::default(),
            total: Amount::new(total),
            split: FeeSplit::default(),
            expiry: 1_000,
            trust_root: self.trust.hash(),
            epoch: 0,
            salt: B256::ZERO,
            committee: B256::ZERO,
        }
    }

    async fn pay(&self, quote: &Quote) -> Amount {
        self.channel.pay(quote, &self.trust, &self.signer).await.unwrap().voucher.cumulative
    }

    async fn renew(&self, quote: &Quote, needed: u128) -> Result<Option<Amount>, LedgerError> {
        let renewed = self.channel.renew(quote, Amount::new(needed), &self.trust, &self.signer).await?;
        Ok(renewed.map(|payment| payment.voucher.cumulative))
    }
}

fn charged(settled: u128, open: bool) -> Channel {
    Channel { deposit: DEPOSIT, settled: Amount::new(settled), numbers: Numbers::default(), expiry: EXPIRY, open }
}

#[tokio::test]
async fn what_was_given_up_too_early_is_paid_after_all_up_to_what_was_signed() {
    let scene = Scene::new();
    let lost = scene.quote(10);
    assert_eq!(scene.pay(&lost).await, Amount::new(10));
    // A client that believed its gateway, as it did before, or one whose file is a backup.
    scene.channel.release(lost.request_id, None).unwrap();
    let next = scene.quote(5);
    assert_eq!(scene.pay(&next).await, Amount::new(5));
    // The gateway has earned the 10.
    assert_eq!(scene.renew(&next, 15).await, Ok(Some(Amount::new(15))));
    assert_eq!(scene.channel.sums().spent, Amount::new(10));
    // The voucher in its place is the one that is presented from here on, and it counts once.
    assert_eq!(scene.pay(&next).await, Amount::new(15));
    assert_eq!(scene.channel.sums().reserved, Amount::new(5));
}

#[tokio::test]
async fn who_pays_an_ended_request_again_signs_nothing_more() {
    let scene = Scene::new();
    let (served, next) = (scene.quote(10), scene.quote(5));
    assert_eq!(scene.pay(&served).await, Amount::new(10));
    scene.channel.release(served.request_id, Some(served.total)).unwrap();
    let sums = scene.channel.sums();
    assert_eq!(scene.pay(&served).await, Amount::new(10), "the voucher that it was");
    assert_eq!(scene.channel.sums(), sums);
    // One that the chain says is charged is ended, too.
    scene.pay(&next).await;
    let chain =
        Channel { deposit: sums.deposit, settled: Amount::new(15), numbers: Numbers::default(), expiry: sums.expiry, open: true };
    scene.channel.reconcile(&chain).unwrap();
    assert_eq!((scene.pay(&next).await, scene.channel.sums().spent), (Amount::new(15), Amount::new(15)));
    assert!(scene.channel.sums().reserved.is_zero());
}

#[tokio::test]
async fn a_gateway_that_names_more_than_was_signed_gets_nothing_for_it() {
    let scene = Scene::new();
    let (first, next) = (scene.quote(10), scene.quote(5));
    scene.pay(&first).await;
    scene.channel.release(first.request_id, Some(first.total)).unwrap();
    scene.pay(&next).await;
    for claim in [16, 25, 100, u128::MAX] {
        assert_eq!(scene.renew(&next, claim).await, Ok(None), "{claim}");
    }
    let sums = scene.channel.sums();
    assert_eq!((sums.spent, sums.reserved), (Amount::new(10), Amount::new(5)));
    assert_eq!(scene.renew(&scene.quote(1), 5).await, Ok(None), "only a voucher that was signed is replaced");
}

#[tokio::test]
async fn what_the_chain_has_charged_is_spent() {
    let scene = Scene::new();
    let (first, second) = (scene.quote(10), scene.quote(10));
    scene.pay(&first).await;
    scene.pay(&second).await;
    // One of the two was charged, and nothing says which.
    scene.channel.reconcile(&charged(10, true)).unwrap();
    assert_eq!(scene.channel.in_flight().len(), 2);
    assert_eq!(scene.channel.sums().reserved, Amount::new(20));
    // Both were.
    scene.channel.reconcile(&charged(20, true)).unwrap();
    assert_eq!(scene.channel.in_flight(), Vec::<B256>::new());
    assert_eq!((scene.channel.sums().spent, scene.channel.sums().reserved), (Amount::new(20), Amount::ZERO));
    // Another program has used the channel, or the file is a backup: the next voucher covers that.
    scene.channel.reconcile(&charged(50, true)).unwrap();
    assert_eq!(scene.pay(&scene.quote(1)).await, Amount::new(51));
    // Once it is closed, nothing can be charged any more.
    scene.channel.reconcile(&charged(50, false)).unwrap();
    assert_eq!(scene.channel.sums().reserved, Amount::ZERO);
}

#[tokio::test]
async fn a_request_whose_number_is_over_is_not_in_flight() {
    let scene = Scene::new();
    let quotes: Vec<_> = (0..3).map(|_| scene.quote(10)).collect();
    for (number, quote) in quotes.iter().enumerate() {
        let payment = scene.channel.pay(quote, &scene.trust, &scene.signer).await.unwrap();
        assert_eq!(payment.voucher.number, number as u64);
    }
    // The second one was charged, at less than it could have cost.
    let numbers = Numbers::default().with([1], []);
    scene.channel.reconcile(&Channel { numbers, ..charged(6, true) }).unwrap();
    assert!(scene.channel.in_flight().iter().all(|request| *request != quotes[1].request_id));
    let sums = scene.channel.sums();
    assert_eq!((scene.channel.in_flight().len(), sums.spent, sums.reserved), (2, Amount::new(6), Amount::new(20)));
    // Another program has used the channel, or the file is a backup: numbers that are over are not taken again.
    let numbers = numbers.with([7], []);
    scene.channel.reconcile(&Channel { numbers, ..charged(16, true) }).unwrap();
    let payment = scene.channel.pay(&scene.quote(1), &scene.trust, &scene.signer).await.unwrap();
    assert_eq!(payment.voucher.number, 8);
}

#[tokio::test]
async fn each_number_is_one_requests_across_restarts_and_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("channel.json");
    let mut scene = Scene::new();
    let mut numbers = std::collections::BTreeSet::new();
    scene.channel = PayerChannel::create(&path, *scene.channel.terms(), DEPOSIT, EXPIRY).unwrap();
    for _ in 0..3 {
        let quotes: Vec<_> = (0..4).map(|_| scene.quote(1)).collect();
        let paid = quotes.iter().map(|quote| scene.channel.pay(quote, &scene.trust, &scene.signer));
        for payment in futures::future::try_join_all(paid).await.unwrap() {
            assert!(numbers.insert(payment.voucher.number), "{}", payment.voucher.number);
        }
        let in_memory = Scene::new().channel;
        drop(std::mem::replace(&mut scene.channel, in_memory));
        scene.channel = PayerChannel::open(&path).unwrap();
    }
    assert_eq!(numbers, (0..12).collect());
}

#[tokio::test]
async fn a_file_of_an_earlier_version_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("channel.json");
    let scene = Scene::new();
    drop(PayerChannel::create(&path, *scene.channel.terms(), DEPOSIT, EXPIRY).unwrap());
    let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file.as_object_mut().unwrap().remove("signed").unwrap();
    std::fs::write(&path, file.to_string()).unwrap();
    assert_eq!(PayerChannel::open(&path).unwrap().sums().available(), DEPOSIT);
}

#[test]
fn one_file_is_one_channel_by_whatever_name() {
    let directory = tempfile::tempdir().unwrap();
    let (path, link) = (directory.path().join("channel.json"), directory.path().join("link.json"));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let scene = Scene::new();
    let channel = PayerChannel::create(&path, *scene.channel.terms(), DEPOSIT, EXPIRY).unwrap();
    let busy = PayerChannel::open(&link).unwrap_err();
    assert_eq!(busy.kind(), std::io::ErrorKind::WouldBlock, "{busy}");
    drop(channel);
    PayerChannel::open(&link).unwrap().funded(Amount::new(200), EXPIRY).unwrap();
    assert!(link.is_symlink(), "the file was replaced, not the link");
    assert_eq!(PayerChannel::open(&path).unwrap().sums().deposit, Amount::new(200));
}

#[test]
fn the_files_of_others_keep_their_content() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for other in ["channel.lock", "channel.new", "channel.json.lock"] {
        std::fs::write(path(other), "somebody else's").unwrap();
    }
    let scene = Scene::new();
    let channel = PayerChannel::create(&path("channel.json"), *scene.channel.terms(), DEPOSIT, EXPIRY).unwrap();
    channel.funded(Amount::new(200), EXPIRY).unwrap();
    for other in ["channel.lock", "channel.new", "channel.json.lock"] {
        assert_eq!(std::fs::read_to_string(path(other)).unwrap(), "somebody else's", "{other}");
    }
}

#[tokio::test]
async fn what_a_request_did_not_cost_can_be_promised_again() {
    let scene = Scene::new();
    let (first, second) = (scene.quote(60), scene.quote(60));
    assert_eq!(scene.pay(&first).await, Amount::new(60));
    let refused = scene.channel.pay(&second, &scene.trust, &scene.signer).await;
    assert!(matches!(refused, Err(LedgerError::Channel { .. })), "{refused:?}");
    scene.channel.release(first.request_id, Some(Amount::new(25))).unwrap();
    assert_eq!(scene.channel.sums().spent, Amount::new(25));
    assert_eq!(scene.pay(&second).await, Amount::new(85), "by what the first one cost");
    scene.channel.release(second.request_id, Some(Amount::new(1_000))).unwrap();
    assert_eq!(scene.channel.sums().spent, Amount::new(85), "never more than was promised");
}
