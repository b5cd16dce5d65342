//! What the NCN network *is*: its types, its ports, the messages its participants sign, the lifecycle of a request,
//! and the receipt that anyone can check. No sockets, no runtime and no clock: time is always an argument, in unix seconds.
//!
//! | port | says | implemented by |
//! | --- | --- | --- |
//! | [`Transport`] | a client's way to one gateway | the gateway itself, and every client of a wire |
//! | [`Registry`] | who is on the network, and the validators' word | the registry node itself, its gRPC client, [`memory::MemoryRegistry`] |
//! | [`PaymentLedger`] | a gateway's money: redeem, settle, refund, follow | the EVM ledger over any backend, a channel processor around it, [`memory::MemoryLedger`] |
//! | [`Payer`] | a client's money: pay, take back, check a receipt's payment | the EVM ledger, payers that sign and leave the rest to their gateway, [`memory::MemoryLedger`] |
//! | [`ChainView`], [`BatchSettler`] | what the chain shows to everybody, and the settling of batches | the EVM ledger, [`memory::MemoryLedger`] |
//! | [`Executor`] | run a model | ONNX in process, any executor in a worker process, [`memory::EchoExecutor`] |
//! | [`Sandbox`] | start a process confined by a policy, and say how strongly | the node's sandboxes |
//!
//! A role implements the trait that its remote client implements, so in-process and over-the-wire are interchangeable.
//! With the feature `conformance`, the module `conformance` holds a public test suite for each port.

pub mod agreement;
pub mod amount;
pub mod certificate;
pub mod channel;
pub mod compute;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod crypto;
pub mod delivery;
pub mod dispatch;
mod error_kind;
pub mod evidence;
pub mod executor;
pub mod ledger;
pub mod lifecycle;
pub mod membership;
pub mod memory;
pub mod mempool;
pub mod message;
pub mod model;
pub mod payment;
pub mod price;
pub mod receipt;
pub mod registry;
pub mod sandbox;
mod serial;
pub mod stream;
pub mod task;
pub mod tensor;
mod time;
pub mod transport;
pub mod trust;
pub mod validation;
pub mod value;

pub use alloy_primitives::{Address, B256, keccak256};
pub use amount::Amount;
pub use certificate::{Approval, CertificateError, QuorumCertificate};
pub use channel::{Channel, ChannelParams, PaymentAuthorization, SignedVoucher};
pub use compute::{Collected, Compute, ComputeError, ComputeEvent, ComputeTask, Reservation, Resume};
pub use crypto::{DynSigner, Signature, SignatureError, Signed};
pub use delivery::{Continuation, Delivery, DeliveryError, FinishReason};
pub use dispatch::DispatchError;
pub use error_kind::ErrorKind;
pub use executor::{Execution, Executor, ExecutorError, ExecutorExt, OutputChunk, Usage};
pub use ledger::{
    BatchSettler, ChainView, LedgerError, Payer, PaymentChange, PaymentChanges, PaymentLedger, PaymentLedgerExt, PaymentRef,
    PaymentStatus, Settlement,
};
pub use lifecycle::{Effect, Event, Lifecycle, Outcome, State};
pub use message::{
    Acknowledgement, CapabilityScope, ChannelCharge, ChannelClose, ChannelPayout, ChannelSettlement, Committee, Completion,
    CompletionAuthorization, Contribution, Deregistration, Dispatch, Domain, DowntimeReport, Heartbeat, InferenceRequest,
    InferenceResult, Message, NodeRecord, NodeRole, PaymentKind, Quote, ReceiptSeal, SessionProof, SettlementLeaf,
    SettlementRequest, Subnet, SubnetModel, TaskCapability, Voucher,
};
pub use model::{InputError, Manifest, ManifestError, Model};
pub use payment::{FeeSplit, PayeeRole, Payout, PayoutSchedule};
pub use price::{Price, Unit, UnitPrice, Units};
pub use receipt::{Receipt, ReceiptError};
pub use registry::{
    AnswerTime, ApprovedSubnet, Attestors, BatchRequest, Catalog, CompletionRequest, Directory, DirectoryExt, NodeChange,
    NodeChanges, NodeQuery, PreprocessingRequest, Registry, RegistryError, RegistryStatus, Validator,
};
pub use sandbox::{Confinement, Policy, ResourceLimits, Sandbox, SandboxCommand, SandboxError};
pub use stream::{StreamBudget, StreamChain, StreamError, StreamLimit};
pub use task::{Step, StepTiming, TaskEvent, TaskStatus};
pub use tensor::{DataType, Tensor, TensorError};
pub use time::Date;
pub use transport::{
    ModelInfo, NetworkInfo, PaymentConfirmation, PaymentSubmission, Submission, Ticket, Transport, TransportError, TransportExt,
    Update,
};
pub use trust::{Epoch, TrustHistory, TrustRoot};
pub use value::{Value, Values};

/// The id of a request: the EIP-712 digest of its [`InferenceRequest`].
pub type RequestId = B256;

/// Seconds since 1970-01-01T00:00:00Z. The core has no clock; whoever calls it says what time it is.
pub type UnixTime = u64;
