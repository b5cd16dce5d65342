//! Everything of the chain that changes, behind one lock.

use std::sync::Arc;

use alloy_consensus::{Eip658Value, Receipt, ReceiptEnvelope};
use ncn_core::UnixTime;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Mining,
    block::{Block, Blocks},
    execution::{BLOCK_GAS_LIMIT, Environment},
    mempool::Mempool,
    refusal::CallError,
    state::{State, View},
};

pub(super) struct Core {
    chain_id: u64,
    pub(super) state: State,
    pub(super) blocks: Blocks,
    pub(super) mempool: Mempool,
    /// How far the chain's clock is ahead of the system's.
    pub(super) advanced: u64,
    pub(super) mining: Mining,
    /// What mines at intervals.
    pub(super) miner: Option<AbortOnDropHandle<()>>,
}

impl Core {
    pub(super) fn new(chain_id: u64) -> Self {
        Self {
            chain_id,
            state: State::genesis(),
            blocks: Blocks::new(ncn_client::unix_now()),
            mempool: Mempool::default(),
            advanced: 0,
            mining: Mining::Auto,
            miner: None,
        }
    }

    /// The time of a block that is made now.
    pub(super) fn now(&self) -> UnixTime {
        ncn_client::unix_now().saturating_add(self.advanced).max(self.blocks.newest().header.timestamp)
    }

    /// The accounts after the newest block, in the block that comes next.
    pub(super) fn next(&self) -> Environment<'_> {
        let view = View { state: &self.state, blocks: &self.blocks, undone: 0 };
        Environment { chain_id: self.chain_id, view, number: self.blocks.head() + 1, timestamp: self.now() }
    }

    /// The accounts after this block, in it.
    pub(super) fn at(&self, number: u64) -> Result<Environment<'_>, CallError> {
        let block = self.blocks.get(number).ok_or(CallError::NoBlock(number))?;
        let undone = usize::try_from(self.blocks.head() - number).unwrap_or(usize::MAX);
        if undone > self.state.kept() {
            return Err(CallError::NoState(number));
        }
        let view = View { state: &self.state, blocks: &self.blocks, undone };
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
        self.state.begin_block();
        let (mut transactions, mut receipts) = (Vec::new(), Vec::new());
        let mut gas_used = 0;
        let mut ready = self.mempool.ready(|account| self.state.nonce(account));
        while transactions.len() < most {
            let Some((_, account)) = ready.pop_first() else { break };
            let Some(transaction) = self.mempool.take(account, BLOCK_GAS_LIMIT - gas_used) else { continue };
            match self.next().execute(&transaction) {
                Ok(done) => {
                    self.state.commit(done.state);
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
    }

    /// Replaces the newest blocks by one more than they were. Their transactions come again, unless they are dropped.
    pub(super) fn reorganize(&mut self, depth: usize, drop_transactions: bool) {
        let mut undone: Vec<Arc<Block>> = Vec::new();
        for _ in 0..depth {
            self.state.roll_back();
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
