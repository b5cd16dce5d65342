//! What a validator checks, as pure functions: every implementation of a validator judges alike.

use std::num::NonZeroU64;

use alloy_primitives::Address;

use crate::{
    Acknowledgement, BatchRequest, Channel, ChannelCharge, Completion, CompletionAuthorization, CompletionRequest, Date, Domain,
    InferenceRequest, LedgerError, Message, NodeRecord, NodeRole, PaymentStatus, PreprocessingRequest, Quote, RegistryError,
    SignedVoucher, Subnet, TrustHistory, TrustRoot, UnixTime,
    agreement::Mismatch,
    channel::{Batch, BatchEntry, VoucherError},
    dispatch,
    lifecycle::MAX_ATTEMPTS,
    price::MAX_UNITS,
    trust::MAX_VALIDATORS,
};

/// The longest that an escrow may be locked, which the contract enforces too.
pub const MAX_ESCROW_SECONDS: u64 = 7 * 24 * 60 * 60;
/// How long a certificate still pays an escrow out, once its gateway has given it up or its quote has expired; the contract has the same.
pub const CLAIM_SECONDS: u64 = 5 * 60;
/// How long a node leaves those who may have been dispatched after it before it claims by its own word: later attempts come first, since
/// what they have given includes what was given before.
pub const CLAIM_TURN_SECONDS: u64 = 60;
/// How long a quote may name a network as it was before the last change, in seconds: parties see the chain at different times.
pub const MAX_EPOCH_AGE: u64 = 60;
/// The most bytes that a request's parameters may have.
pub const MAX_PARAMETERS: usize = 16 << 10;

/// What a validator knows when it judges.
#[derive(Clone, Copy, Debug)]
pub struct ValidationContext<'a> {
    /// The network.
    pub trust: &'a TrustHistory,
    /// The subnet of the request, as it is now; none when the registry does not know it.
    pub subnet: Option<&'a Subnet>,
    /// The live records of the request's compute nodes, as far as they are live.
    pub nodes: &'a [NodeRecord],
    /// The time of this machine, which records go by. Payments go by the chain's where that is ahead.
    pub now: UnixTime,
}

impl ValidationContext<'_> {
    fn node(&self, address: Address) -> Option<&NodeRecord> {
        self.nodes.iter().find(|record| record.node == address && record.expires_at >= self.now)
    }
}

fn refuse(reason: impl Into<String>) -> Result<(), RegistryError> {
    Err(RegistryError::Refused(reason.into()))
}

impl From<Mismatch> for RegistryError {
    fn from(mismatch: Mismatch) -> Self {
        Self::Refused(mismatch.to_string())
    }
}

/// Checks that a client signed the order that is quoted. It costs one signature and no question, so it comes before anything else that is
/// done for a quote.
pub fn signed_order(request: &PreprocessingRequest, domain: &Domain) -> Result<(), RegistryError> {
    let PreprocessingRequest { request: order, quote } = request;
    let request_id = order.verify(domain).map_err(|error| RegistryError::Refused(format!("request: {error}")))?;
    Ok(quote.fits(&order.message, &request_id)?)
}

/// Judges a quote once [`signed_order`] has passed: price, node, liveness, subnet, split and times.
pub fn preprocessing(request: &PreprocessingRequest, context: &ValidationContext<'_>) -> Result<(), RegistryError> {
    let PreprocessingRequest { request: order, quote } = request;
    if order.message.parameters.len() > MAX_PARAMETERS {
        return refuse(format!(
            "request.parameters: has {} bytes, at most {MAX_PARAMETERS} are taken",
            order.message.parameters.len()
        ));
    }
    terms(&order.message, quote, context)?;
    if !context.trust.is_recent(quote, MAX_EPOCH_AGE) {
        return refuse("quote.epoch: others judge since then, for too long: quote again");
    }
    let now = context.trust.now(context.now);
    if now >= quote.expiry {
        return refuse("quote.expiry: is in the past");
    }
    if quote.expiry - now > MAX_ESCROW_SECONDS {
        return refuse("quote.expiry: is more than a week away");
    }
    able(&order.message, context.node(quote.compute).ok_or(RegistryError::UnknownNode(quote.compute))?)
}

/// Checks that the quote's own gateway wants this completion approved, or the node that has served last wants what the gateway has
/// acknowledged; that it is the one that what was delivered leads to; and that the gateway had those serve who did. Returns it. It costs a
/// few signatures and no question, so it comes before anything else that is done for a completion.
///
/// What a node brings counts only once the gateway will not complete the request any more: that is the caller's to ask the chain for, see
/// [`claiming_attempt`] and [`claimable_from`].
pub fn authorization(request: &CompletionRequest, domain: &Domain) -> Result<Completion, RegistryError> {
    let CompletionRequest { quote, delivery, dispatches, authorization, .. } = request;
    let completion = delivery.completion(quote).map_err(RegistryError::Delivery)?;
    let CompletionAuthorization { author, completion: wanted } = authorization.message;
    let last = completion.contributions.last().map(|contribution| contribution.compute);
    if author != quote.gateway && Some(author) != last {
        refuse("authorization.author: is neither the quote's gateway nor the node that has served last")?;
    }
    if wanted != completion.struct_hash() {
        refuse("authorization.completion: is another one")?;
    }
    authorization.verify(domain).map_err(|error| RegistryError::Refused(format!("authorization: {error}")))?;
    let nodes: Vec<_> = delivery.results.iter().map(|result| (result.message.compute, result.message.resumed_from)).collect();
    dispatch::verify(dispatches, quote, &nodes, domain)?;
    if author != quote.gateway {
        acknowledged(request, domain)?;
    }
    Ok(completion)
}

/// Checks that the quote's gateway has got what a node brings: nobody else but the node has seen it.
fn acknowledged(request: &CompletionRequest, domain: &Domain) -> Result<(), RegistryError> {
    let Some(acknowledgement) = &request.acknowledgement else { return refuse("acknowledgement: is missing") };
    let Acknowledgement { gateway, result } = acknowledgement.message;
    if gateway != request.quote.gateway {
        return refuse("acknowledgement.gateway: is not the quote's");
    }
    if request.delivery.last().map(Message::struct_hash) != Some(result) {
        return refuse("acknowledgement.result: is another one");
    }
    let signed = acknowledgement.verify(domain);
    signed.map(drop).map_err(|error| RegistryError::Refused(format!("acknowledgement: {error}")))
}

/// The attempt of the node that brings its own completion, which its gateway has not brought; none when the gateway does.
pub fn claiming_attempt(request: &CompletionRequest) -> Option<u8> {
    let is_gateway = request.authorization.message.author == request.quote.gateway;
    request.dispatches.last().filter(|_| !is_gateway).map(|dispatch| dispatch.message.attempt)
}

/// From when on a node may bring its own completion, as the chain has the escrow: once its gateway has given it up or let it expire, and after
/// those that may have been dispatched later.
///
/// # Errors
/// When the escrow is not one of the quote, or has ended.
pub fn claimable_from(quote: &Quote, attempt: u8, status: &PaymentStatus) -> Result<UnixTime, RegistryError> {
    let hash = quote.struct_hash();
    let since = match status {
        PaymentStatus::Held { quote: held, .. } if *held == hash => quote.expiry + 1,
        PaymentStatus::GivenUp { quote: held, refundable_at } if *held == hash => refundable_at.saturating_sub(CLAIM_SECONDS + 1),
        other => {
            return Err(RegistryError::Refused(format!("the chain does not hold this quote's payment: it is {other}")));
        }
    };
    let later = u64::from((MAX_ATTEMPTS - 1).saturating_sub(attempt));
    Ok(since.saturating_add(later * CLAIM_TURN_SECONDS))
}

/// Judges what was delivered once [`authorization`] has passed: the compute nodes' signatures, and that every digest is the order's. An
/// escrow is the chain's to confirm: the caller compares [`crate::PaymentStatus`], or for a voucher asks [`voucher`].
pub fn completion(request: &CompletionRequest, context: &ValidationContext<'_>) -> Result<(), RegistryError> {
    let CompletionRequest { request: order, quote, delivery, voucher, preprocessing, .. } = request;
    let order = &order.message;
    // Approvals are remembered until then, those of a voucher's quotes as well, which the chain does not bound.
    if quote.expiry.saturating_sub(context.trust.now(context.now)) > MAX_ESCROW_SECONDS {
        return refuse("quote.expiry: is more than a week away");
    }
    // The order is bound by its digest; its signature was judged in preprocessing and its payment is on chain.
    let network = &context.trust.current().trust;
    quote.fits(order, &order.digest(&network.domain))?;
    match preprocessing {
        Some(approved) => {
            let (_, committee) = context.trust.of(quote)?;
            let approved = approved.verify(&quote.digest(&network.domain), &committee);
            approved.map_err(|error| RegistryError::Refused(format!("preprocessing: {error}")))?;
        }
        None => terms(order, quote, context)?,
    }
    delivery.verify(&network.domain).map_err(|error| RegistryError::Refused(format!("result: {error}")))?;
    if let Some(voucher) = voucher {
        voucher.verify(quote, network).map_err(|error| RegistryError::Refused(error.to_string()))?;
    }
    for result in &delivery.results {
        let result = &result.message;
        result.fits(order, quote)?;
        match context.node(result.compute) {
            // What a node has given counts, though it is gone, or is not what it was.
            _ if result.finish.is_none() => {}
            Some(node) if result.confinement > node.confinement => {
                return refuse("result.confinement: is more than the node's record says");
            }
            Some(node) => able(order, node)?,
            None => return Err(RegistryError::UnknownNode(result.compute)),
        }
    }
    Ok(())
}

/// Judges a batch by what it says of itself and its gateway's signature, but not its requests' signatures
/// ([`crate::channel::BatchEntry::verify`]), nor whether any of them has been settled before, which the caller knows.
pub fn settlement(request: &BatchRequest, trust: &TrustRoot) -> Result<(), RegistryError> {
    let BatchRequest { batch, committees, request } = request;
    let gateway = request.message.gateway;
    if request.message.settlement != batch.settlement.struct_hash() {
        return refuse("request.settlement: is another one");
    }
    if committees.len() != batch.settlement.charges.len() {
        return refuse("committees: there has to be one for each charge, in their order");
    }
    if committees.iter().any(|committee| committee.members.len() > MAX_VALIDATORS) {
        return refuse(format!("committees: none has more than {MAX_VALIDATORS} members"));
    }
    let own = |entry: &BatchEntry| entry.quote.gateway == gateway && entry.payment.terms.gateway == gateway;
    if !batch.entries.iter().all(own) {
        return refuse("request.gateway: has not served all of these requests");
    }
    request.verify(&trust.channel_domain()).map_err(|error| RegistryError::Refused(format!("request: {error}")))?;
    batch.check(trust.treasury).map_err(|error| RegistryError::Refused(error.to_string()))
}

/// Judges what a batch charges a channel by what the chain holds of it: none of its requests has been settled before.
pub fn charge(batch: &Batch, charge: &ChannelCharge, channel: Option<&Channel>, now: UnixTime) -> Result<(), RegistryError> {
    let id = charge.channel;
    let Some(channel) = channel else { return refuse(format!("channel {id}: was never opened")) };
    let Channel { deposit, settled, numbers, expiry, open } = *channel;
    let vouchers = batch.entries.iter().map(|entry| &entry.payment.voucher);
    if let Some(settled) = vouchers.filter(|voucher| voucher.channel == id).find(|voucher| numbers.contains(voucher.number)) {
        return refuse(format!("request {}: its number {} was settled or given up before", settled.request_id, settled.number));
    }
    let checks = [
        (charge.numbers.covers(&numbers), "has numbers that are over and would not be".to_owned()),
        (open, "is closed".to_owned()),
        (settled == charge.settled_before, format!("was charged {settled}, not {}", charge.settled_before)),
        (charge.settled_after <= deposit, format!("has {deposit}, not {}", charge.settled_after)),
        (now <= expiry, format!("expired at {}", Date(expiry))),
    ];
    match checks.into_iter().find(|(good, _)| !good) {
        Some((_, problem)) => refuse(format!("channel {id}: {problem}")),
        None => Ok(()),
    }
}

/// Judges a voucher by what the chain holds of its channel. Whether the client promised it, [`crate::SignedVoucher::verify`] says.
pub fn voucher(payment: &SignedVoucher, channel: Option<&Channel>, quote: &Quote) -> Result<(), VoucherError> {
    let Some(channel) = channel else {
        return Err(VoucherError::new("channel", "was never opened: open it first"));
    };
    let (cumulative, number) = (payment.voucher.cumulative, payment.voucher.number);
    let checks = [
        (channel.open, "channel", "is closed: open another".to_owned()),
        (!channel.numbers.contains(number), "number", format!("{number} is over: take the next one")),
        (quote.expiry < channel.expiry, "channel", format!("expires at {}, before the quote: extend it", Date(channel.expiry))),
        (
            cumulative <= channel.deposit,
            "cumulative",
            format!("{cumulative} is more than the deposit of {}: top the channel up", channel.deposit),
        ),
    ];
    match checks.into_iter().find(|(good, ..)| !good) {
        Some((_, field, problem)) => Err(VoucherError::new(field, problem)),
        None => Ok(()),
    }
}

/// Checks of a quote what the contract does when it is paid into escrow, so that nothing is signed or charged for one that cannot be.
pub fn payable(quote: &Quote, now: UnixTime) -> Result<(), LedgerError> {
    let left = quote.expiry.checked_sub(now).filter(|left| *left > 0);
    let checks = [
        (!quote.total.is_zero(), "total", "is zero"),
        (quote.gateway != Address::ZERO, "gateway", "must not be zero"),
        (quote.compute != Address::ZERO, "compute", "must not be zero"),
        (quote.split.is_valid(), "split", "is more than the whole"),
        (left.is_some(), "expiry", "has passed: ask for another quote"),
        (left.is_none_or(|left| left <= MAX_ESCROW_SECONDS), "expiry", "is more than a week away"),
    ];
    match checks.into_iter().find(|(good, ..)| !good) {
        Some((_, field, problem)) => Err(LedgerError::InvalidQuote { field: field.into(), problem: problem.into() }),
        None => Ok(()),
    }
}

/// Do order and quote fit each other, the subnet and the network?
fn terms(order: &InferenceRequest, quote: &Quote, context: &ValidationContext<'_>) -> Result<(), RegistryError> {
    let Some(subnet) = context.subnet else { return Err(RegistryError::UnknownSubnet(order.subnet)) };
    let Some(listed) = subnet.model(&order.model_digest) else {
        return refuse("request.modelDigest: the subnet does not offer this model");
    };
    quote.fits(order, &quote.request_id)?;
    context.trust.of(quote)?;
    let checks = [
        (order.subnet == subnet.id(), "request.subnet: is another subnet"),
        (subnet.has_gateway(&quote.gateway), "quote.gateway: is no gateway of the subnet"),
        (quote.price == listed.price, "quote.price: is not the subnet's"),
        (quote.max_units.input.max(quote.max_units.output) <= MAX_UNITS, "quote.maxUnits: are more than are counted"),
        (!quote.total.is_zero(), "quote.total: is zero"),
        (quote.split == subnet.split && quote.split.is_valid(), "quote.split: is not the subnet's"),
    ];
    match checks.iter().find(|(good, _)| !good) {
        Some((_, reason)) => refuse(*reason),
        None => Ok(()),
    }
}

/// Is the live compute node in the subnet, and in possession of the model?
fn able(order: &InferenceRequest, record: &NodeRecord) -> Result<(), RegistryError> {
    let checks = [
        (record.role == NodeRole::Compute, "compute: is no compute node"),
        (record.subnet == order.subnet, "compute: is in another subnet"),
        (record.models.contains(&order.model_digest), "compute: does not have the model"),
    ];
    match checks.iter().find(|(good, _)| !good) {
        Some((_, reason)) => refuse(*reason),
        None => Ok(()),
    }
}

/// Checks an order's own fields, without a look at the network. Returns how many seconds are left until its deadline.
pub fn order(order: &InferenceRequest, now: UnixTime) -> Result<NonZeroU64, (&'static str, String)> {
    if order.client == Address::ZERO {
        return Err(("request.client", "is zero: name the account that pays".into()));
    }
    if order.parameters.len() > MAX_PARAMETERS {
        return Err(("request.parameters", format!("has {} bytes, at most {MAX_PARAMETERS} are taken", order.parameters.len())));
    }
    if !serde_json::from_str::<serde_json::Value>(&order.parameters).is_ok_and(|parameters| parameters.is_object()) {
        return Err(("request.parameters", "is no JSON object: write {} for none".into()));
    }
    order
        .deadline
        .checked_sub(now)
        .and_then(NonZeroU64::new)
        .ok_or_else(|| ("request.deadline", format!("{} is not after the current time {}", Date(order.deadline), Date(now))))
}
