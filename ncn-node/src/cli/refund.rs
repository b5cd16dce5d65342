//! `ncn refund`: takes a payment back that nobody earned.

use std::{io::Write as _, path::PathBuf};

use ncn_core::{PaymentLedger as _, Quote};

use super::{
    Failure,
    account::{ChainArguments, KeyArguments},
    block_on,
    files::read_within,
};

/// A real one has about 700 bytes.
const MAX_BYTES: usize = 64 << 10;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What was paid, as `ncn infer` left it behind when a request did not come to its end
    #[arg(value_name = "FILE.unfinished")]
    quote: PathBuf,
    #[command(flatten)]
    chain: ChainArguments,
    #[command(flatten)]
    key: KeyArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let refuse = |problem: String| Failure::Input(format!("{}: {problem}", arguments.quote.display()));
    let json = read_within(&arguments.quote, MAX_BYTES).map_err(|error| refuse(error.to_string()))?;
    let json = json.ok_or_else(|| refuse(format!("is no quote: it has more than {MAX_BYTES} bytes")))?;
    let quote: Quote = serde_json::from_slice(&json).map_err(|error| refuse(format!("is no quote: {error}")))?;
    block_on(async {
        let ledger = arguments.chain.ledger(arguments.key.open()?).await?;
        let transaction = ledger.refund(&quote).await.map_err(Failure::failed)?;
        Ok(writeln!(std::io::stdout(), "{} came back to {}: {transaction}", quote.total, quote.client)?)
    })
}
