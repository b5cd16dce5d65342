//! Sends one account's transactions: nonces in order, fees that rise until a transaction is taken, confirmation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, TxKind};
use ncn_core::DynSigner;

use super::{Call, EvmBackend, EvmError, Fees, Inclusion, SentTransaction};

/// How often a transaction is made anew because its nonce was taken by one that somebody else sent from the same account.
const MAX_NONCE_RETRIES: u32 = 64;
/// How long to wait for a block before the transaction is looked for again.
const LOOK: Duration = Duration::from_secs(2);
/// A replacement has to offer at least a tenth more than what it replaces, by the rule that nodes agree on; this is an eighth.
const BUMP_DIVISOR: u128 = 8;

/// How transactions are sent.
#[derive(Clone, Copy, Debug)]
pub struct SendOptions {
    /// After how long a transaction that is in no block is sent again with a higher fee.
    pub bump_after: Duration,
    /// After how long it is given up. It may still be taken later: what moves money is asked about, not repeated blindly.
    pub patience: Duration,
    /// The most that a unit of gas may cost, in the chain's smallest unit.
    pub max_fee_per_gas: u128,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self { bump_after: Duration::from_secs(30), patience: Duration::from_mins(10), max_fee_per_gas: 1_000_000_000_000 }
    }
}

/// One account's way to the chain. All handles of a ledger share it, because they share the account's nonces.
pub(crate) struct Sender {
    backend: Arc<dyn EvmBackend>,
    signer: DynSigner,
    chain_id: u64,
    options: SendOptions,
    /// The nonce after the last one that was handed in. Held while a transaction is handed in, which keeps an account's transactions
    /// in order and without gaps: there is nothing that two of them could do at the same time.
    next: tokio::sync::Mutex<u64>,
    /// How many transactions wait. While there are any, the chain may not count them yet.
    waiting: AtomicUsize,
}

/// A transaction that was handed in.
struct Pending {
    call: Call,
    gas_limit: u64,
    nonce: u64,
    fees: Fees,
    raw: Bytes,
    /// Of every version that was handed in: any of them may be taken.
    hashes: Vec<B256>,
}

impl Sender {
    pub(crate) fn new(backend: Arc<dyn EvmBackend>, signer: DynSigner, chain_id: u64, options: SendOptions) -> Self {
        Self { backend, signer, chain_id, options, next: tokio::sync::Mutex::default(), waiting: AtomicUsize::new(0) }
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
        for _ in 0..MAX_NONCE_RETRIES {
            let gas = self.backend.estimate(&call).await?;
            // A quarter more, for what other transactions may change until this one's turn.
            match self.attempt(call.clone(), gas.saturating_add(gas / 4), started).await {
                Err(EvmError::Nonce(_)) => {}
                done => return done,
            }
        }
        Err(EvmError::Unreachable(format!("the nonces of {} are taken by other transactions again and again", self.address())))
    }

    async fn attempt(&self, call: Call, gas_limit: u64, started: Instant) -> Result<SentTransaction, EvmError> {
        let fees = self.backend.fees().await?;
        let _waiting = Waiting::new(&self.waiting);
        let pending = {
            let mut next = self.next.lock().await;
            let counted = self.backend.nonces(self.address()).await?.pending;
            // Only this transaction waits: what the chain counts is all there is, and an older figure may be of a lost transaction.
            let alone = self.waiting.load(Ordering::Relaxed) == 1;
            let nonce = if alone { counted } else { counted.max(*next) };
            let mut pending = Pending { call, gas_limit, nonce, fees, raw: Bytes::new(), hashes: Vec::new() };
            self.sign(&mut pending).await?;
            match self.backend.submit(pending.raw.clone()).await {
                // Without an answer it may have been taken: it is watched, and handed in again.
                Ok(()) | Err(EvmError::Unreachable(_)) => *next = nonce + 1,
                Err(error) => return Err(error),
            }
            pending
        };
        self.watch(pending, started).await
    }

    /// Waits for a transaction, and sends it again when it is not taken or has gone from the chain.
    async fn watch(&self, mut pending: Pending, started: Instant) -> Result<SentTransaction, EvmError> {
        let mut offered = Instant::now();
        let mut seen = 0;
        loop {
            match self.look(&pending).await {
                Ok(Some((hash, inclusion))) if inclusion.confirmed => return self.outcome(&pending.call, hash, inclusion).await,
                // In a block that is not final yet: a reorganisation may take it out again, and then it is handed in again below.
                Ok(Some(_)) => offered = Instant::now(),
                Ok(None) if offered.elapsed() >= self.options.bump_after => {
                    offered = Instant::now();
                    match self.bump(&mut pending).await {
                        // What is handed in may still be taken, at the price that was offered.
                        Err(error @ EvmError::TooDear { .. }) => {
                            tracing::warn!(%error, "a transaction waits for gas to become cheaper")
                        }
                        done => done?,
                    }
                }
                Ok(None) => match self.backend.submit(pending.raw.clone()).await {
                    // Told apart by the next look: this one may have been taken, or another one with its nonce.
                    Ok(()) | Err(EvmError::Unreachable(_) | EvmError::Nonce(_)) => {}
                    Err(error) => return Err(error),
                },
                Err(EvmError::Unreachable(problem)) => tracing::warn!(%problem, "cannot see whether a transaction was taken"),
                Err(error) => return Err(error),
            }
            if started.elapsed() >= self.options.patience {
                let hash = pending.hashes.last().copied().unwrap_or_default();
                let problem = format!("transaction {hash} was not taken within {:?}", self.options.patience);
                return Err(EvmError::Unreachable(problem));
            }
            match tokio::time::timeout(LOOK, self.backend.head_after(seen)).await {
                Ok(Ok(head)) => seen = head.number,
                Ok(Err(_)) => tokio::time::sleep(LOOK).await,
                Err(_) => {}
            }
        }
    }

    /// Which version of a transaction is in a block.
    async fn look(&self, pending: &Pending) -> Result<Option<(B256, Inclusion)>, EvmError> {
        if let Some(found) = self.find(pending).await? {
            return Ok(Some(found));
        }
        if self.backend.nonces(self.address()).await?.mined <= pending.nonce {
            return Ok(None);
        }
        // Some transaction with this nonce is final. It may have come between the two questions.
        self.find(pending).await?.map(Some).ok_or(EvmError::Nonce(pending.nonce))
    }

    async fn find(&self, pending: &Pending) -> Result<Option<(B256, Inclusion)>, EvmError> {
        for hash in pending.hashes.iter().rev() {
            if let Some(inclusion) = self.backend.inclusion(*hash).await? {
                return Ok(Some((*hash, inclusion)));
            }
        }
        Ok(None)
    }

    /// Offers more for the same transaction.
    async fn bump(&self, pending: &mut Pending) -> Result<(), EvmError> {
        let more = |fee: u128| fee.saturating_add((fee / BUMP_DIVISOR).max(1));
        let now = self.backend.fees().await?;
        pending.fees =
            Fees { base: more(pending.fees.base).max(now.base), priority: more(pending.fees.priority).max(now.priority) };
        tracing::info!(account = %self.address(), nonce = pending.nonce, "a transaction is not taken: offering a higher fee");
        self.sign(pending).await?;
        match self.backend.submit(pending.raw.clone()).await {
            Ok(()) | Err(EvmError::Unreachable(_) | EvmError::Nonce(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn sign(&self, pending: &mut Pending) -> Result<(), EvmError> {
        let Fees { base, priority } = pending.fees;
        // The base fee can double within six blocks; what is not needed is not paid.
        let (needed, limit) = (base.saturating_add(priority), self.options.max_fee_per_gas);
        if needed > limit {
            return Err(EvmError::TooDear { needed, limit });
        }
        let transaction = TxEip1559 {
            chain_id: self.chain_id,
            nonce: pending.nonce,
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
        pending.hashes.push(*envelope.tx_hash());
        pending.raw = envelope.encoded_2718().into();
        Ok(())
    }

    async fn outcome(&self, call: &Call, hash: B256, inclusion: Inclusion) -> Result<SentTransaction, EvmError> {
        let Inclusion { block, gas_used, created, succeeded, .. } = inclusion;
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

/// Counts a transaction while it is under way.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
