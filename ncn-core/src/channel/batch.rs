//! Batches: served requests, and the one settlement that pays them.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use super::{MerkleTree, Numbers, SignedVoucher};
use crate::{
    Amount, ChannelCharge, ChannelPayout, ChannelSettlement, Committee, Completion, Delivery, Message as _, PayoutSchedule,
    QuorumCertificate, Quote, RequestId, SettlementLeaf, TrustHistory, Voucher,
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
    /// What the compute nodes have given.
    pub delivery: Delivery,
    /// The validators' approval of its completion.
    pub certificate: QuorumCertificate,
    /// The client's voucher.
    pub payment: SignedVoucher,
}

impl BatchEntry {
    fn error(&self, problem: impl std::fmt::Display) -> BatchError {
        BatchError::Entry { request_id: self.quote.request_id, problem: problem.to_string() }
    }

    /// What the validators approved.
    ///
    /// # Errors
    /// When the delivery is not one for the quote.
    pub fn completion(&self) -> Result<Completion, BatchError> {
        self.delivery.completion(&self.quote).map_err(|error| self.error(error))
    }

    /// The request's leaf, by its [`Self::completion`].
    fn leaf(&self, completion: &Completion) -> SettlementLeaf {
        SettlementLeaf {
            channel: self.payment.voucher.channel,
            completion: completion.struct_hash(),
            amount: completion.cost(),
            result_signatures: self.delivery.signatures_hash(),
        }
    }

    /// Checks everything that the entry says of itself, every signature included, and that its judges are those who were drawn.
    pub fn verify(&self, trust: &TrustHistory) -> Result<(), BatchError> {
        let completion = self.completion()?;
        let (trust, committee) = trust.of(&self.quote).map_err(|error| self.error(error))?;
        self.payment.verify(&self.quote, &trust).map_err(|error| self.error(error))?;
        self.delivery.verify(&trust.domain).map_err(|error| self.error(format!("result: {error}")))?;
        let certificate = self.certificate.verify(&completion.digest(&trust.domain), &committee);
        certificate.map_err(|error| self.error(format!("completion: {error}")))
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
    #[error("charges: what channel {0} starts from is missing")]
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
    /// Puts requests together.
    pub fn new(
        mut entries: Vec<BatchEntry>,
        channels: &BTreeMap<B256, ChargeStart>,
        treasury: Address,
    ) -> Result<Self, BatchError> {
        entries.sort_unstable_by_key(|entry| entry.quote.request_id);
        let settlement = settlement_of(&entries, channels, treasury)?;
        Ok(Self { entries, settlement })
    }

    /// Checks that the settlement is what the entries lead to, without a look at any signature. See [`BatchEntry::verify`].
    pub fn check(&self, treasury: Address) -> Result<(), BatchError> {
        let start = |charge: &ChannelCharge| ChargeStart { settled: charge.settled_before, numbers: charge.numbers };
        let channels = self.settlement.charges.iter().map(|charge| (charge.channel, start(charge))).collect();
        if settlement_of(&self.entries, &channels, treasury)? == self.settlement { Ok(()) } else { Err(BatchError::Mismatch) }
    }

    /// The voucher of each charge, in their order: the highest of the channel's in this batch. Earlier vouchers of the channel may
    /// allow more; see [`CertifiedBatch::vouchers`].
    pub fn vouchers(&self) -> BTreeMap<B256, SignedVoucher> {
        let mut highest: BTreeMap<B256, SignedVoucher> = BTreeMap::new();
        for entry in &self.entries {
            let known = highest.entry(entry.payment.voucher.channel).or_insert(entry.payment);
            if entry.payment.voucher.cumulative > known.voucher.cumulative {
                *known = entry.payment;
            }
        }
        highest
    }

    /// The Merkle tree over the requests, in their order; none of a batch that is empty, or has a request that is not consistent.
    pub fn tree(&self) -> Option<MerkleTree> {
        let leaf = |entry: &BatchEntry| Some(entry.leaf(&entry.completion().ok()?).struct_hash());
        MerkleTree::new(self.entries.iter().map(leaf).collect::<Option<_>>()?)
    }
}

/// What a batch starts from, of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChargeStart {
    /// What it has been charged so far.
    pub settled: Amount,
    /// Which numbers are to be over with the batch, those of its requests among them.
    pub numbers: Numbers,
}

/// A batch that the validators approved: all that the chain has to see of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertifiedBatch {
    /// What was approved.
    pub settlement: ChannelSettlement,
    /// For each charge, in order, a voucher of the channel that allows as much.
    pub vouchers: Vec<SignedVoucher>,
    /// Of each of these vouchers.
    pub committees: Vec<Committee>,
    /// The approval.
    pub certificate: QuorumCertificate,
}

fn settlement_of(
    entries: &[BatchEntry],
    channels: &BTreeMap<B256, ChargeStart>,
    treasury: Address,
) -> Result<ChannelSettlement, BatchError> {
    let most = |what: &str, have: usize, most: usize| {
        if have <= most { Ok(()) } else { Err(BatchError::TooMany { what: what.into(), have, most }) }
    };
    most("entries", entries.len(), MAX_BATCH)?;
    let (mut seen, mut counted) = (BTreeSet::new(), BTreeSet::new());
    let mut charges: BTreeMap<B256, ChannelCharge> = BTreeMap::new();
    let mut payouts: BTreeMap<Address, Amount> = BTreeMap::new();
    let mut previous = None;
    let mut leaves = Vec::with_capacity(entries.len());
    for entry in entries {
        let request_id = entry.quote.request_id;
        let refuse = |problem: &str| entry.error(problem);
        if !seen.insert(request_id) {
            return Err(refuse("is in the batch twice"));
        }
        if previous.is_some_and(|previous| previous > request_id) {
            return Err(refuse("is out of order: requests ascend by id"));
        }
        previous = Some(request_id);
        let completion = entry.completion()?;
        if completion.cost().is_zero() {
            return Err(refuse("costs nothing: there is nothing to settle"));
        }
        leaves.push(entry.leaf(&completion).struct_hash());
        let Voucher { channel, number, .. } = entry.payment.voucher;
        let ChargeStart { settled, numbers } = *channels.get(&channel).ok_or(BatchError::UnknownChannel(channel))?;
        if !numbers.contains(number) {
            return Err(refuse("has a number that is not over with this batch"));
        }
        if !counted.insert((channel, number)) {
            return Err(refuse("has the same number as another request of its channel"));
        }
        let overflow = || refuse("brings the sum above what an amount can be");
        let new = ChannelCharge { channel, settled_before: settled, settled_after: settled, numbers };
        let charge = charges.entry(channel).or_insert(new);
        charge.settled_after = Amount::checked_sum([charge.settled_after, completion.cost()]).ok_or_else(overflow)?;
        let tree = PayoutSchedule::new(&entry.quote, &completion, &entry.certificate.validators(), treasury);
        for payout in tree.map_err(|error| entry.error(error))?.payouts {
            let sum = payouts.entry(payout.address).or_default();
            *sum = Amount::checked_sum([*sum, payout.amount]).ok_or_else(overflow)?;
        }
    }
    most("channels", charges.len(), MAX_CHARGES)?;
    most("payouts", payouts.len(), MAX_PAYOUTS)?;
    let root = MerkleTree::new(leaves).ok_or(BatchError::Empty)?.root();
    Ok(ChannelSettlement {
        root,
        count: entries.len() as u64,
        charges: charges.into_values().collect(),
        payouts: payouts.into_iter().map(|(account, amount)| ChannelPayout { account, amount }).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        Approval, ChannelParams, Confinement, FeeSplit, FinishReason, InferenceResult, Price, Signature, Signed, Unit, UnitPrice,
        Units, Usage,
    };

    const TREASURY: Address = Address::repeat_byte(0xdd);

    fn account(role: u8, number: u8) -> Address {
        Address::left_padding_from(&[role, number])
    }

    /// Nothing here looks at a signature.
    fn signature(byte: u8) -> Signature {
        let mut bytes = [byte; 65];
        (bytes[32], bytes[64]) = (0, 27);
        Signature::try_from(&bytes[..]).unwrap()
    }

    /// What differs from one request to another. What the request does not cost, a unit of output would.
    #[derive(Clone, Debug)]
    struct Request {
        total: u128,
        cost: u128,
        split: FeeSplit,
        channel: u8,
        node: u8,
        validators: Range<u8>,
    }

    fn requests() -> impl Strategy<Value = Vec<Request>> {
        let basis_points = || 0u16..=3_333;
        let split = (basis_points(), basis_points(), basis_points())
            .prop_map(|(gateway_bps, validators_bps, treasury_bps)| FeeSplit { gateway_bps, validators_bps, treasury_bps });
        let validators = (0u8..8, 1u8..8).prop_map(|(first, count)| first..first + count);
        let cost = (1u128..1 << 100, 0u128..1 << 100);
        let request = (cost, split, 0u8..4, 0u8..4, validators);
        let request = request.prop_map(|((cost, rest), split, channel, node, validators)| {
            let total = cost + rest;
            Request { total, cost, split, channel, node, validators }
        });
        vec(request, 1..8)
    }

    fn entry(number: u8, request: &Request) -> BatchEntry {
        let terms = ChannelParams { client: account(1, request.channel), gateway: account(2, 0), salt: B256::ZERO };
        let quote = Quote {
            request_id: B256::repeat_byte(number),
            client: terms.client,
            gateway: terms.gateway,
            compute: account(3, request.node),
            model_digest: B256::ZERO,
            price: Price {
                base: Amount::new(request.cost),
                input: UnitPrice::free(Unit::Token),
                output: UnitPrice { unit: Unit::Token, price: Amount::new(request.total - request.cost) },
            },
            max_units: Units { input: 0, output: 1 },
            total: Amount::new(request.total),
            split: request.split,
            expiry: 0,
            trust_root: B256::ZERO,
            epoch: 0,
            salt: B256::ZERO,
            committee: B256::ZERO,
        };
        let message = InferenceResult {
            request_id: quote.request_id,
            compute: quote.compute,
            model_digest: B256::ZERO,
            input_hash: B256::ZERO,
            output_hash: B256::repeat_byte(number),
            output_bytes: 0,
            parts: 1,
            chain: B256::repeat_byte(number),
            resumed_from: B256::ZERO,
            continuation: None,
            usage: Usage::default(),
            confinement: Confinement::None,
            finish: Some(FinishReason::Stop),
        };
        let voucher = Voucher::new(&terms, &quote, number.into(), quote.total);
        let approval = |number| Approval { validator: account(4, number), signature: signature(number) };
        BatchEntry {
            delivery: Delivery::whole(Signed { message, signature: signature(number) }).unwrap(),
            certificate: QuorumCertificate::new(request.validators.clone().map(approval).collect()),
            payment: SignedVoucher { terms, voucher, signature: signature(0) },
            quote,
        }
    }

    fn batch(requests: &[Request], settled: u128) -> Batch {
        let entries: Vec<_> = (1..).zip(requests).map(|(number, request)| entry(number, request)).collect();
        let start = ChargeStart { settled: Amount::new(settled), numbers: Numbers { base: 10, over: 0 } };
        let channels = entries.iter().map(|entry| (entry.payment.voucher.channel, start)).collect();
        Batch::new(entries, &channels, TREASURY).unwrap()
    }

    fn one_more(amount: &mut Amount) {
        *amount = amount.checked_add(Amount::new(1)).unwrap();
    }

    proptest! {
        // Hashing is slow in a debug build.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_charged_is_paid(requests in requests(), settled in 0u128..1 << 100) {
            let Batch { settlement, .. } = batch(&requests, settled);
            let charged = settlement.charges.iter().map(|charge| charge.settled_after.checked_sub(charge.settled_before).unwrap());
            let charged = Amount::checked_sum(charged);
            prop_assert_eq!(charged, Amount::checked_sum(settlement.payouts.iter().map(|payout| payout.amount)));
            prop_assert_eq!(charged, Amount::checked_sum(requests.iter().map(|request| Amount::new(request.cost))));
            prop_assert!(settlement.payouts.iter().all(|payout| !payout.amount.is_zero()));
            prop_assert!(settlement.payouts.is_sorted_by(|a, b| a.account < b.account));
            prop_assert!(settlement.charges.is_sorted_by(|a, b| a.channel < b.channel));
        }

        #[test]
        fn a_changed_settlement_is_refused(requests in requests(), settled in 0u128..1 << 100, any: prop::sample::Index) {
            let good = batch(&requests, settled);
            prop_assert_eq!(good.check(TREASURY), Ok(()));
            let (charge, payout) = (any.index(good.settlement.charges.len()), any.index(good.settlement.payouts.len()));
            let changes: [&dyn Fn(&mut ChannelSettlement); 11] = [
                &|settlement| settlement.root = B256::repeat_byte(0xee),
                &|settlement| settlement.count += 1,
                &|settlement| settlement.charges[charge].channel = B256::repeat_byte(0xff),
                &|settlement| one_more(&mut settlement.charges[charge].settled_before),
                &|settlement| one_more(&mut settlement.charges[charge].settled_after),
                &|settlement| settlement.charges.truncate(charge),
                &|settlement| settlement.charges[charge].numbers = Numbers { base: 0, over: 1 },
                &|settlement| settlement.payouts[payout].account = account(9, 9),
                &|settlement| one_more(&mut settlement.payouts[payout].amount),
                &|settlement| settlement.payouts.truncate(payout),
                &|settlement| settlement.payouts.push(ChannelPayout { account: account(9, 9), amount: Amount::new(1) }),
            ];
            for (number, change) in changes.into_iter().enumerate() {
                let mut changed = good.clone();
                change(&mut changed.settlement);
                prop_assert!(changed.check(TREASURY).is_err(), "change {}: {:?}", number, changed.settlement);
            }
        }

        #[test]
        fn changed_requests_are_refused(requests in requests(), any: prop::sample::Index) {
            let good = batch(&requests, 0);
            let changed = any.index(good.entries.len());
            let changes: [&dyn Fn(&mut BatchEntry); 6] = [
                &|entry| one_more(&mut entry.quote.price.base),
                &|entry| entry.quote.gateway = account(9, 9),
                &|entry| entry.delivery.results[0].message.compute = account(9, 9),
                &|entry| entry.delivery.results[0].signature = signature(0xee),
                &|entry| entry.payment.voucher.channel = B256::repeat_byte(0xff),
                &|entry| entry.payment.voucher.number = 10,
            ];
            for (number, change) in changes.into_iter().enumerate() {
                let mut batch = good.clone();
                change(&mut batch.entries[changed]);
                prop_assert!(batch.check(TREASURY).is_err(), "change {}", number);
            }
            let mut fewer = good.clone();
            fewer.entries.remove(changed);
            prop_assert!(fewer.check(TREASURY).is_err());
        }
    }
}
