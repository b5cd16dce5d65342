//! What the tests stand on: chains with the contracts on them, and registries with validators whose behavior can be chosen.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, Once},
};

use alloy_primitives::Address;
use alloy_signer_local::PrivateKeySigner;
use async_trait::async_trait;
use ncn_client::evm::{DeployParams, EvmLedger};
use ncn_client::unix_now;
use ncn_core::BatchRequest;
use ncn_core::{
    Amount, Approval, B256, ChainView, CompletionRequest, Confinement, Delivery, Domain, DynSigner, Epoch, FeeSplit, FinishReason,
    InferenceResult, Message as _, NodeRole, PreprocessingRequest, Price, QuorumCertificate, Quote, Registry, RegistryError,
    Settlement, Signed, Subnet, TrustRoot, Units, UnixTime, Usage, Validator, conformance::RegistryFixture,
};
use ncn_devnet::{EmbeddedChain, LocalNetwork, LocalNetworkBuilder};
use ncn_executor::{WorkerProgram, sandbox::HELPER};
use ncn_node::{
    registration::{NodeDescriptor, Registration},
    registry::{RegistryNode, ValidatorNode},
};

use crate::money::Contracts;

pub(crate) fn key() -> DynSigner {
    Arc::new(PrivateKeySigner::random())
}

pub(crate) const fn tokens(count: u64) -> Amount {
    Amount::new(count as u128 * Amount::TOKEN.units())
}

/// The program under test; it is also the worker.
pub(crate) fn ncn() -> PathBuf {
    env!("CARGO_BIN_EXE_ncn").into()
}

/// The program that confines workers by every layer. It is another package's, which these tests would not build otherwise.
pub(crate) fn helper() -> PathBuf {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| build(&["--package", HELPER]));
    ncn().with_file_name(HELPER)
}

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(path)
}

/// The program that tries to escape from sandboxes.
pub(crate) fn escape() -> PathBuf {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| build(&["--package", "ncn-confine", "--example", "escape"]));
    ncn().with_file_name("examples").join("escape")
}

fn build(what: &[&str]) {
    // By the test that has started this one as a user who can build nothing.
    if std::env::var_os("NCN_TESTS_ARE_BUILT").is_some() {
        return;
    }
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let target = ncn().ancestors().nth(2).unwrap().to_path_buf();
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--profile", profile]).args(what).arg("--target-dir").arg(target);
    assert!(command.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success(), "{what:?} does not build");
}

/// A local network whose workers are the program under test.
pub(crate) fn network() -> LocalNetworkBuilder {
    LocalNetwork::builder().worker_program(WorkerProgram::new(ncn()))
}

/// The digit `n`, as someone wrote it.
pub(crate) fn digit(n: u8) -> PathBuf {
    repository(&format!("examples/data/{n}.png"))
}

/// A made-up result of this node for a quote, in one part that took no units.
pub(crate) fn result_of(quote: &Quote, compute: Address) -> InferenceResult {
    InferenceResult { model_digest: quote.model_digest, ..result_for(quote.request_id, compute) }
}

/// The same, for a request of which no more is known.
pub(crate) fn result_for(request_id: B256, compute: Address) -> InferenceResult {
    InferenceResult {
        request_id,
        compute,
        model_digest: B256::ZERO,
        input_hash: B256::ZERO,
        output_hash: B256::ZERO,
        output_bytes: 0,
        parts: 1,
        chain: B256::repeat_byte(1),
        resumed_from: B256::ZERO,
        continuation: None,
        usage: Usage::default(),
        confinement: Confinement::None,
        finish: Some(FinishReason::Stop),
    }
}

/// What a node has given when it has signed this result.
pub(crate) async fn delivered(result: InferenceResult, node: &DynSigner, domain: &Domain) -> Delivery {
    Delivery::whole(Signed::sign(result, domain, &**node).await.unwrap()).unwrap()
}

/// What settles a quote: a made-up result of `worker`, approved by so many of the validators.
pub(crate) async fn settlement(
    quote: &Quote,
    worker: &DynSigner,
    trust: &TrustRoot,
    validators: &[DynSigner],
    approvals: usize,
) -> Settlement {
    let delivery = delivered(result_of(quote, worker.address()), worker, &trust.domain).await;
    let completion = delivery.completion(quote).unwrap();
    let digest = completion.digest(&trust.domain);
    let committee = trust.committee(&quote.salt, &quote.request_id);
    let mut signed = Vec::new();
    for judge in validators.iter().filter(|validator| committee.members.contains(&validator.address())).take(approvals) {
        signed.push(Approval::sign(&digest, &**judge).await.unwrap());
    }
    Settlement { quote: quote.clone(), committee, delivery, completion, certificate: QuorumCertificate::new(signed) }
}

/// A quote at a flat price, of client, gateway and compute node, as the network judges it.
pub(crate) fn flat_quote(epoch: &Epoch, request_id: B256, parties: [Address; 3], total: Amount, expiry: UnixTime) -> Quote {
    let [client, gateway, compute] = parties;
    let salt = B256::repeat_byte(0x5a);
    Quote {
        request_id,
        client,
        gateway,
        compute,
        model_digest: B256::repeat_byte(7),
        price: Price::flat(total),
        max_units: Units::default(),
        total,
        split: FeeSplit::default(),
        expiry,
        trust_root: epoch.trust.hash(),
        epoch: epoch.since,
        salt,
        committee: epoch.trust.committee(&salt, &request_id).struct_hash(),
    }
}

/// How the tests set a network's contracts up: three of five judge.
pub(crate) fn genesis() -> DeployParams {
    DeployParams {
        supply: tokens(1_000_000),
        minimum_stake: tokens(100),
        unstake_delay: 8 * 24 * 3_600,
        threshold: 3,
        committee_size: 5,
        treasury: Address::repeat_byte(0xee),
        subnet_fee: tokens(10),
    }
}

/// A chain with the contracts on it.
#[derive(Clone)]
pub(crate) struct Chain {
    pub(crate) chain: Arc<EmbeddedChain>,
    pub(crate) deployer: EvmLedger,
    pub(crate) validators: Vec<DynSigner>,
}

impl Chain {
    pub(crate) async fn new(validators: usize) -> Self {
        Self::with_quorum(validators, 3, 5).await
    }

    pub(crate) async fn with_quorum(validators: usize, threshold: u16, committee_size: u16) -> Self {
        let chain = Arc::new(EmbeddedChain::new(1_337));
        let genesis = DeployParams { threshold, committee_size, ..genesis() };
        let deployer = genesis.deploy(chain.clone(), &key()).await.unwrap();
        let validators: Vec<_> = (0..validators).map(|_| key()).collect();
        for validator in &validators {
            deployer.transfer(validator.address(), tokens(100)).await.unwrap();
            deployer.with_signer(validator.clone()).stake(tokens(100)).await.unwrap();
        }
        // Validators count from the second after their stake.
        chain.advance(1);
        Self { chain, deployer, validators }
    }

    /// The network as it is.
    pub(crate) async fn epoch(&self) -> Epoch {
        ChainView::trust(&self.deployer, 0).await.unwrap().current().clone()
    }

    /// Creates a subnet for its owner, fee and all.
    pub(crate) async fn create_subnet(&self, owner: &DynSigner, name: &str) {
        self.deployer.transfer(owner.address(), tokens(10)).await.unwrap();
        self.deployer.with_signer(owner.clone()).create_subnet(name, tokens(10)).await.unwrap();
    }

    pub(crate) fn ledger(&self, signer: DynSigner) -> Arc<EvmLedger> {
        Arc::new(self.deployer.with_signer(signer))
    }
}

#[async_trait]
impl Contracts for Chain {
    fn deployer(&self) -> &EvmLedger {
        &self.deployer
    }

    fn validators(&self) -> Vec<DynSigner> {
        self.validators.clone()
    }

    async fn prepare(&self, _: Address) {}

    async fn pass(&self, seconds: u64) {
        self.chain.advance(seconds);
    }
}

/// How a validator behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behavior {
    Honest,
    /// Signs something else than a request's digest.
    Lies,
    /// Passes another validator's approval off as its own.
    Impersonates,
    /// Never answers.
    Sleeps,
    /// Approves every completion, whatever it has approved before.
    Equivocates,
}

struct Behaving {
    honest: ValidatorNode,
    behavior: Behavior,
    key: DynSigner,
    domain: Domain,
}

impl Behaving {
    async fn behave(&self, approval: Result<Approval, RegistryError>) -> Result<Approval, RegistryError> {
        match self.behavior {
            Behavior::Honest | Behavior::Equivocates => approval,
            Behavior::Lies => Ok(Approval::sign(&B256::repeat_byte(0x66), &*self.key).await?),
            Behavior::Impersonates => Ok(Approval { validator: self.address(), ..Approval::sign(&B256::ZERO, &*key()).await? }),
            Behavior::Sleeps => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Validator for Behaving {
    fn address(&self) -> Address {
        self.honest.address()
    }

    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        self.behave(self.honest.preprocessing(request).await).await
    }

    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        if let (Behavior::Equivocates, Ok(completion)) = (self.behavior, request.delivery.completion(&request.quote)) {
            return Ok(Approval::sign(&completion.digest(&self.domain), &*self.key).await?);
        }
        self.behave(self.honest.completion(request).await).await
    }

    async fn settlement(&self, request: &BatchRequest) -> Result<Approval, RegistryError> {
        self.behave(self.honest.settlement(request).await).await
    }

    async fn subnet(&self, subnet: &Signed<Subnet>) -> Result<Approval, RegistryError> {
        // A network without a subnet has no requests to lie about.
        let approval = self.honest.subnet(subnet).await;
        if self.behavior == Behavior::Lies { approval } else { self.behave(approval).await }
    }
}

/// A registry node and its validators in one process, on an embedded chain.
pub(crate) struct InProcess {
    pub(crate) chain: Chain,
    pub(crate) epoch: Epoch,
    pub(crate) trust: TrustRoot,
    pub(crate) node: Arc<RegistryNode>,
    pub(crate) registry: Arc<dyn Registry>,
    _registrations: Vec<Registration>,
}

impl InProcess {
    pub(crate) async fn new(behaviors: &[Behavior]) -> Self {
        let chain = Chain::new(behaviors.len()).await;
        let epoch = chain.epoch().await;
        let trust = epoch.trust.clone();
        let validators: Arc<Mutex<HashMap<Address, Arc<dyn Validator>>>> = Arc::default();
        let known = validators.clone();
        let dial = move |record: &ncn_core::NodeRecord| Ok(known.lock().unwrap()[&record.node].clone());
        let node = Arc::new(RegistryNode::with_dial(chain.ledger(key()), Box::new(dial)).await.unwrap());
        let registry: Arc<dyn Registry> = node.clone();
        let mut registrations = Vec::new();
        for (signer, behavior) in chain.validators.iter().zip(behaviors) {
            let honest = ValidatorNode::new(signer.clone(), registry.clone(), chain.ledger(signer.clone()));
            let validator = Behaving { honest, behavior: *behavior, key: signer.clone(), domain: trust.domain };
            validators.lock().unwrap().insert(signer.address(), Arc::new(validator));
            let descriptor = NodeDescriptor {
                role: NodeRole::Validator,
                subnet: B256::ZERO,
                endpoint: "in-process".into(),
                models: Vec::new(),
                confinement: Confinement::None,
            };
            registrations.push(Registration::start(registry.clone(), signer.clone(), trust.domain, descriptor).await.unwrap());
        }
        Self { chain, epoch, trust, node, registry, _registrations: registrations }
    }
}

#[async_trait]
impl RegistryFixture for InProcess {
    fn registry(&self) -> &dyn Registry {
        &*self.registry
    }

    async fn epoch(&self) -> Epoch {
        self.epoch.clone()
    }

    fn now(&self) -> UnixTime {
        unix_now()
    }

    async fn pay(&self, client: &DynSigner, quote: &Quote) {
        self.chain.account(client.clone(), quote.total).await.escrow(quote).await.unwrap();
    }

    async fn create_subnet(&self, owner: &DynSigner, name: &str) {
        self.chain.create_subnet(owner, name).await;
    }
}
