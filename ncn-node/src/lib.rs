//! Everything of the NCN network that serves.

pub mod channel;
mod clock;
pub mod compute;
pub mod gateway;
pub mod measures;
pub mod node;
mod payments;
mod rate;
pub mod registration;
pub mod registry;
#[cfg(feature = "grpc")]
pub mod server;
pub mod store;
