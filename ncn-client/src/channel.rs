//! A client's own channel: what it has promised, what that came to, and the next voucher.

#[cfg(feature = "evm")]
mod funding;
mod reconcile;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ncn_core::{
    Amount, ChannelParams, Date, DynSigner, LedgerError, Quote, RequestId, SignedVoucher, TrustRoot, UnixTime,
    channel::VoucherError,
};
use serde::{Deserialize, Serialize};

/// The largest file that is read: as many vouchers as may be in flight take less.
const MAX_BYTES: u64 = 128 << 20;
/// Of how many ended requests the vouchers are remembered, by one process.
const MAX_ENDED: usize = 1_024;
/// How many requests may be in flight on one channel.
const MAX_IN_FLIGHT: usize = 100_000;

/// What a client knows of its channel, kept in a file when it has one: it must not forget what it has promised.
///
/// Many requests can be in flight: each has its maximum set aside, and what is not spent is free again once it has ended.
#[derive(Debug)]
pub struct PayerChannel {
    terms: ChannelParams,
    file: Option<Kept>,
    state: Mutex<State>,
    /// What is being signed for at this moment. Locked after `state`.
    signing: Mutex<InSigning>,
}

/// A channel's file. Two programs on one channel would promise the same money twice: the one that comes second is turned away.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    /// Beside the file, because that is replaced with every change.
    _lock: File,
}

impl Kept {
    fn new(path: &Path) -> io::Result<Self> {
        let path = resolved(path)?;
        // Nothing is written to it: what somebody else has in a file of this name stays.
        let lock = File::options().create(true).append(true).open(beside(&path, ".lock"))?;
        let busy = |_| io::Error::new(io::ErrorKind::WouldBlock, "another program uses this channel: wait until it has ended");
        lock.try_lock().map_err(busy)?;
        Ok(Self { path, _lock: lock })
    }
}

/// The file that a path leads to, whether it exists or not. Two links to one channel's file have one lock, and it is the file that is
/// replaced, not a link to it.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.file_name()) {
        (Err(error), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(fs::canonicalize(directory)?.join(name))
        }
        (resolved, _) => resolved,
    }
}

/// A file of the channel's own: its whole name, and more.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[derive(Debug, Default)]
struct InSigning {
    total: Amount,
    /// The number of the next voucher, where those before it are not kept yet.
    next: u64,
}

/// What a voucher starts from.
#[allow(clippy::large_enum_variant, reason = "lives for a moment")]
enum Begun<'a> {
    /// It is there already.
    Known(SignedVoucher),
    /// It is to be signed, with this number, for this much altogether.
    New(Signing<'a>, u64, Amount),
}

/// An amount that is set aside while it is being signed for.
struct Signing<'a> {
    signing: &'a Mutex<InSigning>,
    amount: Amount,
}

impl Drop for Signing<'_> {
    fn drop(&mut self) {
        let mut signing = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        signing.total = signing.total.checked_sub(self.amount).unwrap_or_default();
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    terms: ChannelParams,
    deposit: Amount,
    expiry: UnixTime,
    /// What served requests came to.
    spent: Amount,
    /// The number of the next voucher.
    #[serde(default)]
    next: u64,
    /// The vouchers of requests in flight.
    held: HashMap<RequestId, SignedVoucher>,
    /// The most that vouchers of ended requests allow: what the gateway can have charged without those in flight.
    #[serde(default)]
    signed: Amount,
    /// The chain has it closed.
    #[serde(default, skip_serializing_if = "is_false")]
    closed: bool,
    /// A top-up whose end is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    funding: Option<Funding>,
    /// The vouchers of the requests that ended last: who pays one of them again gives the same voucher, and no higher one.
    #[serde(skip)]
    ended: VecDeque<SignedVoucher>,
}

/// A top-up that may have been sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Funding {
    /// What it adds.
    amount: Amount,
    /// What the deposit is with it.
    deposit: Amount,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl State {
    fn voucher(&self, request_id: RequestId) -> Option<SignedVoucher> {
        let ended = || self.ended.iter().rev().find(|payment| payment.voucher.request_id == request_id);
        self.held.get(&request_id).or_else(ended).copied()
    }

    /// Takes a voucher out of those in flight.
    fn end(&mut self, payment: &SignedVoucher) {
        self.signed = self.signed.max(payment.voucher.cumulative);
        self.ended.push_back(*payment);
        if self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
        }
    }

    fn reserved(&self) -> Amount {
        Amount::checked_sum(self.held.values().map(|payment| payment.voucher.amount)).unwrap_or(Amount::new(u128::MAX))
    }
}

/// What a channel comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelBalance {
    /// All that was paid in.
    pub deposit: Amount,
    /// What served requests came to.
    pub spent: Amount,
    /// What requests in flight may come to.
    pub reserved: Amount,
    /// The last second in which the channel can be charged.
    pub expiry: UnixTime,
    /// Whether it has been closed, as far as is known: what was left is back.
    pub closed: bool,
}

impl ChannelBalance {
    /// What is free. Nothing is, once the channel is closed.
    pub fn available(&self) -> Amount {
        if self.closed {
            return Amount::ZERO;
        }
        let bound = Amount::checked_sum([self.spent, self.reserved]).unwrap_or(self.deposit);
        self.deposit.checked_sub(bound).unwrap_or_default()
    }
}

impl PayerChannel {
    /// A channel in memory: for a program that ends with it.
    pub fn new(terms: ChannelParams, deposit: Amount, expiry: UnixTime) -> Self {
        let state = State {
            terms,
            deposit,
            expiry,
            spent: Amount::ZERO,
            next: 0,
            held: HashMap::new(),
            signed: Amount::ZERO,
            closed: false,
            funding: None,
            ended: VecDeque::new(),
        };
        Self { terms, file: None, state: Mutex::new(state), signing: Mutex::default() }
    }

    /// A channel that is kept in this file, which must not exist yet.
    pub fn create(path: &Path, terms: ChannelParams, deposit: Amount, expiry: UnixTime) -> io::Result<Self> {
        let file = Some(Kept::new(path)?);
        File::create_new(path)?;
        let this = Self { file, ..Self::new(terms, deposit, expiry) };
        this.save(&this.lock())?;
        Ok(this)
    }

    /// The channel that is kept in this file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A name that is wrong leaves no lock behind.
        fs::metadata(path)?;
        let file = Some(Kept::new(path)?);
        let mut json = Vec::new();
        File::open(path)?.take(MAX_BYTES).read_to_end(&mut json)?;
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, format!("is no channel's file, or damaged: {error}"));
        let state: State = serde_json::from_slice(&json).map_err(damaged)?;
        Ok(Self { terms: state.terms, file, state: Mutex::new(state), signing: Mutex::default() })
    }

    /// Which channel.
    pub const fn terms(&self) -> &ChannelParams {
        &self.terms
    }

    /// What it comes to.
    pub fn sums(&self) -> ChannelBalance {
        let state = self.lock();
        let State { deposit, spent, expiry, closed, .. } = *state;
        ChannelBalance { deposit, spent, reserved: state.reserved(), expiry, closed }
    }

    /// Requests whose end is not proven: [`crate::Client::resume`] asks for their answers.
    pub fn in_flight(&self) -> Vec<RequestId> {
        self.lock().held.keys().copied().collect()
    }

    /// Whether a request's amount is reserved.
    pub fn holds(&self, request_id: RequestId) -> bool {
        self.lock().held.contains_key(&request_id)
    }

    /// The voucher of a request, as far as it is remembered: while its amount is reserved, and for a while after its end.
    pub fn voucher(&self, request_id: RequestId) -> Option<SignedVoucher> {
        self.lock().voucher(request_id)
    }

    /// What was to be added to the deposit by a top-up whose end is not known: the same one again adds it once.
    pub fn unfinished_top_up(&self) -> Option<Amount> {
        self.lock().funding.map(|funding| funding.amount)
    }

    /// The channel has been topped up, or extended.
    pub fn funded(&self, deposit: Amount, expiry: UnixTime) -> Result<(), LedgerError> {
        self.change(|state| {
            (state.deposit, state.expiry, state.funding) = (deposit, expiry, None);
            Ok(())
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The voucher that pays this quote: the same one each time it is asked for. It is kept before anyone sees it.
    pub async fn pay(&self, quote: &Quote, trust: &TrustRoot, signer: &DynSigner) -> Result<SignedVoucher, LedgerError> {
        let (signing, number, cumulative) = match self.begin(quote)? {
            Begun::Known(payment) => return Ok(payment),
            Begun::New(signing, number, cumulative) => (signing, number, cumulative),
        };
        let signed = SignedVoucher::sign(self.terms, quote, number, cumulative, trust, signer).await;
        let payment = signed.map_err(|error| LedgerError::NotAllowed(format!("key: {error}")))?;
        // From here on the amount is counted by the voucher that is held.
        let kept = self.change(|state| {
            state.next = state.next.max(number.saturating_add(1));
            Ok(*state.held.entry(quote.request_id).or_insert(payment))
        });
        drop(signing);
        kept
    }

    /// Sets a quote's total aside, so that whatever is signed at the same time covers it too.
    fn begin(&self, quote: &Quote) -> Result<Begun<'_>, LedgerError> {
        let state = self.lock();
        if let Some(payment) = state.voucher(quote.request_id) {
            payment.matches(quote)?;
            return Ok(Begun::Known(payment));
        }
        if quote.client != self.terms.client {
            return Err(VoucherError::new("channel", format!("is {}'s: use its key", self.terms.client)).into());
        }
        if quote.gateway != self.terms.gateway {
            return Err(VoucherError::new("channel", "is with another gateway").into());
        }
        if state.closed {
            return Err(VoucherError::new("channel", "is closed: open another").into());
        }
        if quote.expiry >= state.expiry {
            return Err(VoucherError::new("channel", format!("expires at {}: extend it by a top-up", Date(state.expiry))).into());
        }
        if state.held.len() >= MAX_IN_FLIGHT {
            return Err(LedgerError::Busy(format!("{MAX_IN_FLIGHT} requests are in flight on this channel")));
        }
        let mut signing = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = Amount::checked_sum([state.spent, state.reserved(), signing.total]).unwrap_or(Amount::new(u128::MAX));
        let needed = Amount::checked_sum([bound, quote.total]).filter(|needed| *needed <= state.deposit);
        let cumulative = needed.ok_or_else(|| {
            let left = state.deposit.checked_sub(bound).unwrap_or_default();
            let problem = format!("has {left} left, {} are needed: top it up", quote.total);
            LedgerError::Channel { channel: self.terms.id(), problem }
        })?;
        let number = signing.next.max(state.next);
        signing.total = [signing.total, quote.total].into_iter().sum();
        signing.next = number.saturating_add(1);
        Ok(Begun::New(Signing { signing: &self.signing, amount: quote.total }, number, cumulative))
    }

    /// A request has ended: what it `cost` is spent, and the rest of its amount, or all of it, is free again. That it cost nothing is not for
    /// the gateway to say: a client that believes it signs too little from then on, and its vouchers are refused.
    pub fn release(&self, request_id: RequestId, cost: Option<Amount>) -> Result<(), LedgerError> {
        self.change(|state| {
            if let Some(payment) = state.held.remove(&request_id) {
                state.end(&payment);
                if let Some(cost) = cost {
                    state.spent = [state.spent, cost.min(payment.voucher.amount)].into_iter().sum();
                }
            }
            Ok(())
        })
    }

    /// Changes the state when the change can be kept.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        let mut state = self.lock();
        let mut next = state.clone();
        let value = change(&mut next)?;
        self.save(&next).map_err(|error| LedgerError::Storage(error.to_string()))?;
        *state = next;
        Ok(value)
    }

    /// Replaces the file in one step: after a crash it holds the old state or the new one.
    fn save(&self, state: &State) -> io::Result<()> {
        let Some(Kept { path, .. }) = &self.file else { return Ok(()) };
        let beside = beside(path, ".new");
        // Who reads vouchers knows what the client does.
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(state)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }
}
