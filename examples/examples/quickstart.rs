use ncn_client::core::Value;
use ncn_devnet::LocalNetwork;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    ncn_executor::worker::init();
    let network = LocalNetwork::start().await?;
    let client = network.client().await?.build()?;
    let image = std::fs::read("examples/data/7.png")?;
    let answer = client.infer("digits", [("image", Value::png(image))]).await?;
    println!("{} (paid {}, receipt verified)", answer.output.text("label").unwrap_or("?"), answer.receipt.payments.total);
    Ok(())
}
