use proptest::prelude::*;

use super::*;
use crate::{Address, Amount, Domain, FeeSplit, FinishReason, InferenceResult, Price, Signature, Units};

const PAYMENT: PaymentRef = PaymentRef::Transaction(B256::ZERO);

/// The events without the data that the machine does not look at.
fn events() -> impl Strategy<Value = Event> {
    let failed = |retryable| Event::ExecutionFailed { reason: String::new(), retryable };
    prop::sample::select(vec![
        reserved(),
        Event::Approved(QuorumCertificate::default()),
        Event::Refused(String::new()),
        Event::Paid(PAYMENT),
        failed(true),
        failed(false),
        Event::Settled(PAYMENT),
        Event::PaidElsewhere(B256::ZERO),
        Event::SettlementImpossible(String::new()),
        Event::Refunded(PAYMENT),
        Event::Cancelled,
        Event::Expired,
        dispatched(),
        Event::Streamed,
        executed(),
        completed(),
    ])
}

fn reserved() -> Event {
    let domain = Domain { chain_id: 1, contract: Address::ZERO };
    let (token, channels, treasury) = (Address::ZERO, Address::ZERO, Address::ZERO);
    let trust_root = TrustRoot { domain, token, channels, validators: Vec::new(), threshold: 0, committee_size: 0, treasury };
    let quote = Quote {
        request_id: B256::ZERO,
        client: Address::ZERO,
        gateway: Address::ZERO,
        compute: Address::ZERO,
        model_digest: B256::ZERO,
        price: Price::flat(Amount::TOKEN),
        max_units: Units::default(),
        total: Amount::TOKEN,
        split: FeeSplit::default(),
        expiry: 0,
        trust_root: B256::ZERO,
        epoch: 0,
        salt: B256::ZERO,
        committee: B256::ZERO,
    };
    Event::Reserved { quote: Box::new(quote), trust_root: Box::new(trust_root) }
}

fn executed() -> Event {
    use crate::{Confinement, Usage};
    let mut signature = [0; 65];
    signature[64] = 27;
    let message = InferenceResult {
        request_id: B256::ZERO,
        compute: Address::ZERO,
        model_digest: B256::ZERO,
        input_hash: B256::ZERO,
        output_hash: B256::ZERO,
        output_bytes: 0,
        parts: 1,
        chain: B256::ZERO,
        resumed_from: B256::ZERO,
        continuation: None,
        usage: Usage::default(),
        confinement: Confinement::None,
        finish: Some(FinishReason::Stop),
    };
    let signature = Signature::try_from(&signature[..]).unwrap();
    let delivery = Delivery::whole(Signed { message, signature }).unwrap();
    Event::Executed { output: None, delivery: Box::new(delivery), dispatches: Vec::new() }
}

fn dispatched() -> Event {
    let mut signature = [0; 65];
    signature[64] = 27;
    let (gateway, compute, quote, resumed_from) = (Address::ZERO, Address::ZERO, B256::ZERO, B256::ZERO);
    let message = Dispatch { gateway, compute, quote, attempt: 1, resumed_from };
    Event::Dispatched(Box::new(Signed { message, signature: Signature::try_from(&signature[..]).unwrap() }))
}

fn completed() -> Event {
    Event::Completed { certificate: QuorumCertificate::default(), output: Some(Values::new()) }
}

/// A chain: where the escrow is, and how often money left it. Its answers are the only source of Paid, Settled and Refunded.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    escrowed: bool,
    settled: u32,
    refunded: u32,
}

/// What the world may answer to an effect; `luck` picks among the answers that are possible.
fn answer(effect: Effect, chain: &mut Chain, luck: u8) -> Event {
    let refused = || Event::Refused("no".into());
    let from_chain = |chain: &Chain| {
        if chain.settled > 0 { Event::Settled(PAYMENT) } else { Event::Refunded(PAYMENT) }
    };
    match (effect, luck % 4) {
        (Effect::Reserve | Effect::RequestPreprocessing | Effect::RequestCompletion, 0) => refused(),
        (Effect::Reserve, _) => reserved(),
        (Effect::RequestPreprocessing, _) => Event::Approved(QuorumCertificate::default()),
        (Effect::RequestCompletion, 1) | (Effect::Dispatch { .. }, 0) => {
            Event::ExecutionFailed { reason: String::new(), retryable: true }
        }
        (Effect::RequestCompletion, _) => completed(),
        (Effect::AwaitPayment, 0) => Event::Expired,
        (Effect::AwaitPayment, _) => {
            chain.escrowed = true;
            Event::Paid(PAYMENT)
        }
        (Effect::Dispatch { .. }, 1) => Event::ExecutionFailed { reason: String::new(), retryable: false },
        (Effect::Dispatch { .. }, _) => executed(),
        (Effect::Settle | Effect::Refund, _) if chain.settled + chain.refunded > 0 => from_chain(chain),
        (Effect::Settle, 0) => Event::SettlementImpossible("expired".into()),
        (Effect::Settle, _) => {
            chain.settled += 1;
            from_chain(chain)
        }
        (Effect::Refund, _) => {
            assert!(chain.escrowed, "a refund needs a payment");
            chain.refunded += 1;
            from_chain(chain)
        }
        (Effect::Finish, _) => unreachable!("the caller stops at the end"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever happens in whatever order, with interruptions and restarts: money leaves the escrow once, in the direction that
    /// the outcome says, and the request ends.
    #[test]
    fn every_path_ends_and_none_pays_twice(
        lucks in prop::collection::vec(any::<u8>(), 64),
        interruptions in prop::collection::vec((0usize..64, prop::sample::select(vec![Event::Cancelled, Event::Expired])), 0..4),
        lost_answers in prop::collection::btree_set(0usize..64, 0..8),
    ) {
        let (mut life, mut chain) = (Lifecycle::default(), Chain::default());
        let mut steps = 0;
        for (turn, luck) in lucks.into_iter().enumerate() {
            for (_, event) in interruptions.iter().filter(|(at, _)| *at == turn) {
                if let Ok((next, _)) = life.step(event) {
                    life = next;
                    steps += 1;
                }
            }
            if matches!(life.state(), State::Ended(_)) {
                break;
            }
            let event = answer(life.effect(), &mut chain, luck);
            // The gateway crashes before it hears the answer: the effect is issued again.
            if lost_answers.contains(&turn) {
                continue;
            }
            (life, _) = life.step(&event).expect("the answer to an effect is expected");
            steps += 1;
        }
        let State::Ended(outcome) = life.state() else { panic!("not ended: {life:?}") };
        prop_assert!(chain.settled + chain.refunded <= 1, "{chain:?}");
        prop_assert_eq!(outcome == Outcome::Completed, chain.settled == 1);
        prop_assert_eq!(outcome == Outcome::Refunded, chain.refunded == 1);
        prop_assert!(steps <= 16, "{steps} steps");
    }

    /// Any event at all, in any state: a pure function, Settle only after an approval of a result, and ends are final but for late money.
    #[test]
    fn any_events_at_all(sequence in prop::collection::vec(events(), 0..40)) {
        let mut life = Lifecycle::default();
        let (mut settled_or_refunded, mut executed) = (0, false);
        for event in &sequence {
            prop_assert_eq!(life.step(event), life.step(event));
            let before = life.state();
            let Ok((next, effect)) = life.step(event) else { continue };
            prop_assert_eq!(effect, next.effect());
            executed |= matches!(event, Event::Executed { .. });
            prop_assert!(effect != Effect::Settle || executed);
            if let State::Ended(outcome) = before {
                let late = matches!(event, Event::Paid(_));
                prop_assert!(outcome.is_unpaid() && late && effect == Effect::Refund);
            }
            if matches!(next.state(), State::Ended(Outcome::Completed | Outcome::Refunded)) {
                settled_or_refunded += 1;
            }
            life = next;
        }
        prop_assert!(settled_or_refunded <= 1);
    }
}
