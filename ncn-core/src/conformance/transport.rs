use std::sync::Arc;

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use futures::{StreamExt as _, future::join_all};

use super::{Rules, Spoilt, Verdict, Violation, key, rand_bytes, signed};
use crate::{
    Amount, CapabilityScope, DynSigner, InferenceRequest, Message as _, ModelInfo, Outcome, Payer, PaymentConfirmation,
    PaymentSubmission, Signed, State, Step, Submission, TaskCapability, TaskEvent, TaskStatus, Ticket, Transport, TransportError,
    TransportExt as _, TrustRoot, UnixTime, Values,
};

/// What the suite for [`Transport`] needs: a network around the transport.
#[async_trait]
pub trait TransportFixture: Send + Sync {
    /// The transport under test.
    fn transport(&self) -> Arc<dyn Transport>;

    /// A funded client, as it pays on the chain.
    async fn payer(&self, signer: DynSigner) -> Arc<dyn Payer>;

    /// An account's tokens.
    async fn balance(&self, owner: Address) -> Amount;

    /// The network that it serves.
    async fn trust_root(&self) -> TrustRoot;

    /// A model that it offers, by name.
    fn model(&self) -> &str;

    /// Inputs that the model takes.
    fn inputs(&self) -> Values;

    /// Inputs that it does not take.
    fn bad_inputs(&self) -> Values;

    /// The time.
    fn now(&self) -> UnixTime;
}

struct Scene<'a> {
    fixture: &'a dyn TransportFixture,
    transport: Arc<dyn Transport>,
    trust: TrustRoot,
    info: ModelInfo,
    client: DynSigner,
    payer: Arc<dyn Payer>,
}

impl Scene<'_> {
    async fn ticket(&self) -> Result<Ticket, Violation> {
        let tickets = self.transport.tickets(1).await;
        let ticket = tickets.as_ref().ok().and_then(|tickets| tickets.first().copied());
        ticket.ok_or_else(|| Violation { rule: "a gateway gives tickets", what: format!("{tickets:?}") })
    }

    fn order(&self, inputs: &Values, ticket: &Ticket) -> InferenceRequest {
        InferenceRequest {
            client: self.client.address(),
            subnet: self.info.subnet,
            model_digest: self.info.model.digest(),
            input_hash: inputs.hash(),
            parameters: "{}".into(),
            max_price: self.info.maximum(inputs, "{}").map(|(_, total)| total).unwrap_or_default(),
            deadline: self.fixture.now() + 600,
            nonce: rand_bytes().into(),
            draw: ticket.draw,
        }
    }

    async fn submission(&self, order: InferenceRequest, ticket: &Ticket) -> Submission {
        let request = signed(order, &self.trust, &self.client).await;
        Submission { request, inputs: self.fixture.inputs(), ticket: ticket.id }
    }

    async fn access(&self, request_id: B256, key: &DynSigner, scope: CapabilityScope) -> Signed<TaskCapability> {
        signed(TaskCapability { client: key.address(), request_id, scope }, &self.trust, key).await
    }
}

/// Runs the suite for [`Transport`].
pub async fn transport(fixture: &dyn TransportFixture) -> Verdict {
    let mut rules = Rules::default();
    let transport = fixture.transport();
    let models = rules.ok("models are listed", transport.models().await)?;
    let named = models.into_iter().find(|info| info.model.manifest().name == fixture.model());
    let Some(info) = named else {
        return Err(Violation { rule: "models are listed", what: format!("`{}` is not", fixture.model()) });
    };
    let client = key();
    let payer = fixture.payer(client.clone()).await;
    let scene = Scene { trust: fixture.trust_root().await, fixture, transport, info, client, payer };
    refuses(&mut rules, &scene).await?;
    let quoted = submits(&mut rules, &scene).await?;
    guards(&mut rules, &scene, &quoted).await?;
    serves(&mut rules, &scene, &quoted).await?;
    cancels(&mut rules, &scene).await?;
    Ok(rules.0)
}

async fn refuses(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let transport = &scene.transport;
    let before = scene.fixture.balance(scene.client.address()).await;
    let ticket = scene.ticket().await?;
    let mut bad = scene.submission(scene.order(&scene.fixture.bad_inputs(), &ticket), &ticket).await;
    bad.inputs = scene.fixture.bad_inputs();
    let refused = transport.submit(bad).await;
    let named =
        matches!(&refused, Err(TransportError::InvalidRequest { field, problem }) if !field.is_empty() && !problem.is_empty());
    rules.check("bad inputs are refused by name, before payment", named, refused)?;

    let good = scene.order(&scene.fixture.inputs(), &ticket);
    let spoilt: [Spoilt<InferenceRequest>; 6] = [
        ("an unknown model is refused", |order| order.model_digest = [9; 32].into()),
        ("another subnet is refused", |order| order.subnet = [9; 32].into()),
        ("inputs have to hash to the order's", |order| order.input_hash = [9; 32].into()),
        ("too low a price is refused", |order| order.max_price = Amount::new(1)),
        ("a draw is the gateway's", |order| order.draw = [9; 32].into()),
        ("a deadline in the past is refused", |order| order.deadline = 1),
    ];
    for (rule, spoil) in spoilt {
        let mut order = good.clone();
        spoil(&mut order);
        let refused = transport.submit(scene.submission(order, &ticket).await).await;
        rules.refused(rule, refused, TransportError::is_retryable)?;
    }
    let manifest = scene.info.model.manifest();
    for parameters in ["[]", r#"{"no such parameter":1}"#].into_iter().filter(|json| manifest.check_parameters(json).is_err()) {
        let order = InferenceRequest { parameters: parameters.into(), ..good.clone() };
        let refused = transport.submit(scene.submission(order, &ticket).await).await;
        rules.refused("parameters are what the model takes", refused, TransportError::is_retryable)?;
    }
    let mut other = scene.submission(good.clone(), &ticket).await;
    other.ticket = [9; 32].into();
    rules.refused("an order's draw is its ticket's", transport.submit(other).await, TransportError::is_retryable)?;
    let mut forged = scene.submission(good, &ticket).await;
    forged.request.message.nonce = [9; 32].into();
    let id = forged.request.message.digest(&scene.trust.domain);
    rules.refused("an order is its client's", transport.submit(forged).await, TransportError::is_retryable)?;

    let unknown = transport.status(id).await;
    rules.check("a refused request is not known", unknown == Err(TransportError::UnknownTask(id)), unknown)?;
    let confirmed = transport
        .confirm_payment(PaymentConfirmation { request_id: id, proof: PaymentSubmission::Transaction([1; 32].into()) })
        .await;
    rules.check("an unknown request cannot be paid", confirmed == Err(TransportError::UnknownTask(id)), confirmed)?;
    let after = scene.fixture.balance(scene.client.address()).await;
    rules.check("refusals cost nothing", before == after, after)
}

async fn submits(rules: &mut Rules, scene: &Scene<'_>) -> Result<TaskStatus, Violation> {
    let transport = &scene.transport;
    let ticket = scene.ticket().await?;
    let submission = scene.submission(scene.order(&scene.fixture.inputs(), &ticket), &ticket).await;
    let id = submission.request.message.digest(&scene.trust.domain);
    let all = join_all((0..4).map(|_| transport.submit(submission.clone()))).await;
    let mut first: Option<TaskStatus> = None;
    for status in all {
        let status = rules.ok("a good order is taken", status)?;
        let quote = first.as_ref().map_or(&status.quote, |first| &first.quote);
        rules.check("the same order is the same request", status.request_id == id && status.quote == *quote, &status)?;
        first.get_or_insert(status);
    }
    let Some(status) = first else { return Err(Violation { rule: "a good order is taken", what: "no answer".into() }) };
    let other = scene.submission(scene.order(&scene.fixture.inputs(), &ticket), &ticket).await;
    rules.refused("a ticket is for one order", transport.submit(other).await, TransportError::is_retryable)?;
    rules.check("it waits for its payment", status.state == State::AwaitingPayment, status.state)?;
    let approved = match (&status.quote, &status.preprocessing) {
        (Some(quote), Some(certificate)) => {
            let committee = quote.committee_of(&scene.trust);
            committee.is_ok_and(|committee| certificate.verify(&quote.digest(&scene.trust.domain), &committee).is_ok())
                && quote.request_id == id
                && quote.price == scene.info.price
                && quote.price.cost(quote.max_units) == Ok(quote.total)
        }
        _ => false,
    };
    rules.check("its quote is approved", approved, &status)?;
    Ok(status)
}

async fn guards(rules: &mut Rules, scene: &Scene<'_>, quoted: &TaskStatus) -> Result<(), Violation> {
    let (transport, id) = (&scene.transport, quoted.request_id);
    let denied = |result: &Result<(), TransportError>| matches!(result, Err(TransportError::Unauthorized(_)));
    let stranger = key();
    let access = scene.access(id, &stranger, CapabilityScope::Follow).await;
    let followed = transport.updates(access.clone(), 0).await.map(drop);
    rules.check("strangers do not follow", denied(&followed), followed)?;
    let cancelled = transport.cancel(scene.access(id, &stranger, CapabilityScope::Cancel).await).await;
    rules.check("strangers do not cancel", denied(&cancelled), cancelled)?;
    let mut forged = access;
    forged.message.client = scene.client.address();
    let followed = transport.updates(forged, 0).await.map(drop);
    rules.check("a forged access is refused", denied(&followed), followed)?;
    let follow = scene.access(id, &scene.client, CapabilityScope::Follow).await;
    let cancelled = transport.cancel(follow.clone()).await;
    rules.check("who may follow may not cancel with it", denied(&cancelled), cancelled)?;
    let mut turned = follow;
    turned.message.scope = CapabilityScope::Cancel;
    let cancelled = transport.cancel(turned).await;
    rules.check("who may follow may not cancel with it", denied(&cancelled), cancelled)?;
    let unknown = scene.access([9; 32].into(), &scene.client, CapabilityScope::Follow).await;
    let unknown = transport.updates(unknown, 0).await.map(drop);
    rules.check("an unknown request is said so", matches!(unknown, Err(TransportError::UnknownTask(_))), unknown)?;

    // A hint without a payment leads nowhere.
    let hint = PaymentConfirmation { request_id: id, proof: PaymentSubmission::Transaction([1; 32].into()) };
    rules.ok("a hint is taken", transport.confirm_payment(hint).await)?;
    let status = transport.status(id).await;
    let waits = matches!(&status, Ok(status) if status.state == State::AwaitingPayment);
    rules.check("the chain is believed, not the hint", waits, status)
}

async fn serves(rules: &mut Rules, scene: &Scene<'_>, quoted: &TaskStatus) -> Result<(), Violation> {
    let (transport, id) = (&scene.transport, quoted.request_id);
    let Some(quote) = &quoted.quote else {
        return Err(Violation { rule: "its quote is approved", what: "there is none".into() });
    };
    let access = scene.access(id, &scene.client, CapabilityScope::Follow).await;
    let before = scene.fixture.balance(scene.client.address()).await;
    let early = rules.ok("a client follows before it pays", transport.updates(access.clone(), 0).await)?;
    let paid = rules.ok("a client escrows", scene.payer.pay(quote).await)?;
    let Some(transaction) = paid.transaction() else {
        return rules.check("a client on a chain pays by a transaction", false, paid);
    };
    let confirmation = PaymentConfirmation { request_id: id, proof: PaymentSubmission::Transaction(transaction) };
    rules.ok("a payment is confirmed", transport.confirm_payment(confirmation).await)?;
    rules.ok("confirming again changes nothing", transport.confirm_payment(confirmation).await)?;

    let early: Vec<_> = early.collect().await;
    let late: Vec<_> = rules.ok("updates can be followed again", transport.updates(access.clone(), 0).await)?.collect().await;
    rules.check("updates start from the beginning each time", early == late, (early.len(), late.len()))?;
    let first = early.first().and_then(|update| Some(update.as_ref().ok()?.index)).unwrap_or_default();
    for (skipped, from) in (first..).take(early.len()).enumerate() {
        let rest: Vec<_> =
            rules.ok("updates can be followed from one", transport.updates(access.clone(), from).await)?.collect().await;
        rules.check("updates go on from the one that is asked for", early.get(skipped..) == Some(&rest), (from, &rest))?;
    }
    let end = first + early.len() as u64;
    for unknown in [end, end + 1, u64::MAX] {
        let all: Vec<_> =
            rules.ok("updates can be followed from one", transport.updates(access.clone(), unknown).await)?.collect().await;
        rules.check("from one that is not known, updates begin with the first", early == all, (unknown, all))?;
    }
    let mut steps = Vec::new();
    for (index, update) in early.iter().enumerate() {
        let update = rules.ok("updates come without errors", update.as_ref())?;
        rules.check("updates are counted", update.index == first + index as u64, update)?;
        rules.check("nothing comes after the last update", update.event.is_last() == (index + 1 == early.len()), update)?;
        if let TaskEvent::Step(report) = &update.event {
            steps.push(report.step);
        }
    }
    let (first, last) = (Step::Discover as usize - 1, Step::Finalize as usize - 1);
    let expected: Vec<_> = Step::ALL.into_iter().skip(first).take(last - first + 1).filter(|step| *step != Step::Pay).collect();
    rules.check("every step of the gateway's is reported, in order", steps == expected, &steps)?;

    let last = rules.ok("the last update can be had", transport.last_update(access).await)?;
    let TaskEvent::Delivered { output, receipt } = last else {
        return rules.check("a paid request is delivered", false, last);
    };
    let verified = receipt.verify(&scene.trust);
    rules.check("the receipt verifies", verified.is_ok(), verified)?;
    rules.check("the receipt is of the output", receipt.matches_output(&output), &output)?;
    rules.check("the receipt is of the request", receipt.request_id() == id && receipt.quote == *quote, receipt.request_id())?;
    rules.check(
        "the receipt names the payment",
        receipt.payment.reference(&receipt.trust_root) == transaction,
        &receipt.payment,
    )?;
    let status = rules.ok("a finished request is remembered", transport.status(id).await)?;
    rules.check("it has completed", status.outcome() == Some(Outcome::Completed), status.state)?;
    let after = scene.fixture.balance(scene.client.address()).await;
    rules.check("the client paid the quote's total, once", before.checked_sub(after) == Some(quote.total), (before, after))
}

async fn cancels(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let transport = &scene.transport;
    let ticket = scene.ticket().await?;
    let submission = scene.submission(scene.order(&scene.fixture.inputs(), &ticket), &ticket).await;
    let status = rules.ok("a good order is taken", transport.submit(submission.clone()).await)?;
    let access = scene.access(status.request_id, &scene.client, CapabilityScope::Follow).await;
    let cancel = scene.access(status.request_id, &scene.client, CapabilityScope::Cancel).await;
    rules.ok("a client cancels", transport.cancel(cancel.clone()).await)?;
    let last = rules.ok("the last update can be had", transport.last_update(access).await)?;
    let cancelled = matches!(last, TaskEvent::Failed { outcome: Outcome::Cancelled, .. });
    rules.check("a cancelled request ends so", cancelled, last)?;
    rules.ok("cancelling again changes nothing", transport.cancel(cancel).await)?;
    let status = rules.ok("the same order is the same request", transport.submit(submission).await)?;
    rules.check("a cancelled request stays cancelled", status.outcome() == Some(Outcome::Cancelled), status.state)
}
