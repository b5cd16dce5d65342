use std::{fmt::Display, path::PathBuf, sync::Arc, time::Duration};

use ncn_core::{Amount, DynSigner, Payer, Transport, TrustRoot};

use super::Client;
#[cfg(feature = "evm")]
use crate::evm::EvmLedger;
use crate::{ChannelPayer, ClientError, PayerChannel, RelayedPayer, transport};

/// What a client does unless an order says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// How long to wait for an answer, and so how long a payment can be held; longer where a model needs it.
    pub timeout: Duration,
    /// The network to trust; by default the payer's.
    pub trust: Option<TrustRoot>,
    /// The most that a request may cost whose order states no limit. None by default: then [`Client::infer`] refuses to pay a price that
    /// nobody has seen.
    pub max_price: Option<Amount>,
    /// How long the gateway's list of models is remembered: for so long an order is signed for a listed price without asking for it again. A
    /// minute by default.
    pub max_offer_age: Duration,
}

/// See [`ClientConfig::max_offer_age`].
const MAX_OFFER_AGE: Duration = Duration::from_mins(1);

impl ClientConfig {
    /// For a person who waits: a minute.
    pub const fn interactive() -> Self {
        Self { timeout: Duration::from_mins(1), trust: None, max_price: None, max_offer_age: MAX_OFFER_AGE }
    }

    /// For work that may queue: an hour.
    pub const fn batch() -> Self {
        Self { timeout: Duration::from_hours(1), trust: None, max_price: None, max_offer_age: MAX_OFFER_AGE }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self::interactive()
    }
}

/// How a client pays.
#[derive(Clone)]
pub enum Payment {
    /// Each request by a transaction of this account, into escrow.
    #[cfg(feature = "evm")]
    OnChain(EvmLedger),
    /// Each request by a signature that the gateway brings to the chain, into escrow. The client needs tokens, and neither a chain nor gas.
    Relayed,
    /// Each request by a voucher, out of the channel that is kept in this file: see [`PayerChannel::create`].
    Channel(PathBuf),
}

impl Payment {
    /// The chain that the client pays on itself.
    #[cfg(feature = "evm")]
    const fn ledger(&self) -> Option<&EvmLedger> {
        match self {
            Self::OnChain(ledger) => Some(ledger),
            Self::Relayed | Self::Channel(_) => None,
        }
    }

    /// The key that comes with it.
    fn signer(&self) -> Option<&DynSigner> {
        match self {
            #[cfg(feature = "evm")]
            Self::OnChain(ledger) => Some(ledger.signer()),
            Self::Relayed | Self::Channel(_) => None,
        }
    }
}

/// Sets a [`Client`] up: a gateway or transport, a payment and a key are needed.
#[derive(Clone, Default)]
pub struct ClientBuilder {
    gateway: Option<String>,
    transport: Option<Arc<dyn Transport>>,
    payment: Option<Payment>,
    payer: Option<Arc<dyn Payer>>,
    #[cfg(feature = "evm")]
    chain: Option<EvmLedger>,
    signer: Option<DynSigner>,
    config: ClientConfig,
}

impl ClientBuilder {
    /// The gateway's URL: see [`crate::transport`].
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
    pub fn payment(mut self, payment: Payment) -> Self {
        self.payment = Some(payment);
        self
    }

    /// The chain that shows what becomes of payments which the gateway brings there. Without it, some of that only the gateway says
    /// ([`ClientError::Unproven`]). It must be the one of the network that is trusted.
    #[cfg(feature = "evm")]
    #[must_use]
    pub fn chain(mut self, chain: EvmLedger) -> Self {
        self.chain = Some(chain);
        self
    }

    /// Any other way to pay, instead of [`ClientBuilder::payment`].
    #[must_use]
    pub fn payer(mut self, payer: Arc<dyn Payer>) -> Self {
        self.payer = Some(payer);
        self
    }

    /// The client's key; its account is the payer's. By default that of `Payment::OnChain`.
    #[must_use]
    pub fn signer(mut self, signer: DynSigner) -> Self {
        self.signer = Some(signer);
        self
    }

    /// A preset: [`ClientConfig::interactive`] (the default) or [`ClientConfig::batch`].
    #[must_use]
    pub fn config(mut self, config: ClientConfig) -> Self {
        self.config = config;
        self
    }

    /// How long to wait for an answer, and so how long a payment can be held.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.config.timeout = timeout;
        self
    }

    /// The network to trust. By default the one that the chain has, with `Payment::OnChain`; the other ways to pay need it.
    #[must_use]
    pub fn trust(mut self, trust: TrustRoot) -> Self {
        self.config.trust = Some(trust);
        self
    }

    /// The most that a request may cost whose order states no limit. [`Client::infer`] needs it.
    #[must_use]
    pub const fn max_price(mut self, limit: Amount) -> Self {
        self.config.max_price = Some(limit);
        self
    }

    /// The client. Nothing is called yet.
    pub fn build(self) -> Result<Client, ClientError> {
        let transport = match (self.transport, self.gateway) {
            (Some(transport), None) => transport,
            (None, Some(url)) => transport(&url).map_err(|error| invalid("gateway", error))?,
            (None, None) => return Err(invalid("gateway", "is missing: give a URL or a transport")),
            (Some(_), Some(_)) => return Err(invalid("gateway", "is given twice: give a URL or a transport, not both")),
        };
        let signer = self.signer.or_else(|| self.payment.as_ref().and_then(Payment::signer).cloned());
        let signer = signer.ok_or_else(|| invalid("signer", "is missing: give the client's key"))?;
        let trusted = self.config.trust.clone();
        if let Some(trust) = &trusted {
            trust.validate().map_err(|error| invalid("trust", error))?;
        }
        #[cfg(feature = "evm")]
        {
            let on_chain = self.payment.as_ref().and_then(Payment::ledger);
            if let (Some(trust), Some(ledger)) = (&trusted, on_chain.or(self.chain.as_ref()))
                && !ledger.is_of(trust)
            {
                return Err(invalid("trust", "is another network than the chain's contracts are of"));
            }
            if self.chain.is_some() && !matches!(self.payment, Some(Payment::Relayed | Payment::Channel(_))) {
                return Err(invalid("chain", "is for relayed payments and channels: leave it out"));
            }
        }
        let trust =
            || trusted.ok_or_else(|| invalid("trust", "is missing: without a chain you have to say which network you trust"));
        let payer: Arc<dyn Payer> = match (self.payer, self.payment) {
            (Some(payer), None) => payer,
            #[cfg(feature = "evm")]
            (None, Some(Payment::OnChain(ledger))) => Arc::new(ledger),
            (None, Some(Payment::Relayed)) => {
                let payer = RelayedPayer::new(transport.clone(), trust()?, signer.clone());
                #[cfg(feature = "evm")]
                let payer = payer.with_chain(self.chain.map(|chain| Arc::new(chain) as _));
                Arc::new(payer)
            }
            (None, Some(Payment::Channel(path))) => {
                let opened = PayerChannel::open(&path);
                let channel = opened.map_err(|error| invalid("payment", format!("channel {}: {error}", path.display())))?;
                if channel.terms().client != signer.address() {
                    let (owner, key) = (channel.terms().client, signer.address());
                    return Err(invalid("signer", format!("is {key}'s key, the channel is {owner}'s")));
                }
                let payer = ChannelPayer::new(transport.clone(), trust()?, signer.clone(), Arc::new(channel));
                #[cfg(feature = "evm")]
                let payer = payer.with_chain(self.chain.map(|chain| Arc::new(chain) as _));
                Arc::new(payer)
            }
            (None, None) => return Err(invalid("payment", "is missing: say how requests are paid")),
            (Some(_), Some(_)) => return Err(invalid("payment", "is given twice: give a payment or a payer, not both")),
        };
        if signer.address() != payer.account() {
            let problem = format!("{} is not the payer's account {}", signer.address(), payer.account());
            return Err(invalid("signer", problem));
        }
        Ok(Client { transport, payer, signer, config: self.config, offers: Arc::default(), tickets: Arc::default() })
    }
}

fn invalid(setting: &'static str, problem: impl Display) -> ClientError {
    ClientError::Configuration { setting, problem: problem.to_string() }
}
