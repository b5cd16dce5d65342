//! A channel's sums, brought in line with what the chain has charged, and with what its gateway says.

use std::{mem, sync::PoisonError};

use ncn_core::{Amount, Channel, DynSigner, LedgerError, Quote, RequestId, SignedVoucher, TrustRoot};

use super::{PayerChannel, State};

impl State {
    /// The most that vouchers of other requests allow. Before this one's voucher came, the gateway could take no more.
    fn signed_without(&self, request_id: RequestId) -> Amount {
        let others = self.held.iter().filter(|(held, _)| **held != request_id);
        others.map(|(_, payment)| payment.voucher.cumulative).fold(self.signed, Amount::max)
    }

    /// Counts as spent what `sum` is above `known`.
    fn raise(&mut self, sum: Amount, known: Amount) -> bool {
        let Some(more) = sum.checked_sub(known).filter(|more| !more.is_zero()) else { return false };
        self.spent = Amount::checked_sum([self.spent, more]).unwrap_or(self.spent);
        true
    }

    fn bound(&self) -> Amount {
        Amount::checked_sum([self.spent, self.reserved()]).unwrap_or(Amount::new(u128::MAX))
    }
}

impl PayerChannel {
    /// Takes in what the chain holds of the channel: its deposit and its end, which a top-up may have changed that this program has not seen,
    /// and what was charged. That, the client has signed: the contract has checked it. A request whose number is over is not in flight any more, nor is any once all that was promised is charged or the channel is closed.
    pub fn reconcile(&self, chain: &Channel) -> Result<(), LedgerError> {
        let unchanged = {
            let state = self.lock();
            let some_is_over = state.held.values().any(|payment| chain.numbers.contains(payment.voucher.number));
            let less = chain.settled < state.bound() || state.held.is_empty() && chain.settled == state.spent;
            let same = state.deposit >= chain.deposit && state.expiry >= chain.expiry && state.closed != chain.open;
            same && state.funding.is_none() && chain.open && less && !some_is_over && chain.numbers.end() <= state.next
        };
        if unchanged {
            return Ok(());
        }
        self.change(|state| {
            // They never become less: an endpoint that is behind does not undo what another has shown.
            (state.deposit, state.expiry) = (state.deposit.max(chain.deposit), state.expiry.max(chain.expiry));
            state.closed = !chain.open;
            // A top-up that is not there may be on its way.
            state.funding = state.funding.filter(|funding| chain.open && funding.deposit > chain.deposit);
            if !chain.open {
                // The rest of the deposit is back.
                for payment in mem::take(&mut state.held).into_values() {
                    state.end(&payment);
                }
                state.spent = state.spent.max(chain.settled);
                return Ok(());
            }
            let bound = state.bound();
            state.raise(chain.settled, bound);
            state.signed = state.signed.max(chain.settled);
            if chain.settled == bound {
                for payment in mem::take(&mut state.held).into_values() {
                    state.end(&payment);
                    state.spent = [state.spent, payment.voucher.amount].into_iter().sum();
                }
            }
            // What one cost that has no receipt is in what the chain has charged. Should that leave too little for others that the chain does
            // not know of yet, the gateway says so: see `renew`.
            state.next = state.next.max(chain.numbers.end());
            let over: Vec<_> = state.held.extract_if(|_, payment| chain.numbers.contains(payment.voucher.number)).collect();
            for (_, payment) in over {
                state.end(&payment);
                state.spent = state.spent.max(chain.settled);
            }
            Ok(())
        })
    }

    /// A new voucher in the place of one that the gateway has refused because all of the channel's requests with this one come to
    /// `needed`. The gateway is believed only as far as the client's own earlier signatures go. None when they do not bear it out.
    pub async fn renew(
        &self,
        quote: &Quote,
        needed: Amount,
        trust: &TrustRoot,
        signer: &DynSigner,
    ) -> Result<Option<SignedVoucher>, LedgerError> {
        let request_id = quote.request_id;
        let Some((number, cumulative)) = self.admit(quote, needed)? else { return Ok(None) };
        let signed = SignedVoucher::sign(self.terms, quote, number, cumulative, trust, signer).await;
        let payment = signed.map_err(|error| LedgerError::NotAllowed(format!("key: {error}")))?;
        self.change(|state| {
            state.held.insert(request_id, payment);
            Ok(Some(payment))
        })
    }

    /// Counts as spent what the gateway says it has charged or reserved beside this request; returns the request's number, and what a voucher
    /// then has to allow.
    fn admit(&self, quote: &Quote, needed: Amount) -> Result<Option<(u64, Amount)>, LedgerError> {
        let (number, refused) = match self.lock().held.get(&quote.request_id) {
            Some(payment) => (payment.voucher.number, payment.voucher.cumulative),
            None => return Ok(None),
        };
        self.change(|state| {
            let others = state.bound().checked_sub(quote.total).unwrap_or_default();
            let claimed = needed.checked_sub(quote.total).unwrap_or_default();
            state.raise(claimed.min(state.signed_without(quote.request_id)), others);
            let signing = self.signing.lock().unwrap_or_else(PoisonError::into_inner).total;
            let cumulative = Amount::checked_sum([state.bound(), signing]);
            let enough = cumulative.filter(|cumulative| *cumulative > refused && *cumulative >= needed);
            match enough {
                Some(cumulative) if cumulative > state.deposit => {
                    let problem = format!("has {}, {cumulative} are needed: top it up", state.deposit);
                    Err(LedgerError::Channel { channel: self.terms.id(), problem })
                }
                enough => Ok(enough.map(|cumulative| (number, cumulative))),
            }
        })
    }
}
