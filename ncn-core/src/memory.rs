//! The ports in memory: for tests, for examples, and as the simplest possible reading of each contract.

mod channels;
mod executor;
mod ledger;
mod registry;

pub use executor::EchoExecutor;
pub use ledger::{MemoryChain, MemoryLedger};
pub use registry::{Clock, MemoryRegistry};
