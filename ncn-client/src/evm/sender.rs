//! Sends one account's transactions: nonces in order, fees that rise until a transaction is taken, confirmation.

use std::{
    collections::BTreeSet,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, TxKind};
use ncn_core::DynSigner;

use super::{Call, EvmBackend, EvmError, Fees, SentTransaction, TransactionReceipt};

/// How long to wait for a block before the transaction is looked for again.
const LOOK: Duration = Duration::from_secs(2);
/// The least of that, however soon a fee is to rise.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);
/// How long to wait for a chain that does not answer.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a used nonce may come without a receipt of ours before it counts as another transaction's, and the same call is sent with
/// another nonce: behind one address there may be several nodes, not all of which have the newest block.
const DOUBT: Duration = LOOK;
/// A replacement has to offer at least a tenth more than what it replaces, by the rule that nodes agree on; this is an eighth.
const BUMP_DIVISOR: u128 = 8;

/// How transactions are sent.
#[derive(Clone, Copy, Debug)]
pub struct SendOptions {
    /// After how long a transaction that is in no block is sent again with a higher fee.
    pub bump_after: Duration,
    /// After how long it is given up. It may still be taken later: what moves money is asked about, not repeated blindly.
    pub timeout: Duration,
    /// The most that a unit of gas may cost, in the chain's smallest unit.
    pub max_fee_per_gas: u128,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self { bump_after: Duration::from_secs(30), timeout: Duration::from_mins(10), max_fee_per_gas: 1_000_000_000_000 }
    }
}

/// One account's way to the chain. All handles of a ledger share it, because they share the account's nonces.
pub(crate) struct Sender {
    backend: Arc<dyn EvmBackend>,
    signer: DynSigner,
    chain_id: u64,
    options: SendOptions,
    /// Held while a transaction gets its nonce and is handed in, which keeps an account's transactions in order: there is nothing that
    /// two of them could do at the same time.
    turn: tokio::sync::Mutex<()>,
    /// The nonces of the transactions that are waited for: the chain may not count them yet, or not any more. What is free between
    /// them is given to the next transaction, so that a transaction that was given up leaves no gap for ever.
    nonces: Mutex<BTreeSet<u64>>,
}

/// A transaction that was handed in.
struct Pending<'a> {
    call: Call,
    gas_limit: u64,
    nonce: Nonce<'a>,
    fees: Fees,
    raw: Bytes,
    /// Of every version that was handed in, whatever came of that: any of them may be taken.
    hashes: Vec<B256>,
    /// Whether a version was ever taken; false when all that was heard is that another transaction has the nonce.
    taken: Option<bool>,
}

impl Pending<'_> {
    /// What the chain said to a version of it.
    fn heard(&mut self, said: &Result<(), EvmError>) {
        match said {
            Ok(()) => self.taken = Some(true),
            Err(EvmError::Nonce(_)) => self.taken = self.taken.or(Some(false)),
            Err(_) => {}
        }
    }
}

impl Sender {
    pub(crate) fn new(backend: Arc<dyn EvmBackend>, signer: DynSigner, chain_id: u64, options: SendOptions) -> Self {
        Self { backend, signer, chain_id, options, turn: tokio::sync::Mutex::default(), nonces: Mutex::default() }
    }

    pub(crate) fn address(&self) -> Address {
        self.signer.address()
    }

    pub(crate) const fn signer(&self) -> &DynSigner {
        &self.signer
    }

    /// Has the chain do this, and waits until it is final. What would be refused is not sent.
    pub(crate) async fn send(&self, to: TxKind, input: Bytes) -> Result<SentTransaction, EvmError> {
        let call = Call { from: self.address(), to, input };
        let started = Instant::now();
        loop {
            let left = self.options.timeout.saturating_sub(started.elapsed());
            // Nothing has been signed yet: this can end at any time, what comes after it cannot.
            let prepared = tokio::time::timeout(left, self.prepare(call.clone())).await;
            let (turn, mut pending) = prepared.map_err(|_| {
                let waited = self.options.timeout;
                EvmError::Unreachable(format!("the chain did not say within {waited:?} what to offer: nothing was sent"))
            })??;
            let fees = pending.fees;
            match self.offer(&mut pending, fees).await {
                // That another transaction has the nonce is believed once it is in a block.
                Ok(()) | Err(EvmError::Nonce(_)) => drop(turn),
                Err(error) => return Err(error),
            }
            match self.watch(pending, started).await {
                Err(EvmError::Nonce(_)) if started.elapsed() < self.options.timeout => {}
                done => return done,
            }
        }
    }

    /// A transaction that can be handed in, and the turn to do it.
    async fn prepare(&self, call: Call) -> Result<(tokio::sync::MutexGuard<'_, ()>, Pending<'_>), EvmError> {
        let gas = self.backend.estimate(&call).await?;
        // A quarter more, for what other transactions may change until this one's turn, and a little that tells it from the same
        // call of another process: sent with the same nonce, the two would be one transaction, and both would think it theirs.
        let [salt, salter, ..] = B256::random().0;
        let gas_limit = gas.saturating_add(gas / 4).saturating_add(u16::from_be_bytes([salt, salter]).into());
        let fees = self.backend.fees().await?;
        let turn = self.turn.lock().await;
        let nonce = Nonce::take(&self.nonces, self.backend.nonces(self.address()).await?.pending);
        Ok((turn, Pending { call, gas_limit, nonce, fees, raw: Bytes::new(), hashes: Vec::new(), taken: None }))
    }

    /// Waits for a transaction, and sends it again when it is not taken or has gone from the chain.
    async fn watch(&self, mut pending: Pending<'_>, started: Instant) -> Result<SentTransaction, EvmError> {
        let mut offered = Instant::now();
        let (mut seen, mut doubt, mut problem, mut told) = (0, None, None, None);
        loop {
            // It has been handed in, and may be taken whatever goes wrong from here on: only what settles its fate ends the wait.
            let looked = self.look(&pending).await;
            if !matches!(looked, Err(EvmError::Nonce(_))) {
                doubt = None;
            }
            match looked {
                Ok(Some((hash, inclusion))) if inclusion.confirmed => return self.outcome(&pending.call, hash, inclusion).await,
                // In a block that is not final yet: a reorganization may take it out again, and then it is handed in again below.
                Ok(Some(_)) => (offered, problem) = (Instant::now(), None),
                // Another account's user is not outbid by us: only what is ours is replaced.
                Ok(None) if offered.elapsed() >= self.options.bump_after && pending.taken != Some(false) => {
                    offered = Instant::now();
                    problem = self.bump(&mut pending).await.err().or(problem);
                }
                Ok(None) => {
                    let said = self.backend.send_raw_transaction(pending.raw.clone()).await;
                    pending.heard(&said);
                    match said {
                        // Told apart by the next look: this one may have been taken, or another one with its nonce.
                        Ok(()) | Err(EvmError::Nonce(_)) => {}
                        // What is refused now may have been taken before, by another node behind the same address.
                        Err(error) => problem = Some(error),
                    }
                }
                Err(error @ EvmError::Nonce(_)) => {
                    if doubt.get_or_insert_with(Instant::now).elapsed() >= DOUBT {
                        return Err(error);
                    }
                }
                Err(error) => problem = Some(error),
            }
            if let Some(problem) = &problem
                && Some(problem) != told.as_ref()
            {
                tracing::warn!(account = %self.address(), nonce = *pending.nonce, %problem, "a transaction is not taken yet");
            }
            told.clone_from(&problem);
            if started.elapsed() >= self.options.timeout {
                return Err(self.given_up(&pending, problem));
            }
            let wait = self.options.bump_after.clamp(SHORTEST_LOOK, LOOK);
            match tokio::time::timeout(wait, self.backend.block_after(seen)).await {
                Ok(Ok(head)) => seen = head.number,
                Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
                Err(_) => {}
            }
        }
    }

    fn given_up(&self, pending: &Pending<'_>, problem: Option<EvmError>) -> EvmError {
        let hash = pending.hashes.last().copied().unwrap_or_default();
        let given_up = format!("transaction {hash} was not taken within {:?}", self.options.timeout);
        match problem {
            None => EvmError::Unreachable(given_up),
            Some(malformed @ EvmError::Malformed { .. }) => malformed,
            Some(problem) => EvmError::Unreachable(format!("{given_up}: {problem}")),
        }
    }

    /// Which version of a transaction is in a block.
    async fn look(&self, pending: &Pending<'_>) -> Result<Option<(B256, TransactionReceipt)>, EvmError> {
        if let Some(found) = self.find(pending).await? {
            return Ok(Some(found));
        }
        if self.backend.nonces(self.address()).await?.mined <= *pending.nonce {
            return Ok(None);
        }
        // Some transaction with this nonce is final. It may have come between the two questions.
        self.find(pending).await?.map(Some).ok_or(EvmError::Nonce(*pending.nonce))
    }

    async fn find(&self, pending: &Pending<'_>) -> Result<Option<(B256, TransactionReceipt)>, EvmError> {
        for hash in pending.hashes.iter().rev() {
            if let Some(inclusion) = self.backend.transaction_receipt(*hash).await? {
                return Ok(Some((*hash, inclusion)));
            }
        }
        Ok(None)
    }

    /// Offers more for the same transaction. When that fails, what was offered before stands.
    async fn bump(&self, pending: &mut Pending<'_>) -> Result<(), EvmError> {
        let more = |fee: u128| fee.saturating_add((fee / BUMP_DIVISOR).max(1));
        let (old, now) = (pending.fees, self.backend.fees().await?);
        let fees = Fees { base: more(old.base).max(now.base), priority: more(old.priority).max(now.priority) };
        tracing::info!(account = %self.address(), nonce = *pending.nonce, "a transaction is not taken: offering a higher fee");
        match self.offer(pending, fees).await {
            // Taken just now, or the limit leaves no room for a replacement.
            Err(EvmError::Nonce(_)) => Ok(()),
            done => done,
        }
    }

    /// Hands a transaction in at this price.
    async fn offer(&self, pending: &mut Pending<'_>, fees: Fees) -> Result<(), EvmError> {
        let (hash, raw) = self.sign(pending, fees).await?;
        pending.hashes.push(hash);
        let said = self.backend.send_raw_transaction(raw.clone()).await;
        pending.heard(&said);
        // Without an answer that can be read it may have been taken: it is watched, and handed in again.
        let said = said.or_else(|error| match error {
            EvmError::Unreachable(_) | EvmError::Malformed { .. } => Ok(()),
            refusal => Err(refusal),
        });
        // A higher offer that is refused leaves the one before as it is.
        if said.is_ok() || pending.raw.is_empty() {
            (pending.fees, pending.raw) = (fees, raw);
        }
        said
    }

    async fn sign(&self, pending: &Pending<'_>, Fees { base, priority }: Fees) -> Result<(B256, Bytes), EvmError> {
        // The base fee can double within six blocks; what is not needed is not paid.
        let (needed, limit) = (base.saturating_add(priority), self.options.max_fee_per_gas);
        if needed > limit {
            return Err(EvmError::FeeCapExceeded { needed, limit });
        }
        let transaction = TxEip1559 {
            chain_id: self.chain_id,
            nonce: *pending.nonce,
            gas_limit: pending.gas_limit,
            max_fee_per_gas: needed.saturating_add(base).min(limit),
            max_priority_fee_per_gas: priority,
            to: pending.call.to,
            input: pending.call.input.clone(),
            ..TxEip1559::default()
        };
        let signed = self.signer.sign_hash(&transaction.signature_hash()).await;
        let signature = signed.map_err(|error| EvmError::InvalidTransaction(format!("signing failed: {error}")))?;
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        Ok((*envelope.tx_hash(), envelope.encoded_2718().into()))
    }

    async fn outcome(&self, call: &Call, hash: B256, inclusion: TransactionReceipt) -> Result<SentTransaction, EvmError> {
        let TransactionReceipt { block, gas_used, created, succeeded, .. } = inclusion;
        if succeeded {
            return Ok(SentTransaction { hash, block, gas_used, created });
        }
        // A receipt does not say why. The same call again usually does.
        match self.backend.call(call).await {
            Err(error @ EvmError::Reverted(_)) => Err(error),
            _ => Err(EvmError::Reverted(Bytes::new())),
        }
    }
}

/// A nonce that nobody else of this process uses while this is there.
struct Nonce<'a> {
    value: u64,
    taken: &'a Mutex<BTreeSet<u64>>,
}

impl<'a> Nonce<'a> {
    /// The first free one from `counted` on, which is how many transactions the chain knows of.
    fn take(taken: &'a Mutex<BTreeSet<u64>>, counted: u64) -> Self {
        let mut nonces = lock(taken);
        let value = nonces.range(counted..).fold(counted, |free, nonce| if *nonce == free { free.saturating_add(1) } else { free });
        nonces.insert(value);
        Self { value, taken }
    }
}

impl Deref for Nonce<'_> {
    type Target = u64;

    fn deref(&self) -> &u64 {
        &self.value
    }
}

impl Drop for Nonce<'_> {
    fn drop(&mut self) {
        lock(self.taken).remove(&self.value);
    }
}

fn lock(nonces: &Mutex<BTreeSet<u64>>) -> MutexGuard<'_, BTreeSet<u64>> {
    nonces.lock().unwrap_or_else(PoisonError::into_inner)
}
