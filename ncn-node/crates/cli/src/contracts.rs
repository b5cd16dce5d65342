//! `ncn contracts`: a network's contracts on any chain.

use std::io::Write as _;

use ncn_client::evm::DeployParams;
use ncn_core::{Address, Amount};

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments, address, tokens},
    block_on,
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Put a network's contracts on a chain and print where they are, for --contracts
    Deploy(Deploy),
}

#[derive(clap::Args)]
pub(crate) struct Deploy {
    #[command(flatten)]
    chain: ChainArguments,
    #[command(flatten)]
    key: KeyArguments,
    /// Who gets the treasury's part of every payment; the deployer by default
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    treasury: Option<Address>,
    /// How many tokens there are; the deployer gets all of them
    #[arg(long, value_name = "TOKENS", value_parser = tokens, default_value = "1000000000")]
    supply: Amount,
    /// The least stake of a validator
    #[arg(long, value_name = "TOKENS", value_parser = tokens, default_value = "1000")]
    minimum_stake: Amount,
    /// How long a stake stays locked after its validator has left, in seconds; at least the default, 8 days
    #[arg(long, value_name = "SECONDS", default_value_t = 8 * 24 * 60 * 60, value_parser = clap::value_parser!(u64).range(8 * 24 * 60 * 60..))]
    unstake_delay: u64,
    /// How many validators have to approve a request
    #[arg(long, value_name = "M", default_value_t = 3)]
    threshold: u16,
    /// How many are asked about it
    #[arg(long, value_name = "N", default_value_t = 5)]
    committee: u16,
    /// What registering a subnet costs
    #[arg(long, value_name = "TOKENS", value_parser = tokens, default_value = "10")]
    subnet_fee: Amount,
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    let Command::Deploy(deploy) = command;
    block_on(async {
        let signer = deploy.key.open()?;
        let genesis = DeployParams {
            supply: deploy.supply,
            minimum_stake: deploy.minimum_stake,
            unstake_delay: deploy.unstake_delay,
            threshold: deploy.threshold,
            committee_size: deploy.committee,
            treasury: deploy.treasury.unwrap_or_else(|| signer.address()),
            subnet_fee: deploy.subnet_fee,
        };
        let ledger = genesis.deploy(deploy.chain.backend().await?, &signer).await.map_err(Failure::failed)?;
        let deployment = serde_json::to_string_pretty(&ledger.deployment()).map_err(Failure::failed)?;
        Ok(writeln!(std::io::stdout(), "{deployment}")?)
    })
}
