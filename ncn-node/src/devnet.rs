//! A whole network on one machine.

mod chain;

pub use chain::EmbeddedChain;
