//! The SDK for Python, Swift and Kotlin: [`ncn_client`] in types that uniffi can carry.
//!
//! Work runs on a Tokio runtime of this library's own, and is given up as soon as its caller gives up: dropping a future or a [`Running`] aborts it.
//! What a caller implements itself ([`Signer`], [`SpendPolicy`]) is called in threads that may block.

mod client;
mod error;
mod keys;
mod receipt;
mod running;
mod runtime;
mod types;

pub use client::{Client, Connection, Contracts, Network, Payment, SpendPolicy};
pub use error::{ErrorKind, NcnError};
pub use keys::{Key, Signer, SignerError};
pub use receipt::{Receipt, verify_receipt};
pub use running::{Event, Running};
pub use runtime::shut_down;
pub use types::{Answer, ChannelInfo, DataType, Estimate, Message, ModelInfo, Offer, Order, StepTiming, Value};

uniffi::setup_scaffolding!("ncn");
