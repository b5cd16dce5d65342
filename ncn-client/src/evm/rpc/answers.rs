//! What is read of a node's answers, field by field, so that a problem has the field's name. Fields that chains add are of no interest.

use alloy_primitives::{Address, B256, Bytes, Log, LogData, U64, U128};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::evm::{LogEntry, LogFilter};

/// An answer, or the field that is wrong and why.
pub(super) type Read<T> = Result<T, String>;

/// An answer that is one value.
pub(super) fn whole<T: DeserializeOwned>(answer: &Value) -> Read<T> {
    T::deserialize(answer).map_err(|error| format!("result: {error}"))
}

fn field<T: DeserializeOwned>(object: &Value, name: &str) -> Read<T> {
    T::deserialize(object.get(name).unwrap_or(&Value::Null)).map_err(|error| format!("{name}: {error}"))
}

fn same<T: PartialEq + std::fmt::Display>(name: &str, is: &T, expected: &T) -> Read<()> {
    if is == expected { Ok(()) } else { Err(format!("{name}: is {is}, not {expected}")) }
}

pub(super) struct Block {
    pub(super) number: u64,
    pub(super) hash: B256,
    pub(super) timestamp: u64,
    pub(super) base_fee_per_gas: Option<u128>,
}

impl Block {
    /// The block of this number, where one was asked for; none when there is no such block.
    pub(super) fn read(answer: &Value, wanted: Option<u64>) -> Read<Option<Self>> {
        if answer.is_null() {
            return Ok(None);
        }
        let number = field::<U64>(answer, "number")?.to();
        same("number", &number, &wanted.unwrap_or(number))?;
        Ok(Some(Self {
            number,
            hash: field(answer, "hash")?,
            timestamp: field::<U64>(answer, "timestamp")?.to(),
            base_fee_per_gas: field::<Option<U128>>(answer, "baseFeePerGas")?.map(|fee| fee.to()),
        }))
    }
}

pub(super) struct Receipt {
    pub(super) block: u64,
    pub(super) succeeded: bool,
    pub(super) gas_used: u64,
    pub(super) created: Option<Address>,
}

impl Receipt {
    /// The receipt of this transaction; none when it is in no block.
    pub(super) fn read(answer: &Value, transaction: B256) -> Read<Option<Self>> {
        if answer.get("blockNumber").is_none_or(Value::is_null) && (answer.is_null() || answer.is_object()) {
            return Ok(None);
        }
        same("transactionHash", &field(answer, "transactionHash")?, &transaction)?;
        let status = field::<U64>(answer, "status")?.to::<u64>();
        Ok(Some(Self {
            block: field::<U64>(answer, "blockNumber")?.to(),
            succeeded: match status {
                0 => false,
                1 => true,
                other => return Err(format!("status: is {other}, neither 0 nor 1")),
            },
            gas_used: field::<U64>(answer, "gasUsed")?.to(),
            created: field(answer, "contractAddress")?,
        }))
    }
}

/// The hash of the transaction that was handed in.
pub(super) fn submitted(answer: &Value, transaction: B256) -> Read<()> {
    same("result", &whole(answer)?, &transaction)
}

/// The logs that were asked for. What was not asked for is no answer.
pub(super) fn logs(answer: &Value, filter: &LogFilter, from: u64, to: u64) -> Read<Vec<LogEntry>> {
    let Value::Array(logs) = answer else { return Err("result: is no list of logs".into()) };
    let mut found = Vec::with_capacity(logs.len());
    for log in logs {
        // What a reorganization took away is told of by some nodes.
        if field::<Option<bool>>(log, "removed")? == Some(true) {
            continue;
        }
        let (address, block) = (field(log, "address")?, field::<U64>(log, "blockNumber")?.to());
        same("address", &address, &filter.address)?;
        if !(from..=to).contains(&block) {
            return Err(format!("blockNumber: {block} is not from {from} to {to}"));
        }
        let topics: Vec<B256> = field(log, "topics")?;
        let other = |place: usize, wanted: Option<B256>| wanted.is_some_and(|wanted| topics.get(place) != Some(&wanted));
        if other(1, filter.topic1) || other(2, filter.topic2) {
            return Err("topics: are not those that were asked for".into());
        }
        let data = LogData::new(topics, field::<Bytes>(log, "data")?).ok_or("topics: are more than four")?;
        found.push(LogEntry { log: Log { address, data }, block, transaction: field(log, "transactionHash")? });
    }
    Ok(found)
}
