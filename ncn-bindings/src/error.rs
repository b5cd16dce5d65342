use ncn_client::{
    ClientError, EndpointError,
    core::{LedgerError, TransportError},
};

/// What kind of error it is: what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum ErrorKind {
    /// The client is not set up right.
    Configuration,
    /// The model does not take this input or these parameters.
    Input,
    /// The gateway does not offer this model.
    UnknownModel,
    /// It can cost more than was allowed. Nothing was paid.
    TooExpensive,
    /// The spend policy does not allow it. Nothing was paid.
    NotAllowed,
    /// The model may need more time than was given. Nothing was paid.
    TimeoutTooShort,
    /// The key cannot be used, or another one signed.
    Key,
    /// The gateway, or the chain, cannot be reached or has no place. Another try may succeed.
    Unavailable,
    /// The gateway refuses the call.
    Refused,
    /// The payment was not made.
    Payment,
    /// The gateway asks for something else than was ordered and approved. Nothing was paid.
    QuoteRejected,
    /// The request failed, and the payment is back.
    Refunded,
    /// The request failed, and the payment is not back yet.
    NotRefunded,
    /// The request failed, and what became of its payment is not proven.
    Unproven,
    /// The request was paid out, and its answer cannot be had.
    Undelivered,
    /// What was delivered does not prove itself, and is withheld.
    ReceiptRejected,
    /// The parts that were streamed are not those of the output: throw them away.
    PartsRejected,
    /// An error of this library's.
    Internal,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, uniffi::Error)]
pub enum NcnError {
    /// There is one shape of errors.
    #[error("{reason}")]
    Failed {
        /// Which kind.
        kind: ErrorKind,
        /// What is wrong, and what to do.
        reason: String,
        /// Whether the same call may succeed on another try.
        retryable: bool,
        /// Whether the client's money has been paid out or is still held, or nothing proves that it is not.
        paid: bool,
    },
}

impl NcnError {
    #[allow(clippy::needless_pass_by_value, reason = "as errors come")]
    pub(crate) fn new(kind: ErrorKind, reason: impl ToString) -> Self {
        Self::Failed { kind, reason: reason.to_string(), retryable: false, paid: false }
    }
}

/// What a caller implements may throw anything.
impl From<uniffi::UnexpectedUniFFICallbackError> for NcnError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        Self::new(ErrorKind::NotAllowed, error.reason)
    }
}

impl From<ClientError> for NcnError {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Configuration { .. } => ErrorKind::Configuration,
            ClientError::Input(_) => ErrorKind::Input,
            ClientError::UnknownModel { .. } => ErrorKind::UnknownModel,
            ClientError::TooExpensive { .. } | ClientError::PriceUnseen { .. } => ErrorKind::TooExpensive,
            ClientError::TimeoutTooShort { .. } => ErrorKind::TimeoutTooShort,
            ClientError::Transport(error) => of_transport(error),
            ClientError::Ledger(_) => ErrorKind::Payment,
            ClientError::Signer(_) => ErrorKind::Key,
            ClientError::QuoteRejected(_) => ErrorKind::QuoteRejected,
            ClientError::Refused(_) => ErrorKind::Refused,
            ClientError::Refunded { .. } => ErrorKind::Refunded,
            ClientError::NotRefunded(_) => ErrorKind::NotRefunded,
            ClientError::Unproven(_) => ErrorKind::Unproven,
            ClientError::Undelivered(_) => ErrorKind::Undelivered,
            ClientError::ReceiptRejected(_) => ErrorKind::ReceiptRejected,
            ClientError::PartsRejected { .. } => ErrorKind::PartsRejected,
            _ => ErrorKind::Internal,
        };
        Self::Failed { kind, reason: error.to_string(), retryable: error.is_retryable(), paid: error.is_paid() }
    }
}

fn of_transport(error: &TransportError) -> ErrorKind {
    match error {
        TransportError::UnknownModel(_) => ErrorKind::UnknownModel,
        TransportError::InvalidRequest { .. } => ErrorKind::Input,
        error if error.is_retryable() => ErrorKind::Unavailable,
        _ => ErrorKind::Refused,
    }
}

impl From<TransportError> for NcnError {
    fn from(error: TransportError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<LedgerError> for NcnError {
    fn from(error: LedgerError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<EndpointError> for NcnError {
    fn from(error: EndpointError) -> Self {
        Self::new(ErrorKind::Configuration, format!("gateway: {error}"))
    }
}
