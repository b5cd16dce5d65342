//! What an operator reads at `info`: a line for each request that was paid for, and one for each movement of its money. What nobody has paid
//! for is told at `debug`, since strangers order it for free.

use std::time::Duration;

use ncn_core::{Event, Outcome, PayeeRole, Receipt};

use super::task::Task;
use crate::measures::name_of;

/// What an event does to the money.
pub(super) fn moved(task: &Task, event: &Event) {
    let most = task.total();
    match event {
        Event::Paid(by) => tracing::info!(client = %task.request.message.client, %most, %by, "a request is paid for"),
        Event::Settled(by) => tracing::info!(%by, "a request is settled"),
        Event::Refunded(by) => tracing::info!(%most, %by, "a payment is given back"),
        Event::PaymentLost => tracing::warn!(%most, "the chain has taken a payment back"),
        Event::PaidElsewhere(completion) => tracing::error!(%most, %completion, "a payment went to others"),
        _ => {}
    }
}

/// How a request ended, but for delivered ones: [`delivered`] says more.
pub(super) fn ended(task: &Task, outcome: Outcome, took: Duration) {
    if outcome == Outcome::Completed {
        return;
    }
    let (outcome, model) = (name_of(outcome), task.request.message.model_digest);
    let progress = task.progress();
    let reason = progress.failure.as_deref().unwrap_or("no reason is known");
    match progress.payment {
        None => tracing::debug!(outcome, %model, ?took, reason, "a request has ended unpaid"),
        Some(_) => tracing::warn!(outcome, %model, ?took, reason, "a request has ended without an answer"),
    }
}

/// What was delivered, and who earns what.
pub(super) fn delivered(receipt: &Receipt, took: Duration) {
    let (units, cost) = (receipt.usage().units(), receipt.payments.total);
    let earned = receipt.payments.paid_to(PayeeRole::Gateway);
    let (model, node) = (receipt.quote.model_digest, receipt.quote.compute);
    tracing::info!(%model, %node, input = units.input, output = units.output, %cost, %earned, ?took, "a request is delivered");
}
