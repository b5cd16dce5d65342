use std::{sync::Arc, time::Duration};

use ncn_core::{Amount, DynSigner, PaymentLedger, Transport, TrustRoot};

use super::Client;
use crate::{ClientError, grpc::GrpcTransport};

/// What a client does unless an order says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long to wait for an answer, and so how long a payment can be held.
    pub patience: Duration,
    /// The network to trust; by default the one that the ledger's chain has.
    pub trust: Option<TrustRoot>,
    /// The most that a request may cost whose order states no limit. None by default: then [`Client::infer`] refuses to pay a price that
    /// nobody has seen.
    pub max_price: Option<Amount>,
}

impl Options {
    /// For a person who waits: a minute.
    pub const fn interactive() -> Self {
        Self { patience: Duration::from_mins(1), trust: None, max_price: None }
    }

    /// For work that may queue: an hour.
    pub const fn batch() -> Self {
        Self { patience: Duration::from_hours(1), trust: None, max_price: None }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::interactive()
    }
}

/// Sets a [`Client`] up: a gateway or transport, a ledger and a key are needed.
#[derive(Clone, Default)]
pub struct ClientBuilder {
    gateway: Option<String>,
    transport: Option<Arc<dyn Transport>>,
    ledger: Option<Arc<dyn PaymentLedger>>,
    signer: Option<DynSigner>,
    options: Options,
}

impl ClientBuilder {
    /// The gateway's gRPC URL.
    #[must_use]
    pub fn gateway(mut self, url: impl Into<String>) -> Self {
        self.gateway = Some(url.into());
        self
    }

    /// Any way to a gateway, instead of a URL.
    #[must_use]
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// The money, as the client's account sees it.
    #[must_use]
    pub fn ledger(mut self, ledger: Arc<dyn PaymentLedger>) -> Self {
        self.ledger = Some(ledger);
        self
    }

    /// The client's key; its account is the ledger's.
    #[must_use]
    pub fn signer(mut self, signer: DynSigner) -> Self {
        self.signer = Some(signer);
        self
    }

    /// A preset: [`Options::interactive`] (the default) or [`Options::batch`].
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// How long to wait for an answer, and so how long a payment can be held.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.options.patience = patience;
        self
    }

    /// The network to trust, instead of the one that the ledger's chain has.
    #[must_use]
    pub fn trust(mut self, trust: TrustRoot) -> Self {
        self.options.trust = Some(trust);
        self
    }

    /// The most that a request may cost whose order states no limit. [`Client::infer`] needs it.
    #[must_use]
    pub const fn max_price(mut self, limit: Amount) -> Self {
        self.options.max_price = Some(limit);
        self
    }

    /// The client. Nothing is called yet.
    pub fn build(self) -> Result<Client, ClientError> {
        let missing = |setting, problem: &str| ClientError::Configuration { setting, problem: problem.to_owned() };
        let transport: Arc<dyn Transport> = match (self.transport, self.gateway) {
            (Some(transport), None) => transport,
            (None, Some(url)) => Arc::new(GrpcTransport::new(&url).map_err(|error| missing("gateway", &error.to_string()))?),
            (None, None) => return Err(missing("gateway", "is missing: give a URL or a transport")),
            (Some(_), Some(_)) => return Err(missing("gateway", "is given twice: give a URL or a transport, not both")),
        };
        let ledger = self.ledger.ok_or_else(|| missing("ledger", "is missing: give the ledger that pays"))?;
        let signer = self.signer.ok_or_else(|| missing("signer", "is missing: give the client's key"))?;
        if signer.address() != ledger.account() {
            let problem = format!("{} is not the ledger's account {}", signer.address(), ledger.account());
            return Err(missing("signer", &problem));
        }
        Ok(Client { transport, ledger, signer, options: self.options })
    }
}
