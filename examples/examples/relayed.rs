//! Pays without a chain: the client signs, the gateway brings the payment to the chain.
use std::sync::Arc;

use anyhow::{Result, ensure};
use ncn_client::core::{Amount, Transport as _, Value};
use ncn_client::{Client, Payment, grpc::GrpcTransport};
use ncn_devnet::LocalNetwork;

#[tokio::main]
async fn main() -> Result<()> {
    ncn_executor::worker::init(); // models run in worker processes of this same program
    let network = LocalNetwork::start().await?;
    let signer = ncn_devnet::well_known_key("client", 0);
    network.funder().transfer(signer.address(), Amount::TOKEN).await?;

    let transport = Arc::new(GrpcTransport::new(&network.gateway_url())?);
    // The gateway states its network; whether to trust it is for the client to know. Here the network says so itself.
    let trust = transport.network().await?.trust_root;
    ensure!(trust == network.trust_root().await?, "the gateway is of another network");

    let client = Client::builder().transport(transport).payment(Payment::Relayed).trust(trust).signer(signer);
    let client = client.max_price(Amount::TOKEN).build()?;
    let image = Value::png(std::fs::read("examples/data/7.png")?);
    let answer = client.infer("digits", [("image", image)]).await?;
    println!("{} (paid {})", answer.output.text("label").unwrap_or_default(), answer.receipt.payments.total);
    Ok(())
}
