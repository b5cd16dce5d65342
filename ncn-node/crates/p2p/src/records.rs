//! What a node keeps of the distributed hash table: records that are signed by whom their key names, and nothing else.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map},
    iter,
};

use libp2p::{
    PeerId,
    bytes::Bytes,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};
use ncn_client::unix_now;
use ncn_core::{
    Address, B256, Domain,
    membership::{CLOCK_SKEW_SECONDS, MAX_RECORD_SECONDS, News},
};
use ncn_wire::{decode, proto};

/// How many records are kept, and the largest: 64 MiB of nodes' records of the usual size, and no more than 256 MiB of any.
const MAX_RECORDS: usize = 4_096;
const MAX_RECORD_BYTES: usize = 64 << 10;

const NODE: &[u8] = b"/ncn/node/";
const SUBNET: &[u8] = b"/ncn/subnet/";

/// Under what a node's record is found.
pub(crate) fn node_key(node: Address) -> RecordKey {
    RecordKey::from([NODE, node.as_slice()].concat())
}

/// Under what a subnet's definition is found.
pub(crate) fn subnet_key(subnet: B256) -> RecordKey {
    RecordKey::from([SUBNET, subnet.as_slice()].concat())
}

/// What a record says, when it is of its key and signed by whom it is about.
pub(crate) fn read(key: &RecordKey, value: &[u8], domain: &Domain) -> Option<News> {
    if value.len() > MAX_RECORD_BYTES {
        return None;
    }
    let news = News::try_from(decode::<proto::News>(Bytes::copy_from_slice(value)).ok()?).ok()?;
    let (named, signed) = match &news {
        News::Record(record) => (node_key(record.message.node), record.verify(domain)),
        News::Subnet(subnet) => (subnet_key(subnet.message.id()), subnet.verify(domain)),
        News::Heartbeat(_) | News::Departure(_) => return None,
    };
    (named == *key && signed.is_ok()).then_some(news)
}

/// What tells a newer record of a key from an older one.
pub(crate) fn version(news: &News) -> u64 {
    match news {
        News::Record(record) => record.message.sequence,
        News::Subnet(subnet) => subnet.message.version,
        News::Heartbeat(_) | News::Departure(_) => 0,
    }
}

/// Whether a record is of any use now. A sequence is at most the clock's milliseconds: see [`ncn_core::membership::Membership`].
fn is_current(news: &News, now: u64) -> bool {
    match news {
        News::Record(record) => {
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
    records: HashMap<RecordKey, (Record, News)>,
    refused: u64,
}

impl Records {
    pub(crate) fn new(domain: Domain) -> Self {
        Self { domain, records: HashMap::new(), refused: 0 }
    }

    /// How many records were refused.
    pub(crate) const fn refused(&self) -> u64 {
        self.refused
    }

    fn check(&self, record: &Record) -> Option<News> {
        let news = read(&record.key, &record.value, &self.domain)?;
        let known = self.records.get(&record.key).map(|(_, known)| version(known));
        (is_current(&news, unix_now()) && known.is_none_or(|known| version(&news) >= known)).then_some(news)
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = iter::Map<hash_map::Values<'a, RecordKey, (Record, News)>, fn(&'a (Record, News)) -> Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let (record, news) = self.records.get(key)?;
        is_current(news, unix_now()).then_some(Cow::Borrowed(record))
    }

    fn put(&mut self, record: Record) -> Result<()> {
        let Some(news) = self.check(&record) else {
            self.refused += 1;
            return Err(Error::ValueTooLarge);
        };
        if self.records.len() >= MAX_RECORDS && !self.records.contains_key(&record.key) {
            let now = unix_now();
            self.records.retain(|_, (_, known)| is_current(known, now));
            if self.records.len() >= MAX_RECORDS {
                return Err(Error::MaxRecords);
            }
        }
        self.records.insert(record.key.clone(), (record, news));
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.records.remove(key);
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
