//! What is read of a node's answers. Fields that chains add are of no interest here.

use alloy_primitives::{Address, B256, Bytes, LogData, U64, U128};
use serde::Deserialize;
use serde_json::Value;

use crate::evm::{EvmError, LogEntry, LogFilter};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Block {
    pub(super) number: U64,
    pub(super) hash: B256,
    pub(super) timestamp: U64,
    pub(super) base_fee_per_gas: Option<U128>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Receipt {
    pub(super) transaction_hash: B256,
    pub(super) block_number: Option<U64>,
    pub(super) status: U64,
    pub(super) gas_used: U64,
    pub(super) contract_address: Option<Address>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Log {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
    block_number: U64,
    transaction_hash: B256,
    #[serde(default)]
    removed: bool,
}

/// A log that was asked for; none when a reorganisation took it away. What was not asked for is no answer.
pub(super) fn log_entry(log: Value, filter: &LogFilter, from: u64, to: u64) -> Result<Option<LogEntry>, EvmError> {
    let malformed = |problem: String| EvmError::Malformed { method: "eth_getLogs", problem };
    let log: Log = serde_json::from_value(log).map_err(|error| malformed(error.to_string()))?;
    if log.removed {
        return Ok(None);
    }
    let block = log.block_number.to();
    if log.address != filter.address {
        return Err(malformed(format!("address: {} was not asked for", log.address)));
    }
    if !(from..=to).contains(&block) {
        return Err(malformed(format!("blockNumber: {block} is not from {from} to {to}")));
    }
    if filter.topic1.is_some_and(|topic| log.topics.get(1) != Some(&topic)) {
        return Err(malformed("topics: are not those that were asked for".into()));
    }
    let data = LogData::new(log.topics, log.data).ok_or_else(|| malformed("topics: are more than four".into()))?;
    Ok(Some(LogEntry { log: alloy_primitives::Log { address: log.address, data }, block, transaction: log.transaction_hash }))
}
