//! Everyone but the request: keys, chain, validators, and the luck that decides.

use std::sync::{Arc, OnceLock};

use alloy_signer_local::PrivateKeySigner;
use futures::FutureExt as _;
use ncn_core::{
    Acknowledgement, Address, Amount, Approval, B256, Completion, CompletionRequest, Confinement, Delivery, Dispatch, Domain,
    DynSigner, FeeSplit, FinishReason, InferenceResult, Message as _, NodeRecord, NodeRole, PaymentLedger as _, PaymentStatus,
    PreprocessingRequest, Price, QuorumCertificate, Quote, RegistryError, Settlement, Signed, StreamChain, Subnet, SubnetModel,
    TrustHistory, TrustRoot, Unit, UnitPrice, Values,
    crypto::Authored,
    memory::{MemoryChain, MemoryLedger},
    validation::{self, ValidationContext},
};
use proptest::{
    prelude::Rng as _,
    test_runner::{RngAlgorithm, TestRng},
};

use super::{MODEL, MONEY, NOW};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liar {
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

pub(super) struct Keys {
    pub(super) client: DynSigner,
    pub(super) gateway: DynSigner,
    pub(super) bystander: DynSigner,
    pub(super) nodes: Vec<DynSigner>,
    pub(super) validators: Vec<DynSigner>,
}

/// They are the same in every schedule: making them is not what is looked at.
pub(super) fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    let key = |number: u8| -> DynSigner { Arc::new(PrivateKeySigner::from_bytes(&B256::repeat_byte(number)).unwrap()) };
    KEYS.get_or_init(|| {
        let mut validators: Vec<_> = (21..28).map(key).collect();
        validators.sort_unstable_by_key(|key| key.address());
        Keys { client: key(1), gateway: key(2), bystander: key(3), nodes: (11..14).map(key).collect(), validators }
    })
}

/// Nothing here waits for anything.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("it is there at once")
}

pub(super) struct Luck(TestRng);

impl Luck {
    pub(super) fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    /// A number below this one.
    pub(super) fn below(&mut self, most: u64) -> u64 {
        self.0.next_u64() % most
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub(super) fn hash(&mut self) -> B256 {
        let mut bytes = [0; 32];
        self.0.fill_bytes(&mut bytes);
        bytes.into()
    }
}

pub(super) fn sign<T: Authored>(message: T, domain: &Domain, key: &DynSigner) -> Signed<T> {
    block_on(Signed::sign(message, domain, &**key)).unwrap()
}

/// What one node has given of a request, and can prove.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) node: usize,
    /// What it went on from, and by which words.
    pub(super) before: Vec<Signed<InferenceResult>>,
    pub(super) dispatches: Vec<Signed<Dispatch>>,
    /// Its newest word on what it has handed over, and the whole of which the last part is still with it.
    pub(super) given: Option<Signed<InferenceResult>>,
    /// What its gateway has said that it has got, and the word on that.
    pub(super) acknowledged: Option<(Signed<InferenceResult>, Signed<Acknowledgement>)>,
    pub(super) whole: Option<Signed<InferenceResult>>,
    pub(super) certificate: Option<QuorumCertificate>,
}

impl Given {
    /// What it has handed over.
    pub(super) fn delivery(&self) -> Option<Delivery> {
        let result = if self.certificate.is_some() { &self.whole } else { &self.given }.clone()?;
        Some(self.with(result))
    }

    /// What it can claim.
    pub(super) fn claimable(&self) -> Option<Delivery> {
        let acknowledged = || self.acknowledged.as_ref().map(|(result, _)| result.clone());
        let result = if self.certificate.is_some() { self.whole.clone() } else { acknowledged() }?;
        Some(self.with(result))
    }

    /// How much of what it has handed over its gateway has not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        let parts = |result: &Signed<InferenceResult>| result.message.parts;
        let begun = self.before.last().map_or(0, parts);
        let acknowledged = self.acknowledged.as_ref().map_or(begun, |(result, _)| parts(result));
        self.given.as_ref().map_or(begun, parts) - acknowledged
    }

    pub(super) fn with(&self, result: Signed<InferenceResult>) -> Delivery {
        let finish = result.message.finish.unwrap_or(FinishReason::NodeLost);
        Delivery { results: self.before.iter().cloned().chain([result]).collect(), finish }
    }
}

/// What the client knows of its output: parts come unsigned, and count once a word on them has come.
#[derive(Clone, Copy)]
pub(super) struct Heard {
    pub(super) chain: StreamChain,
    pub(super) verified: u64,
}

pub(super) struct World {
    pub(super) luck: Luck,
    pub(super) liar: Liar,
    pub(super) chain: Arc<MemoryChain>,
    pub(super) domain: Domain,
    pub(super) price: Price,
    pub(super) subnet: Subnet,
    /// How often each thing was seen, so that a simulation of nothing is noticed.
    pub(super) seen: Seen,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) completed: u64,
    pub(super) partial: u64,
    pub(super) refunded: u64,
    pub(super) claimed: u64,
    pub(super) taken_over: u64,
    pub(super) unpaid: u64,
    pub(super) epochs: u64,
}

pub(super) fn values(number: u64) -> Values {
    Values::from([("text", format!("part {number} ").as_str())])
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
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
        let subnet = Subnet { owner, name: "simulated".into(), gateways: Vec::new(), models: vec![model], split, version: 1 };
        let chain = MemoryChain::new(trust, NOW);
        chain.mint(keys().client.address(), Amount::new(MONEY));
        Self { luck, liar, chain, domain, price, subnet, seen: Seen::default() }
    }

    pub(super) fn ledger(&self, key: &DynSigner) -> MemoryLedger {
        self.chain.ledger(key.clone())
    }

    pub(super) fn balance(&self, account: Address) -> u128 {
        block_on(self.ledger(&keys().client).balance(account)).unwrap().units()
    }

    pub(super) fn now(&self) -> u64 {
        self.ledger(&keys().client).now()
    }

    pub(super) fn history(&self) -> Arc<TrustHistory> {
        block_on(ncn_core::ChainView::trust(&self.ledger(&keys().client), 0)).unwrap()
    }

    pub(super) fn status(&self, quote: &Quote) -> PaymentStatus {
        self.ledger(&keys().client).payment(quote.client, quote.request_id)
    }

    /// Everyone's tokens; those in escrow are the schedule's to have ended.
    pub(super) fn total(&self) -> u128 {
        let Keys { client, gateway, bystander, nodes, validators } = keys();
        let people = [client, gateway, bystander].into_iter().chain(nodes).chain(validators).map(|key| key.address());
        people.chain([Address::repeat_byte(0xee)]).map(|account| self.balance(account)).sum()
    }

    /// Time passes, and validators join and leave.
    pub(super) fn pass(&mut self) {
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

    pub(super) fn records(&self) -> Vec<NodeRecord> {
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
    pub(super) fn approved(
        &mut self,
        quote: &Quote,
        digest: B256,
        judge: impl Fn(&ValidationContext<'_>) -> Result<(), RegistryError>,
    ) -> Option<QuorumCertificate> {
        let (history, nodes) = (self.history(), self.records());
        let context = ValidationContext { trust: &history, subnet: Some(&self.subnet), nodes: &nodes, now: self.now() };
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

    pub(super) fn preprocessing(&mut self, request: &PreprocessingRequest) -> Option<QuorumCertificate> {
        let (domain, quote) = (self.domain, request.quote.clone());
        self.approved(&quote, quote.digest(&domain), |context| {
            validation::signed_order(request, &domain)?;
            validation::preprocessing(request, context)
        })
    }

    pub(super) fn completion(&mut self, request: &CompletionRequest) -> Option<(Completion, QuorumCertificate)> {
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

    pub(super) fn settle(&self, key: &DynSigner, quote: &Quote, delivery: Delivery, certificate: QuorumCertificate) -> bool {
        let Ok((_, committee)) = self.history().of(quote) else { return false };
        let settlement = Settlement::new(quote.clone(), committee, delivery, certificate).unwrap();
        block_on(self.ledger(key).settle(&settlement)).is_ok()
    }
}
