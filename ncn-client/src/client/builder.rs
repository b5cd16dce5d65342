use std::{sync::Arc, time::Duration};

use ncn_core::{Amount, DynSigner, Payer, Transport, TrustRoot};

use super::Client;
use crate::{ClientError, grpc::GrpcTransport};

/// What a client does unless an order says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long to wait for an answer, and so how long a payment can be held.
    pub patience: Duration,
    /// The network to trust; by default the payer's.
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

/// Sets a [`Client`] up: a gateway or transport, a payer and a key are needed.
#[derive(Clone, Default)]
pub struct ClientBuilder {
    gateway: Option<String>,
    transport: Option<Arc<dyn Transport>>,
    payer: Option<Arc<dyn Payer>>,
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

    /// How requests are paid.
    #[must_use]
    pub fn payer(mut self, payer: Arc<dyn Payer>) -> Self {
        self.payer = Some(payer);
        self
    }

    /// The client's key; its account is the payer's.
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

    /// The network to trust, instead of the payer's.
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
        let payer = self.payer.ok_or_else(|| missing("payer", "is missing: say how requests are paid"))?;
        let signer = self.signer.ok_or_else(|| missing("signer", "is missing: give the client's key"))?;
        if signer.address() != payer.account() {
            let problem = format!("{} is not the payer's account {}", signer.address(), payer.account());
            return Err(missing("signer", &problem));
        }
        Ok(Client { transport, payer, signer, options: self.options })
    }
}
