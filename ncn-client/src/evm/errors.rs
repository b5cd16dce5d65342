//! The contracts' refusals, as the ledger's errors.

use alloy_primitives::U256;
use alloy_sol_types::SolInterface as _;
use ncn_core::{Amount, LedgerError};

use super::{
    EvmError,
    contracts::{
        InferencePayment::InferencePaymentErrors as Payment, NCNToken::NCNTokenErrors as Token,
        ValidatorRegistry::ValidatorRegistryErrors as Registry,
    },
};

impl From<EvmError> for LedgerError {
    fn from(error: EvmError) -> Self {
        match error {
            EvmError::Reverted(data) => reverted(&data),
            EvmError::Nonce(_) | EvmError::Unreachable(_) | EvmError::TooDear { .. } => Self::Unreachable(error.to_string()),
            EvmError::Malformed { .. } => Self::Malformed(error.to_string()),
            EvmError::NoGas(_) | EvmError::WrongChain { .. } => Self::NotAllowed(error.to_string()),
            EvmError::InvalidTransaction(problem) => Self::Reverted(problem),
        }
    }
}

fn reverted(data: &[u8]) -> LedgerError {
    if let Ok(error) = Payment::abi_decode(data) {
        return payment(error);
    }
    if let Ok(Token::ERC20InsufficientBalance(error)) = Token::abi_decode(data) {
        return LedgerError::InsufficientFunds {
            owner: error.sender,
            balance: amount(error.balance),
            needed: amount(error.needed),
        };
    }
    if let Ok(Registry::InactiveValidator(error)) = Registry::abi_decode(data) {
        return LedgerError::Certificate(format!("{} is no active validator", error.validator));
    }
    let shown = data.get(..data.len().min(256)).unwrap_or_default();
    LedgerError::Reverted(if shown.is_empty() { "without a reason".into() } else { alloy_primitives::hex::encode_prefixed(shown) })
}

fn payment(error: Payment) -> LedgerError {
    let invalid = |field: &str, problem: String| LedgerError::InvalidQuote { field: field.into(), problem };
    match error {
        Payment::WrongClient(error) => {
            LedgerError::NotAllowed(format!("client: {} cannot escrow for {}", error.caller, error.client))
        }
        Payment::NotGateway(error) => LedgerError::NotAllowed(format!(
            "gateway: only {} can give the payment back before it expires, not {}",
            error.gateway, error.caller
        )),
        Payment::ZeroAmount(_) => invalid("total", "is zero".into()),
        Payment::ZeroGateway(_) => invalid("gateway", "is zero".into()),
        Payment::ZeroCompute(_) => invalid("compute", "is zero".into()),
        Payment::SplitTooLarge(error) => invalid("split", format!("adds up to {} of 10,000 basis points", error.basisPoints)),
        Payment::ExpiryOutOfRange(error) => {
            invalid("expiry", format!("{} has to be in the future, and no later than {}", error.expiry, error.latest))
        }
        Payment::Expired(error) => LedgerError::Expired(error.expiry),
        Payment::NotExpired(error) => LedgerError::NotExpired(error.expiry),
        Payment::AlreadyInitiated(error) => LedgerError::WrongState { request_id: error.requestId, actual: "escrowed".into() },
        Payment::RequestIdUsed(error) => {
            LedgerError::WrongState { request_id: error.requestId, actual: format!("used: {}", error.commitment) }
        }
        Payment::NotEscrowed(error) => {
            LedgerError::WrongState { request_id: error.requestId, actual: format!("not escrowed: {}", error.commitment) }
        }
        Payment::QuoteMismatch(error) => {
            invalid("quote", format!("is not the escrowed one: {} was escrowed, not {}", error.escrowed, error.presented))
        }
        Payment::TooFewApprovals(error) => LedgerError::Certificate(format!("{} of {}", error.have, error.need)),
        Payment::TooManyApprovals(error) => LedgerError::Certificate(format!("{}, at most {}", error.have, error.most)),
        Payment::MalformedApprovals(error) => LedgerError::Certificate(format!("{} bytes are no signatures", error.length)),
        Payment::InvalidApproval(error) => LedgerError::Certificate(format!("number {} is no signature", error.index)),
        Payment::UnsortedApproval(error) => LedgerError::Certificate(format!("{} is out of order or twice", error.signer)),
        other => LedgerError::Reverted(alloy_primitives::hex::encode_prefixed(other.abi_encode())),
    }
}

pub(super) fn amount(value: U256) -> Amount {
    Amount::new(u128::try_from(value).unwrap_or(u128::MAX))
}
