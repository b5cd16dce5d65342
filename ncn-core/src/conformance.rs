//! A public test suite for each port: what its contract says, as functions that any implementation can be run against.
//!
//! A suite returns the rules that it checked, or the first one that was broken. Bring the implementation in a small fixture that
//! says how to make what the suite needs; run it bare, behind a wire, behind decorators: the rules are the same.

mod escapes;
mod executor;
mod money;
mod registry;
mod sandbox;
mod transport;

use std::{fmt, sync::Arc};

use alloy_primitives::{Address, B256};
use alloy_signer_local::PrivateKeySigner;
pub use escapes::{EscapeFixture, Escapes, escapes};
pub use executor::{ExecutorFixture, executor};
pub use money::{ChainFixture, LedgerFixture, PayerFixture, chain, ledger, payer};
pub use registry::{RegistryFixture, registry};
pub use sandbox::{SandboxFixture, sandbox};
pub use transport::{TransportFixture, transport};

use crate::{
    Amount, Approval, Committee, Confinement, Delivery, DynSigner, Epoch, FeeSplit, FinishReason, InferenceRequest,
    InferenceResult, Message, Price, QuorumCertificate, Quote, RequestId, Signed, TrustRoot, Unit, UnitPrice, Units, UnixTime,
    Usage, trust::draw_of,
};

/// A rule of a port's contract that an implementation breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule `{rule}` is broken: {what}")]
pub struct Violation {
    /// Which rule.
    pub rule: &'static str,
    /// What happened.
    pub what: String,
}

/// The rules that were checked, or the first that was broken.
pub type Verdict = Result<Vec<&'static str>, Violation>;

/// A rule, and a change that breaks it.
type Spoilt<T> = (&'static str, fn(&mut T));

/// Collects the rules of a suite as they are checked.
#[derive(Default)]
struct Rules(Vec<&'static str>);

impl Rules {
    /// The rule holds when `holds`; `what` says what happened otherwise.
    fn check(&mut self, rule: &'static str, holds: bool, what: impl fmt::Debug) -> Result<(), Violation> {
        if !holds {
            return Err(Violation { rule, what: format!("{what:?}") });
        }
        if self.0.last() != Some(&rule) {
            self.0.push(rule);
        }
        Ok(())
    }

    /// What had to succeed.
    fn ok<T, E: fmt::Debug>(&mut self, rule: &'static str, result: Result<T, E>) -> Result<T, Violation> {
        match result {
            Ok(value) => {
                self.check(rule, true, ())?;
                Ok(value)
            }
            Err(error) => Err(Violation { rule, what: format!("{error:?}") }),
        }
    }

    /// What had to be refused, and not as something that a retry could help.
    fn refused<T: fmt::Debug, E: fmt::Debug>(
        &mut self,
        rule: &'static str,
        result: Result<T, E>,
        retryable: impl Fn(&E) -> bool,
    ) -> Result<(), Violation> {
        match result {
            Ok(value) => Err(Violation { rule, what: format!("accepted: {value:?}") }),
            Err(error) => self.check(rule, !retryable(&error), ("calls itself retryable", error)),
        }
    }
}

fn key() -> DynSigner {
    Arc::new(PrivateKeySigner::random())
}

/// An order of this client, otherwise made up.
/// The gateway's part in the draw of every committee of the suite.
const SALT: B256 = B256::repeat_byte(0x5a);

/// An order as the suites make them, each another one.
pub fn order(client: Address, subnet: B256, model_digest: B256, max_price: Amount, deadline: UnixTime) -> InferenceRequest {
    let (input_hash, nonce, draw) = (B256::repeat_byte(0x11), B256::from(rand_bytes()), draw_of(&SALT));
    InferenceRequest { client, subnet, model_digest, input_hash, parameters: "{}".into(), max_price, deadline, nonce, draw }
}

/// Fresh keys are the suite's source of randomness.
fn rand_bytes() -> [u8; 32] {
    PrivateKeySigner::random().to_bytes().0
}

/// A quote of such an order, as its gateway makes it.
pub fn quote(order: &InferenceRequest, epoch: &Epoch, gateway: Address, compute: Address, total: Amount) -> Quote {
    let trust = &epoch.trust;
    let request_id = order.digest(&trust.domain);
    Quote {
        request_id,
        client: order.client,
        gateway,
        compute,
        model_digest: order.model_digest,
        price: Price::flat(total),
        max_units: Units::default(),
        total,
        split: FeeSplit::default(),
        expiry: order.deadline,
        trust_root: trust.hash(),
        epoch: epoch.since,
        salt: SALT,
        committee: trust.committee(&SALT, &request_id).struct_hash(),
    }
}

/// Half of the total is for the request, and half for a unit of output, which [`delivery`] does not give: the rest goes back.
fn priced_by_use(mut quote: Quote) -> Quote {
    let half = Amount::new(quote.total.units() / 2);
    quote.price.base = quote.total.checked_sub(half).unwrap_or_default();
    quote.price.output = UnitPrice { unit: Unit::Token, price: half };
    quote.max_units.output = 1;
    quote
}

/// What this compute node gives for the quote, otherwise made up.
pub async fn delivery(order: &InferenceRequest, quote: &Quote, trust: &TrustRoot, compute: &DynSigner) -> Delivery {
    let message = InferenceResult {
        request_id: quote.request_id,
        compute: compute.address(),
        model_digest: order.model_digest,
        input_hash: order.input_hash,
        output_hash: B256::repeat_byte(0x22),
        output_bytes: 3,
        parts: 1,
        chain: B256::repeat_byte(0x33),
        resumed_from: B256::ZERO,
        continuation: None,
        usage: Usage::default(),
        confinement: Confinement::None,
        finish: Some(FinishReason::Stop),
    };
    Delivery { results: vec![signed(message, trust, compute).await], finish: FinishReason::Stop }
}

#[allow(clippy::expect_used, reason = "a local key always signs; this is a test suite")]
async fn signed<T: crate::crypto::Authored>(message: T, trust: &TrustRoot, key: &DynSigner) -> Signed<T> {
    Signed::sign(message, &trust.domain, &**key).await.expect("a local key signs its own message")
}

/// The approvals of a message by the first `count` of the request's committee whose keys are at hand.
#[allow(clippy::expect_used, reason = "a local key always signs; this is a test suite")]
async fn certificate(
    message: &impl Message,
    request_id: &RequestId,
    trust: &TrustRoot,
    validators: &[DynSigner],
    count: usize,
) -> QuorumCertificate {
    let digest = message.digest(&trust.domain);
    let Committee { members, .. } = trust.committee(&SALT, request_id);
    let judges = validators.iter().filter(|validator| members.contains(&validator.address())).take(count);
    let mut approvals = Vec::new();
    for judge in judges {
        approvals.push(Approval::sign(&digest, &**judge).await.expect("a local key signs"));
    }
    QuorumCertificate::new(approvals)
}
