//! Errors as other nodes spell them: clients take them apart.

use alloy_sol_types::{Revert, SolError as _};
use jsonrpsee::types::{ErrorCode, ErrorObjectOwned};

use crate::chain::{CallError, Refusal};

/// The node refuses.
const SERVER_ERROR: i32 = -32_000;
/// A contract reverted; its data comes along.
const REVERTED: i32 = 3;
/// There is more than may be asked for at once.
const LIMIT_EXCEEDED: i32 = -32_005;

pub(super) fn server_error(problem: impl Into<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(SERVER_ERROR, problem, None::<()>)
}

pub(super) fn invalid_params(problem: impl Into<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(ErrorCode::InvalidParams.code(), problem, None::<()>)
}

pub(super) fn limit_exceeded(problem: impl Into<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(LIMIT_EXCEEDED, problem, None::<()>)
}

pub(super) fn refused(refusal: &Refusal) -> ErrorObjectOwned {
    server_error(refusal.to_string())
}

pub(super) fn call_failed(error: CallError) -> ErrorObjectOwned {
    match error {
        CallError::Reverted(data) => {
            let reason = Revert::abi_decode(&data).map(|revert| format!(": {}", revert.reason)).unwrap_or_default();
            ErrorObjectOwned::owned(REVERTED, format!("execution reverted{reason}"), Some(data))
        }
        other => server_error(other.to_string()),
    }
}
