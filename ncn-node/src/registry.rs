//! The registry's roles: the node that knows who is on the network and collects approvals, and the validator that gives them.

mod answers;
mod catalog;
mod defined;
mod given;
#[cfg(feature = "grpc")]
mod serve;
mod state;
mod subnets;
mod validator;
mod witness;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use answers::Answers;
use async_trait::async_trait;
use catalog::Manifests;
use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
#[cfg(feature = "grpc")]
use ncn_client::grpc::GrpcValidator;
use ncn_core::{Address, B256};
use ncn_core::{
    AnswerTime, Approval, ApprovedSubnet, Attestors, BatchRequest, ChainView, Committee, Completion, CompletionAuthorization,
    CompletionRequest, Deregistration, Directory, Domain, Heartbeat, Message as _, NodeChanges, NodeQuery, NodeRecord, NodeRole,
    PreprocessingRequest, QuorumCertificate, RegistryError, Signed, TrustHistory, UnixTime, Validator,
    evidence::Equivocation,
    membership::{Membership, MembershipLimits, News, Origin, SharedMembership, Source},
    validation,
};
#[cfg(feature = "grpc")]
pub use serve::{StatusSource, registry_service, status_service, validator_service};
use state::State;
use subnets::Subnets;
pub use validator::ValidatorNode;
use witness::Witness;

use ncn_client::unix_now;
use tokio::sync::Mutex as AsyncMutex;

use crate::store::{SharedStore, StoreError};

/// How often a node writes down what it has learned.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long a validator may take to answer. Enough good approvals end the wait at once, so that one that is silent delays nobody; with less
/// time, dozens of requests at once on a slow machine are refused, though each would be approved.
const VALIDATOR_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one may take to judge thousands of requests.
const SETTLEMENT_TIMEOUT: Duration = Duration::from_mins(4);

tokio::task_local! {
    /// From which network a node registers that calls this one. [`Directory`] has no place for it: it is the same for those that are in this process.
    static SOURCE: Source;
}

async fn save(state: &AsyncMutex<Option<State>>) {
    if let Some(state) = &mut *state.lock().await
        && let Err(error) = state.save().await
    {
        tracing::warn!(%error, "what this node knows is not kept");
    }
}

fn until_next_second() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(1).saturating_sub(Duration::from_nanos(now.subsec_nanos().into())) + Duration::from_millis(1)
}

/// Makes a way to the validator that a record announces.
pub type Dial = dyn Fn(&NodeRecord) -> Result<Arc<dyn Validator>, RegistryError> + Send + Sync;

type Dialled = (String, Arc<dyn Validator>);

/// A registry node: membership in memory, and the validators' approvals collected in parallel.
pub struct RegistryNode {
    ledger: Arc<dyn ChainView>,
    subnets: Subnets,
    manifests: Manifests,
    domain: Domain,
    membership: Arc<SharedMembership>,
    /// The ways to validators that were called before, with the endpoint that each leads to.
    validators: Mutex<HashMap<Address, Dialled>>,
    dial: Box<Dial>,
    refused: Mutex<BTreeMap<String, u64>>,
    answers: Answers,
    outlet: OnceLock<Arc<dyn Outlet>>,
    state: Arc<AsyncMutex<Option<State>>>,
    witness: Arc<Witness>,
}

/// The way to the other registry nodes.
pub trait Outlet: Send + Sync {
    /// Tells them. It does not wait, and what is lost on the way comes again: records and heartbeats are repeated.
    fn tell(&self, news: News);
}

impl RegistryNode {
    /// A registry node of the network that `ledger`'s chain has; it calls validators over gRPC.
    #[cfg(feature = "grpc")]
    pub async fn new(ledger: Arc<dyn ChainView>) -> Result<Self, RegistryError> {
        Self::with_dial(ledger, Box::new(dial_grpc)).await
    }

    /// The same, calling validators in another way.
    pub async fn with_dial(ledger: Arc<dyn ChainView>, dial: Box<Dial>) -> Result<Self, RegistryError> {
        let domain = trust(&*ledger, 0).await?.current().trust.domain;
        let membership = SharedMembership::new(Membership::new(domain, MembershipLimits::default()));
        let subnets = Subnets::new(ledger.clone());
        Ok(Self {
            ledger,
            subnets,
            manifests: Manifests::default(),
            domain,
            membership,
            validators: Mutex::default(),
            dial,
            refused: Mutex::default(),
            answers: Answers::default(),
            outlet: OnceLock::new(),
            state: Arc::default(),
            witness: Arc::default(),
        })
    }

    /// Takes in what was kept in this store, and keeps there from now on what it knows, until the node is dropped.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn keep(&self, store: SharedStore) -> Result<(), StoreError> {
        let trust = trust(&*self.ledger, 0).await.ok();
        let is_validator = |node: &Address| trust.as_ref().is_some_and(|trust| trust.is_listed(node));
        let state = State::open(store, self.membership.clone(), self.witness.clone(), is_validator).await?;
        *self.state.lock().await = Some(state);
        let state = Arc::downgrade(&self.state);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SAVE_EVERY).await;
                let Some(state) = state.upgrade() else { return };
                save(&state).await;
            }
        });
        Ok(())
    }

    /// What convicts validators that have approved more than one completion of a request: as this node has asked them.
    pub fn evidence(&self) -> Vec<Equivocation> {
        self.witness.evidence()
    }

    /// Remembers what was approved, and what is evidence together with what was approved before.
    fn witness(&self, completion: &Completion, authorization: &Signed<CompletionAuthorization>, approvals: &[Approval]) {
        for found in self.witness.see(completion, authorization, approvals) {
            let validator = found.first.approval.validator;
            tracing::error!(%validator, request = %found.request_id(), "a validator has approved two completions of one request");
        }
    }

    /// Writes down at once what it knows.
    pub async fn save(&self) {
        save(&self.state).await;
    }

    /// From here on it tells others what it takes in.
    pub fn tell(&self, outlet: Arc<dyn Outlet>) {
        // The first one stays.
        let _ = self.outlet.set(outlet);
    }

    /// Takes in what another registry node tells, which is called at this address. False when it is no news.
    ///
    /// # Errors
    /// As the [`Directory`]'s, for what a node or a gateway brings itself.
    pub async fn hear(&self, news: News, source: Source) -> Result<bool, RegistryError> {
        if let News::Subnet(subnet) = &news {
            self.counted(self.check_subnet(subnet).await)?;
        }
        self.update(news, source).await
    }

    /// Takes news in that were checked. False when they are none.
    async fn update(&self, news: News, source: Source) -> Result<bool, RegistryError> {
        let origin = Origin { source, is_validator: self.is_validator(&news).await };
        let approved = if let News::Subnet(subnet) = &news { Some(subnet.clone()) } else { None };
        let is_new = self.counted(self.membership.update(|membership| membership.take(news, origin, unix_now())))?;
        match approved {
            Some(approved) if !is_new => self.renew(approved).await,
            _ => Ok(is_new),
        }
    }

    /// Whether these approvals of a subnet take the place of those that are known, since the latter count no more: validators have left.
    async fn renew(&self, approved: ApprovedSubnet) -> Result<bool, RegistryError> {
        let known = self.membership.read(|membership| membership.subnet(&approved.subnet().id()).cloned())?;
        if known.approvals == approved.approvals || known.verify(&*trust(&*self.ledger, 0).await?).is_ok() {
            return Ok(false);
        }
        self.membership.update(|membership| membership.renew(approved));
        Ok(true)
    }

    /// Whether a subnet that this node knows offers the model with this digest.
    pub fn lists(&self, model: &B256) -> bool {
        self.membership.read(|membership| membership.lists(model))
    }

    /// Whether it is of a validator that the chain lists. Only for those that say so is the chain looked at.
    async fn is_validator(&self, news: &News) -> bool {
        match news {
            News::Record(record) if record.message.role == NodeRole::Validator => {
                trust(&*self.ledger, 0).await.is_ok_and(|trust| trust.is_listed(&record.message.node))
            }
            _ => false,
        }
    }

    /// The network's domain.
    pub const fn domain(&self) -> Domain {
        self.domain
    }

    /// How much was refused since the start, by the field that was wrong.
    pub fn refused(&self) -> BTreeMap<String, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn counted<T>(&self, taken: Result<T, RegistryError>) -> Result<T, RegistryError> {
        let field = match &taken {
            Err(RegistryError::Invalid { field, .. }) => field,
            // The same again is a repetition.
            Err(RegistryError::Stale { given, known }) if given < known => "sequence",
            Err(RegistryError::Overloaded(_)) => "room",
            _ => return taken,
        };
        // There are only so many fields.
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(field.to_owned()).or_default() += 1;
        taken
    }

    /// What this node knows of the nodes and subnets after these, in the order of their addresses and ids: at most so many of either.
    pub fn known(&self, after: (Address, B256), most: (usize, usize)) -> (Vec<Signed<NodeRecord>>, Vec<ApprovedSubnet>) {
        self.membership.read(|membership| membership.known(after, most, unix_now()))
    }

    /// How many nodes are live, and how many subnets and pending requests there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        self.membership.read(|membership| {
            let (nodes, subnets) = membership.counts(unix_now());
            (nodes, subnets, membership.pending_requests().len())
        })
    }

    /// Takes in what a node or a gateway brings, and tells the others.
    async fn take(&self, news: News) -> Result<(), RegistryError> {
        let told = self.outlet.get().map(|outlet| (outlet, news.clone()));
        let source = SOURCE.try_with(|source| *source).unwrap_or_default();
        let is_new = self.update(news, source).await?;
        if let (true, Some((outlet, news))) = (is_new, told) {
            outlet.tell(news);
        }
        Ok(())
    }

    /// Whether a subnet is its owner's, who has paid for it, and validators have approved it.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`], which names what is wrong; [`RegistryError::Unreachable`] when the chain does not answer.
    pub async fn check_subnet(&self, subnet: &ApprovedSubnet) -> Result<(), RegistryError> {
        self.subnets.check(subnet, &*trust(&*self.ledger, 0).await?).await
    }

    /// The members of these committees that are live, by their record.
    fn members(&self, committees: &[Committee], trust: &TrustHistory) -> Vec<Arc<dyn Validator>> {
        let members = committees.iter().flat_map(|committee| committee.members.iter().copied());
        // Who has taken its stake back does not count any more.
        let members: BTreeSet<Address> = members.filter(|member| trust.is_listed(member)).collect();
        let now = unix_now();
        let records: Vec<_> = self.membership.read(|membership| {
            let record = |validator: Address| {
                let query = NodeQuery { role: Some(NodeRole::Validator), node: Some(validator), ..NodeQuery::default() };
                membership.discover(&query, now).pop()
            };
            members.into_iter().filter_map(record).collect()
        });
        records.iter().filter_map(|record| self.validator(&record.message)).collect()
    }

    /// The way to a validator: made once, and again when it has moved.
    fn validator(&self, record: &NodeRecord) -> Option<Arc<dyn Validator>> {
        let mut validators = self.validators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((endpoint, validator)) = validators.get(&record.node)
            && *endpoint == record.endpoint
        {
            return Some(validator.clone());
        }
        match (self.dial)(record) {
            Ok(validator) => {
                validators.insert(record.node, (record.endpoint.clone(), validator.clone()));
                Some(validator)
            }
            Err(error) => {
                tracing::warn!(validator = %record.node, %error, "cannot call a validator");
                None
            }
        }
    }

    /// Asks the members of these committees in parallel, until M of each have approved. Returns who has approved, and what is missing.
    async fn collect<A>(
        &self,
        trust: &TrustHistory,
        committees: &[Committee],
        digest: B256,
        timeout: Duration,
        ask: A,
    ) -> (Vec<Approval>, Result<(), RegistryError>)
    where
        A: Fn(Arc<dyn Validator>) -> BoxFuture<'static, Result<Approval, RegistryError>>,
    {
        let asked = self.members(committees, trust);
        let mut waiting: BTreeSet<Address> = asked.iter().map(|validator| validator.address()).collect();
        let began = Instant::now();
        let mut took: BTreeMap<Address, Option<Duration>> = waiting.iter().map(|validator| (*validator, None)).collect();
        let mut answers: FuturesUnordered<_> = asked
            .into_iter()
            .map(|validator| {
                let (address, answer) = (validator.address(), ask(validator));
                async move { (address, tokio::time::timeout(timeout, answer).await) }
            })
            .collect();
        let mut approvals: BTreeMap<Address, Approval> = BTreeMap::new();
        let mut reasons = Vec::new();
        let mut is_hopeless = false;
        loop {
            // When it cannot be enough any more, nobody is waited for; but those who have answered may be convicted by it.
            let answered = if is_hopeless { answers.next().now_or_never().flatten() } else { answers.next().await };
            let Some((validator, answer)) = answered else { break };
            waiting.remove(&validator);
            match answer {
                // A signature is checked as it comes: a bad one must not keep a good one from counting.
                Ok(Ok(approval)) if approval.validator != validator || approval.signature.verify(&digest, validator).is_err() => {
                    reasons.push(format!("{validator}: its approval is not its signature"));
                }
                Ok(Ok(approval)) => {
                    took.insert(validator, Some(began.elapsed()));
                    approvals.insert(validator, approval);
                }
                Ok(Err(error)) => reasons.push(format!("{validator}: {error}")),
                Err(_) => reasons.push(format!("{validator}: no answer in {timeout:?}")),
            }
            if committees.iter().all(|committee| short(committee, |member| approvals.contains_key(member)).is_none()) {
                self.answers.count(&took);
                return (approvals.into_values().collect(), Ok(()));
            }
            let hopes = |member: &Address| approvals.contains_key(member) || waiting.contains(member);
            is_hopeless = committees.iter().any(|committee| short(committee, hopes).is_some());
        }
        self.answers.count(&took);
        if reasons.is_empty() {
            reasons.push("no validators of the committee are registered".into());
        }
        let missing = committees.iter().find_map(|committee| short(committee, |member| approvals.contains_key(member)));
        let (have, need) = missing.unwrap_or_default();
        let missing = RegistryError::TooFewApprovals { have, need, reasons: reasons.join("; ") };
        (approvals.into_values().collect(), Err(missing))
    }
}

/// The way to a validator whose record has a URL.
///
/// # Errors
/// [`RegistryError::Invalid`] when that is none.
#[cfg(feature = "grpc")]
pub fn dial_grpc(record: &NodeRecord) -> Result<Arc<dyn Validator>, RegistryError> {
    let validator = GrpcValidator::new(record.node, &record.endpoint);
    Ok(Arc::new(validator.map_err(|error| RegistryError::invalid("record.endpoint", error.to_string()))?))
}

/// How many of a committee are in, and how many have to be, when that is more.
fn short(committee: &Committee, is_in: impl Fn(&Address) -> bool) -> Option<(usize, usize)> {
    let (have, need) = (committee.members.iter().filter(|member| is_in(member)).count(), usize::from(committee.threshold));
    (have < need).then_some((have, need))
}

/// Who judges when, read at this epoch or later.
async fn trust(ledger: &dyn ChainView, epoch: UnixTime) -> Result<Arc<TrustHistory>, RegistryError> {
    ledger.trust(epoch).await.map_err(|error| RegistryError::Unreachable(error.to_string()))
}

#[async_trait]
impl Directory for RegistryNode {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.take(News::Record(record)).await
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        self.take(News::Heartbeat(heartbeat)).await
    }

    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError> {
        self.take(News::Departure(deregistration)).await
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        Ok(self.membership.read(|membership| membership.discover(&query, unix_now())))
    }

    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError> {
        let tick = async |()| {
            // Silence and expiry are counted in seconds: looked for with each, they are noticed at once.
            tokio::time::sleep(until_next_second()).await;
            Some(((), ()))
        };
        Ok(self.membership.watch(query, unix_now, stream::unfold((), tick).boxed()))
    }
}

#[async_trait]
impl Attestors for RegistryNode {
    #[tracing::instrument(name = "registry.preprocessing", skip_all, fields(request = %request.quote.request_id))]
    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<QuorumCertificate, RegistryError> {
        validation::signed_order(&request, &self.domain)?;
        let trust = trust(&*self.ledger, request.quote.epoch).await?;
        let (_, committee) = trust.of(&request.quote)?;
        let digest = request.quote.digest(&self.domain);
        let request = Arc::new(request);
        let ask = |validator: Arc<dyn Validator>| -> BoxFuture<'static, _> {
            let request = request.clone();
            Box::pin(async move { validator.preprocessing(&request).await })
        };
        let (approvals, enough) = self.collect(&trust, &[committee], digest, VALIDATOR_TIMEOUT, ask).await;
        enough.map(|()| QuorumCertificate::new(approvals))
    }

    #[tracing::instrument(name = "registry.completion", skip_all, fields(request = %request.quote.request_id))]
    async fn completion(&self, request: CompletionRequest) -> Result<QuorumCertificate, RegistryError> {
        let completion = validation::authorization(&request, &self.domain)?;
        let trust = trust(&*self.ledger, request.quote.epoch).await?;
        let (_, committee) = trust.of(&request.quote)?;
        let digest = completion.digest(&self.domain);
        let request = Arc::new(request);
        let ask = |validator: Arc<dyn Validator>| -> BoxFuture<'static, _> {
            let request = request.clone();
            Box::pin(async move { validator.completion(&request).await })
        };
        let (approvals, enough) = self.collect(&trust, &[committee], digest, VALIDATOR_TIMEOUT, ask).await;
        self.witness(&completion, &request.authorization, &approvals);
        enough.map(|()| QuorumCertificate::new(approvals))
    }

    async fn settlement(&self, request: Arc<BatchRequest>) -> Result<QuorumCertificate, RegistryError> {
        let history = trust(&*self.ledger, 0).await?;
        let trust = &history.current().trust;
        // Whoever is not the gateway does not make validators check thousands of signatures.
        validation::settlement(&request, trust)?;
        let digest = request.batch.settlement.digest(&trust.channel_domain());
        let committees = request.committees.clone();
        let ask = |validator: Arc<dyn Validator>| -> BoxFuture<'static, _> {
            let request = request.clone();
            Box::pin(async move { validator.settlement(&request).await })
        };
        let (approvals, enough) = self.collect(&history, &committees, digest, SETTLEMENT_TIMEOUT, ask).await;
        enough.map(|()| QuorumCertificate::new(approvals))
    }

    async fn answer_times(&self) -> Result<Vec<AnswerTime>, RegistryError> {
        Ok(self.answers.times())
    }
}
