//! A gateway and a compute node from their parts, on a network that is there already.
use std::{collections::HashSet, sync::Arc};

use anyhow::Result;
use ncn_client::core::{Amount, FeeSplit, Registry, Subnet, SubnetModel, Value};
use ncn_client::{Client, Payment, grpc::GrpcRegistry};
use ncn_devnet::{LocalNetwork, quickstart, well_known_key};
use ncn_executor::EngineExecutor;
use ncn_node::{
    compute::ComputeNode,
    gateway::Gateway,
    server::LOOPBACK,
    store::{MemoryStore, SharedStore},
};

#[tokio::main]
async fn main() -> Result<()> {
    ncn_executor::worker::init();
    // The chain, the registry and its validators. Its own gateway is not used.
    let network = LocalNetwork::start().await?;
    let url = network.registry_urls().into_iter().next().unwrap_or_default();
    let registry: Arc<dyn Registry> = Arc::new(GrpcRegistry::new(&url)?);
    let files = std::env::temp_dir().join(format!("ncn-example-{}", std::process::id()));
    std::fs::create_dir_all(&files)?;
    let package = quickstart::unpack(&files)?;

    // The gateway: its key has an account, with which it makes a subnet, and is paid.
    let key = well_known_key("my gateway", 0);
    let fee = Amount::new(10 * Amount::TOKEN.units());
    network.funder().transfer(key.address(), fee).await?;
    let account = network.ledger(key.clone());
    account.create_subnet("mine", fee).await?;
    let models = vec![SubnetModel::of(&package.model)];
    let (owner, split) = (key.address(), FeeSplit::default());
    let subnet = Subnet { owner, name: "mine".into(), gateways: Vec::new(), models, split, version: 1 };
    let store = SharedStore::new(MemoryStore::default())?;
    let gateway = Gateway::builder(key, subnet, Arc::new(account), registry.clone(), store)
        .manifests(vec![package.model.bytes().clone()])
        .listen(LOOPBACK)
        .start()
        .await?;
    let url = gateway.url().unwrap_or_default();

    // The compute node, which runs the model in its own process, and calls the gateway.
    let key = well_known_key("my node", 0);
    let chain = Arc::new(network.ledger(key.clone()));
    let (executor, subnet) = (Arc::new(EngineExecutor::built_in()), gateway.gateway().subnet_id());
    let node = ComputeNode::builder(key.clone(), subnet, executor, chain, registry).models(vec![package]);
    let node = node.gateway(gateway.gateway().address(), url.clone()).start().await?;
    while !gateway.gateway().attached().contains(&key.address()) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }

    let client_key = well_known_key("client", 0);
    network.funder().transfer(client_key.address(), Amount::TOKEN).await?;
    let client = Client::builder().gateway(url).payment(Payment::OnChain(network.ledger(client_key)));
    let client = client.max_price(Amount::TOKEN).build()?;
    let image = Value::png(std::fs::read("examples/data/7.png")?);
    let answer = client.infer("digits", [("image", image)]).await?;
    let served: HashSet<_> = answer.receipt.completion.contributions.iter().map(|part| part.compute).collect();
    println!("{} by my node: {}", answer.output.text("label").unwrap_or("?"), served.contains(&key.address()));
    node.shutdown().await;
    gateway.shutdown().await;
    std::fs::remove_dir_all(files)?;
    Ok(())
}
