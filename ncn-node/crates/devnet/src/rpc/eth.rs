//! The methods that read the chain and send transactions.

use std::sync::Arc;

use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256};
use alloy_rpc_types_eth::{
    Block as RpcBlock, BlockId, BlockNumberOrTag, FeeHistory, RpcBlockHash, SyncStatus, Transaction, TransactionReceipt,
    TransactionRequest,
};
use jsonrpsee::{RpcModule, core::RegisterMethodError, types::params::ParamsSequence};
use serde_json::Value;

use super::{
    Answer, Api, CLIENT, answers,
    errors::{call_failed, invalid_params, refused, server_error},
    method,
};
use crate::chain::{BLOCK_GAS_LIMIT, Block, Request};

/// The most blocks whose fees are told at once.
const MAX_FEE_HISTORY: u64 = 1_024;
/// The most percentiles of its rewards.
const MAX_PERCENTILES: usize = 100;

pub(super) fn register(module: &mut RpcModule<Api>) -> Result<(), RegisterMethodError> {
    method(module, "web3_clientVersion", |_, _| Ok(CLIENT))?;
    method(module, "net_listening", |_, _| Ok(true))?;
    method(module, "net_version", |api, _| Ok(api.chain.chain_id.to_string()))?;
    method(module, "eth_chainId", |api, _| Ok(U64::from(api.chain.chain_id)))?;
    method(module, "eth_blockNumber", |api, _| Ok(U64::from(api.chain.number())))?;
    method(module, "eth_syncing", |_, _| Ok(SyncStatus::None))?;
    method(module, "eth_accounts", |_, _| Ok(Vec::<Address>::new()))?;
    method(module, "eth_gasPrice", |_, _| Ok(U256::ZERO))?;
    method(module, "eth_maxPriorityFeePerGas", |_, _| Ok(U256::ZERO))?;
    method(module, "eth_feeHistory", fee_history)?;
    method(module, "eth_getBalance", |api, params| Ok(account(api, params)?.balance))?;
    method(module, "eth_getCode", |api, params| {
        Ok(account(api, params)?.code.map(|code| code.original_bytes()).unwrap_or_default())
    })?;
    method(module, "eth_getStorageAt", storage_at)?;
    method(module, "eth_getTransactionCount", transaction_count)?;
    method(module, "eth_call", call)?;
    method(module, "eth_estimateGas", estimate_gas)?;
    method(module, "eth_sendRawTransaction", |api, params| {
        let raw: Bytes = params.next()?;
        api.chain.send(&raw).map_err(|refusal| refused(&refusal))
    })?;
    method(module, "eth_getTransactionByHash", transaction_by_hash)?;
    method(module, "eth_getTransactionReceipt", transaction_receipt)?;
    method(module, "eth_getBlockByNumber", |api, params| {
        let number: BlockNumberOrTag = params.next()?;
        block_answer(api, number.into(), params)
    })?;
    method(module, "eth_getBlockByHash", |api, params| {
        let hash: B256 = params.next()?;
        block_answer(api, hash.into(), params)
    })?;
    method(module, "eth_getBlockReceipts", block_receipts)?;
    for name in ["eth_getTransactionByBlockNumberAndIndex", "eth_getTransactionByBlockHashAndIndex"] {
        method(module, name, |api, params| {
            let (block, index): (BlockId, U64) = (params.next()?, params.next()?);
            let index = usize::try_from(index.to::<u64>()).unwrap_or(usize::MAX);
            Ok(api.find(block).and_then(|block| answers::transaction(&block, index)))
        })?;
    }
    for name in ["eth_getBlockTransactionCountByNumber", "eth_getBlockTransactionCountByHash"] {
        method(module, name, |api, params| Ok(api.find(params.next()?).map(|block| U64::from(block.transactions.len()))))?;
    }
    for name in ["eth_getUncleCountByBlockNumber", "eth_getUncleCountByBlockHash"] {
        method(module, name, |api, params| Ok(api.find(params.next()?).map(|_| U64::ZERO)))?;
    }
    Ok(())
}

impl Api {
    /// A tag's block. What is in a block is final here as soon as it is: reorganizations are made on purpose.
    pub(super) fn number(&self, tag: BlockNumberOrTag) -> u64 {
        match tag {
            BlockNumberOrTag::Number(number) => number,
            BlockNumberOrTag::Earliest => 0,
            _ => self.chain.number(),
        }
    }

    fn find(&self, block: BlockId) -> Option<Arc<Block>> {
        match block {
            BlockId::Number(tag) => self.chain.block(self.number(tag)),
            BlockId::Hash(RpcBlockHash { block_hash, .. }) => self.chain.block_by_hash(block_hash),
        }
    }

    /// The number of the block of the chain after which something is asked.
    fn state_number(&self, block: Option<BlockId>) -> Answer<u64> {
        match block {
            None => Ok(self.chain.number()),
            Some(BlockId::Number(tag)) => Ok(self.number(tag)),
            Some(BlockId::Hash(hash)) => {
                let found = self.find(hash.into()).map(|block| block.header.number);
                let number = found.ok_or_else(|| server_error("header not found"))?;
                let canonical = self.chain.block(number).is_some_and(|block| block.header.hash() == hash.block_hash);
                canonical.then_some(number).ok_or_else(|| server_error("hash is not currently canonical"))
            }
        }
    }
}

fn account(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<revm::state::AccountInfo> {
    let address: Address = params.next()?;
    let number = api.state_number(params.optional_next()?)?;
    api.chain.account(address, number).map_err(call_failed)
}

fn storage_at(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<B256> {
    let (address, slot): (Address, U256) = (params.next()?, params.next()?);
    let number = api.state_number(params.optional_next()?)?;
    api.chain.storage(address, slot, number).map(B256::from).map_err(call_failed)
}

fn transaction_count(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<U64> {
    let address: Address = params.next()?;
    let block: Option<BlockId> = params.optional_next()?;
    if block == Some(BlockId::pending()) {
        return Ok(U64::from(api.chain.pending_nonce(address)));
    }
    let number = api.state_number(block)?;
    api.chain.account(address, number).map(|account| U64::from(account.nonce)).map_err(call_failed)
}

fn request(params: &mut ParamsSequence<'_>) -> Answer<(Request, Option<BlockId>)> {
    let given: TransactionRequest = params.next()?;
    let block = params.optional_next()?;
    for (of, instead) in [("state", "change the state itself"), ("block", "mine the block")] {
        let overrides: Option<Value> = params.optional_next()?;
        if overrides.is_some_and(|overrides| overrides.as_object().is_none_or(|overrides| !overrides.is_empty())) {
            return Err(invalid_params(format!("{of} overrides are not supported: {instead}, it is a development chain")));
        }
    }
    let input = given.input.try_into_unique_input().map_err(|error| invalid_params(error.to_string()))?.unwrap_or_default();
    let request = Request {
        from: given.from.unwrap_or_default(),
        to: given.to.unwrap_or(TxKind::Create),
        input,
        value: given.value.unwrap_or_default(),
        gas: given.gas,
        access_list: given.access_list.unwrap_or_default(),
    };
    Ok((request, block))
}

fn call(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<Bytes> {
    let (request, block) = request(params)?;
    // What is pending is what the next block would do.
    let number = if block == Some(BlockId::pending()) { None } else { Some(api.state_number(block)?) };
    api.chain.run(&request, number).map_err(call_failed)
}

fn estimate_gas(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<U64> {
    let (request, _) = request(params)?;
    api.chain.gas_needed(&request).map(U64::from).map_err(call_failed)
}

fn transaction_by_hash(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<Option<Transaction>> {
    let hash: B256 = params.next()?;
    match api.chain.mined(hash) {
        Some((block, index)) => Ok(answers::transaction(&block, index)),
        None => Ok(api.chain.waiting(hash).map(answers::waiting)),
    }
}

fn transaction_receipt(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<Option<TransactionReceipt>> {
    let hash: B256 = params.next()?;
    Ok(api.chain.mined(hash).and_then(|(block, index)| answers::receipt(&block, index)))
}

fn block_answer(api: &Api, block: BlockId, params: &mut ParamsSequence<'_>) -> Answer<Option<RpcBlock>> {
    let full = params.optional_next()?.unwrap_or(false);
    Ok(api.find(block).map(|block| answers::block(&block, full)))
}

fn block_receipts(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<Option<Vec<TransactionReceipt>>> {
    let block: BlockId = params.next()?;
    let receipts = |block: Arc<Block>| (0..block.transactions.len()).filter_map(|index| answers::receipt(&block, index)).collect();
    Ok(api.find(block).map(receipts))
}

/// Nothing is ever needed to be in the next block.
fn fee_history(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<FeeHistory> {
    let (count, newest): (U64, BlockNumberOrTag) = (params.next()?, params.next()?);
    let percentiles: Vec<f64> = params.optional_next()?.unwrap_or_default();
    if percentiles.len() > MAX_PERCENTILES || !percentiles.is_sorted() || percentiles.iter().any(|one| !(0.0..=100.0).contains(one))
    {
        return Err(invalid_params(format!("percentiles: give up to {MAX_PERCENTILES} numbers from 0 to 100, ascending")));
    }
    let newest = api.number(newest).min(api.chain.number());
    let oldest = (newest + 1).saturating_sub(count.to::<u64>().min(MAX_FEE_HISTORY));
    #[allow(clippy::cast_precision_loss, reason = "a ratio for charts")]
    let ratio = |block: &Arc<Block>| block.header.gas_used as f64 / BLOCK_GAS_LIMIT as f64;
    let gas_used_ratio: Vec<f64> = api.chain.blocks(oldest, newest, |_| true).iter().map(ratio).collect();
    let blocks = gas_used_ratio.len();
    Ok(FeeHistory {
        base_fee_per_gas: vec![0; blocks + 1],
        gas_used_ratio,
        base_fee_per_blob_gas: Vec::new(),
        blob_gas_used_ratio: Vec::new(),
        oldest_block: oldest,
        reward: (!percentiles.is_empty()).then(|| vec![vec![0; percentiles.len()]; blocks]),
    })
}
