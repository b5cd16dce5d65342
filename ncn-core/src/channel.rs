//! Channels: a client's deposit for many requests at one gateway, spent by vouchers, settled in batches.

mod batch;
mod merkle;
mod numbers;

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_sol_types::{SolStruct as _, SolValue as _, eip712_domain};
pub use batch::{Batch, BatchEntry, BatchError, CertifiedBatch, ChargeStart, MAX_BATCH, MAX_CHARGES, MAX_PAYOUTS};
pub use merkle::{MerkleTree, verify_proof};
pub use numbers::Numbers;
use serde::{Deserialize, Serialize};

use crate::{Amount, DynSigner, Message as _, Quote, Signature, SignatureError, TrustRoot, UnixTime, Voucher};

/// The longest that a channel may be open without its client's extending it, which the contract enforces too.
pub const MAX_CHANNEL_SECONDS: u64 = 180 * 24 * 60 * 60;

/// Which channel: a client that wants another one with the same gateway takes another salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelParams {
    /// Who pays, and to whom the rest goes back.
    pub client: Address,
    /// Who serves.
    pub gateway: Address,
    /// Anything.
    pub salt: B256,
}

impl ChannelParams {
    /// The channel's id: keccak256(abi.encode(client, gateway, salt)).
    pub fn id(&self) -> B256 {
        keccak256((self.client, self.gateway, self.salt).abi_encode_params())
    }

    /// The nonce of the token authorization that opens the channel or adds `amount` to it, when it has `before` as its deposit.
    pub fn funding_nonce(&self, before: Amount, amount: Amount, expiry: UnixTime) -> B256 {
        keccak256((self.id(), before.units(), amount.units(), expiry).abi_encode_params())
    }
}

/// What the chain holds of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// All that was ever paid in.
    pub deposit: Amount,
    /// What it was charged; grows only.
    pub settled: Amount,
    /// Which of its vouchers' numbers are over; they stay so.
    pub numbers: Numbers,
    /// The last second in which it can be charged.
    pub expiry: UnixTime,
    /// False once the rest has gone back.
    pub open: bool,
}

/// A voucher with what it takes to check it: the payment of one request out of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedVoucher {
    /// The channel.
    pub terms: ChannelParams,
    /// The promise.
    pub voucher: Voucher,
    /// The client's signature over the voucher.
    pub signature: Signature,
}

/// Why a voucher does not pay a quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("voucher.{field}: {problem}")]
pub struct VoucherError {
    /// What is wrong.
    pub field: String,
    /// Why, and what to do.
    pub problem: String,
}

impl VoucherError {
    /// A voucher at a gateway that takes none.
    pub fn not_taken() -> Self {
        Self::new("channel", "this gateway takes no vouchers: pay into escrow")
    }

    /// A voucher whose `field` is no good.
    pub fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

impl SignedVoucher {
    /// The client's promise to pay `quote`, the request of this number, out of a channel that may then be charged `cumulative` altogether.
    pub async fn sign(
        terms: ChannelParams,
        quote: &Quote,
        number: u64,
        cumulative: Amount,
        trust: &TrustRoot,
        client: &DynSigner,
    ) -> Result<Self, SignatureError> {
        let voucher = Voucher::new(&terms, quote, number, cumulative);
        let signature = Signature::sign(&voucher.digest(&trust.channel_domain()), &**client).await?;
        Ok(Self { terms, voucher, signature })
    }

    /// What identifies the payment: the voucher's digest.
    pub fn reference(&self, trust: &TrustRoot) -> B256 {
        self.voucher.digest(&trust.channel_domain())
    }

    /// Checks all but the signature: is this the promise to pay this quote?
    pub fn matches(&self, quote: &Quote) -> Result<(), VoucherError> {
        let Self { terms, voucher, .. } = self;
        let checks = [
            (terms.client == quote.client, "channel", "is another client's"),
            (terms.gateway == quote.gateway, "channel", "is with another gateway"),
            (voucher.channel == terms.id(), "channel", "is not the one of the terms"),
            (voucher.request_id == quote.request_id, "requestId", "is another request"),
            (voucher.quote == quote.struct_hash(), "quote", "is not the approved quote's struct hash"),
            (voucher.committee == quote.committee, "committee", "is not the quote's"),
            (voucher.amount == quote.total, "amount", "is not the quote's total"),
            (voucher.cumulative >= voucher.amount, "cumulative", "is less than the request's own amount"),
        ];
        match checks.into_iter().find(|(good, ..)| !good) {
            Some((_, field, problem)) => Err(VoucherError::new(field, problem)),
            None => Ok(()),
        }
    }

    /// Checks that the client has promised to pay this quote. Whether the channel can bear it, the chain and the gateway's book say.
    pub fn verify(&self, quote: &Quote, trust: &TrustRoot) -> Result<(), VoucherError> {
        self.matches(quote)?;
        let verified = self.signature.verify(&self.reference(trust), self.terms.client);
        verified.map_err(|error| VoucherError::new("signature", error.to_string()))
    }
}

/// What a client signs so that a request is paid without a transaction of its own. A retry presents the same one again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::large_enum_variant, reason = "the larger one is the usual one")]
pub enum PaymentAuthorization {
    /// Moves the quote's total into escrow once somebody brings it to the chain.
    Transfer(Signature),
    /// Promises it out of a channel.
    Voucher(SignedVoucher),
}

impl PaymentAuthorization {
    /// A client's authorization to escrow exactly this quote.
    pub async fn transfer(trust: &TrustRoot, quote: &Quote, client: &DynSigner) -> Result<Self, SignatureError> {
        Ok(Self::Transfer(Signature::sign(&escrow_digest(trust, quote), &**client).await?))
    }
}

mod erc3009 {
    alloy_sol_types::sol! {
        struct ReceiveWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
    }
}

/// What a client signs so that `to`, one of the network's contracts, takes `value` of its tokens: the digest of an ERC-3009
/// ReceiveWithAuthorization. Only `to` can use it, and only once.
pub fn transfer_digest(trust: &TrustRoot, from: Address, to: Address, value: Amount, before: UnixTime, nonce: B256) -> B256 {
    let domain = eip712_domain! { name: "NCN", version: "1", chain_id: trust.domain.chain_id, verifying_contract: trust.token, };
    let transfer = erc3009::ReceiveWithAuthorization {
        from,
        to,
        value: U256::from(value.units()),
        validAfter: U256::ZERO,
        validBefore: U256::from(before),
        nonce,
    };
    transfer.eip712_signing_hash(&domain)
}

/// What a client signs so that exactly this quote is paid into escrow.
pub fn escrow_digest(trust: &TrustRoot, quote: &Quote) -> B256 {
    transfer_digest(trust, quote.client, trust.domain.contract, quote.total, quote.expiry, quote.struct_hash())
}
