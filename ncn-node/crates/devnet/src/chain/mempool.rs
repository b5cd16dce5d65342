//! The transactions that wait.

use std::collections::{BTreeMap, HashMap};

use alloy_consensus::{Transaction as _, TxEnvelope, transaction::Recovered};
use alloy_primitives::{Address, B256};

use super::refusal::Refusal;

/// How many transactions may wait.
pub(super) const MAX_TRANSACTIONS: usize = 4_096;
/// How large they may be together.
const MAX_BYTES: usize = 64 << 20;

/// The transactions that wait, by account and nonce.
#[derive(Default)]
pub(super) struct Mempool {
    accounts: HashMap<Address, BTreeMap<u64, Waiting>>,
    hashes: HashMap<B256, (Address, u64)>,
    bytes: usize,
    /// How many there ever were.
    arrived: u64,
}

struct Waiting {
    transaction: Recovered<TxEnvelope>,
    /// When it came, among all.
    order: u64,
}

impl Mempool {
    pub(super) fn get(&self, hash: B256) -> Option<&Recovered<TxEnvelope>> {
        let (account, nonce) = self.hashes.get(&hash)?;
        Some(&self.accounts.get(account)?.get(nonce)?.transaction)
    }

    /// The first nonce from `mined` on that no waiting transaction has.
    pub(super) fn next_nonce(&self, account: Address, mined: u64) -> u64 {
        let waiting = self.accounts.get(&account);
        waiting.map_or(mined, |waiting| {
            waiting.keys().fold(mined, |next, nonce| if *nonce == next { next.saturating_add(1) } else { next })
        })
    }

    /// Takes a transaction in. One with the same nonce makes room for it when it offers a tenth more.
    pub(super) fn insert(&mut self, transaction: Recovered<TxEnvelope>) -> Result<(), Refusal> {
        let waiting = self.accounts.get(&transaction.signer()).and_then(|waiting| waiting.get(&transaction.nonce()));
        match waiting {
            Some(replaced) if !outbids(&transaction, &replaced.transaction) => {
                Err(Refusal::Underpriced { nonce: transaction.nonce() })
            }
            None if self.hashes.len() >= MAX_TRANSACTIONS || self.bytes >= MAX_BYTES => Err(Refusal::PoolFull),
            Some(_) | None => {
                self.restore(transaction);
                Ok(())
            }
        }
    }

    /// Takes a transaction in, whatever waits.
    pub(super) fn restore(&mut self, transaction: Recovered<TxEnvelope>) {
        let (account, nonce) = (transaction.signer(), transaction.nonce());
        self.hashes.insert(*transaction.tx_hash(), (account, nonce));
        self.bytes += transaction.input().len();
        self.arrived += 1;
        let waiting = Waiting { transaction, order: self.arrived };
        if let Some(replaced) = self.accounts.entry(account).or_default().insert(nonce, waiting) {
            self.forget(&replaced.transaction);
        }
    }

    /// The accounts whose first transaction can be next in a block, by when that came. A nonce of each is asked for.
    pub(super) fn ready(&self, nonce: impl Fn(Address) -> u64) -> BTreeMap<u64, Address> {
        self.accounts.keys().filter_map(|account| Some((self.is_ready(*account, nonce(*account))?, *account))).collect()
    }

    /// When an account's first transaction came, if it has this nonce.
    pub(super) fn is_ready(&self, account: Address, nonce: u64) -> Option<u64> {
        let (first, waiting) = self.accounts.get(&account)?.first_key_value()?;
        (*first == nonce).then_some(waiting.order)
    }

    /// Takes an account's first transaction out, if it uses no more gas than this.
    pub(super) fn take(&mut self, account: Address, gas: u64) -> Option<Recovered<TxEnvelope>> {
        let waiting = self.accounts.get_mut(&account)?;
        let first = waiting.first_entry().filter(|first| first.get().transaction.gas_limit() <= gas)?;
        let transaction = first.remove().transaction;
        if waiting.is_empty() {
            self.accounts.remove(&account);
        }
        self.forget(&transaction);
        Some(transaction)
    }

    fn forget(&mut self, transaction: &Recovered<TxEnvelope>) {
        self.hashes.remove(transaction.tx_hash());
        self.bytes -= transaction.input().len();
    }
}

/// Whether it offers at least a tenth more in both fee fields, by the rule that nodes agree on.
fn outbids(new: &TxEnvelope, old: &TxEnvelope) -> bool {
    let more = |new: u128, old: u128| new >= old.saturating_add((old / 10).max(1));
    let tip = |transaction: &TxEnvelope| transaction.max_priority_fee_per_gas().unwrap_or_else(|| transaction.max_fee_per_gas());
    more(new.max_fee_per_gas(), old.max_fee_per_gas()) && more(tip(new), tip(old))
}
