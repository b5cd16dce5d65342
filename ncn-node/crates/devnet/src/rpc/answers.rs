//! Blocks and what is in them, as clients expect them.

use alloy_consensus::{Transaction as _, TxEnvelope, transaction::Recovered};
use alloy_primitives::U256;
use alloy_rpc_types_eth::{Block as RpcBlock, BlockTransactions, Header, Log, Transaction, TransactionReceipt};

use crate::chain::{Block, PlacedLog};

/// The price that a transaction pays for gas: all that it offers for the next to be made, as nothing is burnt.
fn gas_price(transaction: &TxEnvelope) -> u128 {
    transaction.effective_gas_price(Some(0))
}

/// The block, with its transactions or only their hashes.
pub(super) fn block(block: &Block, full: bool) -> RpcBlock {
    let transactions = if full {
        BlockTransactions::Full((0..block.transactions.len()).filter_map(|index| transaction(block, index)).collect())
    } else {
        BlockTransactions::Hashes(block.transactions.iter().map(|transaction| *transaction.tx_hash()).collect())
    };
    let header = Header { size: Some(U256::from(block.header.size())), ..Header::from_sealed(block.header.clone()) };
    RpcBlock { header, uncles: Vec::new(), transactions, withdrawals: None }
}

/// A transaction that is in a block.
pub(super) fn transaction(block: &Block, index: usize) -> Option<Transaction> {
    let inner = block.transactions.get(index)?.clone();
    Some(Transaction {
        effective_gas_price: Some(gas_price(&inner)),
        inner,
        block_hash: Some(block.header.hash()),
        block_number: Some(block.header.number),
        transaction_index: Some(index as u64),
        block_timestamp: Some(block.header.timestamp),
    })
}

/// A transaction that waits.
pub(super) fn waiting(inner: Recovered<TxEnvelope>) -> Transaction {
    Transaction {
        effective_gas_price: Some(inner.max_fee_per_gas()),
        inner,
        block_hash: None,
        block_number: None,
        transaction_index: None,
        block_timestamp: None,
    }
}

/// A log of a block. It is `removed` when the block no longer is in the chain.
pub(super) fn log(block: &Block, placed: &PlacedLog<'_>, removed: bool) -> Log {
    let transaction = block.transactions.get(placed.transaction);
    Log {
        inner: placed.log.clone(),
        block_hash: Some(block.header.hash()),
        block_number: Some(block.header.number),
        block_timestamp: Some(block.header.timestamp),
        transaction_hash: transaction.map(|transaction| *transaction.tx_hash()),
        transaction_index: Some(placed.transaction as u64),
        log_index: Some(placed.index as u64),
        removed,
    }
}

/// What became of a transaction.
pub(super) fn receipt(block: &Block, index: usize) -> Option<TransactionReceipt> {
    let mined = block.mined(index)?;
    let mut log_index = mined.first_log;
    let inner = mined.receipt.clone().map_logs(|inner| {
        let placed = PlacedLog { log: &inner, transaction: index, index: log_index };
        log_index += 1;
        log(block, &placed, false)
    });
    Some(TransactionReceipt {
        inner,
        transaction_hash: *mined.transaction.tx_hash(),
        transaction_index: Some(index as u64),
        block_hash: Some(block.header.hash()),
        block_number: Some(block.header.number),
        gas_used: mined.gas_used,
        effective_gas_price: gas_price(mined.transaction),
        blob_gas_used: None,
        blob_gas_price: None,
        from: mined.transaction.signer(),
        to: mined.transaction.to(),
        contract_address: mined.created,
    })
}
