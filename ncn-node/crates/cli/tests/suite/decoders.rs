//! Whatever comes from the network is read or refused: no decoder panics, or takes more memory than a message of its length may.

use ncn_core::{
    Acknowledgement, BatchRequest, CompletionRequest, Delivery, Deregistration, Heartbeat, NodeChange, NodeQuery, NodeRecord,
    PaymentConfirmation, PreprocessingRequest, Receipt, Reservation, Signed, Subnet, TaskStatus, Update, membership::News,
};
use ncn_wire::{decode, entries::Described, proto};
use proptest::{prelude::*, test_runner::TestRunner};
use prost::Message;

/// A decoder that faces the network.
type Decoder = fn(&[u8]);

fn read<M: Message + Default + Described>(bytes: &[u8]) -> Option<M> {
    decode(bytes.to_vec().into()).ok()
}

fn take<M, T>(bytes: &[u8])
where
    M: Message + Default + Described,
    T: TryFrom<M>,
{
    if let Some(message) = read::<M>(bytes) {
        let _ = T::try_from(message);
    }
}

/// Those of every server and every client: the submessages of a question and of an answer are among them.
const DECODERS: [(&str, Decoder); 24] = [
    ("News", take::<proto::News, News>),
    ("Question", |bytes| drop(read::<proto::Question>(bytes))),
    ("Answer", |bytes| drop(read::<proto::Answer>(bytes))),
    ("Known", |bytes| drop(read::<proto::Known>(bytes))),
    ("record", take::<proto::NodeInfo, Signed<NodeRecord>>),
    ("heartbeat", take::<proto::UpdateNodeHeartbeatRequest, Signed<Heartbeat>>),
    ("departure", take::<proto::DeregisterNodeRequest, Signed<Deregistration>>),
    ("subnet", take::<proto::CreateSubnetRequest, Signed<Subnet>>),
    ("query", take::<proto::DiscoverNodesRequest, NodeQuery>),
    ("change", take::<proto::NodeChange, NodeChange>),
    ("preprocessing", take::<proto::InferenceRequest, PreprocessingRequest>),
    ("completion", take::<proto::CompletionRequest, CompletionRequest>),
    ("settlement", take::<proto::SettlementBatch, BatchRequest>),
    ("approval", take::<proto::ValidatorSignature, ncn_core::Approval>),
    ("submission", take::<proto::InferenceRequest, ncn_core::Submission>),
    ("confirmation", take::<proto::TransactionConfirmation, PaymentConfirmation>),
    ("task", take::<proto::InferenceRequest, ncn_core::ComputeTask>),
    ("status", take::<proto::InferenceTaskStatus, TaskStatus>),
    ("update", take::<proto::InferenceResponse, Update>),
    ("reservation", take::<proto::Reserve, Reservation>),
    ("delivery", take::<proto::Delivery, Delivery>),
    ("acknowledgement", take::<proto::Acknowledgement, Signed<Acknowledgement>>),
    ("model", take::<proto::ModelInfo, ncn_core::ModelInfo>),
    ("receipt", take::<proto::Receipt, Receipt>),
];

/// What looks like a message: fields of every number and type, with messages within.
fn looks_like_a_message() -> impl Strategy<Value = Vec<u8>> {
    let plain = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..70),
        prop::sample::select(vec![20_usize, 32, 65, 16]).prop_flat_map(|length| prop::collection::vec(any::<u8>(), length)),
        "[a-z0-9:/{}\"]{0,40}".prop_map(String::into_bytes),
    ];
    plain.prop_recursive(4, 64, 8, |inner| {
        let varint = any::<u64>().prop_map(|value| {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(value, &mut bytes);
            (0_u8, bytes)
        });
        let delimited = inner.prop_map(|content| {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(content.len() as u64, &mut bytes);
            bytes.extend(content);
            (2, bytes)
        });
        let fixed = prop::collection::vec(any::<u8>(), 8).prop_map(|bytes| (1, bytes));
        let field = (1_u8..16, prop_oneof![2 => varint, 6 => delimited, 1 => fixed]);
        prop::collection::vec(field, 0..8).prop_map(|fields| {
            fields.into_iter().flat_map(|(number, (kind, bytes))| [vec![number << 3 | kind], bytes].concat()).collect()
        })
    })
}

#[test]
fn whatever_comes_is_read_or_refused() {
    let mut runner = TestRunner::new(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() });
    let bytes = prop_oneof![4 => looks_like_a_message(), 1 => prop::collection::vec(any::<u8>(), 0..300)];
    let tried = runner.run(&bytes, |bytes| {
        for (name, decoder) in DECODERS {
            let survived = std::panic::catch_unwind(|| decoder(&bytes));
            prop_assert!(survived.is_ok(), "{name}");
        }
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}
