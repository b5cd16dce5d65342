//! Which definitions of subnets a validator has approved: one of each version, and none that is older.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ncn_core::{B256, Message as _, RegistryError, Subnet};

use crate::store::{Op, SharedStore, StoreError, Table, decode};

/// By id and version.
const SUBNETS: Table = "validator.subnets";
/// How many subnets are remembered, about 100 bytes each. Each was paid for.
const MAX_SUBNETS: usize = 1 << 18;

#[derive(Clone, Copy)]
struct Defined {
    version: u64,
    hash: B256,
    is_kept: bool,
}

/// The newest definition of each subnet, as the validator's store has it, if it has one.
#[derive(Default)]
pub(super) struct Definitions {
    store: Option<SharedStore>,
    newest: Mutex<HashMap<B256, Defined>>,
}

fn row_key(id: B256, version: u64) -> Vec<u8> {
    [id.as_slice(), &version.to_be_bytes()].concat()
}

impl Definitions {
    /// Those of a store, which keeps those to come.
    pub(super) async fn open(store: SharedStore) -> Result<Self, StoreError> {
        let mut newest = HashMap::new();
        // In the order of their versions.
        for (key, row) in store.scan(SUBNETS, []).await? {
            let (id, version) = key.split_at_checked(B256::len_bytes()).ok_or(StoreError::Key(SUBNETS))?;
            let version = version.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Key(SUBNETS))?;
            newest.insert(B256::from_slice(id), Defined { version, hash: decode(SUBNETS, &row)?, is_kept: true });
        }
        Ok(Self { store: Some(store), newest: Mutex::new(newest) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<B256, Defined>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that this definition is approved; it returns once that survives a crash. The same one is approved as often as it is asked for.
    ///
    /// # Errors
    /// [`RegistryError::Stale`] when a newer version was approved; [`RegistryError::Refused`] when this version was another one;
    /// [`RegistryError::Unreachable`] when it is not kept.
    pub(super) async fn give(&self, subnet: &Subnet) -> Result<(), RegistryError> {
        let (id, version, hash) = (subnet.id(), subnet.version, subnet.struct_hash());
        let before = self.note(id, Defined { version, hash, is_kept: false })?;
        let Some(store) = self.store.as_ref().filter(|_| before.is_none_or(|before| before.version < version || !before.is_kept))
        else {
            return Ok(());
        };
        // Each version has a row of its own: whichever of two is written last, neither is forgotten.
        let failed = |error: StoreError| RegistryError::Unreachable(format!("the validator cannot keep its approval: {error}"));
        let mut ops = vec![Op::put(SUBNETS, row_key(id, version), &hash).map_err(failed)?];
        ops.extend(before.filter(|before| before.version < version).map(|before| Op::delete(SUBNETS, row_key(id, before.version))));
        store.commit(ops).await.map_err(failed)?;
        match self.lock().get_mut(&id) {
            Some(known) if known.version == version => known.is_kept = true,
            // A newer one came meanwhile.
            Some(known) => return Err(RegistryError::Stale { given: version, known: known.version }),
            None => {}
        }
        Ok(())
    }

    /// What was approved before.
    fn note(&self, id: B256, next: Defined) -> Result<Option<Defined>, RegistryError> {
        let mut newest = self.lock();
        let before = newest.get(&id).copied();
        match before {
            Some(known) if next.version < known.version => {
                return Err(RegistryError::Stale { given: next.version, known: known.version });
            }
            Some(known) if next.version == known.version && next.hash != known.hash => {
                return Err(RegistryError::Refused("subnet: another definition of this version was approved before".into()));
            }
            Some(known) if next.version == known.version => {}
            None if newest.len() >= MAX_SUBNETS => {
                return Err(RegistryError::Overloaded(format!("{MAX_SUBNETS} subnets were approved")));
            }
            _ => {
                newest.insert(id, next);
            }
        }
        Ok(before)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ncn_core::{Address, FeeSplit};

    use super::*;
    use crate::store::MemoryStore;

    fn subnet(version: u64, gateway: u8) -> Subnet {
        Subnet {
            owner: Address::ZERO,
            name: "one".into(),
            gateways: vec![Address::repeat_byte(gateway)],
            models: Vec::new(),
            split: FeeSplit::default(),
            version,
        }
    }

    #[tokio::test]
    async fn one_definition_of_a_version_is_approved_also_after_a_restart() {
        let disk = Arc::new(MemoryStore::default());
        let open = async || Definitions::open(SharedStore::new(disk.clone()).unwrap()).await.unwrap();
        let mut defined = open().await;
        defined.give(&subnet(2, 1)).await.unwrap();
        for _ in 0..2 {
            defined.give(&subnet(2, 1)).await.unwrap();
            let another = defined.give(&subnet(2, 2)).await;
            assert!(matches!(another, Err(RegistryError::Refused(_))), "{another:?}");
            assert_eq!(defined.give(&subnet(1, 1)).await, Err(RegistryError::Stale { given: 1, known: 2 }));
            defined = open().await;
        }
        defined.give(&subnet(3, 2)).await.unwrap();
        let defined = open().await;
        assert_eq!(defined.give(&subnet(2, 1)).await, Err(RegistryError::Stale { given: 2, known: 3 }));
        defined.give(&Subnet { name: "two".into(), ..subnet(1, 1) }).await.unwrap();
        let rows = SharedStore::new(disk.clone()).unwrap().scan(SUBNETS, []).await.unwrap();
        assert_eq!(rows.len(), 2, "older versions are forgotten");
    }
}
