//! Whom a gateway has had serve a request: each role checks it by what the gateway has signed.

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use crate::{Dispatch, Domain, Message as _, Quote, SignatureError, Signed, lifecycle::MAX_ATTEMPTS};

/// Why a gateway's dispatches are not those of the nodes that have served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DispatchError {
    /// More, or fewer, than nodes.
    #[error("dispatches: there are {have}, and {need} nodes")]
    Count {
        /// How many there are.
        have: usize,
        /// How many it takes.
        need: usize,
    },
    /// Another gateway's.
    #[error("dispatch.gateway: is not the quote's")]
    Gateway,
    /// Of another request, or at another price.
    #[error("dispatch.quote: is another one")]
    Quote,
    /// Another node's.
    #[error("dispatch.compute: is another node than {0}, which has served")]
    Compute(Address),
    /// Not later than the one before it, or more than there are.
    #[error("dispatch.attempt: {0} does not follow the one before it")]
    Attempt(u8),
    /// From somewhere else.
    #[error("dispatch.resumedFrom: is not where the node began")]
    Start,
    /// Not signed by whom it names.
    #[error("dispatch: {0}")]
    Signature(#[from] SignatureError),
}

/// Checks that the quote's gateway has had each of these nodes serve, in their order, from where each began: zero, or the chain of the
/// parts before it.
///
/// # Errors
/// The first thing that does not fit.
pub fn verify(
    dispatches: &[Signed<Dispatch>],
    quote: &Quote,
    nodes: &[(Address, B256)],
    domain: &Domain,
) -> Result<(), DispatchError> {
    if dispatches.len() != nodes.len() {
        return Err(DispatchError::Count { have: dispatches.len(), need: nodes.len() });
    }
    let hash = quote.struct_hash();
    let mut least = 0;
    for (dispatch, (compute, start)) in dispatches.iter().zip(nodes) {
        let Dispatch { gateway, attempt, resumed_from, .. } = dispatch.message;
        if gateway != quote.gateway {
            return Err(DispatchError::Gateway);
        }
        if dispatch.message.quote != hash {
            return Err(DispatchError::Quote);
        }
        if dispatch.message.compute != *compute {
            return Err(DispatchError::Compute(*compute));
        }
        if !(least..MAX_ATTEMPTS).contains(&attempt) {
            return Err(DispatchError::Attempt(attempt));
        }
        if resumed_from != *start {
            return Err(DispatchError::Start);
        }
        dispatch.verify(domain)?;
        least = attempt + 1;
    }
    Ok(())
}
