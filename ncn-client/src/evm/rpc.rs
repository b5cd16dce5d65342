//! A chain behind Ethereum's JSON-RPC.

mod answers;
mod endpoints;
mod refusal;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use alloy_consensus::{Transaction as _, TxEnvelope};
use alloy_eips::eip2718::Decodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, U64, U128, keccak256};
use answers::{Block, Receipt, logs, submitted};
use async_trait::async_trait;
use endpoints::{Asked, Endpoints};
use serde_json::{Value, json};

use super::{
    Call, EvmBackend, EvmError, EvmReader, Fees, Head, LogEntry, LogFilter, Nonces, TransactionReceipt, errors::awaits_time,
};

/// After how many answers in a row more blocks of logs are asked for at once.
const WIDEN_AFTER: u32 = 8;
/// The most that is kept of the logs that one question finds.
const MAX_LOG_BYTES: usize = 256 << 20;

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
    /// How many blocks of logs were answered at once last.
    log_range: AtomicU64,
}

impl JsonRpc {
    /// A chain behind these URLs, all of which have to be of chain `chain_id`, or of that of the first that answers when none is given:
    /// [`EvmError::WrongChain`] names one that is not. At least one has to answer now.
    pub async fn connect(urls: &[String], chain_id: Option<u64>, options: RpcOptions) -> Result<Self, EvmError> {
        let options = RpcOptions { confirmations: options.confirmations.max(1), log_range: options.log_range.max(1), ..options };
        let endpoints = Endpoints::connect(urls, chain_id, options.timeout).await?;
        Ok(Self { endpoints, options, latest: tokio::sync::Mutex::default(), log_range: options.log_range.into() })
    }

    /// The newest block's number, at most half a poll old: for those who wait.
    async fn latest(&self) -> Result<u64, EvmError> {
        let mut latest = self.latest.lock().await;
        match *latest {
            Some((seen, number)) if seen.elapsed() < self.options.poll / 2 => Ok(number),
            _ => {
                let number = self.newest().await?;
                *latest = Some((Instant::now(), number));
                Ok(number)
            }
        }
    }

    /// The newest block's number now.
    async fn newest(&self) -> Result<u64, EvmError> {
        Ok(self.endpoints.ask::<U64>("eth_blockNumber", json!([])).await?.to())
    }

    /// The number of the newest block that is final when this is the newest block.
    const fn final_of(&self, newest: u64) -> u64 {
        newest.saturating_sub(self.options.confirmations - 1)
    }

    /// The newest final block's number; none when that is just the newest one.
    async fn final_number(&self) -> Result<Option<u64>, EvmError> {
        Ok(if self.options.confirmations == 1 { None } else { Some(self.final_of(self.latest().await?)) })
    }

    /// The final state, as a parameter.
    async fn final_tag(&self) -> Result<Value, EvmError> {
        Ok(tag(self.final_number().await?))
    }

    /// The block of this number, or the newest.
    async fn block(&self, number: Option<u64>) -> Result<Option<Block>, EvmError> {
        let params = json!([tag(number), false]);
        self.endpoints.read("eth_getBlockByNumber", params, |answer| Block::read(answer, number)).await.answer
    }

    async fn logs_within(&self, filter: &LogFilter, from: u64, to: u64) -> Asked<Vec<LogEntry>> {
        let topics = match (filter.topic1, filter.topic2) {
            (None, None) => json!([]),
            (first, None) => json!([null, first]),
            (first, second) => json!([null, first, second]),
        };
        let ask = json!([{ "address": filter.address, "topics": topics, "fromBlock": U64::from(from), "toBlock": U64::from(to) }]);
        self.endpoints.read("eth_getLogs", ask, |answer| logs(answer, filter, from, to)).await
    }

    /// Remembers how many blocks of logs are answered at once, and says so when they are fewer.
    fn note_log_range(&self, range: u64) {
        if self.log_range.swap(range, Ordering::Relaxed) > range {
            tracing::warn!(blocks = range, "the chain's endpoint answers logs of no more blocks at once");
        }
    }
}

fn kept_bytes(entry: &LogEntry) -> usize {
    size_of::<LogEntry>() + entry.log.data.data.len() + size_of_val(entry.log.data.topics())
}

fn tag(number: Option<u64>) -> Value {
    number.map_or_else(|| json!("latest"), |number| json!(U64::from(number)))
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
impl EvmReader for JsonRpc {
    async fn chain_id(&self) -> Result<u64, EvmError> {
        Ok(self.endpoints.chain_id())
    }

    async fn latest_block(&self) -> Result<Head, EvmError> {
        let block = self.block(self.final_number().await?).await?;
        // An endpoint that took the place of another may be behind it.
        let block = block.ok_or_else(|| EvmError::Unreachable("the endpoint does not have the newest block yet".into()))?;
        Ok(Head { number: block.number, timestamp: block.timestamp })
    }

    async fn block_after(&self, block: u64) -> Result<Head, EvmError> {
        loop {
            if self.final_of(self.latest().await?) > block {
                let head = self.latest_block().await?;
                if head.number > block {
                    return Ok(head);
                }
            }
            tokio::time::sleep(self.options.poll).await;
        }
    }

    async fn block_hash(&self, block: u64) -> Result<Option<B256>, EvmError> {
        Ok(self.block(Some(block)).await?.map(|block| block.hash))
    }

    async fn call(&self, call: &Call) -> Result<Bytes, EvmError> {
        self.endpoints.ask("eth_call", json!([transaction(call), self.final_tag().await?])).await
    }

    async fn transaction_receipt(&self, transaction: B256) -> Result<Option<TransactionReceipt>, EvmError> {
        let read = |answer: &Value| Receipt::read(answer, transaction);
        let receipt = self.endpoints.read("eth_getTransactionReceipt", json!([transaction]), read).await.answer?;
        let Some(Receipt { block, succeeded, gas_used, created }) = receipt else { return Ok(None) };
        let confirmed = self.options.confirmations == 1 || block <= self.final_of(self.latest().await?);
        Ok(Some(TransactionReceipt { block, confirmed, succeeded, gas_used, created }))
    }

    async fn logs(&self, filter: LogFilter) -> Result<Vec<LogEntry>, EvmError> {
        // Not a number that was seen before: what a call has just found in the newest block has its logs there.
        let newest = self.final_of(self.newest().await?);
        let (first, last) = (filter.from_block.max(self.options.first_block), filter.to_block.unwrap_or(newest));
        if last > newest {
            return Err(EvmError::Unreachable(format!("the endpoint has blocks up to {newest}, not {last}")));
        }
        // Twice what was answered last: what made it less may have passed.
        let mut range = self.log_range.load(Ordering::Relaxed).saturating_mul(2).min(self.options.log_range);
        let (mut narrowed, mut answered) = (false, 0);
        let (mut found, mut kept) = (Vec::new(), 0);
        let (mut low, mut high) = (first, last);
        while low <= high {
            let (from, to) = if filter.newest {
                (high.saturating_sub(range - 1).max(low), high)
            } else {
                (low, low.saturating_add(range - 1).min(high))
            };
            let Asked { answer, narrower, .. } = self.logs_within(&filter, from, to).await;
            match answer {
                Ok(logs) => {
                    kept += logs.iter().map(kept_bytes).sum::<usize>();
                    if kept > MAX_LOG_BYTES {
                        return Err(EvmError::Unreachable(format!("logs of blocks {first} to {last}: are more than can be kept")));
                    }
                    found.extend(logs);
                }
                // Endpoints limit how much they look through, each in its own words.
                Err(_) if narrower && to > from => {
                    (range, narrowed, answered) = ((to - from).div_ceil(2), true, 0);
                    continue;
                }
                Err(error) => return Err(error),
            }
            if narrowed {
                self.note_log_range(range);
            }
            answered += 1;
            if answered % WIDEN_AFTER == 0 {
                range = range.saturating_mul(2).min(self.options.log_range);
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

#[async_trait]
impl EvmBackend for JsonRpc {
    async fn nonces(&self, account: Address) -> Result<Nonces, EvmError> {
        let count = async |tag| Ok(self.endpoints.ask::<U64>("eth_getTransactionCount", json!([account, tag])).await?.to());
        let mined = count(self.final_tag().await?).await?;
        Ok(Nonces { mined, pending: count(json!("pending")).await?.max(mined) })
    }

    async fn estimate(&self, call: &Call) -> Result<u64, EvmError> {
        let call = transaction(call);
        match self.endpoints.ask::<U64>("eth_estimateGas", json!([call])).await {
            // By the newest block's time, perhaps, which stands still where no block comes: the transaction will be in the next one.
            Err(EvmError::Reverted(data)) if awaits_time(&data) => {
                let next = self.endpoints.ask::<U64>("eth_estimateGas", json!([call, "pending"])).await;
                next.map(|gas| gas.to()).map_err(|_| EvmError::Reverted(data))
            }
            done => Ok(done?.to()),
        }
    }

    async fn fees(&self) -> Result<Fees, EvmError> {
        let base = self.block(None).await?.and_then(|block| block.base_fee_per_gas);
        let base = match base {
            Some(base) => base,
            None => self.endpoints.ask::<U128>("eth_gasPrice", json!([])).await?.to(),
        };
        // Chains without a market for priority do not know the question.
        let priority = match self.endpoints.ask::<U128>("eth_maxPriorityFeePerGas", json!([])).await {
            Ok(priority) => priority.to(),
            Err(EvmError::Unsupported(_)) => 0,
            Err(error) => return Err(error),
        };
        Ok(Fees { base, priority })
    }

    async fn send_raw_transaction(&self, raw: Bytes) -> Result<(), EvmError> {
        let hash = keccak256(&raw);
        let sent = self.endpoints.read("eth_sendRawTransaction", json!([raw]), |answer| submitted(answer, hash)).await;
        // One that seemed to fail may have taken this very transaction, whatever the next one thinks of it.
        let refused = |error: EvmError| {
            if sent.doubtful { EvmError::Unreachable(format!("it may have been taken without an answer: {error}")) } else { error }
        };
        let problem = match sent.answer {
            Err(EvmError::InvalidTransaction(problem)) => problem,
            done => return done.map_err(refused),
        };
        let says = problem.to_lowercase();
        let any = |phrases: &[&str]| phrases.iter().any(|phrase| says.contains(phrase));
        if any(&["already known", "alreadyknown", "already imported", "known transaction", "already in the mempool"]) {
            return Ok(());
        }
        if any(&["nonce too low", "nonce is too low", "oldnonce", "invalid nonce", "replacement"]) {
            let nonce = TxEnvelope::decode_2718_exact(&raw).map(|envelope| envelope.nonce()).unwrap_or_default();
            return Err(refused(EvmError::Nonce(nonce)));
        }
        // It can be taken once gas is cheaper, or with a higher offer.
        if any(&["underpriced", "block base fee", "feetoolow"]) {
            return Err(EvmError::Unreachable(format!("gas: the offer is too low: {problem}")));
        }
        Err(refused(EvmError::InvalidTransaction(problem)))
    }
}
