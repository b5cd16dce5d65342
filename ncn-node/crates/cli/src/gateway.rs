//! `ncn gateway`: a gateway of its own.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use ncn_core::{Address, Amount, membership::MembershipLimits};
use ncn_models::Source;
use ncn_node::{
    channel::BatchPolicy,
    gateway::{Gateway, GatewayError, GatewayOptions},
    node::{GatewayBuilder, RunningGateway},
    server::{Listen, Server},
    store::{SharedStore, StoreError},
};

use url::Url;

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments, RegistryArguments, tokens},
    files::read_within,
    metrics::{MetricsArguments, recorder},
    serving,
    subnet::SubnetArguments,
};

/// A certificate and all that lead to its root have a few thousand.
const MAX_PEM_BYTES: usize = 256 << 10;
/// What another owner does first.
const WITH: &str = "its owner runs `ncn subnet create --with-gateway ADDRESS`";
/// How long an earlier gateway may take to let go of the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where clients and compute nodes reach it: over gRPC, HTTP and WebSocket, at each address that is given. It is registered with the first
    #[arg(long, value_name = "ADDRESS:PORT[,..]", value_delimiter = ',', default_values = ["127.0.0.1:50051", "127.0.0.1:8080", "127.0.0.1:9000"])]
    listen: Vec<SocketAddr>,
    /// Serve with TLS, by this certificate (PEM, with those that lead to its root after it)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// How others call it: http://HOST:PORT or https://HOST:PORT. The address that it listens on by default
    #[arg(long, value_name = "URL")]
    url: Option<String>,
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
    #[command(flatten)]
    metrics: MetricsArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let manifests = arguments.subnet.manifests()?;
    for url in &arguments.model_source {
        Source::named_by_others(url).map_err(|error| Failure::Input(format!("--model-source: {error}")))?;
    }
    let listen = listen(arguments)?;
    serving(start(arguments, manifests, listen), async |(node, metrics)| {
        RunningGateway::shutdown(node).await;
        drop(metrics);
    })
}

/// Where it listens, and how it is called.
fn listen(arguments: &Arguments) -> Result<Vec<Listen>, Failure> {
    let read = |option: &str, path: &Path, what: &str| {
        let refuse = |problem: String| Failure::Input(format!("{option} {}: {problem}", path.display()));
        let read = read_within(path, MAX_PEM_BYTES).map_err(|error| refuse(error.to_string()))?;
        let marked = |read: &Vec<u8>| String::from_utf8_lossy(read).contains(&format!("{what}-----"));
        read.filter(marked).ok_or_else(|| refuse(format!("is no PEM file with a {what}")))
    };
    let mut listen: Vec<_> = arguments.listen.iter().copied().map(Listen::on).collect();
    let tls = arguments.tls_certificate.as_ref().zip(arguments.tls_key.as_ref());
    if let Some((certificate, key)) = tls {
        let (certificate, key) = (read("--tls-certificate", certificate, "CERTIFICATE")?, read("--tls-key", key, "PRIVATE KEY")?);
        listen = listen.into_iter().map(|listen| listen.tls(&certificate, &key)).collect();
    }
    if let Some(url) = &arguments.url {
        let refuse = |problem: &str| Failure::Input(format!("--url: {problem}: write http://HOST:PORT or https://HOST:PORT"));
        let parsed = Url::parse(url).map_err(|error| refuse(&error.to_string()))?;
        let is_origin = parsed.has_host() && parsed.username().is_empty() && parsed.password().is_none();
        let is_origin = is_origin && parsed.path() == "/" && parsed.query().is_none() && parsed.fragment().is_none();
        if !is_origin || !matches!(parsed.scheme(), "http" | "https") || url.len() > MembershipLimits::default().text {
            return Err(refuse("is not the URL of a host"));
        }
        if tls.is_some() && parsed.scheme() != "https" {
            return Err(refuse("has to be https, since there is a certificate"));
        }
        let url = url.trim_end_matches('/');
        listen = listen.into_iter().map(|listen| listen.url(url)).collect();
    } else if let Some(address) = arguments.listen.iter().find(|address| address.ip().is_unspecified()) {
        return Err(Failure::Input(format!("--listen {address}: nobody can call that: say how with --url")));
    }
    Ok(listen)
}

async fn start(
    arguments: &Arguments,
    manifests: Vec<Bytes>,
    listen: Vec<Listen>,
) -> Result<(RunningGateway, Option<Server>), Failure> {
    let signer = arguments.key.open()?;
    let account = arguments.chain.ledger(signer.clone()).await?;
    let registry = arguments.registry.open()?;
    let store = open_store(arguments).await?;
    for address in &arguments.listen {
        drop(TcpListener::bind(address).map_err(|error| Failure::Input(format!("--listen {address}: {error}")))?);
    }
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
    let (model_sources, least_relayed) = (arguments.model_source.clone(), arguments.least_relayed);
    let options = GatewayOptions { model_sources, least_relayed, ..GatewayOptions::default() };
    let builder = Gateway::builder(signer, subnet, Arc::new(account), registry, store).manifests(manifests).batch_policy(settle);
    let builder = listen.into_iter().fold(builder.options(options), GatewayBuilder::listen);
    let builder = if arguments.metrics.has_address() { builder } else { builder.metrics(recorder()?) };
    let metrics = arguments.metrics.serve(|| {}).await?;
    let gateway = builder.start().await.map_err(|error| match error {
        GatewayError::Listen(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            Failure::Input(format!("--tls-certificate, --tls-key: {error}"))
        }
        GatewayError::Listen(error) => Failure::Input(format!("--listen {error}")),
        GatewayError::NotItsGateway(id) => Failure::Input(format!("--owner: subnet {id} does not name this gateway: {WITH}")),
        GatewayError::Manifest(digest) => Failure::Input(format!("--manifest: is missing, or is not of the subnet: {digest}")),
        error => Failure::failed(error),
    })?;
    let mut out = std::io::stdout();
    writeln!(out, "gateway {} listens at {}", gateway.gateway().address(), gateway.url().unwrap_or_default())?;
    for url in gateway.other_urls().into_iter().filter(|_| arguments.url.is_none()) {
        writeln!(out, "and at {url}")?;
    }
    out.flush()?;
    Ok((gateway, metrics))
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
