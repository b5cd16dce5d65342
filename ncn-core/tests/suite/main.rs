//! What the core promises, tested from outside. One binary: it links once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod broken;
mod catalog;
mod conformance;
mod documented;
mod membership;
mod receipts;
mod scene;
mod simulation;
mod verifier;
