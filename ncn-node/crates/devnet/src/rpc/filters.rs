//! Logs, and filters that tell what is new.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use alloy_primitives::{B256, U64};
use alloy_rpc_types_eth::{BlockNumberOrTag, Filter, FilterBlockOption, FilterChanges, Log, Transaction};
use jsonrpsee::{RpcModule, core::RegisterMethodError, types::params::ParamsSequence};
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use super::{
    Answer, Api, answers,
    errors::{invalid_params, limit_exceeded, server_error},
    method,
};
use crate::chain::Block;

/// The most logs in an answer.
const MAX_LOGS: usize = 10_000;
/// How many filters there may be. When another comes, the one that was not asked for the longest goes: pages that are closed do not
/// say goodbye.
const MAX_FILTERS: usize = 1_024;

pub(super) fn register(module: &mut RpcModule<Api>) -> Result<(), RegisterMethodError> {
    method(module, "eth_getLogs", |api, params| find(api, &params.next()?))?;
    method(module, "eth_newFilter", |api, params| {
        let filter: Box<Filter> = params.next()?;
        Ok(install(api, Kind::Logs(filter)))
    })?;
    method(module, "eth_newBlockFilter", |api, _| Ok(install(api, Kind::Blocks)))?;
    method(module, "eth_newPendingTransactionFilter", |api, _| {
        let arrivals = api.chain.arrivals();
        Ok(install(api, Kind::Pending(Arc::new(Mutex::new(arrivals)))))
    })?;
    method(module, "eth_getFilterChanges", changes)?;
    method(module, "eth_getFilterLogs", |api, params| match api.filters.ask(params.next()?, |filter| filter.kind.clone())? {
        Kind::Logs(filter) => find(api, &filter),
        Kind::Blocks | Kind::Pending(_) => Err(server_error("filter not found")),
    })?;
    method(module, "eth_uninstallFilter", |api, params| {
        let id: U64 = params.next()?;
        Ok(api.filters.lock().installed.remove(&id).is_some())
    })?;
    Ok(())
}

/// The filters that clients have installed.
#[derive(Default)]
pub(super) struct Filters(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    installed: HashMap<U64, Installed>,
    /// Counts what is asked of filters.
    asked: u64,
}

struct Installed {
    kind: Kind,
    /// The newest block when it was asked last.
    last: Arc<Block>,
    /// When that was.
    asked: u64,
}

#[derive(Clone)]
enum Kind {
    Blocks,
    Logs(Box<Filter>),
    /// Hashes of transactions, as far as they are remembered.
    Pending(Arc<Mutex<Receiver<B256>>>),
}

impl Filters {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a filter, which counts as asking.
    fn ask<T>(&self, id: U64, look: impl FnOnce(&mut Installed) -> T) -> Answer<T> {
        let mut filters = self.lock();
        filters.asked += 1;
        let asked = filters.asked;
        let filter = filters.installed.get_mut(&id).ok_or_else(|| server_error("filter not found"))?;
        filter.asked = asked;
        Ok(look(filter))
    }
}

fn install(api: &Api, kind: Kind) -> U64 {
    let last = api.chain.newest();
    let mut filters = api.filters.lock();
    if filters.installed.len() >= MAX_FILTERS {
        let stalest = filters.installed.iter().min_by_key(|(_, filter)| filter.asked).map(|(id, _)| *id);
        stalest.and_then(|id| filters.installed.remove(&id));
    }
    filters.asked += 1;
    // Never given twice, as it counts up.
    let (id, asked) = (U64::from(filters.asked), filters.asked);
    filters.installed.insert(id, Installed { kind, last, asked });
    id
}

fn changes(api: &Api, params: &mut ParamsSequence<'_>) -> Answer<FilterChanges<Transaction, Log>> {
    let id: U64 = params.next()?;
    let (kind, since) = api.filters.ask(id, |filter| {
        let since = api.chain.since(&filter.last);
        filter.last = since.newest.clone();
        (filter.kind.clone(), since)
    })?;
    match kind {
        Kind::Blocks => Ok(FilterChanges::Hashes(since.added.iter().map(|block| block.header.hash()).collect())),
        Kind::Pending(arrivals) => {
            let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            let mut hashes = Vec::new();
            loop {
                match arrivals.try_recv() {
                    Ok(hash) => hashes.push(hash),
                    Err(TryRecvError::Lagged(_)) => {}
                    Err(_) => break Ok(FilterChanges::Hashes(hashes)),
                }
            }
        }
        Kind::Logs(filter) => {
            let mut found = Vec::new();
            for block in &since.removed {
                collect(&filter, block, true, &mut found)?;
            }
            for block in &since.added {
                collect(&filter, block, false, &mut found)?;
            }
            Ok(FilterChanges::Logs(found))
        }
    }
}

/// Adds those logs of a block that fit.
pub(super) fn collect(filter: &Filter, block: &Block, removed: bool, found: &mut Vec<Log>) -> Answer<()> {
    if !filter.matches_bloom(block.header.logs_bloom) {
        return Ok(());
    }
    let fitting = block.logs().filter(|placed| filter.matches(placed.log));
    found.extend(fitting.map(|placed| answers::log(block, &placed, removed)));
    if found.len() > MAX_LOGS {
        return Err(limit_exceeded(format!("query returned more than {MAX_LOGS} results")));
    }
    Ok(())
}

fn find(api: &Api, filter: &Filter) -> Answer<Vec<Log>> {
    let blocks = match filter.block_option {
        FilterBlockOption::AtBlockHash(hash) => vec![block_at(api, hash)?],
        FilterBlockOption::Range { from_block, to_block } => {
            if let (Some(BlockNumberOrTag::Number(from)), Some(BlockNumberOrTag::Number(to))) = (from_block, to_block)
                && from > to
            {
                return Err(invalid_params(format!("invalid block range params: fromBlock {from} is after toBlock {to}")));
            }
            let (from, to) = (api.number(from_block.unwrap_or_default()), api.number(to_block.unwrap_or_default()));
            api.chain.blocks(from, to, |header| filter.matches_bloom(header.logs_bloom))
        }
    };
    let mut found = Vec::new();
    for block in &blocks {
        collect(filter, block, false, &mut found)?;
    }
    Ok(found)
}

fn block_at(api: &Api, hash: B256) -> Answer<Arc<Block>> {
    api.chain.block_by_hash(hash).ok_or_else(|| server_error("unknown block"))
}
