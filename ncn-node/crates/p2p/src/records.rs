//! What a node keeps of the distributed hash table: records that are signed by whom their key names, and nothing else.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, hash_map},
    iter,
    sync::Arc,
};

use libp2p::{
    PeerId,
    bytes::Bytes,
    kad::{
        KBucketDistance, KBucketKey, ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};
use ncn_client::unix_now;
use ncn_core::{
    Address, B256, Domain, UnixTime,
    membership::{CLOCK_SKEW_SECONDS, MAX_RECORD_SECONDS, News},
    registry::{MAX_REGISTERED_MANIFEST, manifest_digest},
};
use ncn_wire::{decode, proto};
use prost::Message as _;

use crate::peer::{Refused, count};

/// How many records are kept, how many bytes of all of them, and of the largest.
const MAX_RECORDS: usize = 16_384;
const MAX_BYTES: usize = 32 << 20;
// What is larger, such as the record of a node with hundreds of models, is heard by gossip only: a message of the hash table has 16 KiB, in which
// addresses of twenty nodes are, too.
const MAX_RECORD_BYTES: usize = MAX_REGISTERED_MANIFEST;

const NODE: &[u8] = b"/ncn/node/";
const SUBNET: &[u8] = b"/ncn/subnet/";
const MANIFEST: &[u8] = b"/ncn/manifest/";

/// What a record is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A node's record, or a subnet, signed by whom it is about.
    Signed(News),
    /// A model's manifest, with its digest.
    Manifest(B256, Bytes),
}

impl From<Entry> for Record {
    fn from(entry: Entry) -> Self {
        let key = match &entry {
            Entry::Signed(News::Subnet(subnet)) => subnet_key(subnet.subnet().id()),
            Entry::Signed(news) => node_key(news.author()),
            Entry::Manifest(digest, _) => manifest_key(*digest),
        };
        let value = match entry {
            Entry::Signed(news) => proto::News::from(news).encode_to_vec(),
            Entry::Manifest(_, manifest) => manifest.into(),
        };
        Self::new(key, value)
    }
}

/// Under what a node's record is found.
pub(crate) fn node_key(node: Address) -> RecordKey {
    RecordKey::from([NODE, node.as_slice()].concat())
}

/// Under what a subnet's definition is found.
pub(crate) fn subnet_key(subnet: B256) -> RecordKey {
    RecordKey::from([SUBNET, subnet.as_slice()].concat())
}

/// Whether a key is that of a manifest.
pub(crate) fn is_manifest(key: &RecordKey) -> bool {
    key.as_ref().starts_with(MANIFEST)
}

/// Under what a model's manifest is found.
pub(crate) fn manifest_key(digest: B256) -> RecordKey {
    RecordKey::from([MANIFEST, digest.as_slice()].concat())
}

/// What a record says, when it is of its key: signed by whom it is about, or of its digest. Whether validators have approved a subnet, the chain
/// says.
pub(crate) fn read(key: &RecordKey, value: &[u8], domain: &Domain) -> Option<Entry> {
    if value.len() > MAX_RECORD_BYTES {
        return None;
    }
    if is_manifest(key) {
        let manifest = Bytes::copy_from_slice(value);
        let digest = manifest_digest(&manifest).ok()?;
        return (manifest_key(digest) == *key).then_some(Entry::Manifest(digest, manifest));
    }
    let news = News::try_from(decode::<proto::News>(Bytes::copy_from_slice(value)).ok()?).ok()?;
    let (named, signed) = match &news {
        News::Record(record) => (node_key(record.message.node), record.verify(domain)),
        News::Subnet(subnet) => (subnet_key(subnet.subnet().id()), subnet.definition.verify(domain)),
        News::Heartbeat(_) | News::Departure(_) | News::Pending(_) => return None,
    };
    (named == *key && signed.is_ok()).then_some(Entry::Signed(news))
}

/// What tells a newer record of a key from an older one.
pub(crate) fn version(entry: &Entry) -> u64 {
    match entry {
        Entry::Signed(News::Record(record)) => record.message.sequence,
        Entry::Signed(News::Subnet(subnet)) => subnet.subnet().version,
        Entry::Signed(News::Heartbeat(_) | News::Departure(_) | News::Pending(_)) | Entry::Manifest(..) => 0,
    }
}

/// Whether a record is of any use now. A sequence is at most the clock's milliseconds: see [`ncn_core::membership::Membership`].
fn is_current(entry: &Entry, now: u64) -> bool {
    match entry {
        Entry::Signed(News::Record(record)) => {
            let (expires_at, sequence) = (record.message.expires_at, record.message.sequence);
            expires_at >= now
                && expires_at - now <= MAX_RECORD_SECONDS
                && sequence / 1_000 <= now.saturating_add(CLOCK_SKEW_SECONDS)
        }
        _ => true,
    }
}

/// A table of records, with the rules of a record applied to each that comes in.
pub(crate) struct Records {
    domain: Domain,
    own: KBucketKey<PeerId>,
    records: HashMap<RecordKey, (Record, Entry)>,
    by_distance: BTreeMap<KBucketDistance, RecordKey>,
    bytes: usize,
    /// When it was last looked for what has expired.
    swept_at: UnixTime,
    refused: Arc<Refused>,
}

impl Records {
    pub(crate) fn new(domain: Domain, own: PeerId, refused: Arc<Refused>) -> Self {
        Self { domain, own: own.into(), records: HashMap::new(), by_distance: BTreeMap::new(), bytes: 0, swept_at: 0, refused }
    }

    /// How far a record is from this node: others have those that are far.
    fn distance(&self, key: &RecordKey) -> KBucketDistance {
        self.own.distance(&KBucketKey::new(key.clone()))
    }

    fn forget(&mut self, key: &RecordKey) {
        if let Some((record, _)) = self.records.remove(key) {
            self.bytes -= record.value.len();
            self.by_distance.remove(&self.distance(key));
        }
    }

    /// Keeps a record, at the cost of what has expired, and of what is farther from this node.
    fn keep(&mut self, record: Record, entry: Entry) -> Result<()> {
        let (distance, bytes) = (self.distance(&record.key), record.value.len());
        let is_full = |records: &Self| records.records.len() >= MAX_RECORDS || records.bytes + bytes > MAX_BYTES;
        let now = unix_now();
        if is_full(self) && now > self.swept_at {
            self.swept_at = now;
            let expired: Vec<_> =
                self.records.values().filter(|(_, entry)| !is_current(entry, now)).map(|(record, _)| record.key.clone()).collect();
            for key in expired {
                self.forget(&key);
            }
        }
        while is_full(self) {
            match self.by_distance.last_key_value().filter(|(farthest, _)| **farthest > distance) {
                Some((_, key)) => self.forget(&key.clone()),
                None => return Err(Error::MaxRecords),
            }
        }
        self.bytes += bytes;
        self.by_distance.insert(distance, record.key.clone());
        self.records.insert(record.key.clone(), (record, entry));
        Ok(())
    }

    /// Takes in what was read from a record, and found to be good.
    pub(crate) fn admit(&mut self, record: Record, entry: Entry) -> Result<()> {
        let is_newer = self.records.get(&record.key).is_none_or(|(_, known)| version(&entry) >= version(known));
        if !is_newer || !is_current(&entry, unix_now()) {
            count(&self.refused.records);
            return Err(Error::ValueTooLarge);
        }
        self.forget(&record.key);
        self.keep(record, entry)
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = iter::Map<hash_map::Values<'a, RecordKey, (Record, Entry)>, fn(&'a (Record, Entry)) -> Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let (record, entry) = self.records.get(key)?;
        is_current(entry, unix_now()).then_some(Cow::Borrowed(record))
    }

    fn put(&mut self, record: Record) -> Result<()> {
        let Some(entry) = read(&record.key, &record.value, &self.domain) else {
            count(&self.refused.records);
            return Err(Error::ValueTooLarge);
        };
        self.admit(record, entry)
    }

    fn remove(&mut self, key: &RecordKey) {
        self.forget(key);
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        self.records.values().map(|(record, _)| Cow::Borrowed(record))
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Result<()> {
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}
