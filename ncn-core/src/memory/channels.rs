//! The rules of `PaymentChannel` in a few lines of Rust.

use std::collections::HashMap;

use alloy_primitives::{Address, B256};

use super::ledger::Ledger;
use crate::{
    Amount, Channel, ChannelClose, ChannelParams, ChannelPayout, LedgerError, Message as _, Signature, SignedVoucher, TrustRoot,
    UnixTime,
    channel::{CertifiedBatch, MAX_CHANNEL_SECONDS, MAX_CHARGES, MAX_PAYOUTS, Numbers, VoucherError},
};

/// All channels there ever were, and the transactions that made them what they are.
#[derive(Debug, Default)]
pub(super) struct Channels {
    channels: HashMap<B256, Channel>,
    funded: HashMap<B256, B256>,
    closed: HashMap<B256, B256>,
    /// By the settlement's struct hash.
    settled: HashMap<B256, B256>,
    /// By channel, and by what it had been charged before.
    roots: HashMap<(B256, Amount), B256>,
    /// What settlements have paid, and in which block.
    payouts: Vec<(u64, ChannelPayout)>,
}

fn refused(channel: B256, problem: impl Into<String>) -> LedgerError {
    LedgerError::Channel { channel, problem: problem.into() }
}

impl Channels {
    pub(super) fn get(&self, id: B256) -> Option<Channel> {
        self.channels.get(&id).copied()
    }

    pub(super) fn charged_root(&self, channel: B256, settled_before: Amount) -> Option<B256> {
        self.roots.get(&(channel, settled_before)).copied()
    }

    pub(super) fn paid_to(&self, account: Address, from_block: u64) -> Amount {
        let payouts = self.payouts.iter().filter(|(block, payout)| *block >= from_block && payout.account == account);
        payouts.map(|(_, payout)| payout.amount).sum()
    }

    fn open(&self, id: B256) -> Result<Channel, LedgerError> {
        let channel = self.get(id).ok_or_else(|| refused(id, "was never opened: open it first"))?;
        if channel.open { Ok(channel) } else { Err(refused(id, "is closed: open another with a new salt")) }
    }
}

impl Ledger {
    pub(super) fn fund_channel(
        &mut self,
        account: Address,
        terms: &ChannelParams,
        deposit: Amount,
        expiry: UnixTime,
    ) -> Result<B256, LedgerError> {
        let id = terms.id();
        if terms.client != account {
            return Err(LedgerError::NotAllowed("client: only the client itself can fund its channel".into()));
        }
        let mut channel = match self.channels.get(id) {
            Some(_) => self.channels.open(id)?,
            None => Channel { deposit: Amount::ZERO, settled: Amount::ZERO, numbers: Numbers::default(), expiry: 0, open: true },
        };
        let (amount, expiry) = (deposit.checked_sub(channel.deposit).unwrap_or_default(), expiry.max(channel.expiry));
        if let Some(transaction) = self.channels.funded.get(&id) {
            if amount.is_zero() && expiry == channel.expiry {
                return Ok(*transaction);
            }
            if self.now > channel.expiry {
                return Err(refused(id, format!("expired at {}: close it, and open another", channel.expiry)));
            }
        } else if amount.is_zero() || terms.gateway == Address::ZERO {
            return Err(refused(id, "deposit, gateway: must not be zero"));
        }
        if expiry <= self.now || expiry - self.now > MAX_CHANNEL_SECONDS {
            return Err(refused(id, "expiry: has to be in the future, and within 180 days"));
        }
        self.debit(account, amount)?;
        channel.deposit = [channel.deposit, amount].into_iter().sum();
        channel.expiry = expiry;
        let (_, transaction) = self.mine();
        self.channels.channels.insert(id, channel);
        self.channels.funded.insert(id, transaction);
        Ok(transaction)
    }

    pub(super) fn settle_batch(&mut self, account: Address, batch: &CertifiedBatch) -> Result<B256, LedgerError> {
        let CertifiedBatch { settlement, vouchers, committees, certificate } = batch;
        let hash = settlement.struct_hash();
        if let Some(transaction) = self.channels.settled.get(&hash) {
            return Ok(*transaction);
        }
        if settlement.charges.len() != vouchers.len() || vouchers.len() != committees.len() {
            let problem = "vouchers, committees: there has to be one for each charge, in their order";
            return Err(LedgerError::Certificate(problem.into()));
        }
        let (charges, payouts) = (settlement.charges.len(), settlement.payouts.len());
        if settlement.count == 0 || charges == 0 || charges > MAX_CHARGES || payouts > MAX_PAYOUTS {
            return Err(LedgerError::Reverted("charges, payouts: there are none, or too many for one settlement".into()));
        }
        // What is charged is written down only when nothing of the batch is refused.
        let mut charged = HashMap::new();
        let mut total = Amount::ZERO;
        for ((charge, payment), committee) in settlement.charges.iter().zip(vouchers).zip(committees) {
            let id = charge.channel;
            if payment.voucher.committee != committee.struct_hash() {
                return Err(VoucherError::new("committee", "is another one than is to approve the charge").into());
            }
            if payment.terms.gateway != account {
                return Err(LedgerError::NotAllowed("gateway: only the channels' gateway can charge them".into()));
            }
            let mut channel = charged.get(&id).copied().map_or_else(|| self.channels.open(id), Ok)?;
            if self.now > channel.expiry {
                return Err(refused(id, format!("expired at {}", channel.expiry)));
            }
            if channel.settled != charge.settled_before {
                return Err(refused(id, format!("was charged {}, not {}", channel.settled, charge.settled_before)));
            }
            let amount = charge.settled_after.checked_sub(charge.settled_before).filter(|amount| !amount.is_zero());
            let amount = amount.ok_or_else(|| refused(id, "settledAfter: is no more than settledBefore"))?;
            if charge.settled_after > channel.deposit {
                return Err(refused(id, format!("has {}, not {}", channel.deposit, charge.settled_after)));
            }
            if !charge.numbers.covers(&channel.numbers) {
                return Err(refused(id, "numbers: some that are over would be open again"));
            }
            allows(payment, id, charge.settled_after, &self.trust)?;
            (channel.settled, channel.numbers) = (charge.settled_after, charge.numbers);
            charged.insert(id, channel);
            total = [total, amount].into_iter().sum();
        }
        let payouts = &settlement.payouts;
        let sum = Amount::checked_sum(payouts.iter().map(|payout| payout.amount));
        let some = payouts.iter().all(|payout| !payout.amount.is_zero());
        if sum != Some(total) || !some || !payouts.is_sorted_by(|a, b| a.account < b.account) {
            return Err(LedgerError::Reverted("payouts: have to ascend by account and come to what is charged".into()));
        }
        let digest = settlement.digest(&self.trust.channel_domain());
        let approved = certificate.verify_all(&digest, committees);
        approved.map_err(|error| LedgerError::Certificate(error.to_string()))?;
        self.channels.channels.extend(charged);
        let charged = settlement.charges.iter().map(|charge| ((charge.channel, charge.settled_before), settlement.root));
        self.channels.roots.extend(charged);
        for ChannelPayout { account, amount } in payouts {
            self.credit(*account, *amount);
        }
        let (block, transaction) = self.mine();
        self.channels.payouts.extend(payouts.iter().map(|payout| (block, *payout)));
        self.channels.settled.insert(hash, transaction);
        Ok(transaction)
    }

    pub(super) fn close_channel(
        &mut self,
        account: Address,
        terms: &ChannelParams,
        agreement: Option<Signature>,
    ) -> Result<B256, LedgerError> {
        let id = terms.id();
        if let Some(transaction) = self.channels.closed.get(&id) {
            return Ok(*transaction);
        }
        let mut channel = self.channels.open(id)?;
        if let Some(agreement) = agreement.filter(|_| account != terms.gateway) {
            let close = ChannelClose { channel: id, settled: channel.settled };
            let signed = agreement.verify(&close.digest(&self.trust.channel_domain()), terms.gateway);
            signed.map_err(|_| refused(id, "the signature to close it is not its gateway's"))?;
        } else if account != terms.gateway && self.now <= channel.expiry {
            let problem = format!("is open until {}: ask its gateway to close it, or wait until then", channel.expiry);
            return Err(refused(id, problem));
        }
        channel.open = false;
        self.credit(terms.client, channel.deposit.checked_sub(channel.settled).unwrap_or_default());
        let (_, transaction) = self.mine();
        self.channels.channels.insert(id, channel);
        self.channels.closed.insert(id, transaction);
        Ok(transaction)
    }
}

/// Whether a voucher lets its channel be charged this much altogether.
fn allows(payment: &SignedVoucher, channel: B256, charged: Amount, trust: &TrustRoot) -> Result<(), VoucherError> {
    let SignedVoucher { terms, voucher, signature } = payment;
    if (terms.id(), voucher.channel) != (channel, channel) {
        return Err(VoucherError::new("channel", "is another one than is charged"));
    }
    if charged > voucher.cumulative {
        return Err(VoucherError::new("cumulative", format!("allows {}, not {charged}", voucher.cumulative)));
    }
    let signed = signature.verify(&payment.reference(trust), terms.client);
    signed.map_err(|_| VoucherError::new("signature", "is not the client's"))
}
