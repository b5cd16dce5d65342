//! An EVM chain in memory: the contracts' real bytecode, run by revm, in blocks that can be reorganized.

mod backend;
mod block;
mod core;
mod execution;
mod mempool;
mod refusal;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use alloy_consensus::{
    Header, Transaction as _, TxEnvelope,
    transaction::{Recovered, SignerRecoverable as _},
};
use alloy_eips::eip2718::Decodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, U256};
use ncn_client::evm::Head;
use tokio::{
    sync::{broadcast, watch},
    time::MissedTickBehavior,
};
use tokio_util::task::AbortOnDropHandle;

use self::core::Core;
pub(crate) use self::{
    block::{Block, PlacedLog},
    execution::{BLOCK_GAS_LIMIT, Request},
    refusal::{CallError, Refusal},
};

/// How many transactions are remembered for who asks which have come.
const ARRIVALS: usize = 1_024;
/// The largest transaction that is taken: a contract's creation is far below it.
const MAX_TRANSACTION_BYTES: usize = 256 << 10;

/// A chain of its own, for development and tests: gas is free, time can be advanced, nothing is kept. Many fit in a process.
pub struct EmbeddedChain {
    pub(crate) chain_id: u64,
    core: Mutex<Core>,
    head: watch::Sender<Head>,
    /// Tells of transactions that were taken.
    arrivals: broadcast::Sender<B256>,
}

/// When blocks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mining {
    /// At once, for each transaction that can be next.
    Auto,
    /// Regularly, of what waits; empty ones too.
    Every(Duration),
    /// When [`EmbeddedChain::mine`] is called.
    Manual,
}

/// A reorganization reaches further back than the chain remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("depth: {depth} blocks cannot be taken back, only the newest {kept} can")]
pub struct TooDeep {
    /// How many blocks were to go.
    pub depth: usize,
    /// How many can.
    pub kept: usize,
}

/// Which blocks took the place of others since some block.
pub(crate) struct Since {
    /// Those that are gone, the newest first.
    pub(crate) removed: Vec<Arc<Block>>,
    /// Those that are new, the oldest first.
    pub(crate) added: Vec<Arc<Block>>,
    /// The newest now.
    pub(crate) newest: Arc<Block>,
}

impl EmbeddedChain {
    /// A chain without any contracts.
    pub fn new(chain_id: u64) -> Self {
        let core = Core::new(chain_id);
        let head = watch::Sender::new(Head { number: 0, timestamp: core.now() });
        Self { chain_id, core: Mutex::new(core), head, arrivals: broadcast::Sender::new(ARRIVALS) }
    }

    /// Lets time pass: the next block is this much later.
    pub fn advance(&self, seconds: u64) {
        let mut core = self.lock();
        core.advanced = core.advanced.saturating_add(seconds);
        self.announce(&core);
    }

    /// Gives an account some of the chain's own coin, which survives reorganizations.
    pub fn fund(&self, account: Address, wei: U256) {
        self.lock().state().adjust_balance(account, |balance| balance.saturating_add(wei));
    }

    /// Changes when blocks are made. [`Mining::Every`] has to be called in a Tokio runtime.
    pub fn set_mining(self: &Arc<Self>, mining: Mining) {
        let mut core = self.lock();
        core.mining = mining;
        core.miner = match mining {
            Mining::Every(period) => {
                let mining = mine_regularly(Arc::downgrade(self), period);
                Some(AbortOnDropHandle::new(tokio::spawn(mining)))
            }
            Mining::Auto | Mining::Manual => None,
        };
        if mining == Mining::Auto {
            core.mine_ready();
            self.announce(&core);
        }
    }

    /// Makes a block of the transactions that wait, of none when none do.
    pub fn mine(&self) {
        let mut core = self.lock();
        core.mine(usize::MAX);
        self.announce(&core);
    }

    /// Replaces the newest `depth` blocks by `depth + 1` others, as a reorganization does. What they did is undone. Their
    /// transactions are in the first of the new blocks as far as they fit, unless they are dropped.
    pub fn reorg(&self, depth: usize, drop_transactions: bool) -> Result<(), TooDeep> {
        let mut core = self.lock();
        let kept = core.state.kept();
        if depth > kept {
            return Err(TooDeep { depth, kept });
        }
        core.reorganize(depth, drop_transactions);
        self.announce(&core);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called under the lock, so that nobody sees a block before what is in it, or blocks out of order.
    fn announce(&self, core: &Core) {
        self.head.send_replace(Head { number: core.blocks.head(), timestamp: core.now() });
    }

    /// Takes a signed transaction. Never waits for anything.
    pub(crate) fn send(&self, raw: &[u8]) -> Result<B256, Refusal> {
        let transaction = self.decode(raw)?;
        let hash = *transaction.tx_hash();
        let mut core = self.lock();
        if core.mempool.get(hash).is_some() {
            return Err(Refusal::AlreadyKnown);
        }
        let next = core.state.nonce(transaction.signer());
        if transaction.nonce() < next {
            return Err(Refusal::NonceTooLow { given: transaction.nonce(), next });
        }
        core.next().check(&transaction)?;
        core.mempool.insert(transaction)?;
        let _ = self.arrivals.send(hash);
        if core.mining == Mining::Auto {
            core.mine_ready();
            self.announce(&core);
        }
        Ok(hash)
    }

    fn decode(&self, raw: &[u8]) -> Result<Recovered<TxEnvelope>, Refusal> {
        if raw.len() > MAX_TRANSACTION_BYTES {
            return Err(Refusal::TooLarge { size: raw.len(), limit: MAX_TRANSACTION_BYTES });
        }
        let envelope = TxEnvelope::decode_2718_exact(raw).map_err(|error| Refusal::Malformed(error.to_string()))?;
        if !execution::is_supported(envelope.tx_type()) {
            return Err(Refusal::Type);
        }
        if envelope.chain_id() != Some(self.chain_id) {
            return Err(Refusal::ChainId { given: envelope.chain_id(), ours: self.chain_id });
        }
        envelope.try_into_recovered().map_err(|error| Refusal::Malformed(error.to_string()))
    }

    /// Changes a balance; the change survives reorganizations.
    pub(crate) fn set_balance(&self, account: Address, wei: U256) {
        let mut core = self.lock();
        let balance = core.state.account(account).map_or(U256::ZERO, |info| info.balance);
        let (more, less) = (wei.saturating_sub(balance), balance.saturating_sub(wei));
        core.state().adjust_balance(account, |balance| balance.saturating_add(more).saturating_sub(less));
    }

    /// Tells of each new head.
    pub(crate) fn heads(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Tells of each transaction that is taken.
    pub(crate) fn arrivals(&self) -> broadcast::Receiver<B256> {
        self.arrivals.subscribe()
    }

    /// Remembers the newest block, to come back to it. Returns the number of this memory.
    pub(crate) fn snapshot(&self) -> u64 {
        self.lock().snapshot()
    }

    /// Comes back to a block that was remembered: what came after it is undone, and nothing waits any more. False when it is not known, or
    /// too many blocks came since.
    pub(crate) fn revert(&self, snapshot: u64) -> bool {
        let mut core = self.lock();
        let reverted = core.revert(snapshot);
        self.announce(&core);
        reverted
    }

    /// The next block has this time. False when an earlier one is later.
    pub(crate) fn set_next_time(&self, timestamp: ncn_core::UnixTime) -> bool {
        let mut core = self.lock();
        let is_later = timestamp > core.blocks.newest().header.timestamp;
        if is_later {
            core.next_time = Some(timestamp);
            self.announce(&core);
        }
        is_later
    }

    /// Changes an account from outside of any block.
    pub(crate) fn set_account(&self, address: Address, change: impl FnOnce(&mut revm::state::AccountInfo)) {
        self.lock().state().set_account(address, change);
    }

    /// Changes a slot of an account from outside of any block.
    pub(crate) fn set_slot(&self, address: Address, slot: U256, value: U256) {
        self.lock().state().set_slot(address, slot, value);
    }

    /// The time of a block that is made now.
    pub(crate) fn now(&self) -> ncn_core::UnixTime {
        self.lock().now()
    }

    /// How far the chain's clock is ahead.
    pub(crate) fn advanced(&self) -> u64 {
        self.lock().advanced
    }

    /// The newest block's number.
    pub(crate) fn number(&self) -> u64 {
        self.head.borrow().number
    }

    /// The newest block.
    pub(crate) fn newest(&self) -> Arc<Block> {
        self.lock().blocks.newest().clone()
    }

    /// This block of the chain.
    pub(crate) fn block(&self, number: u64) -> Option<Arc<Block>> {
        self.lock().blocks.get(number).cloned()
    }

    /// A block of the chain, or one that recently was.
    pub(crate) fn block_by_hash(&self, hash: B256) -> Option<Arc<Block>> {
        self.lock().blocks.by_hash(hash).cloned()
    }

    /// The blocks in this range whose headers fit.
    pub(crate) fn blocks(&self, from: u64, to: u64, fits: impl Fn(&Header) -> bool) -> Vec<Arc<Block>> {
        let core = self.lock();
        let blocks = core.blocks.since(from).iter().take_while(|block| block.header.number <= to);
        blocks.filter(|block| fits(&block.header)).cloned().collect()
    }

    /// What has become of the chain since this block was its newest.
    pub(crate) fn since(&self, block: &Arc<Block>) -> Since {
        let core = self.lock();
        let mut removed = Vec::new();
        let mut last = block.clone();
        while !core.blocks.contains(last.header.hash()) {
            let parent = core.blocks.by_hash(last.header.parent_hash).cloned();
            removed.push(last.clone());
            let Some(parent) = parent else { break };
            last = parent;
        }
        // The genesis stays, and a block whose parent is forgotten is older than what is remembered of reorganizations.
        let added = core.blocks.since(last.header.number.saturating_add(1)).to_vec();
        Since { removed, added, newest: core.blocks.newest().clone() }
    }

    /// The block that a transaction is in, and where in it.
    pub(crate) fn mined(&self, hash: B256) -> Option<(Arc<Block>, usize)> {
        self.lock().blocks.transaction(hash).map(|(block, index)| (block.clone(), index))
    }

    /// How many transactions an account has sent, with those that wait.
    pub(crate) fn pending_nonce(&self, account: Address) -> u64 {
        let core = self.lock();
        core.mempool.next_nonce(account, core.state.nonce(account))
    }

    /// A transaction that waits.
    pub(crate) fn waiting(&self, hash: B256) -> Option<Recovered<TxEnvelope>> {
        self.lock().mempool.get(hash).cloned()
    }

    /// An account's balance, nonce and code after this block.
    pub(crate) fn account(&self, address: Address, block: u64) -> Result<revm::state::AccountInfo, CallError> {
        Ok(self.lock().at(block)?.view.account(address).unwrap_or_default())
    }

    /// A slot of an account's storage after this block.
    pub(crate) fn storage(&self, address: Address, slot: U256, block: u64) -> Result<U256, CallError> {
        Ok(self.lock().at(block)?.view.slot(address, slot))
    }

    /// What a call returns after this block; in the block that comes next, when none is said.
    pub(crate) fn run(&self, request: &Request, block: Option<u64>) -> Result<Bytes, CallError> {
        // While it runs, the chain goes on.
        let environment = {
            let core = self.lock();
            block.map_or_else(|| Ok(core.next()), |number| core.at(number))?
        };
        Ok(environment.call(request)?.into_output().unwrap_or_default())
    }

    /// The gas limit that a transaction of the next block needs.
    pub(crate) fn gas_needed(&self, request: &Request) -> Result<u64, CallError> {
        let next = self.lock().next();
        next.estimate(request)
    }
}

async fn mine_regularly(chain: Weak<EmbeddedChain>, period: Duration) {
    // A period of nothing would never let anything else run.
    let mut ticks = tokio::time::interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let Some(chain) = chain.upgrade() else { return };
        chain.mine();
    }
}
