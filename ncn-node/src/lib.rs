//! Everything of the NCN network that serves.

pub mod channel;
pub mod compute;
pub mod devnet;
pub mod executor;
pub mod gateway;
pub mod models;
pub mod node;
mod payments;
pub mod presence;
pub mod registry;
pub mod sandbox;
pub mod server;
pub mod store;
pub mod time;
pub mod worker;
