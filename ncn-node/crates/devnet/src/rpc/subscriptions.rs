//! `eth_subscribe`: news over a WebSocket, in the form that go-ethereum gives them.
//!
//! A subscription reads what is new from the chain when it can send: of a client that does not read, nothing piles up.

use std::sync::Arc;

use alloy_primitives::B256;
use alloy_rpc_types_eth::Filter;
use jsonrpsee::{
    PendingSubscriptionSink, RpcModule, SubscriptionSink,
    core::{RegisterMethodError, traits::IdProvider},
    types::{Params, SubscriptionId},
};
use serde::Serialize;
use serde_json::{Value, value::to_raw_value};
use tokio::sync::{broadcast::error::RecvError, watch};

use super::{Answer, Api, answers, errors::invalid_params, filters};

/// How many subscriptions a connection may have.
pub(super) const MAX_SUBSCRIPTIONS: u32 = 64;
/// How many messages wait for a connection before its subscriptions do.
pub(super) const MAX_WAITING: u32 = 64;

/// Ids as go-ethereum's: some libraries take no others.
#[derive(Debug)]
pub(super) struct Ids;

impl IdProvider for Ids {
    fn next_id(&self) -> SubscriptionId<'static> {
        let id = B256::random();
        SubscriptionId::Str(format!("0x{:032x}", u128::from_be_bytes(id.0.first_chunk().copied().unwrap_or_default())).into())
    }
}

/// What is told.
enum Kind {
    Heads,
    Logs(Box<Filter>),
    Pending,
}

pub(super) fn register(module: &mut RpcModule<Api>) -> Result<(), RegisterMethodError> {
    module
        .register_subscription("eth_subscribe", "eth_subscription", "eth_unsubscribe", |params, pending, api, _| async move {
            subscribe(&params, pending, &api).await;
        })
        .map(drop)
}

fn kind(params: &Params<'_>) -> Answer<Kind> {
    let mut params = params.sequence();
    let name: String = params.next()?;
    match name.as_str() {
        "newHeads" => Ok(Kind::Heads),
        "logs" => Ok(Kind::Logs(params.optional_next::<Box<Filter>>()?.unwrap_or_default())),
        "newPendingTransactions" => match params.optional_next::<Value>()? {
            None | Some(Value::Null | Value::Bool(false)) => Ok(Kind::Pending),
            Some(_) => Err(invalid_params("newPendingTransactions: only hashes are told: leave the second parameter out")),
        },
        _ => Err(invalid_params(format!("{name:?} is none of newHeads, logs and newPendingTransactions"))),
    }
}

async fn subscribe(params: &Params<'_>, pending: PendingSubscriptionSink, api: &Api) {
    let kind = match kind(params) {
        Ok(kind) => kind,
        Err(error) => return pending.reject(error).await,
    };
    // From here on, and not from when the client has heard that it is subscribed.
    let (head, last, transactions) = (api.chain.heads(), api.chain.newest(), api.chain.arrivals());
    let Ok(sink) = pending.accept().await else { return };
    let telling = async {
        match kind {
            Kind::Pending => tell_pending(transactions, &sink).await,
            Kind::Heads | Kind::Logs(_) => tell_blocks(&kind, api, head, last, &sink).await,
        }
    };
    tokio::select! {
        _ = telling => {}
        () = sink.closed() => {}
    }
}

/// The other side is gone, or there is no more to tell.
struct Ended;

async fn tell_blocks(
    kind: &Kind,
    api: &Api,
    mut head: watch::Receiver<ncn_client::evm::Head>,
    mut last: Arc<crate::chain::Block>,
    sink: &SubscriptionSink,
) -> Result<(), Ended> {
    loop {
        head.changed().await.map_err(|_| Ended)?;
        head.mark_unchanged();
        let since = api.chain.since(&last);
        last = since.newest.clone();
        match kind {
            Kind::Logs(filter) => {
                for (blocks, removed) in [(&since.removed, true), (&since.added, false)] {
                    for block in blocks {
                        let mut found = Vec::new();
                        filters::collect(filter, block, removed, &mut found).map_err(|_| Ended)?;
                        for log in found {
                            send(sink, &log).await?;
                        }
                    }
                }
            }
            _ => {
                for block in &since.added {
                    send(sink, &answers::block(block, false).header).await?;
                }
            }
        }
    }
}

async fn tell_pending(mut transactions: tokio::sync::broadcast::Receiver<B256>, sink: &SubscriptionSink) -> Result<(), Ended> {
    loop {
        match transactions.recv().await {
            Ok(hash) => send(sink, &hash).await?,
            // Some are lost to who does not keep up.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Err(Ended),
        }
    }
}

async fn send(sink: &SubscriptionSink, message: &impl Serialize) -> Result<(), Ended> {
    let message = to_raw_value(message).map_err(|_| Ended)?;
    sink.send(message).await.map_err(|_| Ended)
}
