//! Redeems what clients sign. However often the same authorization is presented at once, the gateway redeems it once: one redemption runs per
//! request and one closing per channel, other calls wait for its result, and the number that run is bounded.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ncn_core::{Address, B256};
use ncn_core::{
    Amount, ChannelParams, LedgerError, PaymentAuthorization, PaymentLedger, PaymentLedgerExt as _, Quote, RequestId, Signature,
    TransportError, UnixTime, channel::escrow_digest,
};
use tokio::sync::watch;

use ncn_client::unix_now;

/// How many redemptions run at once, and how many of one client's.
const MAX_REDEMPTIONS: usize = 512;
const MAX_REDEMPTIONS_OF_ONE: usize = 64;
/// How many closings run at once, and how many of one client's.
const MAX_CLOSINGS: usize = 64;
const MAX_CLOSINGS_OF_ONE: usize = 4;
/// When somebody should ask again who was turned away.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long an authorization that was refused is not tried again; twice as long each further time, up to the longest. The chain may
/// have refused a transaction that the gateway paid for.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How often a request's payment may be refused before it is tried no more.
const MAX_REFUSALS: u32 = 8;
/// How many payments that the gateway has brought to the chain one client may have back in an hour, for whatever reason: the gateway has paid
/// the gas of escrow and refund for each. Beside them, [`MAX_REDEMPTIONS_OF_ONE`] may be under way. Of how many clients that is remembered.
const MAX_REFUNDED: usize = 4;
const REFUNDED_FOR: Duration = Duration::from_hours(1);
const MAX_REFUNDED_CLIENTS: usize = 10_000;
/// Of how many requests refusals are remembered.
const MAX_REFUSED: usize = 10_000;

/// All redemptions and closings of a gateway.
pub(super) struct Redemptions {
    payments: Shared<()>,
    closings: Shared<(Amount, Signature)>,
    refused: Arc<Mutex<HashMap<RequestId, Refusal>>>,
    refunded: Mutex<HashMap<Address, Vec<Instant>>>,
    underway: Underway,
}

/// What transactions that are under way take from each client. Each by itself passes a look at the client's balance; of those that it
/// cannot pay together, all but the first would be the gateway's loss.
type Underway = Arc<Mutex<HashMap<Address, Amount>>>;

/// A transaction's part of what is under way.
struct Taking {
    underway: Underway,
    client: Address,
    amount: Amount,
}

impl Taking {
    /// Counts a transaction; gives what is under way with it.
    fn begin(underway: &Underway, client: Address, amount: Amount) -> (Self, Amount) {
        let mut sums = lock(underway);
        let sum = sums.entry(client).or_default();
        *sum = Amount::checked_sum([*sum, amount]).unwrap_or(Amount::new(u128::MAX));
        let sum = *sum;
        drop(sums);
        (Self { underway: underway.clone(), client, amount }, sum)
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let mut sums = lock(&self.underway);
        if let Some(sum) = sums.get_mut(&self.client) {
            *sum = sum.checked_sub(self.amount).unwrap_or_default();
            if sum.is_zero() {
                sums.remove(&self.client);
            }
        }
    }
}

/// The last refusal of a request's payment.
struct Refusal {
    error: TransportError,
    count: u32,
    until: Instant,
    expiry: UnixTime,
}

impl Default for Redemptions {
    fn default() -> Self {
        Self {
            payments: Shared::new(MAX_REDEMPTIONS, MAX_REDEMPTIONS_OF_ONE),
            closings: Shared::new(MAX_CLOSINGS, MAX_CLOSINGS_OF_ONE),
            refused: Arc::default(),
            refunded: Mutex::default(),
            underway: Arc::default(),
        }
    }
}

impl Redemptions {
    /// A client has a payment back, for which and whose refund the gateway has paid gas.
    pub(super) fn refunded(&self, client: Address) {
        let mut refunded = lock(&self.refunded);
        if refunded.len() >= MAX_REFUNDED_CLIENTS {
            refunded.retain(|_, times| times.last().is_some_and(|last| last.elapsed() < REFUNDED_FOR));
        }
        if refunded.len() < MAX_REFUNDED_CLIENTS || refunded.contains_key(&client) {
            let times = refunded.entry(client).or_default();
            times.push(Instant::now());
            let first = times.len().saturating_sub(MAX_REFUNDED);
            times.drain(..first);
        }
    }

    /// Whether a request's payment is being brought to the chain.
    pub(super) fn is_underway(&self, request_id: RequestId) -> bool {
        lock(&self.payments.running).contains_key(&request_id)
    }

    /// How long this client waits for its next one.
    fn waits(&self, client: &Address) -> Option<Duration> {
        let refunded = lock(&self.refunded);
        let times = refunded.get(client).filter(|times| times.len() >= MAX_REFUNDED)?;
        REFUNDED_FOR.checked_sub(times.first()?.elapsed())
    }

    /// Takes what pays a quote; `begins` is called once it is sure that the client has signed it. The redemption goes on when its caller is dropped.
    pub(super) async fn redeem(
        &self,
        ledger: &Arc<dyn PaymentLedger>,
        quote: Quote,
        authorization: &PaymentAuthorization,
        begins: impl FnOnce() + Send,
    ) -> Result<(), TransportError> {
        let request_id = quote.request_id;
        // Before anything is asked or shared: what somebody else signed neither costs nor delays the client.
        verify(&**ledger, &quote, authorization).await.map_err(refusal)?;
        // A voucher costs no transaction, and a client that has lost count signs the next one at once.
        let costs = matches!(authorization, PaymentAuthorization::Transfer(_));
        if costs && let Some(retry_after) = self.waits(&quote.client) {
            return Err(TransportError::Overloaded { retry_after });
        }
        if costs
            && let Some(refusal) = lock(&self.refused).get(&request_id)
            && (refusal.count >= MAX_REFUSALS || Instant::now() < refusal.until)
        {
            return Err(refusal.error.clone());
        }
        begins();
        let (ledger, authorization, refused) = (ledger.clone(), *authorization, self.refused.clone());
        let (client, expiry, underway) = (quote.client, quote.expiry, self.underway.clone());
        let redeeming = async move {
            // A client that has paid in another way does not pay again.
            if let Ok(Some(_)) = ledger.payment_of(&quote).await {
                return Ok(());
            }
            let taking = costs.then(|| Taking::begin(&underway, client, quote.total));
            if let Some((_, sum)) = &taking
                && *sum > quote.total
                && ledger.balance(client).await.map_err(refusal)? < *sum
            {
                return Err(TransportError::Overloaded { retry_after: RETRY_AFTER });
            }
            let redeemed = ledger.redeem(&quote, &authorization).await.map(drop).map_err(refusal);
            let mut refused = lock(&refused);
            match &redeemed {
                Err(error) if costs && !error.is_retryable() => remember(&mut refused, request_id, error, expiry),
                _ => drop(refused.remove(&request_id)),
            }
            drop(refused);
            redeemed
        };
        self.payments.run(request_id, client, redeeming).await
    }

    /// Agrees to close a channel whose client has asked for it.
    pub(super) async fn close(
        &self,
        ledger: &Arc<dyn PaymentLedger>,
        terms: ChannelParams,
    ) -> Result<(Amount, Signature), TransportError> {
        let ledger = ledger.clone();
        let closing = async move {
            ledger.cooperative_close(&terms).await.map_err(|error| match error {
                error if error.is_retryable() => TransportError::Internal(error.to_string()),
                error => TransportError::Refused(error.to_string()),
            })
        };
        self.closings.run(terms.id(), terms.client, closing).await
    }
}

async fn verify(ledger: &dyn PaymentLedger, quote: &Quote, authorization: &PaymentAuthorization) -> Result<(), LedgerError> {
    let trust = ledger.trust_root().await?;
    match authorization {
        PaymentAuthorization::Transfer(signature) => {
            let signed = signature.verify(&escrow_digest(&trust, quote), quote.client);
            signed.map(drop).map_err(|error| LedgerError::NotAllowed(format!("transfer: {error}")))
        }
        PaymentAuthorization::Voucher(payment) => Ok(payment.verify(quote, &trust)?),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn refusal(error: LedgerError) -> TransportError {
    match error {
        error if error.is_retryable() => TransportError::Internal(error.to_string()),
        LedgerError::VoucherTooLow { cumulative, needed } => TransportError::VoucherTooLow { cumulative, needed },
        error => TransportError::invalid("payment", error.to_string()),
    }
}

fn remember(refused: &mut HashMap<RequestId, Refusal>, request_id: RequestId, error: &TransportError, expiry: UnixTime) {
    if refused.len() >= MAX_REFUSED {
        let (now, instant) = (unix_now(), Instant::now());
        refused.retain(|_, refusal| now < refusal.expiry);
        if refused.len() >= MAX_REFUSED {
            refused.retain(|_, refusal| instant < refusal.until);
        }
    }
    let count = refused.get(&request_id).map_or(1, |refusal| refusal.count.saturating_add(1));
    let pause = FIRST_PAUSE.saturating_mul(1 << (count - 1).min(16)).min(LONGEST_PAUSE);
    refused.insert(request_id, Refusal { error: error.clone(), count, until: Instant::now() + pause, expiry });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Outcome<T> = Option<Result<T, TransportError>>;
type Running<T> = Arc<Mutex<HashMap<B256, (Address, watch::Receiver<Outcome<T>>)>>>;

/// Work that runs once at a time for each key, and has one result for all who ask for it meanwhile.
struct Shared<T> {
    running: Running<T>,
    most: usize,
    most_of_one: usize,
}

impl<T: Clone + Send + Sync + 'static> Shared<T> {
    fn new(most: usize, most_of_one: usize) -> Self {
        Self { running: Running::default(), most, most_of_one }
    }

    /// Waits for the work on this key that is under way, or starts this one.
    async fn run(
        &self,
        key: B256,
        client: Address,
        work: impl Future<Output = Result<T, TransportError>> + Send + 'static,
    ) -> Result<T, TransportError> {
        let mut outcome = self.join(key, client, work)?;
        let done = outcome.wait_for(Option::is_some).await;
        let done = done.ok().and_then(|outcome| outcome.clone());
        done.unwrap_or_else(|| Err(TransportError::Internal("the work on it broke off: try again".into())))
    }

    fn join(
        &self,
        key: B256,
        client: Address,
        work: impl Future<Output = Result<T, TransportError>> + Send + 'static,
    ) -> Result<watch::Receiver<Outcome<T>>, TransportError> {
        let mut running = lock(&self.running);
        if let Some((_, outcome)) = running.get(&key) {
            return Ok(outcome.clone());
        }
        let of_one = || running.values().filter(|(other, _)| *other == client).count();
        if running.len() >= self.most || of_one() >= self.most_of_one {
            return Err(TransportError::Overloaded { retry_after: RETRY_AFTER });
        }
        let (done, outcome) = watch::channel(None);
        running.insert(key, (client, outcome.clone()));
        drop(running);
        let place = Place { running: self.running.clone(), key };
        // On its own: a client that hangs up must not leave a transaction to itself that others of this account wait for.
        tokio::spawn(async move {
            let result = work.await;
            drop(place);
            done.send_replace(Some(result));
        });
        Ok(outcome)
    }
}

/// Work that is under way; it is not any more when this is dropped, however it ended.
struct Place<T> {
    running: Running<T>,
    key: B256,
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    fn key(byte: u8) -> B256 {
        B256::repeat_byte(byte)
    }

    #[tokio::test]
    async fn one_runs_for_all_and_the_number_is_bounded() {
        let shared = Shared::new(3, 2);
        let (gate, runs) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = || {
            let (gate, runs) = (gate.clone(), runs.clone());
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                Ok(runs.load(Ordering::SeqCst))
            }
        };
        let (one, other) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let mut waiting: Vec<_> = (0..10).map(|_| shared.join(key(1), one, work()).unwrap()).collect();
        drop(shared.join(key(2), one, work()).unwrap());
        let busy = Err(TransportError::Overloaded { retry_after: RETRY_AFTER });
        assert_eq!(shared.join(key(3), one, work()).map(drop), busy.clone(), "two of one client's");
        shared.join(key(4), other, work()).unwrap();
        assert_eq!(shared.join(key(5), other, work()).map(drop), busy, "three altogether");
        while runs.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        // Nobody waits for two of them: they come to their end all the same.
        gate.add_permits(3);
        for outcome in &mut waiting {
            assert_eq!(*outcome.wait_for(Option::is_some).await.unwrap(), Some(Ok(3)));
        }
        while !lock(&shared.running).is_empty() {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
        assert_eq!(shared.run(key(1), one, work()).await, Ok(4), "what has ended can be asked for again");
    }

    #[tokio::test]
    async fn work_that_breaks_off_leaves_its_place() {
        let shared = Shared::<()>::new(1, 1);
        let broken = shared.run(key(1), Address::ZERO, async { panic!("for the test") }).await;
        assert!(matches!(broken, Err(TransportError::Internal(_))), "{broken:?}");
        assert_eq!(shared.run(key(1), Address::ZERO, async { Ok(()) }).await, Ok(()));
    }

    #[test]
    fn refusals_are_remembered_longer_each_time_and_not_for_ever() {
        let mut refused = HashMap::new();
        let error = TransportError::invalid("payment", "for the test");
        let before = Instant::now();
        for _ in 0..3 {
            remember(&mut refused, key(1), &error, u64::MAX);
        }
        assert!(refused[&key(1)].count == 3 && refused[&key(1)].until >= before + FIRST_PAUSE * 4);
        for n in 0..MAX_REFUSED + 10 {
            remember(&mut refused, B256::left_padding_from(&n.to_be_bytes()), &error, 1);
        }
        assert!(refused.len() <= MAX_REFUSED && refused.contains_key(&key(1)));
    }
}
