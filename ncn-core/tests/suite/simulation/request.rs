//! One request, as its client, gateway and nodes play it.

use ncn_core::{
    Acknowledgement, Amount, B256, CompletionAuthorization, CompletionRequest, Confinement, Continuation, Delivery, Dispatch,
    DynSigner, Event, FinishReason, InferenceRequest, InferenceResult, Lifecycle, Message as _, Payer as _, PaymentLedger as _,
    PaymentStatus, PreprocessingRequest, Price, QuorumCertificate, Quote, Signature, Signed, State, StreamChain, TaskCapability,
    Units, Usage, Values, dispatch,
    lifecycle::MAX_ATTEMPTS,
    trust::draw_of,
    validation::{self, CLAIM_SECONDS},
};

use super::{
    LIAR, LIFETIME, MODEL, POLL,
    world::{Given, Heard, Liar, World, block_on, keys, sign, values},
};

/// One request, from its order to its end.
pub(super) struct Request<'a> {
    pub(super) world: &'a mut World,
    pub(super) order: Signed<InferenceRequest>,
    pub(super) quote: Quote,
    pub(super) preprocessing: QuorumCertificate,
    /// How many parts the model gives.
    pub(super) parts: u64,
    pub(super) given: Vec<Given>,
    pub(super) heard: Heard,
    /// The client has the whole delivered output, of so many parts.
    pub(super) delivered: Option<u64>,
    pub(super) cancelled: bool,
    pub(super) life: Lifecycle,
}

/// How an attempt ended at its gateway.
pub(super) enum Ended {
    /// The node has signed the end.
    Finished,
    Lost,
    /// The gateway itself does nothing more.
    Silent,
}

pub(super) fn cost(price: &Price, parts: u64) -> u128 {
    if parts == 0 { 0 } else { price.cost(Units { input: 1, output: parts }).unwrap().units() }
}

impl<'a> Request<'a> {
    /// Orders, has the quote approved and pays it; none where that goes no further, and nobody has paid anything.
    pub(super) fn begin(world: &'a mut World) -> Option<Self> {
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
    pub(super) fn lie_about(world: &mut World, order: &Signed<InferenceRequest>, quote: &Quote) {
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

    pub(super) fn step(&mut self, event: &Event) {
        let (next, _) = self.life.step(event).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        self.life = next;
    }

    pub(super) fn is_liar(&self, liar: Liar) -> bool {
        self.world.liar == liar
    }

    pub(super) fn dispatch(&self, node: usize, attempt: u8, resumed_from: B256) -> Signed<Dispatch> {
        let (gateway, compute, quote) = (self.quote.gateway, keys().nodes[node].address(), self.quote.struct_hash());
        sign(Dispatch { gateway, compute, quote, attempt, resumed_from }, &self.world.domain, &keys().gateway)
    }

    /// What the node checks before it runs.
    pub(super) fn is_taken(&self, node: usize, before: &[Signed<InferenceResult>], dispatches: &[Signed<Dispatch>]) -> bool {
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
    pub(super) fn word(&self, given: &Given, parts: u64, finish: Option<FinishReason>) -> Signed<InferenceResult> {
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
            continuation: last.map(|_| Continuation::Rerun),
            usage: Usage { input_units: 1, output_units: own, duration_micros: 1 },
            confinement: Confinement::None,
            finish,
        };
        sign(chain.describe(&output, result), &self.world.domain, &keys().nodes[given.node])
    }

    /// The client hears the parts up to here, and the node's word on them.
    pub(super) fn hear(&mut self, parts: u64, word: Option<&Signed<InferenceResult>>) {
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
    pub(super) fn attempt(&mut self, attempt: u8) -> Ended {
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
        self.given.push(Given { node, before, dispatches, given: None, acknowledged: None, whole: None, certificate: None });
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
            // Without its gateway's word on the part before, a node gives no other.
            if self.given[place].unacknowledged() > 0 {
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
            if !(self.is_liar(Liar::Gateway) && self.world.luck.one_in(6)) {
                let acknowledgement = self.acknowledgement(&word, &keys().gateway);
                self.given[place].acknowledged = Some((word, acknowledgement));
            }
        }
        Ended::Lost
    }

    pub(super) fn acknowledgement(&self, result: &Signed<InferenceResult>, key: &DynSigner) -> Signed<Acknowledgement> {
        let message = Acknowledgement { gateway: self.quote.gateway, result: result.message.struct_hash() };
        Signed { message, signature: block_on(Signature::sign(&message.digest(&self.world.domain), &**key)).unwrap() }
    }

    pub(super) fn completion_of(&self, given: &Given, delivery: Delivery, author: &DynSigner) -> CompletionRequest {
        let completion = delivery.completion(&self.quote).unwrap().struct_hash();
        let message = CompletionAuthorization { author: author.address(), completion };
        let authorization = sign(message, &self.world.domain, author);
        let (request, quote, dispatches) = (self.order.clone(), self.quote.clone(), given.dispatches.clone());
        let preprocessing = (author.address() != self.quote.gateway).then(|| self.preprocessing.clone());
        let acknowledgement = given.acknowledged.as_ref().map(|(_, word)| word.clone());
        CompletionRequest { request, quote, delivery, preprocessing, voucher: None, dispatches, acknowledgement, authorization }
    }

    /// The gateway has an output approved; the node hands the last part over, and everyone is paid. False where the node does not.
    pub(super) fn complete(&mut self, place: usize, delivery: Delivery) -> bool {
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
    pub(super) fn complete_in_part(&mut self) -> bool {
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
    pub(super) fn give_up(&mut self) {
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
    pub(super) fn run(&mut self) {
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
                    // What was cut short is not gone on with.
                    if finish != FinishReason::Stop {
                        break;
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
    pub(super) fn end(&mut self) {
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

    /// A node claims an output that its gateway has not got, with what it has of its gateway's, or with its own word in its place.
    fn claim_too_much(&mut self, given: &Given) {
        let whole = self.word(given, self.parts, Some(FinishReason::Stop));
        if given.acknowledged.as_ref().is_some_and(|(result, _)| result.message == whole.message) {
            return;
        }
        let key = &keys().nodes[given.node];
        let mut claim = self.completion_of(given, given.with(whole.clone()), key);
        assert!(self.world.completion(&claim).is_none(), "a node is paid for what nobody has got");
        claim.acknowledgement = Some(self.acknowledgement(&whole, key));
        assert!(self.world.completion(&claim).is_none(), "a node acknowledges its own output");
    }

    /// Each node that has something to claim tries, and the liar first.
    pub(super) fn claims(&mut self) {
        let liar = self.is_liar(Liar::Node).then_some(LIAR);
        let mut claims = self.given.clone();
        claims.sort_by_key(|given| Some(given.node) != liar);
        for given in claims {
            if Some(given.node) == liar {
                self.claim_too_much(&given);
            }
            let Some(delivery) = given.claimable() else { continue };
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
