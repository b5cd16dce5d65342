use std::{
    collections::BTreeMap,
    io,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use redb::{Database, StorageBackend};

use super::*;

const ONE: Table = "one";
const TWO: Table = "two";

fn put(table: Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Op {
    Op::Put { table, key: key.as_ref().into(), value: value.as_ref().into() }
}

fn row(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Row {
    (key.as_ref().into(), value.as_ref().into())
}

/// What every store does.
fn keeps_its_contract(store: &dyn Store) {
    assert_eq!(store.scan(ONE, &[]).unwrap(), [], "no table is an empty table");
    store.commit(&[]).unwrap();
    store.commit(&[Op::delete(ONE, "nothing")]).unwrap();
    let rows = [put(ONE, "b", "2"), put(TWO, "b", "other"), put(ONE, "a", "1"), put(ONE, "ab", ""), put(ONE, "", "0")];
    store.commit(&rows).unwrap();
    assert_eq!(store.scan(ONE, &[]).unwrap(), [row("", "0"), row("a", "1"), row("ab", ""), row("b", "2")], "by ascending key");
    assert_eq!(store.scan(ONE, b"a").unwrap(), [row("a", "1"), row("ab", "")], "those that begin so");
    assert_eq!(store.scan(ONE, b"abc").unwrap(), []);
    assert_eq!(store.scan(TWO, &[]).unwrap(), [row("b", "other")], "a table has its own rows");
    store.commit(&[put(ONE, "a", "x"), Op::delete(ONE, "a"), put(ONE, "b", "3"), put(ONE, "b", "4")]).unwrap();
    assert_eq!(store.scan(ONE, &[]).unwrap(), [row("", "0"), row("ab", ""), row("b", "4")], "later changes of a row win");
    store.commit(&[Op::delete(ONE, ""), Op::delete(ONE, "ab"), Op::delete(ONE, "b")]).unwrap();
    let edge = [put(ONE, [0xff], "1"), put(ONE, [0xff, 0xff], "2"), put(ONE, [0xfe], "3")];
    store.commit(&edge).unwrap();
    assert_eq!(store.scan(ONE, &[0xff]).unwrap(), [row([0xff], "1"), row([0xff, 0xff], "2")]);
    store.commit(&[Op::delete(ONE, [0xff]), Op::delete(ONE, [0xff, 0xff]), Op::delete(ONE, [0xfe])]).unwrap();

    // All of a commit or nothing, for those who look meanwhile.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::SeqCst) || seen == 0 {
                let rows = store.scan(TWO, b"n").unwrap();
                assert!(rows.windows(2).all(|pair| pair[0].1 == pair[1].1), "{rows:?}");
                seen += rows.len();
            }
        });
        for number in 0..50_u32 {
            let rows: Vec<_> = (0..20_u8).map(|n| put(TWO, [b'n', n], number.to_be_bytes())).collect();
            store.commit(&rows).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        looking.join().unwrap();
    });
}

/// Like a map for each table, whatever is done.
fn is_like_a_map(store: &dyn Store, commits: &[Vec<Op>]) {
    let mut model: BTreeMap<(Table, Vec<u8>), Vec<u8>> = BTreeMap::new();
    for ops in commits {
        store.commit(ops).unwrap();
        for op in ops {
            match op.clone() {
                Op::Put { table, key, value } => drop(model.insert((table, key), value)),
                Op::Delete { table, key } => drop(model.remove(&(table, key))),
            }
        }
        for (table, prefix) in [(ONE, &[][..]), (ONE, &[1]), (TWO, &[0, 1])] {
            let rows = model.iter().filter(|((of, key), _)| *of == table && key.starts_with(prefix));
            let rows: Vec<_> = rows.map(|((_, key), value)| (key.clone(), value.clone())).collect();
            assert_eq!(store.scan(table, prefix).unwrap(), rows);
        }
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    let key = prop::collection::vec(0..3_u8, 0..3);
    (any::<bool>(), any::<bool>(), key, any::<u8>()).prop_map(|(first, puts, key, value)| {
        let table = if first { ONE } else { TWO };
        if puts { put(table, key, [value]) } else { Op::delete(table, key) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_store_is_like_a_map(commits in prop::collection::vec(prop::collection::vec(any_op(), 0..8), 1..6)) {
        let directory = tempfile::tempdir().unwrap();
        is_like_a_map(&MemoryStore::default(), &commits);
        is_like_a_map(&RedbStore::open(&directory.path().join("store")).unwrap(), &commits);
    }
}

#[test]
fn every_store_keeps_its_contract() {
    let directory = tempfile::tempdir().unwrap();
    keeps_its_contract(&MemoryStore::default());
    keeps_its_contract(&RedbStore::open(&directory.path().join("store")).unwrap());
    let disk = Disk::default();
    keeps_its_contract(&disk.store());
}

#[test]
fn a_file_is_of_one_process_and_one_version() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = RedbStore::open(&path).unwrap();
    store.commit(&[put(ONE, "a", "1")]).unwrap();
    let second = RedbStore::open(&path).map(drop).unwrap_err();
    assert!(matches!(&second, StoreError::InUse(_)) && second.to_string().contains(&path.display().to_string()), "{second}");
    drop(store);
    assert_eq!(RedbStore::open(&path).unwrap().scan(ONE, &[]).unwrap(), [row("a", "1")]);

    let database = Database::create(&path).unwrap();
    let foreign = database.begin_write().unwrap();
    foreign.open_table(redb::TableDefinition::<u64, u64>::new("numbers")).unwrap().insert(1, 1).unwrap();
    foreign.commit().unwrap();
    drop(database);
    let refused = RedbStore::open(&path).map(drop).unwrap_err().to_string();
    assert!(refused.contains("numbers"), "{refused}");
}

/// A disk in memory, which can be full and can fail.
#[derive(Clone, Debug)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: Arc<AtomicUsize>,
    fails: Arc<AtomicBool>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { bytes: Arc::default(), room: Arc::new(AtomicUsize::new(usize::MAX)), fails: Arc::default() }
    }
}

impl Disk {
    fn store(&self) -> RedbStore {
        let disk = self.clone();
        let open = move |_: &std::path::Path| Database::builder().create_with_backend(disk.clone());
        RedbStore::open_by(std::path::Path::new("disk"), Box::new(open)).unwrap()
    }

    fn check(&self) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let from = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.bytes.lock().unwrap()[from..from + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        let len = usize::try_from(len).unwrap();
        if len > self.room.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.lock().unwrap().resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        let from = usize::try_from(offset).unwrap();
        self.bytes.lock().unwrap()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_is_used_again_when_it_has_room() {
    let disk = Disk::default();
    let store = SharedStore::new(disk.store()).unwrap();
    store.commit(vec![put(ONE, "before", "1")]).await.unwrap();
    let used = disk.bytes.lock().unwrap().len();
    disk.room.store(used, Ordering::SeqCst);
    let large = put(ONE, "large", vec![7; 4 * used]);
    let full = store.commit(vec![large.clone()]).await.unwrap_err();
    assert!(matches!(&full, StoreError::Failed(_)), "{full:?}");
    // What has room is kept all the same.
    store.commit(vec![put(ONE, "small", "2")]).await.unwrap();
    assert_eq!(store.scan(ONE, "").await.unwrap(), [row("before", "1"), row("small", "2")]);
    disk.room.store(usize::MAX, Ordering::SeqCst);
    store.commit(vec![large]).await.unwrap();
    disk.fails.store(true, Ordering::SeqCst);
    let gone = store.commit(vec![put(ONE, "lost", "3")]).await.unwrap_err();
    assert!(matches!(&gone, StoreError::Failed(_) | StoreError::Open { .. }), "{gone:?}");
    disk.fails.store(false, Ordering::SeqCst);
    store.commit(vec![put(ONE, "after", "4")]).await.unwrap();
    let keys: Vec<_> = store.scan(ONE, "").await.unwrap().into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect();
    assert_eq!(keys, ["after", "before", "large", "small"]);
}

/// What a store does with a commit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Refuses one that has this key in it.
    Refuses(&'static str),
    /// Makes it, and says that it has failed.
    LosesAnswers,
}

struct Faulty {
    store: MemoryStore,
    fault: Fault,
}

impl Store for Faulty {
    fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
        let failed = || StoreError::failed(io::Error::other("as told"));
        if let Fault::Refuses(bad) = self.fault
            && ops.iter().any(|op| matches!(op, Op::Put { key, .. } if key == bad.as_bytes()))
        {
            return Err(failed());
        }
        self.store.commit(ops)?;
        if self.fault == Fault::LosesAnswers { Err(failed()) } else { Ok(()) }
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
        self.store.scan(table, prefix)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_cannot_be_kept_fails_alone() {
    let store = SharedStore::new(Faulty { store: MemoryStore::default(), fault: Fault::Refuses("bad") }).unwrap();
    let changes = (0..200).map(|number| {
        let key = if number == 100 { "bad".to_owned() } else { format!("{number:03}") };
        store.commit(vec![put(ONE, format!("{number:03} too"), ""), put(ONE, key, "")])
    });
    let kept = futures::future::join_all(changes).await;
    let failed: Vec<_> = kept.iter().enumerate().filter(|(_, kept)| kept.is_err()).map(|(number, _)| number).collect();
    assert_eq!(failed, [100]);
    assert_eq!(store.scan(ONE, "").await.unwrap().len(), 2 * 199, "all of a change or nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_builds_on_a_lost_change_is_lost_with_it() {
    let store = SharedStore::new(Faulty { store: MemoryStore::default(), fault: Fault::Refuses("bad") }).unwrap();
    let (ours, others) = (Sequence::default(), Sequence::default());
    let mut waiting = Vec::new();
    for (key, sequence) in [("1", &ours), ("a", &others), ("bad", &ours), ("2", &ours), ("b", &others), ("3", &ours)] {
        waiting.push(store.slot().await.unwrap().commit(vec![put(ONE, key, "")], Some(sequence)));
    }
    let kept = futures::future::join_all(waiting).await;
    assert!(kept[0].is_ok() && kept[1].is_ok() && kept[4].is_ok(), "{kept:?}");
    assert!(matches!(&kept[2], Err(StoreError::Failed(_))), "{kept:?}");
    assert!(matches!((&kept[3], &kept[5]), (Err(StoreError::Outdated), Err(StoreError::Outdated))), "{kept:?}");
    assert!(ours.is_broken() && !others.is_broken());
    let later = store.slot().await.unwrap().commit(vec![put(ONE, "4", "")], Some(&ours)).await;
    assert!(matches!(later, Err(StoreError::Outdated)), "{later:?}");
    store.slot().await.unwrap().commit(vec![put(ONE, "5", "")], Some(&Sequence::default())).await.unwrap();
    let keys: Vec<_> = store.scan(ONE, "").await.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [b"1", b"5", b"a", b"b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_can_be_repeated() {
    let store = SharedStore::new(Faulty { store: MemoryStore::default(), fault: Fault::LosesAnswers }).unwrap();
    let change = vec![put(ONE, "a", "1"), Op::delete(ONE, "b")];
    for _ in 0..2 {
        assert!(matches!(store.commit(change.clone()).await, Err(StoreError::Failed(_))));
        assert_eq!(store.scan(ONE, "").await.unwrap(), [row("a", "1")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.redb");
    let store = SharedStore::open(&path).unwrap();
    let writes = (0..500_u64).map(|n| store.commit(vec![put(ONE, n.to_be_bytes(), (n * n).to_be_bytes())]));
    futures::future::try_join_all(writes).await.unwrap();
    assert!(SharedStore::open(&path).is_err(), "one process at a time");
    drop(store);
    // The writer lets go of the file once it has seen that nobody is left.
    let reopened = loop {
        match SharedStore::open(&path) {
            Ok(store) => break store,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
        }
    };
    let rows = reopened.scan(ONE, "").await.unwrap();
    let sum: u64 = rows.iter().map(|(_, value)| u64::from_be_bytes(value.as_slice().try_into().unwrap())).sum();
    assert_eq!((rows.len(), sum), (500, (0..500_u64).map(|n| n * n).sum()));
}
