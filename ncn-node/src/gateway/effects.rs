//! What a gateway does in each state. Every effect is idempotent, and ends with the event that says how it went.

use std::time::{Duration, Instant};

use ncn_client::Backoff;
use ncn_core::{
    B256, Committee, CompletionAuthorization, CompletionRequest, Effect, Epoch, Event, LedgerError, Message as _, Outcome,
    PaymentLedgerExt as _, PaymentRef, PaymentStatus, PayoutSchedule, PreprocessingRequest, QuorumCertificate, Quote, Receipt,
    RegistryError, Settlement, Signature, Signed, State, Step, TaskEvent,
    receipt::{self, Payment},
};

use super::{
    Gateway, execution, log,
    reserve::reserve_node,
    task::{Progress, Task},
};
use crate::measures;
use ncn_client::unix_now;

/// How often the validators are asked that give too few approvals: while the client waits for a quote; once it has paid; and for the whole of an output
/// of which the beginning may be approved without the end, for some five seconds.
const PREPROCESSING_TRIES: u32 = 3;
const WHOLE_TRIES: u32 = 8;
const COMPLETION_TRIES: u32 = 20;
/// How often sealing a receipt is tried.
const SEAL_TRIES: u32 = 10;
/// How long a client may take to agree to a refund before the gateway gives its request up without.
const CONSENT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is looked whether a request that was given up can be refunded.
const REFUND_POLL: Duration = Duration::from_secs(15);
/// How long the chain is not looked at without a hint: at first, and at most.
const PAYMENT_POLL: Duration = Duration::from_secs(2);
const PAYMENT_POLL_MOST: Duration = Duration::from_secs(30);
/// How often a hint has it look at once; anyone may give one. After that, it looks once a second at most.
const PROMPT_LOOKS: u32 = 8;
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Does what a state asks for.
pub(super) async fn perform(gateway: &Gateway, task: &Task, effect: Effect) -> Event {
    let progress = task.progress();
    let outcome = match effect {
        Effect::Reserve => reserve(gateway, task).await,
        Effect::RequestPreprocessing => preprocessing(gateway, task, &progress).await,
        Effect::AwaitPayment => return paid(gateway, task).await,
        Effect::Dispatch { attempt } => execution::dispatch(gateway, task, &progress, attempt).await,
        Effect::RequestCompletion => completion(gateway, task, &progress).await,
        Effect::Settle => settle(gateway, task, &progress).await,
        Effect::Refund => refund(gateway, task, &progress).await,
        _ => None,
    };
    match outcome {
        Some(event) => event,
        // A state was reached without what leads to it: a journal that lost events. It is not guessed at; the client's refund at
        // expiry does not need this gateway.
        None => {
            tracing::error!(request = %task.request_id, ?effect, "the journal is incomplete");
            futures::future::pending().await
        }
    }
}

/// Finds a live compute node with the model that has a place, and quotes.
async fn reserve(gateway: &Gateway, task: &Task) -> Option<Event> {
    let order = &task.request.message;
    let Epoch { since: epoch, trust } = match gateway.ledger.trust(0).await {
        Ok(history) => history.current().clone(),
        Err(error) => return Some(Event::Refused(error.to_string())),
    };
    let compute = match reserve_node(gateway, task, order.deadline).await {
        Ok(compute) => compute,
        Err(reason) => return Some(Event::Refused(reason)),
    };
    let info = gateway.models.get(&order.model_digest)?;
    let (max_units, total) = match info.maximum(&task.inputs(), &order.parameters) {
        Ok(maximum) => maximum,
        Err(error) => return Some(Event::Refused(error.to_string())),
    };
    let quote = Quote {
        request_id: task.request_id,
        client: order.client,
        gateway: gateway.address(),
        compute: compute.address(),
        model_digest: order.model_digest,
        price: info.price,
        max_units,
        total,
        split: gateway.subnet.message.split,
        expiry: order.deadline,
        trust_root: trust.hash(),
        epoch,
        salt: task.salt,
        committee: trust.committee(&task.salt, &task.request_id).struct_hash(),
    };
    Some(Event::Reserved { quote: Box::new(quote), trust_root: Box::new(trust) })
}

async fn preprocessing(gateway: &Gateway, task: &Task, progress: &Progress) -> Option<Event> {
    let quote = progress.quote.clone()?;
    let digest = quote.digest(&gateway.domain);
    let request = PreprocessingRequest { request: task.request.clone(), quote };
    let committee = progress.committee()?;
    let turn = gateway.judged.turn().await;
    let started = Instant::now();
    let ask = |_| gateway.registry.preprocessing(request.clone());
    let final_word = |error: &RegistryError| !error.is_retryable();
    let approved = approved(&committee, digest, PREPROCESSING_TRIES, final_word, ask).await;
    turn.end();
    task.report(Step::Preprocessing, gateway.address(), started.elapsed());
    Some(approved.map_or_else(Event::Refused, Event::Approved))
}

/// Asks the validators, again when too few of them answer; `ask` is told whether it is the first time. What the registry brings is
/// believed only when it verifies: money would be paid out, or asked for, on approvals that the client then rejects.
async fn approved<A, F>(
    committee: &Committee,
    digest: B256,
    tries: u32,
    is_final: impl Fn(&RegistryError) -> bool,
    ask: A,
) -> Result<QuorumCertificate, String>
where
    A: Fn(bool) -> F,
    F: Future<Output = Result<QuorumCertificate, RegistryError>>,
{
    let mut backoff = Backoff::new();
    let mut left = tries;
    loop {
        let is_first = left == tries;
        left -= 1;
        let (problem, retryable) = match ask(is_first).await {
            Ok(certificate) => match certificate.verify(&digest, committee) {
                Ok(()) => return Ok(certificate),
                Err(error) => (format!("the registry's certificate does not verify: {error}"), true),
            },
            Err(error) => (error.to_string(), !is_final(&error)),
        };
        if !retryable || left == 0 {
            return Err(problem);
        }
        backoff.pause().await;
    }
}

/// Waits until the chain holds the payment.
pub(super) async fn paid(gateway: &Gateway, task: &Task) -> Event {
    let Some(quote) = task.quote() else { return futures::future::pending().await };
    let (mut poll, mut looks) = (PAYMENT_POLL, 0_u32);
    loop {
        let started = Instant::now();
        looks = looks.saturating_add(1);
        match gateway.ledger.payment_of(&quote).await {
            Ok(Some(by)) => {
                task.report(Step::Confirm, gateway.address(), started.elapsed());
                return Event::Paid(by);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(request = %task.request_id, %error, "cannot see whether the request is paid"),
        }
        // A hint, from the client or the chain's events, or a look now and then in case every hint got lost.
        let hinted = tokio::time::timeout(poll, task.hinted()).await.is_ok();
        if hinted && looks > PROMPT_LOOKS {
            tokio::time::sleep_until((started + LOOK_PAUSE).into()).await;
        }
        poll = if hinted && looks <= PROMPT_LOOKS { PAYMENT_POLL } else { (2 * poll).min(PAYMENT_POLL_MOST) };
    }
}

/// Whether there is a node that has not been tried.
async fn has_others(gateway: &Gateway, task: &Task) -> bool {
    let nodes = gateway.nodes.with_model(&task.request.message.model_digest).await;
    nodes.iter().any(|node| !task.has_tried(node.address()))
}

async fn completion(gateway: &Gateway, task: &Task, progress: &Progress) -> Option<Event> {
    let (quote, delivery) = (progress.quote.clone()?, progress.delivery.clone()?);
    let completion = match delivery.completion(&quote) {
        Ok(completion) => completion,
        Err(error) => return Some(Event::Refused(error.to_string())),
    };
    let digest = completion.digest(&gateway.domain);
    let voucher = progress.voucher();
    let started = Instant::now();
    let authorization = CompletionAuthorization { author: quote.gateway, completion: completion.struct_hash() };
    let authorization = match Signed::sign(authorization, &gateway.domain, &*gateway.signer).await {
        Ok(authorization) => authorization,
        Err(error) => return Some(Event::Refused(format!("the gateway's key: {error}"))),
    };
    let dispatches = progress.dispatches.clone();
    let order = task.request.clone();
    let request = CompletionRequest {
        request: order,
        quote,
        delivery: delivery.clone(),
        preprocessing: None,
        voucher,
        dispatches,
        acknowledgement: None,
        authorization,
    };
    // Where it is refused once, the subnet may have changed since the quote: then its approval shows by which terms it was paid.
    let approval = progress.preprocessing.as_ref();
    let ask = |first: bool| {
        let preprocessing = approval.filter(|_| !first).cloned();
        gateway.registry.completion(CompletionRequest { preprocessing, ..request.clone() })
    };
    // What was signed before the end may be approved without it; and where nothing was, what another node gives.
    let is_last_chance = progress.output.is_some() || task.prefix().is_none() && !has_others(gateway, task).await;
    let tries = if is_last_chance { COMPLETION_TRIES } else { WHOLE_TRIES };
    // What was paid and has run is not given back on a word that no validator has signed.
    let approved = approved(&progress.committee()?, digest, tries, |_| false, ask).await;
    task.report(Step::Completion, gateway.address(), started.elapsed());
    let last = delivery.last().map(|result| result.compute);
    let failed = || {
        if let Some(node) = last {
            gateway.nodes.reputation().failed(node);
        }
    };
    let certificate = match approved {
        Ok(certificate) => certificate,
        Err(reason) => {
            failed();
            return Some(if is_last_chance { Event::Refused(reason) } else { Event::ExecutionFailed { reason, retryable: true } });
        }
    };
    if progress.output.is_some() {
        return Some(Event::Completed { certificate, output: None });
    }
    Some(match execution::collect(gateway, task, &delivery, &certificate).await {
        Ok(output) => {
            if let Some(node) = last {
                gateway.nodes.reputation().served(node);
            }
            Event::Completed { certificate, output: Some(output) }
        }
        Err(error) => {
            tracing::warn!(request = %task.request_id, %error, "a node does not hand its output over");
            failed();
            Event::ExecutionFailed { reason: error.to_string(), retryable: true }
        }
    })
}

async fn settle(gateway: &Gateway, task: &Task, progress: &Progress) -> Option<Event> {
    let (quote, delivery, certificate) = (progress.quote.clone()?, progress.delivery.clone()?, progress.approvals.clone()?);
    let settlement = match Settlement::new(quote, progress.committee()?, delivery, certificate) {
        Ok(settlement) => settlement,
        Err(error) => return Some(Event::SettlementImpossible(error.to_string())),
    };
    let started = Instant::now();
    let mut backoff = Backoff::new();
    loop {
        let error = match gateway.ledger.settle(&settlement).await {
            Ok(by) => {
                task.report(Step::Finalize, gateway.address(), started.elapsed());
                return Some(Event::Settled(by));
            }
            Err(error) => error,
        };
        if let Some(event) = decided(gateway, &settlement.quote, progress, &error).await {
            return Some(event);
        }
        backoff.pause().await;
    }
}

async fn refund(gateway: &Gateway, task: &Task, progress: &Progress) -> Option<Event> {
    let quote = progress.quote.as_ref()?;
    if progress.voucher().is_none() && task.consent().is_none() {
        task.publish(TaskEvent::GivenUp(progress.failure.clone().unwrap_or_default()));
        // Most clients agree at once, which saves a transaction and minutes.
        let _ = tokio::time::timeout(CONSENT_TIMEOUT, task.agreed()).await;
    }
    let mut backoff = Backoff::new();
    loop {
        let consent = task.consent();
        let error = match gateway.ledger.refund(quote, consent.as_ref()).await {
            Ok(by) => {
                if task.is_relayed() {
                    gateway.redemptions.refunded(quote.client);
                }
                return Some(Event::Refunded(by));
            }
            Err(error) => error,
        };
        if let Some(event) = decided(gateway, quote, progress, &error).await {
            return Some(event);
        }
        if let (LedgerError::NotRefundable(at), None) = (&error, consent) {
            // By the chain's clock, which may be another one.
            let left = Duration::from_secs(at.saturating_sub(gateway.clock.last())).min(REFUND_POLL);
            let _ = tokio::time::timeout(left, task.agreed()).await;
        }
        backoff.pause().await;
    }
}

/// What the ledger holds decides, not the error: the end of a payment that a call did not move. None while the call is to be made again.
async fn decided(gateway: &Gateway, quote: &Quote, progress: &Progress, error: &LedgerError) -> Option<Event> {
    let settling = progress.lifecycle.state() == State::Settling;
    let status = gateway.ledger.status(quote.client, quote.request_id).await;
    match &status {
        Ok(status @ (PaymentStatus::Earned { .. } | PaymentStatus::PaidOut { .. })) => {
            if let Some(event) = completed(status, progress) {
                return Some(event);
            }
        }
        Ok(PaymentStatus::Refunded { by }) => return Some(Event::Refunded(by.clone())),
        // Taken back with the blocks that held it. The client's transaction waits again, and will mostly be taken again.
        Ok(PaymentStatus::Unpaid) if gateway.clock.now().await > quote.expiry => return Some(Event::PaymentLost),
        Ok(PaymentStatus::Held { .. } | PaymentStatus::GivenUp { .. }) if settling && !error.is_retryable() => {
            return Some(Event::SettlementImpossible(error.to_string()));
        }
        Ok(_) | Err(_) => {}
    }
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    tracing::warn!(request = %quote.request_id, %error, status, "the payment does not move; trying again");
    None
}

/// Whether a payment that is earned was earned by the completion that the request has.
fn completed(status: &PaymentStatus, progress: &Progress) -> Option<Event> {
    let own = || progress.delivery.as_ref()?.completion(progress.quote.as_ref()?).ok();
    let own = own().map(|completion| completion.struct_hash());
    if let Some(by) = own.and_then(|own| status.settled_for(own)) {
        return Some(Event::Settled(by.clone()));
    }
    let PaymentStatus::PaidOut { completion, .. } = status else { return None };
    (*completion).or(own).map(Event::PaidElsewhere)
}

/// Tells the client how it ended, and lets go of the compute nodes.
pub(super) async fn finish(gateway: &Gateway, task: &Task) {
    let progress = task.progress();
    let State::Ended(outcome) = progress.lifecycle.state() else { return };
    let reserved = progress.quote.as_ref().map(|quote| quote.compute);
    let failed = |reason: String| TaskEvent::Failed { outcome, reason };
    let update = if outcome == Outcome::Completed && progress.settlement.is_some() {
        let output = progress.output.clone().unwrap_or_default();
        let mut backoff = Backoff::new();
        let mut issued = issue(gateway, task, progress.clone()).await;
        for _ in 1..SEAL_TRIES {
            if issued.is_ok() {
                break;
            }
            backoff.pause().await;
            issued = issue(gateway, task, progress.clone()).await;
        }
        match issued {
            Ok(receipt) => {
                // What had ended before a restart was counted then.
                if let Some(took) = task.took() {
                    log::delivered(&receipt, took);
                    measures::delivered(&receipt);
                    gateway.history.delivered(&receipt, &task.steps());
                    gateway.served.count(receipt.quote.model_digest, receipt.usage().units());
                }
                TaskEvent::Delivered { output, receipt: Box::new(receipt) }
            }
            Err(reason) => failed(format!("no receipt could be issued: {reason}")),
        }
    } else {
        failed(progress.failure.unwrap_or_else(|| "no reason is known".into()))
    };
    task.publish(update);
    for node in task.tried().into_iter().chain(reserved) {
        if let Some(compute) = gateway.nodes.get(node) {
            compute.release(task.request_id).await;
        }
    }
}

/// Puts the receipt together and seals it.
async fn issue(gateway: &Gateway, task: &Task, progress: Progress) -> Result<Receipt, String> {
    let Progress {
        quote: Some(quote),
        trust_root: Some(trust_root),
        preprocessing: Some(preprocessing),
        payment: Some(payment),
        delivery: Some(delivery),
        approvals: Some(approvals),
        settlement: Some(settlement),
        ..
    } = progress
    else {
        return Err("the journal is incomplete".into());
    };
    let payment = match (payment, settlement) {
        (PaymentRef::Voucher(voucher), PaymentRef::Voucher(_)) => Payment::Channel(voucher),
        (PaymentRef::Transaction(transaction), PaymentRef::Transaction(settlement)) => Payment::Escrow { transaction, settlement },
        (payment, settlement) => return Err(format!("{settlement} does not settle {payment}")),
    };
    let completion = delivery.completion(&quote).map_err(|error| error.to_string())?;
    let payments = PayoutSchedule::new(&quote, &completion, &approvals.validators(), trust_root.treasury);
    let mut receipt = Receipt {
        version: receipt::VERSION,
        trust_root,
        request: task.request.clone(),
        quote,
        preprocessing,
        payment,
        delivery,
        completion,
        approvals,
        payments: payments.map_err(|error| error.to_string())?,
        issued_at: unix_now(),
        seal: task.request.signature,
    };
    let digest = receipt.sealed().digest(&gateway.domain);
    receipt.seal = Signature::sign(&digest, &*gateway.signer).await.map_err(|error| error.to_string())?;
    Ok(receipt)
}
