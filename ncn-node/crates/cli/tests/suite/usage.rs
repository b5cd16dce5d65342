//! What a request costs by what it took, and what is paid for one that ends early.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use ncn_client::{Client, ClientError, InferenceEvent, InferenceOutput, Order, Paid, PayerChannel, Payment, unix_now};
use ncn_core::{Amount, B256, ChainView as _, ChannelParams, DynSigner, FinishReason, Units, Value};
use ncn_devnet::{LocalNetwork, LocalNetworkBuilder, quickstart};
use ncn_node::gateway::GatewayOptions;
use serde_json::json;

use crate::{
    harmful::changed,
    scene::{key, tokens},
    streams::Words,
};

/// For a request, a row in, and a word out.
const BASE: u128 = 1_000_000;
const INPUT: u128 = 20_000;
const WORD: u128 = 300;
/// As many words as are ever asked for, and what they cost together.
const MOST: u64 = 200;
const MAXIMUM: Amount = Amount::new(BASE + INPUT + WORD * MOST as u128);

fn cost(words: u64) -> Amount {
    Amount::new(BASE + INPUT + WORD * u128::from(words))
}

/// A network whose model says words, at a price for each.
async fn network(words: &Words, deadline_ms: u64, with: impl FnOnce(LocalNetworkBuilder) -> LocalNetworkBuilder) -> LocalNetwork {
    let directory = tempfile::tempdir().unwrap();
    let package = changed(directory.path(), |manifest| {
        manifest["outputs"] = json!([{ "type": "text", "name": "text" }]);
        (manifest["limits"]["deadline_ms"], manifest["limits"]["max_output_units"]) = (deadline_ms.into(), MOST.into());
        manifest["price"] = json!({
            "base": BASE.to_string(),
            "input": { "unit": "row", "price": INPUT.to_string() },
            "output": { "unit": "row", "price": WORD.to_string() },
        });
    });
    let builder = LocalNetwork::builder().executor(Arc::new(words.clone())).models(vec![package]);
    with(builder).start().await.unwrap()
}

struct Scene {
    network: LocalNetwork,
    signer: DynSigner,
    client: Client,
}

impl Scene {
    async fn new(words: &Words, deadline_ms: u64) -> Self {
        Self::with(words, deadline_ms, |builder| builder).await
    }

    async fn with(words: &Words, deadline_ms: u64, with: impl FnOnce(LocalNetworkBuilder) -> LocalNetworkBuilder) -> Self {
        let network = network(words, deadline_ms, with).await;
        let signer = key();
        network.funder().transfer(signer.address(), tokens(1)).await.unwrap();
        let payment = Payment::OnChain(network.ledger(signer.clone()));
        let client = Client::builder().gateway(network.gateway_url()).payment(payment).build().unwrap();
        Self { network, signer, client }
    }

    async fn paid(&self) -> Paid {
        self.client.submit(order()).await.unwrap().pay().await.unwrap()
    }

    async fn spent(&self) -> Amount {
        let left = self.network.funder().balance(self.signer.address()).await.unwrap();
        tokens(1).checked_sub(left).unwrap()
    }
}

fn order() -> Order {
    Order::new(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))])
}

/// Follows a request until so many words have come, does this, and follows it to its end.
async fn follow(paid: Paid, words: usize, then: impl AsyncFnOnce(&Paid)) -> Result<InferenceOutput, ClientError> {
    let mut events = paid.clone().events();
    let (mut seen, mut then) = (0, Some(then));
    loop {
        match events.next().await.unwrap() {
            Ok(InferenceEvent::Part(_)) => {
                seen += 1;
                if seen >= words
                    && let Some(then) = then.take()
                {
                    then(&paid).await;
                }
            }
            Ok(InferenceEvent::Finished(answer)) => return Ok(*answer),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The answer is the words so far, and costs what they do, to the unit.
async fn is_paid_in_part(scene: &Scene, answer: &InferenceOutput, finish: FinishReason) -> u64 {
    let words = answer.output.text("text").unwrap().split_whitespace().count() as u64;
    assert_eq!(answer.finish(), finish);
    assert!(!answer.finish().is_whole());
    assert_eq!(answer.usage().units(), Units { input: 1, output: words });
    assert_eq!(answer.cost(), cost(words));
    assert_eq!(answer.receipt.payments.total, cost(words));
    assert_eq!(scene.spent().await, cost(words), "the rest of the escrow is back");
    let result = &answer.receipt.delivery.results[0].message;
    assert_eq!(result.parts, words, "the node has signed these words and no others");
    words
}

#[tokio::test]
async fn a_request_costs_what_it_took() {
    let scene = Scene::new(&Words::new(7, Duration::ZERO), 5_000).await;
    let before = scene.client.estimate(&order()).await.unwrap();
    assert_eq!((before.maximum, before.typical), (MAXIMUM, MAXIMUM), "nothing was served yet");
    assert_eq!(before.max_units, Units { input: 1, output: MOST });

    let quoted = scene.client.submit(order()).await.unwrap();
    assert_eq!((quoted.quote().total, quoted.quote().price), (MAXIMUM, before.price));
    let answer = quoted.pay().await.unwrap().finish().await.unwrap();
    assert_eq!((answer.cost(), answer.finish()), (cost(7), FinishReason::Stop));
    assert_eq!(answer.usage().units(), Units { input: 1, output: 7 });
    assert_eq!(scene.spent().await, cost(7), "the rest of the escrow is back");
    let paid = &answer.receipt.completion.contributions[0];
    let earned = scene.network.funder().balance(paid.compute).await.unwrap();
    assert!(paid.cost == cost(7) && earned.units() > cost(7).units() / 100 * 79, "{earned}");

    let after = scene.client.estimate(&order()).await.unwrap();
    assert_eq!((after.maximum, after.typical), (MAXIMUM, cost(7)));
    // The limit is held against what the request can cost.
    let refused = scene.client.submit(order().max_price(Amount::new(MAXIMUM.units() - 1))).await.map(drop);
    assert!(matches!(refused, Err(ClientError::TooExpensive { price: MAXIMUM, .. })), "{refused:?}");
}

#[tokio::test]
async fn a_channel_is_charged_what_requests_took() {
    let scene = Scene::new(&Words::new(7, Duration::ZERO), 5_000).await;
    let terms = ChannelParams { client: scene.signer.address(), gateway: scene.network.gateway_address(), salt: B256::random() };
    // Enough for the most that one request can cost, and a little: three are served, one after the other.
    let (deposit, expiry) = (Amount::new(MAXIMUM.units() + 2 * cost(7).units()), unix_now() + 7 * 24 * 3_600);
    scene.network.ledger(scene.signer.clone()).fund_channel(&terms, deposit, expiry).await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("channel.json");
    drop(PayerChannel::create(&path, terms, deposit, expiry).unwrap());
    let trust = scene.network.trust_root().await.unwrap();
    let client = Client::builder().gateway(scene.network.gateway_url()).payment(Payment::Channel(path.clone()));
    let client = client.trust(trust).signer(scene.signer.clone()).max_price(tokens(1)).build().unwrap();
    let mut cumulative = Vec::new();
    for served in 1..=3 {
        let answer = client.submit(order()).await.unwrap().pay().await.unwrap().finish().await.unwrap();
        assert_eq!(answer.cost(), cost(7));
        let ncn_core::receipt::Payment::Channel(voucher) = &answer.receipt.payment else { panic!("paid by a voucher") };
        assert_eq!(voucher.voucher.amount, MAXIMUM, "a maximum");
        cumulative.push(voucher.voucher.cumulative);
        assert_eq!(voucher.voucher.cumulative.units(), MAXIMUM.units() + (served - 1) * cost(7).units());
    }
    assert!(client.submit(order()).await.unwrap().pay().await.is_err(), "the deposit does not bear another maximum");
    scene.network.channels().flush();
    crate::wait::eventually("the batch is settled", async || scene.network.channels().unsettled() == 0).await;
    let charged = scene.network.funder().channel(terms.id()).await.unwrap().unwrap().settled;
    assert_eq!(charged, Amount::new(3 * cost(7).units()), "what they cost, and no maximum");
}

#[tokio::test]
async fn a_request_that_is_cancelled_costs_what_was_delivered() {
    let words = Words::new(1_000, Duration::from_millis(50));
    let scene = Scene::new(&words, 60_000).await;
    let answer = follow(scene.paid().await, 3, async |paid: &Paid| paid.cancel().await.unwrap()).await.unwrap();
    let delivered = is_paid_in_part(&scene, &answer, FinishReason::Cancelled).await;
    assert!((3..MOST).contains(&delivered), "{delivered}");
    let said = words.said.lock().unwrap().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(words.said.lock().unwrap().len() <= said + 1, "the node has stopped");
}

#[tokio::test]
async fn a_request_that_is_cancelled_before_anything_came_costs_nothing() {
    let scene = Scene::new(&Words::new(10, Duration::from_secs(30)), 60_000).await;
    let paid = scene.paid().await;
    let stop = paid.clone();
    let (ended, stopped) = tokio::join!(paid.finish(), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.cancel().await
    });
    stopped.unwrap();
    assert!(matches!(ended, Err(ClientError::Refunded { .. })), "{ended:?}");
    assert_eq!(scene.spent().await, Amount::ZERO);
}

/// Waits until all runs are over, and their gateway has paid for what was delivered.
async fn is_cancelled(scene: &Scene, words: &Words) {
    ncn_client::cancellations().await;
    crate::wait::eventually("the node is idle", async || !words.over.lock().unwrap().is_empty()).await;
    let said = words.said.lock().unwrap().len() as u64;
    crate::wait::eventually("the rest is back", async || scene.spent().await < MAXIMUM).await;
    let spent = scene.spent().await;
    assert!((0..=said).any(|words| spent == cost(words)) || spent.is_zero(), "{spent} for {said} words");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_dropped_is_cancelled() {
    let words = Words::new(1_000, Duration::from_millis(50));
    let scene = Scene::new(&words, 60_000).await;
    let mut events = scene.client.submit(order()).await.unwrap().events().await.unwrap();
    for _ in 0..3 {
        assert!(matches!(events.next().await, Some(Ok(InferenceEvent::Part(_)))));
    }
    drop(events);
    is_cancelled(&scene, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_waited_for_any_more_is_cancelled() {
    let words = Words::new(1_000, Duration::from_millis(50));
    let scene = Scene::new(&words, 60_000).await;
    let answer = tokio::spawn(scene.client.submit(order()).await.unwrap().finish());
    crate::wait::eventually("it runs", async || words.said.lock().unwrap().len() > 2).await;
    answer.abort();
    is_cancelled(&scene, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_has_back_what_a_dropped_request_did_not_cost() {
    let words = Words::new(1_000, Duration::from_millis(50));
    let scene = Scene::new(&words, 60_000).await;
    let terms = ChannelParams { client: scene.signer.address(), gateway: scene.network.gateway_address(), salt: B256::random() };
    let expiry = unix_now() + 7 * 24 * 3_600;
    scene.network.ledger(scene.signer.clone()).fund_channel(&terms, MAXIMUM, expiry).await.unwrap();
    let channel = Arc::new(PayerChannel::new(terms, MAXIMUM, expiry));
    let trust = scene.network.trust_root().await.unwrap();
    let payer = ncn_client::ChannelPayer::new(scene.network.gateway(), trust, scene.signer.clone(), channel.clone());
    let client = Client::builder().gateway(scene.network.gateway_url()).payer(Arc::new(payer)).signer(scene.signer.clone());
    let mut events = client.build().unwrap().submit(order()).await.unwrap().events().await.unwrap();
    assert!(matches!(events.next().await, Some(Ok(InferenceEvent::Part(_)))));
    assert_eq!(channel.sums().available(), Amount::ZERO);
    drop(events);
    crate::wait::eventually("nothing is reserved", async || channel.sums().reserved.is_zero()).await;
    let said = words.said.lock().unwrap().len() as u64;
    assert!((1..=said).any(|words| channel.sums().spent == cost(words)), "{:?} for {said} words", channel.sums());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_resumable_goes_on() {
    let words = Words::new(20, Duration::from_millis(20));
    let scene = Scene::new(&words, 60_000).await;
    let mut events = scene.client.submit(order()).await.unwrap().events().await.unwrap().resumable();
    assert!(matches!(events.next().await, Some(Ok(InferenceEvent::Part(_)))));
    let stored = events.paid().stored();
    drop(events);
    let answer = scene.client.resume(stored).await.unwrap().finish().await.unwrap();
    assert_eq!((answer.cost(), answer.finish()), (cost(20), FinishReason::Stop));
}

#[tokio::test]
async fn a_model_that_runs_out_of_time_is_paid_for_what_it_gave() {
    let scene = Scene::new(&Words::new(1_000, Duration::from_millis(50)), 1_500).await;
    let answer = scene.paid().await.finish().await.unwrap();
    let delivered = is_paid_in_part(&scene, &answer, FinishReason::Deadline).await;
    assert!((1..=30).contains(&delivered), "{delivered}");
}

#[tokio::test]
async fn when_the_last_node_is_lost_what_it_gave_is_paid_for() {
    let mut scene = Scene::new(&Words::new(1_000, Duration::from_millis(50)), 60_000).await;
    let paid = scene.paid().await;
    let following = tokio::spawn(follow(paid.clone(), usize::MAX, async |_: &Paid| {}));
    // A node signs every quarter of a second.
    let gateway = scene.network.gateway();
    let access = ncn_core::TaskCapability {
        client: scene.signer.address(),
        request_id: paid.request_id(),
        scope: ncn_core::CapabilityScope::Follow,
    };
    let domain = scene.network.trust_root().await.unwrap().domain;
    let access = ncn_core::Signed::sign(access, &domain, &*scene.signer).await.unwrap();
    let mut updates = gateway.updates(access, 0).await.unwrap();
    let mut signed = 0;
    while signed < 2 {
        let update = updates.next().await.unwrap().unwrap();
        signed += usize::from(matches!(update.event, ncn_core::TaskEvent::Checkpoint(_)));
    }
    for node in scene.network.compute_addresses() {
        scene.network.crash_compute(node);
    }
    let answer = following.await.unwrap().unwrap();
    is_paid_in_part(&scene, &answer, FinishReason::NodeLost).await;
}

#[tokio::test]
async fn a_deadline_that_the_model_makes_hopeless_is_refused_before_payment() {
    let options = GatewayOptions {
        pay_time: Duration::from_secs(1),
        settle_time: Duration::from_secs(1),
        finish_margin: Duration::from_secs(1),
        ..GatewayOptions::default()
    };
    let with = |builder: LocalNetworkBuilder| builder.gateway(move |gateway| gateway.options(options));
    let scene = Scene::with(&Words::new(1, Duration::ZERO), 90_000, with).await;
    let least = Duration::from_secs(93);
    assert_eq!(scene.client.model(quickstart::NAME).await.unwrap().least_timeout, least);
    let short = Duration::from_mins(1);
    let refused = scene.client.submit(order().timeout(short)).await.map(drop);
    assert_eq!(refused, Err(ClientError::TimeoutTooShort { timeout: short, least }));
    // A client that does not look is refused by the gateway, with the least that it takes.
    let saying = async |least_timeout| {
        let info = ncn_core::ModelInfo { least_timeout, ..scene.client.model(quickstart::NAME).await.unwrap() };
        let transport = Arc::new(crate::tamper::Tampered(Hasty { gateway: scene.network.gateway(), info }));
        let payment = Payment::OnChain(scene.network.ledger(scene.signer.clone()));
        Client::builder().transport(transport).payment(payment).build().unwrap()
    };
    let hasty = saying(Duration::ZERO).await;
    let refused = hasty.submit(order().timeout(short)).await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("request.deadline") && refused.contains("allow 93 s at least"), "{refused}");
    // A gateway that says that a day is needed has no payment held for one.
    let day = Duration::from_hours(24);
    let refused = saying(day).await.submit(order()).await.map(drop);
    assert!(matches!(refused, Err(ClientError::TimeoutTooShort { least, .. }) if least == day), "{refused:?}");
    // By default the client waits as long as the model may need.
    let answer = scene.paid().await.finish().await.unwrap();
    let wait = answer.receipt.quote.expiry - answer.receipt.issued_at;
    assert!((85..=96).contains(&wait), "{wait}");
}

/// A gateway whose list says that any deadline is taken.
struct Hasty {
    gateway: Arc<dyn ncn_core::Transport>,
    info: ncn_core::ModelInfo,
}

#[async_trait::async_trait]
impl crate::tamper::Tamper for Hasty {
    fn inner(&self) -> &dyn ncn_core::Transport {
        &*self.gateway
    }

    async fn models(&self) -> Result<Vec<ncn_core::ModelInfo>, ncn_core::TransportError> {
        Ok(vec![self.info.clone()])
    }
}
