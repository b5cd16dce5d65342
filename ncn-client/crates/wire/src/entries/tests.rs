use bytes::Bytes;
use ncn_core::{
    channel::{MAX_BATCH, MAX_CHARGES, MAX_PAYOUTS},
    membership::MembershipLimits,
};

use prost::Message;

use super::*;
use crate::{MAX_MESSAGE_BYTES, MAX_SMALL_MESSAGE_BYTES, MAX_SUBNET_BYTES, proto};

fn field(length: usize) -> Bytes {
    vec![0xff; length].into()
}

fn quote() -> proto::Quote {
    proto::Quote {
        request_id: field(32),
        client: field(20),
        gateway: field(20),
        compute: field(20),
        model_digest: field(32),
        total: field(16),
        split: Some(proto::Split { gateway_bps: 1_000, validators_bps: 500, treasury_bps: 500 }),
        expiry: 1_800_000_000,
        trust_root: field(32),
        price: Some(price()),
        max_input_units: 1 << 20,
        max_output_units: 1 << 20,
        epoch: 1_800_000_000,
        salt: field(32),
        committee: field(32),
    }
}

fn price() -> proto::Price {
    let unit = proto::UnitPrice { unit: 2, price: field(16) };
    proto::Price { base: field(16), input: Some(unit.clone()), output: Some(unit) }
}

fn entry(approvals: usize) -> proto::BatchEntry {
    let result = proto::ComputeCompletion {
        request_id: field(32),
        compute: field(20),
        model_digest: field(32),
        input_hash: field(32),
        output_hash: field(32),
        usage: Some(proto::Usage { input_units: 1 << 20, output_units: 1 << 20, duration_micros: 1 << 20 }),
        confinement: 2,
        signature: field(65),
        output_bytes: 1 << 20,
        parts: 1 << 10,
        chain: field(32),
        resumed_from: field(32),
        continuation: 1,
        finish: 1,
    };
    let approval = proto::ValidatorSignature { validator: field(20), signature: field(65) };
    proto::BatchEntry {
        quote: Some(quote()),
        delivery: Some(proto::Delivery { results: vec![result], finish: 1 }),
        certificate: Some(proto::CompletionValidation { approvals: vec![approval; approvals] }),
        salt: field(32),
        cumulative: field(16),
        voucher_signature: field(65),
        number: 1 << 30,
    }
}

fn passes<M: Message + Described>(message: &M, most: usize) {
    let bytes = message.encode_to_vec();
    assert!(bytes.len() <= most, "{} bytes of {most}", bytes.len());
    check_entries::<M>(&bytes).unwrap();
}

#[test]
fn the_largest_honest_messages_pass() {
    for approvals in [1, 3, 9] {
        let charge = proto::ChannelCharge {
            channel: field(32),
            settled_before: field(16),
            settled_after: field(16),
            base: 1 << 30,
            over: field(16),
        };
        let committee = proto::Committee { threshold: 9, members: vec![field(20); 17] };
        let payout = proto::ChannelPayout { account: field(20), amount: field(16) };
        let batch = proto::SettlementBatch {
            entries: vec![entry(approvals); MAX_BATCH],
            root: field(32),
            charges: vec![charge; MAX_CHARGES],
            payouts: vec![payout; MAX_PAYOUTS],
            gateway: field(20),
            signature: field(65),
            committees: vec![committee; MAX_CHARGES],
        };
        passes(&batch, MAX_MESSAGE_BYTES);
    }

    let bounds = MembershipLimits::default();
    let models = vec![proto::ModelDescriptor { name: "m".into(), digest: field(32), price: Some(price()) }; bounds.models];
    let named =
        vec![proto::ModelDescriptor { name: "m".repeat(bounds.text), digest: field(32), price: Some(price()) }; bounds.models];
    for models in [models, named] {
        let subnet = proto::SubnetMetadata {
            owner: field(20),
            name: "n".repeat(bounds.text),
            models,
            split: None,
            version: 1,
            gateways: vec![field(20); bounds.gateways],
        };
        passes(&proto::CreateSubnetRequest { subnet: Some(subnet), signature: field(65) }, MAX_SUBNET_BYTES);
    }
    let node = proto::NodeInfo {
        node: field(20),
        endpoint: "e".repeat(bounds.text),
        models: vec![field(32); bounds.models],
        signature: field(65),
        ..proto::NodeInfo::default()
    };
    passes(&node, MAX_SMALL_MESSAGE_BYTES);
    passes(&proto::Attachment { node: Some(node), ..proto::Attachment::default() }, MAX_SMALL_MESSAGE_BYTES);

    let shape = vec![16_384; ncn_core::tensor::MAX_RANK];
    let values = (0..256).map(|number| {
        let tensor = proto::Tensor { data_type: 2, shape: shape.clone(), data: field(1) };
        proto::NamedValue { name: format!("i{number}"), value: Some(proto::named_value::Value::Tensor(tensor)) }
    });
    let request = proto::InferenceRequest { inputs: values.collect(), ..proto::InferenceRequest::default() };
    passes(&request, MAX_MESSAGE_BYTES);

    let approval = proto::ValidatorSignature { validator: field(20), signature: field(65) };
    passes(&proto::SettlementValidation { approvals: vec![approval; 256] }, MAX_SMALL_MESSAGE_BYTES);
}

fn refuses<M: Described>(message: &[u8], says: &str) {
    let refused = check_entries::<M>(message).unwrap_err().to_string();
    assert!(refused.contains(says), "{refused}");
}

/// A length-delimited field around a content.
fn wrap(number: u8, content: &[u8]) -> Vec<u8> {
    let mut message = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut message);
    message.extend_from_slice(content);
    message
}

#[test]
fn empty_entries_are_counted_at_every_depth() {
    let many = "too many entries";
    let entries = |number: u8| [number << 3 | 2, 0].repeat(MAX_MESSAGE_BYTES / 4);
    refuses::<proto::SettlementBatch>(&entries(1), many);
    refuses::<proto::SettlementBatch>(&entries(3), many);
    refuses::<proto::SettlementBatch>(&entries(4), many);
    refuses::<proto::SettlementBatch>(&wrap(1, &wrap(3, &entries(1))), many);
    refuses::<proto::CompletionValidation>(&entries(1), many);
    refuses::<proto::InferenceRequest>(&entries(10), many);
    refuses::<proto::NodeInfo>(&entries(5), many);
    refuses::<proto::NetworkInfo>(&entries(3), many);
    refuses::<proto::NetworkInfo>(&wrap(2, &entries(2)), many);
    refuses::<proto::CreateSubnetRequest>(&wrap(1, &entries(3)), many);
    refuses::<proto::ComputeMessage>(&wrap(1, &wrap(1, &entries(5))), many);
    refuses::<proto::ComputeMessage>(&wrap(3, &wrap(2, &entries(1))), many);
    refuses::<proto::ComputeMessage>(&wrap(8, &entries(2)), many);
    refuses::<proto::CompletionRequest>(&entries(7), many);
    refuses::<proto::InferenceResponse>(&wrap(3, &entries(1)), many);
    refuses::<proto::InferenceResponse>(&wrap(3, &wrap(2, &wrap(10, &entries(2)))), many);
    refuses::<proto::CompletionRequest>(&wrap(3, &entries(1)), many);
    // A dimension for each byte, at once and one by one.
    refuses::<proto::InferenceRequest>(&wrap(10, &wrap(2, &wrap(2, &vec![1; 1 << 20]))), many);
    refuses::<proto::InferenceRequest>(&wrap(10, &wrap(2, &[2_u8 << 3, 1].repeat(1 << 20))), many);
}

#[test]
fn what_cannot_be_read_is_refused() {
    refuses::<proto::Empty>(&[0x0a, 5, 1], "truncated");
    refuses::<proto::Empty>(&[0x0d, 1, 2], "truncated");
    refuses::<proto::Empty>(&[0x0b], "group");
    refuses::<proto::Empty>(&[0xff; 11], "message");
    check_entries::<proto::Empty>(&[0x08, 1, 0x0a, 1, 1, 0x0d, 1, 2, 3, 4, 0x09, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
}
