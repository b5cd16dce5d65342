//! What the core promises, tested from outside. One binary: it links once.

mod broken;
mod conformance;
mod membership;
mod receipts;
mod scene;
