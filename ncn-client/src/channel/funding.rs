//! A channel's deposit on the chain: paid in, added to, and had back.

use std::{path::Path, time::Duration};

use ncn_core::{
    Amount, B256, CapabilityScope, ChainView as _, ChannelParams, Date, LedgerError, Signed, TaskCapability, Transport, UnixTime,
    channel::MAX_CHANNEL_SECONDS,
};

use super::{Funding, PayerChannel};
use crate::{ClientError, evm::EvmLedger, unix_now};

/// How far the chain's clock may be behind this one, in seconds.
const CLOCK_MARGIN: u64 = 60 * 60;

/// When a channel ends that is to last so long from now: what is longer than a channel can last is cut to that.
fn end(lasts: Duration) -> UnixTime {
    unix_now() + lasts.as_secs().min(MAX_CHANNEL_SECONDS - CLOCK_MARGIN)
}

fn invalid(setting: &'static str, problem: impl Into<String>) -> ClientError {
    ClientError::Configuration { setting, problem: problem.into() }
}

impl PayerChannel {
    /// Opens a channel of the ledger's account with a gateway: pays the deposit in, and keeps what is needed to pay out of it, and to have back what is left,
    /// in a file that must not exist yet. Returns the transaction, too.
    ///
    /// # Errors
    /// The file is kept when the chain has not answered: the channel may have been opened, and [`Self::top_up`] says so.
    pub async fn open_on_chain(
        path: &Path,
        deposit: Amount,
        lasts: Duration,
        ledger: &EvmLedger,
        gateway: &dyn Transport,
    ) -> Result<(Self, B256), ClientError> {
        if deposit.is_zero() {
            return Err(invalid("deposit", "is zero"));
        }
        if path.exists() {
            return Err(invalid("channel", format!("{}: exists already", path.display())));
        }
        let (client, network) = (ledger.account(), gateway.network().await?);
        let balance = ledger.balance(client).await?;
        if balance < deposit {
            return Err(LedgerError::InsufficientFunds { owner: client, balance, needed: deposit }.into());
        }
        // Another network's gateway could not be paid out of this chain's channels.
        if network.trust_root != ledger.trust_root().await? {
            return Err(invalid("gateway", "is of another network than the chain's contracts: nothing was paid"));
        }
        let terms = ChannelParams { client, gateway: network.gateway, salt: B256::random() };
        let expiry = end(lasts);
        // Kept before it is paid for, so that nothing is in a channel that nobody knows of.
        let channel = Self::create(path, terms, deposit, expiry);
        let channel = channel.map_err(|error| invalid("channel", format!("{}: {error}", path.display())))?;
        let opened = ledger.fund_channel(&terms, deposit, expiry).await?;
        Ok((channel, opened))
    }

    /// Adds to the deposit, and puts the end off to so long from now. Returns the transaction, and the deposit that there is now.
    ///
    /// The same call again, after one that was cut off or dropped ([`PayerChannel::unfinished_top_up`]), goes on with that one: what it adds is added once.
    ///
    /// # Errors
    /// The channel ends later already, and nothing is to be added.
    pub async fn top_up(&self, amount: Amount, lasts: Option<Duration>, ledger: &EvmLedger) -> Result<(Amount, B256), ClientError> {
        let id = self.terms.id();
        let known = ledger.channel(id).await?;
        let known = known.ok_or_else(|| LedgerError::Channel { channel: id, problem: "was never opened: open another".into() })?;
        let expiry = lasts.map_or(known.expiry, end);
        if amount.is_zero() && expiry <= known.expiry {
            return Err(invalid("lasts", format!("the channel ends later already, at {}", Date(known.expiry))));
        }
        let expiry = expiry.max(known.expiry);
        let earlier = self.lock().funding.filter(|earlier| earlier.amount == amount);
        self.reconcile(&known)?;
        let sum = || known.deposit.checked_add(amount).ok_or_else(|| invalid("amount", "is more than an amount can be"));
        let deposit = earlier.map_or_else(sum, |earlier| Ok(earlier.deposit))?;
        // Kept before it is sent: after a crash, the same call adds it once.
        self.fund(Some(Funding { amount, deposit }).filter(|_| !amount.is_zero()))?;
        match ledger.fund_channel(&self.terms, deposit, expiry).await {
            Ok(funded) => {
                self.funded(deposit, expiry)?;
                Ok((deposit, funded))
            }
            Err(error) => {
                if !error.is_retryable() {
                    self.fund(None)?;
                }
                Err(error.into())
            }
        }
    }

    /// Has what is left of the deposit back: with the agreement of its gateway at once, and without a gateway after the channel's end. Returns how much that
    /// is, and the transaction.
    pub async fn close(&self, ledger: &EvmLedger, gateway: Option<&dyn Transport>) -> Result<(Amount, B256), ClientError> {
        let terms = self.terms;
        let agreement = match gateway {
            Some(gateway) => {
                let trust = ledger.trust_root().await?;
                let (client, scope) = (ledger.account(), CapabilityScope::CloseChannel);
                let access = TaskCapability { client, request_id: terms.id(), scope };
                let access = Signed::sign(access, &trust.domain, &**ledger.signer()).await?;
                Some(gateway.close_channel(terms, access).await?.1)
            }
            None => None,
        };
        let closed = ledger.close_channel(&terms, agreement).await?;
        let known = ledger.channel(terms.id()).await?;
        if let Some(known) = &known {
            self.reconcile(known)?;
        }
        let back = known.and_then(|known| known.deposit.checked_sub(known.settled)).unwrap_or_default();
        Ok((back, closed))
    }

    fn fund(&self, funding: Option<Funding>) -> Result<(), LedgerError> {
        self.change(|state| {
            state.funding = funding;
            Ok(())
        })
    }
}
