//! The gateway: takes orders, coordinates everyone, delivers results with receipts.
//!
//! Each request has one driver, which journals an event, lets [`ncn_core::Lifecycle`] say what follows, and does it; the effects
//! are in `gateway/effects.rs`. One more task follows the chain, to report payments to the drivers, and the registry, for the live nodes.

mod announce;
mod check;
mod driver;
mod effects;
mod execution;
mod follow;
mod history;
#[cfg(feature = "http")]
mod http;
mod journal;
mod judged;
mod log;
mod nodes;
mod options;
mod overview;
#[cfg(feature = "http")]
mod page;
#[cfg(feature = "grpc")]
mod plane;
mod redemption;
mod reputation;
mod reserve;
#[cfg(feature = "grpc")]
mod serve;
mod served;
#[cfg(feature = "grpc")]
mod sessions;
mod task;
mod tasks;
mod tickets;
#[cfg(feature = "http")]
mod websocket;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::StreamExt as _;
use history::History;
pub use history::Second;
#[cfg(feature = "http")]
pub use http::http_routes;
use judged::Judged;
use ncn_core::{Address, B256};
use ncn_core::{
    Amount, CapabilityScope, ChainView, ChannelParams, Compute, Domain, DynSigner, Event, LedgerError, Message as _, Model,
    ModelInfo, NetworkInfo, PaymentAuthorization, PaymentConfirmation, PaymentLedger, PaymentSubmission, Quote, Registry,
    RegistryError, RequestId, Signature, Signed, State, Submission, Subnet, TaskCapability, TaskStatus, Transport, TransportError,
    UnixTime,
    transport::{Ticket, Updates},
};
use nodes::Nodes;
pub use options::GatewayOptions;
use overview::Validators;
pub use overview::{
    ModelOverview, MoneyOverview, NodeOverview, Overview, RequestDetail, RequestOverview, StepOverview, ValidatorOverview,
};
#[cfg(feature = "http")]
pub use page::Page;
#[cfg(feature = "grpc")]
pub use serve::{client_service, compute_service};
use served::Served;
use task::Task;
use tasks::Tasks;
use tickets::Tickets;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(crate) use self::journal::Journal;
use crate::{clock::Clock, rate::Rate, store::StoreError};
use ncn_client::Backoff;

/// How long a gateway waits for enough validators when it starts.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it looks whether the last request has ended, before it stops.
const DRAIN_POLL: Duration = Duration::from_millis(50);
/// How long the last news may take from there to who follows.
const LAST_NEWS: Duration = Duration::from_millis(500);

/// A gateway and its subnet.
pub struct Gateway {
    signer: DynSigner,
    pub(crate) domain: Domain,
    subnet: Signed<Subnet>,
    models: HashMap<B256, ModelInfo>,
    registry: Arc<dyn Registry>,
    ledger: Arc<dyn PaymentLedger>,
    chain: Arc<dyn ChainView>,
    clock: Clock,
    journal: Journal,
    options: GatewayOptions,
    nodes: Nodes,
    served: Served,
    history: History,
    validators: Validators,
    tickets: Tickets,
    judged: Judged,
    /// Of each client, whose signature is checked by then.
    orders: Rate<Address>,
    tasks: Mutex<Tasks>,
    redemptions: redemption::Redemptions,
    /// Who asks the registry which gateway has a request.
    asking: Semaphore,
    /// Ends the taking of orders; so does the end of all work.
    closed: CancellationToken,
    /// Ends every driver, and the task that follows chain and registry.
    stopped: CancellationToken,
    this: Weak<Self>,
}

/// What a gateway is made of.
pub(crate) struct GatewayParts {
    pub(crate) signer: DynSigner,
    /// What it offers, as its owner or as another of its gateways.
    pub(crate) subnet: Subnet,
    pub(crate) manifests: Vec<bytes::Bytes>,
    pub(crate) registry: Arc<dyn Registry>,
    /// Money, as the gateway's account sees it.
    pub(crate) ledger: Arc<dyn PaymentLedger>,
    pub(crate) chain: Arc<dyn ChainView>,
    pub(crate) journal: Journal,
    pub(crate) options: GatewayOptions,
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// A model of the subnet without a manifest, or the other way round.
    #[error("model {0}: the subnet lists it and its manifest is given, or neither")]
    Manifest(B256),
    /// A manifest that makes no sense.
    #[error(transparent)]
    InvalidManifest(#[from] ncn_core::ManifestError),
    /// The subnet is another owner's, who has not named this gateway.
    #[error("subnet {0}: is not this gateway's, nor does its owner name it as one of its gateways")]
    NotItsGateway(B256),
    /// The subnet's definition has changed.
    #[error("subnet {0}: its owner has changed it meanwhile: start again")]
    Changed(B256),
    /// The registry does not take the subnet, or does not know it.
    #[error("registry: {0}")]
    Registry(#[from] RegistryError),
    /// The chain does not answer.
    #[error("chain: {0}")]
    Ledger(#[from] LedgerError),
    /// The gateway's key cannot be used.
    #[error("key: {0}")]
    Signer(#[from] ncn_core::SignatureError),
    /// Its store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another gateway has its key, and serves.
    #[error("key: gateway {gateway} serves at {url} already: stop it first, or use another key")]
    Running {
        /// Whose key.
        gateway: Address,
        /// Where the other one is.
        url: String,
    },
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
}

/// Has validators approve the subnet. Those of a network that is being started come one by one.
async fn define(registry: &dyn Registry, subnet: &Signed<Subnet>) -> Result<(), RegistryError> {
    let (started, mut backoff) = (Instant::now(), Backoff::new());
    loop {
        match registry.register_subnet(subnet.clone()).await {
            Err(RegistryError::TooFewApprovals { .. }) if started.elapsed() < QUORUM_TIMEOUT => backoff.pause().await,
            defined => return defined,
        }
    }
}

impl Gateway {
    /// Registers its own subnet or finds another owner's, takes up whatever requests the journal holds, and follows the chain.
    pub(crate) async fn start(parts: GatewayParts) -> Result<Arc<Self>, GatewayError> {
        let GatewayParts { signer, subnet, manifests, registry, ledger, chain, journal, options } = parts;
        let domain = ledger.trust_root().await?.domain;
        let mut models = HashMap::new();
        for manifest in manifests {
            let model = Model::parse(manifest)?;
            let digest = model.digest();
            let price = subnet.model(&digest).ok_or(GatewayError::Manifest(digest))?.price;
            let least_timeout = options.least_timeout(model.manifest());
            models.insert(digest, ModelInfo { model, subnet: subnet.id(), price, least_timeout, typical_units: None });
        }
        if let Some(missing) = subnet.models.iter().find(|model| !models.contains_key(&model.digest)) {
            return Err(GatewayError::Manifest(missing.digest));
        }
        let subnet = if subnet.owner == signer.address() {
            let subnet = Signed::sign(subnet, &domain, &*signer).await?;
            define(&*registry, &subnet).await?;
            subnet
        } else {
            let id = subnet.id();
            let defined = registry.subnet(id).await?.definition;
            defined.verify(&domain)?;
            if !defined.message.has_gateway(&signer.address()) {
                return Err(GatewayError::NotItsGateway(id));
            }
            if defined.message != subnet {
                return Err(GatewayError::Changed(id));
            }
            defined
        };

        let kept = journal.replay().await?;
        let orders = Rate::per_minute(options.max_orders_a_minute_of_one);
        let nodes = Nodes::new(&subnet.message);
        let stopped = CancellationToken::new();
        let gateway = Arc::new_cyclic(|this| Self {
            signer,
            domain,
            subnet,
            models,
            registry,
            ledger,
            clock: Clock::new(chain.clone()),
            chain,
            journal,
            options,
            nodes,
            served: Served::default(),
            history: History::default(),
            validators: Validators::default(),
            tickets: Tickets::new(),

            judged: Judged::default(),
            orders,
            tasks: Mutex::default(),
            redemptions: redemption::Redemptions::default(),
            asking: Semaphore::new(announce::MAX_ASKING),
            closed: stopped.child_token(),
            stopped,
            this: this.clone(),
        });
        for (submission, salt, events) in kept {
            let request_id = submission.request.message.digest(&domain);
            let task = Task::recover(request_id, submission, salt, events);
            gateway.tasks().insert(task.clone());
            driver::spawn(&gateway, task);
        }
        let following = gateway.clone();
        tokio::spawn(async move {
            let keeping =
                async { tokio::join!(follow::chain(&following), follow::registry(&following), announce::announce(&following)) };
            following.stopped.clone().run_until_cancelled_owned(keeping).await
        });
        Ok(gateway)
    }

    /// Takes no more orders, and waits until no client is owed an answer that it has paid for. Those that have a quote may pay it, for as long as a
    /// client may take for that.
    ///
    /// Cancel safe: it goes on to take none.
    pub(crate) async fn drain(&self) {
        self.closed.cancel();
        let pay_by = Instant::now() + self.options.pay_time;
        let mut waited = false;
        while self.owed() > 0 || self.tasks().has_unpaid() && Instant::now() < pay_by {
            waited = true;
            tokio::time::sleep(DRAIN_POLL).await;
        }
        if waited {
            tokio::time::sleep(LAST_NEWS).await;
        }
    }

    /// How many requests are paid, and have not told their clients how they ended.
    pub fn owed(&self) -> usize {
        self.tasks().owed()
    }

    /// Ends all work, at once. What the journal holds can be taken up by another gateway of the same key.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    /// Who this is.
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// The id of its subnet.
    pub fn subnet_id(&self) -> B256 {
        self.subnet.message.id()
    }

    /// Gives the gateway a compute node to work with; one of the same address is replaced.
    pub fn attach(&self, compute: Arc<dyn Compute>) {
        self.nodes.attach(compute);
    }

    /// Takes a compute node away, unless it has been replaced in the meantime.
    pub fn detach(&self, compute: &Arc<dyn Compute>) {
        self.nodes.detach(compute);
    }

    /// Which compute nodes are attached.
    pub fn attached(&self) -> Vec<Address> {
        self.nodes.attached()
    }

    /// When a request's output has to be at its end.
    fn finish_by(&self, quote: &Quote) -> UnixTime {
        quote.expiry.saturating_sub((self.options.finish_margin + self.options.settle_time).as_secs())
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self, request_id: RequestId) -> Result<Arc<Task>, TransportError> {
        self.tasks().get(&request_id).ok_or(TransportError::UnknownTask(request_id))
    }

    /// The task that an access is for, once it is sure that its client signed it, for this scope.
    fn accessed(&self, access: &Signed<TaskCapability>, scope: CapabilityScope) -> Result<Arc<Task>, TransportError> {
        let task = self.task(access.message.request_id)?;
        if access.message.client != task.request.message.client {
            return Err(TransportError::Unauthorized("the request is another client's".into()));
        }
        if access.message.scope != scope {
            return Err(TransportError::Unauthorized("the signature is for another purpose".into()));
        }
        access.verify(&self.domain).map_err(|error| TransportError::Unauthorized(error.to_string()))?;
        Ok(task)
    }

    /// Takes what pays an order, once: when it is paid already, there is nothing to take.
    async fn take(&self, task: &Task, authorization: &PaymentAuthorization) -> Result<(), TransportError> {
        let status = task.status();
        let Some(quote) = status.quote else {
            return Err(TransportError::Refused("the order has no approved quote to pay".into()));
        };
        match status.state {
            State::AwaitingPayment => {}
            State::Ended(outcome) if outcome.is_unpaid() => {
                return Err(TransportError::Refused(status.failure.unwrap_or_else(|| "the order has ended".into())));
            }
            _ => return Ok(()),
        }
        let now = self.clock.now().await;
        if now + self.options.finish_margin.as_secs() >= quote.expiry {
            return Err(TransportError::Refused("the quote has expired".into()));
        }
        let least = self.options.least_relayed;
        let relayed = matches!(authorization, PaymentAuthorization::Transfer(_));
        if relayed && quote.total < least {
            let problem = format!("this gateway brings {least} or more to the chain: pay by a transaction, or out of a channel");
            return Err(TransportError::invalid("payment", problem));
        }
        if relayed && now >= self.finish_by(&quote) {
            return Err(TransportError::Refused("the quote leaves no time to run what it pays for".into()));
        }
        // Before it is on the chain: this call may end before the redemption does.
        let begins = || {
            if relayed {
                task.relay();
            }
        };
        self.redemptions.redeem(&self.ledger, quote, authorization, begins).await
    }

    /// Takes a request in, unless somebody else just has.
    fn admit(&self, request_id: RequestId, submission: Submission) -> Result<Arc<Task>, TransportError> {
        let this = self.this.upgrade().filter(|_| !self.closed.is_cancelled());
        let this = this.ok_or_else(|| TransportError::Internal("the gateway is stopping: ask another one".into()))?;
        let mut tasks = self.tasks();
        if let Some(known) = tasks.get(&request_id) {
            return Ok(known);
        }
        let client = submission.request.message.client;
        let bytes = submission.inputs.size() + submission.request.message.parameters.len();
        let goes = tasks.room(&client, bytes, &self.options)?;
        // A copy of an order, which its ticket shows to be one, is not counted.
        let salt = self.tickets.take(&submission.ticket, &submission.request.message)?;
        if let Err(error) = self.orders.count(&client) {
            self.tickets.give_back(&submission.ticket);
            return Err(error.into());
        }
        if let Some(old) = goes.and_then(|goes| tasks.remove(goes)) {
            old.displaced().cancel();
        }
        let task = Task::new(request_id, submission, salt);
        tasks.insert(task.clone());
        self.history.ordered(request_id);
        driver::spawn(&this, task.clone());
        Ok(task)
    }
}

#[async_trait]
impl Transport for Gateway {
    async fn tickets(&self, count: u32) -> Result<Vec<Ticket>, TransportError> {
        self.tickets.issue(count)
    }

    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        let request_id = submission.request.message.digest(&self.domain);
        let known = self.tasks().get(&request_id);
        let task = match known {
            Some(task) => task,
            None => {
                // Before anything is checked, which takes most of what it takes to refuse it.
                if self.judged.has_waiting(self.options.max_waiting) {
                    return Err(tasks::busy());
                }
                self.check(&submission, self.clock.now().await)?;
                match self.admit(request_id, submission) {
                    Ok(task) => task,
                    Err(error) => return Err(self.elsewhere(request_id, error).await),
                }
            }
        };
        let ready = task.wait_for(|state| !matches!(state, State::Reserving | State::Preprocessing));
        let stopping = || TransportError::Internal("the gateway is stopping: ask another one".into());
        self.stopped.run_until_cancelled(ready).await.ok_or_else(stopping)
    }

    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError> {
        let task = self.task(confirmation.request_id)?;
        if let PaymentSubmission::Authorization(authorization) = confirmation.proof {
            self.take(&task, &authorization).await?;
        }
        task.hint();
        Ok(())
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        Ok(self
            .accessed(&access, CapabilityScope::Follow)?
            .updates(from)
            .take_until(self.stopped.clone().cancelled_owned())
            .boxed())
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        match self.task(request_id) {
            Ok(task) => Ok(task.status()),
            Err(error) => Err(self.elsewhere(request_id, error).await),
        }
    }

    async fn cancel(&self, access: Signed<TaskCapability>) -> Result<(), TransportError> {
        let task = self.accessed(&access, CapabilityScope::Cancel)?;
        let is_refunding = task.lifecycle().state() == State::Refunding;
        // What was given is paid for: the node ends it, and the request is completed over it.
        if task.has_streamed() && !is_refunding {
            task.stop();
        } else if !(is_refunding && task.has_forgotten()) {
            // Else the payment comes back when the time is over in which the node can claim what it has given.
            task.agree(access.signature);
            task.tell(Event::Cancelled);
        }
        Ok(())
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        let info = |info: &ModelInfo| ModelInfo { typical_units: self.served.average(info.model.digest()), ..info.clone() };
        Ok(self.models.values().map(info).collect())
    }

    async fn close_channel(
        &self,
        terms: ChannelParams,
        access: Signed<TaskCapability>,
    ) -> Result<(Amount, Signature), TransportError> {
        let unauthorized = |problem: &str| TransportError::Unauthorized(problem.to_owned());
        if access.message.scope != CapabilityScope::CloseChannel {
            return Err(unauthorized("the signature is for another purpose"));
        }
        if (terms.id(), terms.client) != (access.message.request_id, access.message.client) {
            return Err(unauthorized("the signature is for another channel"));
        }
        access.verify(&self.domain).map_err(|error| TransportError::Unauthorized(error.to_string()))?;
        self.redemptions.close(&self.ledger, terms).await
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        let trust_root = self.ledger.trust_root().await.map_err(|error| TransportError::Internal(error.to_string()))?;
        let GatewayOptions { model_sources, least_relayed, .. } = &self.options;
        let (model_sources, least_relayed) = (model_sources.clone(), *least_relayed);
        Ok(NetworkInfo { gateway: self.address(), trust_root, model_sources, least_relayed })
    }
}
