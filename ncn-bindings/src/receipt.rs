//! Receipts: the proof of a paid answer, which anyone can check without a network.

use ncn_client::core::{self, Amount, B256};

use crate::{ErrorKind, NcnError};

/// What a receipt says.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Receipt {
    /// The request's id.
    pub request_id: String,
    /// The hash of the network whose validators approved it.
    pub network: String,
    /// Who ordered.
    pub client: String,
    /// Who was paid for passing it on.
    pub gateway: String,
    /// The SHA-256 of the manifest of the model that ran.
    pub model: String,
    /// The hash of the inputs.
    pub input_hash: String,
    /// The hash of the output.
    pub output_hash: String,
    /// What it cost.
    pub cost: Amount,
    /// The most that it could cost.
    pub total: Amount,
    /// Why the output ended.
    pub finish: String,
    /// How many validators approved the output.
    pub approvals: u32,
    /// When the gateway issued it, in seconds since 1970.
    pub issued_at: u64,
    /// All of it, as it is kept and checked.
    pub json: String,
}

impl Receipt {
    pub(crate) fn of(receipt: &core::Receipt) -> Self {
        let order = &receipt.request.message;
        Self {
            request_id: receipt.request_id().to_string(),
            network: receipt.trust_root.hash().to_string(),
            client: order.client.to_string(),
            gateway: receipt.quote.gateway.to_string(),
            model: order.model_digest.to_string(),
            input_hash: order.input_hash.to_string(),
            output_hash: receipt.delivery.last().map(|result| result.output_hash.to_string()).unwrap_or_default(),
            cost: receipt.cost(),
            total: receipt.quote.total,
            finish: receipt.completion.finish.to_string(),
            approvals: receipt.approvals.approvals().len().try_into().unwrap_or(u32::MAX),
            issued_at: receipt.issued_at,
            json: receipt.to_json(),
        }
    }
}

/// Checks a receipt: that every party signed what it says, and that enough validators of its network approved it. Which network that may be, only the
/// caller knows: without `network`, the hash of the one to trust, the receipt's own is taken, and its hash is in the result to be compared.
///
/// # Errors
/// `ReceiptRejected`, which says which part is wrong.
#[uniffi::export(default(network = None))]
pub fn verify_receipt(json: &str, network: Option<String>) -> Result<Receipt, NcnError> {
    let rejected = |error: core::ReceiptError| NcnError::new(ErrorKind::ReceiptRejected, error);
    let receipt = core::Receipt::from_json(json.as_bytes()).map_err(rejected)?;
    if let Some(expected) = network {
        let expected: B256 = expected.parse().map_err(|error| NcnError::new(ErrorKind::Input, format!("network: {error}")))?;
        let stated = receipt.trust_root.hash();
        if stated != expected {
            let problem = format!("trustRoot: the receipt is of network {stated}, not of the trusted {expected}");
            return Err(NcnError::new(ErrorKind::ReceiptRejected, problem));
        }
    }
    receipt.verify_self_consistent().map_err(rejected)?;
    Ok(Receipt::of(&receipt))
}
