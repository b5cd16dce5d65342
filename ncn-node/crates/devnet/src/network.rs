use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use futures::future::{join_all, try_join_all};
use ncn_client::{
    Client, ClientBuilder, Payment, Registries,
    evm::{DeployParams, EvmLedger},
    grpc::{EndpointError, GrpcRegistry},
};
use ncn_core::{
    Amount, Compute as _, Confinement, DynSigner, Executor, ExecutorError, FeeSplit, LedgerError, Registry, SandboxError, Subnet,
    SubnetModel, Transport, TrustRoot, executor::ModelPackage,
};

use super::{CHAIN_ID, EmbeddedChain, quickstart};
use ncn_executor::{
    WorkerExecutor, WorkerOptions, WorkerProgram,
    sandbox::{self, SandboxMode},
};
use ncn_node::{
    channel::ChannelProcessor,
    compute::ComputeNode,
    gateway::{Gateway, GatewayError},
    node::{ComputeNodeError, GatewayBuilder, NodeError, RunningComputeNode, RunningGateway, RunningValidator},
    registry::ValidatorNode,
    server::LOOPBACK,
    store::{MemoryStore, SharedStore, StoreError},
};
use ncn_p2p::{Keypair, Multiaddr, PeerError, PeerOptions, PeerRegistry, Protocol, RunningPeerRegistry};

/// How many registry nodes there are.
const REGISTRY_NODES: usize = 3;
/// How many requests a compute node runs or reserves capacity for at once.
const CAPACITY: usize = 256;
/// What a new client gets.
const POCKET_MONEY: Amount = Amount::new(10 * Amount::TOKEN.units());
/// What registering a subnet costs.
const SUBNET_FEE: Amount = Amount::new(10 * Amount::TOKEN.units());
/// How long the network may take until everyone has found everyone.
const START_TIMEOUT: Duration = Duration::from_mins(2);

/// Why a local network does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevnetError {
    /// The chain.
    #[error("chain: {0}")]
    Ledger(#[from] LedgerError),
    /// A registry node.
    #[error("registry: {0}")]
    Peer(#[from] PeerError),
    /// A validator.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The gateway.
    #[error("gateway: {0}")]
    Gateway(#[from] GatewayError),
    /// A compute node's workers.
    #[error("compute node: {0}")]
    Executor(#[from] ExecutorError),
    /// A compute node.
    #[error(transparent)]
    Compute(#[from] ComputeNodeError),
    /// The sandbox of the workers.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The gateway's store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port or a file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An address.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Not everyone found everyone in time.
    #[error("the network was not complete within {START_TIMEOUT:?}")]
    Timeout,
}

/// How a local network is made up.
pub struct LocalNetworkBuilder {
    validators: usize,
    compute_nodes: usize,
    program: Option<WorkerProgram>,
    sandbox: SandboxMode,
    executor: Option<Arc<dyn Executor>>,
    models: Vec<ModelPackage>,
    setup: Option<Box<dyn FnOnce(GatewayBuilder) -> GatewayBuilder + Send>>,
    state: Option<PathBuf>,
    chain: Option<Arc<EmbeddedChain>>,
    well_known: bool,
    gateway: SocketAddr,
    registry: SocketAddr,
}

/// A running network; everything ends when it is dropped.
///
/// Programs that start one call [`ncn_executor::worker::init`] first thing in `main`: models run in worker processes of the same program.
pub struct LocalNetwork {
    chain: Arc<EmbeddedChain>,
    deployer: EvmLedger,
    treasury: Address,
    registries: Vec<RunningPeerRegistry>,
    validators: Vec<RunningValidator>,
    gateway: RunningGateway,
    compute_nodes: Vec<RunningComputeNode>,
    _files: tempfile::TempDir,
}

impl Default for LocalNetworkBuilder {
    fn default() -> Self {
        Self {
            validators: 5,
            compute_nodes: 2,
            program: None,
            sandbox: SandboxMode::default(),
            executor: None,
            models: Vec::new(),
            setup: None,
            state: None,
            chain: None,
            well_known: false,
            gateway: LOOPBACK,
            registry: LOOPBACK,
        }
    }
}

impl LocalNetworkBuilder {
    /// How many validators, 3 to 256; five by default. Three of five judge a request.
    #[must_use]
    pub const fn validators(mut self, count: usize) -> Self {
        self.validators = count;
        self
    }

    /// How many compute nodes; two by default.
    #[must_use]
    pub const fn compute_nodes(mut self, count: usize) -> Self {
        self.compute_nodes = count;
        self
    }

    /// The program that is started as a worker; this one by default.
    #[must_use]
    pub fn worker_program(mut self, program: WorkerProgram) -> Self {
        self.program = Some(program);
        self
    }

    /// How much confinement of the workers is insisted on; permissive by default.
    #[must_use]
    pub fn sandbox(mut self, mode: SandboxMode) -> Self {
        self.sandbox = mode;
        self
    }

    /// One executor for all compute nodes, instead of workers.
    #[must_use]
    pub fn executor(mut self, executor: Arc<dyn Executor>) -> Self {
        self.executor = Some(executor);
        self
    }

    /// The models that the gateway offers and every compute node runs; the quickstart model by default.
    #[must_use]
    pub fn models(mut self, packages: Vec<ModelPackage>) -> Self {
        self.models = packages;
        self
    }

    /// Sets up the gateway before it starts: its options, its batch policy.
    #[must_use]
    pub fn gateway(mut self, setup: impl FnOnce(GatewayBuilder) -> GatewayBuilder + Send + 'static) -> Self {
        self.setup = Some(Box::new(setup));
        self
    }

    /// The directory in which the gateway keeps its store, instead of one that goes with the network.
    #[must_use]
    pub fn state_directory(mut self, directory: PathBuf) -> Self {
        self.state = Some(directory);
        self
    }

    /// A chain that is there already, and empty.
    #[must_use]
    pub fn chain(mut self, chain: Arc<EmbeddedChain>) -> Self {
        self.chain = Some(chain);
        self
    }

    /// Keys that everybody knows ([`super::well_known_key`]), so that every such network has the same addresses: for development.
    #[must_use]
    pub const fn well_known_keys(mut self) -> Self {
        self.well_known = true;
        self
    }

    /// Where gateway and registry node listen; any free port of this machine by default.
    #[must_use]
    pub const fn listen(mut self, gateway: SocketAddr, registry: SocketAddr) -> Self {
        (self.gateway, self.registry) = (gateway, registry);
        self
    }

    fn key(&self, role: &str, number: usize) -> DynSigner {
        if self.well_known { super::well_known_key(role, number) } else { new_key() }
    }

    /// Starts the network and waits until everyone has found everyone.
    pub async fn start(mut self) -> Result<LocalNetwork, DevnetError> {
        let chain = self.chain.clone().unwrap_or_else(|| Arc::new(EmbeddedChain::new(CHAIN_ID)));
        let treasury = self.key("treasury", 0).address();
        let genesis = DeployParams {
            supply: Amount::new(1_000_000_000 * Amount::TOKEN.units()),
            minimum_stake: Amount::new(1_000 * Amount::TOKEN.units()),
            unstake_delay: 8 * 24 * 60 * 60,
            threshold: 3,
            committee_size: 5,
            treasury,
            subnet_fee: SUBNET_FEE,
        };
        let deployer = genesis.deploy(chain.clone(), &self.key("deployer", 0)).await?;
        let keys: Vec<DynSigner> = (0..self.validators).map(|number| self.key("validator", number)).collect();
        for key in &keys {
            deployer.transfer(key.address(), genesis.minimum_stake).await?;
            deployer.with_signer(key.clone()).stake(genesis.minimum_stake).await?;
        }
        // Validators count from the second after their stake.
        chain.advance(1);

        let mut registries = Vec::with_capacity(REGISTRY_NODES);
        for number in 0..REGISTRY_NODES {
            let listen = if number == 0 { self.registry } else { LOOPBACK };
            registries.push(start_registry(&deployer, listen, registries.first()).await?);
        }
        let urls: Vec<_> = registries.iter().filter_map(RunningPeerRegistry::url).collect();
        // Not everyone prefers the same one.
        let mut turn = 0..;
        let mut connect = || {
            let open = |url: &String| Ok::<_, DevnetError>(Arc::new(GrpcRegistry::new(url)?) as Arc<dyn Registry>);
            let mut all = urls.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            all.rotate_left(turn.next().unwrap_or_default() % REGISTRY_NODES);
            Ok::<Arc<dyn Registry>, DevnetError>(Arc::new(Registries::new(all)))
        };
        let mut starting = Vec::new();
        for key in keys {
            let ledger = Arc::new(deployer.with_signer(key.clone()));
            starting.push(ValidatorNode::builder(key, connect()?, ledger).start());
        }
        let validators = try_join_all(starting).await?;

        let files = tempfile::tempdir()?;
        let packages = if self.models.is_empty() { vec![quickstart::unpack(files.path())?] } else { self.models.clone() };
        let store = SharedStore::open(&self.state.as_deref().unwrap_or(files.path()).join("gateway.redb"))?;
        let gateway = self.start_gateway(&deployer, connect()?, &packages, store).await?;
        let mut starting = Vec::new();
        for number in 0..self.compute_nodes {
            let (executor, signer) = (self.compute_executor()?, self.key("compute", number));
            let (subnet, ledger) = (gateway.gateway().subnet_id(), Arc::new(deployer.with_signer(signer.clone())));
            let store = SharedStore::new(MemoryStore::default())?;
            let node = ComputeNode::builder(signer, subnet, executor, ledger.clone(), connect()?).models(packages.clone());
            let node = node.capacity(CAPACITY).claims(ledger, connect()?, store);
            starting.push(node.gateway(gateway.gateway().address(), gateway.url().unwrap_or_default()).start());
        }
        let compute_nodes = try_join_all(starting).await?;
        let network = LocalNetwork { chain, deployer, treasury, registries, validators, gateway, compute_nodes, _files: files };
        tokio::time::timeout(START_TIMEOUT, network.complete()).await.map_err(|_| DevnetError::Timeout)??;
        Ok(network)
    }

    async fn start_gateway(
        &mut self,
        deployer: &EvmLedger,
        registry: Arc<dyn Registry>,
        packages: &[ModelPackage],
        store: SharedStore,
    ) -> Result<RunningGateway, DevnetError> {
        let signer = self.key("gateway", 0);
        let models = packages.iter().map(|package| SubnetModel::of(&package.model));
        let subnet = Subnet {
            owner: signer.address(),
            name: "quickstart".into(),
            gateways: Vec::new(),
            models: models.collect(),
            split: FeeSplit::default(),
            version: 1,
        };
        let account = deployer.with_signer(signer.clone());
        deployer.transfer(signer.address(), SUBNET_FEE).await?;
        account.create_subnet(&subnet.name, SUBNET_FEE).await?;
        let mut gateway = Gateway::builder(signer, subnet, Arc::new(account), registry, store)
            .manifests(packages.iter().map(|package| package.model.bytes().clone()).collect())
            // All of a network's clients are on this machine.
            .rates(None)
            .listen(self.gateway);
        if let Some(setup) = self.setup.take() {
            gateway = setup(gateway);
        }
        Ok(gateway.start().await?)
    }

    fn compute_executor(&self) -> Result<Arc<dyn Executor>, DevnetError> {
        if let Some(executor) = &self.executor {
            return Ok(executor.clone());
        }
        let program = self.program.clone().map_or_else(WorkerProgram::current, Ok)?;
        let sandbox = sandbox::open(self.sandbox, &program.path)?;
        Ok(Arc::new(WorkerExecutor::new(vec![program], sandbox, WorkerOptions::default())))
    }
}

/// A registry node, which begins with this one.
async fn start_registry(
    deployer: &EvmLedger,
    listen: SocketAddr,
    first: Option<&RunningPeerRegistry>,
) -> Result<RunningPeerRegistry, DevnetError> {
    let bootstrap = match first {
        Some(first) => first.registry().peer().listens().await,
        None => Vec::new(),
    };
    let at = Multiaddr::from(LOOPBACK.ip()).with(Protocol::Tcp(0));
    let options = PeerOptions { key: Keypair::generate_ed25519(), listen: vec![at], announce: None, bootstrap, serves: true };
    Ok(PeerRegistry::builder(Arc::new(deployer.with_signer(new_key())), options).listen(listen).start().await?)
}

fn new_key() -> DynSigner {
    Arc::new(PrivateKeySigner::random())
}

impl LocalNetwork {
    /// Starts a network of five validators, three registry nodes, a gateway and two compute nodes that run the quickstart model.
    pub async fn start() -> Result<Self, DevnetError> {
        Self::builder().start().await
    }

    /// Starts to make a network up.
    pub fn builder() -> LocalNetworkBuilder {
        LocalNetworkBuilder::default()
    }

    /// A client of the gateway with a key of its own and ten tokens, all of which a request may cost; ready to be built.
    pub async fn client(&self) -> Result<ClientBuilder, DevnetError> {
        let signer = new_key();
        self.deployer.transfer(signer.address(), POCKET_MONEY).await?;
        Ok(Client::builder().gateway(self.gateway_url()).payment(Payment::OnChain(self.ledger(signer))).max_price(POCKET_MONEY))
    }

    /// The network's contracts, as an account sees them.
    pub fn ledger(&self, signer: DynSigner) -> EvmLedger {
        self.deployer.with_signer(signer)
    }

    /// The ledger of the account that was given all tokens.
    pub const fn funder(&self) -> &EvmLedger {
        &self.deployer
    }

    /// What receipts of this network are checked against.
    pub async fn trust_root(&self) -> Result<TrustRoot, DevnetError> {
        Ok(self.deployer.trust_root().await?)
    }

    /// The chain, for letting time pass.
    pub const fn chain(&self) -> &Arc<EmbeddedChain> {
        &self.chain
    }

    /// How the gateway is called.
    pub fn gateway_url(&self) -> String {
        self.gateway.url().unwrap_or_default()
    }

    /// How the registry nodes are called, the first one first.
    pub fn registry_urls(&self) -> Vec<String> {
        self.registries.iter().filter_map(RunningPeerRegistry::url).collect()
    }

    /// The gateway's channels.
    pub const fn channels(&self) -> &ChannelProcessor {
        self.gateway.channels()
    }

    /// The gateway itself, without a wire.
    pub fn gateway(&self) -> Arc<dyn Transport> {
        self.gateway.gateway().clone()
    }

    /// The gateway itself, as what it is.
    pub const fn gateway_node(&self) -> &Arc<Gateway> {
        self.gateway.gateway()
    }

    /// The gateway's address.
    pub fn gateway_address(&self) -> Address {
        self.gateway.gateway().address()
    }

    /// The compute nodes' addresses.
    pub fn compute_addresses(&self) -> Vec<Address> {
        self.compute_nodes.iter().map(|node| node.node().address()).collect()
    }

    /// The validators' addresses.
    pub fn validator_addresses(&self) -> Vec<Address> {
        self.validators.iter().map(RunningValidator::address).collect()
    }

    /// How strongly models are confined.
    pub fn confinement(&self) -> Confinement {
        self.compute_nodes.iter().map(RunningComputeNode::confinement).min().unwrap_or_default()
    }

    /// The treasury's address.
    pub const fn treasury(&self) -> Address {
        self.treasury
    }

    /// Takes a validator off the network without a word, as a crash would.
    pub fn crash_validator(&mut self, address: Address) {
        self.validators.retain(|validator| validator.address() != address);
    }

    /// Takes a compute node off the network without a word, as a crash would.
    pub fn crash_compute(&mut self, address: Address) {
        self.compute_nodes.retain(|node| node.node().address() != address);
    }

    /// Takes the first registry node off the network without a word, and starts another one in its place: one that knows nobody.
    pub async fn restart_registry(&mut self) -> Result<(), DevnetError> {
        let crashed = self.registries.remove(0);
        let address = crashed.address().unwrap_or(LOOPBACK);
        crashed.shutdown().await;
        let restarted = start_registry(&self.deployer, address, self.registries.first()).await?;
        self.registries.insert(0, restarted);
        Ok(())
    }

    /// Ends the network in order: compute nodes, the gateway, validators, the registry nodes.
    pub async fn shutdown(self) {
        join_all(self.compute_nodes.into_iter().map(RunningComputeNode::shutdown)).await;
        self.gateway.shutdown().await;
        join_all(self.validators.into_iter().map(RunningValidator::shutdown)).await;
        join_all(self.registries.into_iter().map(RunningPeerRegistry::shutdown)).await;
    }

    /// Returns once every node is registered and every compute node attached.
    async fn complete(&self) -> Result<(), DevnetError> {
        let nodes = self.validators.len() + self.compute_nodes.len() + 1;
        loop {
            let known = self.registries.iter().all(|registry| registry.status().nodes == nodes as u64);
            if known && self.gateway.gateway().attached().len() == self.compute_nodes.len() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
