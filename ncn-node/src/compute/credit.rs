//! What a compute node lets its gateway owe it. An escrow pays the node in any case; what a voucher pays, only its gateway can settle, and
//! the chain does not say for which requests it has.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ncn_core::{Address, Amount, ChainView, ComputeError, LedgerError};
use tokio::{sync::Mutex as AsyncMutex, task::JoinHandle, time::Instant};

/// Twice what a gateway settles at, unless it is told: see [`crate::channel::BatchPolicy`].
pub const DEFAULT_CREDIT: Amount = Amount::new(200 * Amount::TOKEN.units());
/// After how long what is not paid does not count any more: it may never have been due, as when another node began anew.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(24);
/// What is earned within this time is kept as one sum: 1,440 of them in a day.
const SUM_OF: Duration = Duration::from_mins(1);
/// How often the chain is asked at the most, and at the least while vouchers come.
const ASK_EVERY: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// What a node has earned by vouchers, and was not paid yet.
pub(super) struct Credit {
    limit: Amount,
    account: Address,
    chain: Arc<dyn ChainView>,
    owed: Mutex<Owed>,
    /// From which block on the chain was not asked yet.
    next: AsyncMutex<Option<u64>>,
}

#[derive(Default)]
struct Owed {
    /// What requests that run may cost.
    running: Amount,
    /// What those that have ended came to, the oldest first.
    earned: VecDeque<(Instant, Amount)>,
    /// When the chain was asked last.
    asked: Option<Instant>,
}

impl Owed {
    fn sum(&self) -> Amount {
        let earned = self.earned.iter().map(|(_, amount)| *amount);
        Amount::checked_sum(earned.chain([self.running])).unwrap_or(Amount::new(u128::MAX))
    }

    fn forget(&mut self, now: Instant) {
        while self.earned.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) > FORGOTTEN_AFTER) {
            self.earned.pop_front();
        }
    }

    fn earn(&mut self, amount: Amount, now: Instant) {
        match self.earned.back_mut() {
            Some((since, sum)) if now.saturating_duration_since(*since) < SUM_OF => *sum = add(*sum, amount),
            _ => self.earned.push_back((now, amount)),
        }
    }

    /// The newest is paid first: so what was never due is old, and forgotten, however much is paid after it.
    fn pay(&mut self, mut amount: Amount) {
        while let Some((_, newest)) = self.earned.back_mut() {
            match newest.checked_sub(amount) {
                Some(rest) if !rest.is_zero() => {
                    *newest = rest;
                    return;
                }
                _ => {
                    amount = amount.checked_sub(*newest).unwrap_or_default();
                    self.earned.pop_back();
                }
            }
        }
    }
}

fn add(sum: Amount, amount: Amount) -> Amount {
    sum.checked_add(amount).unwrap_or(Amount::new(u128::MAX))
}

/// A request that runs on credit. What it has earned is owed once this is dropped.
pub(super) struct Debt {
    credit: Arc<Credit>,
    most: Amount,
    pub(super) earned: Amount,
}

impl Drop for Debt {
    fn drop(&mut self) {
        let mut owed = self.credit.owed();
        owed.running = owed.running.checked_sub(self.most).unwrap_or_default();
        if !self.earned.is_zero() {
            owed.earn(self.earned, Instant::now());
        }
    }
}

impl Credit {
    pub(super) fn new(limit: Amount, account: Address, chain: Arc<dyn ChainView>) -> Arc<Self> {
        Arc::new(Self { limit, account, chain, owed: Mutex::default(), next: AsyncMutex::default() })
    }

    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request run that costs at most so much.
    ///
    /// # Errors
    /// [`ComputeError::Unavailable`] while too much is owed, or the chain does not say what was paid.
    pub(super) async fn grant(self: &Arc<Self>, most: Amount) -> Result<Debt, ComputeError> {
        let unavailable = |error: LedgerError| ComputeError::Unavailable(error.to_string());
        let asked = self.owed().asked;
        if asked.is_none() {
            // What is paid from here on is for what is earned from here on.
            self.ask().await.map_err(unavailable)?;
        }
        if let Some(debt) = self.try_grant(most) {
            if asked.is_some_and(|asked| asked.elapsed() >= ASK_AGAIN) {
                // So that there is never much to ask for.
                drop(self.asking());
            }
            return Ok(debt);
        }
        self.ask().await.map_err(unavailable)?;
        self.try_grant(most).ok_or_else(|| {
            let (owed, limit) = (self.owed().sum(), self.limit);
            tracing::warn!(%owed, %most, %limit, "the gateway owes too much: no voucher is taken until it has settled");
            ComputeError::Unavailable(format!(
                "voucher: the node is owed {owed}, and lets {limit} be owed with this request: settle first"
            ))
        })
    }

    fn try_grant(self: &Arc<Self>, most: Amount) -> Option<Debt> {
        let mut owed = self.owed();
        owed.forget(Instant::now());
        if add(owed.sum(), most) > self.limit {
            return None;
        }
        owed.running = add(owed.running, most);
        Some(Debt { credit: self.clone(), most, earned: Amount::ZERO })
    }

    /// Takes in what the chain has paid since it was asked last. It goes on when its caller gives up.
    async fn ask(self: &Arc<Self>) -> Result<(), LedgerError> {
        self.asking().await.unwrap_or_else(|_| Err(LedgerError::Unreachable("asking for payouts broke off".into())))
    }

    fn asking(self: &Arc<Self>) -> JoinHandle<Result<(), LedgerError>> {
        let this = self.clone();
        tokio::spawn(async move {
            let mut next = this.next.lock().await;
            let (recent, owes) = {
                let mut owed = this.owed();
                owed.forget(Instant::now());
                (owed.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY), !owed.earned.is_empty())
            };
            if recent {
                return Ok(());
            }
            // What was paid for nothing that is owed is of no interest.
            let (paid, from) = this.chain.channel_payouts(this.account, next.filter(|_| owes)).await?;
            *next = Some(from);
            let mut owed = this.owed();
            owed.pay(paid);
            owed.asked = Some(Instant::now());
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_paid_first_and_the_rest_forgotten_after_a_day() {
        let mut owed = Owed::default();
        let amounts = |owed: &Owed| owed.earned.iter().map(|(_, amount)| amount.units()).collect::<Vec<_>>();
        let start = Instant::now();
        for (minute, amount) in (0..).zip([5, 6, 7]) {
            owed.earn(Amount::new(amount), start + minute * SUM_OF);
        }
        owed.pay(Amount::new(8));
        assert_eq!(amounts(&owed), [5, 5]);
        owed.pay(Amount::new(5));
        assert_eq!(amounts(&owed), [5], "to the unit");
        let last = start + 3 * SUM_OF;
        owed.earn(Amount::new(1), last);
        owed.earn(Amount::new(2), last + SUM_OF / 2);
        assert_eq!(amounts(&owed), [5, 3], "one sum for a minute");
        owed.forget(last + FORGOTTEN_AFTER);
        assert_eq!(amounts(&owed), [3]);
        owed.pay(Amount::new(9));
        assert_eq!(owed.sum(), Amount::ZERO, "what is paid beyond it pays nothing later");
        owed.running = Amount::new(u128::MAX);
        owed.earn(Amount::new(1), last);
        assert_eq!(owed.sum(), Amount::new(u128::MAX));
    }
}
