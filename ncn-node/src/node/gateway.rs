use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use ncn_core::{BatchSettler, Confinement, DynSigner, NodeRole, PaymentLedger, Registry, Subnet};

use super::leave;
use crate::{
    channel::{BatchPolicy, ChannelProcessor},
    gateway::{Gateway, GatewayError, GatewayOptions, GatewayParts, Journal, client_service, compute_service},
    presence::{NodeDescriptor, Registration},
    server::GrpcServer,
    store::SharedStore,
};

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
    listen: Option<SocketAddr>,
}

/// A gateway that runs: the role, its channels, its server, its registration.
pub struct RunningGateway {
    gateway: Arc<Gateway>,
    channels: ChannelProcessor,
    server: Option<(GrpcServer, Registration)>,
}

impl Gateway {
    /// Starts to make up a gateway: its key, what it offers, its account on the chain, the registry, and the store for its journal and its
    /// channels.
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
            listen: None,
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

    /// Where it serves clients and compute nodes over gRPC; port 0 takes a free one. Without it, it serves its own process only and does not
    /// register.
    #[must_use]
    pub const fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Starts it: takes up what the store holds, listens, and registers.
    ///
    /// # Errors
    /// What was started until then has ended.
    pub async fn start(self) -> Result<RunningGateway, GatewayError> {
        let Self { signer, subnet, ledger, chain, registry, store, manifests, policy, options, listen } = self;
        let domain = ledger.trust_root().await?.domain;
        let journal = Journal::new(store.clone());
        let channels = ChannelProcessor::start(ledger, chain, registry.clone(), signer.clone(), store, policy)?;
        let parts = GatewayParts {
            signer: signer.clone(),
            subnet,
            manifests,
            registry: registry.clone(),
            ledger: Arc::new(channels.clone()),
            journal,
            options,
        };
        // Whether it fails, or its caller gives up.
        let unfinished = channels.stop_on_drop();
        let gateway = Gateway::start(parts).await?;
        unfinished.disarm();
        // From here on, dropping it ends everything.
        let mut running = RunningGateway { gateway: gateway.clone(), channels, server: None };
        if let Some(address) = listen {
            let server = GrpcServer::start(address, |routes| {
                routes.add_service(client_service(gateway.clone())).add_service(compute_service(gateway.clone()));
            })
            .await?;
            let descriptor = NodeDescriptor {
                role: NodeRole::Gateway,
                subnet: gateway.subnet_id(),
                endpoint: server.url(),
                models: Vec::new(),
                confinement: Confinement::None,
            };
            let registration = Registration::start(registry, signer, domain, descriptor).await?;
            running.server = Some((server, registration));
        }
        Ok(running)
    }
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

    /// How it is called, when it listens.
    pub fn url(&self) -> Option<String> {
        self.server.as_ref().map(|(server, _)| server.url())
    }

    /// Takes no more orders, leaves the network and ends. What the store holds can be taken up by another gateway of the same key, as soon as
    /// the last call that uses the store has ended.
    pub async fn shutdown(mut self) {
        self.gateway.stop();
        if let Some((server, registration)) = self.server.take() {
            leave(registration).await;
            drop(server);
        }
    }
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        self.gateway.stop();
        self.channels.stop();
    }
}
