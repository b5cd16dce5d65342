//! What is signed around channels, under the domain of `PaymentChannel` ([`crate::TrustRoot::channel_domain`]).

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use crate::{Amount, ChannelParams, Message as _, Quote, RequestId, UnixTime, channel::Numbers};

/// A client's promise to pay for one request out of its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Voucher {
    /// The channel's id.
    pub channel: B256,
    /// For which request.
    pub request_id: RequestId,
    /// Struct hash of its [`crate::Quote`].
    pub quote: B256,
    /// The quote's committee: a batch that charges the channel by this voucher takes its approval.
    pub committee: B256,
    /// Which of the channel's requests it is, as the client counts them: none is settled twice.
    pub number: u64,
    /// The most that this request may cost.
    pub amount: Amount,
    /// The most that the channel may be charged altogether, with this request and all that are in flight with it.
    pub cumulative: Amount,
}

impl Voucher {
    /// The promise to pay `quote`, the request of this number, out of a channel that may then be charged `cumulative` altogether.
    pub fn new(terms: &ChannelParams, quote: &Quote, number: u64, cumulative: Amount) -> Self {
        let (request_id, hash, amount, committee) = (quote.request_id, quote.struct_hash(), quote.total, quote.committee);
        Self { channel: terms.id(), request_id, quote: hash, committee, number, amount, cumulative }
    }
}

/// One request of a batch: a leaf of the settlement's Merkle tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettlementLeaf {
    /// The channel that is charged.
    pub channel: B256,
    /// Struct hash of the [`crate::Completion`].
    pub completion: B256,
    /// What the request costs, and the channel is charged.
    pub amount: Amount,
    /// [`crate::Delivery::signatures_hash`]: who approves a batch vouches for the compute nodes' signatures.
    pub result_signatures: B256,
}

/// What a settlement takes out of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChannelCharge {
    /// The channel's id.
    pub channel: B256,
    /// What it had been charged before: no settlement can be made twice.
    pub settled_before: Amount,
    /// What it will have been charged.
    pub settled_after: Amount,
    /// Which of its vouchers' numbers are over then.
    pub numbers: Numbers,
}

/// What one account gets out of a settlement, for all its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChannelPayout {
    /// Who.
    pub account: Address,
    /// How much.
    pub amount: Amount,
}

/// What M of N validators approve before a batch of requests is settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChannelSettlement {
    /// Merkle root over the batch's [`SettlementLeaf`]s.
    pub root: B256,
    /// How many they are.
    pub count: u64,
    /// By ascending channel.
    pub charges: Vec<ChannelCharge>,
    /// By ascending account; together what is charged.
    pub payouts: Vec<ChannelPayout>,
}

/// A gateway's wish to have a batch settled: validators judge only what the gateway itself brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettlementRequest {
    /// Whose requests they are.
    pub gateway: Address,
    /// Struct hash of the [`ChannelSettlement`].
    pub settlement: B256,
}

/// A gateway's word that it will charge a channel no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChannelClose {
    /// The channel's id.
    pub channel: B256,
    /// What it has been charged.
    pub settled: Amount,
}

/// What M of N validators approve when another one did not answer. Under the network's own domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DowntimeReport {
    /// Who did not answer.
    pub validator: Address,
    /// From when.
    pub since: UnixTime,
    /// Until when.
    pub until: UnixTime,
}
