//! `ncn refund`: takes a payment back that nobody earned.

use std::{io::Write as _, path::PathBuf};

use ncn_core::{Date, PaymentStatus};

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments},
    block_on, typed,
    unfinished::{self, Kept, Means},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The request, as `ncn infer` left it behind when it did not come to its end
    #[arg(value_name = "FILE.unfinished")]
    file: PathBuf,
    #[command(flatten)]
    chain: ChainArguments,
    #[command(flatten)]
    key: KeyArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let file = typed(&arguments.file);
    let quote = match unfinished::read(&arguments.file)? {
        Kept::Quote(quote) => quote,
        Kept::Request(request) => match request.means {
            Means::Channel(channel) => {
                let problem = format!("is paid out of the channel in {channel}, which `ncn channel close` brings the rest back of");
                return Err(Failure::Input(format!("{file}: {problem}; `ncn fetch {file}` fetches the answer")));
            }
            Means::Transaction | Means::Relayed => request.stored.quote,
        },
    };
    block_on(async {
        let ledger = arguments.chain.ledger(arguments.key.open()?).await?;
        let mut out = std::io::stdout();
        match ledger.payment(quote.client, quote.request_id).await.map_err(Failure::failed)? {
            PaymentStatus::Earned { by } | PaymentStatus::PaidOut { by, .. } => {
                let fetch =
                    format!("`ncn fetch {file} {}` fetches its answer, as long as the gateway has it", arguments.key.flags());
                return Err(Failure::Failed(format!("the request was served, and paid out by {by}: {fetch}")));
            }
            // A block after the expiry makes sure that it will not be paid any more.
            PaymentStatus::Unpaid if ledger.now().await.map_err(Failure::failed)? > quote.expiry => {
                writeln!(out, "request {} was never paid, and its quote has expired", quote.request_id)?;
            }
            PaymentStatus::Unpaid => {
                return Err(Failure::Failed(format!(
                    "the chain shows no payment of {}, and has no block yet that is later than its expiry at {}: try again \
                     once it has one",
                    quote.request_id,
                    Date(quote.expiry)
                )));
            }
            PaymentStatus::Refunded { by } => {
                writeln!(out, "{} had come back to {} already: {by}", quote.total, quote.client)?;
            }
            PaymentStatus::Held { .. } | PaymentStatus::GivenUp { .. } => {
                let transaction = ledger.refund(&quote, None).await.map_err(Failure::failed)?;
                writeln!(out, "{} came back to {}: {transaction}", quote.total, quote.client)?;
            }
        }
        unfinished::end(&arguments.file);
        Ok(())
    })
}
