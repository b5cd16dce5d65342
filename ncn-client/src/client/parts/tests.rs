use alloy_signer_local::PrivateKeySigner;
use ncn_core::{Amount, B256, Confinement, DataType, FeeSplit, Price, Tensor, Units, Usage, compute::MAX_STREAM_BYTES};

use super::*;

const DOMAIN: Domain = Domain { chain_id: 1, contract: Address::ZERO };

fn quote(compute: Address) -> Quote {
    Quote {
        request_id: B256::repeat_byte(1),
        client: Address::ZERO,
        gateway: Address::ZERO,
        compute,
        model_digest: B256::ZERO,
        price: Price::flat(Amount::new(1)),
        max_units: Units::default(),
        total: Amount::new(1),
        split: FeeSplit::default(),
        expiry: 1,
        trust_root: B256::ZERO,
        epoch: 0,
        salt: B256::ZERO,
        committee: B256::ZERO,
    }
}

fn chunk(text: &str) -> OutputChunk {
    part(Values::from([("text", text)]))
}

fn part(values: Values) -> OutputChunk {
    OutputChunk { values, usage: Usage::default(), finish: None }
}

/// A node's word on the parts of a chain.
async fn signed(chain: &StreamChain, node: &PrivateKeySigner) -> Signed<InferenceResult> {
    let result = InferenceResult {
        request_id: B256::repeat_byte(1),
        compute: node.address(),
        model_digest: B256::ZERO,
        input_hash: B256::ZERO,
        output_hash: B256::ZERO,
        output_bytes: 0,
        parts: 0,
        chain: B256::ZERO,
        resumed_from: B256::ZERO,
        continuation: None,
        usage: Usage::default(),
        confinement: Confinement::None,
        finish: None,
    };
    Signed::sign(chain.describe(&Values::new(), result), &DOMAIN, node).await.unwrap()
}

/// What a gateway sends.
enum Sent {
    Rewind,
    Attempt(usize),
    Takeover(usize),
    Part(&'static str),
    /// This node's signature over the parts of this attempt so far.
    Signed(usize, &'static [&'static str]),
}

/// Sends all of it; gives what the caller has at the end, how often it was told to start anew, and what becomes of this output.
async fn receive(sent: Vec<Sent>, output: &str) -> (Vec<String>, usize, Result<(), String>) {
    receive_in(sent, output, u64::MAX).await
}

/// The same of an output that came in so many parts.
async fn receive_in(sent: Vec<Sent>, output: &str, count: u64) -> (Vec<String>, usize, Result<(), String>) {
    let nodes = [PrivateKeySigner::random(), PrivateKeySigner::random()];
    let quote = quote(nodes[0].address());
    let mut parts = Parts::new(&quote, DOMAIN);
    let (mut has, mut restarts) = (Vec::new(), 0);
    let mut hand_out = |parts: &mut Parts| {
        while let Some(event) = parts.next() {
            if let InferenceEvent::Part(part) = event {
                has.push(part.values.text("text").unwrap().to_owned());
            } else {
                has.clear();
                restarts += 1;
            }
        }
    };
    for sent in sent {
        match sent {
            Sent::Rewind => parts.rewind(),
            Sent::Attempt(node) => parts.attempt(nodes[node].address()),
            Sent::Takeover(node) => parts.take_over(nodes[node].address()),
            Sent::Part(text) => parts.part(chunk(text)),
            Sent::Signed(node, texts) => {
                let mut chain = StreamChain::new(quote.request_id);
                for text in texts {
                    chain.extend(&Values::from([("text", *text)]));
                }
                parts.checkpoint(&signed(&chain, &nodes[node]).await);
            }
        }
    }
    let delivered = parts.delivered(&Values::from([("text", output)]), count);
    hand_out(&mut parts);
    (has, restarts, delivered)
}

#[tokio::test]
async fn parts_are_handed_out_as_they_come() {
    let sent = vec![Sent::Attempt(0), Sent::Part("a"), Sent::Part("b"), Sent::Signed(0, &["a", "b"])];
    assert_eq!(receive(sent, "ab").await, (vec!["a".into(), "b".into()], 0, Ok(())));
}

#[tokio::test]
async fn a_connection_that_is_made_again_repeats_nothing() {
    let sent = vec![
        Sent::Attempt(0),
        Sent::Part("a"),
        Sent::Rewind,
        Sent::Attempt(0),
        Sent::Part("a"),
        Sent::Part("b"),
        Sent::Signed(0, &["a", "b"]),
    ];
    assert_eq!(receive(sent, "ab").await, (vec!["a".into(), "b".into()], 0, Ok(())));
}

#[tokio::test]
async fn another_nodes_parts_start_anew() {
    let sent = vec![
        Sent::Attempt(0),
        Sent::Part("a"),
        Sent::Part("b"),
        Sent::Attempt(1),
        Sent::Part("a"),
        Sent::Part("c"),
        Sent::Signed(1, &["a", "c"]),
    ];
    assert_eq!(receive(sent, "ac").await, (vec!["a".into(), "c".into()], 1, Ok(())));
}

#[tokio::test]
async fn a_node_goes_on_after_what_is_signed() {
    let begun = || {
        vec![Sent::Attempt(0), Sent::Part("a"), Sent::Part("b"), Sent::Signed(0, &["a", "b"]), Sent::Part("c"), Sent::Takeover(1)]
    };
    let mut same = begun();
    same.extend([Sent::Part("c"), Sent::Part("d"), Sent::Signed(1, &["a", "b", "c", "d"])]);
    let whole = ["a", "b", "c", "d"].map(String::from).to_vec();
    assert_eq!(receive(same, "abcd").await, (whole.clone(), 0, Ok(())));
    // What nobody has signed may come otherwise.
    let mut other = begun();
    other.extend([Sent::Part("x"), Sent::Signed(1, &["a", "b", "x"])]);
    assert_eq!(receive(other, "abx").await, (["a", "b", "x"].map(String::from).to_vec(), 1, Ok(())));
    // A connection that is made again brings all of it once more.
    let mut again = begun();
    again.extend([Sent::Part("c"), Sent::Rewind]);
    again.extend(begun());
    again.extend([Sent::Part("c"), Sent::Part("d"), Sent::Signed(1, &["a", "b", "c", "d"])]);
    assert_eq!(receive(again, "abcd").await, (whole, 0, Ok(())));
    // Its word counts for all parts, and the lost node's for nothing any more.
    let mut late = begun();
    late.extend([Sent::Part("c"), Sent::Signed(0, &["a", "b", "c"]), Sent::Part("d")]);
    assert_eq!(receive(late, "abcd").await, (["a", "b", "c"].map(String::from).to_vec(), 0, Ok(())));
}

#[tokio::test]
async fn parts_of_an_attempt_without_an_end_are_void() {
    let sent = vec![Sent::Attempt(0), Sent::Part("a"), Sent::Part("b"), Sent::Attempt(1)];
    assert_eq!(receive(sent, "c").await, (vec![], 1, Ok(())));
}

#[tokio::test]
async fn what_a_lost_node_has_not_signed_is_void() {
    let sent = vec![Sent::Attempt(0), Sent::Part("a"), Sent::Signed(0, &["a"]), Sent::Part("b"), Sent::Part("c")];
    assert_eq!(receive_in(sent, "a", 1).await, (vec!["a".into()], 1, Ok(())));
}

#[tokio::test]
async fn a_checkpoint_of_another_node_ends_the_stream() {
    let sent = vec![Sent::Attempt(0), Sent::Part("a"), Sent::Signed(1, &["a"]), Sent::Part("b")];
    assert_eq!(receive(sent, "ab").await, (vec!["a".into()], 0, Ok(())), "the answer is good all the same");
}

#[tokio::test]
async fn parts_that_nobody_signs_end() {
    let mut sent = vec![Sent::Attempt(0)];
    sent.extend((0..100).map(|_| Sent::Part("LIE ")));
    let (has, _, delivered) = receive(sent, "the truth").await;
    assert_eq!(has.len(), 32);
    let problem = delivered.unwrap_err();
    assert!(problem.contains("`text` does not begin with them") && problem.contains("has not signed"), "{problem}");
}

#[tokio::test]
async fn a_node_that_signs_other_parts_than_its_output_is_found_out() {
    let sent = vec![Sent::Attempt(0), Sent::Part("LIE"), Sent::Signed(0, &["LIE"])];
    assert!(receive(sent, "the truth").await.2.is_err());
}

#[test]
fn parts_have_no_more_bytes_than_a_stream_may_have() {
    let mut parts = Parts::new(&quote(Address::ZERO), DOMAIN);
    let mut count = 0;
    let part = part(Values::from([("text", "x".repeat(2 << 20).as_str())]));
    for _ in 0..30 {
        parts.part(part.clone());
        count += usize::from(parts.next().is_some());
    }
    assert!(count <= MAX_STREAM_BYTES / (2 << 20), "{count}");
    assert!(parts.misfit.as_ref().is_some_and(|misfit| misfit.contains("bytes")), "{:?}", parts.misfit);
}

/// Of what is no text, a later part replaces an earlier one, so only the node's signature over what was handed out counts.
#[tokio::test]
async fn a_signature_over_other_parts_does_not_vouch_for_those_that_were_handed_out() {
    let node = PrivateKeySigner::random();
    let quote = quote(node.address());
    let values = |byte: u8| Values::from([("x", Tensor::new(DataType::U8, vec![1], vec![byte]).unwrap())]);
    let part = |byte| part(values(byte));
    let mut honest = StreamChain::new(quote.request_id);
    honest.extend(&values(2));
    let signed = signed(&honest, &node).await;

    let mut parts = Parts::new(&quote, DOMAIN);
    parts.attempt(node.address());
    parts.part(part(1));
    assert_eq!(parts.next(), Some(InferenceEvent::Part(part(1))), "forged, and handed out");
    parts.checkpoint(&signed);
    parts.attempt(node.address());
    parts.part(part(2));
    parts.checkpoint(&signed);
    assert!(parts.delivered(&values(2), u64::MAX).is_err());
}
