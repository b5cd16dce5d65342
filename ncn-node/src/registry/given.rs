//! What a validator has approved: one completion for each [`ApprovalKey`].

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use ncn_client::unix_now;
use ncn_core::{Address, B256, Completion, Message as _, RegistryError, UnixTime, evidence::ApprovalKey};
use serde::{Deserialize, Serialize};

use crate::store::{Op, SharedStore, StoreError, Table, decode};

const COMPLETIONS: Table = "validator.completions";
/// How many approvals are remembered, about 200 bytes each. Each was of a request that was paid; of too many, the gateway that has most loses those whose
/// requests end first.
const MAX_GIVEN: usize = 1 << 19;

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Given {
    completion: B256,
    /// Until when it has to be remembered.
    until: UnixTime,
    /// Whose request it is.
    #[serde(default)]
    gateway: Address,
}

type Writing = Shared<BoxFuture<'static, Result<(), StoreError>>>;

struct Known {
    given: Given,
    /// None once it is in the store.
    writing: Option<Writing>,
}

/// The approvals that a validator has given, as its store has them, if it has one.
#[derive(Default)]
pub(super) struct Approvals {
    store: Option<SharedStore>,
    given: Mutex<HashMap<ApprovalKey, Known>>,
}

fn row_key(ApprovalKey { request_id, author, node, is_lost }: &ApprovalKey) -> Vec<u8> {
    [request_id.as_slice(), author.as_slice(), node.as_slice(), &[u8::from(*is_lost)]].concat()
}

/// None when it has another length.
fn key_of(row: &[u8]) -> Option<ApprovalKey> {
    let (request, rest) = row.split_at_checked(B256::len_bytes())?;
    let (author, rest) = rest.split_at_checked(Address::len_bytes())?;
    let (node, is_lost) = rest.split_at_checked(Address::len_bytes())?;
    let (author, node) = (Address::try_from(author).ok()?, Address::try_from(node).ok()?);
    Some(ApprovalKey { request_id: B256::try_from(request).ok()?, author, node, is_lost: *is_lost.first()? != 0 })
}

impl Approvals {
    /// Those of a store, which keeps those to come.
    pub(super) async fn open(store: SharedStore) -> Result<Self, StoreError> {
        let mut given = HashMap::new();
        for (key, row) in store.scan(COMPLETIONS, []).await? {
            let known = Known { given: decode(COMPLETIONS, &row)?, writing: None };
            given.insert(key_of(&key).ok_or(StoreError::Key(COMPLETIONS))?, known);
        }
        Ok(Self { store: Some(store), given: Mutex::new(given) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ApprovalKey, Known>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that this completion of a request, which `author` has brought, is approved; it returns once that survives a crash. The same one is
    /// approved as often as it is asked for. Where it is not kept, it is not approved, and neither is another one: dropping the future changes
    /// nothing about that.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when another one was approved; [`RegistryError::Unreachable`] when it is not kept.
    pub(super) async fn give(
        &self,
        completion: &Completion,
        author: Address,
        gateway: Address,
        until: UnixTime,
    ) -> Result<(), RegistryError> {
        let (key, completion) = (ApprovalKey::of(completion, author), completion.struct_hash());
        let writing = self.note(key, Given { completion, until, gateway })?;
        let Some(writing) = writing else { return Ok(()) };
        let kept = writing.await;
        if let (Ok(()), Some(known)) = (&kept, self.lock().get_mut(&key)) {
            known.writing = None;
        }
        kept.map_err(|error| RegistryError::Unreachable(format!("the validator cannot keep its approval: {error}")))
    }

    /// What has to come to an end before it is approved.
    fn note(&self, key: ApprovalKey, next: Given) -> Result<Option<Writing>, RegistryError> {
        let mut given = self.lock();
        let forgotten = if given.contains_key(&key) { Vec::new() } else { make_room(&mut given) };
        let known = given.entry(key).or_insert_with(|| Known { given: next, writing: self.write(&key, next, forgotten) });
        if known.given.completion != next.completion {
            return Err(RegistryError::Refused("completion: another one of this request was approved before".into()));
        }
        // One that failed is tried again.
        if known.writing.as_ref().and_then(Shared::peek).is_some_and(Result::is_err) {
            known.writing = self.write(&key, known.given, Vec::new());
        }
        Ok(known.writing.clone())
    }

    /// Begins to write it down, whether anybody waits for it or not.
    fn write(&self, key: &ApprovalKey, given: Given, mut ops: Vec<Op>) -> Option<Writing> {
        let store = self.store.clone()?;
        let put = Op::put(COMPLETIONS, row_key(key), &given);
        let written = tokio::spawn(async move {
            ops.push(put?);
            store.commit(ops).await
        });
        Some(async move { written.await.map_err(StoreError::failed)? }.boxed().shared())
    }
}

/// Forgets what nobody can approve any more, and, where that is not enough, half of what one gateway has, which has most: no other one is the worse for
/// it. Returns what is to be deleted.
fn make_room(given: &mut HashMap<ApprovalKey, Known>) -> Vec<Op> {
    if given.len() < MAX_GIVEN {
        return Vec::new();
    }
    let now = unix_now();
    let mut old: Vec<_> = given.extract_if(|_, known| known.given.until <= now).collect();
    if old.len() < MAX_GIVEN / 8 {
        let mut of_gateways: HashMap<Address, Vec<UnixTime>> = HashMap::new();
        for Given { until, gateway, .. } in given.values().map(|known| known.given) {
            of_gateways.entry(gateway).or_default().push(until);
        }
        if let Some((most, mut ends)) = of_gateways.into_iter().max_by_key(|(_, ends)| ends.len()) {
            let middle = ends.len() / 2;
            let (_, median, _) = ends.select_nth_unstable(middle);
            old.extend(given.extract_if(|_, known| known.given.gateway == most && known.given.until <= *median));
        }
    }
    old.iter().map(|(key, _)| Op::delete(COMPLETIONS, row_key(key))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use ncn_core::{Amount, FinishReason, message::Contribution};

    use super::*;
    use crate::store::{MemoryStore, Row, Store};

    /// A store whose disk may be full.
    #[derive(Default)]
    struct Full {
        kept: MemoryStore,
        is_full: AtomicBool,
    }

    impl Store for Full {
        fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
            if self.is_full.load(Ordering::SeqCst) {
                return Err(StoreError::failed(std::io::Error::other("no space")));
            }
            self.kept.commit(ops)
        }

        fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
            self.kept.scan(table, prefix)
        }
    }

    fn completion(result: u8, node: u8, finish: FinishReason) -> Completion {
        let contribution =
            Contribution { compute: Address::repeat_byte(node), result: B256::repeat_byte(result), cost: Amount::new(1) };
        Completion { request_id: B256::repeat_byte(1), quote: B256::repeat_byte(2), finish, contributions: vec![contribution] }
    }

    const STOP: FinishReason = FinishReason::Stop;
    const GATEWAY: Address = Address::repeat_byte(9);

    fn is_refused(given: &Result<(), RegistryError>) -> bool {
        matches!(given, Err(RegistryError::Refused(_)))
    }

    #[tokio::test]
    async fn one_completion_is_approved_also_after_a_restart() {
        let disk = Arc::new(Full::default());
        let until = unix_now() + 600;
        let open = async || Approvals::open(SharedStore::new(disk.clone()).unwrap()).await.unwrap();
        let mut approvals = open().await;
        approvals.give(&completion(1, 1, STOP), GATEWAY, GATEWAY, until).await.unwrap();
        for _ in 0..2 {
            approvals.give(&completion(1, 1, STOP), GATEWAY, GATEWAY, until).await.unwrap();
            assert!(is_refused(&approvals.give(&completion(2, 1, STOP), GATEWAY, GATEWAY, until).await));
            approvals = open().await;
        }
        approvals.give(&completion(2, 2, STOP), GATEWAY, GATEWAY, until).await.unwrap();
        approvals.give(&completion(2, 1, STOP), Address::repeat_byte(1), GATEWAY, until).await.unwrap();
        approvals.give(&completion(2, 1, FinishReason::NodeLost), GATEWAY, GATEWAY, until).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_kept_is_not_approved_and_neither_is_anything_else() {
        let disk = Arc::new(Full::default());
        let approvals = Approvals::open(SharedStore::new(disk.clone()).unwrap()).await.unwrap();
        let until = unix_now() + 600;
        disk.is_full.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            let given = approvals.give(&completion(1, 1, STOP), GATEWAY, GATEWAY, until).await;
            assert!(matches!(given, Err(RegistryError::Unreachable(_))), "{given:?}");
            assert!(is_refused(&approvals.give(&completion(2, 1, STOP), GATEWAY, GATEWAY, until).await));
        }
        disk.is_full.store(false, Ordering::SeqCst);
        approvals.give(&completion(1, 1, STOP), GATEWAY, GATEWAY, until).await.unwrap();

        // Nobody waits for it, and it is kept all the same: then another one is not approved after a restart.
        let dropped = completion(3, 3, STOP);
        assert!(approvals.give(&dropped, GATEWAY, GATEWAY, until).now_or_never().is_none(), "it is not kept at once");
        approvals.give(&dropped, GATEWAY, GATEWAY, until).await.unwrap();
        let restarted = Approvals::open(SharedStore::new(disk).unwrap()).await.unwrap();
        assert!(is_refused(&restarted.give(&completion(4, 3, STOP), GATEWAY, GATEWAY, until).await));
    }

    /// A full table, where every `over`th is over, and a quarter belongs to others, whose requests end first.
    fn full(over: u64) -> HashMap<ApprovalKey, Known> {
        let now = unix_now();
        let of = |number: u64| {
            let mut request_id = B256::ZERO;
            request_id.0[..8].copy_from_slice(&number.to_be_bytes());
            let key = ApprovalKey { request_id, author: GATEWAY, node: GATEWAY, is_lost: false };
            let (gateway, until) = match number {
                _ if number % over == 1 => (GATEWAY, now - 1),
                _ if number.is_multiple_of(4) => (Address::repeat_byte(number.to_le_bytes()[0]), now + 100),
                _ => (GATEWAY, now + 1_000 + number),
            };
            (key, Known { given: Given { completion: B256::ZERO, until, gateway }, writing: None })
        };
        (0..MAX_GIVEN as u64).map(of).collect()
    }

    #[test]
    fn who_has_most_loses_the_oldest_when_there_are_too_many() {
        let now = unix_now();
        for over in [2, 1 << 10] {
            let mut given = full(over);
            let others =
                |given: &HashMap<ApprovalKey, Known>| given.values().filter(|known| known.given.gateway != GATEWAY).count();
            let (newest, before) =
                (given.iter().max_by_key(|(_, known)| known.given.until).map(|(key, _)| *key).unwrap(), others(&given));
            let deleted = make_room(&mut given);
            assert!(given.len() < MAX_GIVEN && given.len() > MAX_GIVEN / 3, "{}", given.len());
            assert_eq!(deleted.len() + given.len(), MAX_GIVEN);
            assert!(given.contains_key(&newest) && given.values().all(|known| known.given.until > now));
            assert_eq!(others(&given), before);
            for op in &deleted {
                let Op::Delete { key, .. } = op else { panic!("{op:?}") };
                assert!(key_of(key).is_some_and(|key| !given.contains_key(&key)));
            }
        }
    }
}
