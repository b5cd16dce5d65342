//! One payment per request: into escrow, out of it, back.

use futures::StreamExt as _;

use super::{LIFETIME, PRICE, PURSE, Scene};
use crate::{
    Amount, Authorisation, ChannelPayment, ChannelTerms, EscrowState, LedgerError, Message as _, PaymentLedgerExt as _,
    PaymentTree,
    conformance::{Rules, Violation, key, rand_bytes},
};

pub(super) async fn pays_in(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let quote = scene.quote().await?;
    let state = scene.paying.escrow_state(quote.client, quote.request_id).await;
    rules.check("an unpaid request has no escrow", state == Ok(EscrowState::None), state)?;

    let mut foreign = quote.clone();
    foreign.client = scene.stranger.account();
    rules.refused("nobody escrows for another", scene.paying.escrow(&foreign).await, LedgerError::is_retryable)?;
    let mut nothing = quote.clone();
    nothing.total = Amount::ZERO;
    rules.refused("nothing cannot be escrowed", scene.paying.escrow(&nothing).await, LedgerError::is_retryable)?;
    let mut late = quote.clone();
    late.expiry = 1;
    rules.refused("an expired quote is not escrowed", scene.paying.escrow(&late).await, LedgerError::is_retryable)?;
    let mut long = quote.clone();
    long.expiry += crate::validation::MAX_ESCROW_SECONDS + 1;
    rules.refused("an escrow is not locked for ever", scene.paying.escrow(&long).await, LedgerError::is_retryable)?;
    let mut greedy = quote.clone();
    greedy.split.treasury_bps = 9_000;
    rules.refused("a split is no more than the whole", scene.paying.escrow(&greedy).await, LedgerError::is_retryable)?;
    let mut dear = quote.clone();
    dear.total = Amount::new(PRICE.units() * 1_000);
    let refused = scene.paying.escrow(&dear).await;
    let poor = matches!(&refused, Err(LedgerError::InsufficientFunds { needed, .. }) if *needed == dear.total);
    rules.check("lack of funds is said so", poor, refused)?;
    let before = scene.balance(&scene.client).await;
    rules.check("what is refused costs nothing", before == PURSE, before)?;

    let transaction = rules.ok("a client escrows", scene.paying.escrow(&quote).await)?;
    let expected = EscrowState::Escrowed { quote: quote.struct_hash(), transaction };
    let state = scene.stranger.escrow_state(quote.client, quote.request_id).await;
    rules.check("everyone sees the escrow and its transaction", state == Ok(expected), state)?;
    let paid = scene.settling.payment_of(&quote).await;
    rules.check("the payment of the quote is found", paid == Ok(Some(transaction)), paid)?;
    let again = scene.paying.escrow(&quote).await;
    rules.check("escrowing again is the same transaction", again == Ok(transaction), again)?;
    let after = scene.balance(&scene.client).await;
    rules.check("escrowing takes the total, once", before.checked_sub(after) == Some(PRICE), after)?;

    let mut other = quote.clone();
    other.gateway = scene.stranger.account();
    rules.refused("one request has one escrow", scene.paying.escrow(&other).await, LedgerError::is_retryable)?;
    let paid = scene.settling.payment_of(&other).await;
    rules.check("another quote is not paid by it", paid == Ok(None), paid)?;
    let squatted = scene.stranger.escrow_state(scene.stranger.account(), quote.request_id).await;
    rules.check("a request id is its client's own", squatted == Ok(EscrowState::None), squatted)
}

pub(super) async fn pays_out(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let threshold = scene.threshold();
    let quote = scene.quote().await?;
    let unpaid = scene.settling.settle(&scene.settlement(&quote, threshold).await).await;
    rules.refused("what is not paid is not settled", unpaid, LedgerError::is_retryable)?;
    rules.ok("a client escrows", scene.paying.escrow(&quote).await)?;

    let few = scene.settling.settle(&scene.settlement(&quote, threshold - 1).await).await;
    rules.refused("too few approvals do not settle", few, LedgerError::is_retryable)?;
    let mut moved = scene.settlement(&quote, threshold).await;
    moved.result.message.compute = scene.stranger.account();
    rules.refused("approvals bind the payee", scene.settling.settle(&moved).await, LedgerError::is_retryable)?;
    let mut changed = scene.settlement(&quote, threshold).await;
    changed.quote.gateway = scene.stranger.account();
    rules.refused("approvals bind the quote", scene.settling.settle(&changed).await, LedgerError::is_retryable)?;
    let other = scene.quote().await?;
    let mut replayed = scene.settlement(&quote, threshold).await;
    replayed.certificate = scene.settlement(&other, threshold).await.certificate;
    let refused = scene.settling.settle(&replayed).await;
    rules.refused("another request's approvals do not settle", refused, LedgerError::is_retryable)?;

    let settlement = scene.settlement(&quote, threshold).await;
    for ledger in [&scene.stranger, &scene.paying] {
        rules.refused("only the quote's gateway settles", ledger.settle(&settlement).await, LedgerError::is_retryable)?;
    }
    let payees = settlement.certificate.validators();
    let tree = PaymentTree::new(&quote, settlement.result.message.compute, &payees, scene.trust.treasury);
    let tree = rules.ok("a payment can be split", tree)?;
    let mut before = Vec::new();
    for payout in &tree.payouts {
        before.push(rules.ok("balances can be read", scene.paying.balance(payout.address).await)?);
    }
    let transaction = rules.ok("an approved completion settles", scene.settling.settle(&settlement).await)?;
    for (payout, before) in tree.payouts.iter().zip(before) {
        let after = rules.ok("balances can be read", scene.paying.balance(payout.address).await)?;
        rules.check(
            "everyone gets its part, to the unit",
            after.checked_sub(before) == Some(payout.amount),
            (payout, before, after),
        )?;
    }
    let state = scene.paying.escrow_state(quote.client, quote.request_id).await;
    let completed = EscrowState::Completed { transaction, compute: Some(settlement.result.message.compute) };
    rules.check("a settled request is completed, and its state names who computed", state == Ok(completed), state)?;
    let again = scene.settling.settle(&settlement).await;
    rules.check("settling again is the same transaction", again == Ok(transaction), again)?;
    let mut others = settlement;
    others.result.message.compute = scene.stranger.account();
    let refused = scene.settling.settle(&others).await;
    rules.refused("another node's completion is not taken for this one's", refused, LedgerError::is_retryable)?;
    let gateway = scene.balance(&scene.gateway).await;
    rules.refused("what is settled is not refunded", scene.settling.refund(&quote).await, LedgerError::is_retryable)?;
    rules.refused("what is settled is not escrowed again", scene.paying.escrow(&quote).await, LedgerError::is_retryable)?;
    rules.check("settling pays once", scene.balance(&scene.gateway).await == gateway, gateway)
}

pub(super) async fn pays_back(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let threshold = scene.threshold();
    let given_up = scene.quote().await?;
    rules.ok("a client escrows", scene.paying.escrow(&given_up).await)?;
    let before = scene.balance(&scene.client).await;
    let early = scene.stranger.refund(&given_up).await;
    rules.refused("before expiry only the gateway gives back", early, LedgerError::is_retryable)?;
    let transaction = rules.ok("the gateway gives back at any time", scene.settling.refund(&given_up).await)?;
    let after = scene.balance(&scene.client).await;
    rules.check("a refund is the whole total", after.checked_sub(before) == Some(PRICE), after)?;
    let state = scene.paying.escrow_state(given_up.client, given_up.request_id).await;
    rules.check("a refunded request is refunded", state == Ok(EscrowState::Refunded { transaction }), state)?;
    let again = scene.settling.refund(&given_up).await;
    rules.check("refunding again is the same transaction", again == Ok(transaction), again)?;
    let late = scene.settling.settle(&scene.settlement(&given_up, threshold).await).await;
    rules.refused("what is refunded is not settled", late, LedgerError::is_retryable)?;
    rules.refused("what is refunded is not escrowed again", scene.paying.escrow(&given_up).await, LedgerError::is_retryable)?;
    rules.check("refunding pays once", scene.balance(&scene.client).await == after, after)?;

    let expired = scene.quote().await?;
    rules.ok("a client escrows", scene.paying.escrow(&expired).await)?;
    let before = scene.balance(&scene.client).await;
    scene.fixture.advance(LIFETIME + 60).await;
    let late = scene.settling.settle(&scene.settlement(&expired, threshold).await).await;
    rules.check("past expiry nothing settles", matches!(late, Err(LedgerError::Expired(_))), late)?;
    rules.ok("past expiry anyone gives back", scene.stranger.refund(&expired).await)?;
    let after = scene.balance(&scene.client).await;
    rules.check("an expired refund goes to the client", after.checked_sub(before) == Some(PRICE), after)
}

pub(super) async fn tells(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let mut events = rules.ok("events can be followed", scene.stranger.events(0).await)?;
    let quote = scene.quote().await?;
    let transaction = rules.ok("a client escrows", scene.paying.escrow(&quote).await)?;
    let wanted = EscrowState::Escrowed { quote: quote.struct_hash(), transaction };
    let mut seen = 0;
    let mut last = 0;
    // The suite itself has made fewer changes than this.
    while seen < 64 {
        let Some(event) = events.next().await else {
            return rules.check("events come from the first to the newest", false, format!("ended after {seen}"));
        };
        let event = rules.ok("events can be read", event)?;
        seen += 1;
        rules.check("events come in the chain's order", event.block >= last, event)?;
        last = event.block;
        if event.request_id == quote.request_id {
            rules.check("an event says what happened", (event.client, event.state) == (quote.client, wanted), event)?;
            let mut resumed = rules.ok("events can be followed from a block", scene.stranger.events(event.block).await)?;
            let first = resumed.next().await;
            return rules.check("following starts at the block", first == Some(Ok(event)), first);
        }
    }
    rules.check("events come from the first to the newest", false, "64 others")
}

/// A client's authorisation, which somebody else brings to the chain.
pub(super) async fn accepts(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let quote = scene.quote().await?;
    let authorisation = scene.authorisation(&quote).await;
    let other = scene.quote().await?;
    let refused = scene.settling.accept(&other, &authorisation).await;
    rules.refused("an authorisation pays its own quote", refused, LedgerError::is_retryable)?;
    let mut dear = quote.clone();
    dear.total = Amount::new(PRICE.units() + 1);
    let refused = scene.settling.accept(&dear, &authorisation).await;
    rules.refused("an authorisation pays no more than it says", refused, LedgerError::is_retryable)?;
    let forged = rules.ok("a key signs", Authorisation::transfer(&scene.trust, &quote, &key()).await)?;
    let refused = scene.settling.accept(&quote, &forged).await;
    rules.refused("only the client authorises its payment", refused, LedgerError::is_retryable)?;
    let mut late = quote.clone();
    late.expiry = 1;
    let refused = scene.settling.accept(&late, &scene.authorisation(&late).await).await;
    rules.refused("an authorisation of an expired quote is refused", refused, LedgerError::is_retryable)?;
    let mut poor = quote.clone();
    poor.total = Amount::new(PURSE.units() * 2);
    let refused = scene.settling.accept(&poor, &scene.authorisation(&poor).await).await;
    let said = matches!(refused, Err(LedgerError::InsufficientFunds { .. }));
    rules.check("an authorisation without funds is said so", said, refused)?;
    let before = scene.balance(&scene.client).await;
    rules.check("a refused authorisation costs nothing", before == PURSE, before)?;

    let transaction = rules.ok("anyone brings an authorisation", scene.settling.accept(&quote, &authorisation).await)?;
    let paid = scene.stranger.payment_of(&quote).await;
    rules.check("an authorisation pays the quote", paid == Ok(Some(transaction)), paid)?;
    for ledger in [&scene.settling, &scene.stranger] {
        let again = ledger.accept(&quote, &authorisation).await;
        rules.check("the same authorisation again is the same transaction", again == Ok(transaction), again)?;
    }
    let again = scene.paying.escrow(&quote).await;
    rules.check("what is authorised is not escrowed again", again == Ok(transaction), again)?;
    let after = scene.balance(&scene.client).await;
    rules.check("an authorisation takes exactly the total, once", before.checked_sub(after) == Some(PRICE), after)?;
    rules.ok("the gateway gives back", scene.settling.refund(&quote).await)?;
    let spent = scene.settling.accept(&quote, &authorisation).await;
    rules.refused("an authorisation pays once", spent, LedgerError::is_retryable)?;

    holds(rules, scene).await
}

/// A voucher is either refused or kept, whatever the ledger is.
async fn holds(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let quote = scene.quote().await?;
    let terms = ChannelTerms { client: quote.client, gateway: quote.gateway, salt: rand_bytes().into() };
    let signed = ChannelPayment::sign(terms, &quote, quote.total, &scene.trust, &scene.client).await;
    let payment = rules.ok("a key signs", signed)?;
    match scene.settling.accept(&quote, &Authorisation::Voucher(payment)).await {
        Ok(reference) => {
            let kept = scene.settling.voucher(quote.request_id).await;
            rules.check("a voucher that is taken is kept", kept == Ok(Some(payment)), kept)?;
            let paid = scene.settling.payment_of(&quote).await;
            rules.check("a voucher that is taken pays", paid == Ok(Some(reference)), paid)
        }
        Err(error) => {
            rules.check("a voucher that is not taken is refused", !error.is_retryable(), error)?;
            let state = scene.settling.escrow_state(quote.client, quote.request_id).await;
            rules.check("a voucher that is refused pays nothing", state == Ok(EscrowState::None), state)
        }
    }
}
