use std::{sync::Arc, time::Duration};

use bytes::Bytes;
#[cfg(feature = "grpc")]
use ncn_client::grpc::GrpcTransport;
#[cfg(feature = "grpc")]
use ncn_core::{Address, Confinement, DirectoryExt as _, NodeRole, Transport as _};
use ncn_core::{BatchSettler, DynSigner, PaymentLedger, Registry, Subnet};

use crate::{
    channel::{BatchPolicy, ChannelProcessor},
    gateway::{Gateway, GatewayError, GatewayOptions, GatewayParts, Journal},
    store::SharedStore,
};

#[cfg(feature = "grpc")]
use axum::Router;

#[cfg(feature = "http")]
use crate::gateway::http_routes;

#[cfg(feature = "grpc")]
use crate::{
    gateway::{client_service, compute_service},
    node::leave,
    registration::{NodeDescriptor, Registration},
    server::{Listen, Rates, Server, Services},
};

/// How long another gateway of the same key has to answer.
#[cfg(feature = "grpc")]
const OTHER_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes up a gateway.
pub struct GatewayBuilder {
    signer: DynSigner,
    subnet: Subnet,
    ledger: Arc<dyn PaymentLedger>,
    chain: Arc<dyn BatchSettler>,
    registry: Arc<dyn Registry>,
    store: SharedStore,
    manifests: Vec<Bytes>,
    policy: BatchPolicy,
    options: GatewayOptions,
    #[cfg(feature = "grpc")]
    listen: Vec<Listen>,
    #[cfg(feature = "grpc")]
    rates: Option<Rates>,
    #[cfg(feature = "grpc")]
    routes: Vec<Router>,
}

/// A gateway that runs: the role, its channels, its server, its registration.
pub struct RunningGateway {
    gateway: Arc<Gateway>,
    channels: ChannelProcessor,
    #[cfg(feature = "grpc")]
    server: Option<(Server, Registration)>,
}

impl Gateway {
    /// Starts to make up a gateway: its key, what it offers, its account on the chain, the registry, and the store for its journal and its
    /// channels. A subnet of another owner has to be as the registry knows it, and name this gateway.
    pub fn builder<C: PaymentLedger + BatchSettler + 'static>(
        signer: DynSigner,
        subnet: Subnet,
        chain: Arc<C>,
        registry: Arc<dyn Registry>,
        store: SharedStore,
    ) -> GatewayBuilder {
        GatewayBuilder {
            signer,
            subnet,
            ledger: chain.clone(),
            chain,
            registry,
            store,
            manifests: Vec::new(),
            policy: BatchPolicy::default(),
            options: GatewayOptions::default(),
            #[cfg(feature = "grpc")]
            listen: Vec::new(),
            #[cfg(feature = "grpc")]
            rates: Some(Rates::default()),
            #[cfg(feature = "grpc")]
            routes: Vec::new(),
        }
    }
}

impl GatewayBuilder {
    /// The manifests of the subnet's models.
    #[must_use]
    pub fn manifests(mut self, manifests: Vec<Bytes>) -> Self {
        self.manifests = manifests;
        self
    }

    /// When captured vouchers are settled.
    #[must_use]
    pub const fn batch_policy(mut self, policy: BatchPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How much it does.
    #[must_use]
    pub fn options(mut self, options: GatewayOptions) -> Self {
        self.options = options;
        self
    }

    /// Where it serves clients and compute nodes, over gRPC and with the feature `http` over HTTP; port 0 takes a free one. It may listen at
    /// several addresses, and is registered with the first. Without any, it serves its own process only and does not register.
    #[cfg(feature = "grpc")]
    #[must_use]
    pub fn listen(mut self, listen: impl Into<Listen>) -> Self {
        self.listen.push(listen.into());
        self
    }

    /// How many calls it takes from one address, or as many as come.
    #[cfg(feature = "grpc")]
    #[must_use]
    pub fn rates(mut self, rates: impl Into<Option<Rates>>) -> Self {
        self.rates = rates.into();
        self
    }

    /// What else it serves, wherever it listens: [`metrics_routes`](crate::server::metrics_routes), for example.
    #[cfg(feature = "grpc")]
    #[must_use]
    pub fn routes(mut self, routes: Router) -> Self {
        self.routes.push(routes);
        self
    }

    /// Starts it: takes up what the store holds, listens, and registers.
    ///
    /// # Errors
    /// What was started until then has ended.
    pub async fn start(self) -> Result<RunningGateway, GatewayError> {
        let Self { signer, subnet, ledger, chain, registry, store, manifests, policy, options, .. } = self;
        let journal = Journal::new(store.clone());
        let channels = ChannelProcessor::start(ledger, chain.clone(), registry.clone(), signer.clone(), store, policy)?;
        let ledger = Arc::new(channels.clone());
        #[cfg(feature = "grpc")]
        let (mut listen, registering) = (self.listen.into_iter(), (registry.clone(), signer.clone()));
        #[cfg(feature = "grpc")]
        let (rates, routes) = (self.rates, self.routes);
        #[cfg(feature = "grpc")]
        if listen.len() > 0 {
            alone(&*registry, signer.address()).await?;
        }
        // Whether it fails, or its caller gives up.
        let unfinished = channels.stop_on_drop();
        let gateway = Gateway::start(GatewayParts { signer, subnet, manifests, registry, ledger, chain, journal, options }).await?;
        unfinished.disarm();
        // From here on, dropping it ends everything.
        #[cfg(not(feature = "grpc"))]
        let running = RunningGateway { gateway, channels };
        #[cfg(feature = "grpc")]
        let mut running = RunningGateway { gateway, channels, server: None };
        #[cfg(feature = "grpc")]
        if let Some(first) = listen.next() {
            let listen = (first, listen.collect());
            running.server = Some(serve(running.gateway.clone(), registering, listen, rates, routes).await?);
        }
        Ok(running)
    }
}

/// Refuses to start beside another gateway of this key: each would refuse what the other has quoted, and know half of what channels owe.
#[cfg(feature = "grpc")]
async fn alone(registry: &dyn Registry, this: Address) -> Result<(), GatewayError> {
    let asking = async {
        let url = registry.node(this).await.ok()?.message.endpoint;
        let stated = GrpcTransport::new(&url).ok()?.network().await.ok()?;
        (stated.gateway == this).then_some(GatewayError::Running { gateway: this, url })
    };
    // What is not known, or does not answer, is not running.
    tokio::time::timeout(OTHER_TIMEOUT, asking).await.ok().flatten().map_or(Ok(()), Err)
}

/// Serves clients and compute nodes, and registers.
#[cfg(feature = "grpc")]
async fn serve(
    gateway: Arc<Gateway>,
    (registry, signer): (Arc<dyn Registry>, DynSigner),
    (first, others): (Listen, Vec<Listen>),
    rates: Option<Rates>,
    routes: Vec<Router>,
) -> Result<(Server, Registration), GatewayError> {
    let (domain, subnet) = (gateway.domain, gateway.subnet_id());
    let services = Services::new().with(client_service(gateway.clone())).with(compute_service(gateway.clone()));
    let services = routes.into_iter().fold(services, Services::and);
    #[cfg(feature = "http")]
    let services = services.and(http_routes(gateway));
    let server = Server::start_at(first, others, services, rates)?;
    let descriptor = NodeDescriptor {
        role: NodeRole::Gateway,
        subnet,
        endpoint: server.url(),
        models: Vec::new(),
        confinement: Confinement::None,
    };
    Ok((server, Registration::start(registry, signer, domain, descriptor).await?))
}

impl RunningGateway {
    /// The gateway itself, without a wire.
    pub const fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Its channels.
    pub const fn channels(&self) -> &ChannelProcessor {
        &self.channels
    }

    /// How it is called, when it listens: at the first of its addresses.
    #[cfg(feature = "grpc")]
    pub fn url(&self) -> Option<String> {
        self.server.as_ref().map(|(server, _)| server.url())
    }

    /// How it is called at its other addresses.
    #[cfg(feature = "grpc")]
    pub fn other_urls(&self) -> Vec<&str> {
        self.server.iter().flat_map(|(server, _)| server.other_urls()).collect()
    }

    /// Takes no more orders, and waits until every request that is paid has its end: for at most so long. Says how many have none; these are taken up
    /// from the store.
    ///
    /// Cancel safe.
    pub async fn drain(&self, within: Duration) -> usize {
        let _ = tokio::time::timeout(within, self.gateway.drain()).await;
        self.gateway.owed()
    }

    /// Takes no more orders, leaves the network and ends. What the store holds can be taken up by another gateway of the same key, as soon as
    /// the last call that uses the store has ended.
    #[cfg_attr(not(feature = "grpc"), expect(clippy::unused_async, reason = "there is nobody to be told"))]
    pub async fn shutdown(self) {
        self.gateway.stop();
        #[cfg(feature = "grpc")]
        {
            let mut stopped = self;
            if let Some((server, registration)) = stopped.server.take() {
                leave(registration).await;
                server.shutdown().await;
            }
        }
    }
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        self.gateway.stop();
        self.channels.stop();
    }
}
