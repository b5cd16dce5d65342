//! Receipts, and what they are checked against.

use ncn_core::{
    Delivery, Domain, PayeeRole, Payout, PayoutSchedule, Quote, Receipt, TrustRoot,
    receipt::{Payment, VERSION},
};
use prost::bytes::Bytes;

use super::{WireError, address, amount, amount_bytes, bytes, hash, required, signature, small};
use crate::proto;

const RECIPIENTS: [PayeeRole; 4] = [PayeeRole::Compute, PayeeRole::Gateway, PayeeRole::Validator, PayeeRole::Treasury];

impl From<Payout> for proto::Payout {
    fn from(payout: Payout) -> Self {
        let role = match payout.role {
            PayeeRole::Compute => 1,
            PayeeRole::Gateway => 2,
            PayeeRole::Validator => 3,
            PayeeRole::Treasury => 4,
        };
        Self { role, address: bytes(payout.address), amount: amount_bytes(payout.amount) }
    }
}

impl TryFrom<proto::Payout> for Payout {
    type Error = WireError;

    fn try_from(payout: proto::Payout) -> Result<Self, WireError> {
        let role = payout.role.checked_sub(1).and_then(|index| RECIPIENTS.get(index as usize));
        Ok(Self {
            role: *role.ok_or_else(|| WireError::new("payout.role", "is unknown"))?,
            address: address("payout.address", &payout.address)?,
            amount: amount("payout.amount", &payout.amount)?,
        })
    }
}

impl From<PayoutSchedule> for proto::PaymentTree {
    fn from(tree: PayoutSchedule) -> Self {
        Self { total: amount_bytes(tree.total), payouts: tree.payouts.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<proto::PaymentTree> for PayoutSchedule {
    type Error = WireError;

    fn try_from(tree: proto::PaymentTree) -> Result<Self, WireError> {
        Ok(Self {
            total: amount("payments.total", &tree.total)?,
            payouts: tree.payouts.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<TrustRoot> for proto::TrustRoot {
    fn from(trust: TrustRoot) -> Self {
        Self {
            domain: Some(proto::Domain { chain_id: trust.domain.chain_id, contract: bytes(trust.domain.contract) }),
            validators: trust.validators.iter().map(bytes).collect(),
            threshold: trust.threshold.into(),
            committee_size: trust.committee_size.into(),
            treasury: bytes(trust.treasury),
            token: bytes(trust.token),
            channels: bytes(trust.channels),
        }
    }
}

impl TryFrom<proto::TrustRoot> for TrustRoot {
    type Error = WireError;

    fn try_from(trust: proto::TrustRoot) -> Result<Self, WireError> {
        let domain = required("trust_root.domain", trust.domain)?;
        let validators = trust.validators.iter().map(|validator: &Bytes| address("trust_root.validators", validator));
        Ok(Self {
            domain: Domain { chain_id: domain.chain_id, contract: address("trust_root.domain.contract", &domain.contract)? },
            validators: validators.collect::<Result<_, _>>()?,
            threshold: small("trust_root.threshold", trust.threshold)?,
            committee_size: small("trust_root.committee_size", trust.committee_size)?,
            treasury: address("trust_root.treasury", &trust.treasury)?,
            token: address("trust_root.token", &trust.token)?,
            channels: address("trust_root.channels", &trust.channels)?,
        })
    }
}

impl From<Receipt> for proto::Receipt {
    fn from(receipt: Receipt) -> Self {
        Self {
            version: receipt.version,
            trust_root: Some(receipt.trust_root.into()),
            request: Some(receipt.request.into()),
            quote: Some(receipt.quote.into()),
            preprocessing: Some(receipt.preprocessing.into()),
            payment: Some(match receipt.payment {
                Payment::Escrow { transaction, settlement } => {
                    let escrow = proto::EscrowPayment { transaction: bytes(transaction), settlement: bytes(settlement) };
                    proto::receipt::Payment::Escrow(escrow)
                }
                Payment::Channel(payment) => proto::receipt::Payment::Channel((*payment).into()),
            }),
            delivery: Some(receipt.delivery.into()),
            approvals: Some(receipt.approvals.into()),
            payments: Some(receipt.payments.into()),
            issued_at: receipt.issued_at,
            seal: bytes(receipt.seal.as_bytes()),
        }
    }
}

impl TryFrom<proto::Receipt> for Receipt {
    type Error = WireError;

    fn try_from(receipt: proto::Receipt) -> Result<Self, WireError> {
        if receipt.version != VERSION {
            return Err(WireError::new("receipt.version", format!("{} is not {VERSION}", receipt.version)));
        }
        let quote: Quote = required("receipt.quote", receipt.quote)?.try_into()?;
        let delivery: Delivery = required("receipt.delivery", receipt.delivery)?.try_into()?;
        // It is not sent, since it follows from these.
        let completion = delivery.completion(&quote).map_err(|error| WireError::new("receipt.delivery", error.to_string()))?;
        Ok(Self {
            version: receipt.version,
            trust_root: required("receipt.trust_root", receipt.trust_root)?.try_into()?,
            request: required("receipt.request", receipt.request)?.try_into()?,
            quote,
            preprocessing: required("receipt.preprocessing", receipt.preprocessing)?.try_into()?,
            payment: match required("receipt.payment", receipt.payment)? {
                proto::receipt::Payment::Escrow(escrow) => Payment::Escrow {
                    transaction: hash("receipt.escrow.transaction", &escrow.transaction)?,
                    settlement: hash("receipt.escrow.settlement", &escrow.settlement)?,
                },
                proto::receipt::Payment::Channel(payment) => Payment::Channel(Box::new(payment.try_into()?)),
            },
            delivery,
            completion,
            approvals: required("receipt.approvals", receipt.approvals)?.try_into()?,
            payments: required("receipt.payments", receipt.payments)?.try_into()?,
            issued_at: receipt.issued_at,
            seal: signature("receipt.seal", &receipt.seal)?,
        })
    }
}
