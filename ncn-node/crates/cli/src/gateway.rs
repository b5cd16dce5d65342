//! `ncn gateway`: a gateway of its own.

mod listen;

use std::{collections::BTreeSet, fs, io::Write as _, num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use listen::{ListenArguments, Listening};
use ncn_core::{Address, Amount};
use ncn_models::Source;
use ncn_node::{
    channel::BatchPolicy,
    gateway::{Gateway, GatewayError, GatewayOptions, Page},
    node::{GatewayBuilder, RunningGateway},
    server::{Server, metrics_routes},
    store::{SharedStore, StoreError},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments, RegistryArguments, tokens},
    config::ConfigArguments,
    metrics::{MetricsArguments, recorder},
    say, serving,
    subnet::SubnetArguments,
};

/// What another owner does first.
const WITH: &str = "its owner runs `ncn subnet create --with-gateway ADDRESS`";
/// How long an earlier gateway may take to let go of the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    listen: ListenArguments,
    #[command(flatten)]
    registry: RegistryArguments,
    #[command(flatten)]
    chain: ChainArguments,
    #[command(flatten)]
    key: KeyArguments,
    /// The directory in which it keeps what must survive a crash
    #[arg(long, value_name = "DIRECTORY")]
    state: PathBuf,
    #[command(flatten)]
    subnet: SubnetArguments,
    /// Coordinate requests in the subnet of another owner, who has named this gateway with `--with-gateway`. It costs no fee
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["max_fee", "gateways"])]
    owner: Option<Address>,
    /// Where compute nodes find the files of its models, as for `ncn model pull --from`; several may be given
    #[arg(long, value_name = "URL")]
    model_source: Vec<String>,
    /// Take this compute node, and no others but those that are named so; several may be given. Without, every node may serve that registers for the subnet
    #[arg(long, value_name = "ADDRESS")]
    admit: Vec<Address>,
    /// How long an order may wait for its payment, in seconds: longer than the chain takes to confirm one
    #[arg(long, value_name = "SECONDS", default_value_t = GatewayOptions::default().payment_window.as_secs())]
    payment_window: u64,
    /// The least total of a quote whose payment it brings to the chain for the client, in tokens: more than the gas of escrow and refund
    #[arg(long, value_name = "TOKENS", value_parser = tokens, default_value = "0.001")]
    least_relayed: Amount,
    /// Settle channels once this many requests wait
    #[arg(long, value_name = "REQUESTS", default_value_t = 1_000)]
    settle_requests: usize,
    /// Settle channels once the oldest request has waited this long, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    settle_after: u64,
    /// Settle channels once requests of this much wait, in tokens
    #[arg(long, value_name = "TOKENS", value_parser = tokens, default_value = "100")]
    settle_value: Amount,
    /// How many orders of one client it takes in a minute, wherever they come from
    #[arg(long, value_name = "ORDERS", default_value_t = GatewayOptions::default().max_orders_a_minute_of_one)]
    client_orders: NonZeroU32,
    /// How long it waits for the requests that are paid, when it is told to stop, in seconds. What has no end by then is kept in its state, and goes on
    /// with the next start
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    #[command(flatten)]
    metrics: MetricsArguments,
    #[command(flatten)]
    config: ConfigArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let manifests = arguments.subnet.manifests()?;
    for url in &arguments.model_source {
        Source::named_by_others(url).map_err(|error| Failure::Input(format!("--model-source: {error}")))?;
    }
    let listening = arguments.listen.open()?;
    if arguments.config.check {
        return Ok(());
    }
    // With a certificate, it is read again then.
    let hangup = !arguments.listen.has_certificate();
    serving(start(arguments, manifests, listening), |running| stop(running, Duration::from_secs(arguments.drain)), hangup)
}

/// What runs until it is interrupted.
struct Running {
    gateway: RunningGateway,
    metrics: Option<Server>,
    reloading: Option<AbortOnDropHandle<()>>,
}

/// Ends, once the clients that have paid have their answers.
async fn stop(running: Running, drain: Duration) {
    let owed = running.gateway.gateway().owed();
    if owed > 0 && !drain.is_zero() {
        say(&format!("{owed} requests are paid: waiting up to {drain:?} for their ends; interrupt again to stop at once"));
    }
    let left = running.gateway.drain(drain).await;
    if left > 0 {
        say(&format!("{left} requests are kept in the journal: the next start goes on with them"));
    }
    running.gateway.shutdown().await;
    drop((running.metrics, running.reloading));
}

async fn start(arguments: &Arguments, manifests: Vec<Bytes>, listening: Listening) -> Result<Running, Failure> {
    let signer = arguments.key.open()?;
    let account = arguments.chain.ledger(signer.clone()).await?;
    let registry = arguments.registry.open()?;
    let store = open_store(arguments).await?;
    arguments.listen.check_free()?;
    let page = Page::new();
    let metrics = arguments.metrics.serve(page.routes(), || {})?;
    let (subnet, manifests) = match arguments.owner {
        Some(owner) => arguments.subnet.of(owner, &*registry, manifests).await?,
        // Last of all that can be refused: creating a subnet costs a fee, once.
        None => (arguments.subnet.create(&account, &*registry, &manifests).await?, manifests),
    };
    let settle = BatchPolicy {
        max_requests: arguments.settle_requests,
        max_age: Duration::from_secs(arguments.settle_after),
        max_value: arguments.settle_value,
        ..BatchPolicy::default()
    };
    let options = GatewayOptions {
        model_sources: arguments.model_source.clone(),
        least_relayed: arguments.least_relayed,
        max_orders_a_minute_of_one: arguments.client_orders,
        payment_window: Duration::from_secs(arguments.payment_window),
        admitted: Some(arguments.admit.iter().copied().collect()).filter(|admitted: &BTreeSet<_>| !admitted.is_empty()),
        ..GatewayOptions::default()
    };
    let builder = Gateway::builder(signer, subnet, Arc::new(account), registry, store).manifests(manifests).batch_policy(settle);
    let Listening { listen, certificate } = listening;
    let builder = builder.options(options).rates(arguments.listen.rates());
    let builder = listen.into_iter().fold(builder, GatewayBuilder::listen);
    let builder = if arguments.metrics.has_address() { builder } else { builder.routes(metrics_routes(recorder()?)) };
    let gateway = builder.start().await.map_err(|error| match error {
        GatewayError::Listen(error) => Failure::Input(format!("--listen {error}")),
        GatewayError::NotItsGateway(id) => Failure::Input(format!("--owner: subnet {id} does not name this gateway: {WITH}")),
        GatewayError::Manifest(digest) => Failure::Input(format!("--manifest: is missing, or is not of the subnet: {digest}")),
        error => Failure::failed(error),
    })?;
    page.show(gateway.gateway());
    let mut out = std::io::stdout();
    writeln!(out, "gateway {} listens at {}", gateway.gateway().address(), gateway.url().unwrap_or_default())?;
    for url in gateway.other_urls().into_iter().filter(|_| !arguments.listen.has_url()) {
        writeln!(out, "and at {url}")?;
    }
    out.flush()?;
    let reloading = certificate.map(|certificate| AbortOnDropHandle::new(tokio::spawn(certificate.reload_on_hangup())));
    Ok(Running { gateway, metrics, reloading })
}

/// A gateway that was just ended may hold its store for a moment longer.
async fn open_store(arguments: &Arguments) -> Result<SharedStore, Failure> {
    let refuse = |error: String| Failure::Input(format!("--state {}: {error}", arguments.state.display()));
    fs::create_dir_all(&arguments.state).map_err(|error| refuse(error.to_string()))?;
    let path = arguments.state.join("gateway.redb");
    let opening = async {
        let mut backoff = ncn_client::Backoff::new();
        loop {
            match SharedStore::open(&path) {
                Err(StoreError::InUse(_)) => backoff.pause().await,
                opened => return opened,
            }
        }
    };
    let opened = tokio::time::timeout(STORE_TIMEOUT, opening).await;
    let opened = opened.unwrap_or_else(|_| SharedStore::open(&path));
    opened.map_err(|error| refuse(format!("{error}; name another directory, or make room")))
}
