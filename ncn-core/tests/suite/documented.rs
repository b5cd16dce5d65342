//! The hashes of ARCHITECTURE.md's worked examples are those that the code computes.

use std::path::Path;

use alloy_primitives::{Address, B256, hex, keccak256};
use ncn_core::{DataType, Domain, Tensor, TrustRoot, Value, Values};
use sha2::{Digest as _, Sha256};

/// The bytes and the hash of the example under this heading: lines of hexadecimal digits, each with a comment after `#`, and last
/// `hash = ..`.
fn example(heading: &str) -> (Vec<u8>, B256) {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let document = std::fs::read_to_string(document).unwrap();
    let (_, section) = document.split_once(&format!("\n### {heading}\n")).unwrap();
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
