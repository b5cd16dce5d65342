//! `ncn model`: packages, and the store of this machine.

mod init;

use std::{
    env,
    ffi::OsString,
    fmt,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use indicatif::{DecimalBytes, ProgressBar, ProgressFinish, ProgressStyle};
use ncn_core::{B256, Model, Registry, Transport, executor::ModelPackage};
use ncn_models::{MANIFEST_FILE, ModelStore, ModelStoreError, Progress, Source, StoredModel};
use ncn_node::server::Server;
use serde_json::json;

use crate::{
    Failure,
    account::{RegistryArguments, gateway},
    block_on,
    engines::EngineArguments,
    run_until, sanitize, say, serving, subnet,
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Draft the manifest.json of a directory with a model's files
    Init {
        /// The directory
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
    /// Make a package: complete a directory's manifest.json with its files' sizes and SHA-256, and load it as a compute node would
    Pack {
        /// The package's directory
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
        /// The manifest without its `files`; the directory's manifest.json by default
        #[arg(long, value_name = "FILE")]
        draft: Option<PathBuf>,
        /// Do not load it
        #[arg(long)]
        no_load: bool,
        #[command(flatten)]
        engines: Box<EngineArguments>,
    },
    /// Copy a package into the store
    Add {
        /// The package's directory
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
        #[command(flatten)]
        store: StoreArguments,
    },
    /// List what is in the store
    List {
        #[command(flatten)]
        store: StoreArguments,
        /// Print one JSON array instead of text
        #[arg(long)]
        json: bool,
    },
    /// Fetch a model, or go on fetching it
    Pull {
        /// Its name, NAME@VERSION, or digest
        #[arg(value_name = "MODEL")]
        model: String,
        /// Where it is: file:///DIRECTORY, http(s)://.., s3://BUCKET/PREFIX; several may be given. For a model of which the store has
        /// the manifest, where it came from by default
        #[arg(long, value_name = "URL")]
        from: Vec<String>,
        /// The gateway whose model it is, and which knows where its files are
        #[arg(long, value_name = "URL")]
        gateway: Option<String>,
        /// The registry nodes that know the manifest by its digest, and the gateways that know where the files are
        #[arg(long, value_name = "URL[,URL..]", value_delimiter = ',', conflicts_with = "gateway")]
        registry: Vec<String>,
        #[command(flatten)]
        store: StoreArguments,
    },
    /// Read and compare every file; drop what is corrupt
    Verify {
        /// Its name, NAME@VERSION, or digest; all models by default
        #[arg(value_name = "MODEL")]
        model: Option<String>,
        #[command(flatten)]
        store: StoreArguments,
    },
    /// Delete a model, and the files that no other model has
    Remove {
        /// Its name, NAME@VERSION, or digest
        #[arg(value_name = "MODEL")]
        model: String,
        #[command(flatten)]
        store: StoreArguments,
    },
    /// Publish a model where others can pull it from
    Push {
        /// Its name, NAME@VERSION, or digest
        #[arg(value_name = "MODEL")]
        model: String,
        /// Where to: file:///DIRECTORY or s3://BUCKET/PREFIX
        #[arg(long, value_name = "URL")]
        to: String,
        #[command(flatten)]
        store: StoreArguments,
    },
    /// Serve the store to other nodes, which pull from it as from any http:// source
    Serve {
        /// Where
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50060", value_parser = crate::listen_address)]
        listen: SocketAddr,
        #[command(flatten)]
        store: StoreArguments,
    },
}

/// Names the store's directory.
const STORE_VARIABLE: &str = "NCN_MODELS";

#[derive(clap::Args)]
pub(crate) struct StoreArguments {
    /// The store's directory; ncn/models in the user's data directory by default
    #[arg(long, value_name = "DIRECTORY", env = STORE_VARIABLE)]
    store: Option<OsString>,
}

impl StoreArguments {
    pub(crate) fn open(&self) -> Result<ModelStore, Failure> {
        // A variable that is set to nothing is not set.
        let named = self.store.clone().filter(|named| !named.is_empty()).map(PathBuf::from);
        let directory = named.or_else(ModelStore::default_directory);
        let directory = directory.ok_or_else(|| Failure::Input("--store is missing, and there is no home directory".into()))?;
        ModelStore::open(directory).map_err(|error| Failure::Input(format!("--store {error}")))
    }
}

impl From<ModelStoreError> for Failure {
    fn from(error: ModelStoreError) -> Self {
        if error.is_input() { Self::Input(error.to_string()) } else { Self::Failed(error.to_string()) }
    }
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Pack { directory, .. } if !directory.is_dir() => {
            Err(Failure::Input(format!("DIRECTORY {}: is no directory", directory.display())))
        }
        Command::Init { directory } => init::run(directory),
        Command::Pack { directory, draft, no_load, engines } => {
            let model = ncn_models::pack(directory, draft.as_deref())?;
            tell(&model)?;
            let package = ModelPackage { model: Arc::new(model), directory: directory.clone() };
            if *no_load { Ok(()) } else { block_on(engines.try_out(&package)) }
        }
        Command::Add { directory, store } => add(&store.open()?, directory),
        Command::List { store, json } => list(&store.open()?, *json),
        Command::Pull { model, from, gateway, registry, store } => {
            let store = store.open()?;
            let interrupted = "interrupted; what was fetched is kept: the same command goes on with it";
            let pulling = async {
                let registry = if registry.is_empty() { None } else { Some(RegistryArguments::of(registry.clone()).open()?) };
                let who = match (gateway, &registry) {
                    (Some(url), _) => Who::Gateway(url),
                    (None, Some(registry)) => Who::Registry(&**registry),
                    (None, None) => Who::Nobody,
                };
                tell(&pull(&store, model, from, who).await?)
            };
            run_until(pulling, interrupted)
        }
        Command::Verify { model, store } => block_on(verify(store, model.as_deref())),
        Command::Remove { model, store } => block_on(remove(&store.open()?, model)),
        Command::Push { model, to, store } => block_on(push(&store.open()?, model, to)),
        Command::Serve { listen, store } => {
            let store = store.open()?;
            serving(async { serve(&store, *listen) }, |server| async move { drop(server) }, true)
        }
    }
}

/// Refuses a directory that cannot be a package.
pub(crate) fn is_package(argument: &str, directory: &Path) -> Result<(), Failure> {
    if directory.join(MANIFEST_FILE).is_file() {
        return Ok(());
    }
    let hint = "`ncn model pack` makes one";
    Err(Failure::Input(format!("{argument} {}: there is no package, which has a {MANIFEST_FILE}: {hint}", directory.display())))
}

fn add(store: &ModelStore, directory: &Path) -> Result<(), Failure> {
    is_package("DIRECTORY", directory)?;
    block_on(async { tell(&store.add(directory).await?) })
}

pub(crate) async fn pull(store: &ModelStore, reference: &str, from: &[String], who: Who<'_>) -> Result<Model, Failure> {
    let mut sources = from.iter().map(|url| Source::new(url)).collect::<Result<Vec<_>, _>>()?;
    let known = match who {
        Who::Nobody => None,
        Who::Gateway(url) => Some((ask_gateway(url, reference).await?, format!("gateway {url}: names no source of model files"))),
        Who::Registry(registry) => Some((
            ask_registry(registry, reference).await?,
            format!("model {reference}: none of its gateways names a source of model files"),
        )),
    };
    let model = if let Some(((model, more), problem)) = known {
        sources.extend(more);
        if sources.is_empty() {
            return Err(Failure::Failed(format!("{problem}: `ncn model pull --from` takes one")));
        }
        model
    } else if sources.is_empty() {
        let known = store.find(reference)?.model;
        sources = store.sources(&known)?;
        known
    } else {
        look_up(reference, &sources).await?
    };
    let progress = Progress::default();
    showing(&progress, &model, store.pull(&model, &sources, &progress)).await?;
    Ok(model)
}

/// Who knows a model, and where its files are.
#[derive(Clone, Copy)]
pub(crate) enum Who<'a> {
    /// The store, or the sources that are named.
    Nobody,
    /// The gateway at this URL.
    Gateway(&'a str),
    /// The registry knows the manifest, and the gateways that know the rest.
    Registry(&'a dyn Registry),
}

/// The model as a gateway has it, and where its files are.
async fn ask_gateway(url: &str, reference: &str) -> Result<(Model, Vec<Source>), Failure> {
    let transport = gateway(url)?;
    let offered = transport.models().await.map_err(Failure::failed)?;
    let Some(info) = offered.iter().find(|info| ncn_models::is_meant(&info.model, reference)) else {
        let names: Vec<_> = offered.iter().map(|info| info.model.manifest().name.as_str()).collect();
        return Err(Failure::Input(format!("model {reference}: is not offered by this gateway; it has: {}", names.join(", "))));
    };
    Ok((info.model.clone(), sources_of(&*transport).await?))
}

/// Where a gateway says that the files of its models are.
async fn sources_of(gateway: &dyn Transport) -> Result<Vec<Source>, Failure> {
    let mut sources = Vec::new();
    for url in gateway.network().await.map_err(Failure::failed)?.model_sources {
        match Source::named_by_others(&url) {
            Ok(source) => sources.push(source),
            Err(error) => say(&sanitize(&format!("the gateway names a source that is left out: {error}"))),
        }
    }
    Ok(sources)
}

/// The model with this digest, and where the gateways that offer it say that its files are. A gateway that does not answer is left out.
async fn ask_registry(registry: &dyn Registry, reference: &str) -> Result<(Model, Vec<Source>), Failure> {
    let digest: B256 =
        reference.parse().map_err(|_| Failure::Input(format!("model {reference}: the registry knows models by their digests")))?;
    let manifest = registry.manifest(digest).await.map_err(Failure::failed)?;
    let model = Model::parse(manifest).map_err(Failure::failed)?;
    let mut sources = Vec::new();
    for gateway in subnet::gateways_with(registry, &digest).await? {
        match ncn_client::transport(&gateway) {
            Ok(gateway) => sources.extend(sources_of(&*gateway).await.unwrap_or_default()),
            Err(error) => say(&sanitize(&format!("a gateway is left out: {error}"))),
        }
        // One that knows is enough.
        if !sources.is_empty() {
            break;
        }
    }
    Ok((model, sources))
}

/// The first of the sources that knows the model says what it is.
async fn look_up(reference: &str, sources: &[Source]) -> Result<Model, Failure> {
    let mut problem = None;
    for source in sources {
        match source.model(reference).await {
            Ok(model) => return Ok(model),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    Err(problem.map_or_else(|| Failure::Input("--from is missing".into()), Failure::from))
}

async fn push(store: &ModelStore, reference: &str, to: &str) -> Result<(), Failure> {
    let target = Source::to_push_to(to).map_err(|error| Failure::Input(format!("--to: {error}")))?;
    let progress = Progress::default();
    let model = store.find(reference)?.model;
    showing(&progress, &model, store.push(reference, &target, &progress)).await?;
    tell(&model)
}

async fn verify(arguments: &StoreArguments, reference: Option<&str>) -> Result<(), Failure> {
    let store = arguments.open()?;
    let all = match reference {
        Some(reference) => vec![store.find(reference)?],
        None => store.list()?,
    };
    let mut out = std::io::stdout();
    let mut broken_models = 0;
    for StoredModel { model, .. } in &all {
        let broken = store.verify(model).await?;
        let name = title(model);
        if broken.is_empty() {
            writeln!(out, "{name}: whole")?;
            continue;
        }
        broken_models += 1;
        for file in broken {
            writeln!(out, "{name}: {} was corrupt or missing", file.path)?;
        }
        let more = if store.sources(model)?.is_empty() { " --from URL" } else { "" };
        let named = arguments.store.as_ref().filter(|store| env::var_os(STORE_VARIABLE).is_none_or(|default| **store != *default));
        let from = named.map(|store| format!(" --store {}", store.display())).unwrap_or_default();
        writeln!(out, "{name}: fetch it again with: ncn model pull {}{more}{from}", hex::encode(model.digest()))?;
    }
    match broken_models {
        0 => Ok(()),
        broken => Err(Failure::Failed(format!("{broken} of {} models are not whole", all.len()))),
    }
}

async fn remove(store: &ModelStore, reference: &str) -> Result<(), Failure> {
    let model = store.find(reference)?.model;
    let freed = store.remove(&model).await?;
    Ok(writeln!(std::io::stdout(), "removed {}, {} freed", title(&model), DecimalBytes(freed))?)
}

fn serve(store: &ModelStore, listen: SocketAddr) -> Result<Server, Failure> {
    let server = Server::start_small(listen.into(), store.routes()).map_err(|error| Failure::Input(format!("--listen {error}")))?;
    let mut out = std::io::stdout();
    writeln!(out, "serving {} at {}", sanitize(&store.directory().display().to_string()), server.url())?;
    out.flush()?;
    Ok(server)
}

fn list(store: &ModelStore, json: bool) -> Result<(), Failure> {
    let all = store.list()?;
    let mut out = std::io::stdout().lock();
    if json {
        let rows: Vec<_> = all.iter().map(row).collect();
        return Ok(writeln!(out, "{:#}", json!(rows))?);
    }
    if all.is_empty() {
        return Ok(writeln!(out, "no models in {}", sanitize(&store.directory().display().to_string()))?);
    }
    let mut rows = vec![["NAME", "VERSION", "FORMAT", "SIZE", "DIGEST", "FILES"].map(str::to_owned)];
    for stored in &all {
        let manifest = stored.model.manifest();
        let files = if stored.missing.is_empty() {
            "complete".into()
        } else {
            let left = DecimalBytes(to_fetch(stored));
            format!("{left} to fetch, {} of {} files", stored.missing.len(), manifest.files.len())
        };
        let digest = hex::encode(stored.model.digest()).chars().take(12).collect();
        let (name, version) = (manifest.name.clone(), manifest.version.clone());
        rows.push([name, version, manifest.format.to_string(), DecimalBytes(size(&stored.model)).to_string(), digest, files]);
    }
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or_default();
    let widths: Vec<_> = (0..6).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let line: Vec<_> = cells
            .map(|(column, (cell, width))| if column == 3 { format!("{cell:>width$}") } else { format!("{cell:width$}") })
            .collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}

fn row(stored: &StoredModel) -> serde_json::Value {
    let manifest = stored.model.manifest();
    let missing: Vec<_> = stored.missing.iter().map(|file| json!({ "path": file.path, "bytes": file.bytes })).collect();
    json!({
        "name": manifest.name,
        "version": manifest.version,
        "digest": hex::encode(stored.model.digest()),
        "format": manifest.format,
        "task": manifest.task,
        "licence": manifest.licence,
        "bytes": size(&stored.model),
        "complete": missing.is_empty(),
        "to_fetch": to_fetch(stored),
        "missing": missing,
    })
}

fn to_fetch(stored: &StoredModel) -> u64 {
    stored.missing.iter().map(|file| file.bytes).sum::<u64>().saturating_sub(stored.fetched)
}

fn size(model: &Model) -> u64 {
    model.manifest().files.iter().map(|file| file.bytes).sum()
}

fn title(model: &Model) -> impl fmt::Display {
    format!("{} {}", model.manifest().name, model.manifest().version)
}

/// One line for people and scripts: which model this is.
pub(crate) fn tell(model: &Model) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{} {}", title(model), hex::encode(model.digest()))?)
}

/// Shows how far a transfer is, on a terminal.
async fn showing<T>(
    progress: &Progress,
    model: &Model,
    transfer: impl Future<Output = Result<T, ModelStoreError>>,
) -> Result<T, Failure> {
    let bar = ProgressBar::new(size(model)).with_finish(ProgressFinish::AndClear).with_message(title(model).to_string());
    let template = "{msg} {wide_bar} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let show = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            let before = bar.position();
            bar.set_position(progress.done());
            if before == 0 {
                // What was there already says nothing about the rate.
                bar.reset_eta();
            }
        }
    };
    let done = tokio::select! {
        done = transfer => done,
        never = show => never,
    };
    Ok(done?)
}
