//! What a gateway does now, for people who watch it. Inputs and outputs of requests are not in it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use ncn_core::{
    Address, Amount, AnswerTime, B256, Confinement, LedgerError, Price, Receipt, RequestId, State, Step, StepTiming, Subnet,
    TransportError,
};
use serde::Serialize;
use tokio::time::timeout;

use super::{
    Gateway,
    history::{self, Past, Second, Sums},
    nodes::SeenNode,
    task::Task,
};

/// How many nodes are listed.
const MAX_NODES: usize = 100;
/// For how long validators are as they were last seen, how long it may take to look at them, and how many stakes are asked for at once.
const VALIDATORS_AGE: Duration = Duration::from_secs(5);
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
const AT_ONCE: usize = 8;

/// What a gateway does now, and has done lately.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Who it is.
    pub gateway: Address,
    /// Its subnet's name.
    pub subnet: String,
    /// The version of its software.
    pub version: &'static str,
    /// For how many seconds it has been running.
    pub uptime: u64,
    /// How many requests are in each of the twelve steps, and how long these take.
    pub steps: Vec<StepOverview>,
    /// How many requests are being paid back.
    pub refunding: usize,
    /// Requests of the last time, the newest last: some of them, when there are many.
    pub requests: Vec<RequestOverview>,
    /// What is offered.
    pub models: Vec<ModelOverview>,
    /// The compute nodes that are attached: some of them, when there are many.
    pub nodes: Vec<NodeOverview>,
    /// How many there are.
    pub attached: usize,
    /// The validators, once they have been asked for.
    pub validators: Vec<ValidatorOverview>,
    /// Tokens.
    pub money: MoneyOverview,
    /// For how many seconds before the present one it is known what happened.
    pub span: u64,
    /// What happened in them. Seconds in which nothing happened are missing.
    pub seconds: Vec<Second>,
}

/// One of the twelve steps.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepOverview {
    /// What it is called.
    pub name: String,
    /// How many requests are in it; in the last one, how many were delivered and are remembered.
    pub requests: usize,
    /// How long it took on average lately.
    pub mean_micros: Option<u64>,
}

/// A request, in a line.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestOverview {
    /// Its id.
    pub id: RequestId,
    /// Its model's name.
    pub model: String,
    /// How far it has come in the twelve steps, counted from 1.
    pub step: u8,
    /// Where it is.
    pub state: State,
    /// Which node serves it.
    pub compute: Option<Address>,
    /// The most that it costs.
    pub total: Amount,
    /// How long it has been there, or took. Unknown of what had ended before this gateway was started.
    pub age_micros: Option<u64>,
}

/// A request, with all that is known of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestDetail {
    /// Its line.
    #[serde(flatten)]
    pub request: RequestOverview,
    /// Who ordered it.
    pub client: Address,
    /// The steps that were taken.
    pub steps: Vec<StepTiming>,
    /// Why it was not served, or not yet.
    pub failure: Option<String>,
    /// What it cost in the end.
    pub cost: Option<Amount>,
    /// The proof of it.
    pub receipt: Option<Receipt>,
}

/// A model.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelOverview {
    /// What it is called.
    pub name: String,
    /// Its digest.
    pub digest: B256,
    /// What its requests cost.
    pub price: Price,
}

/// A compute node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeOverview {
    /// Who it is.
    pub address: Address,
    /// The names of its models.
    pub models: Vec<String>,
    /// How many of the gateway's requests it serves.
    pub requests: usize,
    /// How strongly it confines models; none while the registry does not report it as live.
    pub confinement: Option<Confinement>,
}

/// A validator.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidatorOverview {
    /// Who it is.
    pub address: Address,
    /// What it has staked.
    pub stake: Option<Amount>,
    /// How quickly it answers, as the gateway's registry node has seen.
    pub answers: Option<AnswerTime>,
}

/// Tokens: what is held now, and the rest since the start.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoneyOverview {
    /// Paid for requests that have not ended.
    pub held: Amount,
    /// The gateway's share of what was paid out.
    pub earned: Amount,
    /// Paid out to everyone.
    pub paid_out: Amount,
    /// Paid back.
    pub refunded: Amount,
}

/// The validators as they were last seen.
#[derive(Default)]
pub(super) struct Validators(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    is_looking: bool,
    validators: Vec<ValidatorOverview>,
}

impl Validators {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As they were last seen. They are looked for anew, when that is some time ago, for the next caller.
    fn seen(&self, gateway: &Arc<Gateway>) -> Vec<ValidatorOverview> {
        let mut seen = self.lock();
        if !seen.is_looking && seen.at.is_none_or(|at| at.elapsed() > VALIDATORS_AGE) {
            seen.is_looking = true;
            let gateway = gateway.clone();
            let looking = async move {
                let looking = gateway.stopped.run_until_cancelled(timeout(LOOK_TIMEOUT, look(&gateway))).await;
                let mut seen = gateway.validators.lock();
                (seen.at, seen.is_looking) = (Some(Instant::now()), false);
                if let Some(Ok(Ok(found))) = looking {
                    seen.validators = found;
                }
            };
            tokio::spawn(looking);
        }
        seen.validators.clone()
    }
}

/// What chain and registry say of the validators.
async fn look(gateway: &Gateway) -> Result<Vec<ValidatorOverview>, LedgerError> {
    let trust = gateway.chain.trust_root().await?;
    let times = gateway.registry.answer_times().await.unwrap_or_default();
    let times: HashMap<Address, AnswerTime> = times.into_iter().map(|time| (time.validator, time)).collect();
    let asked = trust.validators.into_iter().map(|address| {
        let answers = times.get(&address).copied();
        async move { ValidatorOverview { address, stake: gateway.chain.stake(address).await.ok(), answers } }
    });
    Ok(stream::iter(asked).buffered(AT_ONCE).collect().await)
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

impl Gateway {
    /// What it does now. It looks at every request that is remembered, and waits for nobody: validators are as they were seen a moment ago.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn overview(self: &Arc<Self>) -> Overview {
        let Past { now, shown, seconds, sums, steps: means } = self.history.past();
        let mut steps: Vec<_> = Step::ALL.into_iter().zip(means).map(|(step, mean)| StepOverview::new(step, mean)).collect();
        let (mut refunding, mut held, mut load) = (0, Amount::ZERO, HashMap::<Address, usize>::new());
        let tasks = self.tasks();
        for task in tasks.all() {
            let state = task.lifecycle().state();
            if let Some(step) = task.step().and_then(|step| steps.get_mut(step as usize - 1)) {
                step.requests += 1;
            }
            refunding += usize::from(state == State::Refunding);
            if state.is_owed() {
                held = held.checked_add(task.total()).unwrap_or(held);
            }
            if let Some(node) = task.compute().filter(|_| !matches!(state, State::Ended(_))) {
                *load.entry(node).or_default() += 1;
            }
        }
        let requests: Vec<_> = shown.iter().filter_map(|id| tasks.get(id)).collect();
        drop(tasks);
        let (attached, nodes) = self.nodes.seen(MAX_NODES);
        let node = |SeenNode { address, models, confinement }| NodeOverview {
            address,
            models: models.iter().map(|model| self.name_of(model)).collect(),
            requests: load.get(&address).copied().unwrap_or_default(),
            confinement,
        };
        let Sums { earned, paid_out, refunded } = sums;
        let Subnet { name: subnet, models, .. } = &self.subnet.message;
        let model = |digest: B256, price| ModelOverview { name: self.name_of(&digest), digest, price };
        Overview {
            gateway: self.address(),
            subnet: subnet.clone(),
            version: env!("CARGO_PKG_VERSION"),
            uptime: now,
            steps,
            refunding,
            requests: requests.iter().map(|task| self.line(task)).collect(),
            models: models.iter().map(|listed| model(listed.digest, listed.price)).collect(),
            nodes: nodes.into_iter().map(node).collect(),
            attached,
            validators: self.validators.seen(self),
            money: MoneyOverview { held, earned, paid_out, refunded },
            span: history::SECONDS as u64,
            seconds,
        }
    }

    /// One request, while it is remembered.
    ///
    /// # Errors
    /// [`TransportError::UnknownTask`].
    pub fn detail(&self, request_id: RequestId) -> Result<RequestDetail, TransportError> {
        let task = self.task(request_id)?;
        let receipt = task.receipt();
        Ok(RequestDetail {
            request: self.line(&task),
            client: task.client(),
            steps: task.steps(),
            failure: task.status().failure,
            cost: receipt.as_ref().map(Receipt::cost),
            receipt,
        })
    }

    fn line(&self, task: &Task) -> RequestOverview {
        RequestOverview {
            id: task.request_id,
            model: self.name_of(&task.request.message.model_digest),
            step: task.step().or(task.last_step()).map_or(1, |step| step as u8),
            state: task.lifecycle().state(),
            compute: task.compute(),
            total: task.total(),
            age_micros: task.age().map(micros),
        }
    }

    fn name_of(&self, model: &B256) -> String {
        self.models.get(model).map_or_else(|| model.to_string(), |info| info.model.manifest().name.clone())
    }
}

impl StepOverview {
    fn new(step: Step, mean: Option<Duration>) -> Self {
        Self { name: step.to_string(), requests: 0, mean_micros: mean.map(micros) }
    }
}
