use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use ncn_core::{Address, Amount, Manifest};

/// What a gateway does.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// How many requests it works on or remembers at once. What has ended gives way to new ones, first what nobody paid for.
    pub max_tasks: usize,
    /// How many of these may wait for their quote or their payment: those that are paid have the rest.
    pub max_unpaid: usize,
    /// How many of these may be one client's, whose oldest that has ended gives way to its newer ones.
    pub max_tasks_of_one: usize,
    /// How many of one client's may wait for their quote or their payment: each holds a compute node's place, for nothing.
    pub max_unpaid_of_one: usize,
    /// How many bytes the inputs and parameters of requests that wait for their quote or their payment may have together; a quarter of it, those of one
    /// client. Requests of 8 KiB and less do not count.
    pub max_unpaid_bytes: usize,
    /// No order is taken while this many quotes wait until the registry's validators judge them. It should be what these judge in a few seconds.
    pub max_waiting: usize,
    /// How many orders of one client it takes in a minute. All may come at once.
    pub max_orders_a_minute_of_one: NonZeroU32,
    /// The least total of a quote whose payment the gateway brings to the chain for its client. It pays the gas of escrow and refund, and earns
    /// nothing when the request is withdrawn: what they cost is in `docs/gas.md`.
    pub least_relayed: Amount,
    /// The most bytes of inputs that a request may have.
    pub max_input_bytes: usize,
    /// The longest that a client may want to wait.
    pub max_timeout: Duration,
    /// How long before a quote expires the gateway stops hoping and gives the money back.
    pub finish_margin: Duration,
    /// How long before that an output has to be at its end: for the validators' approval, and for the chain to pay it out.
    pub settle_time: Duration,
    /// How long an order may wait for its quote, and then for its payment, until it is over: a payment that the ledger shows only later comes back. It
    /// should be longer than a ledger takes to confirm one.
    pub payment_window: Duration,
    /// How long a client may be expected to take from its order to its payment. With this, the model's own limit, and the two above, an order has the least
    /// deadline that is taken.
    pub pay_time: Duration,
    /// How long an ended request is remembered; less, when a new one needs its place: among all, one that was paid keeps it for a minute.
    pub retention: Duration,
    /// The compute nodes that may attach themselves, where not every one of the subnet may: to register costs nothing.
    pub admitted: Option<BTreeSet<Address>>,
    /// URLs with the files of the subnet's models, for its compute nodes.
    pub model_sources: Vec<String>,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            max_tasks: 10_000,
            max_unpaid: 5_000,
            max_tasks_of_one: 5_000,
            max_unpaid_of_one: 256,
            max_unpaid_bytes: 128 << 20,
            max_waiting: 256,
            max_orders_a_minute_of_one: NonZeroU32::MIN.saturating_add(9_999),
            least_relayed: Amount::new(Amount::TOKEN.units() / 1_000),
            max_input_bytes: 8 << 20,
            max_timeout: Duration::from_hours(24),
            finish_margin: Duration::from_secs(3),
            settle_time: Duration::from_secs(10),
            payment_window: Duration::from_mins(1),
            pay_time: Duration::from_secs(15),
            retention: Duration::from_mins(10),
            admitted: None,
            model_sources: Vec::new(),
        }
    }
}

impl GatewayOptions {
    /// The least time from an order to its deadline: to pay, to run the model for as long as it may, to approve and to settle.
    pub(super) fn least_timeout(&self, manifest: &Manifest) -> Duration {
        let seconds = Duration::from_secs(manifest.limits.deadline_ms.div_ceil(1_000));
        [self.pay_time, seconds, self.settle_time, self.finish_margin].into_iter().fold(Duration::ZERO, Duration::saturating_add)
    }
}
