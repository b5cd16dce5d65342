//! Blocks and what is in them, findable in every way that is asked for.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use alloy_consensus::{
    Header, ReceiptEnvelope, Sealed, Transaction as _, TxEnvelope,
    proofs::{calculate_receipt_root, calculate_transaction_root},
    transaction::Recovered,
};
use alloy_primitives::{Address, B256, Bloom, Log};
use ncn_core::UnixTime;

use super::{execution::BLOCK_GAS_LIMIT, state::KEPT_BLOCKS};

/// A block.
pub(crate) struct Block {
    pub(crate) header: Sealed<Header>,
    pub(crate) transactions: Vec<Recovered<TxEnvelope>>,
    /// One for each transaction.
    pub(crate) receipts: Vec<ReceiptEnvelope>,
}

/// A log and where in its block it is.
pub(crate) struct PlacedLog<'a> {
    pub(crate) log: &'a Log,
    /// The transaction's index.
    pub(crate) transaction: usize,
    /// The log's index.
    pub(crate) index: usize,
}

/// A transaction in a block, and what became of it.
pub(crate) struct Mined<'a> {
    pub(crate) transaction: &'a Recovered<TxEnvelope>,
    pub(crate) receipt: &'a ReceiptEnvelope,
    pub(crate) gas_used: u64,
    /// The contract that it was to create.
    pub(crate) created: Option<Address>,
    /// The index in the block of its first log.
    pub(crate) first_log: usize,
}

impl Block {
    /// All logs in order.
    pub(crate) fn logs(&self) -> impl Iterator<Item = PlacedLog<'_>> {
        let logs = self.receipts.iter().enumerate().flat_map(|(at, receipt)| receipt.logs().iter().map(move |log| (at, log)));
        logs.enumerate().map(|(index, (transaction, log))| PlacedLog { log, transaction, index })
    }

    /// The transaction at this place.
    pub(crate) fn mined(&self, index: usize) -> Option<Mined<'_>> {
        let (transaction, receipt) = (self.transactions.get(index)?, self.receipts.get(index)?);
        let earlier = self.receipts.get(..index)?;
        let gas_before = earlier.last().map_or(0, ReceiptEnvelope::cumulative_gas_used);
        Some(Mined {
            transaction,
            receipt,
            gas_used: receipt.cumulative_gas_used() - gas_before,
            created: transaction.is_create().then(|| transaction.signer().create(transaction.nonce())),
            first_log: earlier.iter().map(|receipt| receipt.logs().len()).sum(),
        })
    }
}

/// The chain of blocks. There is always one, the genesis.
pub(super) struct Blocks {
    chain: Vec<Arc<Block>>,
    newest: Arc<Block>,
    by_hash: HashMap<B256, u64>,
    /// In which block and where in it a transaction is.
    transactions: HashMap<B256, (u64, usize)>,
    /// Which logs have a value as their second topic: one request's are found without reading every other's.
    by_topic1: HashMap<B256, Vec<(u64, usize)>>,
    /// The newest of those that were taken back.
    orphans: VecDeque<Arc<Block>>,
    /// How many blocks there ever were, which tells a block from another that took its place with the same content.
    made: u64,
}

impl Blocks {
    pub(super) fn new(timestamp: UnixTime) -> Self {
        let header = Header { gas_limit: BLOCK_GAS_LIMIT, timestamp, base_fee_per_gas: Some(0), ..Header::default() };
        let genesis = Arc::new(Block { header: Sealed::new(header), transactions: Vec::new(), receipts: Vec::new() });
        Self {
            by_hash: HashMap::from([(genesis.header.hash(), 0)]),
            chain: vec![genesis.clone()],
            newest: genesis,
            transactions: HashMap::new(),
            by_topic1: HashMap::new(),
            orphans: VecDeque::new(),
            made: 1,
        }
    }

    pub(super) fn newest(&self) -> &Arc<Block> {
        &self.newest
    }

    /// The newest block's number.
    pub(super) fn head(&self) -> u64 {
        self.newest.header.number
    }

    pub(super) fn get(&self, number: u64) -> Option<&Arc<Block>> {
        self.chain.get(usize::try_from(number).ok()?)
    }

    /// Those from this one on, to the newest.
    pub(super) fn since(&self, number: u64) -> &[Arc<Block>] {
        usize::try_from(number).ok().and_then(|number| self.chain.get(number..)).unwrap_or_default()
    }

    /// A block of the chain, or one that recently was.
    pub(super) fn by_hash(&self, hash: B256) -> Option<&Arc<Block>> {
        match self.by_hash.get(&hash) {
            Some(number) => self.get(*number),
            None => self.orphans.iter().find(|block| block.header.hash() == hash),
        }
    }

    /// Whether it is in the chain now.
    pub(super) fn contains(&self, hash: B256) -> bool {
        self.by_hash.contains_key(&hash)
    }

    /// The block that a transaction is in, and where in it.
    pub(super) fn transaction(&self, hash: B256) -> Option<(&Arc<Block>, usize)> {
        let (number, index) = self.transactions.get(&hash)?;
        Some((self.get(*number)?, *index))
    }

    /// The logs with this second topic: their blocks and where in them they are.
    pub(super) fn by_topic1(&self, topic: B256) -> impl Iterator<Item = (&Arc<Block>, PlacedLog<'_>)> {
        let places = self.by_topic1.get(&topic).map(Vec::as_slice).unwrap_or_default();
        places.iter().filter_map(|(number, index)| {
            let block = self.get(*number)?;
            Some((block, block.logs().nth(*index)?))
        })
    }

    /// Puts a block on top.
    pub(super) fn push(&mut self, timestamp: UnixTime, transactions: Vec<Recovered<TxEnvelope>>, receipts: Vec<ReceiptEnvelope>) {
        let number = self.head() + 1;
        let header = Header {
            parent_hash: self.newest.header.hash(),
            // The state's root stays that of nothing: it would be most of the work, and nobody checks it.
            transactions_root: calculate_transaction_root(&transactions),
            receipts_root: calculate_receipt_root(&receipts),
            logs_bloom: receipts.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | *receipt.logs_bloom()),
            number,
            gas_limit: BLOCK_GAS_LIMIT,
            gas_used: receipts.last().map_or(0, ReceiptEnvelope::cumulative_gas_used),
            timestamp,
            extra_data: self.made.to_be_bytes().into(),
            base_fee_per_gas: Some(0),
            ..Header::default()
        };
        let block = Block { header: Sealed::new(header), transactions, receipts };
        self.made += 1;
        self.by_hash.insert(block.header.hash(), number);
        for (index, transaction) in block.transactions.iter().enumerate() {
            self.transactions.insert(*transaction.tx_hash(), (number, index));
        }
        for placed in block.logs() {
            if let Some(topic) = placed.log.topics().get(1) {
                self.by_topic1.entry(*topic).or_default().push((number, placed.index));
            }
        }
        self.newest = Arc::new(block);
        self.chain.push(self.newest.clone());
    }

    /// Takes the newest block back; never the genesis.
    pub(super) fn pop(&mut self) -> Option<Arc<Block>> {
        let block = self.chain.pop_if(|block| block.header.number > 0)?;
        self.newest = self.chain.last()?.clone();
        self.by_hash.remove(&block.header.hash());
        for transaction in &block.transactions {
            self.transactions.remove(transaction.tx_hash());
        }
        for topic in block.logs().filter_map(|placed| placed.log.topics().get(1)) {
            if let Some(places) = self.by_topic1.get_mut(topic) {
                while places.pop_if(|(number, _)| *number == block.header.number).is_some() {}
            }
        }
        if self.orphans.len() == KEPT_BLOCKS {
            self.orphans.pop_front();
        }
        self.orphans.push_back(block.clone());
        Some(block)
    }
}
