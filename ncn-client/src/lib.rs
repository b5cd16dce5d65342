//! The NCN SDK for dApps: send an inference request, pay for it, hold a receipt that anyone can check.
//!
//! [`Client`] does a whole request: it checks the input against the model's manifest, submits the signed order, checks the quote
//! and the validators' approval, pays, follows the work, and verifies the receipt before it hands the output over.
//!
//! ```no_run
//! # #[cfg(all(feature = "evm", feature = "grpc"))]
//! # async fn run(ledger: ncn_client::evm::EvmLedger)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use ncn_client::{Client, Payment, core::{Amount, Value}};
//!
//! let client = Client::builder().gateway("http://127.0.0.1:50051").payment(Payment::OnChain(ledger));
//! let client = client.max_price(Amount::TOKEN).build()?; // no request costs more
//! let answer = client.infer("digits", [("image", Value::png(std::fs::read("7.png")?))]).await?;
//! println!("{:?}, paid {}", answer.output.text("label"), answer.receipt.payments.total);
//! # Ok(()) }
//! ```
//!
//! The module `grpc` has the clients of gateways, registries and validators, `http` that of gateways over HTTP, `ws` that over WebSocket, `evm` the
//! ledger and payer on an EVM chain, `keystore` keys in files; each is a feature of its own, and all but `ws` are on by default. What travels between
//! the parts is the crate `ncn-wire`.

mod backoff;
#[cfg(any(feature = "grpc", feature = "http"))]
mod calls;
mod channel;
mod client;
#[cfg(feature = "devnet")]
pub mod devnet;
mod endpoint;
mod error;
#[cfg(feature = "evm")]
pub mod evm;
pub mod foreign;
#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "keystore")]
pub mod keystore;
mod payer;
mod registries;
mod time;
#[cfg(feature = "ws")]
pub mod ws;

pub use backoff::Backoff;
pub use channel::{ChannelBalance, PayerChannel};
pub use client::{
    Client, ClientBuilder, ClientConfig, Estimate, Events, InferenceEvent, InferenceOutput, Order, Paid, Payment, Quoted, Stored,
    cancellations,
};
pub use endpoint::{EndpointError, transport};
pub use error::{ClientError, QuoteProblem};
#[cfg(feature = "http")]
pub use http::http;
pub use ncn_core as core;
pub use payer::{ChannelPayer, RelayedPayer};
pub use registries::Registries;
pub use time::unix_now;
