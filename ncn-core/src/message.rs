//! What participants sign: EIP-712 structs, defined once in `contracts/src/Messages.sol` and generated from there.
//!
//! Each type here is the Rust face of one struct of that file. [`Message::digest`] is what is signed; it binds the chain and the
//! payment contract through the [`Domain`], the phase through the struct's type, and the request through its id.

mod channel;
mod sol;

use std::cell::Cell;

use alloy_primitives::{Address, B256, Keccak256, keccak256};
use alloy_sol_types::{SolStruct, SolValue, eip712_domain};
pub use channel::{
    ChannelCharge, ChannelClose, ChannelPayout, ChannelSettlement, DowntimeReport, SettlementLeaf, SettlementRequest, Voucher,
};
use serde::{Deserialize, Serialize};

use crate::{
    Amount, Continuation, FeeSplit, FinishReason, Model, Price, RequestId, Units, UnixTime, crypto::Authored, executor::Usage,
    sandbox::Confinement,
};

/// The version of every domain under which messages are signed: what is signed under another one counts for nothing.
const PROTOCOL_VERSION: &str = "2";

thread_local! {
    /// The newest domain and its separator: a process signs and checks in one or two of them, thousands of messages in each.
    static SEPARATOR: Cell<Option<(Domain, B256)>> = const { Cell::new(None) };
}

/// Which network a signature is good for: a chain, and the payment contract on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Domain {
    /// The EVM chain's id.
    pub chain_id: u64,
    /// The address of `InferencePayment` on that chain.
    pub contract: Address,
}

impl Domain {
    fn eip712(&self) -> alloy_sol_types::Eip712Domain {
        eip712_domain! { name: "NCN", version: PROTOCOL_VERSION, chain_id: self.chain_id, verifying_contract: self.contract, }
    }

    /// The EIP-712 domain separator.
    pub fn separator(&self) -> B256 {
        if let Some((domain, separator)) = SEPARATOR.get()
            && domain == *self
        {
            return separator;
        }
        let separator = self.eip712().separator();
        SEPARATOR.set(Some((*self, separator)));
        separator
    }
}

/// A struct that can be signed. Implemented by the types of this module only.
pub trait Message: sol::ToSol {
    /// The EIP-712 hash of the struct, without a domain: how one message refers to another.
    fn struct_hash(&self) -> B256;
    /// The EIP-712 digest: what is signed.
    fn digest(&self, domain: &Domain) -> B256;
}

impl<T: sol::ToSol> Message for T {
    fn struct_hash(&self) -> B256 {
        let mut hasher = Keccak256::new();
        hasher.update(Self::type_hash());
        hasher.update(self.to_sol().eip712_encode_data());
        hasher.finalize()
    }

    fn digest(&self, domain: &Domain) -> B256 {
        keccak256([b"\x19\x01".as_slice(), domain.separator().as_slice(), self.struct_hash().as_slice()].concat())
    }
}

/// A client's order. Its digest is the [`RequestId`], so the same order submitted twice is one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InferenceRequest {
    /// Who orders and pays.
    pub client: Address,
    /// The subnet whose gateway is asked.
    pub subnet: B256,
    /// SHA-256 of the model's manifest.
    pub model_digest: B256,
    /// [`crate::Values::hash`] of the inputs.
    pub input_hash: B256,
    /// The model's parameters as a JSON object, `{}` when there are none.
    pub parameters: String,
    /// The most that the client will pay.
    pub max_price: Amount,
    /// When the client stops waiting; no quote may outlive it.
    pub deadline: UnixTime,
    /// Makes two otherwise equal orders different; random, also so that the gateway cannot know who will judge when it chooses its salt.
    pub nonce: B256,
    /// [`crate::trust::draw_of`] the salt that the gateway has chosen for this order: see [`crate::transport::Ticket`].
    pub draw: B256,
}

/// What the validators approve in preprocessing and the client's escrow commits to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quote {
    /// The request that is quoted.
    pub request_id: RequestId,
    /// Who pays, and to whom a refund goes.
    pub client: Address,
    /// Who coordinates.
    pub gateway: Address,
    /// The compute node that is reserved.
    pub compute: Address,
    /// SHA-256 of the model's manifest.
    pub model_digest: B256,
    /// What a unit costs.
    pub price: Price,
    /// The most units that are charged for.
    pub max_units: Units,
    /// What the client escrows: what so many units cost, and so the most that the request can cost.
    pub total: Amount,
    /// How the total is split.
    pub split: FeeSplit,
    /// Until when the escrow can be settled; from the next second on it can be refunded.
    pub expiry: UnixTime,
    /// [`crate::TrustRoot::hash`] of the network whose validators judge this request.
    pub trust_root: B256,
    /// Since when the network has been so, by the chain's time.
    pub epoch: UnixTime,
    /// What the order's `draw` is of.
    pub salt: B256,
    /// Struct hash of the [`Committee`] that judges the request, from beginning to end: see [`crate::TrustRoot::committee`].
    pub committee: B256,
}

/// The validators that judge a request, and how many of them it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Committee {
    /// M: how many approvals make a certificate.
    pub threshold: u16,
    /// Ascending.
    pub members: Vec<Address>,
}

/// A gateway's word that a compute node is to serve a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dispatch {
    /// The quote's gateway.
    pub gateway: Address,
    /// Who is to serve.
    pub compute: Address,
    /// Struct hash of the [`Quote`], which says what is paid for what.
    pub quote: B256,
    /// Counts from 0. A later one takes an earlier one's place.
    pub attempt: u8,
    /// The chain of the parts that the node goes on from; zero where it begins.
    pub resumed_from: B256,
}

/// A gateway's word that it has got what a compute node's result says. Should it not complete the request, the node can claim that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Acknowledgement {
    /// The quote's gateway.
    pub gateway: Address,
    /// Struct hash of the [`InferenceResult`].
    pub result: B256,
}

impl Dispatch {
    /// True when one gateway has promised the same attempt twice: that is evidence against it, when it has signed both.
    pub fn contradicts(&self, other: &Self) -> bool {
        let of = |dispatch: &Self| (dispatch.gateway, dispatch.quote, dispatch.attempt);
        of(self) == of(other) && self != other
    }
}

/// A compute node's word on what it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InferenceResult {
    /// The request that was served.
    pub request_id: RequestId,
    /// Who ran it.
    pub compute: Address,
    /// SHA-256 of the manifest of the model that ran.
    pub model_digest: B256,
    /// [`crate::Values::hash`] of the inputs that it ran on.
    pub input_hash: B256,
    /// [`crate::Values::hash`] of the output so far.
    pub output_hash: B256,
    /// How many bytes it has, by [`crate::Values::content_bytes`].
    pub output_bytes: u64,
    /// In how many parts it came.
    pub parts: u64,
    /// The hash of their chain: see [`crate::StreamChain`].
    pub chain: B256,
    /// The chain of another node's parts that this one went on from; zero where it began itself.
    pub resumed_from: B256,
    /// How it went on; none where it began itself.
    pub continuation: Option<Continuation>,
    /// What the node's own parts took.
    pub usage: Usage,
    /// How strongly the worker was confined.
    pub confinement: Confinement,
    /// Why there is no more; none while more is to come.
    pub finish: Option<FinishReason>,
}

/// What one compute node gave of a request's output, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Contribution {
    /// Who is paid for computing.
    pub compute: Address,
    /// Struct hash of its [`InferenceResult`].
    pub result: B256,
    /// What its part costs.
    pub cost: Amount,
}

/// What the validators approve once a request was served; M of these release an escrow. See [`crate::Delivery::completion`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Completion {
    /// The request that is complete.
    pub request_id: RequestId,
    /// Struct hash of the [`Quote`].
    pub quote: B256,
    /// Why the output ended.
    pub finish: FinishReason,
    /// Who gave what of it, in the output's order.
    pub contributions: Vec<Contribution>,
}

impl Completion {
    /// What the request costs. Saturates, which a completion that was computed never does.
    pub fn cost(&self) -> Amount {
        self.contributions.iter().map(|contribution| contribution.cost).sum()
    }
}

/// A party's word that a completion is the one it wants approved and paid. Validators judge only what the quote's own gateway brings, or,
/// once that has given the request up or let it expire, the node that has served last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CompletionAuthorization {
    /// Who wants it.
    pub author: Address,
    /// Struct hash of the [`Completion`].
    pub completion: B256,
}

/// A gateway's seal over a finished request; see [`crate::Receipt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptSeal {
    /// The request.
    pub request_id: RequestId,
    /// Struct hash of the [`Quote`].
    pub quote: B256,
    /// [`crate::QuorumCertificate::hash`] of the preprocessing certificate.
    pub preprocessing: B256,
    /// Struct hash of the [`Completion`].
    pub completion: B256,
    /// [`crate::Delivery::signatures_hash`] of what was delivered.
    pub results: B256,
    /// [`crate::QuorumCertificate::hash`] of the completion's certificate.
    pub approvals: B256,
    /// How it was paid.
    pub payment_kind: PaymentKind,
    /// The transaction that escrowed the payment; out of a channel, the voucher's digest.
    pub payment: B256,
    /// The transaction that paid it out; zero for a channel, which a batch settles later.
    pub settlement: B256,
    /// When the gateway sealed it.
    pub issued_at: UnixTime,
}

/// How a request was paid, as a [`ReceiptSeal`] states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum PaymentKind {
    /// Into escrow, and out of it.
    Escrow = 1,
    /// By a voucher on a channel.
    Channel = 2,
}

/// A client's permission to do one thing with its own request. Request ids become public on chain; this keeps outputs private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskCapability {
    /// Whose request it is.
    pub client: Address,
    /// The client's request.
    pub request_id: RequestId,
    /// What it may be used for.
    pub scope: CapabilityScope,
}

impl TaskCapability {
    /// The one that a client signs to have its request ended, and to agree that its payment comes back at once.
    pub const fn cancel(quote: &Quote) -> Self {
        Self { client: quote.client, request_id: quote.request_id, scope: CapabilityScope::Cancel }
    }
}

/// What a [`TaskCapability`] may be used for. An observer of one that follows cannot cancel with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum CapabilityScope {
    /// To see updates and output.
    Follow = 1,
    /// To withdraw the request.
    Cancel = 2,
    /// To have the channel closed whose id stands in the request id's place.
    CloseChannel = 3,
}

/// What a node does on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum NodeRole {
    /// Coordinates requests.
    Gateway = 1,
    /// Runs models.
    Compute = 2,
    /// Judges requests: a registry node with a key and an on-chain stake.
    Validator = 3,
}

/// What a node says of itself. A newer sequence replaces an older record; a record is gone after `expires_at`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeRecord {
    /// Who announces itself.
    pub node: Address,
    /// As what.
    pub role: NodeRole,
    /// In which subnet; zero for a node that serves all of them.
    pub subnet: B256,
    /// Where it is called, as a URL; empty for a compute node, which calls its gateways itself.
    pub endpoint: String,
    /// Digests of the models that it can run.
    pub models: Vec<B256>,
    /// How strongly it confines models.
    pub confinement: Confinement,
    /// Counts up with every record and heartbeat of this node.
    pub sequence: u64,
    /// When the record stops counting.
    pub expires_at: UnixTime,
}

/// A node's sign of life between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Heartbeat {
    /// Who lives.
    pub node: Address,
    /// Larger than that of the node's last record or heartbeat.
    pub sequence: u64,
    /// When it was sent, by the node's clock.
    pub sent_at: UnixTime,
}

/// A node's wish to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deregistration {
    /// Who leaves.
    pub node: Address,
    /// Larger than that of the node's last record or heartbeat.
    pub sequence: u64,
}

/// A compute node's answer to a gateway's challenge: proves, freshly and to this gateway only, that it holds its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionProof {
    /// The compute node.
    pub node: Address,
    /// The gateway that it attaches to.
    pub gateway: Address,
    /// The gateway's random challenge.
    pub challenge: B256,
}

/// One model that a subnet offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubnetModel {
    /// What people call it.
    pub name: String,
    /// SHA-256 of its manifest.
    pub digest: B256,
    /// What its requests cost.
    pub price: Price,
}

impl SubnetModel {
    /// A model as its manifest has it.
    pub fn of(model: &Model) -> Self {
        Self { name: model.manifest().name.clone(), digest: model.digest(), price: model.manifest().price() }
    }
}

/// An owner's definition of its subnet: which models, at which price, how payments are split, and who coordinates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subnet {
    /// Who defines it, and is a gateway of it.
    pub owner: Address,
    /// Unique among its owner's subnets.
    pub name: String,
    /// Its other gateways, ascending.
    pub gateways: Vec<Address>,
    /// What it offers.
    pub models: Vec<SubnetModel>,
    /// How payments are split.
    pub split: FeeSplit,
    /// A newer version replaces an older one.
    pub version: u64,
}

/// The id of an owner's subnet: keccak256(abi.encode(owner, name)), so only its owner can define it.
pub fn subnet_id(owner: Address, name: &str) -> B256 {
    keccak256((owner, name).abi_encode_params())
}

impl Subnet {
    /// The bytes that it takes in memory.
    pub fn kept_bytes(&self) -> usize {
        let models: usize = self.models.iter().map(|model| size_of::<SubnetModel>() + model.name.len()).sum();
        size_of::<Self>() + self.name.len() + size_of_val(&*self.gateways) + models
    }

    /// The subnet's id.
    pub fn id(&self) -> B256 {
        subnet_id(self.owner, &self.name)
    }

    /// Whether this is one of its gateways.
    pub fn has_gateway(&self, gateway: &Address) -> bool {
        self.owner == *gateway || self.gateways.binary_search(gateway).is_ok()
    }

    /// The offered model with this digest.
    pub fn model(&self, digest: &B256) -> Option<&SubnetModel> {
        self.models.iter().find(|model| model.digest == *digest)
    }
}

macro_rules! authored {
    ($($message:ty => $field:ident),* $(,)?) => {$(
        impl Authored for $message {
            fn author(&self) -> Address {
                self.$field
            }
        }
    )*};
}

authored! {
    InferenceRequest => client,
    InferenceResult => compute,
    NodeRecord => node,
    Heartbeat => node,
    Deregistration => node,
    SessionProof => node,
    Dispatch => gateway,
    Acknowledgement => gateway,
    CompletionAuthorization => author,
    SettlementRequest => gateway,
    TaskCapability => client,
    Subnet => owner,
    crate::mempool::PendingRequests => gateway,
}
