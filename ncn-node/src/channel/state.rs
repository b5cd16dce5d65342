//! Who has promised how much, and who has earned it: the sums of every channel. Pure; the driver keeps what it says.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ncn_core::{
    Amount, B256, Channel, ChannelCharge, Committee, Date, LedgerError, Quote, RequestId, SignedVoucher, UnixTime,
    channel::{ChargeStart, Numbers, VoucherError},
    validation,
};
use serde::{Deserialize, Serialize};

use super::kept::Kept;

/// How many requests are known at once, ended ones included.
const MAX_HOLDS: usize = 1_000_000;

/// A voucher, and who judges its request: they approve the batches that charge the channel by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Judged {
    pub(super) payment: SignedVoucher,
    pub(super) judges: Committee,
}

/// One channel, as its gateway sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Account {
    /// The voucher that allows most.
    pub(super) highest: Judged,
    /// What the chain held when it was last asked.
    pub(super) chain: Channel,
    /// What was charged in batches. In step with the holds, where the chain may be a batch ahead.
    pub(super) settled: Amount,
    /// Which numbers are over, by these batches.
    numbers: Numbers,
    /// What requests in flight may cost.
    #[serde(skip)]
    reserved: Amount,
    /// What is earned and not yet settled.
    #[serde(skip)]
    earned: Amount,
}

/// What a voucher's amount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Kept for a request in flight.
    Reserved,
    /// Earned since then, and to be settled.
    Earned(UnixTime),
    /// Charged on the chain.
    Settled,
    /// Given back: the request was not served.
    Released,
    /// Earned, and its channel ended before it was charged.
    Lost,
}

/// One request's part of a channel.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Hold {
    pub(super) payment: SignedVoucher,
    /// What the channel is charged for it: the voucher's amount, and what the request cost once that is known.
    pub(super) amount: Amount,
    pub(super) expiry: UnixTime,
    pub(super) stage: Stage,
}

/// How far a client's wish to close its channel has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Closing {
    /// No vouchers any more; what is in flight comes to its end.
    Wanted,
    /// The gateway has signed that it charges no more.
    Agreed,
}

/// What a gateway takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long before a channel's expiry everything has to be settled, in seconds.
    pub(super) margin: u64,
    /// How much may be earned and unsettled.
    pub(super) unsettled: Amount,
    pub(super) now: UnixTime,
}

/// All channels of a gateway.
#[derive(Debug, Default)]
pub(super) struct ChannelState {
    accounts: HashMap<B256, Account>,
    holds: HashMap<RequestId, Hold>,
    /// By channel and number.
    numbered: BTreeMap<(B256, u64), RequestId>,
    /// What is earned, the oldest first.
    earned: BTreeMap<(UnixTime, RequestId), Amount>,
    earned_sum: Amount,
    /// Of channels that the state may not know otherwise, too: who never paid out of a channel may have it back as well.
    closing: HashMap<B256, Closing>,
    /// The settled batches that a reorganization can still take back.
    pub(super) kept: Kept,
}

fn refuse(channel: B256, problem: impl Into<String>) -> LedgerError {
    LedgerError::Channel { channel, problem: problem.into() }
}

fn sum(amounts: impl IntoIterator<Item = Amount>) -> Amount {
    Amount::checked_sum(amounts).unwrap_or(Amount::new(u128::MAX))
}

impl ChannelState {
    /// The state as it was kept.
    pub(super) fn load(accounts: Vec<Account>, holds: Vec<Hold>, closing: HashMap<B256, Closing>, kept: Kept) -> Self {
        let accounts = accounts.into_iter().map(|account| (account.highest.payment.voucher.channel, account)).collect();
        let mut state = Self { accounts, closing, kept, ..Self::default() };
        for hold in holds {
            state.count(&hold, true);
            state.insert(&hold);
        }
        state
    }

    pub(super) fn account(&self, channel: B256) -> Option<&Account> {
        self.accounts.get(&channel)
    }

    pub(super) fn hold(&self, request_id: RequestId) -> Option<&Hold> {
        self.holds.get(&request_id)
    }

    fn insert(&mut self, hold: &Hold) {
        let voucher = &hold.payment.voucher;
        self.numbered.insert((voucher.channel, voucher.number), voucher.request_id);
        self.holds.insert(voucher.request_id, *hold);
    }

    /// Which of a channel's numbers are of requests that are in flight or not settled.
    pub(super) fn open_numbers(&self, channel: B256) -> impl Iterator<Item = u64> {
        let numbered = self.numbered.range((channel, 0)..=(channel, u64::MAX));
        numbered.filter(|(_, request)| self.is_open(request)).map(|((_, number), _)| *number)
    }

    /// Whether a request is in flight, or not settled.
    fn is_open(&self, request: &RequestId) -> bool {
        self.holds.get(request).is_some_and(|hold| matches!(hold.stage, Stage::Reserved | Stage::Earned(_)))
    }

    /// Adds a hold to its channel's sums, or takes it out of them.
    fn count(&mut self, hold: &Hold, add: bool) {
        let voucher = &hold.payment.voucher;
        let Some(account) = self.accounts.get_mut(&voucher.channel) else { return };
        let change =
            |total: Amount| if add { sum([total, hold.amount]) } else { total.checked_sub(hold.amount).unwrap_or_default() };
        match hold.stage {
            Stage::Reserved => account.reserved = change(account.reserved),
            Stage::Earned(since) => {
                account.earned = change(account.earned);
                let key = (since, voucher.request_id);
                if add {
                    self.earned.insert(key, hold.amount);
                    self.earned_sum = sum([self.earned_sum, hold.amount]);
                } else {
                    self.earned.remove(&key);
                    self.earned_sum = self.earned_sum.checked_sub(hold.amount).unwrap_or_default();
                }
            }
            Stage::Settled | Stage::Released | Stage::Lost => {}
        }
    }

    /// Brings a hold into another stage; returns it as it is then.
    fn turn(&mut self, request_id: RequestId, stage: Stage) -> Option<Hold> {
        self.change(request_id, |hold| Hold { stage, ..hold })
    }

    fn change(&mut self, request_id: RequestId, change: impl FnOnce(Hold) -> Hold) -> Option<Hold> {
        let before = *self.holds.get(&request_id)?;
        let after = change(before);
        self.count(&before, false);
        self.count(&after, true);
        self.holds.insert(request_id, after);
        Some(after)
    }

    /// Whether a voucher can be judged by what the state knows; if not, the chain has to be asked.
    pub(super) fn knows_enough(&self, payment: &SignedVoucher, quote: &Quote) -> bool {
        let account = self.accounts.get(&payment.voucher.channel);
        account.is_some_and(|account| validation::voucher(payment, Some(&account.chain), quote).is_ok())
    }

    /// Takes in what the chain holds of a channel.
    pub(super) fn learn(&mut self, payment: &Judged, chain: Channel) {
        let Channel { settled, numbers, .. } = chain;
        let new = || Account { highest: payment.clone(), chain, settled, numbers, reserved: Amount::ZERO, earned: Amount::ZERO };
        self.accounts.entry(payment.payment.voucher.channel).or_insert_with(new).chain = chain;
    }

    /// Takes over what another state knows of the chain, which it was told later than this one.
    pub(super) fn learn_from(&mut self, other: &Self) {
        for account in other.accounts.values() {
            self.learn(&account.highest, account.chain);
        }
    }

    /// Holds a voucher's amount for its request; the signature has been checked. The same voucher again changes nothing.
    pub(super) fn reserve(&mut self, judged: &Judged, quote: &Quote, limits: &Limits) -> Result<(Account, Hold), LedgerError> {
        let payment = &judged.payment;
        let voucher = &payment.voucher;
        let channel = voucher.channel;
        if let Some(hold) = self.holds.get(&voucher.request_id) {
            let same = hold.payment == *payment;
            return match (self.accounts.get(&channel), hold.stage) {
                (Some(account), Stage::Reserved | Stage::Earned(_) | Stage::Settled | Stage::Lost) if same => {
                    Ok((account.clone(), *hold))
                }
                (_, stage) => {
                    let actual = format!("paid by {} voucher, {stage:?}", if same { "this" } else { "another" });
                    Err(LedgerError::WrongState { request_id: voucher.request_id, actual })
                }
            };
        }
        if self.holds.len() >= MAX_HOLDS {
            return Err(LedgerError::Busy("too many vouchers are kept: try again later".into()));
        }
        if self.closing.contains_key(&channel) {
            return Err(refuse(channel, "is being closed: open another with a new salt"));
        }
        if self.earned_sum > limits.unsettled {
            return Err(LedgerError::Busy("what is earned is not settled in time: try again later".into()));
        }
        validation::payable(quote, limits.now)?;
        let account = self
            .accounts
            .get_mut(&channel)
            .ok_or_else(|| LedgerError::Busy("what the chain has of the channel is looked up: try again".into()))?;
        validation::voucher(payment, Some(&account.chain), quote)?;
        let number = voucher.number;
        if account.numbers.contains(number) || account.chain.numbers.contains(number) {
            return Err(VoucherError::new("number", format!("{number} is over: take the next one")).into());
        }
        if let Some(other) = self.numbered.get(&(channel, number)) {
            return Err(VoucherError::new("number", format!("{number} is request {other}'s: take the next one")).into());
        }
        if quote.expiry.saturating_add(limits.margin) >= account.chain.expiry {
            let problem = format!("expires at {}, too soon to settle this: extend it by a top-up", Date(account.chain.expiry));
            return Err(refuse(channel, problem));
        }
        let needed = sum([account.settled, account.earned, account.reserved, voucher.amount]);
        let cumulative = account.highest.payment.voucher.cumulative.max(voucher.cumulative);
        if cumulative < needed {
            return Err(LedgerError::VoucherTooLow { cumulative, needed });
        }
        if needed > account.chain.deposit {
            let problem = format!("has a deposit of {}, {needed} are needed: top it up", account.chain.deposit);
            return Err(refuse(channel, problem));
        }
        if voucher.cumulative > account.highest.payment.voucher.cumulative {
            account.highest = judged.clone();
        }
        let account = account.clone();
        let hold = Hold { payment: *payment, amount: voucher.amount, expiry: quote.expiry, stage: Stage::Reserved };
        self.count(&hold, true);
        self.insert(&hold);
        Ok((account, hold))
    }

    /// The account that a hold is of.
    pub(super) fn account_of(&self, hold: &Hold) -> Option<Account> {
        self.accounts.get(&hold.payment.voucher.channel).cloned()
    }

    /// The request was served, at this cost. What cost nothing has nothing to be settled.
    pub(super) fn earn(&mut self, request_id: RequestId, cost: Amount, now: UnixTime) -> Result<Hold, LedgerError> {
        match self.holds.get(&request_id).copied() {
            Some(before @ Hold { stage: Stage::Reserved, .. }) => {
                if cost > before.amount {
                    let problem = format!("{cost} is more than the voucher's amount of {}", before.amount);
                    return Err(LedgerError::InvalidQuote { field: "cost".into(), problem });
                }
                let stage = if cost.is_zero() { Stage::Settled } else { Stage::Earned(now) };
                self.change(request_id, |hold| Hold { amount: cost, stage, ..hold }).ok_or_else(|| unknown(request_id))
            }
            Some(hold) if matches!(hold.stage, Stage::Earned(_) | Stage::Settled | Stage::Lost) => Ok(hold),
            Some(hold) => Err(LedgerError::WrongState { request_id, actual: format!("{:?}", hold.stage) }),
            None => Err(unknown(request_id)),
        }
    }

    /// The request was not served.
    pub(super) fn release(&mut self, request_id: RequestId) -> Result<Hold, LedgerError> {
        match self.holds.get(&request_id).copied() {
            Some(Hold { stage: Stage::Reserved, .. }) => self.turn(request_id, Stage::Released).ok_or_else(|| unknown(request_id)),
            Some(hold) if hold.stage == Stage::Released => Ok(hold),
            Some(hold) => Err(LedgerError::WrongState { request_id, actual: format!("{:?}", hold.stage) }),
            None => Err(unknown(request_id)),
        }
    }

    /// Takes no more vouchers whose numbers are over with these charges, which are for these requests.
    ///
    /// # Errors
    /// When another request has come in meanwhile that would be over with them.
    pub(super) fn end_numbers(
        &mut self,
        charges: &[ChannelCharge],
        own: &BTreeSet<RequestId>,
    ) -> Result<Vec<Account>, LedgerError> {
        for ChannelCharge { channel, numbers, .. } in charges {
            let numbered = self.numbered.range((*channel, 0)..=(*channel, u64::MAX));
            let others = numbered.filter(|(_, request)| !own.contains(*request) && self.is_open(request));
            if others.into_iter().any(|((_, number), _)| numbers.contains(*number)) {
                return Err(LedgerError::Busy("a request has come in while its channel's batch was put together".into()));
            }
        }
        let mut accounts = Vec::with_capacity(charges.len());
        for ChannelCharge { channel, numbers, .. } in charges {
            if let Some(account) = self.accounts.get_mut(channel) {
                account.numbers = *numbers;
                accounts.push(account.clone());
            }
        }
        Ok(accounts)
    }

    /// The chain has been charged for these requests of these channels.
    pub(super) fn settle(&mut self, requests: &[RequestId], charged: &[(B256, ChargeStart)]) -> (Vec<Account>, Vec<Hold>) {
        let holds = requests.iter().filter_map(|request| self.turn(*request, Stage::Settled)).collect();
        let mut accounts = Vec::new();
        for (channel, ChargeStart { settled, numbers }) in charged {
            if let Some(account) = self.accounts.get_mut(channel) {
                (account.settled, account.numbers) = (*settled, *numbers);
                accounts.push(account.clone());
            }
        }
        (accounts, holds)
    }

    /// The chain has taken a charge for these requests back, and charges the channels no more than this now: they are earned anew.
    pub(super) fn reopen(
        &mut self,
        requests: &[Hold],
        charged: &[(B256, ChargeStart)],
        now: UnixTime,
    ) -> (Vec<Account>, Vec<Hold>) {
        let mut holds = Vec::with_capacity(requests.len());
        for hold in requests {
            let request = hold.payment.voucher.request_id;
            // One whose quote expired long ago may have been forgotten.
            if !self.holds.contains_key(&request) {
                self.insert(hold);
            }
            holds.extend(self.turn(request, Stage::Earned(now)));
        }
        let mut accounts = Vec::new();
        for (channel, ChargeStart { settled, numbers }) in charged {
            if let Some(account) = self.accounts.get_mut(channel) {
                if *settled < account.settled {
                    (account.settled, account.numbers) = (*settled, *numbers);
                }
                accounts.push(account.clone());
            }
        }
        (accounts, holds)
    }

    /// These earned requests can never be charged.
    pub(super) fn write_off(&mut self, requests: &[RequestId]) -> Vec<Hold> {
        requests.iter().filter_map(|request| self.turn(*request, Stage::Lost)).collect()
    }

    /// Takes no more vouchers of a channel, from here on and for ever.
    pub(super) fn close(&mut self, channel: B256) -> Closing {
        *self.closing.entry(channel).or_insert(Closing::Wanted)
    }

    /// Says that nothing will be charged any more, once that is true.
    pub(super) fn agree(&mut self, channel: B256) -> Result<Closing, LedgerError> {
        if !self.closing.contains_key(&channel) || !self.is_idle(channel) {
            return Err(LedgerError::Busy("requests of the channel are in flight: close it once they have ended".into()));
        }
        self.closing.insert(channel, Closing::Agreed);
        Ok(Closing::Agreed)
    }

    /// Whether something of a channel is to be settled.
    pub(super) fn has_earned(&self, channel: B256) -> bool {
        self.accounts.get(&channel).is_some_and(|account| !account.earned.is_zero())
    }

    /// Whether nothing of a channel is in flight, and nothing is to be settled.
    pub(super) fn is_idle(&self, channel: B256) -> bool {
        self.accounts.get(&channel).is_none_or(|account| account.reserved.is_zero() && account.earned.is_zero())
    }

    /// What is to be settled, the oldest first.
    pub(super) fn earned(&self) -> impl Iterator<Item = (&(UnixTime, RequestId), &Amount)> {
        self.earned.iter()
    }

    /// The channel that a request is paid out of.
    pub(super) fn channel_of(&self, request_id: RequestId) -> Option<B256> {
        self.holds.get(&request_id).map(|hold| hold.payment.voucher.channel)
    }

    /// How much is to be settled.
    pub(super) fn earned_count(&self) -> usize {
        self.earned.len()
    }

    /// The ended requests whose quotes have expired.
    pub(super) fn forgettable(&self, before: UnixTime) -> impl Iterator<Item = RequestId> {
        let over = move |hold: &Hold| !matches!(hold.stage, Stage::Earned(_)) && hold.expiry < before;
        self.holds.iter().filter(move |(_, hold)| over(hold)).map(|(request, _)| *request)
    }

    /// Forgets ended requests whose quotes have expired: none of them can come back. What nobody ended until then was not served.
    pub(super) fn forget(&mut self, before: UnixTime) -> Vec<RequestId> {
        let old: Vec<_> = self.forgettable(before).collect();
        for request in &old {
            if let Some(hold) = self.holds.remove(request) {
                let voucher = &hold.payment.voucher;
                self.numbered.remove(&(voucher.channel, voucher.number));
                self.count(&hold, false);
            }
        }
        old
    }

    /// What the chain holds of a channel now.
    pub(super) fn refresh(&mut self, channel: B256, chain: Channel) {
        if let Some(account) = self.accounts.get_mut(&channel) {
            account.chain = chain;
        }
    }
}

fn unknown(request_id: RequestId) -> LedgerError {
    LedgerError::WrongState { request_id, actual: "not paid by a voucher".into() }
}
