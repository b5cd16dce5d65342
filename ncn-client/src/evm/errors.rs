//! The contracts' refusals, as the ledger's errors.

use std::fmt::Debug;

use alloy_primitives::{B256, U256, hex};
use alloy_sol_types::SolInterface as _;
use ncn_core::{Amount, Date, LedgerError, UnixTime, channel::VoucherError};

use super::{
    EvmError,
    contracts::{
        InferencePayment::InferencePaymentErrors as Payment, NCNToken::NCNTokenErrors as Token,
        PaymentChannel::PaymentChannelErrors as Channel, Slashing::SlashingErrors as Slashing,
        SubnetRegistry::SubnetRegistryErrors as Subnets, ValidatorRegistry::ValidatorRegistryErrors as Registry,
    },
};

impl From<EvmError> for LedgerError {
    fn from(error: EvmError) -> Self {
        match error {
            EvmError::Reverted(data) => reverted(&data),
            EvmError::Nonce(_) | EvmError::Unreachable(_) | EvmError::Unsupported(_) | EvmError::FeeCapExceeded { .. } => {
                Self::Unreachable(error.to_string())
            }
            EvmError::Malformed { .. } => Self::Malformed(error.to_string()),
            EvmError::InsufficientGasFunds(_) | EvmError::WrongChain { .. } | EvmError::InvalidEndpoint(_) => {
                Self::NotAllowed(error.to_string())
            }
            EvmError::InvalidTransaction(problem) => Self::Reverted(problem),
        }
    }
}

/// What a contract means. Where two have an error of the same name, it means the same.
fn reverted(data: &[u8]) -> LedgerError {
    if let Ok(error) = Payment::abi_decode(data) {
        return payment(error);
    }
    if let Ok(error) = Channel::abi_decode(data) {
        return channel(error);
    }
    if let Ok(error) = Token::abi_decode(data) {
        return token(error);
    }
    if let Ok(error) = Registry::abi_decode(data) {
        return registry(error);
    }
    if let Ok(error) = Subnets::abi_decode(data) {
        return LedgerError::Reverted(named(&error));
    }
    if let Ok(error) = Slashing::abi_decode(data) {
        return LedgerError::Reverted(named(&error));
    }
    let shown = data.get(..data.len().min(256)).unwrap_or_default();
    LedgerError::Reverted(if shown.is_empty() { "without a reason".into() } else { hex::encode_prefixed(shown) })
}

/// Whether a refusal is over once a block has come that is late enough.
pub(super) fn awaits_time(data: &[u8]) -> bool {
    matches!(Payment::abi_decode(data), Ok(Payment::NotRefundable(_)))
        || matches!(Channel::abi_decode(data), Ok(Channel::NotExpired(_)))
        || matches!(Registry::abi_decode(data), Ok(Registry::WithdrawalTooEarly(_)))
}

/// A custom error with its values: its name stands twice, once for the set it is of.
fn named(error: &impl Debug) -> String {
    let text = format!("{error:?}");
    text.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')')).map_or_else(|| text.clone(), str::to_owned)
}

fn token(error: Token) -> LedgerError {
    match error {
        Token::ERC20InsufficientBalance(error) => {
            LedgerError::InsufficientFunds { owner: error.sender, balance: amount(error.balance), needed: amount(error.needed) }
        }
        // The token names only the spender; whose tokens they are, the caller knows.
        Token::ERC20InsufficientAllowance(error) => LedgerError::InsufficientAllowance {
            spender: error.spender,
            allowance: amount(error.allowance),
            needed: amount(error.needed),
        },
        Token::ERC3009InvalidSignature(_) => LedgerError::NotAllowed("transfer: is not the client's signature".into()),
        Token::ERC3009UsedAuthorization(_) => LedgerError::NotAllowed("transfer: was used before, or withdrawn".into()),
        Token::ERC3009InvalidAuthorizationTime(_) => LedgerError::NotAllowed("transfer: is not valid any more".into()),
        other => LedgerError::Reverted(named(&other)),
    }
}

fn registry(error: Registry) -> LedgerError {
    match error {
        Registry::InactiveValidator(error) => LedgerError::Certificate(format!("{} is no active validator", error.validator)),
        Registry::NoStake(error) => LedgerError::Certificate(format!("{} has nothing at stake", error.validator)),
        other => LedgerError::Reverted(named(&other)),
    }
}

fn payment(error: Payment) -> LedgerError {
    let invalid = |field: &str, problem: String| LedgerError::InvalidQuote { field: field.into(), problem };
    match error {
        Payment::WrongClient(error) => LedgerError::NotAllowed(format!("client: {} cannot pay for {}", error.caller, error.client)),
        Payment::NotGateway(error) => {
            LedgerError::NotAllowed(format!("gateway: only {} can give the payment up, not {}", error.gateway, error.caller))
        }
        Payment::ZeroAmount(_) => invalid("total", "is zero".into()),
        Payment::ZeroGateway(_) => invalid("gateway", "is zero".into()),
        Payment::ZeroCompute(_) => invalid("compute", "is zero".into()),
        Payment::SplitTooLarge(error) => invalid("split", format!("adds up to {} of 10,000 basis points", error.basisPoints)),
        Payment::ExpiryOutOfRange(error) => {
            let (expiry, latest) = (Date(error.expiry), Date(seconds(error.latest)));
            invalid("expiry", format!("{expiry} has to be in the future, and no later than {latest}"))
        }
        Payment::Expired(error) => LedgerError::Expired(seconds(error.claimableUntil)),
        Payment::NotRefundable(error) => LedgerError::NotRefundable(seconds(error.refundableAt)),
        Payment::AlreadyGivenUp(error) => LedgerError::NotRefundable(seconds(error.refundableAt)),
        Payment::InvalidConsent(error) => LedgerError::NotAllowed(format!("consent: is not the signature of {}", error.client)),
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
        Payment::ApprovalOutsideCommittee(error) => {
            LedgerError::Certificate(format!("{} of {} are the committee's", error.members, error.approvals))
        }
        Payment::CommitteeMismatch(error) => {
            LedgerError::Certificate(format!("committee: the quote names {}, not {}", error.quoted, error.presented))
        }
        Payment::NoMajority(error) => {
            LedgerError::Certificate(format!("committee: {} are no majority of {}", error.threshold, error.members))
        }
        Payment::MalformedApprovals(error) => LedgerError::Certificate(format!("{} bytes are no signatures", error.length)),
        Payment::InvalidApproval(error) => LedgerError::Certificate(format!("number {} is no signature", error.index)),
        Payment::UnsortedApproval(error) => LedgerError::Certificate(format!("{} is out of order or twice", error.signer)),
        other => LedgerError::Reverted(named(&other)),
    }
}

fn channel(error: Channel) -> LedgerError {
    let of = |channel: B256, problem: String| LedgerError::Channel { channel, problem };
    match error {
        Channel::AlreadyOpen(error) => of(error.channel, format!("is open already, with a deposit of {}", error.deposit)),
        Channel::NotGateway(error) => {
            LedgerError::NotAllowed(format!("gateway: only {} can charge its channel, not {}", error.gateway, error.caller))
        }
        Channel::NotOpen(error) => of(error.channel, "was never opened".into()),
        Channel::Closed(error) => of(error.channel, "is closed: open another with a new salt".into()),
        Channel::Expired(error) => of(error.channel, format!("expired at {}", error.expiry)),
        Channel::NotExpired(error) => {
            of(error.channel, format!("is open until {}: ask its gateway to close it, or wait until then", error.expiry))
        }
        Channel::SettlementMismatch(error) => of(error.channel, format!("was charged {}, not {}", error.settled, error.stated)),
        Channel::NothingCharged(error) => {
            of(error.channel, format!("settledAfter: {} is no more than {}", error.settledAfter, error.settledBefore))
        }
        Channel::OverDeposit(error) => of(error.channel, format!("has {}, not {}", error.deposit, error.settledAfter)),
        Channel::OverAuthorised(error) => {
            let problem = format!("allows {}, not {}", error.cumulative, error.settledAfter);
            LedgerError::Voucher(VoucherError::new("cumulative", problem))
        }
        Channel::InvalidVoucher(_) => LedgerError::Voucher(VoucherError::new("signature", "is not the client's")),
        Channel::InvalidClose(error) => of(error.channel, "the signature to close it is not its gateway's".into()),
        other => LedgerError::Reverted(named(&other)),
    }
}

pub(super) fn seconds(time: U256) -> UnixTime {
    UnixTime::try_from(time).unwrap_or(UnixTime::MAX)
}

pub(super) fn amount(value: U256) -> Amount {
    Amount::new(u128::try_from(value).unwrap_or(u128::MAX))
}
