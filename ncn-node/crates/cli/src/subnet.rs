//! `ncn subnet`: what gateways offer under a name, and who serves it.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use ncn_client::evm::EvmLedger;
use ncn_core::{
    Address, Amount, B256, Deregistration, FeeSplit, Model, NodeQuery, NodeRecord, NodeRole, Registry, Signed, Subnet, SubnetModel,
    message::subnet_id,
};
use ncn_devnet::quickstart;
use ncn_node::registration::next_sequence;
use serde::Serialize;
use serde_json::json;

use crate::{
    Failure,
    account::{Asked, ChainArguments, KeyArguments, tokens},
    block_on,
    model::{self, StoreArguments},
    sanitize, say, typed,
};

/// More subnets than a registry node keeps.
const MAX_SUBNETS: usize = 10_000;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Create a subnet on the chain, once, and tell the registry what it offers; a gateway does both when it starts
    Create {
        #[command(flatten)]
        subnet: SubnetArguments,
        #[command(flatten)]
        by: Account,
    },
    /// Show a subnet: its models, prices, and who serves it
    Show {
        /// Its name or id
        #[arg(value_name = "SUBNET")]
        subnet: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// List the subnets that a registry node knows
    List(Asked),
    /// Fetch a subnet's models into the store, and say how to run a compute node for it
    Join {
        /// Its name or id
        #[arg(value_name = "SUBNET")]
        subnet: String,
        /// Which of its models, by name or digest; several may be given. All of them by default
        #[arg(long = "model", value_name = "MODEL")]
        models: Vec<String>,
        #[command(flatten)]
        asked: Asked,
        #[command(flatten)]
        store: StoreArguments,
    },
    /// Take a node off the network at once that has ended without doing so itself
    Leave(Account),
}

/// Who changes something, and whom it asks.
#[derive(clap::Args)]
pub(crate) struct Account {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    chain: ChainArguments,
    #[command(flatten)]
    key: KeyArguments,
}

/// What makes a subnet up.
#[derive(clap::Args)]
pub(crate) struct SubnetArguments {
    /// The subnet's name. Creating a subnet costs a fee in tokens, once
    #[arg(long = "subnet", value_name = "NAME", default_value = "quickstart")]
    name: String,
    /// The most that creating the subnet may cost, in tokens
    #[arg(long, value_name = "TOKENS", value_parser = tokens, default_value = "10")]
    max_fee: Amount,
    /// A model's manifest; several may be given. The built-in quickstart model by default
    #[arg(long, value_name = "FILE")]
    manifest: Vec<PathBuf>,
    /// A gateway that coordinates requests in it besides its owner; several may be given. Without one, those stay that it has; with the
    /// owner's own address alone, none does
    #[arg(long = "with-gateway", value_name = "ADDRESS")]
    gateways: Vec<Address>,
}

impl SubnetArguments {
    /// Checks the name, and reads the manifests.
    pub(crate) fn manifests(&self) -> Result<Vec<Bytes>, Failure> {
        let printable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(printable) {
            return Err(Failure::Input("--subnet: takes 1 to 64 letters, digits, `-`, `_` and `.`".into()));
        }
        let mut manifests = Vec::new();
        for path in &self.manifest {
            let refuse = |error: String| Failure::Input(format!("--manifest {}: {error}", path.display()));
            let manifest = Bytes::from(fs::read(path).map_err(|error| refuse(error.to_string()))?);
            Model::parse(manifest.clone()).map_err(|error| refuse(error.to_string()))?;
            manifests.push(manifest);
        }
        if manifests.is_empty() {
            manifests.push(Bytes::from_static(quickstart::MANIFEST));
        }
        Ok(manifests)
    }

    /// That of another owner, as the registry knows it, with the manifests that are not given.
    pub(crate) async fn of(
        &self,
        owner: Address,
        registry: &dyn Registry,
        manifests: Vec<Bytes>,
    ) -> Result<(Subnet, Vec<Bytes>), Failure> {
        let refuse = |error| Failure::Failed(format!("--owner {owner}: subnet {}: {error}", self.name));
        let subnet = registry.subnet(subnet_id(owner, &self.name)).await.map_err(refuse)?.definition.message;
        if !self.manifest.is_empty() {
            return Ok((subnet, manifests));
        }
        let mut manifests = Vec::new();
        for SubnetModel { name, digest, .. } in &subnet.models {
            let refuse = |error| Failure::Failed(format!("--manifest: that of {} is missing: {error}", sanitize(name)));
            manifests.push(registry.manifest(*digest).await.map_err(refuse)?);
        }
        Ok((subnet, manifests))
    }

    /// Creates it on the chain unless it is there, for no more than the limit.
    pub(crate) async fn create(
        &self,
        account: &EvmLedger,
        registry: &dyn Registry,
        manifests: &[Bytes],
    ) -> Result<Subnet, Failure> {
        let refuse = |error| Failure::Failed(format!("subnet: {error}"));
        let fee = account.subnet_fee(&self.name).await.map_err(refuse)?;
        if fee > self.max_fee {
            let limit = self.max_fee;
            let problem = format!("--max-fee: creating the subnet costs {fee}, the limit is {limit}: raise it; nothing was paid");
            return Err(Failure::Input(problem));
        }
        account.create_subnet(&self.name, self.max_fee).await.map_err(refuse)?;
        let owner = account.account();
        let before = registry.subnet(subnet_id(owner, &self.name)).await;
        let gateways: BTreeSet<Address> = match before {
            // Who restarts its gateway does not mean to send the others away.
            Ok(before) if self.gateways.is_empty() => before.definition.message.gateways.into_iter().collect(),
            _ => self.gateways.iter().copied().collect(),
        };
        let models =
            manifests.iter().map(|manifest| Ok(SubnetModel::of(&Model::parse(manifest.clone()).map_err(Failure::failed)?)));
        Ok(Subnet {
            owner,
            name: self.name.clone(),
            gateways: gateways.into_iter().filter(|gateway| *gateway != owner).collect(),
            models: models.collect::<Result<_, Failure>>()?,
            split: FeeSplit::default(),
            // What is announced later replaces what was announced before.
            version: next_sequence(0),
        })
    }
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Create { subnet, by } => create(subnet, by).await,
            Command::Show { subnet, asked } => {
                let registry = asked.registry.open()?;
                let subnet = find(&*registry, subnet).await?;
                let nodes = nodes(&*registry, &subnet).await?;
                print(&subnet, &nodes, asked.json)
            }
            Command::List(asked) => list(&*asked.registry.open()?, asked.json).await,
            Command::Join { subnet, models, asked, store } => join(subnet, models, asked, store).await,
            Command::Leave(by) => leave(by).await,
        }
    })
}

async fn create(subnet: &SubnetArguments, by: &Account) -> Result<(), Failure> {
    let manifests = subnet.manifests()?;
    let signer = by.key.open()?;
    let account = by.chain.ledger(signer.clone()).await?;
    let registry = by.asked.registry.open()?;
    let trust = account.trust_root().await.map_err(Failure::failed)?;
    let subnet = subnet.create(&account, &*registry, &manifests).await?;
    let signed = Signed::sign(subnet.clone(), &trust.domain, &*signer).await.map_err(Failure::failed)?;
    registry.register_subnet(signed).await.map_err(|error| {
        Failure::Failed(format!("the subnet is on the chain, but the registry does not take it: {error}: run this again"))
    })?;
    for manifest in manifests {
        if let Err(error) = registry.register_manifest(subnet.id(), manifest).await {
            say(&sanitize(&format!("the registry does not keep a manifest, which the gateway does: {error}")));
        }
    }
    print(&subnet, &nodes(&*registry, &subnet).await?, by.asked.json)
}

/// All that a registry node knows, page by page.
async fn all(registry: &dyn Registry) -> Result<Vec<Subnet>, Failure> {
    let mut all: Vec<Subnet> = Vec::new();
    loop {
        let after = all.last().map_or(B256::ZERO, Subnet::id);
        let page = registry.subnets(after).await.map_err(Failure::failed)?;
        // A node that begins again has no end.
        let ids: Vec<_> = [after].into_iter().chain(page.iter().map(|subnet| subnet.subnet().id())).collect();
        if page.is_empty() || all.len() > MAX_SUBNETS || !ids.is_sorted_by(|one, next| one < next) {
            return Ok(all);
        }
        all.extend(page.into_iter().map(|subnet| std::sync::Arc::unwrap_or_clone(subnet).definition.message));
    }
}

async fn find(registry: &dyn Registry, reference: &str) -> Result<Subnet, Failure> {
    if let Ok(id) = reference.parse::<B256>() {
        return Ok(registry.subnet(id).await.map_err(Failure::failed)?.definition.message);
    }
    let mut named: Vec<_> = all(registry).await?.into_iter().filter(|subnet| subnet.name == reference).collect();
    match (named.pop(), &*named) {
        (Some(subnet), []) => Ok(subnet),
        (None, _) => Err(Failure::Input(format!("subnet {reference}: the registry knows none of this name"))),
        (Some(last), others) => {
            let ids: Vec<_> = others.iter().chain([&last]).map(|subnet| subnet.id().to_string()).collect();
            Err(Failure::Input(format!("subnet {reference}: several have this name: name one by its id: {}", ids.join(", "))))
        }
    }
}

/// The live nodes that serve it.
async fn nodes(registry: &dyn Registry, subnet: &Subnet) -> Result<Vec<NodeRecord>, Failure> {
    let query = NodeQuery { subnet: Some(subnet.id()), ..NodeQuery::default() };
    let found = registry.discover(query).await.map_err(Failure::failed)?;
    let mut nodes: Vec<_> = found.into_iter().map(|node| node.message).filter(|node| node.role != NodeRole::Validator).collect();
    nodes.sort_unstable_by_key(|node| (node.role as u8, node.node));
    Ok(nodes)
}

/// How those of these nodes that are its gateways are called.
fn gateways<'a>(subnet: &Subnet, nodes: &'a [NodeRecord]) -> impl Iterator<Item = &'a str> {
    let is_its = |node: &&NodeRecord| node.role == NodeRole::Gateway && subnet.has_gateway(&node.node);
    nodes.iter().filter(is_its).map(|node| &*node.endpoint)
}

/// How the gateways are called that offer this model.
pub(crate) async fn gateways_with(registry: &dyn Registry, model: &B256) -> Result<Vec<String>, Failure> {
    let mut urls = Vec::new();
    for subnet in all(registry).await?.iter().filter(|subnet| subnet.model(model).is_some()) {
        urls.extend(gateways(subnet, &nodes(registry, subnet).await?).map(ToOwned::to_owned));
    }
    Ok(urls)
}

/// A subnet as JSON: its definition with its id, and who serves it where that was asked.
#[derive(Serialize)]
struct Shown<'a> {
    id: B256,
    #[serde(flatten)]
    subnet: &'a Subnet,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<&'a [NodeRecord]>,
}

fn print(subnet: &Subnet, nodes: &[NodeRecord], json: bool) -> Result<(), Failure> {
    let mut out = io::stdout();
    if json {
        return Ok(writeln!(out, "{:#}", json!(Shown { id: subnet.id(), subnet, nodes: Some(nodes) }))?);
    }
    writeln!(out, "{}", sanitize(&subnet.name))?;
    writeln!(out, "  id        {}", subnet.id())?;
    writeln!(out, "  owner     {}", subnet.owner)?;
    for gateway in &subnet.gateways {
        writeln!(out, "  member    {gateway}")?;
    }
    writeln!(out, "  version   {}", subnet.version)?;
    for SubnetModel { name, digest, price } in &subnet.models {
        writeln!(out, "  model     {}: {price}  {digest}", sanitize(name))?;
    }
    for NodeRecord { node, role, endpoint, .. } in nodes {
        let role = if *role == NodeRole::Gateway { "gateway" } else { "compute" };
        writeln!(out, "  {role:<10}{node}  {}", sanitize(endpoint))?;
    }
    Ok(())
}

pub(crate) async fn list(registry: &dyn Registry, json: bool) -> Result<(), Failure> {
    let subnets = all(registry).await?;
    let mut out = io::stdout();
    if json {
        let shown: Vec<_> = subnets.iter().map(|subnet| Shown { id: subnet.id(), subnet, nodes: None }).collect();
        return Ok(writeln!(out, "{:#}", json!(shown))?);
    }
    for subnet in &subnets {
        let models: Vec<_> = subnet.models.iter().map(|model| sanitize(&model.name)).collect();
        writeln!(out, "{}  {}  {}", subnet.id(), sanitize(&subnet.name), models.join(", "))?;
    }
    Ok(())
}

async fn join(reference: &str, models: &[String], asked: &Asked, store: &StoreArguments) -> Result<(), Failure> {
    let (urls, store) = (&asked.registry, store.open()?);
    let registry = urls.open()?;
    let subnet = find(&*registry, reference).await?;
    let nodes = nodes(&*registry, &subnet).await?;
    let gateways: Vec<_> = gateways(&subnet, &nodes).collect();
    let Some(gateway) = gateways.first() else {
        return Err(Failure::Failed(format!("subnet {reference}: none of its gateways is on the network now")));
    };
    let is_meant =
        |model: &SubnetModel, name: &str| name == model.name || name.parse().is_ok_and(|digest: B256| digest == model.digest);
    let is_wanted = |model: &SubnetModel| models.is_empty() || models.iter().any(|name| is_meant(model, name));
    let wanted: Vec<_> = subnet.models.iter().filter(|model| is_wanted(model)).collect();
    let is_offered = |name: &String| subnet.models.iter().any(|model| is_meant(model, name));
    if wanted.is_empty() || !models.iter().all(is_offered) {
        let names: Vec<_> = subnet.models.iter().map(|model| sanitize(&model.name)).collect();
        return Err(Failure::Input(format!("--model: the subnet offers: {}", names.join(", "))));
    }
    for model in &wanted {
        // What the subnet's owner has signed, by its digest: the gateway's word is not needed.
        let digest = hex::encode(model.digest);
        if store.find(&digest).map_or(true, |stored| !stored.missing.is_empty()) {
            model::pull(&store, &digest, &[], model::Who::Gateway(gateway)).await?;
        }
    }
    let mut out = io::stdout();
    if asked.json {
        let digests: Vec<B256> = wanted.iter().map(|model| model.digest).collect();
        return Ok(writeln!(out, "{:#}", json!({ "subnet": subnet.id(), "gateways": gateways, "models": digests }))?);
    }
    let models: Vec<_> = wanted.iter().map(|model| format!(" --model {}", hex::encode(model.digest))).collect();
    // The subnet's gateways have chosen what stands here, to be pasted into a shell.
    let gateways = typed(Path::new(&sanitize(&gateways.join(","))));
    writeln!(out, "run: ncn compute --gateway {gateways} {}{} --key FILE --rpc URL", urls.flags(), models.concat())?;
    Ok(())
}

async fn leave(by: &Account) -> Result<(), Failure> {
    let signer = by.key.open()?;
    let registry = by.asked.registry.open()?;
    let domain = by.chain.ledger(signer.clone()).await?.trust_root().await.map_err(Failure::failed)?.domain;
    let node: Address = signer.address();
    let departure = Deregistration { node, sequence: next_sequence(0) };
    let departure = Signed::sign(departure, &domain, &*signer).await.map_err(Failure::failed)?;
    registry.deregister(departure).await.map_err(Failure::failed)?;
    let mut out = io::stdout();
    if by.asked.json {
        return Ok(writeln!(out, "{:#}", json!({ "left": node }))?);
    }
    Ok(writeln!(out, "node {node} has left the network")?)
}
