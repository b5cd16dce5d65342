//! Whether a request is paid, as a validator or a compute node sees it: neither takes a gateway's word.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ncn_client::unix_now;
use ncn_core::{
    B256, ChainView, Channel, LedgerError, Message as _, PaymentStatus, Quote, RegistryError, SignedVoucher, validation,
};

/// How long what the chain said of a channel is believed. A deposit only grows; a channel is closed early only by its own gateway.
const CHANNEL_AGE: Duration = Duration::from_secs(5);
/// Of how many channels that is kept.
const MAX_CHANNELS: usize = 10_000;

/// Looks payments up.
pub(crate) struct PaymentVerifier {
    ledger: Arc<dyn ChainView>,
    channels: Mutex<HashMap<B256, (Instant, Channel)>>,
}

/// Why a request does not count as paid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PaymentCheckError {
    /// It may be in a moment: the chain does not answer, or this node's view of it is behind.
    #[error("payment: {0}")]
    NotYet(String),
    /// It is not.
    #[error("payment: {0}")]
    Refused(String),
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unknown(error: LedgerError) -> PaymentCheckError {
    if error.is_retryable() { PaymentCheckError::NotYet(error.to_string()) } else { PaymentCheckError::Refused(error.to_string()) }
}

fn elsewhere(status: &PaymentStatus) -> PaymentCheckError {
    PaymentCheckError::Refused(format!("the chain does not hold this quote's payment: it is {status}"))
}

impl PaymentVerifier {
    pub(crate) fn new(ledger: Arc<dyn ChainView>) -> Self {
        Self { ledger, channels: Mutex::default() }
    }

    /// Does the chain hold exactly this quote's payment, or enough of a deposit for its voucher? The voucher's signature is the
    /// caller's to check.
    pub(crate) async fn check(&self, quote: &Quote, voucher: Option<&SignedVoucher>) -> Result<(), PaymentCheckError> {
        if let Some(payment) = voucher {
            return self.promised(quote, payment).await.map_err(unknown);
        }
        match self.ledger.status(quote.client, quote.request_id).await.map_err(unknown)? {
            PaymentStatus::Held { quote: hash, .. } if hash == quote.struct_hash() => Ok(()),
            PaymentStatus::Unpaid => Err(PaymentCheckError::NotYet("the chain does not hold this quote's payment".into())),
            other => Err(elsewhere(&other)),
        }
    }

    /// Does the chain hold this quote's payment, or has it paid it out for the completion with this struct hash?
    pub(crate) async fn check_certified(&self, quote: &Quote, completion: B256) -> Result<(), PaymentCheckError> {
        match self.ledger.status(quote.client, quote.request_id).await.map_err(unknown)? {
            PaymentStatus::Held { quote: hash, .. } | PaymentStatus::GivenUp { quote: hash, .. } if hash == quote.struct_hash() => {
                Ok(())
            }
            PaymentStatus::PaidOut { completion: Some(paid), .. } if paid == completion => Ok(()),
            other => Err(elsewhere(&other)),
        }
    }

    /// May the node of this attempt have its completion judged, which the gateway has not brought?
    pub(crate) async fn check_claim(&self, quote: &Quote, attempt: u8) -> Result<(), PaymentCheckError> {
        let refuse = |problem: String| Err(PaymentCheckError::Refused(problem));
        let status = self.ledger.status(quote.client, quote.request_id).await.map_err(unknown)?;
        let from = match validation::claimable_from(quote, attempt, &status) {
            Ok(from) => from,
            Err(RegistryError::Refused(problem)) => return refuse(problem),
            Err(error) => return refuse(error.to_string()),
        };
        if self.ledger.now().await.map_err(unknown)?.max(unix_now()) >= from {
            return Ok(());
        }
        refuse(format!("is its gateway's to settle, or a later node's to claim, until {from}"))
    }

    /// Can the channel bear what the voucher promises? What was known of it a moment ago is enough when it says yes.
    async fn promised(&self, quote: &Quote, payment: &SignedVoucher) -> Result<(), LedgerError> {
        let id = payment.voucher.channel;
        let known = self.channels.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
        if let Some((at, channel)) = known
            && at.elapsed() < CHANNEL_AGE
            && validation::voucher(payment, Some(&channel), quote).is_ok()
        {
            return Ok(());
        }
        let channel = self.ledger.channel(id).await?;
        if let Some(channel) = channel {
            let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            if channels.len() >= MAX_CHANNELS {
                channels.retain(|_, (at, _)| at.elapsed() < CHANNEL_AGE);
            }
            if channels.len() < MAX_CHANNELS {
                channels.insert(id, (Instant::now(), channel));
            }
        }
        Ok(validation::voucher(payment, channel.as_ref(), quote)?)
    }
}
