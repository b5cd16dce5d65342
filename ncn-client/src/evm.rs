//! Money on an EVM chain: the ledger that speaks to the contracts, over any way to reach a chain.

mod contracts;
mod deploy;
mod errors;
mod ledger;

use alloy_primitives::{Address, B256, Bytes};
use async_trait::async_trait;
pub use contracts::{InferencePayment, NCNToken, ValidatorRegistry};
pub use deploy::{Genesis, create};
pub use ledger::EvmLedger;
use ncn_core::UnixTime;

/// A way to reach an EVM chain.
///
/// # For the implementer
/// What it reports is what it considers final: an [`EvmLedger`] believes it.
#[async_trait]
pub trait EvmBackend: Send + Sync {
    /// The chain's id.
    async fn chain_id(&self) -> Result<u64, EvmError>;

    /// The newest block.
    async fn head(&self) -> Result<Head, EvmError>;

    /// Waits until there is a block after this one, and returns the newest.
    async fn head_after(&self, block: u64) -> Result<Head, EvmError>;

    /// How many transactions an account has sent.
    async fn nonce(&self, account: Address) -> Result<u64, EvmError>;

    /// What a call would return, without sending it.
    async fn call(&self, to: Address, data: Bytes) -> Result<Bytes, EvmError>;

    /// Sends a signed, EIP-2718 encoded transaction and waits until it is in a block.
    async fn send(&self, transaction: Bytes) -> Result<SentTransaction, EvmError>;

    /// The logs that fit, in the chain's order.
    async fn logs(&self, filter: LogFilter) -> Result<Vec<LogEntry>, EvmError>;
}

/// The newest block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its time.
    pub timestamp: UnixTime,
}

/// A transaction that is in a block and succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentTransaction {
    /// Its hash.
    pub hash: B256,
    /// The block it is in.
    pub block: u64,
    /// What it used.
    pub gas_used: u64,
    /// The contract that it created, when it did.
    pub created: Option<Address>,
}

/// Which logs to find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Emitted by this contract.
    pub address: Address,
    /// From this block on.
    pub from_block: u64,
    /// Whose second topic (the first indexed argument) is this.
    pub topic1: Option<B256>,
}

/// A log and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// What was emitted.
    pub log: alloy_primitives::Log,
    /// In which block.
    pub block: u64,
    /// By which transaction.
    pub transaction: B256,
}

/// Why the chain does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvmError {
    /// The contract refused, with this data.
    #[error("reverted with {0}")]
    Reverted(Bytes),
    /// The account has sent another transaction in the meantime.
    #[error("the nonce {given} is not the next one, {expected}")]
    Nonce {
        /// What was sent.
        given: u64,
        /// What it had to be.
        expected: u64,
    },
    /// The transaction makes no sense to the chain.
    #[error("transaction: {0}")]
    InvalidTransaction(String),
    /// The chain does not answer.
    #[error("{0}")]
    Unreachable(String),
}
