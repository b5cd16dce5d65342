//! `ncn verify`: a receipt, offline.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use ncn_core::{
    B256, Continuation, Payer, Receipt, TrustRoot, Unit, Units,
    receipt::{MAX_RECEIPT_BYTES, Payment},
};

use crate::{Failure, account::ChainArguments, block_on, files::read_within, network::is_pinned, output, sanitize};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The receipt, as `ncn demo` or a client wrote it
    #[arg(value_name = "RECEIPT.json")]
    receipt: PathBuf,
    /// The network to trust, as JSON; by default the one that the receipt states, whose hash is then yours to compare
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// The hash of the network to trust, as `ncn network` shows it; with --rpc, that of its contracts
    #[arg(long, value_name = "HASH", conflicts_with = "trust_root")]
    network: Option<B256>,
    /// Have the chain say whether the network was this one when the request was quoted: its JSON-RPC endpoint. Without it, nothing is asked
    #[arg(long, value_name = "URL", value_delimiter = ',', conflicts_with = "trust_root")]
    rpc: Vec<String>,
    /// Where the network's contracts are on that chain; those of `ncn devnet` by default
    #[arg(long, value_name = "FILE", requires = "rpc")]
    contracts: Option<PathBuf>,
    /// The directory with the output that the receipt is to be of, as `ncn infer --output` wrote it
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let json = read(&arguments.receipt)?;
    let name = arguments.receipt.display();
    let receipt = Receipt::from_json(&json).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    let refuse = |problem: String| Failure::Failed(format!("{name}: {problem}"));
    let trust = trust(arguments, &receipt)?;
    let verified = trust.as_ref().map_or_else(|| receipt.verify_self_consistent(), |trust| receipt.verify(trust));
    verified.map_err(|error| refuse(error.to_string()))?;
    if let Some(directory) = &arguments.output {
        let output = output::read(directory)?;
        let last = receipt.delivery.last().ok_or_else(|| refuse("is of no output".into()))?;
        let differs = |_| refuse(format!("is not of the output in {}", sanitize(&directory.display().to_string())));
        last.fits_output(&output).map_err(differs)?;
    }

    let mut out = io::stdout().lock();
    let trusted = if trust.is_some() { "trusted" } else { "as the receipt states it: compare" };
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

/// What the receipt is checked against, where something says it.
fn trust(arguments: &Arguments, receipt: &Receipt) -> Result<Option<TrustRoot>, Failure> {
    if let Some(path) = &arguments.trust_root {
        let refuse = |problem: String| Failure::Input(format!("--trust-root {}: {problem}", path.display()));
        let trust: TrustRoot = serde_json::from_slice(&read(path)?).map_err(|error| refuse(error.to_string()))?;
        trust.validate().map_err(|error| refuse(error.to_string()))?;
        return Ok(Some(trust));
    }
    let chain = ChainArguments::at(arguments.rpc.clone(), arguments.contracts.clone());
    let by_chain = chain.is_given();
    let pinned = arguments.network.is_none_or(|pin| is_pinned(pin, by_chain, &receipt.trust_root));
    let (stated, contracts) = (receipt.trust_root.hash(), receipt.trust_root.contracts_hash());
    if !pinned {
        let problem = format!("--network: the receipt is of network {stated}, whose contracts are {contracts}");
        let hint = if by_chain { "" } else { "; to pin the contracts alone, add --rpc" };
        return Err(Failure::Failed(problem + hint));
    }
    if !by_chain {
        return Ok(arguments.network.map(|_| receipt.trust_root.clone()));
    }
    // Of the network as it was when the request was quoted: validators may have joined or left since.
    let mut valid = None;
    block_on(async {
        let ledger = chain.ledger(ncn_devnet::well_known_key("reader", 0)).await?;
        let history = Payer::trust(&ledger, receipt.quote.epoch).await.map_err(Failure::failed)?;
        let of = history.of(&receipt.quote);
        let (trust, _) = of.map_err(|error| {
            let forgotten = "a chain forgets validators who have left and taken their stake";
            Failure::Failed(format!("the chain does not have the receipt's network: {error} ({forgotten})"))
        })?;
        valid = Some(trust);
        Ok(())
    })?;
    Ok(valid)
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
