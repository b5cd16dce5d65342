//! Typed errors across gRPC: a status code for whoever speaks only gRPC, and the error itself in the status's details.

use std::fmt::Display;

use ncn_core::{ErrorKind, RegistryError, TransportError};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Code, Status};

use crate::WireError;

/// The most bytes of an error that are sent: a status travels in headers, which are small.
const MAX_DETAILS: usize = 4 << 10;

/// An error that a service answers with.
pub trait RemoteError: Serialize + DeserializeOwned + Display {
    /// What kind it is, which says its code.
    fn kind(&self) -> ErrorKind;
    /// The service could not be reached, or gave no error of its own.
    fn unreachable(problem: String) -> Self;
    /// The service understood nothing.
    fn invalid(field: &str, problem: String) -> Self;
}

impl RemoteError for TransportError {
    fn kind(&self) -> ErrorKind {
        self.kind()
    }

    fn unreachable(problem: String) -> Self {
        Self::Unreachable { endpoint: String::new(), problem }
    }

    fn invalid(field: &str, problem: String) -> Self {
        Self::invalid(field, problem)
    }
}

impl RemoteError for RegistryError {
    fn kind(&self) -> ErrorKind {
        self.kind()
    }

    fn unreachable(problem: String) -> Self {
        Self::Unreachable(problem)
    }

    fn invalid(field: &str, problem: String) -> Self {
        Self::invalid(field, problem)
    }
}

/// The error as a status.
pub fn to_status<E: RemoteError>(error: &E) -> Status {
    let details = serde_json::to_vec(error).unwrap_or_default();
    let message: String = error.to_string().chars().take(MAX_DETAILS / 4).collect();
    let code = Code::from_i32(error.kind().grpc().into());
    if details.len() > MAX_DETAILS {
        return Status::new(code, message);
    }
    Status::with_details(code, message, details.into())
}

/// The status as the error that it was made from; one that comes from elsewhere, such as the connection, by its code.
pub fn from_status<E: RemoteError>(status: &Status) -> E {
    if let Ok(error) = serde_json::from_slice(status.details()) {
        return error;
    }
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => E::invalid("message", status.message().to_owned()),
        // The answer of a server of something else.
        Code::Unimplemented => no_service(),
        // A gateway's answer in JSON, as tonic reads it: the first byte of a message is a flag.
        _ if status.message().contains("invalid compression flag") => no_service(),
        _ => {
            // tonic's own errors keep what happened in their sources.
            let mut problem = status.message().to_owned();
            let mut source = std::error::Error::source(status);
            while let Some(error) = source {
                problem = error.to_string();
                source = error.source();
            }
            E::unreachable(if problem.is_empty() { status.code().description().into() } else { problem })
        }
    }
}

fn no_service<E: RemoteError>() -> E {
    E::unreachable("has no such service: is it another node's port?".into())
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        to_status(&TransportError::invalid(error.field, error.problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_something_else_is_told_as_such() {
        let json = "protocol error: received message with invalid compression flag: 123 (valid flags are 0 and 1)";
        for (status, says) in [
            (Status::unimplemented(""), "another node's port"),
            (Status::internal(json), "another node's port"),
            (Status::unavailable(""), "unavailable"),
        ] {
            let error: TransportError = from_status(&status);
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
