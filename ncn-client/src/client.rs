//! A whole request, from input to verified output.

mod builder;
mod following;
mod order;
mod paid;
mod parts;
mod quoted;
mod stored;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use builder::{ClientBuilder, ClientConfig, Payment};
pub use following::{Events, cancellations};
use ncn_core::{
    Amount, B256, CapabilityScope, DynSigner, FinishReason, InferenceRequest, LedgerError, Message as _, ModelInfo, Payer, Price,
    QuorumCertificate, Quote, Receipt, RequestId, Signed, StepTiming, Submission, TaskCapability, TaskStatus, Ticket, Transport,
    TransportError, TrustHistory, TrustRoot, Units, UnixTime, Usage, Values,
    validation::{MAX_EPOCH_AGE, MAX_ESCROW_SECONDS},
};
pub use order::Order;
pub use paid::Paid;
pub use parts::InferenceEvent;
use parts::Parts;
pub use quoted::Quoted;
pub use stored::Stored;

use tracing::Instrument as _;

use crate::{Backoff, ClientError, QuoteProblem, unix_now};

/// What an order has, on top of the least time that its model needs, to reach the gateway in.
const SUBMIT_TIME: Duration = Duration::from_secs(2);
/// The longest that an order waits by itself for a model that needs more time than the client usually waits.
const LONGEST: Duration = Duration::from_mins(15);
/// How many tickets are asked for at once, and how long they are kept: less than a gateway takes them.
const TICKETS: u32 = 16;
const TICKET_AGE: Duration = Duration::from_mins(2);
/// How long is waited for the chain's endpoint to be where the gateway's is.
const CHAIN_TIME: Duration = Duration::from_secs(15);
/// How long the chain may take to answer; a payment waits for its block.
const LEDGER_TIMEOUT: Duration = Duration::from_mins(1);

/// The SDK's way to the network. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    payer: Arc<dyn Payer>,
    signer: DynSigner,
    config: ClientConfig,
    offers: Arc<Mutex<Option<Offers>>>,
    /// The gateway's tickets that are left, and when they were given.
    tickets: Arc<Mutex<Vec<(Instant, Ticket)>>>,
}

/// What the gateway offered when it was last asked.
struct Offers {
    at: Instant,
    models: Vec<ModelInfo>,
}

/// What a request may cost, before it is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// What the model's requests cost.
    pub price: Price,
    /// The most units that the request is charged for.
    pub max_units: Units,
    /// The most that it can cost: the total of its quote.
    pub maximum: Amount,
    /// What it costs if it takes what the gateway's requests took on average; the maximum where the gateway knows of none.
    pub typical: Amount,
}

/// A verified answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferenceOutput {
    /// What the model gave.
    pub output: Values,
    /// The proof of it, verified against the client's trust root.
    pub receipt: Receipt,
    /// The steps that led to it, as client and gateway measured them.
    pub steps: Vec<StepTiming>,
}

impl InferenceOutput {
    /// What the request took.
    pub fn usage(&self) -> Usage {
        self.receipt.usage()
    }

    /// What its units were priced at.
    pub const fn price(&self) -> &Price {
        &self.receipt.quote.price
    }

    /// What it cost.
    pub fn cost(&self) -> Amount {
        self.receipt.cost()
    }

    /// Why the output ended.
    pub const fn finish(&self) -> FinishReason {
        self.receipt.completion.finish
    }
}

impl Client {
    /// Starts to set a client up.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A client of the gateway at this URL ([`crate::transport`]) that pays each request by a signature of its key, which the gateway brings to
    /// the chain ([`Payment::Relayed`]): the key's account needs tokens, and neither a chain nor gas. `network` is the hash of the network to
    /// trust, as `ncn network` shows it. What else there is to set is set before it is built, [`ClientBuilder::max_price`] above all.
    ///
    /// # Errors
    /// The gateway does not answer, or is of another network.
    pub async fn connect(url: &str, signer: DynSigner, network: B256) -> Result<ClientBuilder, ClientError> {
        let invalid = |setting, problem: String| ClientError::Configuration { setting, problem };
        let transport = crate::transport(url).map_err(|error| invalid("gateway", error.to_string()))?;
        let trust = transport.network().await?.trust_root;
        if trust.hash() != network {
            return Err(invalid("network", format!("the gateway is of {}, not of {network}", trust.hash())));
        }
        Ok(Self::builder().transport(transport).payment(Payment::Relayed).trust(trust).signer(signer))
    }

    /// What the gateway offers now.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        let offered = self.transport.models().await?;
        *self.offers() = Some(Offers { at: Instant::now(), models: offered.clone() });
        Ok(offered)
    }

    /// The model of this name, as the gateway offers it now.
    ///
    /// # Errors
    /// [`ClientError::UnknownModel`], with the names of those that are offered.
    pub async fn model(&self, name: &str) -> Result<ModelInfo, ClientError> {
        let mut offered = self.models().await?;
        match offered.iter().position(|info| info.model.manifest().name == name) {
            Some(index) => Ok(offered.swap_remove(index)),
            None => {
                let offered: Vec<_> = offered.iter().map(|info| info.model.manifest().name.as_str()).collect();
                Err(ClientError::UnknownModel { name: name.to_owned(), offered: offered.join(", ") })
            }
        }
    }

    fn offers(&self) -> MutexGuard<'_, Option<Offers>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model of this name, as the gateway offered it a moment ago.
    fn remembered(&self, name: &str) -> Option<ModelInfo> {
        let offers = self.offers();
        let offers = offers.as_ref().filter(|offers| offers.at.elapsed() < self.config.max_offer_age)?;
        offers.models.iter().find(|info| info.model.manifest().name == name).cloned()
    }

    /// Runs a model on these inputs and pays for it, at most the client's limit: submit, pay, wait, verify. Giving this up cancels the request: see
    /// [`Quoted::finish`].
    ///
    /// # Errors
    /// [`ClientError::PriceUnseen`] when the client has no limit ([`ClientBuilder::max_price`]), because the price would be paid before
    /// anyone has seen it. Nothing has been signed then. Every other error says what became of the money: see [`ClientError::is_paid`].
    pub async fn infer(&self, model: &str, inputs: impl Into<Values> + Send) -> Result<InferenceOutput, ClientError> {
        let order = Order::new(model, inputs);
        if self.config.max_price.is_none() {
            let price = self.estimate(&order).await?.maximum;
            return Err(ClientError::PriceUnseen { model: model.to_owned(), price });
        }
        self.submit(order).await?.finish().await
    }

    /// What an order may cost by what the gateway lists now. Nothing is signed or paid.
    ///
    /// # Errors
    /// When the model is not offered, or does not take the order's inputs or parameters.
    pub async fn estimate(&self, order: &Order) -> Result<Estimate, ClientError> {
        let info = self.model(&order.model).await?;
        info.model.manifest().check(&order.inputs)?;
        let (max_units, maximum) = info.maximum(&order.inputs, &order.parameters)?;
        let typical = info.typical_units.map_or(max_units, |typical| Units {
            input: typical.input.min(max_units.input),
            output: typical.output.min(max_units.output),
        });
        // Fewer units than those of the maximum, whose cost fits an amount.
        let typical = info.price.cost(typical).unwrap_or(maximum);
        Ok(Estimate { price: info.price, max_units, maximum, typical })
    }

    /// Submits an order and checks what the gateway makes of it. Nothing is paid yet: the caller sees the quote first, and pays it or not.
    ///
    /// The order is signed for the most that it can cost at the price that the gateway listed when it was last asked, at most
    /// [`ClientConfig::max_offer_age`] ago, so neither a higher limit nor a price that rises meanwhile is ever charged. Where the list has changed since then, it is asked for
    /// again, once.
    ///
    /// # Errors
    /// [`ClientError::TooExpensive`] when the order can cost more than its limit, or than the client's where the order has none.
    pub async fn submit(&self, order: Order) -> Result<Quoted, ClientError> {
        if let Some(info) = self.remembered(&order.model) {
            match self.submit_as(&order, info).await {
                Err(error) if is_stale(&error) => tracing::debug!(model = order.model, %error, "the gateway's offer has changed"),
                submitted => return submitted,
            }
        }
        let info = self.model(&order.model).await?;
        match self.submit_as(&order, info.clone()).await {
            // A gateway that was started anew does not know the tickets that it gave before.
            Err(error) if is_ticket(&error) => {
                self.tickets().clear();
                self.submit_as(&order, info).await
            }
            submitted => submitted,
        }
    }

    /// Submits an order for a model as it was offered.
    async fn submit_as(&self, order: &Order, info: ModelInfo) -> Result<Quoted, ClientError> {
        let started = Instant::now();
        // The gateway checks the same, but for the pixels of images; here it costs nobody anything.
        info.model.manifest().check(&order.inputs)?;
        info.model.manifest().prepare(&order.inputs, None)?;
        info.model.manifest().check_parameters(&order.parameters)?;
        let (max_units, maximum) = info.maximum(&order.inputs, &order.parameters)?;
        if let Some(limit) = order.max_price.or(self.config.max_price).filter(|limit| maximum > *limit) {
            return Err(ClientError::TooExpensive { price: maximum, limit });
        }
        let ticket = self.ticket().await?;
        let history = self.trust(0).await?;
        let message = InferenceRequest {
            client: self.signer.address(),
            subnet: info.subnet,
            model_digest: info.model.digest(),
            input_hash: order.inputs.hash(),
            parameters: order.parameters.clone(),
            max_price: maximum,
            deadline: history.now(unix_now()) + self.timeout(order, &info)?.as_secs().clamp(1, MAX_ESCROW_SECONDS),
            nonce: B256::random(),
            draw: ticket.draw,
        };
        let trust = history.current().trust.clone();
        let request = Signed::sign(message, &trust.domain, &*self.signer).await?;
        let request_id = request.message.digest(&trust.domain);
        let submission = Submission { request: request.clone(), inputs: order.inputs.clone(), ticket: ticket.id };
        let asking = async {
            let (quote, preprocessing) = quoted(self.transport.submit(submission).await?)?;
            let trust = self.approved(&request.message, &request_id, &quote, &preprocessing).await?;
            Ok::<_, ClientError>((quote, preprocessing, trust))
        };
        let span = tracing::info_span!("client.submit", request = %request_id);
        let (quote, preprocessing, trust) = asking.instrument(span).await?;
        if (quote.price, quote.max_units) != (info.price, max_units) {
            return Err(QuoteProblem::Units { price: Box::new(quote.price), max_units: quote.max_units }.into());
        }
        let access = TaskCapability { client: self.signer.address(), request_id, scope: CapabilityScope::Follow };
        let access = Signed::sign(access, &trust.domain, &*self.signer).await?;
        Ok(Quoted { client: self.clone(), request, access, quote, preprocessing, trust, submitting: started.elapsed() })
    }

    /// How long an order is waited for: as long as it says, or as long as the client usually waits, and no less than the model may take.
    fn timeout(&self, order: &Order, info: &ModelInfo) -> Result<Duration, ClientError> {
        let least = info.least_timeout;
        match order.timeout {
            Some(timeout) if timeout < least => Err(ClientError::TimeoutTooShort { timeout, least }),
            // A gateway does not have a payment held for a day by saying that its model needs one.
            None if least > self.config.timeout.max(LONGEST) => {
                Err(ClientError::TimeoutTooShort { timeout: self.config.timeout.max(LONGEST), least })
            }
            Some(timeout) => Ok(timeout),
            None => Ok(self.config.timeout.max(least.saturating_add(SUBMIT_TIME))),
        }
    }

    /// The network that is trusted, as of `epoch` at least. The chain's endpoint may be a block behind the gateway's.
    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, ClientError> {
        if let Some(trust) = &self.config.trust {
            return Ok(Arc::new(TrustHistory::fixed(trust.clone())));
        }
        let started = Instant::now();
        let mut backoff = Backoff::new();
        loop {
            match within(self.payer.trust(epoch)).await {
                Err(error) if error.is_retryable() && started.elapsed() < CHAIN_TIME => backoff.pause().await,
                read => return Ok(read?),
            }
        }
    }

    /// Makes sure that a quote is for this order, that its judges are those who were drawn, of validators of a moment ago, and that they
    /// have approved it. Returns the network that it is of.
    async fn approved(
        &self,
        order: &InferenceRequest,
        request_id: &RequestId,
        quote: &Quote,
        certificate: &QuorumCertificate,
    ) -> Result<TrustRoot, ClientError> {
        quote.fits(order, request_id).map_err(QuoteProblem::from)?;
        if quote.expiry <= unix_now() {
            return Err(QuoteProblem::Expired(quote.expiry).into());
        }
        let history = self.trust(quote.epoch).await?;
        let (trust, committee) = history.of(quote).map_err(QuoteProblem::from)?;
        if !history.is_recent(quote, MAX_EPOCH_AGE) {
            return Err(QuoteProblem::Epoch.into());
        }
        certificate.verify(&quote.digest(&trust.domain), &committee).map_err(QuoteProblem::from)?;
        Ok(trust)
    }

    fn tickets(&self) -> MutexGuard<'_, Vec<(Instant, Ticket)>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket of the gateway's. Several are asked for at once, so that most orders need no further question.
    async fn ticket(&self) -> Result<Ticket, ClientError> {
        let kept = {
            let mut tickets = self.tickets();
            tickets.retain(|(at, _)| at.elapsed() < TICKET_AGE);
            tickets.pop()
        };
        if let Some((_, ticket)) = kept {
            return Ok(ticket);
        }
        let at = Instant::now();
        let mut given = self.transport.tickets(TICKETS).await?;
        let ticket = given.pop().ok_or_else(|| TransportError::Malformed("tickets: there are none".into()))?;
        self.tickets().extend(given.into_iter().map(|ticket| (at, ticket)));
        Ok(ticket)
    }
}

/// Whether an order was refused for its ticket.
fn is_ticket(error: &ClientError) -> bool {
    matches!(error, ClientError::Transport(TransportError::InvalidRequest { field, .. }) if field == "request.draw")
}

/// Whether an order was refused for what the gateway offered a moment ago, and may pass for what it offers now.
fn is_stale(error: &ClientError) -> bool {
    match error {
        ClientError::Input(_)
        | ClientError::TooExpensive { .. }
        | ClientError::QuoteRejected(QuoteProblem::Units { .. })
        | ClientError::Transport(TransportError::UnknownModel(_)) => true,
        ClientError::Transport(TransportError::InvalidRequest { field, .. }) => {
            matches!(field.as_str(), "request.maxPrice" | "request.subnet" | "request.draw")
        }
        _ => false,
    }
}

/// The quote to pay and the validators' approval of it, where there are any.
fn quoted(status: TaskStatus) -> Result<(Quote, QuorumCertificate), ClientError> {
    if status.outcome().is_some() {
        return Err(ClientError::Refused(status.failure.unwrap_or_else(|| "the gateway gave no reason".into())));
    }
    match (status.quote, status.preprocessing) {
        (Some(quote), Some(certificate)) => Ok((quote, certificate)),
        _ => Err(QuoteProblem::Missing.into()),
    }
}

/// A call to the chain that does not hang for ever. Every one that moves money may be made again.
async fn within<T>(call: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    let late = |_| Err(LedgerError::Unreachable(format!("no answer within {LEDGER_TIMEOUT:?}")));
    tokio::time::timeout(LEDGER_TIMEOUT, call).await.unwrap_or_else(late)
}
