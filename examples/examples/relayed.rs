//! Pays without a chain: the client signs, the gateway brings the payment to the chain.
use anyhow::Result;
use ncn_client::Client;
use ncn_client::core::{Amount, Value};
use ncn_devnet::LocalNetwork;

#[tokio::main]
async fn main() -> Result<()> {
    ncn_executor::worker::init(); // models run in worker processes of this same program
    let network = LocalNetwork::start().await?;
    let signer = ncn_devnet::well_known_key("client", 0);
    network.funder().transfer(signer.address(), Amount::TOKEN).await?;

    // Which network to trust is for the client to know: `ncn network` shows its hash. Here the network says so itself.
    let trusted = network.trust_root().await?.hash();
    let client = Client::connect(&network.gateway_url(), signer, trusted).await?.max_price(Amount::TOKEN).build()?;
    let image = Value::png(std::fs::read("examples/data/7.png")?);
    let answer = client.infer("digits", [("image", image)]).await?;
    println!("{} (paid {})", answer.output.text("label").unwrap_or_default(), answer.receipt.payments.total);
    Ok(())
}
