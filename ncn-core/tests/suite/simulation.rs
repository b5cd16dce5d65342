//! Random schedules of requests, with cancellations, deaths, deadlines, changes of the validators, and lies by any one party. The roles here
//! are small; the messages, the checks, the state machine and the ledger's rules are the real ones. Whatever happens,
//! - no token comes out of nothing or is lost,
//! - an honest client pays for nothing that it did not get, and where one party lies or dies, for no more than one part of it,
//! - an honest node is paid for each part that its client has verified.

use std::{env, sync::Arc, sync::OnceLock};

use alloy_signer_local::PrivateKeySigner;
use futures::FutureExt as _;
use ncn_core::{
    Address, Amount, Approval, B256, Completion, CompletionAuthorization, CompletionRequest, Confinement, Delivery, Dispatch,
    Domain, DynSigner, Event, FeeSplit, FinishReason, InferenceRequest, InferenceResult, Lifecycle, Message as _, NodeRecord,
    NodeRole, Outcome, Payer as _, PaymentLedger as _, PaymentStatus, PreprocessingRequest, Price, QuorumCertificate, Quote,
    RegistryError, Settlement, Signature, Signed, State, StreamChain, Subnet, SubnetModel, TaskCapability, TrustHistory, TrustRoot,
    Unit, UnitPrice, Units, Usage, Values,
    crypto::Authored,
    dispatch,
    lifecycle::MAX_ATTEMPTS,
    memory::{MemoryChain, MemoryLedger},
    trust::draw_of,
    validation::{self, CLAIM_SECONDS, ValidationContext},
};
use proptest::{
    prelude::Rng as _,
    test_runner::{RngAlgorithm, TestRng},
};

/// How many schedules are played, unless `NCN_SCHEDULES` says it, and from which seed on, unless `NCN_SEED` does.
const SCHEDULES: u64 = 2_000;
const MODEL: B256 = B256::repeat_byte(0x42);
const NOW: u64 = 1_800_000_000;
const LIFETIME: u64 = 600;
/// How often a node looks at what it is owed.
const POLL: u64 = 30;
/// Which node it is that lies.
const LIAR: usize = 0;
const MONEY: u128 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Liar {
    Nobody,
    Client,
    Gateway,
    /// The first one.
    Node,
    /// Two of five.
    Validators,
    Bystander,
    /// A JSON-RPC endpoint that is behind, or loses answers.
    Endpoint,
}

struct Keys {
    client: DynSigner,
    gateway: DynSigner,
    bystander: DynSigner,
    nodes: Vec<DynSigner>,
    validators: Vec<DynSigner>,
}

/// They are the same in every schedule: making them is not what is looked at.
fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    let key = |number: u8| -> DynSigner { Arc::new(PrivateKeySigner::from_bytes(&B256::repeat_byte(number)).unwrap()) };
    KEYS.get_or_init(|| {
        let mut validators: Vec<_> = (21..28).map(key).collect();
        validators.sort_unstable_by_key(|key| key.address());
        Keys { client: key(1), gateway: key(2), bystander: key(3), nodes: (11..14).map(key).collect(), validators }
    })
}

/// Nothing here waits for anything.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("it is there at once")
}

struct Luck(TestRng);

impl Luck {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    /// A number below this one.
    fn below(&mut self, most: u64) -> u64 {
        self.0.next_u64() % most
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn hash(&mut self) -> B256 {
        let mut bytes = [0; 32];
        self.0.fill_bytes(&mut bytes);
        bytes.into()
    }
}

fn sign<T: Authored>(message: T, domain: &Domain, key: &DynSigner) -> Signed<T> {
    block_on(Signed::sign(message, domain, &**key)).unwrap()
}

/// What one node has given of a request, and can prove.
#[derive(Clone)]
struct Given {
    node: usize,
    /// What it went on from, and by which words.
    before: Vec<Signed<InferenceResult>>,
    dispatches: Vec<Signed<Dispatch>>,
    /// Its newest word on what it has handed over, and the whole of which the last part is still with it.
    given: Option<Signed<InferenceResult>>,
    whole: Option<Signed<InferenceResult>>,
    certificate: Option<QuorumCertificate>,
}

impl Given {
    fn delivery(&self) -> Option<Delivery> {
        let result = if self.certificate.is_some() { &self.whole } else { &self.given }.clone()?;
        let finish = result.message.finish.unwrap_or(FinishReason::NodeLost);
        Some(Delivery { results: self.before.iter().cloned().chain([result]).collect(), finish })
    }
}

/// What the client knows of its output: parts come unsigned, and count once a word on them has come.
#[derive(Clone, Copy)]
struct Heard {
    chain: StreamChain,
    verified: u64,
}

struct World {
    luck: Luck,
    liar: Liar,
    chain: Arc<MemoryChain>,
    domain: Domain,
    price: Price,
    subnet: Subnet,
    /// How often each thing was seen, so that a simulation of nothing is noticed.
    seen: Seen,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    completed: u64,
    partial: u64,
    refunded: u64,
    claimed: u64,
    taken_over: u64,
    unpaid: u64,
    epochs: u64,
}

fn values(number: u64) -> Values {
    Values::from([("text", format!("part {number} ").as_str())])
}

impl World {
    fn new(seed: u64) -> Self {
        let mut luck = Luck::new(seed);
        let liars = [Liar::Nobody, Liar::Client, Liar::Gateway, Liar::Node, Liar::Validators, Liar::Bystander, Liar::Endpoint];
        let liar = liars[usize::try_from(luck.below(7)).unwrap()];
        let domain = Domain { chain_id: 1, contract: Address::repeat_byte(0xc0) };
        let trust = TrustRoot {
            domain,
            token: Address::repeat_byte(0xc1),
            channels: Address::repeat_byte(0xc2),
            validators: keys().validators[..5].iter().map(|key| key.address()).collect(),
            threshold: 3,
            committee_size: 5,
            treasury: Address::repeat_byte(0xee),
        };
        let mut unit = |most| Amount::new(luck.below(most).into());
        let (base, input, output) = (unit(10_000), unit(1_000), unit(1_000));
        let price = Price {
            base: base.checked_add(Amount::new(1)).unwrap(),
            input: UnitPrice { unit: Unit::Token, price: input },
            output: UnitPrice { unit: Unit::Token, price: output },
        };
        let model = SubnetModel { name: "m".into(), digest: MODEL, price };
        let (owner, split) = (keys().gateway.address(), FeeSplit::default());
        let subnet = Subnet { owner, name: "simulated".into(), models: vec![model], split, version: 1 };
        let chain = MemoryChain::new(trust, NOW);
        chain.mint(keys().client.address(), Amount::new(MONEY));
        Self { luck, liar, chain, domain, price, subnet, seen: Seen::default() }
    }

    fn ledger(&self, key: &DynSigner) -> MemoryLedger {
        self.chain.ledger(key.clone())
    }

    fn balance(&self, account: Address) -> u128 {
        block_on(self.ledger(&keys().client).balance(account)).unwrap().units()
    }

    fn now(&self) -> u64 {
        self.ledger(&keys().client).now()
    }

    fn history(&self) -> Arc<TrustHistory> {
        block_on(ncn_core::ChainView::trust(&self.ledger(&keys().client), 0)).unwrap()
    }

    fn status(&self, quote: &Quote) -> PaymentStatus {
        self.ledger(&keys().client).payment(quote.client, quote.request_id)
    }

    /// Everyone's tokens; those in escrow are the schedule's to have ended.
    fn total(&self) -> u128 {
        let Keys { client, gateway, bystander, nodes, validators } = keys();
        let people = [client, gateway, bystander].into_iter().chain(nodes).chain(validators).map(|key| key.address());
        people.chain([Address::repeat_byte(0xee)]).map(|account| self.balance(account)).sum()
    }

    /// Time passes, and validators join and leave.
    fn pass(&mut self) {
        let seconds = self.luck.below(3);
        self.chain.advance(seconds);
        if self.luck.one_in(4) {
            let mut set: Vec<_> = keys().validators.iter().map(|key| key.address()).collect();
            for _ in 0..2 {
                let leaves = usize::try_from(self.luck.below(set.len() as u64)).unwrap();
                set.remove(leaves);
            }
            self.chain.set_validators(&set);
            self.seen.epochs += 1;
        }
    }

    fn records(&self) -> Vec<NodeRecord> {
        let record = |key: &DynSigner| NodeRecord {
            node: key.address(),
            role: NodeRole::Compute,
            subnet: self.subnet.id(),
            endpoint: String::new(),
            models: vec![MODEL],
            confinement: Confinement::None,
            sequence: 1,
            expires_at: u64::MAX,
        };
        keys().nodes.iter().map(record).collect()
    }

    /// What the honest members of a quote's committee approve, when that is enough.
    fn approved(
        &mut self,
        quote: &Quote,
        digest: B256,
        judge: impl Fn(&ValidationContext<'_>) -> Result<(), RegistryError>,
    ) -> Option<QuorumCertificate> {
        let (history, nodes) = (self.history(), self.records());
        let context = ValidationContext { trust: &history, subnet: &self.subnet, nodes: &nodes, now: self.now() };
        let (_, committee) = history.of(quote).ok()?;
        // The honest ones judge alike.
        let is_good = judge(&context).is_ok();
        let mut approvals = Vec::new();
        for (place, member) in committee.members.iter().enumerate() {
            let key = keys().validators.iter().find(|key| key.address() == *member).unwrap();
            let lies = self.liar == Liar::Validators && place % 2 == 1;
            if lies && self.luck.one_in(2) {
                continue;
            }
            let signed = if lies { B256::ZERO } else { digest };
            if lies || is_good {
                let approval = block_on(Approval::sign(&signed, &**key)).unwrap();
                // Each is checked before it counts, as a registry node does.
                let alone = ncn_core::Committee { threshold: 1, members: vec![*member] };
                if QuorumCertificate::new(vec![approval]).verify(&digest, &alone).is_ok() {
                    approvals.push(approval);
                }
            }
        }
        approvals.truncate(usize::from(committee.threshold));
        let certificate = QuorumCertificate::new(approvals);
        certificate.verify(&digest, &committee).ok().map(|()| certificate)
    }

    fn preprocessing(&mut self, request: &PreprocessingRequest) -> Option<QuorumCertificate> {
        let (domain, quote) = (self.domain, request.quote.clone());
        self.approved(&quote, quote.digest(&domain), |context| {
            validation::signed_order(request, &domain)?;
            validation::preprocessing(request, context)
        })
    }

    fn completion(&mut self, request: &CompletionRequest) -> Option<(Completion, QuorumCertificate)> {
        let (domain, quote, now) = (self.domain, request.quote.clone(), self.now());
        let status = self.status(&quote);
        let completion = validation::authorization(request, &domain).ok()?;
        let paid = || match validation::claiming_attempt(request) {
            None => matches!(&status, PaymentStatus::Held { quote: held, .. } if *held == quote.struct_hash()),
            Some(attempt) => validation::claimable_from(&quote, attempt, &status).is_ok_and(|from| now >= from),
        };
        let certificate = self.approved(&quote, completion.digest(&domain), |context| {
            validation::authorization(request, &domain)?;
            validation::completion(request, context)?;
            if paid() { Ok(()) } else { Err(RegistryError::Refused("payment".into())) }
        })?;
        Some((completion, certificate))
    }

    fn settle(&self, key: &DynSigner, quote: &Quote, delivery: Delivery, certificate: QuorumCertificate) -> bool {
        let Ok((_, committee)) = self.history().of(quote) else { return false };
        let settlement = Settlement::new(quote.clone(), committee, delivery, certificate).unwrap();
        block_on(self.ledger(key).settle(&settlement)).is_ok()
    }
}

/// One request, from its order to its end.
struct Request<'a> {
    world: &'a mut World,
    order: Signed<InferenceRequest>,
    quote: Quote,
    preprocessing: QuorumCertificate,
    /// How many parts the model gives.
    parts: u64,
    given: Vec<Given>,
    heard: Heard,
    /// The client has the whole delivered output, of so many parts.
    delivered: Option<u64>,
    cancelled: bool,
    life: Lifecycle,
}

/// How an attempt ended at its gateway.
enum Ended {
    /// The node has signed the end.
    Finished,
    Lost,
    /// The gateway itself does nothing more.
    Silent,
}

fn cost(price: &Price, parts: u64) -> u128 {
    if parts == 0 { 0 } else { price.cost(Units { input: 1, output: parts }).unwrap().units() }
}

impl<'a> Request<'a> {
    /// Orders, has the quote approved and pays it; none where that goes no further, and nobody has paid anything.
    fn begin(world: &'a mut World) -> Option<Self> {
        let (salt, parts) = (world.luck.hash(), 1 + world.luck.below(6));
        let deadline = world.now() + LIFETIME;
        let order = InferenceRequest {
            client: keys().client.address(),
            subnet: world.subnet.id(),
            model_digest: MODEL,
            input_hash: B256::repeat_byte(0x11),
            parameters: "{}".into(),
            max_price: Amount::new(1_000_000),
            deadline,
            nonce: world.luck.hash(),
            draw: draw_of(&salt),
        };
        let epoch = world.history().current().clone();
        let request_id = order.digest(&world.domain);
        let max_units = Units { input: 1, output: parts };
        let quote = Quote {
            request_id,
            client: order.client,
            gateway: keys().gateway.address(),
            compute: keys().nodes[usize::try_from(world.luck.below(3)).unwrap()].address(),
            model_digest: MODEL,
            price: world.price,
            max_units,
            total: world.price.cost(max_units).unwrap(),
            split: world.subnet.split,
            expiry: deadline,
            trust_root: epoch.trust.hash(),
            epoch: epoch.since,
            salt,
            committee: epoch.trust.committee(&salt, &request_id).struct_hash(),
        };
        let honest = sign(order, &world.domain, &keys().client);
        if world.liar == Liar::Gateway && world.luck.one_in(3) {
            Self::lie_about(world, &honest, &quote);
            return None;
        }
        let asked = PreprocessingRequest { request: honest.clone(), quote: quote.clone() };
        let preprocessing = world.preprocessing(&asked).expect("three honest validators approve a good quote");
        world.pass();
        if world.liar == Liar::Client && world.luck.one_in(4) {
            return None;
        }
        let payer = world.ledger(&keys().client);
        let tries = if world.liar == Liar::Endpoint { 3 } else { 1 };
        for _ in 0..tries {
            block_on(payer.pay(&quote)).unwrap();
        }
        let (life, heard) = (Lifecycle::default(), Heard { chain: StreamChain::new(request_id), verified: 0 });
        let mut request = Self {
            world,
            order: honest,
            quote,
            preprocessing,
            parts,
            given: Vec::new(),
            heard,
            delivered: None,
            cancelled: false,
            life,
        };
        let trust_root = Box::new(epoch.trust);
        request.step(&Event::Reserved { quote: Box::new(request.quote.clone()), trust_root });
        request.step(&Event::Approved(request.preprocessing.clone()));
        let by = ncn_core::PaymentRef::Transfer(B256::ZERO);
        request.step(&Event::Paid(by));
        Some(request)
    }

    /// A quote that is not what it should be has no certificate, or is not what the client ordered: nothing is paid.
    fn lie_about(world: &mut World, order: &Signed<InferenceRequest>, quote: &Quote) {
        let mut lie = quote.clone();
        match world.luck.below(7) {
            0 => lie.total = Amount::new(lie.total.units() + 1),
            1 => lie.price.base = Amount::new(lie.price.base.units() + 1),
            2 => lie.committee = B256::ZERO,
            3 => lie.salt = world.luck.hash(),
            4 => lie.split.gateway_bps = 9_000,
            5 => lie.expiry += 1,
            _ => lie.trust_root = world.luck.hash(),
        }
        let asked = PreprocessingRequest { request: order.clone(), quote: lie };
        assert!(world.preprocessing(&asked).is_none(), "a lie is approved: {:?}", asked.quote);
        world.seen.unpaid += 1;
    }

    fn step(&mut self, event: &Event) {
        let (next, _) = self.life.step(event).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        self.life = next;
    }

    fn is_liar(&self, liar: Liar) -> bool {
        self.world.liar == liar
    }

    fn dispatch(&self, node: usize, attempt: u8, resumed_from: B256) -> Signed<Dispatch> {
        let (gateway, compute, quote) = (self.quote.gateway, keys().nodes[node].address(), self.quote.struct_hash());
        sign(Dispatch { gateway, compute, quote, attempt, resumed_from }, &self.world.domain, &keys().gateway)
    }

    /// What the node checks before it runs.
    fn is_taken(&self, node: usize, before: &[Signed<InferenceResult>], dispatches: &[Signed<Dispatch>]) -> bool {
        let start = before.last().map_or(B256::ZERO, |result| result.message.chain);
        let nodes: Vec<_> = before
            .iter()
            .map(|result| (result.message.compute, result.message.resumed_from))
            .chain([(keys().nodes[node].address(), start)])
            .collect();
        let (_, committee) = self.world.history().of(&self.quote).unwrap();
        dispatch::verify(dispatches, &self.quote, &nodes, &self.world.domain).is_ok()
            && self.preprocessing.verify(&self.quote.digest(&self.world.domain), &committee).is_ok()
            && matches!(self.world.status(&self.quote), PaymentStatus::Held { .. })
    }

    /// A node's word on the first `parts` parts.
    fn word(&self, given: &Given, parts: u64, finish: Option<FinishReason>) -> Signed<InferenceResult> {
        let (mut chain, mut output) = (StreamChain::new(self.quote.request_id), Values::new());
        for number in 0..parts {
            chain.extend(&values(number));
            output.append(values(number));
        }
        let last = given.before.last().map(|result| &result.message);
        let own = parts - last.map_or(0, |result| result.parts);
        let result = InferenceResult {
            request_id: self.quote.request_id,
            compute: keys().nodes[given.node].address(),
            model_digest: MODEL,
            input_hash: self.order.message.input_hash,
            output_hash: B256::ZERO,
            output_bytes: 0,
            parts: 0,
            chain: B256::ZERO,
            resumed_from: last.map_or(B256::ZERO, |result| result.chain),
            usage: Usage { input_units: 1, output_units: own, duration_micros: 1 },
            confinement: Confinement::None,
            finish,
        };
        sign(chain.describe(&output, result), &self.world.domain, &keys().nodes[given.node])
    }

    /// The client hears the parts up to here, and the node's word on them.
    fn hear(&mut self, parts: u64, word: Option<&Signed<InferenceResult>>) {
        if self.is_liar(Liar::Gateway) && self.world.luck.one_in(4) {
            // A part that the gateway makes up is noticed at the next word.
            let mut made_up = self.heard.chain;
            made_up.extend(&Values::from([("text", "made up")]));
            if let Some(word) = word {
                assert!(made_up.verify(word, &self.world.domain).is_err());
            }
            return;
        }
        while self.heard.chain.parts() < parts {
            self.heard.chain.extend(&values(self.heard.chain.parts()));
        }
        if let Some(word) = word
            && self.heard.chain.verify(word, &self.world.domain).is_ok()
        {
            self.heard.verified = self.heard.verified.max(word.message.parts);
        }
    }

    /// One node runs the request, from where the last word is.
    fn attempt(&mut self, attempt: u8) -> Ended {
        let quoted = keys().nodes.iter().position(|key| key.address() == self.quote.compute).unwrap();
        let node = (quoted + usize::from(attempt)) % keys().nodes.len();
        let (before, mut dispatches) = match self.given.last() {
            Some(last) if last.given.is_some() => {
                (last.before.iter().cloned().chain(last.given.clone()).collect(), last.dispatches.clone())
            }
            Some(last) => (last.before.clone(), last.dispatches[..last.dispatches.len() - 1].to_vec()),
            None => (Vec::new(), Vec::new()),
        };
        let start: Option<&InferenceResult> = before.last().map(|result: &Signed<InferenceResult>| &result.message);
        let (begun, resumed_from) = start.map_or((0, B256::ZERO), |result| (result.parts, result.chain));
        if begun > 0 {
            self.world.seen.taken_over += 1;
        }
        let dispatch = self.dispatch(node, attempt, resumed_from);
        if self.is_liar(Liar::Gateway) && self.world.luck.one_in(4) {
            let other = self.dispatch((node + 1) % 3, attempt, resumed_from);
            assert!(dispatch.message.contradicts(&other.message), "two nodes for one attempt are evidence");
        }
        if self.is_liar(Liar::Bystander) {
            let mut forged = dispatches.clone();
            let message = dispatch.message;
            let digest = message.digest(&self.world.domain);
            forged.push(Signed { message, signature: block_on(Signature::sign(&digest, &*keys().bystander)).unwrap() });
            assert!(!self.is_taken(node, &before, &forged), "a bystander dispatches");
        }
        dispatches.push(dispatch);
        if (self.is_liar(Liar::Endpoint) && self.world.luck.one_in(4)) || !self.is_taken(node, &before, &dispatches) {
            // Its endpoint does not show the payment.
            return Ended::Lost;
        }
        self.given.push(Given { node, before, dispatches, given: None, whole: None, certificate: None });
        let place = self.given.len() - 1;
        let dies = self.world.luck.one_in(3).then(|| begun + self.world.luck.below(self.parts - begun + 1));
        let silent = (self.is_liar(Liar::Gateway) || self.world.luck.one_in(20)) && self.world.luck.one_in(3);
        let silent = silent.then(|| begun + self.world.luck.below(self.parts - begun + 1));
        let stops = self.world.luck.one_in(6).then(|| begun + 1 + self.world.luck.below(self.parts));
        // The newest part is held back.
        for parts in begun + 1..=self.parts {
            if dies == Some(parts) {
                return Ended::Lost;
            }
            let is_cut = stops.is_some_and(|stops| stops <= parts) && parts > begun && self.heard.verified > 0;
            if parts == self.parts || is_cut {
                let finish = if parts == self.parts {
                    FinishReason::Stop
                } else if self.world.luck.one_in(2) {
                    self.cancelled = true;
                    FinishReason::Cancelled
                } else {
                    FinishReason::Deadline
                };
                self.given[place].whole = Some(self.word(&self.given[place], parts, Some(finish)));
                return if silent.is_some() { Ended::Silent } else { Ended::Finished };
            }
            let word = self.word(&self.given[place], parts, None);
            self.given[place].given = Some(word.clone());
            self.hear(parts, Some(&word));
            if silent == Some(parts) {
                return Ended::Silent;
            }
        }
        Ended::Lost
    }

    fn completion_of(&self, given: &Given, delivery: Delivery, author: &DynSigner) -> CompletionRequest {
        let completion = delivery.completion(&self.quote).unwrap().struct_hash();
        let message = CompletionAuthorization { author: author.address(), completion };
        let authorization = sign(message, &self.world.domain, author);
        let (request, quote, dispatches) = (self.order.clone(), self.quote.clone(), given.dispatches.clone());
        CompletionRequest { request, quote, delivery, voucher: None, dispatches, authorization }
    }

    /// The gateway has an output approved; the node hands the last part over, and everyone is paid. False where the node does not.
    fn complete(&mut self, place: usize, delivery: Delivery) -> bool {
        let given = self.given[place].clone();
        let parts = delivery.last().unwrap().parts;
        let request = self.completion_of(&given, delivery.clone(), &keys().gateway);
        if self.is_liar(Liar::Node) {
            let thief = self.completion_of(&given, delivery.clone(), &keys().nodes[given.node]);
            assert!(self.world.completion(&thief).is_none(), "a node is heard before its gateway has had its time");
        }
        if self.is_liar(Liar::Bystander) {
            let thief = self.completion_of(&given, delivery.clone(), &keys().bystander);
            assert!(self.world.completion(&thief).is_none(), "a bystander is heard");
        }
        self.world.pass();
        let Some((_, certificate)) = self.world.completion(&request) else {
            assert!(matches!(self.world.status(&self.quote), PaymentStatus::PaidOut { .. }), "a good completion is approved");
            return true;
        };
        if delivery.finish == given.whole.as_ref().and_then(|whole| whole.message.finish).unwrap_or(FinishReason::NodeLost)
            && given.whole.is_some()
        {
            self.given[place].certificate = Some(certificate.clone());
            if self.is_liar(Liar::Node) && given.node == LIAR && self.world.luck.one_in(2) {
                // It has the certificate, and does not hand the output over.
                if self.world.luck.one_in(2) {
                    self.world.settle(&keys().nodes[LIAR], &self.quote, delivery, certificate);
                }
                self.step(&Event::ExecutionFailed { reason: String::new(), retryable: true });
                return false;
            }
        }
        self.step(&Event::Completed { certificate: certificate.clone(), output: Some(Values::new()) });
        // A gateway that vanishes, by its own will or not, after it has all.
        if (self.is_liar(Liar::Gateway) || self.world.luck.one_in(20)) && self.world.luck.one_in(3) {
            return true;
        }
        let presents = if self.is_liar(Liar::Bystander) { &keys().bystander } else { &keys().gateway };
        if self.world.settle(presents, &self.quote, delivery, certificate) {
            self.hear(parts, None);
            self.delivered = Some(parts);
            self.step(&Event::Settled(ncn_core::PaymentRef::Transfer(B256::ZERO)));
        }
        true
    }

    /// What is there of the output is all that there will be.
    fn complete_in_part(&mut self) -> bool {
        let Some(place) = self.given.iter().rposition(|given| given.given.is_some()) else { return false };
        let Given { before, given, .. } = self.given[place].clone();
        let results: Vec<_> = before.into_iter().chain(given).collect();
        let delivery = Delivery { results, finish: FinishReason::NodeLost };
        self.step(&Event::Executed { output: Some(Values::new()), delivery: Box::new(delivery.clone()), dispatches: Vec::new() });
        self.given[place].whole = None;
        self.world.seen.partial += 1;
        self.complete(place, delivery)
    }

    /// The gateway has nothing to show for the payment, or says so.
    fn give_up(&mut self) {
        let gateway = self.world.ledger(&keys().gateway);
        // A client that was given nothing agrees; one that has parts does not.
        let agrees = self.heard.chain.parts() == 0 && !self.world.luck.one_in(3);
        let digest = TaskCapability::cancel(&self.quote).digest(&self.world.domain);
        let consent = block_on(Signature::sign(&digest, &*keys().client)).unwrap();
        if self.is_liar(Liar::Bystander) {
            let bystander = self.world.ledger(&keys().bystander);
            assert!(block_on(bystander.refund(&self.quote, Some(&consent))).is_err(), "a bystander plays the client's word");
        }
        let over = matches!(self.world.status(&self.quote), PaymentStatus::PaidOut { .. });
        let refunded = block_on(gateway.refund(&self.quote, agrees.then_some(&consent))).is_ok();
        assert_eq!(refunded, agrees && !over);
    }

    /// The request runs, however often it has to.
    fn run(&mut self) {
        for attempt in 0..MAX_ATTEMPTS {
            self.world.pass();
            match self.attempt(attempt) {
                Ended::Silent => {
                    if self.world.luck.one_in(2) {
                        self.give_up();
                    }
                    return;
                }
                Ended::Finished => {
                    let place = self.given.len() - 1;
                    let Given { before, whole, dispatches, .. } = self.given[place].clone();
                    let whole = whole.unwrap();
                    let finish = whole.message.finish.unwrap();
                    let delivery = Delivery { results: before.into_iter().chain([whole]).collect(), finish };
                    self.step(&Event::Executed { output: None, delivery: Box::new(delivery.clone()), dispatches });
                    if self.complete(place, delivery) {
                        return;
                    }
                }
                Ended::Lost if attempt + 1 < MAX_ATTEMPTS => {
                    self.step(&Event::ExecutionFailed { reason: String::new(), retryable: true });
                }
                Ended::Lost => {}
            }
        }
        if !self.complete_in_part() {
            let failed = Event::ExecutionFailed { reason: String::new(), retryable: false };
            if self.life.state() == State::Executing {
                self.step(&failed);
            }
            self.give_up();
        }
    }

    /// The nodes claim what is theirs, each in its turn, and then anyone sends home what is left.
    fn end(&mut self) {
        let given_up = matches!(self.world.status(&self.quote), PaymentStatus::GivenUp { .. });
        if !given_up {
            let left = self.quote.expiry.saturating_sub(self.world.now());
            self.world.chain.advance(left + 1);
        }
        for _ in 0..CLAIM_SECONDS / POLL {
            self.claims();
            self.world.chain.advance(POLL);
        }
        self.world.chain.advance(LIFETIME + CLAIM_SECONDS);
        let anyone = self.world.ledger(&keys().bystander);
        let _ = block_on(anyone.refund(&self.quote, None));
    }

    /// Each node that has something to claim tries, and the liar first.
    fn claims(&mut self) {
        let liar = self.is_liar(Liar::Node).then_some(LIAR);
        let mut claims = self.given.clone();
        claims.sort_by_key(|given| Some(given.node) != liar);
        for given in claims {
            let Some(delivery) = given.delivery() else { continue };
            let attempt = given.dispatches.last().map_or(0, |dispatch| dispatch.message.attempt);
            let Ok(from) = validation::claimable_from(&self.quote, attempt, &self.world.status(&self.quote)) else { return };
            let is_early = self.world.now() < from && given.certificate.is_none();
            if is_early && (Some(given.node) != liar || self.world.luck.one_in(2)) {
                continue;
            }
            let certificate = match given.certificate.clone() {
                Some(certificate) => Some(certificate),
                None => {
                    let request = self.completion_of(&given, delivery.clone(), &keys().nodes[given.node]);
                    self.world.completion(&request).map(|(_, certificate)| certificate)
                }
            };
            if let Some(certificate) = certificate
                && self.world.settle(&keys().nodes[given.node], &self.quote, delivery, certificate)
            {
                self.world.seen.claimed += 1;
            }
        }
    }
}

/// Plays one schedule; panics where a rule is broken.
fn play(seed: u64) -> Seen {
    let mut world = World::new(seed);
    let minted = world.total();
    let requests = 1 + world.luck.below(2);
    for _ in 0..requests {
        let liar = world.liar;
        let before = world.balance(keys().client.address());
        let incomes: Vec<_> = keys().nodes.iter().map(|key| world.balance(key.address())).collect();
        let Some(mut request) = Request::begin(&mut world) else { continue };
        request.run();
        request.end();
        let Request { quote, given, heard, delivered, life, .. } = request;
        let status = world.status(&quote);
        let paid = before - world.balance(quote.client);
        assert!(matches!(status, PaymentStatus::PaidOut { .. } | PaymentStatus::Refunded { .. }), "money is stuck: {status}");
        assert_eq!(world.total(), minted, "tokens are conserved");

        // What the client has: all of a delivered output, or the parts that it has verified.
        let has = delivered.unwrap_or(heard.verified);
        assert!(paid <= quote.total.units());
        let gateway_lied = liar == Liar::Gateway;
        let settled = life.state() == State::Ended(Outcome::Completed);
        let owed = if settled { cost(&quote.price, has) } else { cost(&quote.price, has + 1) };
        // What the gateway has and keeps to itself is the client's loss, which SECURITY.md says; the rest is bounded.
        let kept = given.iter().filter_map(Given::delivery).map(|delivery| delivery.last().unwrap().parts).max();
        let bound = if gateway_lied { owed.max(cost(&quote.price, kept.unwrap_or(0))) } else { owed };
        assert!(paid <= bound, "a {liar:?} lied: the client pays {paid} for {has} parts, which cost {owed}");
        if settled && liar != Liar::Node {
            assert_eq!(paid, cost(&quote.price, has), "what was delivered costs what it costs");
        }

        // Each honest node has its share of the parts that are its own among those that the client has verified.
        for (node, (key, income)) in keys().nodes.iter().zip(incomes).enumerate() {
            let income = world.balance(key.address()) - income;
            let chain: Vec<_> = given.iter().filter(|given| given.node == node).collect();
            let own = chain.iter().filter_map(|given| given.given.as_ref().map(|result| (given, &result.message)));
            let verified: u64 = own
                .map(|(given, result)| {
                    let begun = given.before.last().map_or(0, |before| before.message.parts);
                    result.parts.min(heard.verified).saturating_sub(begun)
                })
                .max()
                .unwrap_or(0);
            let share = quote.price.output.price.units() * u128::from(verified) * 8 / 10;
            let lied = liar == Liar::Node && node == LIAR;
            assert!(lied || income >= share, "a {liar:?} lied: node {node} has {income} for {verified} verified parts: {share}");
        }
        match status {
            PaymentStatus::PaidOut { .. } => world.seen.completed += 1,
            _ => world.seen.refunded += 1,
        }
    }
    world.seen
}

#[test]
fn nobody_gains_by_lying() {
    let number = |name: &str, or: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(or);
    let (first, count) = (number("NCN_SEED", 0), number("NCN_SCHEDULES", SCHEDULES));
    println!("seeds {first} to {}", first + count - 1);
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u64;
    let seen = std::thread::scope(|scope| {
        let part = |thread: u64| {
            scope.spawn(move || {
                let mut all = Vec::new();
                for seed in (first..first + count).filter(|seed| seed % threads == thread) {
                    let played = std::panic::catch_unwind(|| play(seed));
                    all.push(played.unwrap_or_else(|_| panic!("broken by the schedule of NCN_SEED={seed} NCN_SCHEDULES=1")));
                }
                all
            })
        };
        let playing: Vec<_> = (0..threads).map(part).collect();
        playing.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let all = Seen {
        completed: sum(|seen| seen.completed),
        partial: sum(|seen| seen.partial),
        refunded: sum(|seen| seen.refunded),
        claimed: sum(|seen| seen.claimed),
        taken_over: sum(|seen| seen.taken_over),
        unpaid: sum(|seen| seen.unpaid),
        epochs: sum(|seen| seen.epochs),
    };
    println!("{all:?}");
    if count >= SCHEDULES {
        let least = [all.completed, all.partial, all.refunded, all.claimed, all.taken_over, all.unpaid, all.epochs];
        assert!(least.iter().all(|seen| *seen >= 20), "too little happens: {all:?}");
    }
}
