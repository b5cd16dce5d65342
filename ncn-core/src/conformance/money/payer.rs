//! One payment per request, as its client sees it.

use std::sync::Arc;

use super::{LIFETIME, PRICE, PURSE, PayerFixture, Scene, spoilt};
use crate::{
    Amount, B256, Epoch, LedgerError, Message as _, Payer, PaymentRef, PaymentStatus, PayoutSchedule, Quote, Receipt, Settlement,
    Signature, SignedVoucher,
    conformance::{Rules, Violation, certificate, delivery, signed},
    receipt,
    validation::CLAIM_SECONDS,
};

type Checked = Result<(), Violation>;

/// A client with its purse, and its gateway.
pub(super) struct Payment<'a> {
    fixture: &'a dyn PayerFixture,
    scene: Scene<'a>,
    payer: Arc<dyn Payer>,
}

impl<'a> Payment<'a> {
    pub(super) async fn new(fixture: &'a dyn PayerFixture, epoch: &Epoch) -> Self {
        let scene = Scene::poor(fixture.gateways(), epoch).await;
        let payer = fixture.payer(scene.client.clone(), PURSE, &scene.ledger).await;
        Self { fixture, scene, payer }
    }

    /// What the gateway has of a payment.
    async fn held(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        self.scene.ledger.status(quote.client, quote.request_id).await
    }

    /// A quote that is paid.
    async fn paid(&self, rules: &mut Rules) -> Result<Quote, Violation> {
        let quote = self.scene.quote().await?;
        rules.ok("a client pays", self.payer.pay(&quote).await)?;
        Ok(quote)
    }
}

/// Whether a payer may report this of a payment that is not held.
const fn is_unpaid(status: &Result<PaymentStatus, LedgerError>) -> bool {
    matches!(status, Ok(PaymentStatus::Unpaid) | Err(LedgerError::Unproven(_)))
}

/// Whether a quote is held by this payment. A signed transfer becomes a transaction, which only the chain names.
fn is_held(status: &Result<PaymentStatus, LedgerError>, quote: &Quote, by: &PaymentRef) -> bool {
    let paid = status.as_ref().ok().and_then(|status| status.payment_of(quote.struct_hash()));
    paid.is_some_and(|paid| paid == by || matches!((by, paid), (PaymentRef::Transfer(_), PaymentRef::Transaction(_))))
}

pub(super) async fn pays(rules: &mut Rules, payment: &Payment<'_>) -> Checked {
    let Payment { scene, payer, .. } = payment;
    rules.check("a payer is its signer's", payer.account() == scene.client.address(), payer.account())?;
    let trust = payer.trust_root().await;
    rules.check("a payer is of the network", trust.as_ref() == Ok(&scene.trust), trust)?;
    let (now, chain) = (rules.ok("a payer has a time", payer.now().await)?, scene.now().await?);
    rules.check("a payer's time is the chain's", now.abs_diff(chain) < LIFETIME / 2, (now, chain))?;

    let quote = scene.quote().await?;
    let status = payer.status(&quote).await;
    rules.check("an unpaid request is not paid", is_unpaid(&status), status)?;
    let mut refused = spoilt(&quote);
    let mut foreign = quote.clone();
    foreign.client = scene.outsider.address();
    refused.push(("nobody pays for another", foreign));
    let mut dear = quote.clone();
    dear.total = Amount::new(PRICE.units() * 1_000);
    refused.push(("no more is paid than there is", dear));
    let before = scene.balance(&scene.client).await;
    for (rule, quote) in refused {
        rules.refused(rule, payer.pay(&quote).await, LedgerError::is_retryable)?;
        payer.release(&quote, None).await;
        let held = payment.held(&quote).await;
        rules.check("what is refused pays nothing", held == Ok(PaymentStatus::Unpaid), (rule, held))?;
        let after = scene.balance(&scene.client).await;
        rules.check("what is refused costs nothing", before == after, (rule, before, after))?;
    }

    // What a refused voucher reserves stays so until its channel ends: from here on with a client that has promised nothing.
    let payment = &Payment::new(payment.fixture, &scene.epoch).await;
    let Payment { scene, payer, .. } = payment;
    let quote = scene.quote().await?;
    let unspent = scene.balance(&scene.client).await;
    let by = rules.ok("a client pays", payer.pay(&quote).await)?;
    let (held, status) = (payment.held(&quote).await, payer.status(&quote).await);
    rules.check("what a client pays, its gateway holds", is_held(&held, &quote, &by), (&by, held))?;
    rules.check("what is paid is held", is_held(&status, &quote, &by), (&by, status))?;
    let before = scene.balance(&scene.client).await;
    let cost = if by.voucher().is_some() { Amount::ZERO } else { PRICE };
    rules.check(
        "a payment takes the total from the account, or out of its channel",
        unspent.checked_sub(before) == Some(cost),
        before,
    )?;
    let mut other = quote.clone();
    other.compute = scene.outsider.address();
    rules.refused("one request has one payment", payer.pay(&other).await, LedgerError::is_retryable)?;
    let held = payment.held(&quote).await;
    rules.check("a second quote changes nothing", is_held(&held, &quote, &by), held)?;
    let again = payer.pay(&quote).await;
    rules.check("paying again is the same payment", again == Ok(by.clone()), again)?;
    let restarted = payment.fixture.payer(scene.client.clone(), Amount::ZERO, &scene.ledger).await;
    let again = restarted.pay(&quote).await;
    rules.check("paying again after a restart is the same payment", again.as_ref() == Ok(&by), again)?;
    let after = scene.balance(&scene.client).await;
    rules.check("paying again costs nothing", before == after, (before, after))?;

    // The purse holds ten of them.
    let mut last = Ok(PaymentRef::Transaction(B256::ZERO));
    for count in 1..=10 {
        let quote = scene.quote().await?;
        last = payer.pay(&quote).await;
        rules.check("a payment is taken as long as there is money", last.is_ok() == (count < 10), (count, &last))?;
    }
    let said = match &last {
        Err(LedgerError::InsufficientFunds { needed, .. }) => *needed == PRICE,
        // Only who pays by itself knows.
        Err(LedgerError::Channel { .. } | LedgerError::Unproven(_)) => by.transaction().is_none(),
        _ => false,
    };
    rules.check("lack of funds is said so", said, last)
}

/// What was authorized and redeemed is not paid again by a transaction.
pub(super) async fn pays_once(rules: &mut Rules, payment: &Payment<'_>) -> Checked {
    let Payment { scene, payer, .. } = payment;
    let quote = scene.quote().await?;
    if rules.ok("a client pays", payer.pay(&quote).await)?.transaction().is_none() {
        // Who signs has no second way.
        return Ok(());
    }
    let quote = scene.quote().await?;
    let by = rules.ok("a gateway redeems an authorization", scene.escrow(&quote).await)?;
    let before = scene.balance(&scene.client).await;
    let again = payer.pay(&quote).await;
    rules.check("what is authorized is not escrowed again", again == Ok(by), again)?;
    let after = scene.balance(&scene.client).await;
    rules.check("what is authorized is not escrowed again", before == after, (before, after))
}

pub(super) async fn sees_the_end(rules: &mut Rules, payment: &Payment<'_>) -> Checked {
    let Payment { scene, payer, fixture } = payment;
    let served = payment.paid(rules).await?;
    let settlement = scene.settlement(&served, scene.threshold()).await;
    rules.ok("the gateway settles", scene.ledger.settle(&settlement).await)?;
    let status = payer.status(&served).await;
    let seen = status.as_ref().is_ok_and(|status| status.settled_for(settlement.completion.struct_hash()).is_some());
    rules.check("a client sees that its payment is the gateway's", seen, status)?;
    payer.release(&served, Some(served.total)).await;

    let failed = payment.paid(rules).await?;
    let before = scene.balance(&scene.client).await;
    let refund = rules.ok("the gateway gives back", scene.give_back(&failed).await)?;
    let status = payer.status(&failed).await;
    let proven = matches!(&status, Ok(PaymentStatus::Refunded { by }) if *by == refund);
    let unproven = matches!(status, Err(LedgerError::Unproven(_)));
    rules.check("a client sees that its payment came back, or that only the gateway says so", proven || unproven, &status)?;
    rules.check(
        "a payer that sees the chain sees the refund",
        proven || !fixture.sees_chain() || refund.voucher().is_some(),
        status,
    )?;
    if refund.transaction().is_some() {
        let after = scene.balance(&scene.client).await;
        rules.check("what is refunded is the client's again", after.checked_sub(before) == Some(PRICE), (before, after))?;
    }
    payer.release(&failed, None).await;
    let before = scene.balance(&scene.client).await;
    for quote in [&served, &failed] {
        let again = payer.pay(quote).await;
        let harmless = match &again {
            // The voucher that it was.
            Ok(by) => by.voucher().is_some_and(|payment| payment.voucher.request_id == quote.request_id),
            Err(error) => !error.is_retryable(),
        };
        rules.check("what has ended is not paid again", harmless, again)?;
    }
    let after = scene.balance(&scene.client).await;
    rules.check("what has ended is not paid again", before == after, (before, after))
}

/// A request that was ordered, paid, served and settled, and the receipt of it.
#[allow(clippy::expect_used, reason = "a local key always signs; this is a test suite")]
async fn receipt(rules: &mut Rules, payment: &Payment<'_>) -> Result<Receipt, Violation> {
    let Payment { scene, payer, .. } = payment;
    let order = scene.order().await?;
    let quote = scene.quoted(&order);
    rules.ok("a client pays", payer.pay(&quote).await)?;
    let held = rules.ok("a status can be read", payment.held(&quote).await)?;
    let threshold = scene.threshold();
    let delivery = delivery(&order, &quote, &scene.trust, &scene.compute).await;
    let validators = scene.fixture.chain().validators();
    let preprocessing = certificate(&quote, &quote.request_id, &scene.trust, &validators, threshold).await;
    let completion = rules.ok("a delivery leads to a completion", delivery.completion(&quote))?;
    let approvals = certificate(&completion, &quote.request_id, &scene.trust, &validators, threshold).await;
    let (certificate, completed) = (approvals.clone(), completion.clone());
    let committee = scene.committee(&quote);
    let delivered = delivery.clone();
    let settlement = Settlement { quote: quote.clone(), committee, delivery: delivered, completion: completed, certificate };
    let settled = rules.ok("the gateway settles", scene.ledger.settle(&settlement).await)?;
    let payment = match (held, settled) {
        (PaymentStatus::Held { by: PaymentRef::Voucher(voucher), .. }, _) => receipt::Payment::Channel(voucher),
        (PaymentStatus::Held { by: PaymentRef::Transaction(transaction), .. }, PaymentRef::Transaction(settlement)) => {
            receipt::Payment::Escrow { transaction, settlement }
        }
        other => return Err(Violation { rule: "a payment is a voucher, or two transactions", what: format!("{other:?}") }),
    };
    let request = signed(order, &scene.trust, &scene.client).await;
    let payments = PayoutSchedule::new(&quote, &completion, &approvals.validators(), scene.trust.treasury);
    let mut receipt = Receipt {
        version: receipt::VERSION,
        trust_root: scene.trust.clone(),
        seal: request.signature,
        request,
        quote,
        preprocessing,
        payment,
        delivery,
        completion,
        approvals,
        payments: rules.ok("a payment can be split", payments)?,
        issued_at: scene.now().await?,
    };
    reseal(&mut receipt, scene).await;
    Ok(receipt)
}

/// A gateway seals what it likes.
#[allow(clippy::expect_used, reason = "a local key always signs; this is a test suite")]
async fn reseal(receipt: &mut Receipt, scene: &Scene<'_>) {
    let digest = receipt.sealed().digest(&scene.trust.domain);
    receipt.seal = Signature::sign(&digest, &*scene.gateway).await.expect("a local key signs");
}

/// A receipt's payment is the client's own, or it is refused.
pub(super) async fn checks(rules: &mut Rules, payment: &Payment<'_>) -> Checked {
    let Payment { scene, payer, fixture } = payment;
    let receipt = receipt(rules, payment).await?;
    let verified = receipt.verify(&scene.trust);
    rules.check("the suite's receipt verifies", verified.is_ok(), verified)?;
    rules.ok("the receipt of a payment is that payment's", payer.check(&receipt).await)?;

    let mut forged = Vec::new();
    let made_up = B256::repeat_byte(0x77);
    match receipt.payment {
        receipt::Payment::Escrow { transaction, settlement } => {
            let terms = scene.terms();
            let voucher = SignedVoucher::sign(terms, &receipt.quote, 1, PRICE, &scene.trust, &scene.client).await;
            let voucher = rules.ok("a key signs", voucher)?;
            forged.push(("a voucher is no escrow", receipt::Payment::Channel(Box::new(voucher))));
            if fixture.sees_chain() {
                let (escrow, settled) = (made_up, settlement);
                forged.push(("a made-up escrow is refused", receipt::Payment::Escrow { transaction: escrow, settlement: settled }));
                forged.push(("a made-up settlement is refused", receipt::Payment::Escrow { transaction, settlement: made_up }));
            }
        }
        receipt::Payment::Channel(_) => {
            forged.push(("an escrow is no voucher", receipt::Payment::Escrow { transaction: made_up, settlement: made_up }));
            let elsewhere = SignedVoucher::sign(scene.terms(), &receipt.quote, 1, PRICE, &scene.trust, &scene.client).await;
            let elsewhere = rules.ok("a key signs", elsewhere)?;
            forged.push(("another channel's voucher is refused", receipt::Payment::Channel(Box::new(elsewhere))));
        }
    }
    for (rule, payment) in forged {
        let mut receipt = Receipt { payment, ..receipt.clone() };
        reseal(&mut receipt, scene).await;
        let verified = receipt.verify(&scene.trust);
        rules.check("a gateway's signature alone is no proof of a payment", verified.is_ok(), verified)?;
        rules.refused(rule, payer.check(&receipt).await, LedgerError::is_retryable)?;
    }
    Ok(())
}

/// What was not earned comes back, as far as the payer can bring it back.
pub(super) async fn reclaims(rules: &mut Rules, payment: &Payment<'_>) -> Checked {
    let Payment { scene, payer, fixture } = payment;
    let quote = payment.paid(rules).await?;
    let early = payer.reclaim(&quote).await;
    let kept = !matches!(early, Ok(PaymentStatus::Refunded { .. })) && !early.as_ref().is_err_and(LedgerError::is_retryable);
    rules.check("before the expiry nothing is taken back", kept, early)?;
    let before = scene.balance(&scene.client).await;
    scene.fixture.chain().advance(LIFETIME + CLAIM_SECONDS + 60).await;
    // The second time, it is there already.
    for _ in 0..2 {
        let status = payer.reclaim(&quote).await;
        let after = scene.balance(&scene.client).await;
        match status {
            Ok(PaymentStatus::Refunded { by }) => {
                rules.check(
                    "what is taken back is the client's again",
                    after.checked_sub(before) == Some(PRICE),
                    (before, after),
                )?;
                let status = payer.status(&quote).await;
                rules.check("what is taken back is refunded", status == Ok(PaymentStatus::Refunded { by }), status)?;
            }
            status => {
                // Out of a channel, and without a chain, a client cannot.
                let honest = !is_escrow(&payment.held(&quote).await) || !fixture.sees_chain();
                let says = matches!(status, Ok(PaymentStatus::Held { .. }) | Err(LedgerError::Unproven(_)));
                rules.check(
                    "what is not taken back is said to be held",
                    honest && says && after == before,
                    (status, before, after),
                )?;
            }
        }
    }
    Ok(())
}

const fn is_escrow(held: &Result<PaymentStatus, LedgerError>) -> bool {
    matches!(held, Ok(PaymentStatus::Held { by: PaymentRef::Transaction(_), .. }))
}
