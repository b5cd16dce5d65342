//! Whether a subnet is on the chain: its owner paid the fee for creating it, so nobody fills the registry for nothing.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use ncn_core::{B256, ChainView, RegistryError, Subnet};

/// How many subnets are remembered.
const MAX_KNOWN: usize = 100_000;

/// Looks subnets up, each once: a subnet that was created stays so.
pub(super) struct Subnets {
    ledger: Arc<dyn ChainView>,
    known: Mutex<HashSet<B256>>,
}

impl Subnets {
    pub(super) fn new(ledger: Arc<dyn ChainView>) -> Self {
        Self { ledger, known: Mutex::default() }
    }

    pub(super) async fn check(&self, subnet: &Subnet) -> Result<(), RegistryError> {
        let id = subnet.id();
        if self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&id) {
            return Ok(());
        }
        match self.ledger.subnet_owner(id).await {
            Ok(Some(owner)) if owner == subnet.owner => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.len() < MAX_KNOWN {
                    known.insert(id);
                }
                Ok(())
            }
            Ok(_) => Err(RegistryError::invalid("subnet.name", "was not created on the chain: its owner has to pay the fee first")),
            Err(error) => Err(RegistryError::Unreachable(error.to_string())),
        }
    }
}
