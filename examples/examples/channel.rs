//! Pays for many requests out of one deposit: no transaction a request, one settlement for all of them.
use std::sync::Arc;

use anyhow::Result;
use ncn_client::core::{B256, ChannelParams, Transport as _, Value};
use ncn_client::{ChannelPayer, Client, PayerChannel, grpc::GrpcTransport, unix_now};
use ncn_devnet::LocalNetwork;

#[tokio::main]
async fn main() -> Result<()> {
    ncn_executor::worker::init(); // models run in worker processes of this same program
    let network = LocalNetwork::start().await?;
    let signer = ncn_devnet::well_known_key("client", 0);
    let deposit = "1000000000000000000".parse()?;
    network.funder().transfer(signer.address(), deposit).await?;

    // One transaction opens the channel. What is not spent comes back after a week, or as soon as the gateway agrees.
    let transport = Arc::new(GrpcTransport::new(&network.gateway_url())?);
    let info = transport.network().await?;
    let terms = ChannelParams { client: signer.address(), gateway: info.gateway, salt: B256::random() };
    let expiry = unix_now() + 7 * 24 * 60 * 60;
    network.ledger(signer.clone()).fund_channel(&terms, deposit, expiry).await?;

    // From here on the client needs no chain: it signs vouchers.
    let channel = Arc::new(PayerChannel::new(terms, deposit, expiry));
    let payer = ChannelPayer::new(transport.clone(), info.trust_root, signer.clone(), channel.clone());
    let client = Client::builder().transport(transport).payer(Arc::new(payer)).signer(signer).max_price(deposit).build()?;
    for digit in 1..=3 {
        let image = Value::png(std::fs::read(format!("examples/data/{digit}.png"))?);
        let answer = client.infer("digits", [("image", image)]).await?;
        println!("{}", answer.output.text("label").unwrap_or_default());
    }
    println!("spent {} of {}", channel.sums().spent, channel.sums().deposit);
    Ok(())
}
