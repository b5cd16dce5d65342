//! Batches: served requests, and the one settlement that pays them.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256, keccak256};
use serde::{Deserialize, Serialize};

use super::{ChannelPayment, MerkleTree, VoucherError};
use crate::{
    Amount, Certificate, CertificateError, ChannelCharge, ChannelPayout, ChannelSettlement, Completion, InferenceResult,
    Message as _, PaymentTree, Quote, RequestId, SettledCompletion, SignatureError, Signed, TrustRoot, payment::SplitError,
};

/// The most requests that validators judge at once.
pub const MAX_BATCH: usize = 10_000;
/// The most channels that one settlement charges, which the contract enforces too.
pub const MAX_CHARGES: usize = 64;
/// The most accounts that one settlement pays, which the contract enforces too.
pub const MAX_PAYOUTS: usize = 512;

/// One served request of a channel, with all that proves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BatchEntry {
    /// What was approved and promised.
    pub quote: Quote,
    /// What the compute node says it ran.
    pub result: Signed<InferenceResult>,
    /// The validators' approval of the result.
    pub completion: Certificate,
    /// The client's voucher.
    pub payment: ChannelPayment,
}

impl BatchEntry {
    /// What the validators approved.
    pub fn completion(&self) -> Completion {
        Completion::new(&self.quote, &self.result.message)
    }

    /// The request's leaf.
    pub fn leaf(&self) -> SettledCompletion {
        SettledCompletion {
            channel: self.payment.voucher.channel,
            completion: self.completion().struct_hash(),
            amount: self.quote.total,
            result_signature: keccak256(self.result.signature.as_bytes()),
        }
    }

    /// Checks everything that the entry says of itself, every signature included. The approvals have to be of validators that are
    /// active now; the set may have changed since they were given.
    pub fn verify(&self, trust: &TrustRoot) -> Result<(), BatchError> {
        let request_id = self.quote.request_id;
        let entry = |problem: String| BatchError::Entry { request_id, problem };
        let result = &self.result.message;
        let checks = [
            (result.request_id == request_id, "result.requestId: is another request"),
            (result.model_digest == self.quote.model_digest, "result.modelDigest: another model was run"),
        ];
        if let Some((_, problem)) = checks.into_iter().find(|(good, _)| !good) {
            return Err(entry(problem.into()));
        }
        self.payment.verify(&self.quote, trust).map_err(|error: VoucherError| entry(error.to_string()))?;
        self.result.verify(&trust.domain).map_err(|error: SignatureError| entry(format!("result: {error}")))?;
        let digest = self.completion().digest(&trust.domain);
        let certificate = self.completion.verify_by(&digest, &trust.validators, trust.threshold);
        certificate.map_err(|error: CertificateError| entry(format!("completion: {error}")))
    }
}

/// Why a batch cannot be settled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BatchError {
    /// Nothing in it.
    #[error("entries: there are none")]
    Empty,
    /// More in it than can be settled at once.
    #[error("{what}: {have}, at most {most} are settled at once")]
    TooMany {
        /// Of what.
        what: String,
        /// How many there are.
        have: usize,
        /// How many there may be.
        most: usize,
    },
    /// A request that does not belong there.
    #[error("request {request_id}: {problem}")]
    Entry {
        /// Which.
        request_id: RequestId,
        /// Why.
        problem: String,
    },
    /// A channel of which it is not known what it was charged before.
    #[error("charges: the settled sum of channel {0} is missing")]
    UnknownChannel(B256),
    /// The settlement is not the one that the entries lead to.
    #[error("settlement: is not what its requests lead to")]
    Mismatch,
}

/// Requests that are settled together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Batch {
    /// By ascending request id.
    pub entries: Vec<BatchEntry>,
    /// What they lead to.
    pub settlement: ChannelSettlement,
}

impl Batch {
    /// Puts requests together; `settled` says what each of their channels has been charged so far.
    pub fn new(mut entries: Vec<BatchEntry>, settled: &BTreeMap<B256, Amount>, treasury: Address) -> Result<Self, BatchError> {
        entries.sort_unstable_by_key(|entry| entry.quote.request_id);
        let settlement = settlement_of(&entries, settled, treasury)?;
        Ok(Self { entries, settlement })
    }

    /// Checks that the settlement is what the entries lead to, without a look at any signature. See [`BatchEntry::verify`].
    pub fn check(&self, treasury: Address) -> Result<(), BatchError> {
        let settled = self.settlement.charges.iter().map(|charge| (charge.channel, charge.settled_before)).collect();
        if settlement_of(&self.entries, &settled, treasury)? == self.settlement { Ok(()) } else { Err(BatchError::Mismatch) }
    }

    /// The voucher of each charge, in their order: the highest of the channel's in this batch. Earlier vouchers of the channel may
    /// allow more; see [`CertifiedBatch::vouchers`].
    pub fn vouchers(&self) -> BTreeMap<B256, ChannelPayment> {
        let mut highest: BTreeMap<B256, ChannelPayment> = BTreeMap::new();
        for entry in &self.entries {
            let known = highest.entry(entry.payment.voucher.channel).or_insert(entry.payment);
            if entry.payment.voucher.cumulative > known.voucher.cumulative {
                *known = entry.payment;
            }
        }
        highest
    }

    /// The Merkle tree over the requests, in their order.
    pub fn tree(&self) -> Option<MerkleTree> {
        tree(&self.entries)
    }
}

/// A batch that the validators approved: all that the chain has to see of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertifiedBatch {
    /// What was approved.
    pub settlement: ChannelSettlement,
    /// For each charge, in order, a voucher of the channel that allows as much.
    pub vouchers: Vec<ChannelPayment>,
    /// The approval.
    pub certificate: Certificate,
}

fn tree(entries: &[BatchEntry]) -> Option<MerkleTree> {
    MerkleTree::new(entries.iter().map(|entry| entry.leaf().struct_hash()).collect())
}

fn settlement_of(
    entries: &[BatchEntry],
    settled: &BTreeMap<B256, Amount>,
    treasury: Address,
) -> Result<ChannelSettlement, BatchError> {
    let most = |what: &str, have: usize, most: usize| {
        if have <= most { Ok(()) } else { Err(BatchError::TooMany { what: what.into(), have, most }) }
    };
    most("entries", entries.len(), MAX_BATCH)?;
    let mut seen = BTreeSet::new();
    let mut charges: BTreeMap<B256, ChannelCharge> = BTreeMap::new();
    let mut payouts: BTreeMap<Address, Amount> = BTreeMap::new();
    let mut previous = None;
    for entry in entries {
        let request_id = entry.quote.request_id;
        let refuse = |problem: String| BatchError::Entry { request_id, problem };
        if !seen.insert(request_id) {
            return Err(refuse("is in the batch twice".into()));
        }
        if previous.is_some_and(|previous| previous > request_id) {
            return Err(refuse("is out of order: requests ascend by id".into()));
        }
        previous = Some(request_id);
        let (channel, total) = (entry.payment.voucher.channel, entry.quote.total);
        let before = *settled.get(&channel).ok_or(BatchError::UnknownChannel(channel))?;
        let overflow = || refuse("brings the sum above what an amount can be".into());
        let charge = charges.entry(channel).or_insert(ChannelCharge { channel, settled_before: before, settled_after: before });
        charge.settled_after = Amount::checked_sum([charge.settled_after, total]).ok_or_else(overflow)?;
        let validators = entry.completion.validators();
        let tree = PaymentTree::new(&entry.quote, entry.result.message.compute, &validators, treasury);
        for payout in tree.map_err(|error: SplitError| refuse(error.to_string()))?.payouts {
            let sum = payouts.entry(payout.address).or_default();
            *sum = Amount::checked_sum([*sum, payout.amount]).ok_or_else(overflow)?;
        }
    }
    most("channels", charges.len(), MAX_CHARGES)?;
    most("payouts", payouts.len(), MAX_PAYOUTS)?;
    let root = tree(entries).ok_or(BatchError::Empty)?.root();
    Ok(ChannelSettlement {
        root,
        count: entries.len() as u64,
        charges: charges.into_values().collect(),
        payouts: payouts.into_iter().map(|(account, amount)| ChannelPayout { account, amount }).collect(),
    })
}
