//! `ncn devnet`: the demo's network, kept running.

mod trial;

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use alloy_primitives::U256;
use ncn_client::{Client, Payment};
use ncn_core::Amount;
use ncn_devnet::{CHAIN_ID, EmbeddedChain, LocalNetwork, Mining, RpcServer, quickstart};
use ncn_node::{channel::BatchPolicy, gateway::Page, server::metrics_routes};
use trial::Trial;

use crate::{
    Failure,
    engines::{EngineArguments, ModelArguments},
    metrics::recorder,
    serving,
};

/// How many accounts are given tokens.
const ACCOUNTS: usize = 3;
/// How many tokens each of them gets.
const TOKENS: Amount = Amount::new(1_000 * Amount::TOKEN.units());

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Serve the chain's JSON-RPC there, on this machine only; the chain is for development
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = crate::listen_address)]
    rpc: Option<SocketAddr>,
    /// Let pages of this origin ask the chain's JSON-RPC, such as http://localhost:3000; may be given several times
    #[arg(long, value_name = "URL", requires = "rpc")]
    origin: Vec<String>,
    /// Where the gateway listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50051", value_parser = crate::listen_address)]
    gateway: SocketAddr,
    /// Where the first of three registry nodes listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50050", value_parser = crate::listen_address)]
    registry: SocketAddr,
    /// Seconds between blocks; by default each transaction has its own block at once
    #[arg(long, value_name = "SECONDS")]
    block_time: Option<u64>,
    /// Seconds until requests that were paid out of channels are settled
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    settle_after: u64,
    /// Write the funded accounts' keys into this directory, one file each, and contracts.json, for --contracts
    #[arg(long, value_name = "DIRECTORY")]
    keys: Option<PathBuf>,
    #[command(flatten)]
    models: ModelArguments,
    #[command(flatten)]
    engines: EngineArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    serving(
        start(arguments),
        |Devnet { network, rpc, quickstart }| async move {
            network.shutdown().await;
            drop((rpc, quickstart));
        },
        true,
    )
}

/// What runs until it is interrupted.
struct Devnet {
    network: LocalNetwork,
    rpc: Option<RpcServer>,
    quickstart: tempfile::TempDir,
}

async fn start(arguments: &Arguments) -> Result<Devnet, Failure> {
    let chain = Arc::new(EmbeddedChain::new(CHAIN_ID));
    let rpc = match arguments.rpc {
        Some(address) => {
            let server = RpcServer::start_for(chain.clone(), address, arguments.origin.clone()).await;
            Some(server.map_err(|error| Failure::Input(format!("--rpc {address}: {error}")))?)
        }
        None => None,
    };
    let quickstart = tempfile::tempdir()?;
    let mut packages = arguments.models.packages(None).await?;
    if packages.is_empty() {
        packages.push(quickstart::unpack(quickstart.path())?);
    }
    let executor = arguments.engines.executor(&packages).await?;
    // Said as the options that they are of, once all others are right.
    for (option, address) in [("--gateway", arguments.gateway), ("--registry", arguments.registry)] {
        drop(TcpListener::bind(address).map_err(|error| Failure::Input(format!("{option} {address}: {error}")))?);
    }
    let settle = BatchPolicy { max_age: Duration::from_secs(arguments.settle_after), ..BatchPolicy::default() };
    let (metrics, page, trial) = (recorder()?, Page::new(), Trial::default());
    let routes = metrics_routes(metrics).merge(page.routes()).merge(trial.routes());
    let network = LocalNetwork::builder()
        .chain(chain.clone())
        .well_known_keys()
        .executor(executor)
        .models(packages)
        .gateway(move |gateway| gateway.batch_policy(settle).routes(routes))
        .listen(arguments.gateway, arguments.registry)
        .start()
        .await
        .map_err(Failure::failed)?;
    for number in 0..ACCOUNTS {
        let account = ncn_devnet::well_known_key("client", number).address();
        network.funder().transfer(account, TOKENS).await.map_err(Failure::failed)?;
        chain.fund(account, U256::from(10_u64.pow(18)) * U256::from(1_000));
    }
    let tried = ncn_devnet::well_known_key("page", 0);
    network.funder().transfer(tried.address(), TOKENS).await.map_err(Failure::failed)?;
    let client = Client::builder().transport(network.gateway()).payment(Payment::OnChain(network.ledger(tried)));
    trial.open(client.trust(network.trust_root().await.map_err(Failure::failed)?).max_price(TOKENS).build()?);
    page.show(network.gateway_node());
    if let Some(seconds) = arguments.block_time {
        chain.set_mining(Mining::Every(Duration::from_secs(seconds.max(1))));
    }
    print(arguments, &network, rpc.as_ref()).await?;
    Ok(Devnet { network, rpc, quickstart })
}

async fn print(arguments: &Arguments, network: &LocalNetwork, rpc: Option<&RpcServer>) -> Result<(), Failure> {
    let trust = network.trust_root().await.map_err(Failure::failed)?;
    let deployment = network.funder().deployment();
    let mut out = std::io::stdout().lock();
    writeln!(out, "gateway     {}", network.gateway_url())?;
    writeln!(out, "page        {}/", network.gateway_url())?;
    writeln!(out, "registry    {}", network.registry_urls().join(","))?;
    match rpc {
        Some(rpc) => writeln!(out, "chain       {} (id {CHAIN_ID}, gas is free)", rpc.url())?,
        None => writeln!(out, "chain       in this process only; serve it with --rpc 127.0.0.1:8545")?,
    }
    writeln!(out, "network     {}", trust.hash())?;
    writeln!(out, "\ntoken       {}", trust.token)?;
    writeln!(out, "payment     {}", deployment.payment)?;
    writeln!(out, "channels    {}", deployment.channels)?;
    writeln!(out, "subnets     {}", deployment.subnets)?;
    writeln!(out, "slashing    {}", deployment.slashing)?;
    writeln!(out, "\naccounts with {TOKENS} each; everybody knows these keys, they are for development")?;
    if let Some(directory) = &arguments.keys {
        let refuse = |error: std::io::Error| Failure::Input(format!("--keys {}: {error}", directory.display()));
        fs::create_dir_all(directory).map_err(refuse)?;
        let contracts = serde_json::to_string_pretty(&deployment).map_err(Failure::failed)? + "\n";
        fs::write(directory.join("contracts.json"), contracts).map_err(refuse)?;
        for number in 0..ACCOUNTS {
            let secret = ncn_devnet::well_known_secret("client", number);
            let path = directory.join(format!("client-{number}.key"));
            let file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
            file.and_then(|mut file| writeln!(file, "{secret}")).map_err(refuse)?;
        }
    }
    for number in 0..ACCOUNTS {
        let account = ncn_devnet::well_known_key("client", number).address();
        writeln!(out, "  {account} {}", ncn_devnet::well_known_secret("client", number))?;
    }
    writeln!(out, "\nready; stop with Ctrl-C")?;
    Ok(out.flush()?)
}
