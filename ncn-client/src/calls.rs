//! What calls have in common on any wire.

use std::time::Duration;

use ncn_core::TransportError;

/// How long connecting may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take that is answered at once; streams are not bound by it.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gateway may take to quote: it asks validators, three times when too few of them answer.
pub(crate) const QUOTE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long thousands of requests may take to be judged together, and then to be settled.
pub(crate) const SETTLEMENT_TIMEOUT: Duration = Duration::from_mins(5);

/// The error that says who could not be reached, by scheme, host and port: what else a URL has may be secret.
pub(crate) fn unreachable(endpoint: &str, problem: &str) -> TransportError {
    let problem = format!("{problem}; check the address, and that the gateway runs");
    TransportError::Unreachable { endpoint: endpoint.to_owned(), problem }
}
