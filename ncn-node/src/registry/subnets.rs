//! Whether a subnet counts: its owner has paid for it and signed it, and validators have approved it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ncn_core::{ApprovedSubnet, B256, ChainView, RegistryError, Subnet, TrustHistory};

/// How many subnets are remembered as created, and how many as they were checked, with up to 300 kB each.
const MAX_CREATED: usize = 100_000;
const MAX_CHECKED: usize = 256;

/// Looks subnets up on the chain, each once: a subnet that was created stays so. Checks signatures, each definition's once.
pub(super) struct Subnets {
    ledger: Arc<dyn ChainView>,
    created: Mutex<HashSet<B256>>,
    checked: Mutex<HashMap<B256, ApprovedSubnet>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subnets {
    pub(super) fn new(ledger: Arc<dyn ChainView>) -> Self {
        Self { ledger, created: Mutex::default(), checked: Mutex::default() }
    }

    /// Whether its owner has paid the fee for creating it, so that nobody fills the registry for nothing.
    pub(super) async fn is_created(&self, subnet: &Subnet) -> Result<(), RegistryError> {
        let id = subnet.id();
        if lock(&self.created).contains(&id) {
            return Ok(());
        }
        match self.ledger.subnet_owner(id).await {
            Ok(Some(owner)) if owner == subnet.owner => {
                let mut created = lock(&self.created);
                if created.len() < MAX_CREATED {
                    created.insert(id);
                }
                Ok(())
            }
            Ok(_) => Err(RegistryError::invalid("subnet.name", "was not created on the chain: its owner has to pay the fee first")),
            Err(error) => Err(RegistryError::Unreachable(error.to_string())),
        }
    }

    /// Checks the owner's signature and the validators', and [`Self::is_created`].
    pub(super) async fn check(&self, subnet: &ApprovedSubnet, trust: &TrustHistory) -> Result<(), RegistryError> {
        let id = subnet.subnet().id();
        if lock(&self.checked).get(&id) == Some(subnet) {
            return Ok(());
        }
        // Who only claims to be the owner does not make this node ask the chain.
        subnet.verify(trust)?;
        self.is_created(subnet.subnet()).await?;
        let mut checked = lock(&self.checked);
        if checked.len() >= MAX_CHECKED && !checked.contains_key(&id) {
            checked.clear();
        }
        checked.insert(id, subnet.clone());
        Ok(())
    }
}
