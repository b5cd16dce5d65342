//! What a validator has approved: it approves no two completions of one request that the same party brings, and the same node has served last.
//! Another node may have to serve what the last one keeps to itself, though there is a certificate of it.

use std::collections::{HashMap, hash_map::Entry};

use ncn_client::unix_now;
use ncn_core::{Address, B256, Completion, Message as _, RegistryError, UnixTime, evidence::ApprovalKey};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::store::{Op, SharedStore, StoreError, Table, decode};

const COMPLETIONS: Table = "validator.completions";
/// How many approvals are remembered, about 100 bytes each. Each was of a request that was paid; of too many, those are forgotten first whose
/// requests end first.
const MAX_GIVEN: usize = 1 << 20;

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Given {
    completion: B256,
    /// Until when it has to be remembered.
    until: UnixTime,
}

/// The approvals that a validator has given, as its store has them, if it has one.
#[derive(Default)]
pub(super) struct Approvals {
    store: Option<SharedStore>,
    /// Locked while an approval is written down: one is given only after it is kept.
    given: Mutex<HashMap<ApprovalKey, Given>>,
}

fn row_key(ApprovalKey { request_id, author, node }: &ApprovalKey) -> Vec<u8> {
    [request_id.as_slice(), author.as_slice(), node.as_slice()].concat()
}

/// None when it has another length.
fn key_of(row: &[u8]) -> Option<ApprovalKey> {
    let (request, rest) = row.split_at_checked(B256::len_bytes())?;
    let (author, node) = rest.split_at_checked(Address::len_bytes())?;
    let request_id = B256::try_from(request).ok()?;
    Some(ApprovalKey { request_id, author: Address::try_from(author).ok()?, node: Address::try_from(node).ok()? })
}

impl Approvals {
    /// Those of a store, which keeps those to come.
    pub(super) async fn open(store: SharedStore) -> Result<Self, StoreError> {
        let mut given = HashMap::new();
        for (key, row) in store.scan(COMPLETIONS, []).await? {
            given.insert(key_of(&key).ok_or(StoreError::Key(COMPLETIONS))?, decode(COMPLETIONS, &row)?);
        }
        Ok(Self { store: Some(store), given: Mutex::new(given) })
    }

    /// Notes that this completion of a request, which `author` has brought, is approved; it returns once that survives a crash. The same one is
    /// approved as often as it is asked for.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when another one was approved that the same author has brought, and the same node has served last.
    pub(super) async fn give(&self, completion: &Completion, author: Address, until: UnixTime) -> Result<(), RegistryError> {
        let (key, completion) = (ApprovalKey::of(completion, author), completion.struct_hash());
        let mut given = self.given.lock().await;
        let mut ops = if given.contains_key(&key) { Vec::new() } else { make_room(&mut given) };
        match given.entry(key) {
            Entry::Occupied(entry) if entry.get().completion != completion => {
                return Err(RegistryError::Refused("completion: another one of this request was approved before".into()));
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(entry) => {
                let next = entry.insert(Given { completion, until });
                ops.push(Op::put(COMPLETIONS, row_key(&key), next).map_err(|error| unreachable(&error))?);
            }
        }
        let Some(store) = &self.store else { return Ok(()) };
        // Changes are in the queue in the order of the lock. The same approval again waits for the one before it, too.
        let kept = store.slot().await.map_err(|error| unreachable(&error))?.commit(ops, None);
        drop(given);
        let kept = kept.await.map_err(|error| unreachable(&error));
        if kept.is_err() {
            self.given.lock().await.remove(&key);
        }
        kept
    }
}

/// Forgets what nobody can approve any more, and, where that is not enough, half of the rest.
fn make_room(given: &mut HashMap<ApprovalKey, Given>) -> Vec<Op> {
    if given.len() < MAX_GIVEN {
        return Vec::new();
    }
    let mut ends: Vec<_> = given.values().map(|given| given.until).collect();
    let middle = ends.len() / 2;
    let (_, median, _) = ends.select_nth_unstable(middle);
    let forgotten = unix_now().max(*median);
    let old: Vec<_> = given.extract_if(|_, given| given.until <= forgotten).collect();
    old.iter().map(|(key, _)| Op::delete(COMPLETIONS, row_key(key))).collect()
}

fn unreachable(error: &StoreError) -> RegistryError {
    RegistryError::Unreachable(format!("the validator cannot keep its approval: {error}"))
}
