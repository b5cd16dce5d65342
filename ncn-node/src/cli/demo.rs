//! `ncn demo`: the whole network, once.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use alloy_primitives::Address;
use ncn_client::{Answer, ClientError};
use ncn_core::{Amount, Confinement, PaymentLedger as _, Recipient, Value};
use ncn_node::devnet::{LocalNetwork, quickstart};
use serde_json::json;

use super::Failure;

/// The largest input file that is read.
const MAX_INPUT_BYTES: u64 = 8 << 20;

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
    let inputs = [("image", Value::png(image))].into();
    let model = quickstart::model().map_err(Failure::failed)?;
    model.manifest().prepare(&inputs).map_err(|error| Failure::from(ClientError::from(error)))?;
    // Only opened: a receipt that is there already stays until there is a new one.
    File::options()
        .append(true)
        .create(true)
        .open(&arguments.receipt)
        .map_err(|error| Failure::Input(format!("--receipt: cannot write {}: {error}", arguments.receipt.display())))?;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let started = Instant::now();
        let network = LocalNetwork::start().await.map_err(Failure::failed)?;
        note(&format!(
            "network up in {} ms: chain, registry, {} validators, gateway, {} compute nodes",
            started.elapsed().as_millis(),
            network.validator_addresses().len(),
            network.compute_addresses().len()
        ));
        note(match network.confinement() {
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
        fs::write(&arguments.receipt, answer.receipt.to_json() + "\n")?;
        if arguments.json {
            print_json(&answer, &arguments.receipt)
        } else {
            print_text(&answer, &accounts, &balances, &payer, &arguments.receipt)
        }
    })
}

fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let refuse = |problem: String| Failure::Input(format!("--input {}: {problem}", path.display()));
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| refuse(error.to_string()))?;
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        return Err(refuse(format!("has more than {MAX_INPUT_BYTES} bytes; give a PNG of 8x8 pixels")));
    }
    Ok(bytes)
}

#[allow(clippy::print_stderr, reason = "progress")]
fn note(text: &str) {
    eprintln!("{text}");
}

async fn balance(network: &LocalNetwork, owner: Address) -> Result<Amount, Failure> {
    network.treasurer().balance(owner).await.map_err(Failure::failed)
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
fn check_balances(answer: &Answer, balances: &BTreeMap<Address, Balance>, payer: &Balance) -> Result<(), Failure> {
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

fn role_name(role: Recipient) -> &'static str {
    match role {
        Recipient::Compute => "compute",
        Recipient::Gateway => "gateway",
        Recipient::Validator => "validator",
        Recipient::Treasury => "treasury",
    }
}

fn print_json(answer: &Answer, receipt: &Path) -> Result<(), Failure> {
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
                "took_ms": report.took.as_secs_f64() * 1_000.0,
            })
        })
        .collect();
    let payments: Vec<_> = answer
        .receipt
        .payments
        .payouts
        .iter()
        .map(|payout| json!({ "role": role_name(payout.role), "address": payout.address, "amount": payout.amount }))
        .collect();
    let all = json!({
        "output": answer.output.to_json(),
        "steps": steps,
        "payments": payments,
        "total": answer.receipt.payments.total,
        "receipt": fs::canonicalize(receipt)?,
    });
    Ok(writeln!(io::stdout(), "{all:#}")?)
}

fn print_text(
    answer: &Answer,
    accounts: &Accounts,
    balances: &BTreeMap<Address, Balance>,
    payer: &Balance,
    receipt: &Path,
) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "request {}\n", answer.receipt.request_id())?;
    for report in &answer.steps {
        let (number, name) = (report.step as u8, report.step.to_string());
        let milliseconds = report.took.as_secs_f64() * 1_000.0;
        writeln!(out, "{number:>3}  {name:<14} {:<12} {milliseconds:>9.2} ms", accounts.name(report.actor))?;
    }
    writeln!(out, "\nresult")?;
    for (name, value) in answer.output.iter() {
        match value {
            Value::Text(text) => writeln!(out, "  {name}: {text}")?,
            Value::Tensor(tensor) => match tensor.to_f32() {
                Ok(values) => {
                    let values: Vec<_> = values.iter().map(|value| format!("{value:.4}")).collect();
                    writeln!(out, "  {name}: [{}]", values.join(", "))?;
                }
                Err(_) => writeln!(out, "  {name}: {tensor:?}")?,
            },
            other => writeln!(out, "  {name}: {} bytes", other.size())?,
        }
    }
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
    writeln!(out, "receipt {} (check it: ncn verify {0})", receipt.display())?;
    Ok(())
}
