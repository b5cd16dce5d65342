//! What a node measures, through the facade `metrics`: a program that installs a recorder sees it, and it costs next to nothing where there is none.
//! Amounts are in tokens: they are for people who watch, and nothing is computed with them.

use std::time::{Duration, Instant};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use ncn_core::{Amount, ComputeError, ComputeEvent, Outcome, PayeeRole, Receipt, State};

const REQUESTS: &str = "ncn_gateway_requests_total";
const STATE_SECONDS: &str = "ncn_gateway_state_seconds";
const REQUEST_SECONDS: &str = "ncn_gateway_request_seconds";
const HELD: &str = "ncn_gateway_held_tokens";
const EARNED: &str = "ncn_gateway_earned_tokens";
const PAID_OUT: &str = "ncn_gateway_paid_out_tokens";
const REFUNDED: &str = "ncn_gateway_refunded_tokens";
const SETTLED: &str = "ncn_gateway_channel_settled_requests_total";
const NODES: &str = "ncn_gateway_compute_nodes";
const CONNECTIONS: &str = "ncn_server_connections";
const CALLS: &str = "ncn_server_calls_total";
const REFUSED: &str = "ncn_server_calls_refused_total";
const RUNS: &str = "ncn_compute_runs_total";
const RUN_SECONDS: &str = "ncn_compute_run_seconds";
const RUNNING: &str = "ncn_compute_running";
const JUDGED: &str = "ncn_validator_judgements_total";
const JUDGE_SECONDS: &str = "ncn_validator_judgement_seconds";
const MEMBERS: &str = "ncn_registry_members";
const PEERS: &str = "ncn_registry_peers";

/// The upper bounds of the histograms' buckets, in seconds: from what is answered out of memory to what takes a request's whole time.
pub const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// Tells the recorder what each metric is. Once is enough.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests that have ended, by outcome");
    describe_histogram!(STATE_SECONDS, Unit::Seconds, "How long requests were in each state");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "From an order to its end, by outcome");
    describe_gauge!(HELD, "What clients have paid for requests that have not ended");
    describe_gauge!(PAID_OUT, "What delivered requests have cost since the start, for everyone");
    describe_gauge!(EARNED, "The gateway's own share of it");
    describe_gauge!(REFUNDED, "What was paid for requests since the start that were not delivered, and went back");
    describe_counter!(SETTLED, "Requests that were settled out of channels");
    describe_gauge!(NODES, "Compute nodes that are attached");
    describe_gauge!(CONNECTIONS, "Connections that are open");
    describe_counter!(CALLS, "Calls, by wire");
    describe_counter!(REFUSED, "Calls that were refused, by the reason: too many in a minute, or open at once");
    describe_counter!(RUNS, "Requests that a compute node has run, by outcome");
    describe_histogram!(RUN_SECONDS, Unit::Seconds, "How long a compute node ran a request");
    describe_gauge!(RUNNING, "Requests that a compute node runs");
    describe_counter!(JUDGED, "What a validator has judged, by subject and outcome");
    describe_histogram!(JUDGE_SECONDS, Unit::Seconds, "How long a validator took to judge, by subject");
    describe_gauge!(MEMBERS, "Nodes, subnets and manifests that a registry node knows, by kind");
    describe_gauge!(PEERS, "Peers that a registry node is connected to");
}

#[allow(clippy::cast_precision_loss, reason = "it is for people who watch")]
fn tokens(amount: Amount) -> f64 {
    amount.units() as f64 / Amount::TOKEN.units() as f64
}

pub(crate) const fn name_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Refunded => "refunded",
        Outcome::Refused => "refused",
        Outcome::Cancelled => "cancelled",
        Outcome::Expired => "expired",
        _ => "other",
    }
}

pub(crate) const fn name_of_state(state: State) -> &'static str {
    match state {
        State::Reserving => "reserving",
        State::Preprocessing => "preprocessing",
        State::AwaitingPayment => "awaiting_payment",
        State::Executing => "executing",
        State::Completing => "completing",
        State::Settling => "settling",
        State::Refunding => "refunding",
        State::Ended(_) => "ended",
        _ => "other",
    }
}

/// A request on its way through its gateway's states, since this process knows of it.
pub(crate) struct Journey {
    began: Instant,
    entered: Instant,
    state: State,
}

impl Journey {
    /// Of a request in this state, which costs so much at most.
    pub(crate) fn begin(began: Instant, state: State, total: Amount) -> Self {
        if state.is_owed() {
            gauge!(HELD).increment(tokens(total));
        }
        Self { began, entered: Instant::now(), state }
    }

    /// It may be in another state now. Says how long it took, when that is an end.
    pub(crate) fn see(&mut self, state: State, total: Amount) -> Option<(Outcome, Duration)> {
        if state == self.state {
            return None;
        }
        histogram!(STATE_SECONDS, "state" => name_of_state(self.state)).record(self.entered.elapsed());
        match (self.state.is_owed(), state.is_owed()) {
            (false, true) => gauge!(HELD).increment(tokens(total)),
            (true, false) => gauge!(HELD).decrement(tokens(total)),
            _ => {}
        }
        (self.entered, self.state) = (Instant::now(), state);
        let State::Ended(outcome) = state else { return None };
        let took = self.began.elapsed();
        counter!(REQUESTS, "outcome" => name_of(outcome)).increment(1);
        histogram!(REQUEST_SECONDS, "outcome" => name_of(outcome)).record(took);
        if outcome == Outcome::Refunded {
            gauge!(REFUNDED).increment(tokens(total));
        }
        Some((outcome, took))
    }
}

pub(crate) fn delivered(receipt: &Receipt) {
    gauge!(PAID_OUT).increment(tokens(receipt.payments.total));
    gauge!(EARNED).increment(tokens(receipt.payments.paid_to(PayeeRole::Gateway)));
}

pub(crate) fn settled(requests: usize) {
    counter!(SETTLED).increment(requests as u64);
}

#[allow(clippy::cast_precision_loss, reason = "there are not that many")]
pub(crate) fn attached(nodes: usize) {
    gauge!(NODES).set(nodes as f64);
}

/// One that is counted while it is there.
pub(crate) struct Present(&'static str);

impl Present {
    #[cfg(feature = "grpc")]
    pub(crate) fn connection() -> Self {
        Self::begin(CONNECTIONS)
    }

    fn begin(name: &'static str) -> Self {
        gauge!(name).increment(1);
        Self(name)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        gauge!(self.0).decrement(1);
    }
}

#[cfg(feature = "grpc")]
pub(crate) fn called(wire: &'static str) {
    counter!(CALLS, "wire" => wire).increment(1);
}

#[cfg(feature = "grpc")]
pub(crate) fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

/// A run of a model at a compute node. It was stopped, unless it ends in another way.
pub(crate) struct Run {
    began: Instant,
    outcome: &'static str,
    _running: Present,
}

impl Run {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now(), outcome: "stopped", _running: Present::begin(RUNNING) }
    }

    pub(crate) fn see(&mut self, event: &Result<ComputeEvent, ComputeError>) {
        match event {
            Ok(ComputeEvent::Finished(_)) => self.outcome = "finished",
            Ok(_) => {}
            Err(_) => self.outcome = "failed",
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        counter!(RUNS, "outcome" => self.outcome).increment(1);
        histogram!(RUN_SECONDS).record(self.began.elapsed());
    }
}

/// Has a validator judge something.
pub(crate) async fn judged<T, E>(subject: &'static str, judging: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let began = Instant::now();
    let judged = judging.await;
    let outcome = if judged.is_ok() { "approved" } else { "refused" };
    counter!(JUDGED, "subject" => subject, "outcome" => outcome).increment(1);
    histogram!(JUDGE_SECONDS, "subject" => subject).record(began.elapsed());
    judged
}

/// What a registry node knows: nodes, subnets and manifests.
#[allow(clippy::cast_precision_loss, reason = "there are not that many")]
pub fn known((nodes, subnets, manifests): (usize, usize, usize)) {
    for (kind, count) in [("node", nodes), ("subnet", subnets), ("manifest", manifests)] {
        gauge!(MEMBERS, "kind" => kind).set(count as f64);
    }
}

/// How many peers a registry node is connected to.
#[allow(clippy::cast_precision_loss, reason = "there are not that many")]
pub fn peers(count: usize) {
    gauge!(PEERS).set(count as f64);
}
