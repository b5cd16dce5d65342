//! Paying without sending a transaction: the client signs, its gateway does the rest.

mod channel;
mod relayed;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use channel::ChannelPayer;
use ncn_core::{
    DynSigner, LedgerError, Message as _, Outcome, PaymentAuthorization, PaymentConfirmation, PaymentRef, PaymentStatus,
    PaymentSubmission, Quote, RequestId, State, Transport, TransportError, TrustRoot,
};
pub use relayed::RelayedPayer;

/// A client's way to have its signatures redeemed, and what the gateway says of them.
struct Relay {
    transport: Arc<dyn Transport>,
    trust: TrustRoot,
    signer: DynSigner,
    /// The requests whose payment the gateway has taken, by its word.
    taken: Mutex<HashSet<RequestId>>,
}

impl Relay {
    fn new(transport: Arc<dyn Transport>, trust: TrustRoot, signer: DynSigner) -> Self {
        Self { transport, trust, signer, taken: Mutex::default() }
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<RequestId>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn present(&self, request_id: RequestId, authorization: &PaymentAuthorization) -> Result<(), LedgerError> {
        let proof = PaymentSubmission::Authorization(*authorization);
        let presented = self.transport.confirm_payment(PaymentConfirmation { request_id, proof }).await;
        presented.map_err(refused)?;
        self.taken().insert(request_id);
        Ok(())
    }

    /// What the gateway says of a payment.
    async fn stated(&self, request_id: RequestId) -> Result<Stated, LedgerError> {
        let state = match self.transport.status(request_id).await {
            Ok(status) => status.state,
            Err(TransportError::UnknownTask(_) | TransportError::TakenElsewhere { .. }) => {
                return Ok(Stated::Lost("the gateway does not know the request, or no longer"));
            }
            Err(error) => return Err(refused(error)),
        };
        Ok(match state {
            State::Ended(Outcome::Completed) => Stated::Served,
            State::Executing | State::Completing | State::Settling | State::Refunding => Stated::Held,
            State::AwaitingPayment if self.taken().contains(&request_id) => Stated::Held,
            State::Ended(Outcome::Refunded) => Stated::Lost("the gateway says that it has given the payment back"),
            _ => Stated::Lost("the gateway says that it has not taken the payment"),
        })
    }
}

/// A gateway's word on a payment.
enum Stated {
    /// The answer is there to be fetched, with its receipt.
    Served,
    Held,
    /// Which nothing proves.
    Lost(&'static str),
}

impl Stated {
    /// The status that this is, as far as nothing depends on whether it is true.
    fn status(self, quote: &Quote, by: PaymentRef) -> Result<PaymentStatus, &'static str> {
        match self {
            Self::Served => Ok(PaymentStatus::Earned { by }),
            Self::Held => Ok(PaymentStatus::Held { quote: quote.struct_hash(), by }),
            Self::Lost(says) => Err(says),
        }
    }
}

fn refused(error: TransportError) -> LedgerError {
    if error.is_retryable() {
        return LedgerError::Unreachable(error.to_string());
    }
    match error {
        TransportError::VoucherTooLow { cumulative, needed } => LedgerError::VoucherTooLow { cumulative, needed },
        TransportError::InvalidRequest { problem, .. } | TransportError::Refused(problem) => LedgerError::NotAllowed(problem),
        error => LedgerError::NotAllowed(error.to_string()),
    }
}
