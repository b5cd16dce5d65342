//! `ncn channel`: a deposit for many requests.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ncn_client::{PayerChannel, unix_now};
use ncn_core::{
    Amount, B256, CapabilityScope, ChainView as _, ChannelParams, Signed, TaskCapability, channel::MAX_CHANNEL_SECONDS,
};

use crate::{
    Failure,
    account::{self, ChainArguments, KeyArguments, tokens},
    block_on,
};

const DAY: u64 = 24 * 60 * 60;

#[derive(clap::Args)]
pub(crate) struct FileArgument {
    /// The channel's file
    #[arg(long, value_name = "FILE")]
    channel: PathBuf,
}

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Open a channel with a gateway and keep it in a file
    Open {
        #[command(flatten)]
        file: FileArgument,
        #[command(flatten)]
        chain: ChainArguments,
        #[command(flatten)]
        key: KeyArguments,
        /// The gateway
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:50051")]
        gateway: String,
        /// How many tokens to deposit
        #[arg(long, value_name = "TOKENS", value_parser = tokens)]
        deposit: Amount,
        /// After how many days what is left can be had back without the gateway
        #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=180))]
        days: u64,
    },
    /// Show what a channel holds
    Show {
        #[command(flatten)]
        file: FileArgument,
        #[command(flatten)]
        chain: ChainArguments,
    },
    /// Add to a channel's deposit, or put its end off
    Topup {
        #[command(flatten)]
        file: FileArgument,
        #[command(flatten)]
        chain: ChainArguments,
        #[command(flatten)]
        key: KeyArguments,
        /// How many tokens to add
        #[arg(long, value_name = "TOKENS", value_parser = tokens, default_value = "0")]
        amount: Amount,
        /// In how many days it is to end
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=180))]
        days: Option<u64>,
    },
    /// Have what is left back: at once when the gateway agrees, or after the channel's end
    Close {
        #[command(flatten)]
        file: FileArgument,
        #[command(flatten)]
        chain: ChainArguments,
        #[command(flatten)]
        key: KeyArguments,
        /// The gateway, to ask for its agreement; not needed after the channel's end
        #[arg(long, value_name = "URL")]
        gateway: Option<String>,
    },
}

/// The channel in a file.
pub(crate) fn open_file(path: &Path) -> Result<Arc<PayerChannel>, Failure> {
    let refuse = |error| Failure::Input(format!("--channel {}: {error}", path.display()));
    PayerChannel::open(path).map(Arc::new).map_err(refuse)
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    block_on(async {
        let mut out = std::io::stdout();
        match command {
            Command::Open { file, chain, key, gateway, deposit, days } => {
                if file.channel.exists() {
                    return Err(Failure::Input(format!("--channel {}: exists already", file.channel.display())));
                }
                if deposit.is_zero() {
                    return Err(Failure::Input("--deposit: is zero".into()));
                }
                let ledger = chain.ledger(key.open()?).await?;
                let balance = ledger.balance(ledger.account()).await.map_err(Failure::failed)?;
                if balance < *deposit {
                    return Err(Failure::Failed(format!("{} has {balance}, {deposit} are to be deposited", ledger.account())));
                }
                let network = account::gateway(gateway)?.network().await.map_err(Failure::failed)?;
                // Another network's gateway could not be paid out of this chain's channels.
                if network.trust_root != ledger.trust_root().await.map_err(Failure::failed)? {
                    return Err(Failure::Failed("--gateway: is of another network than the chain's contracts".into()));
                }
                let terms = ChannelParams { client: ledger.account(), gateway: network.gateway, salt: B256::random() };
                let expiry = end(*days);
                // Kept before it is paid for, so that nothing is in a channel that nobody knows of.
                let write = |error| Failure::Input(format!("--channel {}: {error}", file.channel.display()));
                PayerChannel::create(&file.channel, terms, *deposit, expiry).map_err(write)?;
                let opened = ledger.fund_channel(&terms, *deposit, expiry).await.map_err(|error| {
                    Failure::Failed(format!("{error}; the channel's file is kept: `ncn channel show` says whether it was opened"))
                })?;
                writeln!(out, "opened channel {} with {deposit}: {opened}", terms.id())?;
                writeln!(out, "keep {}: it takes that file to pay out of the channel and to close it", file.channel.display())?;
            }
            Command::Show { file, chain } => {
                let channel = open_file(&file.channel)?;
                let sums = channel.sums();
                writeln!(out, "channel     {}", channel.terms().id())?;
                writeln!(out, "gateway     {}", channel.terms().gateway)?;
                writeln!(out, "deposit     {}", sums.deposit)?;
                writeln!(out, "spent       {}", sums.spent)?;
                writeln!(out, "reserved    {}", sums.reserved)?;
                writeln!(out, "available   {}", sums.available())?;
                writeln!(out, "ends        {} (unix time)", sums.expiry)?;
                if chain.is_given() {
                    let ledger = chain.ledger(ncn_devnet::well_known_key("reader", 0)).await?;
                    match ledger.channel(channel.terms().id()).await.map_err(Failure::failed)? {
                        Some(known) => {
                            let state = if known.open { "open" } else { "closed" };
                            writeln!(out, "on chain    {state}, deposit {}, settled {}", known.deposit, known.settled)?;
                        }
                        None => writeln!(out, "on chain    not opened")?,
                    }
                }
            }
            Command::Topup { file, chain, key, amount, days } => {
                if amount.is_zero() && days.is_none() {
                    return Err(Failure::Input("nothing to do: give --amount, or --days, or both".into()));
                }
                let channel = open_file(&file.channel)?;
                let ledger = chain.ledger(key.open()?).await?;
                let problem = || Failure::Failed("the channel was never opened: open another".into());
                let known = ledger.channel(channel.terms().id()).await.map_err(Failure::failed)?.ok_or_else(problem)?;
                let deposit = Amount::checked_sum([known.deposit, *amount])
                    .ok_or_else(|| Failure::Input("--amount: is more than an amount can be".into()))?;
                let expiry = days.map_or(known.expiry, end).max(known.expiry);
                let funded = ledger.fund_channel(channel.terms(), deposit, expiry).await.map_err(Failure::failed)?;
                channel.funded(deposit, expiry).map_err(Failure::failed)?;
                writeln!(out, "channel {} has a deposit of {deposit}: {funded}", channel.terms().id())?;
            }
            Command::Close { file, chain, key, gateway } => {
                let channel = open_file(&file.channel)?;
                let signer = key.open()?;
                let ledger = chain.ledger(signer.clone()).await?;
                let terms = *channel.terms();
                let agreement = match gateway {
                    Some(url) => {
                        let trust = ledger.trust_root().await.map_err(Failure::failed)?;
                        let scope = CapabilityScope::CloseChannel;
                        let access = TaskCapability { client: signer.address(), request_id: terms.id(), scope };
                        let access = Signed::sign(access, &trust.domain, &*signer).await.map_err(Failure::failed)?;
                        let (_, agreement) = account::gateway(url)?.close_channel(terms, access).await.map_err(Failure::failed)?;
                        Some(agreement)
                    }
                    None => None,
                };
                let closed = ledger.close_channel(&terms, agreement).await.map_err(Failure::failed)?;
                let known = ledger.channel(terms.id()).await.map_err(Failure::failed)?;
                let back = known.and_then(|known| known.deposit.checked_sub(known.settled)).unwrap_or_default();
                writeln!(out, "closed channel {}, {back} came back: {closed}", terms.id())?;
            }
        }
        Ok(())
    })
}

fn end(days: u64) -> u64 {
    // A little less than the longest, because the chain's clock is not this one.
    unix_now() + (days * DAY).min(MAX_CHANNEL_SECONDS - 60 * 60)
}
