//! `ncn quote`: what a request would cost, by an order that is never paid.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use alloy_signer_local::PrivateKeySigner;
use ncn_client::{Client, Order, RelayedPayer};
use ncn_core::{B256, DynSigner, Payer};
use serde_json::json;

use crate::{
    Failure,
    account::{ChainArguments, gateway},
    block_on,
    infer::{on_chain, trusted},
    inputs::{InputArguments, ParsedInputs},
    sanitize, say,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The gateway
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:50051")]
    gateway: String,
    #[command(flatten)]
    chain: ChainArguments,
    /// The hash of the network to trust, where no chain says it
    #[arg(long, value_name = "HASH")]
    network: Option<B256>,
    /// The model's name
    #[arg(long, value_name = "NAME")]
    model: String,
    #[command(flatten)]
    inputs: InputArguments,
    /// The model's parameters, as a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    parameters: String,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let given = arguments.inputs.read()?;
    block_on(quote(arguments, given))
}

async fn quote(arguments: &Arguments, given: ParsedInputs) -> Result<(), Failure> {
    let transport = gateway(&arguments.gateway)?;
    // A fresh key has no tokens: the order cannot be paid, whatever becomes of it.
    let signer: DynSigner = Arc::new(PrivateKeySigner::random());
    let payer: Arc<dyn Payer> = if arguments.chain.is_given() {
        on_chain(&arguments.chain, arguments.network, &*transport, &signer).await?
    } else {
        let trust = trusted(arguments.network, false, &*transport).await?;
        Arc::new(RelayedPayer::new(transport.clone(), trust, signer.clone()))
    };
    let client = Client::builder().transport(transport).payer(payer).signer(signer).build()?;
    let inputs = given.inputs(&client.model(&arguments.model).await?.model)?;
    let order = Order::new(&arguments.model, inputs).parameters(&arguments.parameters);
    let estimate = client.estimate(&order).await?;
    let quoted = client.submit(order).await?;
    let quote = quoted.quote().clone();
    let withdrawn = quoted.cancel().await;
    let mut out = io::stdout().lock();
    if arguments.json {
        let all = json!({
            "model": arguments.model,
            "digest": quote.model_digest,
            "price": quote.price,
            "max_units": quote.max_units,
            "total": quote.total,
            "typical": estimate.typical,
            "gateway": quote.gateway,
            "compute": quote.compute,
            "network": quote.trust_root,
            "withdrawn": withdrawn.is_ok(),
        });
        writeln!(out, "{all:#}")?;
    } else {
        writeln!(out, "model       {}", sanitize(&arguments.model))?;
        writeln!(out, "price       {}", quote.price)?;
        if !quote.price.is_flat() {
            writeln!(out, "at most     {}", quote.total)?;
            writeln!(out, "typically   {}", estimate.typical)?;
        }
        writeln!(out, "gateway     {}", quote.gateway)?;
        writeln!(out, "compute     {}", quote.compute)?;
        writeln!(out, "network     {}", quote.trust_root)?;
    }
    match withdrawn {
        Ok(()) => say("the order was withdrawn; nothing was paid"),
        Err(error) => say(&sanitize(&format!("nothing was paid; the order was not withdrawn and lapses within a minute: {error}"))),
    }
    Ok(())
}
