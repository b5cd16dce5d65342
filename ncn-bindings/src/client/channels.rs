//! Channels: a deposit for many requests.

use std::{path::Path, sync::Arc};

use alloy_primitives::B256;
use ncn_client::{
    PayerChannel,
    core::{Amount, CapabilityScope, ChainView as _, ChannelParams, Signed, TaskCapability, channel::MAX_CHANNEL_SECONDS},
    unix_now,
};

use super::{
    Client, Inner,
    connect::{invalid, open},
};
use crate::{ChannelInfo, ErrorKind, NcnError, runtime::run};

const DAY: u64 = 24 * 60 * 60;

/// A little less than the longest, because the chain's clock is not this one.
fn end(days: u32) -> u64 {
    unix_now() + (u64::from(days) * DAY).min(MAX_CHANNEL_SECONDS - 60 * 60)
}

impl Inner {
    /// The client's own channel, or the one in a file.
    async fn channel(&self, path: Option<String>) -> Result<Arc<PayerChannel>, NcnError> {
        match (path, &self.channel) {
            (Some(path), _) => open(&path).await,
            (None, Some(channel)) => Ok(channel.clone()),
            (None, None) => Err(invalid("path", "is missing: the client does not pay out of a channel")),
        }
    }
}

#[uniffi::export]
impl Client {
    /// Opens a channel with the gateway: a deposit, and the file that is needed to pay out of it and to have back what is left. It must not exist yet.
    pub async fn channel_open(&self, path: String, deposit: Amount, days: u32) -> Result<ChannelInfo, NcnError> {
        let inner = self.inner.clone();
        run(async move {
            if deposit.is_zero() {
                return Err(invalid("deposit", "is zero"));
            }
            let (chain, network) = (inner.chain()?, inner.transport.network().await?);
            let terms = ChannelParams { client: inner.signer.address(), gateway: network.gateway, salt: B256::random() };
            let expiry = end(days);
            // Kept before it is paid for, so that nothing is in a channel that nobody knows of.
            let channel = PayerChannel::create(Path::new(&path), terms, deposit, expiry);
            let channel = channel.map_err(|error| invalid("path", format!("{path}: {error}")))?;
            chain.fund_channel(&terms, deposit, expiry).await?;
            Ok(ChannelInfo::of(&channel))
        })
        .await
    }

    /// What a channel comes to: the client's own, or the one in a file.
    #[uniffi::method(default(path = None))]
    pub async fn channel_show(&self, path: Option<String>) -> Result<ChannelInfo, NcnError> {
        let inner = self.inner.clone();
        run(async move { Ok(ChannelInfo::of(&*inner.channel(path).await?)) }).await
    }

    /// Adds to a channel's deposit, and puts its end off to so many days from now, unless it is later already.
    #[uniffi::method(default(path = None))]
    pub async fn channel_topup(&self, amount: Amount, days: u32, path: Option<String>) -> Result<ChannelInfo, NcnError> {
        let inner = self.inner.clone();
        run(async move {
            let (channel, chain) = (inner.channel(path).await?, inner.chain()?);
            let known = chain.channel(channel.terms().id()).await?;
            let known = known.ok_or_else(|| NcnError::new(ErrorKind::Payment, "the channel was never opened: open another"))?;
            let deposit = known.deposit.checked_add(amount).ok_or_else(|| invalid("amount", "is more than an amount can be"))?;
            let expiry = end(days).max(known.expiry);
            chain.fund_channel(channel.terms(), deposit, expiry).await?;
            channel.funded(deposit, expiry)?;
            Ok(ChannelInfo::of(&channel))
        })
        .await
    }

    /// Has what is left of a channel back, with the gateway's agreement. Returns how much that is.
    #[uniffi::method(default(path = None))]
    pub async fn channel_close(&self, path: Option<String>) -> Result<Amount, NcnError> {
        let inner = self.inner.clone();
        run(async move {
            let (channel, chain) = (inner.channel(path).await?, inner.chain()?);
            let (terms, trust) = (*channel.terms(), chain.trust_root().await?);
            let access =
                TaskCapability { client: inner.signer.address(), request_id: terms.id(), scope: CapabilityScope::CloseChannel };
            let access = Signed::sign(access, &trust.domain, &*inner.signer).await;
            let access = access.map_err(|error| NcnError::new(ErrorKind::Key, error))?;
            let (_, agreement) = inner.transport.close_channel(terms, access).await?;
            chain.close_channel(&terms, Some(agreement)).await?;
            let known = chain.channel(terms.id()).await?;
            Ok(known.and_then(|known| known.deposit.checked_sub(known.settled)).unwrap_or_default())
        })
        .await
    }
}
