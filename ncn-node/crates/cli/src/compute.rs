//! `ncn compute`: a compute node of its own.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::Router;
use ncn_core::{Amount, ModelInfo};
use ncn_node::{
    compute::{ComputeNode, DEFAULT_CREDIT},
    node::{ComputeNodeError, RunningComputeNode},
    server::Server,
    store::{MemoryStore, SharedStore},
};

use crate::{
    Failure,
    account::{self, ChainArguments, KeyArguments, RegistryArguments, tokens},
    config::ConfigArguments,
    engines::{EngineArguments, ModelArguments},
    metrics::MetricsArguments,
    sanitize, say, serving, typed,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The gateways that it works for, all of one subnet
    #[arg(long, value_name = "URL[,URL..]", value_delimiter = ',', default_value = "http://127.0.0.1:50051")]
    gateway: Vec<String>,
    #[command(flatten)]
    registry: RegistryArguments,
    #[command(flatten)]
    chain: ChainArguments,
    #[command(flatten)]
    key: KeyArguments,
    #[command(flatten)]
    models: ModelArguments,
    #[command(flatten)]
    engines: EngineArguments,
    /// How many requests it runs or reserves capacity for at once
    #[arg(long, alias = "places", value_name = "REQUESTS", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    capacity: u16,
    /// The directory in which it keeps what it is owed until that is paid; without one, that is lost with the process
    #[arg(long, value_name = "DIRECTORY")]
    state: Option<PathBuf>,
    /// How many tokens it lets the gateway owe it out of channels, which nothing but the gateway's settlement pays; twice what a gateway
    /// settles at unless it is told. With 0 it takes no vouchers
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    credit: Option<Amount>,
    #[command(flatten)]
    metrics: MetricsArguments,
    #[command(flatten)]
    config: ConfigArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.config.check {
        return Ok(());
    }
    serving(
        start(arguments),
        async |(node, metrics)| {
            node.shutdown().await;
            drop(metrics);
        },
        true,
    )
}

async fn start(arguments: &Arguments) -> Result<(RunningComputeNode, Option<Server>), Failure> {
    let signer = arguments.key.open()?;
    let registry = arguments.registry.open()?;
    let ledger = Arc::new(arguments.chain.ledger(signer.clone()).await?);
    let trust = ledger.trust_root().await.map_err(Failure::failed)?;
    let mut gateways = Vec::new();
    let mut offered: Vec<ModelInfo> = Vec::new();
    for url in &arguments.gateway {
        let transport = account::gateway(url)?;
        let network = match transport.network().await {
            Ok(network) => network,
            // The others are served.
            Err(error) if arguments.gateway.len() > 1 => {
                say(&sanitize(&format!("--gateway {url}: is left out: {error}")));
                continue;
            }
            Err(error) => return Err(Failure::failed(error)),
        };
        if network.trust_root != trust {
            return Err(Failure::Failed(format!("--gateway {url}: is on another network than --rpc")));
        }
        let models = transport.models().await.map_err(Failure::failed)?;
        let Some(info) = models.first() else {
            return Err(Failure::Failed(format!("--gateway {url}: offers no models")));
        };
        if offered.first().is_some_and(|other| other.subnet != info.subnet) {
            return Err(Failure::Input(format!(
                "--gateway {url}: is of another subnet than the others: run a node for each subnet"
            )));
        }
        gateways.push((network.gateway, url));
        offered.extend(models);
    }
    let Some((subnet, first)) = offered.first().map(|info| info.subnet).zip(arguments.gateway.first()) else {
        return Err(Failure::Failed("--gateway: none of them answers".into()));
    };
    let packages = arguments.models.packages(Some(first)).await?;
    if packages.is_empty() {
        let names: Vec<_> = offered.iter().map(|info| info.model.manifest().name.as_str()).collect();
        return Err(Failure::Input(format!("--model is missing: the gateway offers: {}", sanitize(&names.join(", ")))));
    }
    for package in &packages {
        if !offered.iter().any(|info| info.model.digest() == package.model.digest()) {
            let (name, digest) = (&package.model.manifest().name, hex::encode(package.model.digest()));
            return Err(Failure::Input(format!(
                "--model {name}: the gateway does not offer it, with the digest {digest}: fetch what it offers with `ncn model pull \
                 {name} --gateway {first}`"
            )));
        }
    }

    let metrics = arguments.metrics.serve(Router::new(), || {})?;
    let executor = arguments.engines.executor(&packages).await?;
    let address = signer.address();
    let store = open_store(arguments.state.as_deref())?;
    let node = ComputeNode::builder(signer, subnet, executor, ledger.clone(), registry.clone()).models(packages);
    let node =
        node.capacity(arguments.capacity.into()).claims(ledger, registry, store).credit(arguments.credit.unwrap_or(DEFAULT_CREDIT));
    let node = gateways.iter().fold(node, |node, (gateway, url)| node.gateway(*gateway, url.as_str()));
    let node = node.start().await.map_err(|error| match error {
        ComputeNodeError::Gateway(error) => Failure::Input(format!("--gateway {error}")),
        error => Failure::failed(error),
    })?;
    let level = node.confinement();
    say(&format!("models run at the confinement level {level}: `ncn doctor` says more"));
    let mut out = std::io::stdout();
    for (gateway, _) in &gateways {
        writeln!(out, "compute node {address} works for gateway {gateway}")?;
    }
    out.flush()?;
    Ok((node, metrics))
}

fn open_store(state: Option<&Path>) -> Result<SharedStore, Failure> {
    let Some(directory) = state else { return SharedStore::new(MemoryStore::default()).map_err(Failure::failed) };
    let refuse = |error: String| Failure::Input(format!("--state {}: {error}", typed(directory)));
    fs::create_dir_all(directory).map_err(|error| refuse(error.to_string()))?;
    SharedStore::open(&directory.join("compute.redb")).map_err(|error| refuse(error.to_string()))
}
