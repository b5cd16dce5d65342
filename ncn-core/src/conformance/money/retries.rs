//! Answers that are lost, and callers that begin again: whatever happens in between, money moves once.

use std::fmt::Debug;

use futures::future::BoxFuture;

use super::{PRICE, Scene, times};
use crate::{
    Amount, BatchSettler, LedgerError, PaymentLedger,
    conformance::{Rules, Violation},
};

/// Calls as one account, whose answer is lost; as the same account after a restart; and as the first one again.
async fn insists<'a, L: ?Sized, T: PartialEq + Debug>(
    rules: &mut Rules,
    rule: &'static str,
    (first, restarted): (&'a L, &'a L),
    call: impl Fn(&'a L) -> BoxFuture<'a, Result<T, LedgerError>>,
) -> Result<(), Violation> {
    drop(call(first).await);
    let transaction = rules.ok(rule, call(restarted).await)?;
    let again = call(first).await;
    rules.check(rule, again.as_ref() == Ok(&transaction), (&transaction, &again))
}

pub(super) async fn escrows(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let restarted = scene.fixture.ledger(scene.gateway.clone()).await;
    let gateway: (&dyn PaymentLedger, _) = (&*scene.ledger, &*restarted);
    let (served, failed) = (scene.quote().await?, scene.quote().await?);
    let settlement = scene.settlement(&served, scene.threshold()).await;
    for quote in [&served, &failed] {
        let authorization = &scene.authorization(quote).await;
        insists(rules, "an authorization resumes", gateway, |ledger| ledger.redeem(quote, authorization)).await?;
    }
    has(rules, scene, times(8)).await?;
    let consent = scene.consent(&failed).await;
    insists(rules, "a refund resumes", gateway, |ledger| ledger.refund(&failed, Some(&consent))).await?;
    has(rules, scene, times(9)).await?;
    insists(rules, "a settlement resumes", gateway, |ledger| ledger.settle(&settlement)).await?;
    let share = scene.balance(&scene.gateway).await;
    rules.check("a lost answer moves money once", share == Amount::new(PRICE.units() / 10), share)
}

pub(super) async fn channels(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let restarted = scene.fixture.chain().settler(scene.gateway.clone()).await;
    let gateway: (&dyn BatchSettler, _) = (&*scene.settler, &*restarted);
    let (terms, expiry) = (&scene.terms(), scene.now().await? + super::LIFETIME);
    let batch = scene.requests(terms, 1, 2).await?;
    let batch = scene.certified(batch, &[(terms, Amount::ZERO)], scene.threshold()).await;

    for (rule, deposit, left) in
        [("the opening of a channel resumes", times(4), times(6)), ("a top-up resumes", times(5), times(5))]
    {
        insists(rules, rule, (scene, scene), |scene| Box::pin(scene.fund(&scene.client, terms, deposit, expiry))).await?;
        has(rules, scene, left).await?;
    }
    insists(rules, "the settlement of a batch resumes", gateway, |ledger| ledger.settle_batch(&batch)).await?;
    let share = scene.balance(&scene.gateway).await;
    rules.check("a lost answer moves money once", share == Amount::new(PRICE.units() / 10 * 2), share)?;
    insists(rules, "the closing of a channel resumes", (scene, scene), |scene| Box::pin(scene.close(&scene.gateway, terms, None)))
        .await?;
    has(rules, scene, times(8)).await
}

async fn has(rules: &mut Rules, scene: &Scene<'_>, wanted: Amount) -> Result<(), Violation> {
    let has = scene.balance(&scene.client).await;
    rules.check("a lost answer moves money once", has == wanted, (wanted, has))
}
