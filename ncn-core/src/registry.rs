//! The port to the P2P registry: who is on the network, and the validators' word.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{
    Acknowledgement, Approval, Committee, CompletionAuthorization, Delivery, DeliveryError, Deregistration, Dispatch,
    DispatchError, ErrorKind, Heartbeat, InferenceRequest, Model, NodeRecord, NodeRole, QuorumCertificate, Quote, SignatureError,
    Signed, SignedVoucher, Subnet, TrustHistory, TrustRoot, channel::Batch, mempool::Mempool, message::SettlementRequest,
};

/// Which nodes to find. Every field that is set narrows the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeQuery {
    /// What they do.
    pub role: Option<NodeRole>,
    /// Where: in this subnet, or in all of them.
    pub subnet: Option<B256>,
    /// A model that they run.
    pub model: Option<B256>,
    /// One node alone.
    pub node: Option<Address>,
}

impl NodeQuery {
    /// Whether a live node with this record matches.
    pub fn matches(&self, record: &NodeRecord) -> bool {
        self.node.is_none_or(|node| record.node == node)
            && self.role.is_none_or(|role| record.role == role)
            && self.subnet.is_none_or(|subnet| record.subnet == subnet || record.subnet.is_zero())
            && self.model.is_none_or(|model| record.models.contains(&model))
    }
}

/// A change that a watch reports, of the nodes that match its query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// The node is live, and this is its current record.
    Live(Signed<NodeRecord>),
    /// The node is no longer live, or no longer matches.
    Gone(Address),
    /// Every node that was live when the watch began has been reported, or is reported after this because it has changed since. Reported once.
    Synced,
}

/// The changes that a watch reports, as they happen.
pub type NodeChanges = BoxStream<'static, Result<NodeChange, RegistryError>>;

/// What validators are shown to judge a quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreprocessingRequest {
    /// The client's order.
    pub request: Signed<InferenceRequest>,
    /// What the gateway makes of it.
    pub quote: Quote,
}

/// What validators are shown to judge a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletionRequest {
    /// The client's order.
    pub request: Signed<InferenceRequest>,
    /// What was approved and paid.
    pub quote: Quote,
    /// What the compute nodes have given.
    pub delivery: Delivery,
    /// The validators' approval of the quote, where the subnet may have changed since: a node's own completion, and a gateway's that was
    /// refused without it.
    pub preprocessing: Option<QuorumCertificate>,
    /// The client's voucher, when it pays out of a channel; else the chain holds an escrow.
    pub voucher: Option<SignedVoucher>,
    /// The gateway's word that each of these nodes was to serve, in their order. Who takes part in a request is known to bystanders, and
    /// any registered node can sign a result: only the gateway says whose is paid.
    pub dispatches: Vec<Signed<Dispatch>>,
    /// The gateway's word that it has got what the last of the results says, where a node brings its own completion.
    pub acknowledgement: Option<Signed<Acknowledgement>>,
    /// The word of the quote's gateway that it wants this delivery approved; or, once that has given the request up or let it expire, of
    /// the node that has served last.
    pub authorization: Signed<CompletionAuthorization>,
}

/// What validators are shown to judge a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRequest {
    /// The requests, and what settles them.
    pub batch: Batch,
    /// The committees of the vouchers that the channels are charged by: each of them has to approve it.
    pub committees: Vec<Committee>,
    /// The gateway's word that it wants this settled, under the channels' domain.
    pub request: Signed<SettlementRequest>,
}

/// Why the registry does not answer, or a validator does not approve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RegistryError {
    /// A record, heartbeat or question that makes no sense or is not signed by whom it names.
    #[error("{field}: {problem}")]
    Invalid {
        /// What is wrong.
        field: String,
        /// Why, and what to do.
        problem: String,
    },
    /// An older record, heartbeat or departure than one already seen.
    #[error("sequence: {given} is not newer than {known}: count on from there")]
    Stale {
        /// What was sent.
        given: u64,
        /// What is known.
        known: u64,
    },
    /// Not on the network.
    #[error("node {0} is not registered: register it first")]
    UnknownNode(Address),
    /// No manifest of such a model.
    #[error("manifest of model {0} is not known: a gateway that offers the model has it, too")]
    UnknownManifest(B256),
    /// No such subnet.
    #[error("subnet {0} is not registered: its owner has to register it first")]
    UnknownSubnet(B256),
    /// A validator says no.
    #[error("refused: {0}")]
    Refused(String),
    /// What was delivered is not what was quoted.
    #[error("refused: {0}")]
    Delivery(DeliveryError),
    /// Who has served is not whom the gateway had serve.
    #[error("refused: {0}")]
    Dispatch(#[from] DispatchError),
    /// Fewer than M validators approved.
    #[error("{have} of {need} approvals: {reasons}")]
    TooFewApprovals {
        /// How many did.
        have: usize,
        /// How many it takes.
        need: usize,
        /// Why the others did not.
        reasons: String,
    },
    /// Full, or asked too often.
    #[error("the registry is full: {0}")]
    Overloaded(String),
    /// It does not answer.
    #[error("the registry is unreachable: {0}")]
    Unreachable(String),
    /// Its answer makes no sense.
    #[error("the registry's answer is malformed: {0}")]
    Malformed(String),
}

impl RegistryError {
    /// What it is on a wire.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Stale { .. } | Self::Refused(_) | Self::Delivery(_) | Self::Dispatch(_) => ErrorKind::Refused,
            Self::UnknownNode(_) | Self::UnknownSubnet(_) | Self::UnknownManifest(_) => ErrorKind::Unknown,
            Self::Overloaded(_) => ErrorKind::Busy,
            Self::TooFewApprovals { .. } | Self::Unreachable(_) => ErrorKind::Unavailable,
            Self::Malformed(_) => ErrorKind::Internal,
        }
    }

    /// True when the same call may succeed on another try or at another registry node.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Overloaded(_) | Self::Unreachable(_) | Self::TooFewApprovals { .. })
    }

    /// A message that can never be accepted as it is.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }
}

impl From<SignatureError> for RegistryError {
    /// A validator's key that cannot be used: somebody else's may.
    fn from(error: SignatureError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

/// How many subnets [`Catalog::subnets`] lists at once.
pub const SUBNETS_PAGE: usize = 64;
/// The largest manifest that the registry keeps. The hash table's messages have 16 KiB, with what leads to other nodes.
pub const MAX_REGISTERED_MANIFEST: usize = 12 << 10;

/// How quickly a validator approves what is good, as one registry node has seen lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerTime {
    /// Who was asked.
    pub validator: Address,
    /// How often.
    pub asked: u64,
    /// How often it approved before enough others had.
    pub approved: u64,
    /// How long that took on average.
    #[serde(rename = "meanMicros", with = "crate::serial::micros")]
    pub mean: Duration,
}

/// What a registry node says of itself to its operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryStatus {
    /// Its id among its peers.
    pub peer: String,
    /// Where peers call it.
    pub addresses: Vec<String>,
    /// The ids of the peers with which it is connected.
    pub peers: Vec<String>,
    /// How many nodes it knows to be live.
    pub nodes: u64,
    /// How many subnets it knows.
    pub subnets: u64,
    /// How many pending requests it knows.
    pub pending: u64,
    /// What it has refused since it was started, by the reason.
    pub refused: BTreeMap<String, u64>,
    /// How many seconds ago it was started.
    pub uptime: u64,
}

/// A subnet as its owner has defined it, and M validators have approved it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovedSubnet {
    /// The owner's word.
    pub definition: Signed<Subnet>,
    /// The validators' word, over the definition's digest.
    pub approvals: QuorumCertificate,
}

impl ApprovedSubnet {
    /// The definition without its signature.
    pub const fn subnet(&self) -> &Subnet {
        &self.definition.message
    }

    /// Checks that the subnet offers the model with this digest.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] when it does not.
    pub fn lists(&self, digest: &B256) -> Result<(), RegistryError> {
        match self.subnet().model(digest) {
            Some(_) => Ok(()),
            None => Err(RegistryError::invalid("manifest", "is of no model of this subnet")),
        }
    }

    /// Checks that its owner has signed it, and that exactly as many validators have approved it as approve a request. Any of them count: a
    /// subnet that nobody else defines gains nothing by choosing who says that it is well-formed. It is checked when it comes; when validators have
    /// left since, a node that hears of it anew needs others' approval.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`], which names what is wrong.
    pub fn verify(&self, trust: &TrustHistory) -> Result<(), RegistryError> {
        let network = &trust.current().trust;
        let digest = self.definition.verify(&network.domain);
        let digest = digest.map_err(|error| RegistryError::invalid("subnet.signature", error.to_string()))?;
        let committee = Committee { threshold: network.threshold, members: self.approvals.validators() };
        let have = committee.members.len();
        // Who has seen more or less of the chain may find otherwise.
        if have != usize::from(committee.threshold) || !committee.members.iter().all(|member| trust.is_listed(member)) {
            let problem = format!("are {have}, exactly {} of validators are taken", committee.threshold);
            return Err(RegistryError::invalid("subnet.approvals", problem));
        }
        let signed = self.approvals.verify(&digest, &committee);
        signed.map_err(|error| RegistryError::invalid("subnet.approvals.signature", error.to_string()))
    }

    /// Who is asked to approve this version of a subnet: the same ones whatever it says, so that no two definitions of it are approved.
    pub fn committee(subnet: &Subnet, trust: &TrustRoot) -> Committee {
        trust.committee(&B256::left_padding_from(&subnet.version.to_be_bytes()), &subnet.id())
    }
}

/// The digest of a manifest, when it is one that the registry takes.
///
/// # Errors
/// [`RegistryError::Invalid`] when it is too large, or none.
pub fn manifest_digest(manifest: &Bytes) -> Result<B256, RegistryError> {
    if manifest.len() > MAX_REGISTERED_MANIFEST {
        let problem = format!("has {} bytes, at most {MAX_REGISTERED_MANIFEST} are kept", manifest.len());
        return Err(RegistryError::invalid("manifest", problem));
    }
    let model = Model::parse(manifest.clone()).map_err(|error| RegistryError::invalid("manifest", error.to_string()))?;
    Ok(model.digest())
}

/// Who is on the network. A registry node implements it, and so does its client.
///
/// # For the implementer
/// - Records, heartbeats and departures count only with their node's signature and a sequence newer than any seen from it.
///   The identical record again is accepted: a lost answer must be repeatable.
/// - `discover` returns live nodes only: the record has not expired, and record or heartbeat is no older than the liveness window.
/// - `watch` reports changes in their order, and of each node the latest: a slow reader misses intermediate changes, but no final one.
#[async_trait]
pub trait Directory: Send + Sync {
    /// Announces a node.
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError>;

    /// Keeps a node alive.
    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError>;

    /// Takes a node off the network.
    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError>;

    /// The live nodes that fit, in no particular order.
    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError>;

    /// Reports the live nodes that match, then [`NodeChange::Synced`], and from then on each change. Dropping the stream ends the watch.
    ///
    /// The end of the stream, with an error or without, does not mean that nodes are gone: watch again, and replace the known nodes by those that
    /// are reported until [`NodeChange::Synced`].
    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError>;
}

/// What the network's subnets are, and the models that they offer. A registry node implements it, and so does its client.
///
/// # For the implementer
/// - A subnet counts with its owner's signature, the approval of M validators, and a version newer than any seen of it. The identical definition
///   again is accepted: a lost answer must be repeatable.
/// - A manifest counts by its digest, which a subnet lists.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Defines a subnet, or a newer version of it, and has validators approve it.
    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError>;

    /// A subnet's definition.
    async fn subnet(&self, id: B256) -> Result<ApprovedSubnet, RegistryError>;

    /// The subnets after this id in the order of their ids, at most [`SUBNETS_PAGE`] of them; none at the end.
    async fn subnets(&self, after: B256) -> Result<Vec<Arc<ApprovedSubnet>>, RegistryError>;

    /// Keeps the manifest of a model that this subnet offers, up to [`MAX_REGISTERED_MANIFEST`] bytes.
    async fn register_manifest(&self, subnet: B256, manifest: Bytes) -> Result<(), RegistryError>;

    /// The manifest with this digest, its SHA-256, which is compared before it is returned.
    async fn manifest(&self, digest: B256) -> Result<Bytes, RegistryError>;
}

/// Collects the approvals of M of N validators. A registry node implements it, and so does its client.
///
/// # For the implementer
/// - The request's committee is asked in parallel, and the certificate returned at the Mth good approval; it passes
///   [`QuorumCertificate::verify`]. Asking again is harmless.
/// - Of a request's results, one is approved for each party that may bring one and each node that has served last: another one is refused,
///   also by a validator that has restarted.
/// - `completion` without the authorization of the quote's gateway, or of the node that has served last, is refused before anyone is
///   asked.
#[async_trait]
pub trait Attestors: Send + Sync {
    /// M of N validators approve a quote before it is paid.
    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<QuorumCertificate, RegistryError>;

    /// M of N validators approve a result before it is paid out.
    async fn completion(&self, request: CompletionRequest) -> Result<QuorumCertificate, RegistryError>;

    /// M of N validators approve a batch of served requests before it is settled. Each of [`BatchRequest::committees`] has to.
    async fn settlement(&self, request: Arc<BatchRequest>) -> Result<QuorumCertificate, RegistryError>;

    /// How quickly the validators answer that were asked, for people who watch: nothing vouches for it.
    async fn answer_times(&self) -> Result<Vec<AnswerTime>, RegistryError>;
}

/// The P2P registry: its parts at one node.
pub trait Registry: Directory + Catalog + Mempool + Attestors {}

impl<R: Directory + Catalog + Mempool + Attestors + ?Sized> Registry for R {}

/// Conveniences on every [`Directory`].
#[async_trait]
pub trait DirectoryExt: Directory {
    /// The live record of one node.
    async fn node(&self, node: Address) -> Result<Signed<NodeRecord>, RegistryError> {
        let query = NodeQuery { node: Some(node), ..NodeQuery::default() };
        self.discover(query).await?.into_iter().next().ok_or(RegistryError::UnknownNode(node))
    }
}

impl<D: Directory + ?Sized> DirectoryExt for D {}

/// One validator: a registry node with a key and an on-chain stake. The node implements it, and so does its client.
///
/// An approval is a signature over the digest of the quote, of the completion, of the settlement or of the subnet, and nothing else.
#[async_trait]
pub trait Validator: Send + Sync {
    /// Who this is.
    fn address(&self) -> Address;

    /// Approves a quote, or says why not.
    async fn preprocessing(&self, request: &PreprocessingRequest) -> Result<Approval, RegistryError>;

    /// Approves a result, or says why not.
    async fn completion(&self, request: &CompletionRequest) -> Result<Approval, RegistryError>;

    /// Approves a batch of requests for settlement, or says why not.
    async fn settlement(&self, request: &BatchRequest) -> Result<Approval, RegistryError>;

    /// Approves a subnet's definition, or says why not: one of each version, and none that is older.
    async fn subnet(&self, subnet: &Signed<Subnet>) -> Result<Approval, RegistryError>;
}
