//! What only a development chain can do.

use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U64, U256};
use jsonrpsee::{RpcModule, core::RegisterMethodError, types::params::ParamsSequence};
use revm::bytecode::Bytecode;
use serde_json::json;

use super::{Answer, Api, CLIENT, errors::invalid_params, method};
use crate::Mining;

/// The first second of the year 10000: contracts keep times in 40 bits.
const FARTHEST: u64 = 253_402_300_800;
/// The most blocks that are made at once.
const MAX_BLOCKS: u64 = 1_000;

pub(super) fn register(module: &mut RpcModule<Api>) -> Result<(), RegisterMethodError> {
    method(module, "evm_increaseTime", |api, params| {
        let seconds: U64 = params.next()?;
        api.chain.advance(seconds.to());
        Ok(api.chain.advanced())
    })?;
    method(module, "evm_mine", |api, params| {
        if let Some(at) = params.optional_next::<U64>()? {
            let now = api.chain.now();
            let seconds = at.to::<u64>().checked_sub(now);
            api.chain.advance(seconds.ok_or_else(|| invalid_params(format!("timestamp: {at} is before the chain's time, {now}")))?);
        }
        api.chain.mine();
        Ok("0x0")
    })?;
    method(module, "evm_setNextBlockTimestamp", |api, params| {
        let at: U64 = params.next()?;
        let is_later = at.to::<u64>() < FARTHEST && api.chain.set_next_time(at.to());
        is_later
            .then_some(at)
            .ok_or_else(|| invalid_params(format!("timestamp: {at} is not after the newest block's, or past the year 9999")))
    })?;
    method(module, "evm_snapshot", |api, _| Ok(U64::from(api.chain.snapshot())))?;
    method(module, "evm_revert", |api, params| Ok(api.chain.revert(params.next::<U64>()?.to())))?;
    for name in ["anvil_mine", "hardhat_mine"] {
        method(module, name, mine)?;
    }
    method(module, "evm_setAutomine", |api, params| {
        let automine: bool = params.next()?;
        api.chain.set_mining(if automine { Mining::Auto } else { Mining::Manual });
        Ok(true)
    })?;
    method(module, "evm_setIntervalMining", |api, params| {
        let seconds: U64 = params.next()?;
        let mining = if seconds.is_zero() { Mining::Manual } else { Mining::Every(Duration::from_secs(seconds.to())) };
        api.chain.set_mining(mining);
        Ok(true)
    })?;
    for name in ["anvil_setBalance", "hardhat_setBalance"] {
        method(module, name, |api, params| {
            let (account, wei): (Address, U256) = (params.next()?, params.next()?);
            api.chain.set_balance(account, wei);
            Ok(true)
        })?;
    }
    for name in ["anvil_setNonce", "hardhat_setNonce"] {
        method(module, name, |api, params| {
            let (account, nonce): (Address, U64) = (params.next()?, params.next()?);
            api.chain.set_account(account, |info| info.nonce = nonce.to());
            Ok(true)
        })?;
    }
    for name in ["anvil_setCode", "hardhat_setCode"] {
        method(module, name, |api, params| {
            let (account, code): (Address, Bytes) = (params.next()?, params.next()?);
            let code = Bytecode::new_raw_checked(code).map_err(|error| invalid_params(format!("code: {error}")))?;
            api.chain.set_account(account, |info| (info.code_hash, info.code) = (code.hash_slow(), Some(code)));
            Ok(true)
        })?;
    }
    for name in ["anvil_setStorageAt", "hardhat_setStorageAt"] {
        method(module, name, |api, params| {
            let (account, slot, value): (Address, U256, U256) = (params.next()?, params.next()?, params.next()?);
            api.chain.set_slot(account, slot, value);
            Ok(true)
        })?;
    }
    method(module, "hardhat_metadata", |api, _| {
        let newest = api.chain.newest();
        Ok(json!({
            "clientVersion": CLIENT,
            "chainId": api.chain.chain_id,
            "instanceId": api.chain.block(0).map(|genesis| genesis.header.hash()),
            "latestBlockNumber": newest.header.number,
            "latestBlockHash": newest.header.hash(),
        }))
    })?;
    method(module, "ncn_reorg", reorg)?;
    method(module, "ncn_fault", |api, params| {
        api.faults.plan(params.next()?);
        Ok(true)
    })?;
    Ok(())
}

fn mine(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<()> {
    let blocks: u64 = params.optional_next()?.unwrap_or(U64::ONE).to();
    if blocks > MAX_BLOCKS {
        return Err(invalid_params(format!("blocks: at most {MAX_BLOCKS} can be made at once, not {blocks}")));
    }
    let interval: u64 = params.optional_next()?.unwrap_or(U64::ZERO).to();
    for block in 0..blocks {
        api.chain.advance(if block == 0 { 0 } else { interval });
        api.chain.mine();
    }
    Ok(())
}

/// The new head's hash.
fn reorg(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<B256> {
    let depth: U64 = params.next()?;
    let drop_transactions = params.optional_next()?.unwrap_or(false);
    let depth = usize::try_from(depth.to::<u64>()).unwrap_or(usize::MAX);
    api.chain.reorg(depth, drop_transactions).map_err(|error| invalid_params(error.to_string()))?;
    Ok(api.chain.newest().header.hash())
}
