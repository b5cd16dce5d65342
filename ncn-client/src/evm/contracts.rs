//! The contracts' interfaces and bytecode, from the committed artifacts of `contracts/`.

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::indexing_slicing)]
mod generated {
    use alloy_sol_types::sol;

    sol!(InferencePayment, "../contracts/artifacts/InferencePayment.json");
    sol!(NCNToken, "../contracts/artifacts/NCNToken.json");
    sol!(ValidatorRegistry, "../contracts/artifacts/ValidatorRegistry.json");
}

use generated::InferencePayment::Quote;
pub use generated::{InferencePayment, NCNToken, ValidatorRegistry};

/// The quote, as the contracts take it.
pub(super) fn quote(quote: &ncn_core::Quote) -> Quote {
    Quote {
        requestId: quote.request_id,
        client: quote.client,
        gateway: quote.gateway,
        compute: quote.compute,
        modelDigest: quote.model_digest,
        total: quote.total.units(),
        gatewayBps: quote.split.gateway_bps,
        validatorsBps: quote.split.validators_bps,
        treasuryBps: quote.split.treasury_bps,
        expiry: quote.expiry,
        trustRoot: quote.trust_root,
    }
}
