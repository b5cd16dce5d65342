//! The accounts, and how they were before each of the newest blocks.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
};

use alloy_primitives::{Address, B256, Bytes, U256, address, hex};
use revm::{
    Database,
    bytecode::Bytecode,
    state::{AccountInfo, EvmState},
};

use super::block::Blocks;

/// How many of the newest blocks can be taken back, and how far back calls can be made.
pub(crate) const KEPT_BLOCKS: usize = 256;

/// The deterministic deployment proxy, which forges, Hardhat and others use: <https://github.com/Arachnid/deterministic-deployment-proxy>.
const DEPLOYER: Address = address!("4e59b44847b379578588920ca78fbf26c0b4956c");
const DEPLOYER_CODE: [u8; 69] = hex!(
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe03601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
);

/// All accounts after the newest block.
#[derive(Clone, Default)]
pub(super) struct State {
    accounts: HashMap<Address, Stored>,
    /// What each of the newest blocks overwrote; the newest is the last.
    undo: VecDeque<HashMap<Address, Before>>,
}

#[derive(Clone, Default)]
struct Stored {
    info: AccountInfo,
    storage: HashMap<U256, U256>,
}

/// What a block overwrote of an account.
#[derive(Clone)]
struct Before {
    /// None when there was no such account.
    info: Option<AccountInfo>,
    /// Only the slots that the block wrote. An account that has any is never wiped: since Cancun, only what was created in the same
    /// transaction can destroy itself.
    storage: HashMap<U256, U256>,
}

impl State {
    /// With what tools take for granted: the contract by which they deploy others to addresses that are known before.
    pub(super) fn genesis() -> Self {
        let code = Bytecode::new_raw(Bytes::from_static(&DEPLOYER_CODE));
        let info = AccountInfo { code_hash: code.hash_slow(), code: Some(code), nonce: 1, ..AccountInfo::default() };
        Self { accounts: [(DEPLOYER, Stored { info, storage: HashMap::new() })].into(), undo: VecDeque::new() }
    }

    /// How an account's balance, nonce and code are now.
    pub(super) fn account(&self, address: Address) -> Option<&AccountInfo> {
        self.accounts.get(&address).map(|account| &account.info)
    }

    pub(super) fn nonce(&self, address: Address) -> u64 {
        self.account(address).map_or(0, |info| info.nonce)
    }

    /// How many blocks can be taken back.
    pub(super) fn kept(&self) -> usize {
        self.undo.len()
    }

    /// What is committed from here on belongs to a new block.
    pub(super) fn begin_block(&mut self) {
        if self.undo.len() == KEPT_BLOCKS {
            self.undo.pop_front();
        }
        self.undo.push_back(HashMap::new());
    }

    /// Applies what a transaction changed.
    pub(super) fn commit(&mut self, changes: EvmState) {
        let Some(undo) = self.undo.back_mut() else { return };
        for (address, changed) in changes {
            if !changed.is_touched() {
                continue;
            }
            let stored = self.accounts.get(&address);
            let before = undo
                .entry(address)
                .or_insert_with(|| Before { info: stored.map(|account| account.info.clone()), storage: HashMap::new() });
            // By EIP-161, an account that has nothing is none.
            if changed.is_selfdestructed() || (changed.is_empty() && stored.is_none_or(|account| account.storage.is_empty())) {
                self.accounts.remove(&address);
                continue;
            }
            let stored = self.accounts.entry(address).or_default();
            stored.info = changed.info;
            for (slot, value) in changed.storage.into_iter().filter(|(_, value)| value.is_changed()) {
                let old = if value.present_value.is_zero() {
                    stored.storage.remove(&slot)
                } else {
                    stored.storage.insert(slot, value.present_value)
                };
                before.storage.entry(slot).or_insert(old.unwrap_or_default());
            }
        }
    }

    /// Takes the newest block back.
    pub(super) fn roll_back(&mut self) {
        for (address, before) in self.undo.pop_back().unwrap_or_default() {
            let Some(info) = before.info else {
                self.accounts.remove(&address);
                continue;
            };
            let stored = self.accounts.entry(address).or_default();
            stored.info = info;
            for (slot, value) in before.storage {
                if value.is_zero() {
                    stored.storage.remove(&slot)
                } else {
                    stored.storage.insert(slot, value)
                };
            }
        }
    }

    /// Changes an account from outside of any block: after the newest one.
    pub(super) fn set_account(&mut self, address: Address, change: impl FnOnce(&mut AccountInfo)) {
        change(&mut self.accounts.entry(address).or_default().info);
    }

    /// The same for a slot of its storage.
    pub(super) fn set_slot(&mut self, address: Address, slot: U256, value: U256) {
        self.accounts.entry(address).or_default().storage.insert(slot, value);
    }

    /// Changes a balance from outside of any block: now and before all blocks that may be taken back, so that it survives that.
    pub(super) fn adjust_balance(&mut self, address: Address, change: impl Fn(U256) -> U256) {
        let info = &mut self.accounts.entry(address).or_default().info;
        info.balance = change(info.balance);
        for before in self.undo.iter_mut().filter_map(|undo| undo.get_mut(&address)) {
            let info = before.info.get_or_insert_default();
            info.balance = change(info.balance);
        }
    }
}

/// The accounts as they were before the newest `undone` blocks, for the EVM to read: whatever becomes of the chain meanwhile.
#[derive(Clone)]
pub(super) struct View {
    pub(super) state: Arc<State>,
    pub(super) hashes: Hashes,
    pub(super) undone: usize,
}

/// The hashes of the newest blocks, as far back as contracts can ask.
#[derive(Clone)]
pub(super) struct Hashes {
    first: u64,
    hashes: Vec<B256>,
}

impl Hashes {
    pub(super) fn of(blocks: &Blocks) -> Self {
        // Calls can be made on the oldest block that is kept, and ask for as many before it.
        let first = blocks.head().saturating_sub(2 * KEPT_BLOCKS as u64);
        Self { first, hashes: blocks.since(first).iter().map(|block| block.header.hash()).collect() }
    }

    fn get(&self, number: u64) -> Option<B256> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.hashes.get(at).copied()
    }
}

impl View {
    /// What was overwritten since: in the oldest block that did so.
    fn overwritten<T>(&self, find: impl FnMut(&HashMap<Address, Before>) -> Option<T>) -> Option<T> {
        let undo = &self.state.undo;
        undo.iter().skip(undo.len().saturating_sub(self.undone)).find_map(find)
    }

    pub(super) fn account(&self, address: Address) -> Option<AccountInfo> {
        let before = self.overwritten(|undo| undo.get(&address).map(|before| before.info.clone()));
        before.unwrap_or_else(|| self.state.account(address).cloned())
    }

    pub(super) fn slot(&self, address: Address, slot: U256) -> U256 {
        let before = self.overwritten(|undo| undo.get(&address)?.storage.get(&slot).copied());
        let now = || Some(*self.state.accounts.get(&address)?.storage.get(&slot)?);
        before.or_else(now).unwrap_or_default()
    }
}

impl Database for View {
    type Error = Infallible;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.account(address))
    }

    fn code_by_hash(&mut self, _: B256) -> Result<Bytecode, Infallible> {
        // Accounts are kept and given with their code.
        Ok(Bytecode::default())
    }

    fn storage(&mut self, address: Address, slot: U256) -> Result<U256, Infallible> {
        Ok(self.slot(address, slot))
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, Infallible> {
        Ok(self.hashes.get(number).unwrap_or_default())
    }
}
