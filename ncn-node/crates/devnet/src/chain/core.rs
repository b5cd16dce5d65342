//! Everything of the chain that changes, behind one lock.

use std::{collections::BTreeMap, sync::Arc};

use alloy_consensus::{Eip658Value, Receipt, ReceiptEnvelope};
use ncn_core::UnixTime;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Mining,
    block::{Block, Blocks},
    execution::{BLOCK_GAS_LIMIT, Environment},
    mempool::Mempool,
    refusal::CallError,
    state::{Hashes, State, View},
};

/// How many blocks are remembered to come back to.
const MAX_SNAPSHOTS: usize = 64;

pub(super) struct Core {
    chain_id: u64,
    /// Copied when it changes while a call still reads it.
    pub(super) state: Arc<State>,
    pub(super) blocks: Blocks,
    pub(super) mempool: Mempool,
    /// How far the chain's clock is ahead of the system's.
    pub(super) advanced: u64,
    /// The time of the next block, where somebody has said it.
    pub(super) next_time: Option<UnixTime>,
    /// The newest blocks at some times, and how far the clock was ahead.
    snapshots: BTreeMap<u64, (Arc<Block>, u64)>,
    /// How many of them there ever were.
    taken: u64,
    pub(super) mining: Mining,
    /// What mines at intervals.
    pub(super) miner: Option<AbortOnDropHandle<()>>,
}

impl Core {
    pub(super) fn new(chain_id: u64) -> Self {
        Self {
            chain_id,
            state: Arc::new(State::genesis()),
            blocks: Blocks::new(ncn_client::unix_now()),
            mempool: Mempool::default(),
            advanced: 0,
            next_time: None,
            snapshots: BTreeMap::new(),
            taken: 0,
            mining: Mining::Auto,
            miner: None,
        }
    }

    /// The time of a block that is made now.
    pub(super) fn now(&self) -> UnixTime {
        let now = || ncn_client::unix_now().saturating_add(self.advanced).max(self.blocks.newest().header.timestamp);
        self.next_time.unwrap_or_else(now)
    }

    /// The accounts, to change them.
    pub(super) fn state(&mut self) -> &mut State {
        Arc::make_mut(&mut self.state)
    }

    pub(super) fn snapshot(&mut self) -> u64 {
        self.taken += 1;
        self.snapshots.insert(self.taken, (self.blocks.newest().clone(), self.advanced));
        if self.snapshots.len() > MAX_SNAPSHOTS {
            self.snapshots.pop_first();
        }
        self.taken
    }

    pub(super) fn revert(&mut self, snapshot: u64) -> bool {
        // It is used up, and later ones are of blocks that are gone.
        let known = self.snapshots.split_off(&snapshot).remove(&snapshot);
        let Some((block, advanced)) = known.filter(|(block, _)| self.blocks.contains(block.header.hash())) else { return false };
        let depth = self.blocks.head() - block.header.number;
        if usize::try_from(depth).map_or(true, |depth| depth > self.state.kept()) {
            return false;
        }
        for _ in 0..depth {
            self.state().roll_back();
            self.blocks.pop();
        }
        (self.advanced, self.next_time, self.mempool) = (advanced, None, Mempool::default());
        true
    }

    /// The accounts after the newest block, in the block that comes next.
    pub(super) fn next(&self) -> Environment {
        let view = View { state: self.state.clone(), hashes: Hashes::of(&self.blocks), undone: 0 };
        Environment { chain_id: self.chain_id, view, number: self.blocks.head() + 1, timestamp: self.now() }
    }

    /// The accounts after this block, in it.
    pub(super) fn at(&self, number: u64) -> Result<Environment, CallError> {
        let block = self.blocks.get(number).ok_or(CallError::NoBlock(number))?;
        let undone = usize::try_from(self.blocks.head() - number).unwrap_or(usize::MAX);
        if undone > self.state.kept() {
            return Err(CallError::NoState(number));
        }
        let view = View { state: self.state.clone(), hashes: Hashes::of(&self.blocks), undone };
        Ok(Environment { chain_id: self.chain_id, view, number, timestamp: block.header.timestamp })
    }

    /// Makes blocks of one transaction each until nothing that waits can be next.
    pub(super) fn mine_ready(&mut self) {
        while !self.mempool.ready(|account| self.state.nonce(account)).is_empty() {
            self.mine(1);
        }
    }

    /// Makes a block of what waits and fits, first come, first served; at most so many transactions.
    pub(super) fn mine(&mut self, most: usize) {
        self.state().begin_block();
        let (mut transactions, mut receipts) = (Vec::new(), Vec::new());
        let mut gas_used = 0;
        let mut ready = self.mempool.ready(|account| self.state.nonce(account));
        while transactions.len() < most {
            let Some((_, account)) = ready.pop_first() else { break };
            let Some(transaction) = self.mempool.take(account, BLOCK_GAS_LIMIT - gas_used) else { continue };
            let executed = self.next().execute(&transaction);
            match executed {
                Ok(done) => {
                    self.state().commit(done.state);
                    gas_used += done.result.tx_gas_used();
                    // Reverted or not, the transaction is in the block, and its nonce is used up.
                    let status = Eip658Value::Eip658(done.result.is_success());
                    let logs = if done.result.is_success() { done.result.into_logs() } else { Vec::new() };
                    let receipt = Receipt { status, cumulative_gas_used: gas_used, logs };
                    receipts.push(ReceiptEnvelope::from_typed(transaction.tx_type(), receipt));
                    transactions.push(transaction);
                }
                // It was good when it came, but what came before it has changed that.
                Err(refusal) => tracing::debug!(hash = %transaction.tx_hash(), %refusal, "a waiting transaction is dropped"),
            }
            if let Some(order) = self.mempool.is_ready(account, self.state.nonce(account)) {
                ready.insert(order, account);
            }
        }
        self.blocks.push(self.now(), transactions, receipts);
        // From here on, time goes on.
        if let Some(time) = self.next_time.take() {
            self.advanced = time.saturating_sub(ncn_client::unix_now());
        }
    }

    /// Replaces the newest blocks by one more than they were. Their transactions come again, unless they are dropped.
    pub(super) fn reorganize(&mut self, depth: usize, drop_transactions: bool) {
        let mut undone: Vec<Arc<Block>> = Vec::new();
        for _ in 0..depth {
            self.state().roll_back();
            undone.extend(self.blocks.pop());
        }
        if !drop_transactions {
            for transaction in undone.iter().rev().flat_map(|block| &block.transactions) {
                self.mempool.restore(transaction.clone());
            }
        }
        for _ in 0..=depth {
            self.mine(usize::MAX);
        }
        if self.mining == Mining::Auto {
            self.mine_ready();
        }
    }
}
