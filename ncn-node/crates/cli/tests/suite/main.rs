//! The network's roles, tested from outside, with real contracts, real signatures, real processes and real sockets. One binary: it
//! links once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod anvil;
mod batches;
mod bindings;
mod browser;
mod bystander;
mod chain;
mod channels;
mod chaos;
mod cli;
mod compute_cli;
mod config;
mod conformance;
mod decoders;
mod deviations;
mod digests;
mod doctor;
mod due;
mod engines;
mod epochs;
mod evm;
mod executor;
mod expected;
mod failures;
mod fetch;
mod floods;
mod gas;
#[cfg(feature = "gguf")]
mod gguf;
mod graphs;
mod habits;
mod harmful;
mod hostile;
mod integers;
mod liars;
mod llama;
mod load;
#[cfg(feature = "ort")]
mod machine;
mod models;
mod models_cli;
mod models_list;
mod money;
mod nodes;
mod once;
#[cfg(feature = "ort")]
mod onnxruntime;
mod openai;
mod outputs;
mod page;
mod peers;
mod pins;
mod prices;
mod provider;
mod python;
mod quorums;
mod real_models;
mod recovery;
mod registry_cli;
mod relayed;
mod reorganizations;
mod rpc;
mod s3;
mod sandbox;
mod scene;
mod stores;
mod streams;
mod takeover;
mod tamper;
mod tls;
mod traces;
mod usage;
mod wait;
mod watches;
mod wires;
mod workers;
