//! `ncn demo`: the whole network, once.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use alloy_primitives::Address;
use ncn_client::InferenceOutput;
use ncn_core::{Amount, Confinement, Value, Values};
use ncn_devnet::{LocalNetwork, quickstart};
use ncn_executor::sandbox::SandboxMode;
use serde_json::json;

use crate::{
    Failure, block_on,
    files::{ReceiptFile, read_input},
    output::{Written, print_output},
    sanitize, say,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A PNG image of a handwritten digit, 8x8 pixels; a built-in one by default
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Where to write the receipt
    #[arg(long, value_name = "PATH", default_value = "ncn-receipt.json")]
    receipt: PathBuf,
    /// How much confinement of models is insisted on: strict, reduced, permissive or disabled
    #[arg(long, value_name = "MODE", default_value_t)]
    sandbox: SandboxMode,
}

/// What an account had, and has.
struct Balance {
    before: Amount,
    after: Amount,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    // Everything that can be wrong with the arguments is found before anything is started.
    let image = match &arguments.input {
        Some(path) => read_input(path)?,
        None => quickstart::SAMPLE.to_vec(),
    };
    let inputs: Values = [("image", Value::png(image))].into();
    let model = quickstart::model().map_err(Failure::failed)?;
    let named = |problem: String| match &arguments.input {
        Some(path) => Failure::Input(format!("--input {}: {problem}", path.display())),
        None => Failure::Failed(problem),
    };
    model.manifest().check(&inputs).map_err(|error| named(error.problem))?;
    let target = ReceiptFile::prepare(&arguments.receipt, arguments.input.as_deref().into_iter())?;

    block_on(perform(arguments, inputs, target))
}

async fn perform(arguments: &Arguments, inputs: Values, target: ReceiptFile) -> Result<(), Failure> {
    let started = Instant::now();
    let network = LocalNetwork::builder().sandbox(arguments.sandbox).start().await.map_err(Failure::failed)?;
    say(&format!(
        "network up in {} ms: chain, {} registry nodes, {} validators, gateway, {} compute nodes",
        started.elapsed().as_millis(),
        network.registry_urls().len(),
        network.validator_addresses().len(),
        network.compute_addresses().len()
    ));
    say(match network.confinement() {
        Confinement::None => "WARNING: models run unconfined, this system cannot confine them: for development only",
        Confinement::Reduced => "models run confined: files, network, system calls and resources (level: reduced)",
        Confinement::Full => "models run confined by every layer (level: full)",
    });
    let client = network.client().await.map_err(Failure::failed)?.build()?;
    let accounts = Accounts::of(&network);
    let before = accounts.balances(&network).await?;
    let quoted = client.submit(ncn_client::Order::new(quickstart::NAME, inputs)).await?;
    let payer = quoted.quote().client;
    let payer_before = balance(&network, payer).await?;
    let answer = quoted.pay().await?.finish().await?;
    let after = accounts.balances(&network).await?;
    let payer = Balance { before: payer_before, after: balance(&network, payer).await? };

    let balances: BTreeMap<Address, Balance> = before
        .into_iter()
        .zip(after.into_values())
        .map(|((address, before), after)| (address, Balance { before, after }))
        .collect();
    check_balances(&answer, &balances, &payer)?;
    target.write(&answer.receipt)?;
    if arguments.json {
        print_json(&answer, &arguments.receipt)
    } else {
        print_text(&answer, &accounts, &balances, &payer, &arguments.receipt)
    }
}

async fn balance(network: &LocalNetwork, owner: Address) -> Result<Amount, Failure> {
    network.funder().balance(owner).await.map_err(Failure::failed)
}

/// Everyone but the client, with a name for people.
struct Accounts(BTreeMap<Address, String>);

impl Accounts {
    fn of(network: &LocalNetwork) -> Self {
        let numbered = |what: &'static str, addresses: Vec<Address>| {
            addresses.into_iter().enumerate().map(move |(index, address)| (address, format!("{what} {}", index + 1)))
        };
        let one = [(network.gateway_address(), "gateway".to_owned()), (network.treasury(), "treasury".to_owned())];
        let all =
            numbered("validator", network.validator_addresses()).chain(numbered("compute", network.compute_addresses())).chain(one);
        Self(all.collect())
    }

    async fn balances(&self, network: &LocalNetwork) -> Result<BTreeMap<Address, Amount>, Failure> {
        let mut balances = BTreeMap::new();
        for address in self.0.keys() {
            balances.insert(*address, balance(network, *address).await?);
        }
        Ok(balances)
    }

    fn name(&self, address: Address) -> &str {
        self.0.get(&address).map_or("client", String::as_str)
    }
}

/// The chain's word against the receipt's: everyone got what the receipt says, and the client paid the sum of it.
fn check_balances(answer: &InferenceOutput, balances: &BTreeMap<Address, Balance>, payer: &Balance) -> Result<(), Failure> {
    let wrong = |what: String| Err(Failure::Failed(format!("the chain's balances contradict the receipt: {what}")));
    for (address, Balance { before, after }) in balances {
        let paid = answer.receipt.payments.payouts.iter().filter(|payout| payout.address == *address);
        let paid = Amount::checked_sum(paid.map(|payout| payout.amount));
        if paid.is_none() || after.checked_sub(*before) != paid {
            return wrong(format!("{address} had {before} and has {after}"));
        }
    }
    let sum = Amount::checked_sum(answer.receipt.payments.payouts.iter().map(|payout| payout.amount));
    if sum != Some(answer.receipt.payments.total) || payer.before.checked_sub(payer.after) != sum {
        return wrong(format!("the client had {} and has {}", payer.before, payer.after));
    }
    Ok(())
}

/// To the microsecond, which is what is measured.
fn milliseconds(took: Duration) -> f64 {
    u32::try_from(took.as_micros()).map_or(f64::MAX, f64::from) / 1_000.0
}

fn print_json(answer: &InferenceOutput, receipt: &Path) -> Result<(), Failure> {
    let quote = &answer.receipt.quote;
    let actor = |address: Address| match address {
        address if address == quote.client => "client",
        address if address == quote.gateway => "gateway",
        _ => "compute",
    };
    let steps: Vec<_> = answer
        .steps
        .iter()
        .map(|report| {
            json!({
                "name": report.step,
                "actor": actor(report.actor),
                "took_ms": milliseconds(report.took),
            })
        })
        .collect();
    let payments: Vec<_> = answer
        .receipt
        .payments
        .payouts
        .iter()
        .map(|payout| json!({ "role": payout.role, "address": payout.address, "amount": payout.amount }))
        .collect();
    let all = json!({
        "output": answer.output.to_json(),
        "steps": steps,
        "payments": payments,
        "total": answer.receipt.payments.total,
        "receipt": fs::canonicalize(receipt).unwrap_or_else(|_| receipt.to_path_buf()).to_string_lossy(),
    });
    Ok(writeln!(io::stdout(), "{all:#}")?)
}

fn print_text(
    answer: &InferenceOutput,
    accounts: &Accounts,
    balances: &BTreeMap<Address, Balance>,
    payer: &Balance,
    receipt: &Path,
) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "request {}\n", answer.receipt.request_id())?;
    for report in &answer.steps {
        let (number, name) = (report.step as u8, report.step.to_string());
        let took = milliseconds(report.took);
        writeln!(out, "{number:>3}  {name:<14} {:<12} {took:>9.2} ms", accounts.name(report.actor))?;
    }
    writeln!(out, "\nresult")?;
    print_output(&mut out, &answer.output, &Written::new())?;
    writeln!(out, "\n{:<12} {:<42} {:>24} {:>24}", "paid", "address", "before", "after")?;
    let mut line = |name: &str, address: Address, balance: &Balance| {
        writeln!(out, "{name:<12} {address} {:>24} {:>24}", balance.before.to_string(), balance.after.to_string())
    };
    line("client", answer.receipt.quote.client, payer)?;
    for payout in &answer.receipt.payments.payouts {
        if let Some(balance) = balances.get(&payout.address) {
            line(accounts.name(payout.address), payout.address, balance)?;
        }
    }
    writeln!(
        out,
        "\ntotal {} ({} base units), paid out to the unit",
        answer.receipt.payments.total,
        answer.receipt.payments.total.units()
    )?;
    writeln!(out, "receipt {0} (check it: ncn verify {0})", sanitize(&receipt.display().to_string()))?;
    Ok(())
}
