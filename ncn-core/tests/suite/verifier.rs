//! `docs/verify_receipt.py`, which was written from the documents alone, agrees with this crate on what is a receipt.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use alloy_primitives::hex;
use ncn_core::{Amount, B256, Continuation, FeeSplit, FinishReason, PaymentKind, Receipt, receipt::Payment, trust::draw_of};
use serde_json::{Map, Value};

use crate::{
    receipts::{Lie, Nodes, SERVED, changes, forged, served},
    scene::Scene,
};

/// Judges texts, given in hexadecimal digits on a line each.
const JUDGE: &str = r#"
import sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
from verify_receipt import parse, verify
for line in sys.stdin:
    try:
        verify(parse(bytes.fromhex(line)))
        print("valid")
    except Exception as error:
        print("invalid:", str(error).replace("\n", " "))
"#;

const WHOLE: Nodes<'static> = SERVED[0];
const TWO: Nodes<'static> = SERVED[3];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What the script says of each text.
fn judged_by_script(texts: &[Vec<u8>]) -> Vec<String> {
    let python = root().join("target/verifier/bin/python");
    let mut command = Command::new(&python);
    command.args(["-c", JUDGE]).arg(root().join("docs")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask setup`", python.display()));
    let lines: String = texts.iter().map(|text| hex::encode(text) + "\n").collect();
    let mut input = process.stdin.take().unwrap();
    let writing = std::thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = process.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    let verdicts: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(verdicts.len(), texts.len());
    verdicts
}

fn judged(text: &[u8]) -> Result<(), String> {
    let receipt = Receipt::from_json(text).map_err(|error| error.to_string())?;
    receipt.verify_self_consistent().map_err(|error| error.to_string())
}

/// Has both judge all texts; says how many are receipts.
fn agree(texts: &[Vec<u8>]) -> usize {
    let mut valid = 0;
    for (text, said) in texts.iter().zip(judged_by_script(texts)) {
        let known = judged(text);
        assert_eq!(said == "valid", known.is_ok(), "the script says {said}, and Rust {known:?}: {}", String::from_utf8_lossy(text));
        valid += usize::from(known.is_ok());
    }
    valid
}

/// A receipt of every kind.
async fn every_kind(scene: &Scene) -> Vec<Receipt> {
    let mut all = Vec::new();
    for nodes in SERVED {
        for kind in [PaymentKind::Escrow, PaymentKind::Channel] {
            all.push(served(scene, kind, nodes).await);
        }
    }
    for finish in [FinishReason::Length, FinishReason::Deadline] {
        all.push(served(scene, PaymentKind::Escrow, &[(3, Some(finish))]).await);
    }
    all
}

/// What no verifier may believe, though everyone has signed it.
const LIES: &[(&str, PaymentKind, Nodes<'static>, Lie)] = {
    use Lie::{Completion, Delivery, Order, Quote, Receipt, Voucher};
    use PaymentKind::{Channel, Escrow};
    const OTHER: B256 = B256::repeat_byte(0x77);
    &[
        ("the client's limit", Escrow, WHOLE, Order(|order| order.max_price = Amount::new(1_420_002))),
        ("the client's deadline", Escrow, WHOLE, Order(|order| order.deadline -= 1)),
        ("another draw", Escrow, WHOLE, Order(|order| order.draw = draw_of(&OTHER))),
        ("another request", Escrow, WHOLE, Quote(|quote| quote.request_id = OTHER)),
        ("another client", Escrow, WHOLE, Quote(|quote| quote.client = quote.compute)),
        ("another model", Escrow, WHOLE, Quote(|quote| quote.model_digest = OTHER)),
        ("a total that is too high", Escrow, WHOLE, Quote(|quote| quote.total = Amount::new(1_420_004))),
        ("a total that is too low", Escrow, WHOLE, Quote(|quote| quote.total = Amount::new(1_420_002))),
        ("a price that overflows", Escrow, WHOLE, Quote(|quote| quote.price.output.price = Amount::new(u128::MAX))),
        ("a base that overflows", Escrow, WHOLE, Quote(|quote| quote.price.base = Amount::new(u128::MAX))),
        ("more units than cost so much", Escrow, WHOLE, Quote(|quote| quote.max_units.output += 1)),
        (
            "parts of more than the whole",
            Escrow,
            WHOLE,
            Quote(|quote| {
                quote.split = FeeSplit { gateway_bps: 9_000, validators_bps: 1_000, treasury_bps: 1 };
            }),
        ),
        ("an expiry past the deadline", Escrow, WHOLE, Quote(|quote| quote.expiry += 1)),
        ("another network", Escrow, WHOLE, Quote(|quote| quote.trust_root = OTHER)),
        ("another salt", Escrow, WHOLE, Quote(|quote| quote.salt = OTHER)),
        ("another committee", Escrow, WHOLE, Quote(|quote| quote.committee = OTHER)),
        ("too many units in", Escrow, WHOLE, Delivery(|results, _| results[0].usage.input_units = 5)),
        ("units that do not fit the output", Escrow, WHOLE, Delivery(|results, _| results[0].usage.output_units = 19)),
        (
            "too many units out",
            Escrow,
            WHOLE,
            Delivery(|results, _| {
                (results[0].output_bytes, results[0].usage.output_units) = (100, 41);
            }),
        ),
        (
            "units at the end of what can be counted",
            Escrow,
            WHOLE,
            Delivery(|results, _| {
                (results[0].output_bytes, results[0].parts, results[0].usage.output_units) = (u64::MAX, u64::MAX, u64::MAX);
            }),
        ),
        ("nothing delivered", Escrow, WHOLE, Delivery(|results, _| results[0].parts = 0)),
        ("nobody delivered", Escrow, WHOLE, Delivery(|results, _| results.clear())),
        ("a beginning that is missing", Escrow, WHOLE, Delivery(|results, _| results[0].resumed_from = OTHER)),
        ("parts that do not follow", Escrow, TWO, Delivery(|results, _| results[1].resumed_from = OTHER)),
        ("an output that shrinks", Escrow, TWO, Delivery(|results, _| results[0].output_bytes = 1 << 20)),
        ("no word on how a node went on", Escrow, TWO, Delivery(|results, _| results[1].continuation = None)),
        ("a beginning that goes on", Escrow, WHOLE, Delivery(|results, _| results[0].continuation = Some(Continuation::Rerun))),
        ("parts that were there before", Escrow, TWO, Delivery(|results, _| results[1].parts = results[0].parts)),
        ("results in another order", Escrow, TWO, Delivery(|results, _| results.swap(0, 1))),
        ("another input", Escrow, WHOLE, Delivery(|results, _| results[0].input_hash = OTHER)),
        ("another model that ran", Escrow, WHOLE, Delivery(|results, _| results[0].model_digest = OTHER)),
        ("another request's result", Escrow, WHOLE, Delivery(|results, _| results[0].request_id = OTHER)),
        ("an end for another reason", Escrow, WHOLE, Delivery(|_, finish| *finish = FinishReason::Length)),
        ("a whole output without an end", Escrow, WHOLE, Delivery(|results, _| results[0].finish = None)),
        ("an end before the end", Escrow, TWO, Delivery(|results, _| results[0].finish = Some(FinishReason::Stop))),
        ("a cost that is too high", Escrow, WHOLE, Completion(|completion| completion.contributions[0].cost = Amount::new(1))),
        ("another one's part", Escrow, TWO, Completion(|completion| completion.contributions.swap(0, 1))),
        ("an end that was not delivered", Escrow, WHOLE, Completion(|completion| completion.finish = FinishReason::Length)),
        ("another quote's completion", Escrow, WHOLE, Completion(|completion| completion.quote = OTHER)),
        ("another channel", Channel, WHOLE, Voucher(|voucher| voucher.channel = OTHER)),
        ("another request's voucher", Channel, WHOLE, Voucher(|voucher| voucher.request_id = OTHER)),
        ("another quote's voucher", Channel, WHOLE, Voucher(|voucher| voucher.quote = OTHER)),
        ("another committee's voucher", Channel, WHOLE, Voucher(|voucher| voucher.committee = OTHER)),
        ("another amount", Channel, WHOLE, Voucher(|voucher| voucher.amount = Amount::new(1))),
        ("a sum below the amount", Channel, WHOLE, Voucher(|voucher| voucher.cumulative = Amount::new(1_420_002))),
        (
            "an escrow by no transaction",
            Escrow,
            WHOLE,
            Receipt(|receipt| {
                receipt.payment = Payment::Escrow { transaction: B256::ZERO, settlement: OTHER };
            }),
        ),
        (
            "too few approvals",
            Escrow,
            WHOLE,
            Receipt(|receipt| {
                let approvals = receipt.approvals.approvals()[1..].to_vec();
                receipt.approvals = ncn_core::QuorumCertificate::new(approvals);
            }),
        ),
        ("an approval of something else", Escrow, WHOLE, Receipt(|receipt| receipt.preprocessing = receipt.approvals.clone())),
        ("other payments", Escrow, WHOLE, Receipt(|receipt| receipt.payments.payouts.swap(0, 1))),
        ("fewer payments", Escrow, WHOLE, Receipt(|receipt| receipt.payments.payouts.truncate(2))),
        ("no quorum", Escrow, WHOLE, Receipt(|receipt| receipt.trust_root.threshold = 2)),
    ]
};

/// Other spellings, most of which are no receipt.
fn spellings(json: &str) -> Vec<Vec<u8>> {
    let fields: Map<String, Value> = serde_json::from_str(json).unwrap();
    let backwards: Map<String, Value> = fields.iter().rev().map(|(name, value)| (name.clone(), value.clone())).collect();
    let compact = Value::from(fields).to_string();
    let put = |from: &str, to: &str| {
        assert!(compact.contains(from), "{from}");
        compact.replacen(from, to, 1).into_bytes()
    };
    let nested = "[".repeat(100_000);
    let mut all: Vec<Vec<u8>> = [
        ("\"version\":2", "\"version\":2.0"),
        ("\"version\":2", "\"version\":02"),
        ("\"version\":2", "\"version\":\"2\""),
        ("\"version\":2", "\"version\":true"),
        ("\"version\":2", "\"version\":1"),
        ("\"version\":2", "\"version\":3"),
        ("\"version\":2", "\"version\":4294967298"),
        ("\"version\":2", "\"version\":2,\"version\":2"),
        ("\"version\":2", "\"\\u0076ersion\":2"),
        ("\"chainId\":31337", "\"chainId\":31337.0"),
        ("\"chainId\":31337", "\"chainId\":3.1337e4"),
        ("\"chainId\":31337", "\"chainId\":\"31337\""),
        ("\"chainId\":31337", "\"chainId\":31337,\"chainId\":31337"),
        ("\"chainId\":31337", "\"chainId\":18446744073709582953"),
        ("\"inputUnits\":3", "\"inputUnits\":-0"),
        ("\"inputUnits\":3", "\"inputUnits\":NaN"),
        ("\"inputUnits\":3", "\"inputUnits\":null"),
        ("\"maxPrice\":\"2000000\"", "\"maxPrice\":2000000"),
        ("\"maxPrice\":\"2000000\"", "\"maxPrice\":\"02000000\""),
        ("\"maxPrice\":\"2000000\"", "\"maxPrice\":\"+2000000\""),
        ("\"maxPrice\":\"2000000\"", "\"maxPrice\":\"2_000_000\""),
        ("\"maxPrice\":\"2000000\"", "\"maxPrice\":\"2000000\\n\""),
        ("\"maxPrice\":\"2000000\"", "\"maxPrice\":\"\u{0662}000000\""),
        ("\"maxPrice\":\"2000000\"", "\"maxPrice\":\"\\u0032000000\""),
        ("\"maxPrice\":\"2000000\"", "\"maxPrice\":\"340282366920938463463374607431768211456\""),
        ("0xcccc", "0xCCCC"),
        ("0xcccc", "0Xcccc"),
        ("0xcccc", "cccc"),
        ("0xcccc", "0x\u{ff43}ccc"),
        ("\"finish\":\"stop\"", "\"finish\":\"Stop\""),
        ("\"finish\":\"stop\"", "\"finish\":1"),
        ("\"confinement\":\"reduced\"", "\"confinement\":1"),
        ("\"unit\":\"token\"", "\"unit\":\"Token\""),
        ("\"seed", "\"\\ud800seed"),
        ("{\\\"seed", "{\\\"seed\u{0}"),
        (",\"confinement\":\"reduced\"", ""),
        ("}", "},"),
    ]
    .map(|(from, to)| put(from, to))
    .into();
    all.extend([
        json.as_bytes().to_vec(),
        Value::from(backwards).to_string().into_bytes(),
        format!(" \n\t{compact}\r\n ").into_bytes(),
        format!("\u{feff}{compact}").into_bytes(),
        format!("{compact}x").into_bytes(),
        format!("{compact}{compact}").into_bytes(),
        format!("[{compact}]").into_bytes(),
        format!("{}{compact}", " ".repeat(1 << 20)).into_bytes(),
        compact.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        compact.as_bytes()[..compact.len() - 1].to_vec(),
        nested.into_bytes(),
        b"null".to_vec(),
        Vec::new(),
        vec![0xff],
    ]);
    all
}

/// One of the documents' examples for other verifiers.
#[derive(serde::Deserialize, serde::Serialize)]
struct Vector {
    what: String,
    valid: bool,
    receipt: Value,
}

fn vectors() -> PathBuf {
    root().join("docs/receipts.jsonl")
}

#[test]
fn both_judge_the_documents_vectors_as_they_say() {
    let lines = std::fs::read_to_string(vectors()).unwrap();
    let vectors: Vec<Vector> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<_> = vectors.iter().map(|vector| vector.receipt.to_string().into_bytes()).collect();
    for (vector, text) in vectors.iter().zip(&texts) {
        assert_eq!(judged(text).is_ok(), vector.valid, "{}", vector.what);
    }
    let valid = agree(&texts);
    assert!(valid >= 10 && vectors.len() - valid == LIES.len(), "{valid} of {} are valid", vectors.len());
}

/// Makes the vectors anew, and `docs/receipt.json`.
#[tokio::test]
#[ignore = "writes docs/receipts.jsonl and docs/receipt.json"]
async fn write_vectors() {
    let scene = Scene::new();
    let mut lines = String::new();
    let mut add = |what: String, valid, receipt: &Receipt| {
        let vector = Vector { what, valid, receipt: serde_json::to_value(receipt).unwrap() };
        lines += &(serde_json::to_string(&vector).unwrap() + "\n");
    };
    for receipt in every_kind(&scene).await {
        let (kind, finish) = (receipt.payment.kind(), receipt.delivery.finish);
        add(format!("{kind:?}, {} nodes, {finish}", receipt.delivery.results.len()), true, &receipt);
    }
    for (what, kind, nodes, lie) in LIES {
        add((*what).to_owned(), false, &forged(&scene, *kind, nodes, *lie).await);
    }
    std::fs::write(vectors(), lines).unwrap();
    let shown = served(&scene, PaymentKind::Channel, &[(1, Some(FinishReason::Stop))]).await;
    std::fs::write(root().join("docs/receipt.json"), shown.to_json() + "\n").unwrap();
}

#[tokio::test]
async fn the_script_agrees_on_changes_and_spellings() {
    let scene = Scene::new();
    let (whole, two) = (served(&scene, PaymentKind::Channel, WHOLE).await, served(&scene, PaymentKind::Escrow, TWO).await);
    let mut texts = Vec::new();
    for (number, receipt) in [whole.clone(), two].iter().enumerate() {
        let changes = changes(&serde_json::from_str(&receipt.to_json()).unwrap());
        // Other ones each time: over the years all of them.
        let step = changes.len() / 150;
        let first = usize::from(scene.trust.validators[number].0[0]) % step;
        texts.extend(changes.iter().skip(first).step_by(step).map(|changed| changed.to_string().into_bytes()));
    }
    assert!(texts.len() >= 250, "{}", texts.len());
    assert!(agree(&texts) <= 2, "a change that is none may be among them");
    let spellings = spellings(&whole.to_json());
    assert_eq!(agree(&spellings), 5, "the order of fields, white space and escapes are free");
}

#[test]
fn the_script_is_short_and_says_what_is_wrong() {
    let script = root().join("docs/verify_receipt.py");
    let lines = std::fs::read_to_string(&script).unwrap().lines().count();
    assert!(lines <= 200, "{lines} lines");
    let run = |arguments: &[&str]| {
        let python = root().join("target/verifier/bin/python");
        Command::new(python).arg("-B").arg(&script).args(arguments).current_dir(root()).output().unwrap()
    };
    let receipt = Receipt::from_json(&std::fs::read(root().join("docs/receipt.json")).unwrap()).unwrap();
    let hash = receipt.trust_root.hash().to_string();
    let good = run(&["docs/receipt.json", &hash]);
    assert!(good.status.success() && String::from_utf8_lossy(&good.stdout).contains(&hash), "{good:?}");
    for (arguments, says) in [
        (&["docs/receipt.json", "0x00"][..], hash.as_str()),
        (&["docs/protocol.md"], "invalid: "),
        (&["docs/nowhere.json"], "invalid: "),
        (&[], "invalid: "),
    ] {
        let refused = run(arguments);
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains(says), "{refused:?}");
    }
}
