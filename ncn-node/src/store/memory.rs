use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Op, Row, Store, StoreError, Table};

type Tables = BTreeMap<Table, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Tables in memory: they outlive a role, not the process.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Tables>);

impl MemoryStore {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
        let mut tables = self.tables();
        for op in ops {
            let rows = tables.entry(op.table()).or_default();
            match op {
                Op::Put { key, value, .. } => drop(rows.insert(key.clone(), value.clone())),
                Op::Delete { key, .. } => drop(rows.remove(key)),
            }
        }
        Ok(())
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
        let tables = self.tables();
        let Some(rows) = tables.get(table) else { return Ok(Vec::new()) };
        let from = rows.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        let found = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
