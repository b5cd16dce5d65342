//! Requests paid out of a channel, by vouchers, with everything real.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use alloy_primitives::B256;
use futures::{StreamExt as _, stream};
use ncn_client::{ChannelPayer, Client, PayerChannel, RelayedPayer, evm::EvmBackend as _, grpc::GrpcTransport, unix_now};
use ncn_core::{
    Amount, CapabilityScope, ChainView, ChannelParams, DynSigner, Message as _, PayeeRole, PaymentAuthorization, PaymentLedger,
    Quote, Signed, SignedVoucher, TaskCapability, Transport as _, Value, memory::MemoryRegistry, receipt::Payment,
};
use ncn_devnet::{LocalNetwork, Mining};
use ncn_node::channel::{BatchPolicy, ChannelProcessor};

use crate::{
    money::Contracts as _,
    scene::{Chain, digit, flat_quote, key, network, tokens},
    wait::{TIMEOUT, eventually},
};

const WEEK: u64 = 7 * 24 * 3_600;

/// A client with an open channel.
struct Scene {
    network: LocalNetwork,
    signer: DynSigner,
    transport: Arc<GrpcTransport>,
    channel: Arc<PayerChannel>,
}

impl Scene {
    async fn new(deposit: Amount) -> Self {
        // Nothing is settled unless the test says so.
        let settle = BatchPolicy { max_requests: usize::MAX, max_age: Duration::from_hours(1), ..BatchPolicy::default() };
        let network = network().gateway(move |gateway| gateway.batch_policy(settle)).start().await.unwrap();
        let signer = key();
        network.funder().transfer(signer.address(), deposit).await.unwrap();
        let terms = ChannelParams { client: signer.address(), gateway: network.gateway_address(), salt: B256::random() };
        let expiry = unix_now() + WEEK;
        let account = network.ledger(signer.clone());
        let opened = account.fund_channel(&terms, deposit, expiry).await.unwrap();
        assert_eq!(account.fund_channel(&terms, deposit, expiry).await.unwrap(), opened, "opening again is the same transaction");
        let channel = Arc::new(PayerChannel::new(terms, deposit, expiry));
        let transport = Arc::new(GrpcTransport::new(&network.gateway_url()).unwrap());
        Self { network, signer, transport, channel }
    }

    async fn client(&self) -> Client {
        let trust = self.transport.network().await.unwrap().trust_root;
        assert_eq!(trust, self.network.trust_root().await.unwrap());
        let ledger = ChannelPayer::new(self.transport.clone(), trust, self.signer.clone(), self.channel.clone());
        // Many requests at once take their time on a machine that has other things to do.
        let client = Client::builder().timeout(TIMEOUT * 5).transport(self.transport.clone());
        client.payer(Arc::new(ledger)).signer(self.signer.clone()).max_price(tokens(1)).build().unwrap()
    }

    fn id(&self) -> B256 {
        self.channel.terms().id()
    }

    /// What the chain has charged.
    async fn settled(&self) -> Amount {
        self.network.funder().channel(self.id()).await.unwrap().unwrap().settled
    }

    async fn settle(&self) {
        self.network.channels().flush();
        eventually("everything is settled", async || self.network.channels().unsettled() == 0).await;
    }
}

fn image(n: u8) -> [(&'static str, Value); 1] {
    [("image", Value::png(std::fs::read(digit(n)).unwrap()))]
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_requests_in_flight_on_one_channel() {
    let price = ncn_devnet::quickstart::model().unwrap().manifest().price().base;
    let scene = Scene::new(Amount::new(price.units() * 64)).await;
    let client = scene.client().await;
    let mut running = Vec::new();
    for n in 0..64u8 {
        let client = client.clone();
        running.push(tokio::spawn(async move { client.infer("digits", image(n % 10)).await }));
    }
    let mut paid = std::collections::BTreeMap::<_, u128>::new();
    for (n, answer) in running.into_iter().enumerate() {
        let answer = answer.await.unwrap().unwrap_or_else(|error| panic!("request {n}: {error}"));
        assert_eq!(answer.output.text("label"), Some((n % 10).to_string().as_str()));
        assert!(matches!(answer.receipt.payment, Payment::Channel(_)));
        for payout in &answer.receipt.payments.payouts {
            *paid.entry((payout.address, payout.role == PayeeRole::Treasury)).or_default() += payout.amount.units();
        }
    }
    assert_eq!(scene.channel.sums().available(), Amount::ZERO, "every unit of the deposit was of use");
    assert_eq!(scene.settled().await, Amount::ZERO, "no chain was needed so far");

    let mut before = Vec::new();
    for (address, _) in paid.keys() {
        before.push(scene.network.funder().balance(*address).await.unwrap());
    }
    scene.settle().await;
    assert_eq!(scene.settled().await.units(), price.units() * 64);
    for (((address, _), expected), before) in paid.iter().zip(before) {
        let after = scene.network.funder().balance(*address).await.unwrap();
        assert_eq!(after.units() - before.units(), *expected, "{address} got the sum of its receipts");
    }
    // The deposit is used up: that is said before anything is sent.
    let refused = client.infer("digits", image(1)).await.unwrap_err();
    assert!(refused.to_string().contains("top it up"), "{refused}");
    assert!(!refused.is_paid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_closed_by_agreement() {
    let scene = Scene::new(tokens(1)).await;
    let client = scene.client().await;
    let answer = client.infer("digits", image(7)).await.unwrap();
    let price = answer.receipt.payments.total;

    let trust = scene.transport.network().await.unwrap().trust_root;
    let terms = *scene.channel.terms();
    let access = |signer: &DynSigner, scope| {
        let access = TaskCapability { client: signer.address(), request_id: terms.id(), scope };
        let (trust, signer) = (trust.clone(), signer.clone());
        async move { Signed::sign(access, &trust.domain, &*signer).await.unwrap() }
    };
    let stranger = access(&key(), CapabilityScope::CloseChannel).await;
    assert!(scene.transport.close_channel(terms, stranger).await.is_err(), "only its client closes a channel");
    let other = access(&scene.signer, CapabilityScope::Follow).await;
    assert!(scene.transport.close_channel(terms, other).await.is_err(), "a signature to follow does not close");

    let close = access(&scene.signer, CapabilityScope::CloseChannel).await;
    let (settled, agreement) = scene.transport.close_channel(terms, close).await.unwrap();
    assert_eq!(settled, price, "what was earned was settled first");
    // No voucher counts from here on.
    let late = client.infer("digits", image(1)).await.unwrap_err();
    assert!(late.to_string().contains("closed"), "{late}");

    let account = scene.network.ledger(scene.signer.clone());
    let closed = account.close_channel(&terms, Some(agreement)).await.unwrap();
    assert_eq!(account.close_channel(&terms, Some(agreement)).await.unwrap(), closed, "closing again is the same transaction");
    let back = account.balance(scene.signer.address()).await.unwrap();
    assert_eq!(back.units(), tokens(1).units() - price.units());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agreement_to_close_an_unused_channel_ends_it() {
    let scene = Scene::new(tokens(1)).await;
    let (terms, trust) = (*scene.channel.terms(), scene.transport.network().await.unwrap().trust_root);
    let scope = CapabilityScope::CloseChannel;
    let access = TaskCapability { client: scene.signer.address(), request_id: terms.id(), scope };
    let access = Signed::sign(access, &trust.domain, &*scene.signer).await.unwrap();
    let (settled, agreement) = scene.transport.close_channel(terms, access).await.unwrap();
    assert_eq!(settled, Amount::ZERO);
    // With the agreement in hand, the client could take the deposit back at any time: it is served no more.
    let refused = scene.client().await.infer("digits", image(7)).await.unwrap_err();
    assert!(refused.to_string().contains("is being closed"), "{refused}");
    // That it is refused only the gateway says, which has the voucher; once the channel is closed, the chain does.
    assert!(refused.is_paid(), "{refused}");
    assert!(!scene.channel.sums().reserved.is_zero());
    let account = scene.network.ledger(scene.signer.clone());
    account.close_channel(&terms, Some(agreement)).await.unwrap();
    scene.channel.reconcile(&account.channel(terms.id()).await.unwrap().unwrap()).unwrap();
    assert_eq!(scene.channel.sums().reserved, Amount::ZERO, "nothing can be charged any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_channel_comes_back_after_its_expiry() {
    let scene = Scene::new(tokens(1)).await;
    let terms = *scene.channel.terms();
    let account = scene.network.ledger(scene.signer.clone());
    let early = account.close_channel(&terms, None).await.unwrap_err();
    assert!(early.to_string().contains("open until"), "{early}");
    scene.network.chain().advance(WEEK + 60);
    account.close_channel(&terms, None).await.unwrap();
    assert_eq!(account.balance(scene.signer.address()).await.unwrap(), tokens(1));
}

/// On a development chain time can be let pass: who judges payments goes by the chain's time.
#[tokio::test(flavor = "multi_thread")]
async fn the_chains_time_decides() {
    let scene = Scene::new(tokens(1)).await;
    scene.network.chain().advance(WEEK + 60);
    let client = scene.network.client().await.unwrap().build().unwrap();
    // Everyone believes for some seconds what the chain said last.
    eventually("requests are served in the chain's time", async || match client.infer("digits", image(7)).await {
        Ok(answer) => {
            assert!(answer.receipt.quote.expiry > unix_now() + WEEK);
            true
        }
        Err(_) => false,
    })
    .await;
    let ended = scene.client().await.infer("digits", image(7)).await.unwrap_err();
    assert!(ended.to_string().contains("deadline") && !ended.is_paid(), "{ended}");
    assert!(scene.channel.sums().reserved.is_zero());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_top_up_that_was_cut_off_adds_once() {
    let scene = Scene::new(tokens(1)).await;
    let (chain, account) = (scene.network.chain().clone(), scene.network.ledger(scene.signer.clone()));
    scene.network.funder().transfer(scene.signer.address(), tokens(5)).await.unwrap();
    chain.set_mining(Mining::Manual);
    let waits = scene.channel.top_up(tokens(2), None, &account);
    tokio::select! {
        ended = waits => panic!("without a block: {ended:?}"),
        () = eventually("the transaction waits", async || {
            let nonces = chain.nonces(scene.signer.address()).await.unwrap();
            nonces.pending > nonces.mined
        }) => {}
    }
    assert_eq!((scene.channel.sums().deposit, scene.channel.unfinished_top_up()), (tokens(1), Some(tokens(2))));
    chain.set_mining(Mining::Auto);
    chain.mine();
    let (deposit, _) = scene.channel.top_up(tokens(2), None, &account).await.unwrap();
    assert_eq!((deposit, scene.channel.sums().deposit, scene.channel.unfinished_top_up()), (tokens(3), tokens(3), None));
    assert_eq!(account.balance(scene.signer.address()).await.unwrap(), tokens(3), "it was paid once");
    // Another one is another one.
    let (deposit, _) = scene.channel.top_up(tokens(2), None, &account).await.unwrap();
    assert_eq!(deposit, tokens(5));

    let earlier = scene.channel.top_up(Amount::ZERO, Some(Duration::from_hours(24)), &account).await.unwrap_err();
    assert!(earlier.to_string().contains("ends later already"), "{earlier}");
    // One that was made elsewhere, and the end, are seen on the chain.
    account.fund_channel(scene.channel.terms(), tokens(6), scene.channel.sums().expiry).await.unwrap();
    scene.channel.reconcile(&account.channel(scene.id()).await.unwrap().unwrap()).unwrap();
    assert_eq!(scene.channel.sums().available(), tokens(6));
    scene.channel.close(&account, Some(&*scene.transport)).await.unwrap();
    assert!(scene.channel.sums().closed && scene.channel.sums().available().is_zero());
    let refused = scene.client().await.infer("digits", image(7)).await.unwrap_err();
    assert!(refused.to_string().contains("is closed: open another") && !refused.is_paid(), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_chain_pays_by_its_signature() {
    let network = network().start().await.unwrap();
    let signer = key();
    network.funder().transfer(signer.address(), tokens(1)).await.unwrap();
    let transport = Arc::new(GrpcTransport::new(&network.gateway_url()).unwrap());
    let trust = transport.network().await.unwrap().trust_root;
    let ledger = Arc::new(RelayedPayer::new(transport.clone(), trust.clone(), signer.clone()));
    let client = Client::builder().transport(transport).payer(ledger).signer(signer.clone()).max_price(tokens(1)).build().unwrap();
    let answer = client.infer("digits", image(7)).await.unwrap();
    assert_eq!(answer.output.text("label"), Some("7"));
    let Payment::Escrow { transaction, .. } = answer.receipt.payment else { panic!("paid by an escrow") };
    assert_ne!(transaction, answer.receipt.quote.struct_hash());
    let left = network.funder().balance(signer.address()).await.unwrap();
    assert_eq!(tokens(1).checked_sub(left), Some(answer.receipt.payments.total));

    // Without tokens the gateway's chain refuses, before anything is spent.
    let poor = key();
    let transport = Arc::new(GrpcTransport::new(&network.gateway_url()).unwrap());
    let ledger = Arc::new(RelayedPayer::new(transport.clone(), trust, poor.clone()));
    let client = Client::builder().transport(transport).payer(ledger).signer(poor).max_price(tokens(1)).build().unwrap();
    let refused = client.infer("digits", image(7)).await.unwrap_err();
    assert!(refused.to_string().contains("fund it first"), "{refused}");
    assert!(refused.is_paid(), "the gateway has the signature, and could use it until the quote expires: {refused}");
}

/// Prints what checking and keeping a voucher takes. Run it with `cargo xtask bench money`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: cargo xtask bench money"]
async fn latency() {
    const COUNT: usize = 4_000;
    let chain = Chain::new(5).await;
    let (client, gateway) = (key(), key());
    let epoch = chain.epoch().await;
    let trust = epoch.trust.clone();
    let terms = ChannelParams { client: client.address(), gateway: gateway.address(), salt: B256::random() };
    let expiry = unix_now() + WEEK;
    chain.account(client.clone(), tokens(1)).await;
    chain.ledger(client.clone()).fund_channel(&terms, tokens(1), expiry).await.unwrap();
    let channel = PayerChannel::new(terms, tokens(1), expiry);
    let mut vouchers = Vec::new();
    for _ in 0..COUNT {
        let parties = [client.address(), gateway.address(), gateway.address()];
        let quote = flat_quote(&epoch, B256::random(), parties, Amount::new(1), unix_now() + 3_600);
        let payment = channel.pay(&quote, &trust, &client).await.unwrap();
        vouchers.push((quote, payment));
    }
    let files = tempfile::tempdir().unwrap();
    let registry = Arc::new(MemoryRegistry::new(trust.clone(), Vec::new(), Arc::new(unix_now)));
    let settle = BatchPolicy { max_requests: usize::MAX, ..BatchPolicy::default() };
    let path = files.path().join("gateway.redb");
    let ledger = ChannelProcessor::open(chain.ledger(gateway.clone()), registry, gateway, &path, settle).unwrap();

    let print = |what: &str, mut took: Vec<Duration>| {
        took.sort_unstable();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1_000.0;
        println!("{what:<44} p50 {:>7.3} ms   p99 {:>7.3} ms", at(50), at(99));
        at(50)
    };
    let timed = |(quote, payment): &(Quote, SignedVoucher)| {
        let started = Instant::now();
        payment.verify(quote, &trust).unwrap();
        started.elapsed()
    };
    let check = print("check (signature, terms, sums)", vouchers.iter().map(timed).collect());
    let (one, many) = vouchers.split_at(COUNT / 4);
    let mut took = Vec::new();
    for (quote, payment) in one {
        let started = Instant::now();
        ledger.redeem(quote, &PaymentAuthorization::Voucher(*payment)).await.unwrap();
        took.push(started.elapsed());
    }
    print("check and keep on disk, one at a time", took);
    let started = Instant::now();
    let accepted = stream::iter(many).map(|(quote, payment)| {
        let ledger = ledger.clone();
        async move {
            let started = Instant::now();
            ledger.redeem(quote, &PaymentAuthorization::Voucher(*payment)).await.unwrap();
            started.elapsed()
        }
    });
    let took: Vec<_> = accepted.buffer_unordered(64).collect().await;
    let rate = f64::from(u32::try_from(many.len()).unwrap()) / started.elapsed().as_secs_f64();
    print("check and keep on disk, 64 at a time", took);
    println!("{:<44} {rate:>11.0} vouchers a second", "64 at a time");
    assert!(check < 0.2, "a voucher's check takes more than 0.2 ms: {check}");
}
