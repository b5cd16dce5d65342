//! Channels: a deposit for many requests.

use std::{path::Path, sync::Arc, time::Duration};

use ncn_client::{PayerChannel, core::Amount};

use super::{
    Client, Inner,
    connect::{invalid, open},
};
use crate::{ChannelInfo, NcnError, runtime::run};

const fn days_of(days: u32) -> Duration {
    Duration::from_hours(days as u64 * 24)
}

impl Inner {
    /// The client's own channel, or the one in a file.
    async fn channel(&self, path: Option<String>) -> Result<Arc<PayerChannel>, NcnError> {
        let is_own = |own: &Path, path: &str| Path::new(path).canonicalize().is_ok_and(|path| path == own);
        match (path, &self.channel) {
            // A channel is open once.
            (Some(path), Some((own, channel))) if is_own(own, &path) => Ok(channel.clone()),
            (Some(path), _) => open(&path).await,
            (None, Some((_, channel))) => Ok(channel.clone()),
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
            let (path, chain) = (Path::new(&path), inner.chain()?);
            let (channel, _) = PayerChannel::open_on_chain(path, deposit, days_of(days), chain, &*inner.transport).await?;
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
            channel.top_up(amount, Some(days_of(days)), chain).await?;
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
            Ok(channel.close(chain, Some(&*inner.transport)).await?.0)
        })
        .await
    }
}
