//! An EVM chain in memory: the contracts' real bytecode, run by revm, one transaction a block.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use alloy_consensus::{Transaction as _, TxEnvelope, transaction::SignerRecoverable as _};
use alloy_eips::eip2718::Decodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, U256};
use async_trait::async_trait;
use ncn_client::evm::{Call, EvmBackend, EvmError, Fees, Head, Inclusion, LogEntry, LogFilter, Nonces};
use ncn_core::UnixTime;
use revm::{
    Context, ExecuteCommitEvm as _, ExecuteEvm as _, MainBuilder as _, MainContext as _,
    context::{BlockEnv, TxEnv, result::ExecutionResult},
    database::{CacheDB, EmptyDB},
    primitives::hardfork::SpecId,
    state::AccountInfo,
};
use tokio::sync::watch;

/// The gas that a call may use; blocks hold as much.
const GAS_LIMIT: u64 = 30_000_000;
/// The largest transaction that is taken: a contract's creation is far below it.
const MAX_TRANSACTION_BYTES: usize = 128 << 10;

/// A chain of its own, for development and tests: gas is free, time can be advanced, nothing is kept. Many fit in a process.
pub struct EmbeddedChain {
    chain_id: u64,
    state: Mutex<State>,
    head: watch::Sender<Head>,
}

struct State {
    database: CacheDB<EmptyDB>,
    /// How far the chain's clock is ahead of the system's.
    advanced: u64,
    logs: Vec<LogEntry>,
    /// Which logs have a value as their second topic: one request's are found without reading every other's.
    by_topic1: HashMap<B256, Vec<usize>>,
    transactions: HashMap<B256, Inclusion>,
}

impl EmbeddedChain {
    /// A chain without any contracts.
    pub fn new(chain_id: u64) -> Self {
        let state = State {
            database: CacheDB::default(),
            advanced: 0,
            logs: Vec::new(),
            by_topic1: HashMap::new(),
            transactions: HashMap::new(),
        };
        let head = watch::Sender::new(Head { number: 0, timestamp: crate::time::unix_now() });
        Self { chain_id, state: Mutex::new(state), head }
    }

    /// Lets time pass: the next block is this much later.
    pub fn advance(&self, seconds: u64) {
        let mut state = self.lock();
        state.advanced += seconds;
        let timestamp = state.now();
        self.head.send_modify(|head| head.timestamp = timestamp);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a transaction on top of the newest block. Never waits for anything.
    fn execute(&self, raw: &[u8]) -> Result<(), EvmError> {
        let invalid = |problem: String| EvmError::InvalidTransaction(problem);
        if raw.len() > MAX_TRANSACTION_BYTES {
            return Err(invalid(format!("has {} bytes, at most {MAX_TRANSACTION_BYTES} are taken", raw.len())));
        }
        let envelope = TxEnvelope::decode_2718_exact(raw).map_err(|error| invalid(error.to_string()))?;
        if envelope.chain_id() != Some(self.chain_id) {
            return Err(invalid(format!("is for chain {:?}, this is chain {}", envelope.chain_id(), self.chain_id)));
        }
        let caller = envelope.recover_signer().map_err(|error| invalid(error.to_string()))?;
        let hash = *envelope.tx_hash();

        let mut state = self.lock();
        if state.transactions.contains_key(&hash) {
            return Ok(());
        }
        let expected = state.account(caller).nonce;
        if envelope.nonce() < expected {
            return Err(EvmError::Nonce(envelope.nonce()));
        }
        if envelope.nonce() > expected {
            return Err(invalid(format!("has nonce {}, the account's next is {expected}", envelope.nonce())));
        }
        let (block, timestamp) = (self.head.borrow().number + 1, state.now());
        let transaction = TxEnv {
            caller,
            gas_limit: envelope.gas_limit().min(GAS_LIMIT),
            kind: envelope.kind(),
            value: envelope.value(),
            data: envelope.input().clone(),
            nonce: expected,
            chain_id: Some(self.chain_id),
            ..TxEnv::default()
        };
        let result = Context::mainnet()
            .with_db(&mut state.database)
            .with_block(block_env(block, timestamp))
            .modify_cfg_chained(|cfg| (cfg.chain_id, cfg.spec) = (self.chain_id, SpecId::PRAGUE))
            .build_mainnet()
            .transact_commit(transaction)
            .map_err(|error| invalid(format!("{error:?}")))?;
        // Reverted or not, the transaction is in the block, and its nonce is used up.
        let gas_used = result.tx_gas_used();
        let mut inclusion = Inclusion { block, confirmed: true, succeeded: result.is_success(), gas_used, created: None };
        if let ExecutionResult::Success { logs, output, .. } = result {
            inclusion.created = output.address().copied();
            for log in logs {
                state.record(LogEntry { log, block, transaction: hash });
            }
        }
        state.transactions.insert(hash, inclusion);
        // Announced under the lock, so that nobody sees a block before what is in it, or blocks out of order.
        self.head.send_replace(Head { number: block, timestamp });
        Ok(())
    }

    /// Runs a call on top of the newest block, and forgets what it did.
    fn simulate(&self, call: &Call) -> Result<ExecutionResult, EvmError> {
        let mut state = self.lock();
        let nonce = state.account(call.from).nonce;
        let transaction = TxEnv {
            caller: call.from,
            gas_limit: GAS_LIMIT,
            kind: call.to,
            data: call.input.clone(),
            nonce,
            chain_id: Some(self.chain_id),
            ..TxEnv::default()
        };
        let block = block_env(self.head.borrow().number + 1, state.now());
        let executed = Context::mainnet()
            .with_db(&mut state.database)
            .with_block(block)
            .modify_cfg_chained(|cfg| (cfg.chain_id, cfg.spec) = (self.chain_id, SpecId::PRAGUE))
            .build_mainnet()
            .transact(transaction)
            .map_err(|error| EvmError::InvalidTransaction(format!("{error:?}")))?;
        match executed.result {
            ExecutionResult::Revert { output, .. } => Err(EvmError::Reverted(output)),
            ExecutionResult::Halt { reason, .. } => Err(EvmError::InvalidTransaction(format!("halted: {reason:?}"))),
            success @ ExecutionResult::Success { .. } => Ok(success),
        }
    }
}

fn block_env(number: u64, timestamp: UnixTime) -> BlockEnv {
    BlockEnv {
        number: U256::from(number),
        timestamp: U256::from(timestamp),
        gas_limit: GAS_LIMIT,
        prevrandao: Some(B256::ZERO),
        ..BlockEnv::default()
    }
}

impl State {
    fn now(&self) -> UnixTime {
        crate::time::unix_now() + self.advanced
    }

    fn account(&mut self, address: Address) -> AccountInfo {
        // An empty database never fails.
        self.database.load_account(address).ok().and_then(|account| account.info()).unwrap_or_default()
    }

    fn record(&mut self, entry: LogEntry) {
        if let Some(topic) = entry.log.topics().get(1) {
            self.by_topic1.entry(*topic).or_default().push(self.logs.len());
        }
        self.logs.push(entry);
    }
}

#[async_trait]
impl EvmBackend for EmbeddedChain {
    async fn chain_id(&self) -> Result<u64, EvmError> {
        Ok(self.chain_id)
    }

    async fn head(&self) -> Result<Head, EvmError> {
        let number = self.head.borrow().number;
        Ok(Head { number, timestamp: self.lock().now() })
    }

    async fn head_after(&self, block: u64) -> Result<Head, EvmError> {
        let mut head = self.head.subscribe();
        let newer = head.wait_for(|head| head.number > block).await;
        newer.map(|head| *head).map_err(|error| EvmError::Unreachable(error.to_string()))
    }

    async fn block_hash(&self, block: u64) -> Result<Option<B256>, EvmError> {
        Ok((block <= self.head.borrow().number).then(|| alloy_primitives::keccak256(block.to_be_bytes())))
    }

    async fn nonces(&self, account: Address) -> Result<Nonces, EvmError> {
        let mined = self.lock().account(account).nonce;
        Ok(Nonces { mined, pending: mined })
    }

    async fn call(&self, call: &Call) -> Result<Bytes, EvmError> {
        Ok(self.simulate(call)?.into_output().unwrap_or_default())
    }

    async fn estimate(&self, call: &Call) -> Result<u64, EvmError> {
        let used = self.simulate(call)?;
        // Refunds come after the work: it has to be paid for until then.
        Ok(used.gas().total_gas_spent())
    }

    async fn fees(&self) -> Result<Fees, EvmError> {
        Ok(Fees::default())
    }

    async fn submit(&self, transaction: Bytes) -> Result<(), EvmError> {
        self.execute(&transaction)
    }

    async fn inclusion(&self, transaction: B256) -> Result<Option<Inclusion>, EvmError> {
        Ok(self.lock().transactions.get(&transaction).copied())
    }

    async fn logs(&self, filter: LogFilter) -> Result<Vec<LogEntry>, EvmError> {
        let state = self.lock();
        let fits = |entry: &&LogEntry| entry.log.address == filter.address && entry.block >= filter.from_block;
        let found = match filter.topic1 {
            Some(topic) => {
                let indices = state.by_topic1.get(&topic).map(Vec::as_slice).unwrap_or_default();
                indices.iter().filter_map(|index| state.logs.get(*index)).filter(fits).cloned().collect()
            }
            None => {
                let start = state.logs.partition_point(|entry| entry.block < filter.from_block);
                state.logs.get(start..).unwrap_or_default().iter().filter(fits).cloned().collect()
            }
        };
        Ok(found)
    }
}
