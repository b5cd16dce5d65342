//! Why the chain refuses, in the words of other nodes: clients read them.

use std::convert::Infallible;

use alloy_primitives::{Bytes, U256};
use ncn_client::evm::EvmError;
use revm::context::result::{EVMError, InvalidTransaction};

/// Why a transaction is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("oversized data: transaction size {size}, limit {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("invalid transaction: {0}")]
    Malformed(String),
    #[error("transaction type not supported: send a legacy, EIP-2930 or EIP-1559 transaction")]
    Type,
    #[error("invalid chain id for signer: have {} want {ours}", given.map_or_else(|| "none".into(), |given| given.to_string()))]
    ChainId { given: Option<u64>, ours: u64 },
    #[error("already known")]
    AlreadyKnown,
    #[error("nonce too low: next nonce {next}, tx nonce {given}")]
    NonceTooLow { given: u64, next: u64 },
    #[error("replacement transaction underpriced")]
    Underpriced { nonce: u64 },
    #[error("txpool is full")]
    PoolFull,
    #[error("insufficient funds for gas * price + value: balance {balance}, tx cost {cost}")]
    Funds { balance: U256, cost: U256 },
    #[error("exceeds block gas limit: tx gas limit {given}, block gas limit {limit}")]
    GasLimit { given: u64, limit: u64 },
    #[error("intrinsic gas too low: gas {given}, minimum needed {needed}")]
    IntrinsicGas { given: u64, needed: u64 },
    #[error("{0}")]
    Invalid(String),
}

impl Refusal {
    /// What the EVM says about a transaction.
    pub(super) fn from_evm(error: EVMError<Infallible>) -> Self {
        match error {
            EVMError::Transaction(InvalidTransaction::LackOfFundForMaxFee { fee, balance }) => {
                Self::Funds { balance: *balance, cost: *fee }
            }
            EVMError::Transaction(
                InvalidTransaction::CallGasCostMoreThanGasLimit { initial_gas: needed, gas_limit: given }
                | InvalidTransaction::GasFloorMoreThanGasLimit { gas_floor: needed, gas_limit: given },
            ) => Self::IntrinsicGas { given, needed },
            EVMError::Transaction(problem) => Self::Invalid(problem.to_string()),
            other => Self::Invalid(format!("{other:?}")),
        }
    }
}

impl From<Refusal> for EvmError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NonceTooLow { given: nonce, .. } | Refusal::Underpriced { nonce } => Self::Nonce(nonce),
            Refusal::Funds { .. } => Self::InsufficientGasFunds(refusal.to_string()),
            Refusal::PoolFull => Self::Unreachable(refusal.to_string()),
            other => Self::InvalidTransaction(other.to_string()),
        }
    }
}

/// Why a call returns nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    #[error("execution reverted")]
    Reverted(Bytes),
    #[error("{0}")]
    Halted(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("header not found: there is no block {0}")]
    NoBlock(u64),
    #[error("state: block {0} is not among the newest 256: ask about a newer one")]
    NoState(u64),
}

impl From<CallError> for EvmError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Reverted(data) => Self::Reverted(data),
            CallError::Refused(refusal) => refusal.into(),
            other => Self::InvalidTransaction(other.to_string()),
        }
    }
}
