//! `ncn validator`: the stake behind a validator's word.

use std::io::Write as _;

use ncn_core::{Address, Amount, Date};

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments, address, tokens},
    block_on,
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Stake tokens and become a validator, or add to the stake
    Stake {
        #[command(flatten)]
        chain: ChainArguments,
        #[command(flatten)]
        key: KeyArguments,
        /// How many
        #[arg(long, value_name = "TOKENS", value_parser = tokens)]
        amount: Amount,
    },
    /// Stop being a validator; the stake can be withdrawn after a delay
    Unstake {
        #[command(flatten)]
        chain: ChainArguments,
        #[command(flatten)]
        key: KeyArguments,
    },
    /// Have the stake back, once the delay after `unstake` is over
    Withdraw {
        #[command(flatten)]
        chain: ChainArguments,
        #[command(flatten)]
        key: KeyArguments,
    },
    /// Show a validator's stake, or all active validators
    Status {
        #[command(flatten)]
        chain: ChainArguments,
        /// One validator
        #[arg(long, value_name = "ADDRESS", value_parser = address)]
        validator: Option<Address>,
    },
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    block_on(async {
        let mut out = std::io::stdout();
        match command {
            Command::Stake { chain, key, amount } => {
                let ledger = chain.ledger(key.open()?).await?;
                let transaction = ledger.stake(*amount).await.map_err(Failure::failed)?;
                let stake = ledger.stake_of(ledger.account()).await.map_err(Failure::failed)?;
                writeln!(out, "{} has {} at stake: {transaction}", ledger.account(), stake.amount)?;
            }
            Command::Unstake { chain, key } => {
                let ledger = chain.ledger(key.open()?).await?;
                let transaction = ledger.unstake().await.map_err(Failure::failed)?;
                let stake = ledger.stake_of(ledger.account()).await.map_err(Failure::failed)?;
                let when = Date(stake.withdrawable_at.unwrap_or_default());
                writeln!(out, "{} has left; {} can be withdrawn from {when} on: {transaction}", ledger.account(), stake.amount)?;
            }
            Command::Withdraw { chain, key } => {
                let ledger = chain.ledger(key.open()?).await?;
                let transaction = ledger.withdraw_stake().await.map_err(Failure::failed)?;
                writeln!(out, "{} has its stake back: {transaction}", ledger.account())?;
            }
            Command::Status { chain, validator } => {
                let ledger = chain.ledger(ncn_devnet::well_known_key("reader", 0)).await?;
                let trust = ledger.trust_root().await.map_err(Failure::failed)?;
                let sanitize = validator.map_or_else(|| trust.validators.clone(), |validator| vec![validator]);
                let minimum = ledger.minimum_stake().await.map_err(Failure::failed)?;
                writeln!(
                    out,
                    "{} of {} validators approve a request; {minimum} is the least stake",
                    trust.threshold, trust.committee_size
                )?;
                for account in sanitize {
                    let stake = ledger.stake_of(account).await.map_err(Failure::failed)?;
                    let state = match (stake.active, stake.withdrawable_at) {
                        (true, _) => "active".to_owned(),
                        (false, Some(when)) => format!("leaving, from {} on", Date(when)),
                        (false, None) => "no validator".to_owned(),
                    };
                    writeln!(out, "  {account} {} {state}", stake.amount)?;
                }
            }
        }
        Ok(())
    })
}
