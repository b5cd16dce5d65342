//! The embedded chain behind the Ethereum JSON-RPC API, for wallets, libraries and tools during development.

mod answers;
mod dev_methods;
mod errors;
mod eth;
mod faults;
mod filters;
mod origins;
mod subscriptions;

use std::{io, net::SocketAddr, sync::Arc};

use jsonrpsee::{
    RpcModule,
    core::{RegisterMethodError, middleware::RpcServiceBuilder},
    server::{BatchRequestConfig, HttpResponse, Server, ServerConfig, ServerHandle, middleware::http::HostFilterLayer},
    types::{ErrorObjectOwned, params::ParamsSequence},
};
use serde::Serialize;
use tower_http::{
    cors::{Any, CorsLayer},
    validate_request::ValidateRequestHeaderLayer,
};

use self::{
    faults::{FaultLayer, Faults},
    filters::Filters,
    origins::Origins,
};
use super::EmbeddedChain;

/// The largest call or batch: some transactions of the largest size, in hexadecimal digits.
const MAX_REQUEST_BYTES: u32 = 4 << 20;
/// The largest answer: as many logs as one may ask for.
const MAX_RESPONSE_BYTES: u32 = 32 << 20;
const MAX_CONNECTIONS: u32 = 256;
/// The most calls in a batch, which is the most that libraries send.
const MAX_BATCH: u32 = 1_000;
/// Whom browsers may mean when they come here. Another name was made to point here by somebody who may not reach this machine.
const HOSTS: [&str; 3] = ["localhost:*", "127.0.0.1:*", "[::1]:*"];

/// What it calls itself.
const CLIENT: &str = concat!("ncn-embedded/", env!("CARGO_PKG_VERSION"));

type Answer<R> = Result<R, ErrorObjectOwned>;

/// A listening server; it stops when this is dropped.
///
/// Beside the usual methods there are some for development: `evm_increaseTime`, `evm_setNextBlockTimestamp`, `evm_mine`,
/// `evm_setAutomine`, `evm_setIntervalMining`, `evm_snapshot`, `evm_revert`, `anvil_mine`, `anvil_setBalance`, `anvil_setNonce`,
/// `anvil_setCode`, `anvil_setStorageAt` (those of `anvil_` by the names of `hardhat_`, too), `hardhat_metadata`, `ncn_reorg` (depth,
/// whether transactions are dropped) and
/// `ncn_fault` (an object: `mode` is one of `error`, `timeout`, `lost` and `garbage`, `count` says how many calls it concerns, and
/// `method`, where it is given, of which).
pub struct RpcServer {
    address: SocketAddr,
    _handle: ServerHandle,
}

/// What the methods work on.
struct Api {
    chain: Arc<EmbeddedChain>,
    filters: Filters,
    faults: Arc<Faults>,
}

impl RpcServer {
    /// Serves a chain on this loopback address, over HTTP and WebSocket; port 0 takes a free one. No page in a browser may ask.
    pub async fn start(chain: Arc<EmbeddedChain>, address: SocketAddr) -> io::Result<Self> {
        Self::start_for(chain, address, Vec::new()).await
    }

    /// The same, for pages of these origins, such as `http://localhost:3000`, too.
    pub async fn start_for(chain: Arc<EmbeddedChain>, address: SocketAddr, origins: Vec<String>) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            let problem =
                format!("address: {address} can be reached from outside, and this is for development only: use 127.0.0.1");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let faults = Arc::new(Faults::default());
        let module = module(Api { chain, filters: Filters::default(), faults: faults.clone() }).map_err(io::Error::other)?;
        let config = ServerConfig::builder()
            .max_request_body_size(MAX_REQUEST_BYTES)
            .max_response_body_size(MAX_RESPONSE_BYTES)
            .max_connections(MAX_CONNECTIONS)
            .set_batch_request_config(BatchRequestConfig::Limit(MAX_BATCH))
            .max_subscriptions_per_connection(subscriptions::MAX_SUBSCRIPTIONS)
            .set_message_buffer_capacity(subscriptions::MAX_WAITING)
            .set_id_provider(subscriptions::Ids)
            .set_tcp_no_delay(true)
            .build();
        let origins = origins.iter().map(|origin| origins::origin(origin)).collect::<io::Result<Vec<_>>>()?;
        let named = origins.iter().map(|origin| origin.parse()).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let http = tower::ServiceBuilder::new()
            .layer(HostFilterLayer::new(HOSTS).map_err(io::Error::other)?)
            .layer(ValidateRequestHeaderLayer::custom(Origins(origins.into())))
            .layer(CorsLayer::new().allow_origin(named).allow_methods(Any).allow_headers(Any))
            .map_response(|response: HttpResponse| faults::lose(response));
        let server = Server::builder()
            .set_config(config)
            .set_http_middleware(http)
            .set_rpc_middleware(RpcServiceBuilder::new().layer(FaultLayer(faults)))
            .build(address)
            .await?;
        Ok(Self { address: server.local_addr()?, _handle: server.start(module) })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it is called.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn module(api: Api) -> Result<RpcModule<Api>, RegisterMethodError> {
    let mut module = RpcModule::new(api);
    eth::register(&mut module)?;
    filters::register(&mut module)?;
    subscriptions::register(&mut module)?;
    dev_methods::register(&mut module)?;
    Ok(module)
}

/// Adds a method. It runs where it may take its time: another call may hold the chain while a contract runs.
fn method<R: Serialize + Clone + Send + 'static>(
    module: &mut RpcModule<Api>,
    name: &'static str,
    answer: fn(&Api, &mut ParamsSequence<'_>) -> Answer<R>,
) -> Result<(), RegisterMethodError> {
    module.register_blocking_method(name, move |params, api, _| answer(&api, &mut params.sequence())).map(drop)
}
