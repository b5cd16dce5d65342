//! `ncn network`: what receipts are checked against, and what to pin.

use std::{fs, io::Write as _, path::PathBuf};

use ncn_core::{B256, TrustRoot};
use serde_json::json;

use crate::{
    Failure,
    account::{ChainArguments, gateway},
    block_on, sanitize,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    chain: ChainArguments,
    /// Without a chain, the gateway that states it, unproven
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:50051")]
    gateway: String,
    /// Write it into this file, for `ncn verify --trust-root`
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Whether this is the network that a hash pins: it and its validators now, or its contracts alone. The latter says nothing of the validators:
/// it takes a chain that does.
pub(crate) fn is_pinned(pin: B256, by_chain: bool, trust: &TrustRoot) -> bool {
    pin == trust.hash() || by_chain && pin == trust.contracts_hash()
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let (trust, stated) = if arguments.chain.is_given() {
            let ledger = arguments.chain.ledger(ncn_devnet::well_known_key("reader", 0)).await?;
            (ledger.trust_root().await.map_err(Failure::failed)?, "")
        } else {
            let network = gateway(&arguments.gateway)?.network().await.map_err(Failure::failed)?;
            (network.trust_root, " (as the gateway states it: compare)")
        };
        trust.validate().map_err(Failure::failed)?;
        if let Some(path) = &arguments.save {
            let text = serde_json::to_string_pretty(&trust).map_err(Failure::failed)? + "\n";
            let refuse = |error| Failure::Input(format!("--save {}: {error}", sanitize(&path.display().to_string())));
            fs::write(path, text).map_err(refuse)?;
        }
        let mut out = std::io::stdout().lock();
        if arguments.json {
            let all = json!({ "network": trust.hash(), "contracts": trust.contracts_hash(), "trust_root": trust });
            return Ok(writeln!(out, "{all:#}")?);
        }
        writeln!(out, "network     {}{stated}", trust.hash())?;
        writeln!(out, "contracts   {}", trust.contracts_hash())?;
        writeln!(out, "chain       {}", trust.domain.chain_id)?;
        writeln!(out, "payment     {}", trust.domain.contract)?;
        writeln!(out, "channels    {}", trust.channels)?;
        writeln!(out, "token       {}", trust.token)?;
        writeln!(out, "treasury    {}", trust.treasury)?;
        writeln!(out, "quorum      {} of {}", trust.threshold, trust.committee_size)?;
        for validator in &trust.validators {
            writeln!(out, "validator   {validator}")?;
        }
        writeln!(
            out,
            "\nto pin: --network {} with --rpc, which stays the same when validators join or leave;",
            trust.contracts_hash()
        )?;
        Ok(writeln!(out, "        --network {} without a chain, until the validators change", trust.hash())?)
    })
}
