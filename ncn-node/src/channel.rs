//! The gateway's side of channels: vouchers are checked without the chain and kept before they count; what they paid for is settled in
//! batches.
//!
//! [`ChannelProcessor`] is a [`PaymentLedger`] around another one: what is paid by a voucher is its own, all else is the other's.

mod chargeable;
mod kept;
mod records;
mod reorganization;
mod settler;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use ncn_client::{Backoff, unix_now};
use ncn_core::{
    Address, Amount, Attestors, BatchSettler, Channel, ChannelParams, DynSigner, LedgerError, PaymentAuthorization, PaymentChanges,
    PaymentLedger, PaymentRef, PaymentStatus, Quote, RequestId, Settlement, Signature, SignedVoucher, TrustHistory, UnixTime,
    channel::BatchEntry,
    ledger::{closable, sign_close},
};
use records::Change;
use state::{ChannelState, Closing, Hold, Judged, Limits, Stage};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::store::{Sequence, SharedStore, StoreError};

/// How long a client's wish to close its channel waits for requests in flight and their settlement.
const CLOSE_TIMEOUT: Duration = Duration::from_mins(4);

/// How often is looked whether a channel that is to be closed has come to rest.
const CLOSE_LOOK: Duration = Duration::from_secs(5);
/// How often the value at which the gateway settles may be earned without being settled before it takes no more vouchers.
const UNSETTLED_FACTOR: u128 = 10;

/// When earned vouchers are settled.
#[derive(Clone, Copy, Debug)]
pub struct BatchPolicy {
    /// Once there are this many.
    pub max_requests: usize,
    /// Once the oldest is this old.
    pub max_age: Duration,
    /// Once they come to this much: what the gateway is willing to lose with its own disk.
    pub max_value: Amount,
    /// How long before a channel's expiry everything has to be settled. No voucher is taken whose quote ends later than that.
    pub expiry_margin: Duration,
    /// How long the chain has to be without a settled batch before the batch is presented again. A transaction that a reorganization
    /// has taken back mostly returns by itself, and a provider may be behind for a while.
    pub resubmit_after: Duration,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            max_requests: 1_000,
            max_age: Duration::from_mins(1),
            max_value: Amount::new(100 * Amount::TOKEN.units()),
            expiry_margin: Duration::from_hours(1),
            resubmit_after: Duration::from_mins(1),
        }
    }
}

/// A ledger that takes vouchers too.
#[derive(Clone)]
pub struct ChannelProcessor(Arc<Inner>);

struct Inner {
    /// The gateway's account on the chain.
    ledger: Arc<dyn PaymentLedger>,
    /// The same chain, as batches need it.
    chain: Arc<dyn BatchSettler>,
    registry: Arc<dyn Attestors>,
    signer: DynSigner,
    store: SharedStore,
    options: BatchPolicy,
    state: Mutex<ChannelState>,
    /// The changes that have led to the state since it was last read. Locked after the state.
    sequence: Mutex<Sequence>,
    /// Held by the one who reads the state again.
    restoring: AsyncMutex<()>,
    /// Something is to be settled, or has been.
    changed: Notify,
    /// Settle without waiting for more.
    flush: Notify,
    settled: Notify,
    stopped: CancellationToken,
}

impl ChannelProcessor {
    /// Takes up what the store holds, and settles what is due from now on. `ledger` and `chain` are the gateway's account, `signer` is its
    /// key.
    pub fn start(
        ledger: Arc<dyn PaymentLedger>,
        chain: Arc<dyn BatchSettler>,
        registry: Arc<dyn Attestors>,
        signer: DynSigner,
        store: SharedStore,
        options: BatchPolicy,
    ) -> Result<Self, StoreError> {
        let (state, sequence, restoring) = (Mutex::new(records::load(store.inner())?), Mutex::default(), AsyncMutex::default());
        let (changed, flush, settled) = (Notify::new(), Notify::new(), Notify::new());
        let stopped = CancellationToken::new();
        let inner = Arc::new(Inner {
            ledger,
            chain,
            registry,
            signer,
            store,
            options,
            state,
            sequence,
            restoring,
            changed,
            flush,
            settled,
            stopped,
        });
        let (settling, stopped) = (inner.clone(), inner.stopped.clone());
        tokio::spawn(async move {
            let work = async { tokio::join!(settler::settle_for_ever(&settling), reorganization::revisit_for_ever(&settling)) };
            stopped.run_until_cancelled_owned(work).await
        });
        Ok(Self(inner))
    }

    /// The same, in a file of its own.
    #[cfg(feature = "redb")]
    pub fn open(
        chain: Arc<impl PaymentLedger + BatchSettler + 'static>,
        registry: Arc<dyn Attestors>,
        signer: DynSigner,
        path: &std::path::Path,
        options: BatchPolicy,
    ) -> Result<Self, StoreError> {
        Self::start(chain.clone(), chain, registry, signer, SharedStore::open(path)?, options)
    }

    /// Ends the settling, at once. Another process can take up what the file holds.
    pub fn stop(&self) {
        self.0.stopped.cancel();
        // What is on its way is another's to do, who reads the store next.
        self.0.sequence().abandon();
    }

    /// Ends the settling when what is returned is dropped.
    pub(crate) fn stop_on_drop(&self) -> DropGuard {
        self.0.stopped.clone().drop_guard()
    }

    /// Settles what is earned without waiting for more.
    pub fn flush(&self) {
        self.0.flush.notify_one();
    }

    /// How many earned requests wait for their settlement.
    pub fn unsettled(&self) -> usize {
        self.0.state().earned_count()
    }

    /// The voucher's channel where the state does not know enough of it to judge the voucher: when it is new, and when what is known does
    /// not suffice, since it may have been topped up.
    async fn look_up(&self, payment: &SignedVoucher, quote: &Quote) -> Result<Option<Channel>, LedgerError> {
        let inner = &self.0;
        if inner.state().knows_enough(payment, quote) {
            return Ok(None);
        }
        let channel = payment.voucher.channel;
        let problem = || LedgerError::Channel { channel, problem: "was never opened: open it first".into() };
        inner.chain.channel(channel).await?.ok_or_else(problem).map(Some)
    }

    /// A request's hold, as the store has it: what is still on its way there may not be acted upon.
    async fn hold(&self, request_id: RequestId) -> Result<Option<Hold>, LedgerError> {
        let inner = &self.0;
        loop {
            inner.restore().await?;
            let (hold, sequence) = {
                let state = inner.state();
                (state.hold(request_id).copied(), inner.sequence().clone())
            };
            if hold.is_none() {
                return Ok(None);
            }
            inner.store.idle().await.map_err(storage)?;
            if !sequence.is_broken() {
                return Ok(hold);
            }
        }
    }
}

impl Inner {
    /// What the store has, or will have once its queue is empty.
    fn state(&self) -> MutexGuard<'_, ChannelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sequence(&self) -> MutexGuard<'_, Sequence> {
        self.sequence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and returns once the change survives a crash. What is kept is in the order of the changes. Where one is not kept,
    /// neither are those that were made after it, and the state is read from the store again.
    async fn change<T>(
        &self,
        change: impl FnOnce(&mut ChannelState) -> Result<(T, Change), LedgerError> + Send,
    ) -> Result<T, LedgerError> {
        self.restore().await?;
        let slot = self.store.slot().await.map_err(storage)?;
        let (value, sequence, kept) = {
            let mut state = self.state();
            let (value, change) = change(&mut state)?;
            let sequence = self.sequence().clone();
            match change.ops() {
                Ok(ops) => {
                    let kept = slot.commit(ops, Some(&sequence));
                    (value, sequence, kept)
                }
                Err(error) => {
                    sequence.abandon();
                    return Err(storage(error));
                }
            }
        };
        let kept = kept.await;
        if kept.is_err() {
            sequence.abandon();
            // What fails here is tried again before the next change.
            if let Err(error) = self.restore().await {
                tracing::error!(%error, "the state cannot be read again after a change that was not kept");
            }
        }
        kept.map_err(storage)?;
        Ok(value)
    }

    /// Reads the state from the store when a change of it was not kept: after that the store takes none that builds on it.
    async fn restore(&self) -> Result<(), LedgerError> {
        if !self.sequence().is_broken() {
            return Ok(());
        }
        if self.stopped.is_cancelled() {
            return Err(LedgerError::Busy("the gateway has stopped: ask it again when it is back".into()));
        }
        // A whole state is read into memory: by one, for all.
        let _restoring = self.restoring.lock().await;
        let broken = self.sequence().clone();
        if !broken.is_broken() {
            return Ok(());
        }
        // After this, nothing of it is on its way any more.
        self.store.idle().await.map_err(storage)?;
        let mut kept = self.store.read(records::load).await.map_err(storage)?;
        let mut state = self.state();
        kept.learn_from(&state);
        (*state, *self.sequence()) = (kept, Sequence::default());
        Ok(())
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn storage(error: StoreError) -> LedgerError {
    LedgerError::Storage(error.to_string())
}

#[async_trait]
impl PaymentLedger for ChannelProcessor {
    fn account(&self) -> Address {
        self.0.ledger.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.0.chain.trust(epoch).await
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        self.0.ledger.balance(owner).await
    }

    async fn redeem(&self, quote: &Quote, authorization: &PaymentAuthorization) -> Result<PaymentRef, LedgerError> {
        let payment = match authorization {
            PaymentAuthorization::Voucher(payment) => payment,
            PaymentAuthorization::Transfer(_) => return self.0.ledger.redeem(quote, authorization).await,
        };
        if payment.terms.gateway != self.account() {
            return Err(LedgerError::NotAllowed("voucher.channel: is with another gateway".into()));
        }
        let history = self.0.chain.trust(quote.epoch).await?;
        let (network, judges) = history.of(quote).map_err(|mismatch| LedgerError::NotAllowed(mismatch.to_string()))?;
        match self.hold(quote.request_id).await? {
            // The signature of a voucher that is held has been checked.
            Some(hold) if hold.payment == *payment => payment.matches(quote)?,
            _ => payment.verify(quote, &network)?,
        }
        let payment = &Judged { payment: *payment, judges };
        let found = self.look_up(&payment.payment, quote).await?;
        let options = &self.0.options;
        let unsettled = Amount::new(options.max_value.units().saturating_mul(UNSETTLED_FACTOR));
        let limits = Limits { margin: options.expiry_margin.as_secs(), unsettled, now: history.now(unix_now()) };
        self.0
            .change(|state| {
                if let Some(channel) = found {
                    state.learn(payment, channel);
                }
                let (account, hold) = state.reserve(payment, quote, &limits)?;
                Ok(((), Change { accounts: vec![account], holds: vec![hold], ..Change::default() }))
            })
            .await?;
        Ok(payment.payment.into())
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        let Some(hold) = self.hold(request_id).await?.filter(|hold| hold.payment.terms.client == client) else {
            return self.0.ledger.status(client, request_id).await;
        };
        let by = hold.payment.into();
        Ok(match hold.stage {
            Stage::Reserved => PaymentStatus::Held { quote: hold.payment.voucher.quote, by },
            // What can never be charged was earned all the same: its client has the answer.
            Stage::Earned(_) | Stage::Lost => PaymentStatus::Earned { by },
            Stage::Settled => PaymentStatus::PaidOut { by, completion: None },
            Stage::Released => PaymentStatus::Refunded { by },
        })
    }

    async fn settle(&self, settlement: &Settlement) -> Result<PaymentRef, LedgerError> {
        let Settlement { quote, delivery, completion, certificate, .. } = settlement;
        let Some(hold) = self.hold(quote.request_id).await? else { return self.0.ledger.settle(settlement).await };
        hold.payment.matches(quote)?;
        let (delivery, certificate) = (delivery.clone(), certificate.clone());
        let entry = BatchEntry { quote: quote.clone(), delivery, certificate, payment: hold.payment };
        let (cost, now) = (completion.cost(), unix_now());
        self.0
            .change(move |state| {
                let hold = state.earn(quote.request_id, cost, now)?;
                let accounts = state.account_of(&hold).into_iter().collect();
                // What is settled needs no proof any more.
                let entries = matches!(hold.stage, Stage::Earned(_)).then_some(entry).into_iter().collect();
                Ok(((), Change { accounts, holds: vec![hold], entries, ..Change::default() }))
            })
            .await?;
        self.0.changed.notify_one();
        Ok(hold.payment.into())
    }

    async fn refund(&self, quote: &Quote, consent: Option<&Signature>) -> Result<PaymentRef, LedgerError> {
        let Some(hold) = self.hold(quote.request_id).await? else { return self.0.ledger.refund(quote, consent).await };
        let request = quote.request_id;
        let release = |state: &mut ChannelState| Ok(((), Change { holds: vec![state.release(request)?], ..Change::default() }));
        self.0.change(release).await?;
        Ok(hold.payment.into())
    }

    async fn changes(&self, from_block: u64) -> Result<PaymentChanges, LedgerError> {
        self.0.ledger.changes(from_block).await
    }

    async fn cooperative_close(&self, terms: &ChannelParams) -> Result<(Amount, Signature), LedgerError> {
        let (inner, channel) = (&self.0, terms.id());
        closable(&*inner.chain, terms, self.account()).await?;
        let keep = |closing: Closing| Change { closing: Some((channel, closing)), ..Change::default() };
        inner
            .change(|state| {
                let closing = state.close(channel);
                Ok(((), keep(closing)))
            })
            .await?;
        let idle = async {
            let mut backoff = Backoff::new();
            while !inner.state().is_idle(channel) {
                if inner.state().has_earned(channel) {
                    self.flush();
                }
                let _ = tokio::time::timeout(CLOSE_LOOK, inner.settled.notified()).await;
                backoff.pause().await;
            }
        };
        // However long it takes: the channel stays shut, and its client may ask again.
        let _ = inner.stopped.run_until_cancelled(tokio::time::timeout(CLOSE_TIMEOUT, idle)).await;
        inner
            .change(|state| {
                let closing = state.agree(channel)?;
                Ok(((), keep(closing)))
            })
            .await?;
        // What the chain has been charged, now that all is settled.
        let (settled, signature) = sign_close(&*inner.chain, terms, &inner.signer).await?;
        let owed = inner.state().account(channel).map(|account| account.settled).unwrap_or_default();
        if settled < owed {
            let problem = format!("channel {channel}: the chain was charged {settled} of {owed}: a settlement is presented again");
            return Err(LedgerError::Busy(format!("{problem}; close it once that is done")));
        }
        Ok((settled, signature))
    }
}
