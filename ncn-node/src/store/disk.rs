use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use redb::{Database, DatabaseError, Durability, ReadableDatabase as _, TableDefinition, TableError, TableHandle as _};

use super::{Op, Row, Store, StoreError, Table};

const fn definition(table: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(table)
}

/// Tables in one file of redb, which one process at a time can have open.
pub struct RedbStore {
    path: PathBuf,
    open: Box<Open>,
    /// None after the disk has failed, until it is there again.
    database: RwLock<Option<Database>>,
}

type Open = dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync;

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// Another process has it open, it is no store, or a table in it was made by another version of this program.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.try_exists().unwrap_or(true) {
            create(path).map_err(|source| StoreError::Open { path: path.into(), source: Arc::new(source) })?;
        }
        Self::open_by(path, Box::new(|path| Database::create(path)))
    }

    pub(super) fn open_by(path: &Path, open: Box<Open>) -> Result<Self, StoreError> {
        let failed = |error: redb::Error| StoreError::Open { path: path.into(), source: Arc::new(error) };
        let database = match open(path) {
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::InUse(path.into())),
            database => database.map_err(|error| failed(error.into()))?,
        };
        let check = || {
            let read = database.begin_read()?;
            for table in read.list_tables()? {
                read.open_table(definition(table.name()))?;
            }
            Ok(())
        };
        check().map_err(failed)?;
        Ok(Self { path: path.into(), open, database: RwLock::new(Some(database)) })
    }

    /// Does something with the database. After its disk has failed, redb wants it to be opened anew.
    fn with<T>(&self, act: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        {
            let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(database) = &*open {
                match act(database) {
                    Ok(done) => return Ok(done),
                    Err(redb::Error::PreviousIo) => {}
                    Err(error) => return Err(StoreError::failed(error)),
                }
            }
        }
        let mut closed = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: it holds the file's lock.
        *closed = None;
        let opened = (self.open)(&self.path);
        let database = opened.map_err(|error| StoreError::Open { path: self.path.clone(), source: Arc::new(error) })?;
        let done = act(&database).map_err(StoreError::failed);
        *closed = Some(database);
        done
    }
}

/// Makes the file beside its place, so that a full disk or a crash leaves none that is not whole.
fn create(path: &Path) -> Result<(), redb::Error> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let made = (|| {
        if let Err(error) = fs::remove_file(&beside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        drop(Database::create(&beside)?);
        Ok(fs::rename(&beside, path)?)
    })();
    if made.is_err() {
        let _ = fs::remove_file(&beside);
    }
    made
}

impl Store for RedbStore {
    fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            // Runs of one table: opening it for each row would cost more than the rows.
            for run in ops.chunk_by(|one, other| one.table() == other.table()) {
                let Some(first) = run.first() else { continue };
                let mut rows = transaction.open_table(definition(first.table()))?;
                for op in run {
                    match op {
                        Op::Put { key, value, .. } => drop(rows.insert(&**key, &**value)?),
                        Op::Delete { key, .. } => drop(rows.remove(&**key)?),
                    }
                }
            }
            Ok(transaction.commit()?)
        })
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
        self.with(|database| {
            let rows = match database.begin_read()?.open_table(definition(table)) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                rows => rows?,
            };
            let mut found = Vec::new();
            for row in rows.range(prefix..)? {
                let (key, value) = row?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(found)
        })
    }
}
