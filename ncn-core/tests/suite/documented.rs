//! What the documents' worked examples and links say is so.

use std::{collections::HashSet, path::Path};

use alloy_primitives::{Address, B256, hex, keccak256};
use ncn_core::{DataType, Domain, Tensor, TrustRoot, Value, Values};
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

/// The anchors of a document's headings, as they are made on the web: lower case, without punctuation, a hyphen for each space.
fn anchors(document: &str) -> HashSet<String> {
    let heading = |line: &str| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim().to_lowercase());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    document.lines().filter_map(heading).map(|text| text.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
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
