//! `ncn registry`: a node of the peer-to-peer registry, which with a validator's key is that validator.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::Router;
use ncn_core::{NodeQuery, NodeRecord, NodeRole, RegistryStatus};
use ncn_node::{server::Server, store::SharedStore};
use ncn_p2p::{Keypair, Multiaddr, PeerError, PeerOptions, PeerRegistry, RunningPeerRegistry};
use serde_json::json;

use crate::{
    Failure,
    account::{Asked, ChainArguments, KeyArguments},
    block_on,
    config::ConfigArguments,
    metrics::MetricsArguments,
    sanitize, serving, subnet, typed,
};

/// The node's key to the peer-to-peer network, in its state directory.
const KEY_FILE: &str = "peer.key";

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    show: Option<Show>,
    #[command(flatten)]
    run: Run,
}

#[derive(clap::Args)]
struct Run {
    /// Where gateways, compute nodes and validators call it, over gRPC
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50050", value_parser = crate::listen_address)]
    listen: SocketAddr,
    /// Where other registry nodes call it, over libp2p: TCP and QUIC
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8828", value_parser = crate::listen_address)]
    p2p: SocketAddr,
    /// How other registry nodes call it from outside, for example /ip4/192.0.2.1/tcp/8828; where it listens by default
    #[arg(long, value_name = "MULTIADDRESS")]
    announce: Option<Multiaddr>,
    /// Registry nodes to begin with, separated by commas: /ip4/192.0.2.1/tcp/8828/p2p/12D3...
    #[arg(long, value_name = "MULTIADDRESS", value_delimiter = ',')]
    bootstrap: Vec<Multiaddr>,
    /// The directory in which it keeps its key to the network, and what it knows; without one, it is another peer each time, and knows
    /// nobody
    #[arg(long, value_name = "DIRECTORY")]
    state: Option<PathBuf>,
    #[command(flatten)]
    chain: ChainArguments,
    /// The key of the validator that it is: a keystore, or a file with 64 hexadecimal digits. None by default. It needs --state, where it keeps what it
    /// has approved: one that forgets can be made to approve something else
    #[arg(long, value_name = "FILE", requires = "state")]
    validator_key: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricsArguments,
    #[command(flatten)]
    config: ConfigArguments,
}

#[derive(clap::Subcommand)]
enum Show {
    /// Show what a registry node says of itself
    Status(Asked),
    /// List the peers with which a registry node is connected
    Peers(Asked),
    /// List the nodes that a registry node knows to be live
    Nodes(Asked),
    /// List the subnets that a registry node knows
    Subnets(Asked),
    /// List the validators that a registry node knows to be live
    Validators(Asked),
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.show {
        Some(Show::Status(asked)) => status(asked),
        Some(Show::Peers(asked)) => peers(asked),
        Some(Show::Subnets(asked)) => block_on(async { subnet::list(&*asked.registry.open()?, asked.json).await }),
        Some(Show::Nodes(asked)) => show(asked, None),
        Some(Show::Validators(asked)) => show(asked, Some(NodeRole::Validator)),
        None if arguments.run.config.check => Ok(()),
        None => serving(
            start(&arguments.run),
            async |(node, metrics)| {
                node.shutdown().await;
                drop(metrics);
            },
            true,
        ),
    }
}

/// Of each registry node that is named, what it says of itself.
fn statuses(asked: &Asked) -> Result<Vec<(&str, RegistryStatus)>, Failure> {
    let mut statuses = Vec::new();
    block_on(async {
        for (url, registry) in asked.registry.each()? {
            statuses.push((url, registry.status().await.map_err(|error| Failure::Failed(format!("{url}: {error}")))?));
        }
        Ok(())
    })?;
    Ok(statuses)
}

fn status(asked: &Asked) -> Result<(), Failure> {
    let statuses = statuses(asked)?;
    let mut out = io::stdout();
    if asked.json {
        let statuses: BTreeMap<_, _> = statuses.into_iter().collect();
        return Ok(writeln!(out, "{:#}", json!(statuses))?);
    }
    for (url, RegistryStatus { peer, addresses, peers, nodes, subnets, pending, refused, uptime }) in statuses {
        writeln!(out, "{url}: peer {}", sanitize(&peer))?;
        for address in addresses {
            writeln!(out, "  called at  {}", sanitize(&address))?;
        }
        writeln!(out, "  up for     {uptime} s")?;
        writeln!(
            out,
            "  knows      {nodes} nodes, {subnets} subnets, {pending} pending requests; connected with {} peers",
            peers.len()
        )?;
        let refused: Vec<_> = refused.iter().map(|(reason, count)| format!("{count} {}", sanitize(reason))).collect();
        writeln!(out, "  refused    {}", if refused.is_empty() { "nothing".into() } else { refused.join(", ") })?;
    }
    Ok(())
}

fn peers(asked: &Asked) -> Result<(), Failure> {
    let statuses = statuses(asked)?;
    let mut out = io::stdout();
    if asked.json {
        let peers: BTreeMap<_, _> = statuses.into_iter().map(|(url, status)| (url, status.peers)).collect();
        return Ok(writeln!(out, "{:#}", json!(peers))?);
    }
    for peer in statuses.iter().flat_map(|(_, status)| &status.peers) {
        writeln!(out, "{}", sanitize(peer))?;
    }
    Ok(())
}

fn show(asked: &Asked, role: Option<NodeRole>) -> Result<(), Failure> {
    block_on(async {
        let registry = asked.registry.open()?;
        let nodes = registry.discover(NodeQuery { role, ..NodeQuery::default() }).await.map_err(Failure::failed)?;
        let mut nodes: Vec<NodeRecord> = nodes.into_iter().map(|node| node.message).collect();
        nodes.sort_unstable_by_key(|node| (node.role as u8, node.node));
        let mut out = io::stdout();
        if asked.json {
            writeln!(out, "{}", json!(nodes))?;
            return Ok(());
        }
        for NodeRecord { node, role, endpoint, models, confinement, .. } in nodes {
            let what = match role {
                NodeRole::Gateway => "gateway",
                NodeRole::Compute => "compute",
                NodeRole::Validator => "validator",
            };
            let models = if models.is_empty() { String::new() } else { format!("  {} models, {confinement}", models.len()) };
            writeln!(out, "{what:<10}{node}  {}{models}", sanitize(&endpoint))?;
        }
        Ok(())
    })
}

async fn start(arguments: &Run) -> Result<(RunningPeerRegistry, Option<Server>), Failure> {
    let Run { listen, p2p, announce, bootstrap, state, chain, validator_key, metrics, .. } = arguments;
    let validator = validator_key.as_ref().map(|path| KeyArguments::at(path).open()).transpose()?;
    let key = match state {
        Some(directory) => peer_key(directory)?,
        None => Keypair::generate_ed25519(),
    };
    let ledger = Arc::new(chain.ledger(ncn_devnet::well_known_key("reader", 0)).await?);
    drop(TcpListener::bind(listen).map_err(|error| Failure::Input(format!("--listen {listen}: {error}")))?);
    drop(TcpListener::bind(p2p).map_err(|error| Failure::Input(format!("--p2p {p2p}: {error}")))?);
    drop(UdpSocket::bind(p2p).map_err(|error| Failure::Input(format!("--p2p {p2p}: UDP: {error}")))?);
    let options =
        PeerOptions { key, listen: addresses(p2p)?, announce: announce.clone(), bootstrap: bootstrap.clone(), serves: true };
    let builder = PeerRegistry::builder(ledger, options).listen(*listen);
    let builder = match state {
        Some(directory) => builder.store(open_store(directory)?),
        None => builder,
    };
    let builder = match validator.clone() {
        Some(signer) => builder.validator(signer),
        None => builder,
    };
    let node = builder.start().await.map_err(|error| match error {
        PeerError::Bootstrap(_) | PeerError::Announce { .. } => Failure::Input(format!("--{error}")),
        error => Failure::failed(error),
    })?;
    let registry = node.registry().clone();
    let metrics = metrics.serve(Router::new(), move || registry.measure())?;
    let mut out = io::stdout();
    writeln!(out, "registry node {} serves at {}", node.registry().peer().id(), node.url().unwrap_or_default())?;
    for address in node.registry().peer().listens().await {
        writeln!(out, "peers call it at {address}")?;
    }
    if let Some(signer) = validator {
        writeln!(out, "it is the validator {}", signer.address())?;
    }
    out.flush()?;
    Ok((node, metrics))
}

fn open_store(directory: &Path) -> Result<SharedStore, Failure> {
    let refuse = |error| Failure::Input(format!("--state {}: {error}", typed(directory)));
    SharedStore::open(&directory.join("registry.redb")).map_err(refuse)
}

/// The same port for TCP and QUIC.
fn addresses(p2p: &SocketAddr) -> Result<Vec<Multiaddr>, Failure> {
    let (port, host) = (
        p2p.port(),
        match p2p.ip() {
            IpAddr::V4(ip) => format!("/ip4/{ip}"),
            IpAddr::V6(ip) => format!("/ip6/{ip}"),
        },
    );
    [format!("{host}/tcp/{port}"), format!("{host}/udp/{port}/quic-v1")]
        .iter()
        .map(|address| address.parse().map_err(|error| Failure::Input(format!("--p2p {p2p}: {error}"))))
        .collect()
}

/// The node's key to the network, made when there is none yet.
fn peer_key(directory: &Path) -> Result<Keypair, Failure> {
    let refuse = |problem: String| Failure::Input(format!("--state {}: {problem}", typed(directory)));
    fs::create_dir_all(directory).map_err(|error| refuse(error.to_string()))?;
    let path = directory.join(KEY_FILE);
    match fs::read(&path) {
        Ok(bytes) => Keypair::from_protobuf_encoding(&bytes).map_err(|error| {
            tracing::debug!(%error, "the key cannot be read");
            refuse(format!("{KEY_FILE}: is no key of a peer: put the right one there, or remove it to become another peer"))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = Keypair::generate_ed25519();
            let bytes = key.to_protobuf_encoding().map_err(|error| refuse(error.to_string()))?;
            // A key that is half written is none.
            let unfinished = directory.join(format!("{KEY_FILE}.new"));
            let _ = fs::remove_file(&unfinished);
            let written = fs::File::options().create_new(true).write(true).mode(0o600).open(&unfinished).and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()?;
                fs::rename(&unfinished, &path)
            });
            written.map_err(|error| refuse(format!("{KEY_FILE}: {error}")))?;
            Ok(key)
        }
        Err(error) => Err(refuse(format!("{KEY_FILE}: {error}"))),
    }
}
