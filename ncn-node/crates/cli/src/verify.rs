//! `ncn verify`: a receipt, offline.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use ncn_core::{
    Continuation, Receipt, TrustRoot, Unit, Units,
    receipt::{MAX_RECEIPT_BYTES, Payment},
};

use crate::{Failure, files::read_within};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The receipt, as `ncn demo` or a client wrote it
    #[arg(value_name = "RECEIPT.json")]
    receipt: PathBuf,
    /// The network to trust, as JSON; by default the one that the receipt states, whose hash is then yours to compare
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let json = read(&arguments.receipt)?;
    let name = arguments.receipt.display();
    let receipt = Receipt::from_json(&json).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    match &arguments.trust_root {
        Some(path) => {
            let refuse = |problem: String| Failure::Input(format!("--trust-root {}: {problem}", path.display()));
            let trust: TrustRoot = serde_json::from_slice(&read(path)?).map_err(|error| refuse(error.to_string()))?;
            trust.validate().map_err(|error| refuse(error.to_string()))?;
            receipt.verify(&trust)
        }
        None => receipt.verify_self_consistent(),
    }
    .map_err(|error| Failure::Failed(format!("{name}: {error}")))?;

    let mut out = io::stdout().lock();
    let trusted = if arguments.trust_root.is_some() { "trusted" } else { "as the receipt states it: compare" };
    let order = &receipt.request.message;
    writeln!(out, "valid receipt")?;
    writeln!(out, "  request     {}", receipt.request_id())?;
    writeln!(out, "  network     {} ({trusted})", receipt.trust_root.hash())?;
    writeln!(out, "  client      {}", order.client)?;
    writeln!(out, "  gateway     {}", receipt.quote.gateway)?;
    for (result, contribution) in receipt.delivery.results.iter().zip(&receipt.completion.contributions) {
        let (result, cost) = (&result.message, contribution.cost);
        let goes_on = match result.continuation {
            None => "",
            Some(Continuation::Rerun) => ", goes on with the same output",
            Some(Continuation::Context) => ", goes on with what was there as context",
        };
        writeln!(out, "  compute     {} (confinement: {}) for {cost}{goes_on}", result.compute, result.confinement)?;
    }
    writeln!(out, "  model       {}", order.model_digest)?;
    writeln!(out, "  input       {}", order.input_hash)?;
    if let Some(last) = receipt.delivery.last() {
        let bytes = last.output_bytes;
        writeln!(out, "  output      {} ({bytes} bytes, finish: {})", last.output_hash, receipt.completion.finish)?;
    }
    writeln!(out, "  usage       {}", usage(&receipt))?;
    writeln!(out, "  price       {}", receipt.quote.price)?;
    writeln!(out, "  cost        {} of at most {}", receipt.cost(), receipt.quote.total)?;
    let (before, after) = (receipt.preprocessing.approvals().len(), receipt.approvals.approvals().len());
    let committee = receipt.trust_root.committee_size;
    writeln!(out, "  approvals   {before} of {committee} before payment, {after} of {committee} after")?;
    let total = receipt.payments.total;
    match &receipt.payment {
        Payment::Escrow { transaction, settlement } => {
            writeln!(out, "  paid        {total} by {transaction}")?;
            writeln!(out, "  settled     {settlement}")?;
        }
        Payment::Channel(payment) => {
            writeln!(out, "  paid        {total} out of channel {}", payment.voucher.channel)?;
            writeln!(out, "  settled     with a batch of the channel")?;
        }
    }
    Ok(())
}

/// What a request took, in its price's units: `12 tokens in, 30 tokens out`.
pub(crate) fn usage(receipt: &Receipt) -> String {
    let Units { input, output } = receipt.usage().units();
    let count = |count: u64, unit: Unit| match (count, unit) {
        (1, unit) => format!("1 {unit}"),
        (count, Unit::Second) => format!("{count} seconds of audio"),
        (count, unit) => format!("{count} {unit}s"),
    };
    let price = &receipt.quote.price;
    format!("{} in, {} out", count(input, price.input.unit), count(output, price.output.unit))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let refuse = |problem: String| Failure::Input(format!("cannot read {}: {problem}", path.display()));
    let read = read_within(path, MAX_RECEIPT_BYTES).map_err(|error| refuse(error.to_string()))?;
    let mut bytes = read.ok_or_else(|| refuse(format!("it has more than {MAX_RECEIPT_BYTES} bytes")))?;
    // Some editors put a mark before what they save.
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    Ok(bytes)
}
