//! A chain behind Ethereum's JSON-RPC.

mod answers;
mod endpoints;

use std::time::{Duration, Instant};

use alloy_consensus::{Transaction as _, TxEnvelope};
use alloy_eips::eip2718::Decodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, U64, U128};
use answers::{Block, Receipt, log_entry};
use async_trait::async_trait;
use endpoints::Endpoints;
use serde_json::{Value, json};

use super::{Call, EvmBackend, EvmError, Fees, Head, Inclusion, LogEntry, LogFilter, Nonces};

/// How an endpoint is used.
#[derive(Clone, Copy, Debug)]
pub struct RpcOptions {
    /// How many blocks make a transaction final, its own included: 1 believes the newest block.
    pub confirmations: u64,
    /// How often a new block is looked for.
    pub poll: Duration,
    /// How long an endpoint may take to answer before the next one is asked.
    pub timeout: Duration,
    /// The block before which nothing of the network is on the chain: logs are not looked for before it.
    pub first_block: u64,
    /// How many blocks of logs are asked for at once; less when the endpoint refuses.
    pub log_range: u64,
}

impl Default for RpcOptions {
    fn default() -> Self {
        Self {
            confirmations: 1,
            poll: Duration::from_millis(500),
            timeout: Duration::from_secs(20),
            first_block: 0,
            log_range: 5_000,
        }
    }
}

/// A chain behind one or more JSON-RPC endpoints. When one does not answer, the next is asked.
pub struct JsonRpc {
    endpoints: Endpoints,
    options: RpcOptions,
    /// The newest block's number and when it was seen. Held while it is asked for: those who wait want the same answer.
    latest: tokio::sync::Mutex<Option<(Instant, u64)>>,
}

impl JsonRpc {
    /// A chain behind these URLs, all of which have to be of chain `chain_id`; of the one that answers first when none is given.
    pub async fn connect(urls: &[String], chain_id: Option<u64>, options: RpcOptions) -> Result<Self, EvmError> {
        let options = RpcOptions { confirmations: options.confirmations.max(1), log_range: options.log_range.max(1), ..options };
        let endpoints = Endpoints::connect(urls, chain_id, options.timeout).await?;
        Ok(Self { endpoints, options, latest: tokio::sync::Mutex::default() })
    }

    /// The newest block's number, at most half a poll old.
    async fn latest(&self) -> Result<u64, EvmError> {
        let mut latest = self.latest.lock().await;
        match *latest {
            Some((seen, number)) if seen.elapsed() < self.options.poll / 2 => Ok(number),
            _ => {
                let number = self.endpoints.ask::<U64>("eth_blockNumber", json!([])).await?.to();
                *latest = Some((Instant::now(), number));
                Ok(number)
            }
        }
    }

    /// The newest final block's number.
    async fn final_block(&self) -> Result<u64, EvmError> {
        Ok(self.latest().await?.saturating_sub(self.options.confirmations - 1))
    }

    /// The final state, as a parameter.
    async fn final_tag(&self) -> Result<Value, EvmError> {
        Ok(if self.options.confirmations == 1 { json!("latest") } else { json!(U64::from(self.final_block().await?)) })
    }

    async fn block(&self, tag: Value) -> Result<Option<Block>, EvmError> {
        self.endpoints.ask("eth_getBlockByNumber", json!([tag, false])).await
    }

    async fn logs_within(&self, filter: &LogFilter, from: u64, to: u64) -> Result<Vec<LogEntry>, EvmError> {
        let topics = filter.topic1.map_or_else(|| json!([]), |topic| json!([null, topic]));
        let ask = json!([{ "address": filter.address, "topics": topics, "fromBlock": U64::from(from), "toBlock": U64::from(to) }]);
        let logs: Vec<Value> = self.endpoints.ask("eth_getLogs", ask).await?;
        logs.into_iter().filter_map(|log| log_entry(log, filter, from, to).transpose()).collect()
    }
}

fn transaction(call: &Call) -> Value {
    let mut transaction = json!({ "input": call.input });
    if let Some(fields) = transaction.as_object_mut() {
        if call.from != Address::ZERO {
            fields.insert("from".into(), json!(call.from));
        }
        if let Some(to) = call.to.to() {
            fields.insert("to".into(), json!(to));
        }
    }
    transaction
}

#[async_trait]
impl EvmBackend for JsonRpc {
    async fn chain_id(&self) -> Result<u64, EvmError> {
        Ok(self.endpoints.chain_id())
    }

    async fn head(&self) -> Result<Head, EvmError> {
        let tag = self.final_tag().await?;
        let problem = "there is no such block".into();
        let block = self.block(tag).await?.ok_or(EvmError::Malformed { method: "eth_getBlockByNumber", problem })?;
        Ok(Head { number: block.number.to(), timestamp: block.timestamp.to() })
    }

    async fn head_after(&self, block: u64) -> Result<Head, EvmError> {
        while self.final_block().await? <= block {
            tokio::time::sleep(self.options.poll).await;
        }
        self.head().await
    }

    async fn block_hash(&self, block: u64) -> Result<Option<B256>, EvmError> {
        Ok(self.block(json!(U64::from(block))).await?.map(|block| block.hash))
    }

    async fn nonces(&self, account: Address) -> Result<Nonces, EvmError> {
        let count = async |tag| Ok(self.endpoints.ask::<U64>("eth_getTransactionCount", json!([account, tag])).await?.to());
        let mined = count(self.final_tag().await?).await?;
        Ok(Nonces { mined, pending: count(json!("pending")).await?.max(mined) })
    }

    async fn call(&self, call: &Call) -> Result<Bytes, EvmError> {
        self.endpoints.ask("eth_call", json!([transaction(call), self.final_tag().await?])).await
    }

    async fn estimate(&self, call: &Call) -> Result<u64, EvmError> {
        Ok(self.endpoints.ask::<U64>("eth_estimateGas", json!([transaction(call)])).await?.to())
    }

    async fn fees(&self) -> Result<Fees, EvmError> {
        let base = self.block(json!("latest")).await?.and_then(|block| block.base_fee_per_gas);
        let base = match base {
            Some(base) => base.to(),
            None => self.endpoints.ask::<U128>("eth_gasPrice", json!([])).await?.to(),
        };
        // Chains without a market for priority do not know the question.
        let priority = match self.endpoints.ask::<U128>("eth_maxPriorityFeePerGas", json!([])).await {
            Ok(priority) => priority.to(),
            Err(EvmError::InvalidTransaction(_)) => 0,
            Err(error) => return Err(error),
        };
        Ok(Fees { base, priority })
    }

    async fn submit(&self, raw: Bytes) -> Result<(), EvmError> {
        let sent = self.endpoints.ask::<B256>("eth_sendRawTransaction", json!([raw])).await;
        let Err(EvmError::InvalidTransaction(problem)) = sent else { return sent.map(drop) };
        let nonce = || TxEnvelope::decode_2718_exact(&raw).map(|envelope| envelope.nonce()).unwrap_or_default();
        let says = problem.to_lowercase();
        let any = |phrases: &[&str]| phrases.iter().any(|phrase| says.contains(phrase));
        if any(&["already known", "already imported", "known transaction", "already in the mempool"]) {
            Ok(())
        } else if any(&["nonce too low", "nonce is too low", "invalid nonce", "underpriced"]) {
            Err(EvmError::Nonce(nonce()))
        } else {
            Err(EvmError::InvalidTransaction(problem))
        }
    }

    async fn inclusion(&self, transaction: B256) -> Result<Option<Inclusion>, EvmError> {
        let receipt: Option<Receipt> = self.endpoints.ask("eth_getTransactionReceipt", json!([transaction])).await?;
        let Some((receipt, block)) = receipt.and_then(|receipt| receipt.block_number.map(|block| (receipt, block))) else {
            return Ok(None);
        };
        if receipt.transaction_hash != transaction {
            let problem = format!("transactionHash: is {}, not {transaction}", receipt.transaction_hash);
            return Err(EvmError::Malformed { method: "eth_getTransactionReceipt", problem });
        }
        let block = block.to();
        let confirmed = self.options.confirmations == 1 || block <= self.final_block().await?;
        let (succeeded, gas_used) = (receipt.status == U64::from(1), receipt.gas_used.to());
        Ok(Some(Inclusion { block, confirmed, succeeded, gas_used, created: receipt.contract_address }))
    }

    async fn logs(&self, filter: LogFilter) -> Result<Vec<LogEntry>, EvmError> {
        let (first, last) = (filter.from_block.max(self.options.first_block), self.final_block().await?);
        let mut range = self.options.log_range;
        let mut found = Vec::new();
        let (mut low, mut high) = (first, last);
        while low <= high {
            let (from, to) = if filter.newest {
                (high.saturating_sub(range - 1).max(low), high)
            } else {
                (low, low.saturating_add(range - 1).min(high))
            };
            match self.logs_within(&filter, from, to).await {
                Ok(logs) => found.extend(logs),
                // Endpoints limit how much they look through, each in its own words.
                Err(EvmError::InvalidTransaction(_)) if range > 1 => {
                    range /= 2;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if filter.newest {
                match from.checked_sub(1) {
                    Some(next) if found.is_empty() => high = next,
                    _ => break,
                }
            } else {
                low = to + 1;
            }
        }
        Ok(found)
    }
}
