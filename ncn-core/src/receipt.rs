//! The proof of a paid inference, checkable by anyone, offline, for ever.

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

use crate::{
    Amount, CertificateError, Completion, Delivery, DeliveryError, InferenceRequest, Message as _, PaymentKind, PayoutSchedule,
    QuorumCertificate, Quote, ReceiptSeal, RequestId, Signature, SignatureError, Signed, SignedVoucher, TrustRoot, UnixTime, Usage,
    Values, agreement::Mismatch, channel::VoucherError, payment::SplitError, trust::TrustRootError,
};

/// The version that this code writes and reads.
pub const VERSION: u32 = 2;
/// The most bytes that a receipt's JSON may have; a real one has about 6,000.
pub const MAX_RECEIPT_BYTES: usize = 1 << 20;

/// How a request was paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Payment {
    /// Into escrow, and out of it.
    Escrow {
        /// The transaction that escrowed the total.
        transaction: B256,
        /// The transaction that paid everyone.
        settlement: B256,
    },
    /// Out of a channel, by this voucher. The channel pays everyone in a later batch.
    Channel(Box<SignedVoucher>),
}

impl Payment {
    /// What identifies it: the escrow's transaction, or the voucher's digest.
    pub fn reference(&self, trust: &TrustRoot) -> B256 {
        match self {
            Self::Escrow { transaction, .. } => *transaction,
            Self::Channel(payment) => payment.reference(trust),
        }
    }

    /// Which of the two it is.
    pub const fn kind(&self) -> PaymentKind {
        match self {
            Self::Escrow { .. } => PaymentKind::Escrow,
            Self::Channel(_) => PaymentKind::Channel,
        }
    }

    /// The transaction that paid everyone; zero when a batch is yet to do it.
    pub const fn settlement(&self) -> B256 {
        match self {
            Self::Escrow { settlement, .. } => *settlement,
            Self::Channel(_) => B256::ZERO,
        }
    }
}

/// Who ordered what from whom, what came out, who approved it, and who was paid for it.
///
/// [`Receipt::verify`] recomputes everything that can be recomputed and checks every signature; a receipt in which any field was
/// changed does not pass. Outputs are not in it, only their hash: see [`Receipt::matches_output`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Receipt {
    /// [`VERSION`].
    pub version: u32,
    /// The network that the receipt says it is from. The quote binds its hash.
    pub trust_root: TrustRoot,
    /// The client's signed order.
    pub request: Signed<InferenceRequest>,
    /// What was approved and paid.
    pub quote: Quote,
    /// The validators' approval of the quote.
    pub preprocessing: QuorumCertificate,
    /// How it was paid.
    pub payment: Payment,
    /// What the compute nodes have given.
    pub delivery: Delivery,
    /// What the validators approved of it: who gave what, and what each part cost.
    pub completion: Completion,
    /// Their approval.
    pub approvals: QuorumCertificate,
    /// Who was paid what.
    pub payments: PayoutSchedule,
    /// When the gateway sealed it.
    pub issued_at: UnixTime,
    /// The gateway's signature over all of it.
    pub seal: Signature,
}

/// Which check a receipt failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// No receipt at all.
    #[error("format: {0}")]
    Format(String),
    /// From another version of the protocol.
    #[error("version: {0} is not {VERSION}: use the program of that version")]
    Version(u64),
    /// The stated network is no network.
    #[error("trustRoot: {0}")]
    InvalidTrustRoot(#[from] TrustRootError),
    /// Another network than the one that is trusted.
    #[error("trustRoot: the receipt is of network {stated}, not of the trusted {trusted}")]
    UntrustedRoot {
        /// The hash of the receipt's.
        stated: B256,
        /// The hash of the trusted one.
        trusted: B256,
    },
    /// Two parts contradict each other.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// What was delivered is not what was quoted.
    #[error("delivery: {0}")]
    Delivery(#[from] DeliveryError),
    /// The stated completion is another one.
    #[error("completion: is not what was delivered and quoted leads to")]
    Completion,
    /// A payment by no transaction.
    #[error("payment: no transaction has the hash zero")]
    NoTransaction,
    /// A party did not sign what the receipt says.
    #[error("{part}: {source}")]
    Signature {
        /// Whose.
        part: &'static str,
        /// What is wrong with it.
        source: SignatureError,
    },
    /// The client did not promise to pay this out of its channel.
    #[error("payment: {0}")]
    Voucher(#[from] VoucherError),
    /// Too few validators approved, or the wrong ones.
    #[error("{phase}: {source}")]
    Certificate {
        /// Preprocessing or completion.
        phase: &'static str,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// The quote's total cannot be split.
    #[error("payments: {0}")]
    FeeSplit(#[from] SplitError),
    /// The payments are not what quote and approvals lead to.
    #[error("payments: are not what the quote and the completion's approvals lead to")]
    Payments,
}

impl Receipt {
    /// Reads a receipt's JSON. Says nothing about its worth: see [`Receipt::verify`].
    pub fn from_json(json: &[u8]) -> Result<Self, ReceiptError> {
        if json.len() > MAX_RECEIPT_BYTES {
            return Err(ReceiptError::Format(format!("{} bytes, a receipt has at most {MAX_RECEIPT_BYTES}", json.len())));
        }
        let format = |error: serde_json::Error| ReceiptError::Format(error.to_string());
        let receipt: Result<Self, _> = serde_json::from_slice(json);
        let given: serde_json::Value = serde_json::from_slice(json).map_err(format)?;
        // One of another version has other fields: say so rather than which of them is unknown.
        if let Some(version) = given.get("version").and_then(serde_json::Value::as_u64)
            && version != u64::from(VERSION)
        {
            return Err(ReceiptError::Version(version));
        }
        let receipt = receipt.map_err(format)?;
        // One spelling per receipt: hexadecimal digits could otherwise be written in either case, and a changed text would pass.
        if given != serde_json::to_value(&receipt).map_err(format)? {
            return Err(ReceiptError::Format("hashes, addresses and signatures are written in lower case, with 0x".into()));
        }
        Ok(receipt)
    }

    /// The receipt as indented JSON.
    pub fn to_json(&self) -> String {
        // A receipt holds only strings, integers and lists of them: writing it as JSON cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The id of the request that it proves.
    pub const fn request_id(&self) -> RequestId {
        self.quote.request_id
    }

    /// What the gateway signs.
    pub fn sealed(&self) -> ReceiptSeal {
        ReceiptSeal {
            request_id: self.quote.request_id,
            quote: self.quote.struct_hash(),
            preprocessing: self.preprocessing.hash(),
            completion: self.completion.struct_hash(),
            results: self.delivery.signatures_hash(),
            approvals: self.approvals.hash(),
            payment_kind: self.payment.kind(),
            payment: self.payment.reference(&self.trust_root),
            settlement: self.payment.settlement(),
            issued_at: self.issued_at,
        }
    }

    /// Checks the receipt against the network that the caller trusts.
    pub fn verify(&self, trust: &TrustRoot) -> Result<(), ReceiptError> {
        if self.trust_root != *trust {
            return Err(ReceiptError::UntrustedRoot { stated: self.trust_root.hash(), trusted: trust.hash() });
        }
        self.verify_self_consistent()
    }

    /// Checks the receipt against the network that it states itself. That proves that those validators approved it; whether they
    /// are the ones to trust, the caller decides by [`TrustRoot::hash`].
    pub fn verify_self_consistent(&self) -> Result<(), ReceiptError> {
        if self.version != VERSION {
            return Err(ReceiptError::Version(self.version.into()));
        }
        let trust = &self.trust_root;
        trust.validate()?;
        self.check_consistency()?;

        let domain = &trust.domain;
        let signature = |part| move |source| ReceiptError::Signature { part, source };
        let request_id = self.request.verify(domain).map_err(signature("request.signature"))?;
        self.quote.fits(&self.request.message, &request_id)?;
        self.delivery.verify(domain).map_err(signature("result.signature"))?;
        self.seal.verify(&self.sealed().digest(domain), self.quote.gateway).map_err(signature("seal"))?;

        if let Payment::Channel(payment) = &self.payment {
            payment.verify(&self.quote, trust)?;
        }
        let certificate = |phase| move |source| ReceiptError::Certificate { phase, source };
        let committee = self.quote.committee_of(trust)?;
        self.preprocessing.verify(&self.quote.digest(domain), &committee).map_err(certificate("preprocessing"))?;
        self.approvals.verify(&self.completion.digest(domain), &committee).map_err(certificate("completion"))?;

        let paid = PayoutSchedule::new(&self.quote, &self.completion, &self.approvals.validators(), trust.treasury)?;
        if paid != self.payments {
            return Err(ReceiptError::Payments);
        }
        Ok(())
    }

    /// Do the parts speak of the same thing, as far as that is seen without a signature?
    fn check_consistency(&self) -> Result<(), ReceiptError> {
        if let Payment::Escrow { transaction, settlement } = &self.payment
            && (transaction.is_zero() || settlement.is_zero())
        {
            return Err(ReceiptError::NoTransaction);
        }
        for result in &self.delivery.results {
            result.message.fits(&self.request.message, &self.quote)?;
        }
        if self.delivery.completion(&self.quote)? == self.completion { Ok(()) } else { Err(ReceiptError::Completion) }
    }

    /// True when `output` is the output that this receipt proves.
    pub fn matches_output(&self, output: &Values) -> bool {
        self.delivery.last().is_some_and(|result| result.fits_output(output).is_ok())
    }

    /// What the request took, of all nodes that gave a part of its output.
    pub fn usage(&self) -> Usage {
        self.delivery.usage()
    }

    /// What it cost.
    pub fn cost(&self) -> Amount {
        self.completion.cost()
    }
}
