//! What the documents' worked examples and links say is so.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::Write as _,
    path::Path,
};

use alloy_primitives::{Address, B256, hex, keccak256};
use ncn_core::{
    CapabilityScope, Confinement, DataType, Domain, ErrorKind, FinishReason, NodeRole, PaymentKind, Receipt, Tensor, TrustRoot,
    Unit, Value, Values,
};
use sha2::{Digest as _, Sha256};

/// The bytes and the hash of the example under this heading: lines of hexadecimal digits, each with a comment after `#`, and last
/// `hash = ..`.
fn example(heading: &str) -> (Vec<u8>, B256) {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let document = std::fs::read_to_string(document).unwrap();
    let (_, section) = document.split_once(&format!("\n## {heading}\n")).unwrap();
    let (_, block) = section.split_once("```text\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let (lines, hash) = block.split_once("hash = ").unwrap();
    let digits: String = lines.lines().map(|line| line.split('#').next().unwrap()).collect();
    let digits: String = digits.chars().filter(|c| !c.is_whitespace()).collect();
    (hex::decode(digits).unwrap(), hash.trim().parse().unwrap())
}

#[test]
fn the_network_hash() {
    let (bytes, hash) = example("The network hash");
    let root = TrustRoot {
        domain: Domain { chain_id: 31_337, contract: Address::repeat_byte(0x11) },
        token: Address::repeat_byte(0x22),
        channels: Address::repeat_byte(0x33),
        validators: (1..=3).map(Address::repeat_byte).collect(),
        threshold: 2,
        committee_size: 3,
        treasury: Address::repeat_byte(0x44),
    };
    assert_eq!((keccak256(bytes), root.hash()), (hash, hash));
}

#[test]
fn the_hash_of_values() {
    let (bytes, hash) = example("The hash of values");
    let tensor = Tensor::new(DataType::U8, vec![2], vec![1, 2]).unwrap();
    let values = Values::from([("label", Value::from("7")), ("a", Value::Tensor(tensor))]);
    assert_eq!((B256::new(Sha256::digest(bytes).into()), values.hash()), (hash, hash));
}

#[test]
fn the_codes_of_errors() {
    let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md")).unwrap();
    let mut table = String::from("| kind | gRPC | HTTP | WebSocket |\n| --- | --- | --- | --- |\n");
    let (mut grpc, mut http, mut websocket) = (HashSet::new(), HashSet::new(), HashSet::new());
    for kind in ErrorKind::ALL {
        writeln!(table, "| {kind} | {} | {} | {} |", kind.grpc(), kind.http(), kind.websocket()).unwrap();
        assert!(grpc.insert(kind.grpc()) && http.insert(kind.http()) && websocket.insert(kind.websocket()), "{kind}");
    }
    assert!(document.contains(&table), "docs/protocol.md should have this table:\n{table}");
}

/// Of each struct of `Messages.sol` its fields, and those of the structs in it.
fn types(source: &str) -> Vec<String> {
    let structs: BTreeMap<&str, Vec<(&str, &str)>> = source
        .split("\nstruct ")
        .skip(1)
        .map(|definition| {
            let (name, rest) = definition.split_once(" {").unwrap();
            let fields = rest.split_once('}').unwrap().0.split(';').filter_map(|field| field.trim().split_once(' '));
            (name, fields.collect())
        })
        .collect();
    let described = |name: &str| {
        let fields: Vec<_> = structs[name].iter().map(|(kind, field)| format!("{kind} {field}")).collect();
        format!("{name}({})", fields.join(","))
    };
    let inner = |name: &str| {
        structs[name]
            .iter()
            .map(|(kind, _)| kind.trim_end_matches("[]"))
            .filter(|kind| structs.contains_key(kind))
            .collect::<BTreeSet<_>>()
    };
    let nested: BTreeSet<_> = structs.keys().flat_map(|name| inner(name)).collect();
    let outer = structs.keys().filter(|name| !nested.contains(*name));
    outer.map(|name| described(name) + &inner(name).into_iter().map(described).collect::<String>()).collect()
}

#[test]
fn every_type_that_is_signed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = std::fs::read_to_string(root.join("docs/protocol.md")).unwrap();
    let types = types(&std::fs::read_to_string(root.join("contracts/src/Messages.sol")).unwrap());
    assert!(types.len() > 15, "{types:?}");
    for described in types {
        assert!(document.contains(&format!("\n{described}\n")), "docs/protocol.md should have the line\n{described}");
    }
    assert_eq!([Confinement::None, Confinement::Reduced, Confinement::Full].map(|level| level as u8), [0, 1, 2]);
    assert_eq!([NodeRole::Gateway, NodeRole::Compute, NodeRole::Validator].map(|role| role as u8), [1, 2, 3]);
    let scopes = [CapabilityScope::Follow, CapabilityScope::Cancel, CapabilityScope::CloseChannel];
    assert_eq!(scopes.map(|scope| scope as u8), [1, 2, 3]);
    assert_eq!([PaymentKind::Escrow, PaymentKind::Channel].map(|kind| kind as u8), [1, 2]);
    let reasons =
        [FinishReason::Stop, FinishReason::Length, FinishReason::Deadline, FinishReason::Cancelled, FinishReason::NodeLost];
    assert_eq!(reasons.map(|reason| reason as u8), [1, 2, 3, 4, 5]);
    assert_eq!([Unit::Request, Unit::Token, Unit::Row, Unit::Second, Unit::Image].map(|unit| unit as u8), [1, 2, 3, 4, 5]);
}

#[test]
fn the_receipt_is_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/receipt.json");
    let receipt = Receipt::from_json(&std::fs::read(path).unwrap()).unwrap();
    receipt.verify_self_consistent().unwrap();
    assert_eq!(receipt.payment.kind(), PaymentKind::Channel);
    assert!(receipt.matches_output(&Values::from([("label", "7")])));
}

/// The anchors of a document's headings, as they are made on the web: lower case, without punctuation, a hyphen for each space.
fn anchors(document: &str) -> HashSet<String> {
    let heading = |line: &str| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim().to_lowercase());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    document.lines().filter_map(heading).map(|text| text.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// Each test that SECURITY.md names is one.
#[test]
fn lies_are_told_in_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let table = document.split("## Who can lie").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert!(rows.len() > 25, "{rows:?}");
    for row in rows {
        let shown = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}");
        for name in names {
            let (files, declared) = match (name.rsplit_once("::"), name.split_once('.')) {
                (Some((module, test)), _) => {
                    let suites = ["ncn-node/crates/cli/tests/suite", "ncn-core/tests/suite"];
                    let module = module.replace("::", "/");
                    (suites.map(|suite| root.join(suite).join(&module).with_extension("rs")).to_vec(), format!("fn {test}("))
                }
                (_, Some((contract, test))) => {
                    (vec![root.join("contracts/test").join(contract.to_owned() + ".t.sol")], format!("function {test}("))
                }
                _ => panic!("{name}"),
            };
            let found = files.iter().any(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains(&declared)));
            assert!(found, "{name} is no test");
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut links = 0;
    for directory in ["", "docs", "contracts"] {
        for entry in std::fs::read_dir(root.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let document = std::fs::read_to_string(&path).unwrap();
            for link in document.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
                if link.contains("://") {
                    continue;
                }
                let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = if file.is_empty() { path.clone() } else { path.with_file_name(file) };
                assert!(target.exists(), "{}: {link}: there is no such file", path.display());
                let found = anchor.is_empty() || anchors(&std::fs::read_to_string(target).unwrap()).contains(anchor);
                assert!(found, "{}: {link}: there is no such heading", path.display());
                links += 1;
            }
        }
    }
    assert!(links > 40, "{links}");
}

#[test]
fn the_metrics() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let code = std::fs::read_to_string(root.join("ncn-node/src/measures.rs")).unwrap();
    let document = std::fs::read_to_string(root.join("docs/operator.md")).unwrap();
    let names: Vec<_> = code.split('"').filter(|text| text.starts_with("ncn_")).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(document.contains(&format!("`{name}")), "{name} is in docs/operator.md");
    }
}
