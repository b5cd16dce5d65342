//! A receipt proves what it says, and nothing else passes for it.

use std::time::Duration;

use ncn_core::receipt::Payment;
use ncn_core::trust::draw_of;
use ncn_core::{
    Amount, Approval, B256, ChannelParams, Completion, Confinement, Continuation, Contribution, DataType, Delivery, DynSigner,
    FeeSplit, FinishReason, InferenceRequest, InferenceResult, Message as _, Model, ModelInfo, NetworkInfo, Outcome, OutputChunk,
    PayeeRole, PaymentAuthorization, PaymentConfirmation, PaymentKind, PaymentSubmission, PayoutSchedule, Price, QuorumCertificate,
    Quote, Receipt, ReceiptError, Signature, Signed, SignedVoucher, State, Step, StepTiming, StreamChain, Submission, TaskEvent,
    TaskStatus, Tensor, TrustRoot, Unit, UnitPrice, Units, Update, Usage, Values, Voucher, receipt,
};
use serde_json::Value;

use crate::scene::{NOW, Scene, key};

/// The gateway's part in every draw.
const SALT: B256 = B256::repeat_byte(9);

async fn certificate(scene: &Scene, request_id: B256, digest: B256) -> QuorumCertificate {
    let committee = scene.trust.committee(&SALT, &request_id).members;
    let mut approvals = Vec::new();
    for validator in scene.validators.iter().filter(|validator| committee.contains(&validator.address())).take(3) {
        approvals.push(Approval::sign(&digest, &**validator).await.unwrap());
    }
    QuorumCertificate::new(approvals)
}

async fn receipt(scene: &Scene) -> Receipt {
    paid(scene, PaymentKind::Escrow).await
}

async fn paid(scene: &Scene, kind: PaymentKind) -> Receipt {
    served(scene, kind, &[(9, Some(FinishReason::Stop))]).await
}

/// Nodes that served a request: each with so many units of output, and with the reason to end that it signed.
pub(crate) type Nodes<'a> = &'a [(u64, Option<FinishReason>)];

/// What is not true in a receipt that everyone has signed all the same.
#[derive(Clone, Copy)]
pub(crate) enum Lie {
    None,
    Order(fn(&mut InferenceRequest)),
    Quote(fn(&mut Quote)),
    Delivery(fn(&mut Vec<InferenceResult>, &mut FinishReason)),
    Completion(fn(&mut Completion)),
    Voucher(fn(&mut Voucher)),
    Receipt(fn(&mut Receipt)),
}

/// A request that these nodes served.
pub(crate) async fn served(scene: &Scene, kind: PaymentKind, nodes: Nodes<'_>) -> Receipt {
    forged(scene, kind, nodes, Lie::None).await
}

/// What validators would approve who check nothing.
fn unchecked(delivery: &Delivery, quote: &Quote) -> Completion {
    let contribution = |result: &Signed<InferenceResult>| Contribution {
        compute: result.message.compute,
        result: result.message.struct_hash(),
        cost: Amount::new(610_003),
    };
    Completion {
        request_id: quote.request_id,
        quote: quote.struct_hash(),
        finish: delivery.finish,
        contributions: delivery.results.iter().map(contribution).collect(),
    }
}

/// What these nodes have to sign, with their keys, the first of which is given.
fn unsigned(
    order: &InferenceRequest,
    request_id: B256,
    nodes: Nodes<'_>,
    mut node: DynSigner,
) -> (Vec<InferenceResult>, Vec<DynSigner>) {
    let (mut unsigned, mut keys, mut chain) = (Vec::new(), Vec::new(), StreamChain::new(request_id));
    let mut output = Values::new();
    for (units, finish) in nodes {
        let resumed_from = if unsigned.is_empty() { B256::ZERO } else { chain.hash() };
        for _ in 0..*units {
            let part = Values::from([("label", "7")]);
            chain.extend(&part);
            output.append(part);
        }
        let result = InferenceResult {
            request_id,
            compute: node.address(),
            model_digest: order.model_digest,
            input_hash: order.input_hash,
            output_hash: output.hash(),
            output_bytes: output.content_bytes(),
            parts: chain.parts(),
            chain: chain.hash(),
            resumed_from,
            continuation: (!resumed_from.is_zero()).then_some(Continuation::Context),
            usage: Usage { input_units: 3, output_units: *units, duration_micros: 250 },
            confinement: Confinement::Reduced,
            finish: *finish,
        };
        unsigned.push(result);
        keys.push(std::mem::replace(&mut node, key()));
    }
    (unsigned, keys)
}

/// The same with a lie.
pub(crate) async fn forged(scene: &Scene, kind: PaymentKind, nodes: Nodes<'_>, lie: Lie) -> Receipt {
    let (client, gateway, compute) = (key(), key(), key());
    let domain = scene.trust.domain;
    let unit = |unit, price| UnitPrice { unit, price: Amount::new(price) };
    let price = Price { base: Amount::new(500_003), input: unit(Unit::Token, 30_000), output: unit(Unit::Token, 20_000) };
    let max_units = Units { input: 4, output: 40 };
    let mut order = InferenceRequest {
        client: client.address(),
        subnet: [1; 32].into(),
        model_digest: [2; 32].into(),
        input_hash: [3; 32].into(),
        parameters: r#"{"seed":7}"#.into(),
        max_price: Amount::new(2_000_000),
        deadline: NOW + 60,
        nonce: [4; 32].into(),
        draw: draw_of(&SALT),
    };
    if let Lie::Order(lie) = lie {
        lie(&mut order);
    }
    let request = Signed::sign(order.clone(), &domain, &*client).await.unwrap();
    let request_id = order.digest(&domain);
    let mut quote = Quote {
        request_id,
        client: client.address(),
        gateway: gateway.address(),
        compute: compute.address(),
        model_digest: order.model_digest,
        price,
        max_units,
        total: price.cost(max_units).unwrap(),
        split: FeeSplit::default(),
        expiry: NOW + 60,
        trust_root: scene.trust.hash(),
        epoch: NOW - 100,
        salt: SALT,
        committee: scene.trust.committee(&SALT, &request_id).struct_hash(),
    };
    if let Lie::Quote(lie) = lie {
        lie(&mut quote);
    }
    let (mut unsigned, keys) = unsigned(&order, request_id, nodes, compute);
    let mut finish = nodes.last().and_then(|(_, finish)| *finish).unwrap_or(FinishReason::NodeLost);
    if let Lie::Delivery(lie) = lie {
        lie(&mut unsigned, &mut finish);
    }
    let mut results = Vec::new();
    for result in unsigned {
        let key = keys.iter().find(|key| key.address() == result.compute).unwrap();
        results.push(Signed::sign(result, &domain, &**key).await.unwrap());
    }
    let delivery = Delivery { results, finish };
    let mut completion = match lie {
        Lie::None => delivery.completion(&quote).unwrap(),
        _ => delivery.completion(&quote).unwrap_or_else(|_| unchecked(&delivery, &quote)),
    };
    if let Lie::Completion(lie) = lie {
        lie(&mut completion);
    }
    let approvals = certificate(scene, request_id, completion.digest(&domain)).await;
    let terms = ChannelParams { client: client.address(), gateway: gateway.address(), salt: [8; 32].into() };
    let mut voucher = Voucher::new(&terms, &quote, 11, Amount::new(5_000_000));
    if let Lie::Voucher(lie) = lie {
        lie(&mut voucher);
    }
    let signature = Signature::sign(&voucher.digest(&scene.trust.channel_domain()), &*client).await.unwrap();
    let voucher = SignedVoucher { terms, voucher, signature };
    let payments = PayoutSchedule::new(&quote, &completion, &approvals.validators(), scene.trust.treasury);
    let mut receipt = Receipt {
        seal: request.signature,
        version: receipt::VERSION,
        trust_root: scene.trust.clone(),
        preprocessing: certificate(scene, request_id, quote.digest(&domain)).await,
        payments: payments.unwrap_or_else(|_| PayoutSchedule { total: completion.cost(), payouts: Vec::new() }),
        request,
        quote,
        payment: match kind {
            PaymentKind::Escrow => Payment::Escrow { transaction: [5; 32].into(), settlement: [6; 32].into() },
            PaymentKind::Channel => Payment::Channel(Box::new(voucher)),
        },
        delivery,
        completion,
        approvals,
        issued_at: NOW,
    };
    if let Lie::Receipt(lie) = lie {
        lie(&mut receipt);
    }
    receipt.seal = Signature::sign(&receipt.sealed().digest(&domain), &*gateway).await.unwrap();
    receipt
}

/// Every way to be served: to the end, in part, and by several nodes.
pub(crate) const SERVED: [Nodes<'static>; 4] = [
    &[(9, Some(FinishReason::Stop))],
    &[(5, Some(FinishReason::Cancelled))],
    &[(7, None)],
    &[(4, None), (6, Some(FinishReason::Length))],
];

#[tokio::test]
async fn a_receipt_says_what_was_delivered_and_what_it_cost() {
    let scene = Scene::new();
    let mut costs = Vec::new();
    for nodes in SERVED {
        let receipt = served(&scene, PaymentKind::Escrow, nodes).await;
        receipt.verify(&scene.trust).unwrap();
        let output: u64 = nodes.iter().map(|(units, _)| units).sum();
        assert_eq!(receipt.usage().units(), Units { input: 3, output }, "the second node's input is not paid for again");
        assert_eq!(receipt.cost(), Amount::new(500_003 + 3 * 30_000 + u128::from(output) * 20_000));
        assert_eq!(receipt.payments.total, receipt.cost());
        let paid = receipt.payments.payouts.iter().filter(|payout| payout.role == PayeeRole::Compute).count();
        assert_eq!(paid, nodes.len(), "each node is paid for its part");
        costs.push(receipt.cost());
    }
    assert_eq!(costs[0].checked_sub(costs[1]), Some(Amount::new(4 * 20_000)), "what was not delivered is not paid for");
}

#[tokio::test]
async fn a_good_receipt_verifies_here_and_nowhere_else() {
    let (scene, elsewhere) = (Scene::new(), Scene::new());
    let receipt = receipt(&scene).await;
    receipt.verify(&scene.trust).unwrap();
    assert!(matches!(receipt.verify(&elsewhere.trust), Err(ReceiptError::UntrustedRoot { .. })));
    assert!(receipt.matches_output(&Values::from([("label", "777777777")])));
    assert!(!receipt.matches_output(&Values::from([("label", "777777771")])));
    let json = receipt.to_json();
    assert_eq!(Receipt::from_json(json.as_bytes()).unwrap(), receipt);
    let digit = json.find("0xcc").unwrap() + 2;
    for other in [json[..digit].to_owned() + "CC" + &json[digit + 2..], json.replacen("0x", "", 1)] {
        assert!(matches!(Receipt::from_json(other.as_bytes()), Err(ReceiptError::Format(_))), "another spelling of the same");
    }
}

/// Every way to change one place of a JSON document: another value in a leaf; a leaf, entry or field gone; an entry twice; two
/// entries swapped; a field more.
pub(crate) fn changes(value: &Value) -> Vec<Value> {
    match value {
        Value::Object(fields) => {
            let mut all = Vec::new();
            for (name, field) in fields {
                for changed in changes(field) {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), changed);
                    all.push(fields.into());
                }
                let mut fewer = fields.clone();
                fewer.remove(name);
                all.push(fewer.into());
            }
            let mut more = fields.clone();
            more.insert("extra".into(), 1.into());
            all.push(more.into());
            all
        }
        Value::Array(entries) => {
            let mut all = Vec::new();
            for (index, entry) in entries.iter().enumerate() {
                for changed in changes(entry) {
                    let mut entries = entries.clone();
                    entries[index] = changed;
                    all.push(entries.into());
                }
                let (mut fewer, mut more) = (entries.clone(), entries.clone());
                fewer.remove(index);
                more.insert(index, entry.clone());
                all.extend([fewer.into(), more.into()]);
                if index > 0 {
                    let mut swapped = entries.clone();
                    swapped.swap(index, index - 1);
                    all.push(swapped.into());
                }
            }
            all
        }
        // Each character in turn becomes another digit: hashes, addresses, signatures and amounts all consist of digits.
        Value::String(text) => (0..text.len())
            .map(|at| {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
                String::from_utf8(bytes).unwrap().into()
            })
            .collect(),
        Value::Number(number) => {
            let number = number.as_u64().unwrap();
            vec![(number + 1).into(), number.wrapping_sub(1).into(), 0.into()]
        }
        Value::Bool(_) | Value::Null => vec![1.into()],
    }
}

#[tokio::test]
async fn no_single_change_passes() {
    let scene = Scene::new();
    let kinds = [
        (PaymentKind::Escrow, &[(9, Some(FinishReason::Stop))][..]),
        (PaymentKind::Channel, &[(4, None), (6, Some(FinishReason::Length))]),
    ];
    for (kind, nodes) in kinds {
        let receipt = served(&scene, kind, nodes).await;
        receipt.verify(&scene.trust).unwrap();
        let good: Value = serde_json::from_str(&receipt.to_json()).unwrap();
        let changes = changes(&good);
        assert!(changes.len() > 2_000, "{}", changes.len());
        let mut judged = 0;
        for changed in changes {
            if changed == good {
                continue;
            }
            let Ok(receipt) = Receipt::from_json(changed.to_string().as_bytes()) else { continue };
            judged += 1;
            assert!(receipt.verify_self_consistent().is_err(), "passed: {changed:#}");
        }
        assert!(judged > 1_000, "most changes can be read, and are judged by what they say: {judged}");
    }
}

#[tokio::test]
async fn one_kind_of_payment_does_not_pass_for_another() {
    let scene = Scene::new();
    let by_voucher = paid(&scene, PaymentKind::Channel).await;
    let transaction = by_voucher.payment.reference(&scene.trust);
    for settlement in [B256::ZERO, [6; 32].into()] {
        let rewritten = Receipt { payment: Payment::Escrow { transaction, settlement }, ..by_voucher.clone() };
        assert!(rewritten.verify(&scene.trust).is_err(), "a voucher's digest is no transaction");
        assert_ne!(rewritten.sealed(), by_voucher.sealed(), "the seal alone tells them apart");
    }
    let Payment::Channel(voucher) = &by_voucher.payment else { panic!("paid by a voucher") };
    let rewritten = Receipt { payment: Payment::Channel(voucher.clone()), ..receipt(&scene).await };
    assert!(rewritten.verify(&scene.trust).is_err(), "another request's voucher");
}

#[tokio::test]
async fn no_transaction_is_zero() {
    let (scene, gateway) = (Scene::new(), key());
    for (transaction, settlement) in [(B256::ZERO, [6; 32].into()), ([5; 32].into(), B256::ZERO)] {
        // Sealed so by the gateway itself.
        let mut receipt = receipt(&scene).await;
        receipt.payment = Payment::Escrow { transaction, settlement };
        receipt.seal = Signature::sign(&receipt.sealed().digest(&scene.trust.domain), &*gateway).await.unwrap();
        let refused = receipt.verify(&scene.trust);
        assert!(refused == Err(ReceiptError::NoTransaction), "{refused:?}");
    }
}

#[tokio::test]
async fn a_certificate_needs_the_committee() {
    let scene = Scene::new();
    let mut receipt = receipt(&scene).await;
    let trust: &TrustRoot = &scene.trust;
    let digest = receipt.quote.digest(&trust.domain);
    let committee = receipt.quote.committee_of(trust).unwrap();
    let mut approvals = Vec::new();
    for outsider in scene.validators.iter().filter(|validator| !committee.members.contains(&validator.address())) {
        approvals.push(Approval::sign(&digest, &**outsider).await.unwrap());
    }
    approvals.extend(receipt.preprocessing.approvals().iter().skip(1));
    receipt.preprocessing = QuorumCertificate::new(approvals);
    let error = receipt.preprocessing.verify(&digest, &committee).unwrap_err();
    assert!(error.to_string().contains("committee"), "{error}");
}

/// Every type of a client's port can be written as JSON and read again.
#[tokio::test]
async fn what_crosses_a_wire_has_a_form_in_json() {
    fn passes<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) -> Value {
        let json = serde_json::to_value(value).unwrap();
        assert_eq!(serde_json::from_value::<T>(json.clone()).unwrap(), *value, "{json}");
        json
    }
    let scene = Scene::new();
    let receipt = paid(&scene, PaymentKind::Channel).await;
    let tensor = Tensor::new(DataType::U8, vec![2], vec![1, 2]).unwrap();
    let inputs = Values::from([("image", ncn_core::Value::png(vec![0xff; 3])), ("a", tensor.into()), ("text", "7".into())]);
    let json = passes(&Submission { request: receipt.request.clone(), inputs: inputs.clone(), ticket: [7; 32].into() });
    assert_eq!(
        (&json["inputs"]["image"]["file"]["data"], &json["inputs"]["a"]["tensor"]["data"]),
        (&"////".into(), &"AQI=".into())
    );
    let Payment::Channel(voucher) = &receipt.payment else { panic!("it is a channel's") };
    let request_id = receipt.request_id();
    for proof in
        [PaymentSubmission::Transaction([1; 32].into()), PaymentSubmission::Authorization(PaymentAuthorization::Voucher(**voucher))]
    {
        passes(&PaymentConfirmation { request_id, proof });
    }
    let (quote, preprocessing) = (Some(receipt.quote.clone()), Some(receipt.preprocessing.clone()));
    passes(&TaskStatus { request_id, state: State::AwaitingPayment, quote, preprocessing, failure: Some("none".into()) });
    let network = NetworkInfo {
        gateway: receipt.quote.gateway,
        trust_root: scene.trust.clone(),
        model_sources: vec!["s3://a".into()],
        least_relayed: Amount::new(7),
    };
    passes(&network);
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../ncn-node/models/digits/manifest.json")).unwrap();
    let model = Model::parse(manifest.clone()).unwrap();
    let json = passes(&ModelInfo {
        model,
        subnet: [1; 32].into(),
        price: Price::flat(Amount::new(5)),
        least_timeout: Duration::from_secs(9),
        typical_units: None,
    });
    assert_eq!(json["model"], Value::String(manifest), "the digest is that of the very text");
    let timing = StepTiming { step: Step::Execute, actor: receipt.quote.compute, took: Duration::from_micros(1_500) };
    let usage = Usage { input_units: 1, output_units: 2, duration_micros: 3 };
    for (index, event) in (7..).zip([
        TaskEvent::Step(timing),
        TaskEvent::Attempt(receipt.quote.compute),
        TaskEvent::Chunk(OutputChunk { values: inputs.clone(), usage, finish: None }),
        TaskEvent::Checkpoint(Box::new(receipt.delivery.results[0].clone())),
        TaskEvent::Delivered { output: inputs, receipt: Box::new(receipt.clone()) },
        TaskEvent::Failed { outcome: Outcome::Refunded, reason: "it broke".into() },
    ]) {
        let json = passes(&Update { index, event });
        assert_eq!(json["index"], index);
    }
}

#[tokio::test]
async fn a_receipt_of_another_version_is_refused_with_a_clear_word() {
    let receipt = receipt(&Scene::new()).await;
    let mut old: Value = serde_json::from_str(&receipt.to_json()).unwrap();
    old["version"] = 1.into();
    old["result"] = old["delivery"]["results"][0].clone();
    old.as_object_mut().unwrap().remove("delivery");
    let refused = Receipt::from_json(old.to_string().as_bytes()).unwrap_err();
    assert_eq!(refused, ReceiptError::Version(1));
    assert!(refused.to_string().contains("use the program of that version"), "{refused}");
}
