//! Seeded schedules of registry nodes and validators whose links are slow, lose what is sent and break apart, while a gateway brings two
//! completions of one request: they never have both a certificate, unless by validators that are convicted by it.
//!
//! `NCN_SEED=7 NCN_SCHEDULES=20` plays those of one network again. Time is the schedule's own, so that one takes no longer than its signatures.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures::future::join_all;
use ncn_client::unix_now;
use ncn_core::{
    Address, Amount, Approval, Attestors as _, B256, BatchRequest, Catalog as _, ChainView, CompletionAuthorization,
    CompletionRequest, Confinement, Directory as _, Dispatch, Domain, DynSigner, FeeSplit, Message as _, NodeRecord, NodeRole,
    Payer as _, PreprocessingRequest, Price, QuorumCertificate, RegistryError, Signed, Subnet, SubnetModel, TrustRoot, Validator,
    conformance,
    membership::{News, Source},
    memory::{MemoryChain, MemoryLedger},
};
use ncn_devnet::well_known_key;
use ncn_node::registry::{RegistryNode, ValidatorNode};
use tokio::sync::oneshot;

/// How many schedules one network plays: it takes longer to make than to play one.
const OF_ONE: u64 = 20;
/// How many schedules are played, unless `NCN_SCHEDULES` says it, and from which seed on, unless `NCN_SEED` does.
const SCHEDULES: u64 = 100;
const MODEL: B256 = B256::repeat_byte(0x42);
const PRICE: Amount = Amount::new(1_000);

/// Time that passes as soon as everybody waits for it: what comes first, happens first.
#[derive(Default)]
struct Clock {
    now: Mutex<u64>,
    waiting: Mutex<BTreeMap<(u64, u64), oneshot::Sender<()>>>,
    count: AtomicU64,
}

impl Clock {
    async fn sleep(&self, millis: u64) {
        let (sender, woken) = oneshot::channel();
        let at = *self.now.lock().unwrap() + millis;
        self.waiting.lock().unwrap().insert((at, self.count.fetch_add(1, Ordering::Relaxed)), sender);
        let _ = woken.await;
    }

    /// Lets time pass until this is done.
    async fn pass_until<T>(&self, done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(done);
        loop {
            // Everybody does what there is to do now: nothing here waits for more than a few others.
            for _ in 0..20 {
                tokio::select! {
                    biased;
                    done = &mut done => return done,
                    () = tokio::task::yield_now() => {}
                }
            }
            if let Some(((at, _), sender)) = self.waiting.lock().unwrap().pop_first() {
                *self.now.lock().unwrap() = at;
                let _ = sender.send(());
            }
        }
    }
}

/// The links between registry nodes and validators.
struct Links {
    clock: Clock,
    seed: u64,
    drawn: AtomicU64,
    /// Which of the five are apart from the others.
    apart: Mutex<BTreeSet<usize>>,
    lost: u64,
}

impl Links {
    /// A number below this one, by the seed.
    fn draw(&self, below: u64) -> u64 {
        let next = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.drawn.fetch_add(1, Ordering::Relaxed));
        let hash = ncn_core::keccak256(next.to_be_bytes());
        u64::from_be_bytes(hash[..8].try_into().unwrap()) % below
    }

    /// Takes its time, or fails in the end.
    async fn pass(&self, from: usize, to: usize) -> Result<(), RegistryError> {
        self.clock.sleep(self.draw(200)).await;
        let is_apart = {
            let apart = self.apart.lock().unwrap();
            apart.contains(&from) != apart.contains(&to)
        };
        if is_apart || self.draw(100) < self.lost {
            self.clock.sleep(20_000).await;
            return Err(RegistryError::Unreachable("no answer".into()));
        }
        Ok(())
    }
}

/// A validator at the other end of a link.
struct Linked {
    links: Arc<Links>,
    from: usize,
    to: usize,
    validator: Arc<dyn Validator>,
}

#[async_trait]
impl Validator for Linked {
    fn address(&self) -> Address {
        self.validator.address()
    }

    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        self.validator.preprocessing(request).await
    }

    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        self.links.pass(self.from, self.to).await?;
        let answer = self.validator.completion(request).await;
        self.links.pass(self.to, self.from).await?;
        answer
    }

    async fn settlement(&self, request: &BatchRequest) -> Result<Approval, RegistryError> {
        self.validator.settlement(request).await
    }

    async fn subnet(&self, subnet: &Signed<Subnet>) -> Result<Approval, RegistryError> {
        self.validator.subnet(subnet).await
    }
}

/// A validator that approves whatever it is asked to.
struct Equivocating(DynSigner, Domain);

#[async_trait]
impl Validator for Equivocating {
    fn address(&self) -> Address {
        self.0.address()
    }

    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError> {
        Ok(Approval::sign(&request.quote.digest(&self.1), &*self.0).await?)
    }

    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError> {
        let completion = request.delivery.completion(&request.quote).map_err(RegistryError::Delivery)?;
        Ok(Approval::sign(&completion.digest(&self.1), &*self.0).await?)
    }

    async fn settlement(&self, _: &BatchRequest) -> Result<Approval, RegistryError> {
        Err(RegistryError::Refused("for the test".into()))
    }

    async fn subnet(&self, subnet: &Signed<Subnet>) -> Result<Approval, RegistryError> {
        Ok(Approval::sign(&subnet.message.digest(&self.1), &*self.0).await?)
    }
}

/// The validators, and at which of the five each is.
type Validators = BTreeMap<Address, (usize, Arc<dyn Validator>)>;

/// Five registry nodes, each of them a validator, on a chain in memory.
struct World {
    links: Arc<Links>,
    trust: TrustRoot,
    nodes: Vec<Arc<RegistryNode>>,
    ledger: MemoryLedger,
    chain: Arc<MemoryChain>,
    gateway: DynSigner,
    compute: DynSigner,
    subnet: Subnet,
    liar: Option<Address>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let keys: Vec<DynSigner> = (0..5).map(|number| well_known_key("validator", number)).collect();
        let mut validators: Vec<Address> = keys.iter().map(|key| key.address()).collect();
        validators.sort_unstable();
        let trust = TrustRoot {
            domain: Domain { chain_id: 31_337, contract: Address::repeat_byte(0xcc) },
            token: Address::repeat_byte(0xa1),
            channels: Address::repeat_byte(0xa2),
            validators,
            threshold: 3,
            committee_size: 5,
            treasury: Address::repeat_byte(0xdd),
        };
        let chain = MemoryChain::new(trust.clone(), unix_now());
        let (gateway, compute) = (well_known_key("gateway", 0), well_known_key("compute", 0));
        let owner = chain.ledger(gateway.clone());
        owner.create_subnet("one");
        let model = SubnetModel { name: "model".into(), digest: MODEL, price: Price::flat(PRICE) };
        let subnet = Subnet {
            owner: gateway.address(),
            name: "one".into(),
            gateways: Vec::new(),
            models: vec![model],
            split: FeeSplit::default(),
            version: 1,
        };
        let links = Links { clock: Clock::default(), seed, drawn: AtomicU64::new(0), apart: Mutex::default(), lost: 0 };
        let links = Arc::new(Links { lost: links.draw(20), ..links });
        // Every other schedule has a validator that approves everything.
        let liar = (links.draw(2) == 0).then(|| keys[usize::try_from(links.draw(5)).unwrap()].address());
        let known: Arc<Mutex<Validators>> = Arc::default();
        let mut nodes = Vec::new();
        for (from, key) in keys.iter().enumerate() {
            let (links, known, ledger) = (links.clone(), known.clone(), Arc::new(chain.ledger(key.clone())));
            let dial = move |record: &NodeRecord| -> Result<Arc<dyn Validator>, RegistryError> {
                let (to, validator) = known.lock().unwrap()[&record.node].clone();
                Ok(Arc::new(Linked { links: links.clone(), from, to, validator }))
            };
            nodes.push(Arc::new(RegistryNode::with_dial(ledger, Box::new(dial)).await.unwrap()));
        }
        for (number, key) in keys.iter().enumerate() {
            let honest = ValidatorNode::new(key.clone(), nodes[number].clone(), Arc::new(chain.ledger(key.clone())));
            let validator: Arc<dyn Validator> =
                if liar == Some(key.address()) { Arc::new(Equivocating(key.clone(), trust.domain)) } else { Arc::new(honest) };
            known.lock().unwrap().insert(key.address(), (number, validator));
        }
        let ledger = chain.ledger(gateway.clone());
        let world = Self { links, trust, nodes, ledger, chain, gateway, compute, subnet, liar };
        for node in &world.nodes {
            for key in keys.iter().chain([&world.compute]) {
                let is_compute = key.address() == world.compute.address();
                let record = NodeRecord {
                    node: key.address(),
                    role: if is_compute { NodeRole::Compute } else { NodeRole::Validator },
                    subnet: if is_compute { world.subnet.id() } else { B256::ZERO },
                    endpoint: "here".into(),
                    models: vec![MODEL],
                    confinement: Confinement::None,
                    sequence: unix_now() * 1_000,
                    expires_at: unix_now() + 600,
                };
                node.register(world.sign(record, key).await).await.unwrap();
            }
        }
        let (first, others) = world.nodes.split_first().unwrap();
        first.register_subnet(world.sign(world.subnet.clone(), &world.gateway).await).await.unwrap();
        let approved = first.subnet(world.subnet.id()).await.unwrap();
        for node in others {
            node.hear(News::Subnet(approved.clone()), Source::default()).await.unwrap();
        }
        world
    }

    async fn sign<T: ncn_core::crypto::Authored>(&self, message: T, key: &DynSigner) -> Signed<T> {
        Signed::sign(message, &self.trust.domain, &**key).await.unwrap()
    }

    /// Two completions of one request that was paid: its node has signed two outputs, and its gateway brings both.
    async fn two(&self) -> [CompletionRequest; 2] {
        let client = well_known_key("client", 0);
        let order = conformance::order(client.address(), self.subnet.id(), MODEL, PRICE, unix_now() + 600);
        let epoch = ChainView::trust(&self.ledger, 0).await.unwrap().current().clone();
        let quote = conformance::quote(&order, &epoch, self.gateway.address(), self.compute.address(), PRICE);
        self.chain.mint(client.address(), PRICE);
        self.chain.ledger(client.clone()).pay(&quote).await.unwrap();
        let request = self.sign(order, &client).await;
        let dispatch = Dispatch {
            gateway: quote.gateway,
            compute: quote.compute,
            quote: quote.struct_hash(),
            attempt: 0,
            resumed_from: B256::ZERO,
        };
        let dispatches = vec![self.sign(dispatch, &self.gateway).await];
        let mut both = Vec::new();
        for output in [1, 2] {
            let mut delivery = conformance::delivery(&request.message, &quote, &self.trust, &self.compute).await;
            for result in &mut delivery.results {
                result.message.output_hash = B256::repeat_byte(output);
                *result = self.sign(result.message.clone(), &self.compute).await;
            }
            let completion = delivery.completion(&quote).unwrap().struct_hash();
            let authorization = CompletionAuthorization { author: quote.gateway, completion };
            both.push(CompletionRequest {
                request: request.clone(),
                quote: quote.clone(),
                delivery,
                preprocessing: None,
                voucher: None,
                dispatches: dispatches.clone(),
                acknowledgement: None,
                authorization: self.sign(authorization, &self.gateway).await,
            });
        }
        both.try_into().unwrap()
    }

    /// Asks for one of them or the other at several nodes and times, while the network falls apart and comes together.
    async fn play(&self) -> [Vec<QuorumCertificate>; 2] {
        let both = self.two().await;
        let parting = async {
            for _ in 0..self.links.draw(4) {
                self.links.clock.sleep(self.links.draw(400)).await;
                let apart = (0..5).filter(|_| self.links.draw(3) == 0).collect();
                *self.links.apart.lock().unwrap() = apart;
            }
            self.links.clock.sleep(500).await;
            self.links.apart.lock().unwrap().clear();
        };
        let asking = (0..2 + self.links.draw(5)).map(|_| {
            let which = usize::try_from(self.links.draw(2)).unwrap();
            let (node, at) = (&self.nodes[usize::try_from(self.links.draw(5)).unwrap()], self.links.draw(800));
            let request = both[which].clone();
            async move {
                self.links.clock.sleep(at).await;
                (which, node.completion(request).await)
            }
        });
        let (asked, ()) = tokio::join!(join_all(asking), parting);
        let mut certificates = [Vec::new(), Vec::new()];
        for (which, answer) in asked {
            match answer {
                Ok(certificate) => certificates[which].push(certificate),
                Err(RegistryError::TooFewApprovals { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        // What it was refused for by a lost message, an honest gateway asks for again.
        for (which, request) in both.into_iter().enumerate() {
            certificates[which].extend(self.nodes[0].completion(request).await.ok());
        }
        certificates
    }
}

#[test]
fn no_request_has_two_certificates() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (first, count) = (number("NCN_SEED", 0), number("NCN_SCHEDULES", SCHEDULES));
    let (mut certified, mut convicted) = (0, 0);
    for seed in first..first + count.div_ceil(OF_ONE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new(seed).await;
            for _ in 0..OF_ONE.min(count) {
                let [one, other] = world.links.clock.pass_until(world.play()).await;
                certified += usize::from(!one.is_empty() || !other.is_empty());
                let signers = |certificates: &[QuorumCertificate]| -> BTreeSet<Address> {
                    certificates.iter().flat_map(QuorumCertificate::validators).collect()
                };
                let both: Vec<_> = signers(&one).intersection(&signers(&other)).copied().collect();
                // Two majorities have a member in common: without a liar there is none of the other completion.
                assert!(both.iter().all(|validator| Some(*validator) == world.liar), "NCN_SEED={seed}: {both:?}");
                let is_one = world.liar.is_some() || one.is_empty() || other.is_empty();
                assert!(is_one, "NCN_SEED={seed}: both completions have a certificate");
            }
            for node in &world.nodes {
                for found in node.evidence() {
                    assert_eq!(found.verify(&world.trust.domain).ok(), world.liar, "NCN_SEED={seed}: an honest one is convicted");
                    convicted += 1;
                }
            }
        });
    }
    println!("{count} schedules: {certified} ended with a certificate, {convicted} times a liar was convicted");
    // How many end in time, the machine decides.
    assert!(count < 100 || (certified > usize::try_from(count).unwrap() / 10 && convicted > 0));
}
