//! Money on an EVM chain: the ledger that speaks to the contracts, over any way to reach a chain.

mod account;
mod channels;
mod contracts;
mod deploy;
mod errors;
mod ledger;
mod network;
mod rpc;
mod sender;

pub use account::Stake;
use alloy_primitives::{Address, B256, Bytes, TxKind};
use async_trait::async_trait;
pub use contracts::{InferencePayment, NCNToken, PaymentChannel, Slashing, SubnetRegistry, ValidatorRegistry};
pub use deploy::{DeployParams, create};
pub use ledger::EvmLedger;
use ncn_core::UnixTime;
pub use network::Deployment;
pub use rpc::{JsonRpc, RpcOptions};
pub use sender::SendOptions;

/// What a chain shows.
///
/// # For the implementer
/// - What [`latest_block`](Self::latest_block), [`call`](Self::call), [`logs`](Self::logs) and a confirmed
///   [`transaction_receipt`](Self::transaction_receipt) report is what the implementation considers final: an [`EvmLedger`] believes it.
///   When it changes all the same, [`block_hash`](Self::block_hash) of some block does.
/// - Errors that another try may overcome are [`EvmError::Unreachable`].
#[async_trait]
pub trait EvmReader: Send + Sync {
    /// The chain's id.
    async fn chain_id(&self) -> Result<u64, EvmError>;

    /// The newest final block.
    async fn latest_block(&self) -> Result<Head, EvmError>;

    /// Waits until there is a final block after this one, and returns the newest.
    async fn block_after(&self, block: u64) -> Result<Head, EvmError>;

    /// The hash of a block; none when there is no such block (any more).
    async fn block_hash(&self, block: u64) -> Result<Option<B256>, EvmError>;

    /// What a call would return, without sending it.
    async fn call(&self, call: &Call) -> Result<Bytes, EvmError>;

    /// Where a transaction is, when it is in a block.
    async fn transaction_receipt(&self, transaction: B256) -> Result<Option<TransactionReceipt>, EvmError>;

    /// The logs that fit, in the chain's order.
    async fn logs(&self, filter: LogFilter) -> Result<Vec<LogEntry>, EvmError>;
}

/// A way to reach an EVM chain and to send it transactions.
///
/// # For the implementer
/// Errors that another try may overcome are [`EvmError::Unreachable`].
#[async_trait]
pub trait EvmBackend: EvmReader {
    /// How many transactions of an account are in blocks, and how many there are with those that wait.
    async fn nonces(&self, account: Address) -> Result<Nonces, EvmError>;

    /// How much gas a call would use as a transaction on top of the newest block; [`EvmError::Reverted`] when it would be refused.
    async fn estimate(&self, call: &Call) -> Result<u64, EvmError>;

    /// What gas costs at present.
    async fn fees(&self) -> Result<Fees, EvmError>;

    /// Hands in a signed, EIP-2718 encoded transaction, which is then waiting. One that is known already is taken again.
    /// [`EvmError::Nonce`] and other refusals say that it certainly was not taken, [`EvmError::Unreachable`] and
    /// [`EvmError::Malformed`] that it may have been.
    async fn send_raw_transaction(&self, transaction: Bytes) -> Result<(), EvmError>;
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its time.
    pub timestamp: UnixTime,
}

/// A message to a contract, or the creation of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// From whom; zero when it does not matter.
    pub from: Address,
    /// To which contract.
    pub to: TxKind,
    /// What it says.
    pub input: Bytes,
}

/// How many transactions an account has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonces {
    /// Those in final blocks.
    pub mined: u64,
    /// With those that wait.
    pub pending: u64,
}

/// What gas costs, in the chain's smallest unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fees {
    /// What every transaction of the next block pays.
    pub base: u128,
    /// What it takes on top to be taken soon.
    pub priority: u128,
}

/// A transaction in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionReceipt {
    /// In which.
    pub block: u64,
    /// Whether that block is final.
    pub confirmed: bool,
    /// Whether it did what it was meant to; false when it was reverted.
    pub succeeded: bool,
    /// What it used.
    pub gas_used: u64,
    /// The contract that it created, when it did.
    pub created: Option<Address>,
}

/// A transaction that is in a final block and succeeded.
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
    /// Up to this block, which there has to be; up to the newest, when none is said.
    pub to_block: Option<u64>,
    /// Whose second topic (the first indexed argument) is this.
    pub topic1: Option<B256>,
    /// Whose third topic (the second indexed argument) is this.
    pub topic2: Option<B256>,
    /// Only the newest are of interest: older ones may be left out when there are newer ones.
    pub newest: bool,
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
    /// Another transaction of the account has this nonce.
    #[error("nonce: {0} is taken by another transaction of the account")]
    Nonce(u64),
    /// The account cannot pay for gas.
    #[error("gas: the account cannot pay for it ({0}): give it some of the chain's own coin, or have a gateway relay")]
    InsufficientGasFunds(String),
    /// Gas costs more than the caller allows.
    #[error("gas: costs {needed} wei a unit now, the limit is {limit}: wait, or raise the limit")]
    FeeCapExceeded {
        /// What it takes.
        needed: u128,
        /// What is allowed.
        limit: u128,
    },
    /// Another chain than the one that was expected.
    #[error("chain: {endpoint} is chain {actual}, not {expected}: use an endpoint of chain {expected}")]
    WrongChain {
        /// Who was asked.
        endpoint: String,
        /// The chain that it has.
        actual: u64,
        /// The chain that it had to have.
        expected: u64,
    },
    /// An endpoint that cannot be called.
    #[error("endpoint: {0}")]
    InvalidEndpoint(String),
    /// The transaction makes no sense to the chain.
    #[error("transaction: {0}")]
    InvalidTransaction(String),
    /// The chain's answer makes no sense.
    #[error("{method}: the chain's answer is malformed: {problem}")]
    Malformed {
        /// What was asked.
        method: &'static str,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The chain's endpoint does not know the question, or does not allow it.
    #[error("{0}: use an endpoint that answers it")]
    Unsupported(String),
    /// The chain does not answer.
    #[error("{0}")]
    Unreachable(String),
}
