use std::{path::Path, sync::Arc};

use alloy_primitives::{Address, B256};
use ncn_client::{
    ChannelPayer, Client, PayerChannel, RelayedPayer,
    core::{Amount, DynSigner, NetworkInfo, Payer, Transport, TrustRoot},
    devnet,
    evm::{Deployment, EvmLedger, JsonRpc, RpcOptions, SendOptions},
    transport,
};
use std::time::Duration;

use super::{Inner, SpendPolicy};
use crate::{ErrorKind, Key, NcnError, runtime};

/// How many confirmations a payment waits for on a public test network.
const TESTNET_CONFIRMATIONS: u64 = 3;

/// Everything that a client is made of.
#[derive(Clone, uniffi::Record)]
pub struct Connection {
    /// The gateways' URLs: `http://`, `https://`, `grpc://`, `grpcs://`, `ws://` or `wss://`. The first that answers is taken.
    pub gateways: Vec<String>,
    /// The network to trust.
    pub network: Network,
    /// The client's key.
    pub key: Key,
    /// How requests are paid.
    pub payment: Payment,
    /// URLs of the chain; none where the client has no chain.
    #[uniffi(default = [])]
    pub rpc: Vec<String>,
    /// The most that a request may cost whose order states no limit.
    #[uniffi(default = None)]
    pub max_price: Option<Amount>,
    /// How long to wait for an answer, in seconds; a minute by default.
    #[uniffi(default = None)]
    pub timeout: Option<u64>,
    /// Asked before each payment.
    #[uniffi(default = None)]
    pub policy: Option<Arc<dyn SpendPolicy>>,
}

/// Which network is trusted.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Network {
    /// `ncn devnet` on this machine, whose keys everybody knows.
    Devnet,
    /// Contracts on a public test network: payments wait for 3 confirmations.
    Testnet {
        /// Where they are.
        contracts: Contracts,
    },
    /// Any other.
    Custom {
        /// Where its contracts are; needed with a chain.
        contracts: Option<Contracts>,
        /// The hash of the network that is trusted; needed without a chain, and compared with what a chain says.
        hash: Option<String>,
        /// How many confirmations a payment waits for.
        confirmations: u64,
    },
}

/// The addresses of a network's contracts, as `ncn contracts deploy` prints them.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Contracts {
    /// `InferencePayment`.
    pub payment: String,
    /// `PaymentChannel`.
    pub channels: String,
    /// `SubnetRegistry`.
    pub subnets: String,
    /// `Slashing`.
    pub slashing: String,
}

/// How requests are paid.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Payment {
    /// Each by a transaction of the key's account, into escrow.
    OnChain,
    /// Each by a signature that the gateway brings to the chain.
    Relayed,
    /// Each by a voucher, out of the channel in this file.
    Channel {
        /// The file.
        path: String,
    },
}

pub(super) fn invalid(setting: &str, problem: impl std::fmt::Display) -> NcnError {
    NcnError::new(ErrorKind::Configuration, format!("{setting}: {problem}"))
}

impl Network {
    fn deployment(&self) -> Result<Option<Deployment>, NcnError> {
        match self {
            Self::Devnet => Ok(Some(devnet::deployment())),
            Self::Testnet { contracts } | Self::Custom { contracts: Some(contracts), .. } => contracts.read().map(Some),
            Self::Custom { contracts: None, .. } => Ok(None),
        }
    }

    const fn confirmations(&self) -> u64 {
        match self {
            Self::Devnet => 1,
            Self::Testnet { .. } => TESTNET_CONFIRMATIONS,
            Self::Custom { confirmations, .. } => *confirmations,
        }
    }
}

impl Contracts {
    fn read(&self) -> Result<Deployment, NcnError> {
        let address =
            |name: &str, text: &str| text.parse::<Address>().map_err(|error| invalid(&format!("contracts.{name}"), error));
        Ok(Deployment {
            payment: address("payment", &self.payment)?,
            channels: address("channels", &self.channels)?,
            subnets: address("subnets", &self.subnets)?,
            slashing: address("slashing", &self.slashing)?,
        })
    }
}

/// The first gateway that answers, and what it says of its network.
async fn gateway(urls: &[String]) -> Result<(Arc<dyn Transport>, NetworkInfo), NcnError> {
    let mut problem = invalid("gateways", "are missing: give one at least");
    for url in urls {
        let transport = transport(url)?;
        match transport.network().await {
            Ok(info) => return Ok((transport, info)),
            Err(error) => problem = error.into(),
        }
    }
    Err(problem)
}

async fn chain(connection: &Connection, signer: &DynSigner) -> Result<Option<EvmLedger>, NcnError> {
    if connection.rpc.is_empty() {
        return Ok(None);
    }
    let deployment =
        connection.network.deployment()?.ok_or_else(|| invalid("contracts", "are missing: the chain alone does not say them"))?;
    let options = RpcOptions { confirmations: connection.network.confirmations(), ..RpcOptions::default() };
    let backend = JsonRpc::connect(&connection.rpc, None, options).await.map_err(|error| invalid("rpc", error))?;
    Ok(Some(EvmLedger::connect(Arc::new(backend), deployment, signer.clone(), SendOptions::default()).await?))
}

/// The network that the gateway states, when it is the one that is trusted: by its hash, by the chain, or because it is a devnet, on which nothing is worth
/// anything. Each of these that is there has to agree.
async fn trusted(connection: &Connection, stated: TrustRoot, chain: Option<&EvmLedger>) -> Result<TrustRoot, NcnError> {
    stated.validate().map_err(|error| NcnError::new(ErrorKind::Refused, format!("the gateway's network: {error}")))?;
    let hash = stated.hash();
    let mut expected = Vec::new();
    if let Network::Custom { hash: Some(hash), .. } = &connection.network {
        expected.push(hash.parse::<B256>().map_err(|error| invalid("network", error))?);
    }
    if let Some(chain) = chain {
        expected.push(chain.trust_root().await?.hash());
    }
    if let Some(other) = expected.iter().find(|expected| **expected != hash) {
        return Err(invalid("network", format!("the gateway is of network {hash}, not of {other}: nothing was signed")));
    }
    match &connection.network {
        Network::Devnet if devnet::is_network(&stated) => Ok(stated),
        Network::Devnet => Err(invalid("network", "the gateway is of another network than a devnet: nothing was signed")),
        _ if expected.is_empty() => {
            Err(invalid("network", format!("is missing: without a chain, say its hash; the gateway states {hash}")))
        }
        _ => Ok(stated),
    }
}

pub(super) async fn connect(mut connection: Connection) -> Result<Inner, NcnError> {
    // Taken out, so that no other copy of a secret is left.
    let key = std::mem::replace(&mut connection.key, Key::Devnet { number: 0 });
    let (max_price, signer) = (connection.max_price, key.open().await?);
    let (transport, info) = gateway(&connection.gateways).await?;
    let chain = chain(&connection, &signer).await?;
    let trust = trusted(&connection, info.trust_root, chain.as_ref()).await?;
    let mut channel = None;
    let payer: Arc<dyn Payer> = match &connection.payment {
        Payment::OnChain => {
            Arc::new(chain.clone().ok_or_else(|| invalid("rpc", "is missing: payment on the chain needs its URL"))?)
        }
        Payment::Relayed => Arc::new(
            RelayedPayer::new(transport.clone(), trust, signer.clone()).with_chain(chain.clone().map(|chain| Arc::new(chain) as _)),
        ),
        Payment::Channel { path } => {
            let opened = open(path).await?;
            if opened.terms().client != signer.address() {
                return Err(invalid("key", format!("is not that of {}, whose channel it is", opened.terms().client)));
            }
            let path = Path::new(path).canonicalize().map_err(|error| invalid("payment", error))?;
            channel = Some((path, opened.clone()));
            let payer = ChannelPayer::new(transport.clone(), trust, signer.clone(), opened);
            let payer = payer.with_chain(chain.clone().map(|chain| Arc::new(chain) as _));
            // What processes before this one have left reserved, and the chain has not seen charged. Without a chain nothing proves that.
            if chain.is_some() {
                payer.reconcile().await?;
            }
            Arc::new(payer)
        }
    };
    let mut client = Client::builder().transport(transport.clone()).payer(payer).signer(signer.clone());
    if let Some(limit) = connection.max_price {
        client = client.max_price(limit);
    }
    if let Some(seconds) = connection.timeout {
        client = client.timeout(Duration::from_secs(seconds));
    }
    let client = client.build()?;
    Ok(Inner {
        client,
        signer,
        transport,
        chain,
        channel,
        max_price,
        policy: connection.policy,
        receipts: std::sync::Mutex::default(),
    })
}

/// The channel in a file.
pub(super) async fn open(path: &str) -> Result<Arc<PayerChannel>, NcnError> {
    let file = path.to_owned();
    let opened = runtime::call(move || PayerChannel::open(Path::new(&file))).await?;
    opened.map(Arc::new).map_err(|error| invalid("payment", format!("channel {path}: {error}")))
}
