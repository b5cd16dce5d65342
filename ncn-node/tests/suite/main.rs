//! The network's roles, tested from outside, with real contracts, real signatures, real processes and real sockets. One binary: it
//! links once.

mod chain;
mod cli;
mod conformance;
mod digests;
mod failures;
mod hostile;
mod scene;
