//! Settlements that the chain takes back: they are made again, once, and nobody else waits.

use std::{sync::Arc, time::Duration};

use alloy_primitives::B256;
use ncn_client::{evm::EvmBackend as _, unix_now};
use ncn_core::{Amount, ChainView, ChannelParams, DynSigner, FeeSplit, PaymentAuthorization, PaymentLedger, SignedVoucher};
use ncn_node::channel::{BatchPolicy, ChannelProcessor};

use crate::{
    money::Contracts as _,
    provider::Provider,
    scene::{Behavior, InProcess, flat_quote, key, settlement},
};

const PRICE: u128 = 1_000_003;
const SOON: Duration = Duration::from_mins(2);

struct Scene {
    network: InProcess,
    gateway: DynSigner,
    compute: DynSigner,
    provider: Arc<Provider>,
    files: tempfile::TempDir,
}

/// A client with a channel, and what it has promised so far.
struct Payer {
    signer: DynSigner,
    terms: ChannelParams,
    promised: u128,
}

impl Scene {
    async fn new() -> Self {
        let network = InProcess::new(&[Behavior::Honest; 5]).await;
        let (gateway, compute) = (key(), key());
        let provider = Arc::new(Provider::new(network.chain.ledger(gateway.clone()), 0));
        Self { network, gateway, compute, provider, files: tempfile::tempdir().unwrap() }
    }

    /// The gateway's ledger, once the one before it has released the file. It settles when the test says so.
    async fn open(&self, resubmit_after: Duration) -> ChannelProcessor {
        let options =
            BatchPolicy { max_requests: usize::MAX, max_age: Duration::from_hours(1), resubmit_after, ..BatchPolicy::default() };
        let path = self.files.path().join("gateway.redb");
        let mut opened = None;
        within(async || {
            let (registry, gateway) = (self.network.registry.clone(), self.gateway.clone());
            opened = ChannelProcessor::open(self.provider.clone(), registry, gateway, &path, options).ok();
            opened.is_some()
        })
        .await;
        opened.unwrap()
    }

    async fn reopen(&self, ledger: ChannelProcessor, resubmit_after: Duration) -> ChannelProcessor {
        ledger.stop();
        drop(ledger);
        self.open(resubmit_after).await
    }

    async fn payer(&self) -> Payer {
        let signer = key();
        let terms = ChannelParams { client: signer.address(), gateway: self.gateway.address(), salt: B256::random() };
        let deposit = Amount::new(PRICE * 10);
        self.network.chain.account(signer.clone(), deposit).await;
        self.network.chain.ledger(signer.clone()).fund_channel(&terms, deposit, unix_now() + 7 * 24 * 3_600).await.unwrap();
        Payer { signer, terms, promised: 0 }
    }

    /// A request is paid by a voucher, and served.
    async fn serve(&self, ledger: &ChannelProcessor, payer: &mut Payer) {
        let trust = &self.network.trust;
        let parties = [payer.signer.address(), self.gateway.address(), self.compute.address()];
        let quote = flat_quote(&self.network.epoch, B256::random(), parties, Amount::new(PRICE), unix_now() + 3_600);
        let number = u64::try_from(payer.promised / PRICE).unwrap();
        payer.promised += PRICE;
        let promised = Amount::new(payer.promised);
        let payment = SignedVoucher::sign(payer.terms, &quote, number, promised, trust, &payer.signer).await.unwrap();
        ledger.redeem(&quote, &PaymentAuthorization::Voucher(payment)).await.unwrap();
        let settlement = settlement(&quote, &self.compute, trust, &self.network.chain.validators, 3).await;
        ledger.settle(&settlement).await.unwrap();
    }

    /// What the chain has charged, in requests.
    async fn charged(&self, payer: &Payer) -> u128 {
        let settled = self.network.chain.deployer.channel(payer.terms.id()).await.unwrap().unwrap().settled.units();
        assert_eq!(settled % PRICE, 0);
        settled / PRICE
    }

    /// Settles until the chain has charged so many requests, and the book has nothing left.
    async fn settles(&self, ledger: &ChannelProcessor, payers: &[(&Payer, u128)]) {
        within(async || {
            ledger.flush();
            let mut all = true;
            for (payer, requests) in payers {
                all &= self.charged(payer).await == *requests;
            }
            all
        })
        .await;
    }

    async fn is_booked(&self, ledger: &ChannelProcessor) {
        within(async || ledger.unsettled() == 0).await;
    }

    /// Takes every settlement back for good: the newest blocks have one each.
    async fn take_back_all(&self) {
        let blocks = self.transactions().await;
        self.network.chain.chain.reorg(usize::try_from(blocks).unwrap(), true).unwrap();
    }

    /// How many requests the compute node was paid for.
    async fn paid(&self) -> u128 {
        let balance = self.network.chain.deployer.balance(self.compute.address()).await.unwrap().units();
        let quote = FeeSplit::default();
        let others = [quote.gateway_bps, quote.validators_bps, quote.treasury_bps].map(|bps| PRICE * u128::from(bps) / 10_000);
        let share = PRICE - others.iter().sum::<u128>();
        // What does not divide goes to somebody; it is a few units.
        (balance + share / 2) / share
    }

    async fn transactions(&self) -> u64 {
        self.network.chain.chain.nonces(self.gateway.address()).await.unwrap().mined
    }
}

async fn within(mut is: impl AsyncFnMut() -> bool) {
    let soon = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, soon).await.expect("it happens soon");
}

const RESUBMIT: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_is_taken_back_stops_nobody_and_is_made_once() {
    let scene = Scene::new().await;
    let ledger = scene.open(RESUBMIT).await;
    let (mut lost, mut other) = (scene.payer().await, scene.payer().await);
    scene.serve(&ledger, &mut lost).await;
    scene.settles(&ledger, &[(&lost, 1)]).await;
    scene.is_booked(&ledger).await;
    scene.take_back_all().await;

    scene.serve(&ledger, &mut lost).await;
    scene.serve(&ledger, &mut other).await;
    scene.settles(&ledger, &[(&lost, 2), (&other, 1)]).await;
    scene.is_booked(&ledger).await;
    assert_eq!(scene.paid().await, 3, "each request once");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_several_channels_come_back_in_order_after_a_restart() {
    let scene = Scene::new().await;
    let ledger = scene.open(Duration::from_hours(1)).await;
    let (mut one, mut two) = (scene.payer().await, scene.payer().await);
    scene.serve(&ledger, &mut one).await;
    scene.serve(&ledger, &mut two).await;
    scene.settles(&ledger, &[(&one, 1), (&two, 1)]).await;
    scene.serve(&ledger, &mut one).await;
    scene.settles(&ledger, &[(&one, 2)]).await;
    scene.is_booked(&ledger).await;
    scene.take_back_all().await;
    assert_eq!((scene.charged(&one).await, scene.charged(&two).await), (0, 0));

    // No client orders anything: what is lost comes back all the same.
    let ledger = scene.reopen(ledger, RESUBMIT).await;
    within(async || (scene.charged(&one).await, scene.charged(&two).await) == (2, 1)).await;
    scene.serve(&ledger, &mut two).await;
    scene.settles(&ledger, &[(&one, 2), (&two, 2)]).await;
    scene.is_booked(&ledger).await;
    assert_eq!(scene.paid().await, 4, "each request once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_presented_again_is_lost_alone() {
    let scene = Scene::new().await;
    let ledger = scene.open(Duration::from_hours(1)).await;
    let (mut ended, mut other) = (scene.payer().await, scene.payer().await);
    scene.serve(&ledger, &mut ended).await;
    scene.serve(&ledger, &mut other).await;
    scene.settles(&ledger, &[(&ended, 1), (&other, 1)]).await;
    scene.is_booked(&ledger).await;
    scene.serve(&ledger, &mut other).await;
    scene.settles(&ledger, &[(&other, 2)]).await;
    scene.is_booked(&ledger).await;
    scene.take_back_all().await;
    // One of the batch's channels ends before it can be charged again.
    scene.network.chain.ledger(scene.gateway.clone()).close_channel(&ended.terms, None).await.unwrap();
    assert_eq!((scene.charged(&ended).await, scene.charged(&other).await), (0, 0));

    let ledger = scene.reopen(ledger, RESUBMIT).await;
    scene.settles(&ledger, &[(&other, 2)]).await;
    within(async || ledger.unsettled() == 1).await;
    scene.serve(&ledger, &mut other).await;
    scene.settles(&ledger, &[(&other, 3)]).await;
    assert_eq!((scene.charged(&ended).await, scene.paid().await), (0, 3), "what the ended channel owed is not paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_behind_delays_its_channel_alone_and_costs_no_transaction() {
    let scene = Scene::new().await;
    let ledger = scene.open(Duration::from_secs(5)).await;
    let (mut stale, mut other) = (scene.payer().await, scene.payer().await);
    let before = scene.provider.chain.channel(stale.terms.id()).await.unwrap().unwrap();
    scene.serve(&ledger, &mut stale).await;
    scene.settles(&ledger, &[(&stale, 1)]).await;
    scene.is_booked(&ledger).await;

    scene.provider.stale.lock().unwrap().insert(stale.terms.id(), before);
    scene.serve(&ledger, &mut stale).await;
    scene.serve(&ledger, &mut other).await;
    scene.settles(&ledger, &[(&other, 1)]).await;
    assert_eq!(scene.charged(&stale).await, 1);
    // Even when it is behind for so long that the batch is presented again, the chain is charged once.
    tokio::time::sleep(Duration::from_secs(8)).await;
    scene.provider.stale.lock().unwrap().clear();
    scene.settles(&ledger, &[(&stale, 2), (&other, 1)]).await;
    scene.is_booked(&ledger).await;
    assert_eq!((scene.paid().await, scene.transactions().await), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_closed_below_what_it_owes() {
    let scene = Scene::new().await;
    let ledger = scene.open(Duration::from_hours(1)).await;
    let mut payer = scene.payer().await;
    scene.serve(&ledger, &mut payer).await;
    scene.settles(&ledger, &[(&payer, 1)]).await;
    scene.is_booked(&ledger).await;
    scene.take_back_all().await;
    let refused = ledger.cooperative_close(&payer.terms).await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("presented again"), "{refused}");

    let ledger = scene.reopen(ledger, RESUBMIT).await;
    let mut agreed = None;
    within(async || {
        agreed = ledger.cooperative_close(&payer.terms).await.ok();
        agreed.is_some()
    })
    .await;
    let (settled, agreement) = agreed.unwrap();
    assert_eq!(settled, Amount::new(PRICE));
    scene.network.chain.ledger(payer.signer.clone()).close_channel(&payer.terms, Some(agreement)).await.unwrap();
}
