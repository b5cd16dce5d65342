//! `ncn channel`: a deposit for many requests.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ncn_client::{ClientError, PayerChannel};
use ncn_core::{Amount, ChainView as _, Date};

use crate::{
    Failure,
    account::{self, ChainArguments, KeyArguments, tokens},
    block_on,
};

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
                let ledger = chain.ledger(key.open()?).await?;
                let gateway = account::gateway(gateway)?;
                let opened = PayerChannel::open_on_chain(&file.channel, *deposit, days_of(*days), &ledger, &*gateway).await;
                let (channel, opened) = opened.map_err(|error| match error {
                    ClientError::Ledger(error) if file.channel.exists() => Failure::Failed(format!(
                        "{error}; the channel's file is kept: `ncn channel show` says whether it was opened"
                    )),
                    error => error.into(),
                })?;
                writeln!(out, "opened channel {} with {deposit}: {opened}", channel.terms().id())?;
                writeln!(out, "keep {}: it takes that file to pay out of the channel and to close it", file.channel.display())?;
            }
            Command::Show { file, chain } => {
                let channel = open_file(&file.channel)?;
                let mut on_chain = None;
                if chain.is_given() {
                    let ledger = chain.ledger(ncn_devnet::well_known_key("reader", 0)).await?;
                    let known = ledger.channel(channel.terms().id()).await.map_err(Failure::failed)?;
                    if let Some(known) = &known {
                        channel.reconcile(known).map_err(Failure::failed)?;
                    }
                    on_chain = Some(known);
                }
                let sums = channel.sums();
                writeln!(out, "channel     {}", channel.terms().id())?;
                writeln!(out, "gateway     {}", channel.terms().gateway)?;
                writeln!(out, "deposit     {}", sums.deposit)?;
                writeln!(out, "spent       {}", sums.spent)?;
                writeln!(out, "reserved    {}", sums.reserved)?;
                writeln!(out, "available   {}", sums.available())?;
                let (ends, end) = if sums.closed { ("closed", "ended") } else { ("open", "ends") };
                writeln!(out, "{end:<11} {} ({ends})", Date(sums.expiry))?;
                if let Some(amount) = channel.unfinished_top_up() {
                    writeln!(
                        out,
                        "top-up      of {amount}, not known to have ended: the same `ncn channel topup` goes on with it"
                    )?;
                }
                match on_chain {
                    Some(Some(known)) => {
                        let state = if known.open { "open" } else { "closed" };
                        writeln!(out, "on chain    {state}, deposit {}, settled {}", known.deposit, known.settled)?;
                    }
                    Some(None) => writeln!(out, "on chain    not opened")?,
                    None => {}
                }
            }
            Command::Topup { file, chain, key, amount, days } => {
                if amount.is_zero() && days.is_none() {
                    return Err(Failure::Input("nothing to do: give --amount, or --days, or both".into()));
                }
                let channel = open_file(&file.channel)?;
                let ledger = chain.ledger(key.open()?).await?;
                if channel.unfinished_top_up() == Some(*amount) {
                    writeln!(out, "an earlier top-up of {amount} is not known to have ended: going on with it")?;
                }
                let funded = channel.top_up(*amount, days.map(days_of), &ledger).await;
                let (deposit, funded) = funded.map_err(|error| match error {
                    ClientError::Configuration { setting: "lasts", problem } => Failure::Input(format!("--days: {problem}")),
                    error => error.into(),
                })?;
                writeln!(out, "channel {} has a deposit of {deposit}: {funded}", channel.terms().id())?;
            }
            Command::Close { file, chain, key, gateway } => {
                let channel = open_file(&file.channel)?;
                let ledger = chain.ledger(key.open()?).await?;
                let gateway = gateway.as_deref().map(account::gateway).transpose()?;
                let (back, closed) = channel.close(&ledger, gateway.as_deref()).await?;
                writeln!(out, "closed channel {}, {back} came back: {closed}", channel.terms().id())?;
            }
        }
        Ok(())
    })
}

const fn days_of(days: u64) -> Duration {
    Duration::from_hours(days * 24)
}
