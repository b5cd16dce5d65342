//! One payment per request, as its gateway sees it: redeemed, paid out, given back.

use futures::StreamExt as _;

use super::{LIFETIME, PRICE, PURSE, Scene, spoilt, times};
use crate::{
    Address, Amount, ChannelClose, FinishReason, LedgerError, Message as _, PaymentAuthorization, PaymentLedgerExt as _,
    PaymentRef, PaymentStatus, PayoutSchedule, Quote, SignedVoucher,
    conformance::{Rules, Violation, key, priced_by_use},
    validation::CLAIM_SECONDS,
};

type Checked = Result<(), Violation>;

/// A client's authorization, which its gateway or another account brings to the chain.
pub(super) async fn redeems(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let quote = scene.quote().await?;
    let status = scene.ledger.status(quote.client, quote.request_id).await;
    rules.check("an unpaid request is unpaid", status == Ok(PaymentStatus::Unpaid), status)?;

    let authorization = scene.authorization(&quote).await;
    let other = scene.quote().await?;
    let refused = scene.ledger.redeem(&other, &authorization).await;
    rules.refused("an authorization pays its own quote", refused, LedgerError::is_retryable)?;
    let mut dear = quote.clone();
    dear.total = Amount::new(PRICE.units() + 1);
    let refused = scene.ledger.redeem(&dear, &authorization).await;
    rules.refused("an authorization pays no more than it says", refused, LedgerError::is_retryable)?;
    let mut foreign = quote.clone();
    foreign.client = scene.outsider.address();
    let refused = scene.ledger.redeem(&foreign, &scene.authorization(&foreign).await).await;
    rules.refused("nobody pays for another", refused, LedgerError::is_retryable)?;
    let forged = rules.ok("a key signs", PaymentAuthorization::transfer(&scene.trust, &quote, &key()).await)?;
    let refused = scene.ledger.redeem(&quote, &forged).await;
    rules.refused("only the client authorizes its payment", refused, LedgerError::is_retryable)?;
    for (rule, quote) in spoilt(&quote) {
        rules.refused(rule, scene.escrow(&quote).await, LedgerError::is_retryable)?;
    }
    let mut poor = quote.clone();
    poor.total = Amount::new(PURSE.units() * 2);
    let refused = scene.escrow(&poor).await;
    let said = matches!(refused, Err(LedgerError::InsufficientFunds { needed, .. }) if needed == poor.total);
    rules.check("lack of funds is said so", said, refused)?;
    let before = scene.balance(&scene.client).await;
    rules.check("what is refused costs nothing", before == PURSE, before)?;

    let by = rules.ok("a gateway redeems an authorization", scene.ledger.redeem(&quote, &authorization).await)?;
    rules.check("an escrow is a transaction", by.transaction().is_some(), &by)?;
    let held = PaymentStatus::Held { quote: quote.struct_hash(), by: by.clone() };
    let status = scene.strange_ledger.status(quote.client, quote.request_id).await;
    rules.check("everyone sees the escrow and its transaction", status == Ok(held), status)?;
    let paid = scene.ledger.payment_of(&quote).await;
    rules.check("the payment of the quote is found", paid == Ok(Some(by.clone())), paid)?;
    for ledger in [&scene.ledger, &scene.strange_ledger] {
        let again = ledger.redeem(&quote, &authorization).await;
        rules.check("the same authorization again is the same transaction", again == Ok(by.clone()), again)?;
    }
    let after = scene.balance(&scene.client).await;
    rules.check("an authorization takes exactly the total, once", before.checked_sub(after) == Some(PRICE), after)?;

    let mut other = quote.clone();
    other.gateway = scene.outsider.address();
    let refused = scene.escrow(&other).await;
    rules.refused("one request has one payment", refused, LedgerError::is_retryable)?;
    let paid = scene.ledger.payment_of(&other).await;
    rules.check("another quote is not paid by it", paid == Ok(None), paid)?;
    let squatted = scene.strange_ledger.status(scene.outsider.address(), quote.request_id).await;
    rules.check("a request id is its client's own", squatted == Ok(PaymentStatus::Unpaid), squatted)?;

    rules.ok("the gateway gives back", scene.give_back(&quote).await)?;
    let spent = scene.ledger.redeem(&quote, &authorization).await;
    rules.refused("an authorization pays once", spent, LedgerError::is_retryable)
}

pub(super) async fn pays_out(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let threshold = scene.threshold();
    let quote = priced_by_use(scene.quote().await?);
    let unpaid = scene.ledger.settle(&scene.settlement(&quote, threshold).await).await;
    rules.refused("what is not paid is not settled", unpaid, LedgerError::is_retryable)?;
    rules.ok("a client pays", scene.escrow(&quote).await)?;

    let few = scene.ledger.settle(&scene.settlement(&quote, threshold - 1).await).await;
    rules.refused("too few approvals do not settle", few, LedgerError::is_retryable)?;
    let mut moved = scene.settlement(&quote, threshold).await;
    for contribution in &mut moved.completion.contributions {
        contribution.compute = scene.outsider.address();
    }
    rules.refused("approvals bind the payee", scene.ledger.settle(&moved).await, LedgerError::is_retryable)?;
    let mut dearer = scene.settlement(&quote, threshold).await;
    for contribution in &mut dearer.completion.contributions {
        contribution.cost = quote.total;
    }
    rules.refused("approvals bind the cost", scene.ledger.settle(&dearer).await, LedgerError::is_retryable)?;
    let mut moved = scene.settlement(&quote, threshold).await;
    moved.completion.finish = FinishReason::Length;
    rules.refused("approvals bind the reason to end", scene.ledger.settle(&moved).await, LedgerError::is_retryable)?;
    let changes: [fn(&mut Quote, Address); 3] =
        [|quote, outsider| quote.gateway = outsider, |quote, outsider| quote.compute = outsider, |quote, _| quote.expiry -= 1];
    for change in changes {
        let mut changed = scene.settlement(&quote, threshold).await;
        change(&mut changed.quote, scene.outsider.address());
        rules.refused("approvals bind the quote", scene.ledger.settle(&changed).await, LedgerError::is_retryable)?;
    }
    let other = scene.quote().await?;
    let mut replayed = scene.settlement(&quote, threshold).await;
    replayed.certificate = scene.settlement(&other, threshold).await.certificate;
    let refused = scene.ledger.settle(&replayed).await;
    rules.refused("another request's approvals do not settle", refused, LedgerError::is_retryable)?;

    let settlement = scene.settlement(&quote, threshold).await;
    let payees = settlement.certificate.validators();
    let tree = PayoutSchedule::new(&quote, &settlement.completion, &payees, scene.trust.treasury);
    let tree = rules.ok("a payment can be split", tree)?;
    let mut before = Vec::new();
    for payout in &tree.payouts {
        before.push(rules.ok("balances can be read", scene.ledger.balance(payout.address).await)?);
    }
    let clients = scene.balance(&scene.client).await;
    let by = rules.ok("an approved completion settles", scene.ledger.settle(&settlement).await)?;
    let back = scene.balance(&scene.client).await.checked_sub(clients);
    let rest = quote.total.checked_sub(settlement.completion.cost());
    rules.check("what a request does not cost goes back", back == rest && rest != Some(Amount::ZERO), (back, rest))?;
    rules.check("a settlement is a transaction", by.transaction().is_some(), &by)?;
    for (payout, before) in tree.payouts.iter().zip(before) {
        let after = rules.ok("balances can be read", scene.ledger.balance(payout.address).await)?;
        rules.check(
            "everyone gets its part, to the unit",
            after.checked_sub(before) == Some(payout.amount),
            (payout, before, after),
        )?;
    }
    let status = scene.strange_ledger.status(quote.client, quote.request_id).await;
    let paid_out = PaymentStatus::PaidOut { by: by.clone(), completion: Some(settlement.completion.struct_hash()) };
    rules.check("a settled request is paid out, and its status names the completion", status == Ok(paid_out), status)?;
    let again = scene.ledger.settle(&settlement).await;
    rules.check("settling again is the same transaction", again == Ok(by), again)?;
    let mut others = settlement;
    for contribution in &mut others.completion.contributions {
        contribution.compute = scene.outsider.address();
    }
    let refused = scene.ledger.settle(&others).await;
    rules.refused("another completion is not taken for this one", refused, LedgerError::is_retryable)?;
    let gateway = scene.balance(&scene.gateway).await;
    rules.refused("what is settled is not refunded", scene.give_back(&quote).await, LedgerError::is_retryable)?;
    rules.refused("what is settled is not paid again", scene.escrow(&quote).await, LedgerError::is_retryable)?;
    rules.check("settling pays once", scene.balance(&scene.gateway).await == gateway, gateway)
}

pub(super) async fn pays_back(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let threshold = scene.threshold();
    let given_up = scene.quote().await?;
    rules.ok("a client pays", scene.escrow(&given_up).await)?;
    let before = scene.balance(&scene.client).await;
    let consent = scene.consent(&given_up).await;
    for (ledger, consent) in [(&scene.strange_ledger, None), (&scene.strange_ledger, Some(&consent)), (&scene.clients_ledger, None)]
    {
        let early = ledger.refund(&given_up, consent).await;
        rules.refused("before expiry only the gateway gives back", early, LedgerError::is_retryable)?;
    }
    let others = scene.consent(&scene.quote().await?).await;
    let refused = scene.ledger.refund(&given_up, Some(&others)).await;
    rules.refused("a client agrees to one request", refused, LedgerError::is_retryable)?;
    let by = rules.ok("the gateway gives back at any time, when the client agrees", scene.give_back(&given_up).await)?;
    rules.check("a refund is a transaction", by.transaction().is_some(), &by)?;
    let after = scene.balance(&scene.client).await;
    rules.check("a refund is the whole total", after.checked_sub(before) == Some(PRICE), after)?;
    let status = scene.strange_ledger.status(given_up.client, given_up.request_id).await;
    rules.check("a refunded request is refunded", status == Ok(PaymentStatus::Refunded { by: by.clone() }), status)?;
    let again = scene.give_back(&given_up).await;
    rules.check("refunding again is the same transaction", again == Ok(by), again)?;
    let late = scene.ledger.settle(&scene.settlement(&given_up, threshold).await).await;
    rules.refused("what is refunded is not settled", late, LedgerError::is_retryable)?;
    rules.refused("what is refunded is not paid again", scene.escrow(&given_up).await, LedgerError::is_retryable)?;
    rules.check("refunding pays once", scene.balance(&scene.client).await == after, after)?;

    let served = scene.quote().await?;
    rules.ok("a client pays", scene.escrow(&served).await)?;
    let alone = scene.ledger.refund(&served, None).await;
    let Err(LedgerError::NotRefundable(refundable_at)) = alone else {
        return rules.check("alone, the gateway only gives up", false, alone);
    };
    let again = scene.ledger.refund(&served, None).await;
    rules.check("giving up again changes nothing", again == Err(LedgerError::NotRefundable(refundable_at)), again)?;
    let status = scene.strange_ledger.status(served.client, served.request_id).await;
    let given_up = PaymentStatus::GivenUp { quote: served.struct_hash(), refundable_at };
    rules.check("a request that was given up is so", status == Ok(given_up), status)?;
    let settled = scene.strange_ledger.settle(&scene.settlement(&served, threshold).await).await;
    rules.ok("a certificate wins, no matter who has it", settled)?;

    let agreed = scene.quote().await?;
    rules.ok("a client pays", scene.escrow(&agreed).await)?;
    drop(scene.ledger.refund(&agreed, None).await);
    let early = scene.strange_ledger.refund(&agreed, None).await;
    rules.refused("what was given up is there for a while", early, LedgerError::is_retryable)?;
    rules.ok("a client takes back what was given up", scene.clients_ledger.refund(&agreed, None).await)?;

    let expired = scene.quote().await?;
    rules.ok("a client pays", scene.escrow(&expired).await)?;
    let before = scene.balance(&scene.client).await;
    scene.fixture.chain().advance(LIFETIME + CLAIM_SECONDS + 60).await;
    let late = scene.ledger.settle(&scene.settlement(&expired, threshold).await).await;
    rules.check("past expiry nothing settles", matches!(late, Err(LedgerError::Expired(_))), late)?;
    rules.ok("past expiry anyone gives back", scene.strange_ledger.refund(&expired, None).await)?;
    let after = scene.balance(&scene.client).await;
    rules.check("an expired refund goes to the client", after.checked_sub(before) == Some(PRICE), after)
}

pub(super) async fn tells(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let quote = scene.quote().await?;
    let by = rules.ok("a client pays", scene.escrow(&quote).await)?;
    let held = PaymentStatus::Held { quote: quote.struct_hash(), by };
    let mut changes = rules.ok("changes can be followed", scene.strange_ledger.changes(0).await)?;
    let mut seen = 0;
    let mut last = 0;
    // The suite itself has made fewer changes than this.
    while seen < 64 {
        let Some(change) = changes.next().await else {
            return rules.check("changes come from the first to the newest", false, format!("ended after {seen}"));
        };
        let change = rules.ok("changes can be read", change)?;
        seen += 1;
        rules.check("changes come in the chain's order", change.block >= last, &change)?;
        last = change.block;
        if change.request_id == quote.request_id {
            let stated = (change.client, &change.status) == (quote.client, &held);
            rules.check("a change says what happened", stated, &change)?;
            let mut resumed = rules.ok("changes can be followed from a block", scene.strange_ledger.changes(change.block).await)?;
            let first = resumed.next().await;
            rules.check("following starts at the block", first == Some(Ok(change)), first)?;
            let by = rules.ok("the gateway gives back", scene.give_back(&quote).await)?;
            let next = resumed.next().await;
            let refunded = PaymentStatus::Refunded { by };
            let told = matches!(&next, Some(Ok(next)) if (next.request_id, &next.status) == (quote.request_id, &refunded));
            return rules.check("a change is told when it comes", told, next);
        }
    }
    rules.check("changes come from the first to the newest", false, "64 others")
}

/// A voucher is refused, or reserved and then captured or released, whatever the ledger is.
pub(super) async fn takes_vouchers(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let terms = scene.opened(rules, times(4)).await?;
    let (served, failed) = (priced_by_use(scene.quote().await?), scene.quote().await?);
    let first = SignedVoucher::sign(terms, &served, 1, PRICE, &scene.trust, &scene.client).await;
    let first = rules.ok("a key signs", first)?;
    let second = SignedVoucher::sign(terms, &failed, 2, times(2), &scene.trust, &scene.client).await;
    let second = rules.ok("a key signs", second)?;
    let taken = scene.ledger.redeem(&served, &PaymentAuthorization::Voucher(first)).await;
    let Ok(by) = taken else {
        rules.refused("a voucher that is not taken is refused", taken, LedgerError::is_retryable)?;
        let status = scene.ledger.status(served.client, served.request_id).await;
        return rules.check("a voucher that is refused pays nothing", status == Ok(PaymentStatus::Unpaid), status);
    };
    let voucher = PaymentRef::from(first);
    rules.check("a voucher that is taken is what pays", by == voucher, &by)?;
    let mut other = served.clone();
    other.total = times(2);
    let refused = scene.ledger.redeem(&other, &PaymentAuthorization::Voucher(first)).await;
    rules.refused("a voucher pays its own quote", refused, LedgerError::is_retryable)?;
    let forged = SignedVoucher::sign(terms, &failed, 2, times(2), &scene.trust, &key()).await;
    let forged = rules.ok("a key signs", forged)?;
    let refused = scene.ledger.redeem(&failed, &PaymentAuthorization::Voucher(forged)).await;
    rules.refused("only the client's voucher pays", refused, LedgerError::is_retryable)?;
    let again = scene.ledger.redeem(&served, &PaymentAuthorization::Voucher(first)).await;
    rules.check("the same voucher again is as good as once", again == Ok(by.clone()), again)?;
    let paid = scene.ledger.payment_of(&served).await;
    rules.check("a voucher that is taken pays", paid == Ok(Some(by)), paid)?;
    let refused = scene.ledger.settle(&scene.settlement(&failed, scene.threshold()).await).await;
    rules.refused("what is not paid is not captured", refused, LedgerError::is_retryable)?;

    rules.ok("a second voucher is taken", scene.ledger.redeem(&failed, &PaymentAuthorization::Voucher(second)).await)?;
    let settlement = scene.settlement(&served, scene.threshold()).await;
    for _ in 0..2 {
        let by = rules.ok("a voucher is captured, and again as good as once", scene.ledger.settle(&settlement).await)?;
        rules.check("a captured voucher stays a voucher", by == voucher, &by)?;
        let status = scene.ledger.status(served.client, served.request_id).await;
        let charged = scene.channel(&terms).await?.settled;
        let earned = match &status {
            Ok(PaymentStatus::Earned { by }) => *by == voucher,
            Ok(PaymentStatus::PaidOut { by, completion: None }) => *by == voucher && charged == settlement.completion.cost(),
            _ => false,
        };
        rules.check("a captured voucher is earned, and not paid out before it is charged", earned, (status, charged))?;
    }
    rules.refused("what is earned is not given back", scene.ledger.refund(&served, None).await, LedgerError::is_retryable)?;
    let voucher = PaymentRef::from(second);
    for _ in 0..2 {
        let by = rules.ok("a voucher is released, and again as good as once", scene.ledger.refund(&failed, None).await)?;
        let status = scene.ledger.status(failed.client, failed.request_id).await;
        let refunded = status == Ok(PaymentStatus::Refunded { by: voucher.clone() });
        rules.check("a released voucher is given back", refunded && by == voucher, status)?;
    }
    let late = scene.ledger.settle(&scene.settlement(&failed, scene.threshold()).await).await;
    rules.refused("what was given back is not captured", late, LedgerError::is_retryable)
}

/// A gateway signs that it charges a channel no more.
pub(super) async fn closes(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let unknown = scene.terms();
    let refused = scene.ledger.cooperative_close(&unknown).await;
    rules.refused("what was never opened is not closed", refused, LedgerError::is_retryable)?;
    let terms = scene.opened(rules, times(4)).await?;
    let refused = scene.strange_ledger.cooperative_close(&terms).await;
    rules.refused("only a channel's gateway closes it", refused, LedgerError::is_retryable)?;
    let earned = scene.quote().await?;
    let signed = SignedVoucher::sign(terms, &earned, 1, PRICE, &scene.trust, &scene.client).await;
    let payment = rules.ok("a key signs", signed)?;
    let owed = if scene.ledger.redeem(&earned, &PaymentAuthorization::Voucher(payment)).await.is_ok() {
        let settlement = scene.settlement(&earned, scene.threshold()).await;
        rules.ok("a voucher is captured", scene.ledger.settle(&settlement).await)?;
        PRICE
    } else {
        Amount::ZERO
    };
    let (settled, signature) = rules.ok("a gateway closes its channel", scene.ledger.cooperative_close(&terms).await)?;
    let close = ChannelClose { channel: terms.id(), settled };
    let verified = signature.verify(&close.digest(&scene.trust.channel_domain()), scene.gateway.address());
    rules.check(
        "the agreement is the gateway's, over what was settled",
        verified.is_ok() && settled == owed,
        (verified, settled),
    )?;
    let quote = scene.quote().await?;
    let signed = SignedVoucher::sign(terms, &quote, 2, times(2), &scene.trust, &scene.client).await;
    let payment = rules.ok("a key signs", signed)?;
    let refused = scene.ledger.redeem(&quote, &PaymentAuthorization::Voucher(payment)).await;
    rules.refused("a channel that is being closed pays nothing", refused, LedgerError::is_retryable)?;
    rules.ok("a client closes by agreement", scene.close(&scene.client, &terms, Some(signature)).await)?;
    let refused = scene.ledger.cooperative_close(&terms).await;
    rules.refused("what is closed is not closed again", refused, LedgerError::is_retryable)
}
