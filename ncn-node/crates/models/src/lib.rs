//! The model store: manifests and content-addressed files on disk, and the ways they come there.
//!
//! | in the store's directory | what it is |
//! | --- | --- |
//! | `manifests/<digest>.json` | a manifest, by its SHA-256: the model's digest |
//! | `blobs/sha256/<hash>` | a file of a model, by its SHA-256: whole and verified when it came, or not there |
//! | `blobs/sha256/<hash>.partial` | what was fetched of it so far |
//! | `names/<name>`, `names/<name>@<version>` | the digest that a name stands for: of the model that came last under it |
//! | `sources/<digest>` | where the model was fetched from, one URL a line |
//! | `packages/<digest>/` | the model's files under the manifest's paths: hard links to blobs, for executors |
//!
//! A [`Source`] has the first, second and fourth of these, so a store's directory is a source, and so is whatever serves its files.
//!
//! Several processes may use one store. Whatever gets a name in it was written beside it and then renamed; a blob that is being
//! fetched is locked by whoever fetches it; manifests, names and removals are made under the store's lock.

mod error;
mod fetch;
mod layout;
mod pack;
mod push;
mod serve;
mod source;

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use ncn_core::{Model, executor::ModelPackage, model::ModelFile};

pub use error::ModelStoreError;
use layout::{Layout, blocking, read_manifest};
pub use pack::{MANIFEST_FILE, pack};
pub use source::Source;

/// How many files of a model are fetched or sent at once.
const AT_ONCE: usize = 4;

type Result<T> = std::result::Result<T, ModelStoreError>;

/// A directory of models.
#[derive(Clone, Debug)]
pub struct ModelStore {
    layout: Layout,
}

/// A model of which the store has the manifest, and all, some or none of the files.
#[derive(Clone, Debug)]
pub struct StoredModel {
    /// The model.
    pub model: Model,
    /// The files that are not there, or not of the manifest's size. Contents are looked at by [`ModelStore::verify`].
    pub missing: Vec<ModelFile>,
    /// How many bytes of these a pull has fetched so far.
    pub fetched: u64,
}

/// How far a transfer is, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes that are where they have to be; they become fewer when a file has to be begun again.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// All bytes of the model; 0 until it is known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn begin(&self, files: &[ModelFile]) {
        self.total.store(files.iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl ModelStore {
    /// The store in this directory, which is made if it is not there.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { layout: Layout::open(directory.into())? })
    }

    /// Where a user's models are: `NCN_MODELS`, or `ncn/models` in the user's data directory.
    pub fn default_directory() -> Option<PathBuf> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let data = || set("XDG_DATA_HOME").or_else(|| Some(env::home_dir()?.join(".local/share")));
        set("NCN_MODELS").or_else(|| Some(data()?.join("ncn/models")))
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.layout.root
    }

    /// Every model of which there is a manifest, by name and version.
    pub fn list(&self) -> Result<Vec<StoredModel>> {
        let mut all = Vec::new();
        for digest in self.layout.digests()? {
            match self.layout.model(&digest) {
                Ok(model) => all.push(self.stored(model)),
                Err(error) => tracing::warn!(%error, "a manifest is left out"),
            }
        }
        all.sort_by_cached_key(|stored| {
            let manifest = stored.model.manifest();
            (manifest.name.clone(), manifest.version.clone(), stored.model.digest())
        });
        Ok(all)
    }

    /// The model that is meant: by its digest or the beginning of it (8 digits or more), by `NAME@VERSION`, or by its name, which is
    /// the one that came last under it.
    pub fn find(&self, reference: &str) -> Result<StoredModel> {
        if let Some(digest) = source::digest(reference).or_else(|| self.layout.named(reference))
            && let Ok(model) = self.layout.model(&digest)
        {
            return Ok(self.stored(model));
        }
        let prefix = reference.strip_prefix("0x").unwrap_or(reference).to_ascii_lowercase();
        let begins = |model: &Model| prefix.len() >= 8 && hex::encode(model.digest()).starts_with(&prefix);
        let mut found: Vec<_> = self.list()?;
        found.retain(|stored| begins(&stored.model) || is_meant(&stored.model, reference));
        match (found.pop(), found.len()) {
            (Some(stored), 0) => Ok(stored),
            (None, _) => Err(ModelStoreError::Unknown(reference.into())),
            (Some(_), others) => Err(ModelStoreError::Ambiguous { reference: reference.into(), models: others + 1 }),
        }
    }

    fn stored(&self, model: Model) -> StoredModel {
        let missing: Vec<_> = distinct(&model).into_iter().filter(|file| !self.layout.has(file)).collect();
        let fetched = missing.iter().map(|file| self.layout.begun(file)).sum();
        StoredModel { model, missing, fetched }
    }

    /// Takes in the package in this directory: its `manifest.json`, and copies of the files that it names. A package that is not what
    /// its manifest says is refused, and leaves nothing behind.
    pub async fn add(&self, directory: &Path) -> Result<Model> {
        let model = read_manifest(&directory.join(MANIFEST_FILE))?;
        let known = self.layout.manifest(&model.digest()).exists();
        self.keep_manifest(&model, &[]).await?;
        let copied = self.copy_files(&model, directory).await;
        if copied.is_err() && !known {
            self.remove(&model).await?;
        }
        copied?;
        self.keep_names(&model).await?;
        Ok(model)
    }

    async fn copy_files(&self, model: &Model, directory: &Path) -> Result<()> {
        for file in model.manifest().files.clone() {
            let (layout, directory) = (self.layout.clone(), directory.to_owned());
            blocking(move || layout.copy_in(&file, &directory)).await?;
        }
        Ok(())
    }

    /// Fetches what is missing of a model, from the first of these sources that has it. What was fetched before is kept, also by a
    /// call that failed or was dropped, and the sources are remembered for [`package`](Self::package).
    pub async fn pull(&self, model: &Model, sources: &[Source], progress: &Progress) -> Result<()> {
        self.keep_manifest(model, sources).await?;
        let files = distinct(model);
        progress.begin(&files);
        let fetches = stream::iter(&files).map(|file| fetch::fetch(&self.layout, file, sources, progress));
        fetches.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        self.keep_names(model).await
    }

    /// Where the model was fetched from.
    pub fn sources(&self, model: &Model) -> Result<Vec<Source>> {
        self.layout.sources(&model.digest())?.iter().map(|url| Source::new(url)).collect()
    }

    /// The model as executors take it, every byte of it read and compared. What is corrupt or missing is fetched again from where the
    /// model came from; if it came from nowhere, or nothing has it any more, there is no package.
    pub async fn package(&self, reference: &str) -> Result<ModelPackage> {
        let model = self.find(reference)?.model;
        let broken = self.verify(&model).await?;
        if let Some(file) = broken.first() {
            let sources = self.sources(&model)?;
            if sources.is_empty() {
                return Err(ModelStoreError::Incomplete { model: model.manifest().name.clone(), path: file.path.clone() });
            }
            tracing::warn!(
                model = model.manifest().name,
                files = broken.len(),
                "files are missing or corrupt; fetching them again"
            );
            self.pull(&model, &sources, &Progress::default()).await?;
        }
        let (layout, linked) = (self.layout.clone(), model.clone());
        let directory = blocking(move || layout.link_package(&linked)).await?;
        Ok(ModelPackage { model: Arc::new(model), directory })
    }

    /// Reads every file of a model. What is not as the manifest says is dropped; returns that, and what was not there.
    pub async fn verify(&self, model: &Model) -> Result<Vec<ModelFile>> {
        let mut broken = Vec::new();
        for file in distinct(model) {
            let (layout, looked) = (self.layout.clone(), file.clone());
            if !blocking(move || layout.verify(&looked)).await? {
                broken.push(file);
            }
        }
        Ok(broken)
    }

    /// Forgets a model, and frees the files that no other model has. Returns how many bytes became free.
    pub async fn remove(&self, model: &Model) -> Result<u64> {
        let _lock = self.layout.lock().await?;
        let (layout, digest) = (self.layout.clone(), model.digest());
        let files = model.manifest().files.iter().map(|file| file.sha256).collect();
        let name = model.manifest().name.clone();
        let version = model.manifest().version.clone();
        blocking(move || {
            layout.forget(&digest)?;
            layout.rename_to_latest(&name, &[&name, &format!("{name}@{version}")])?;
            layout.free(&files)
        })
        .await
    }

    async fn keep_manifest(&self, model: &Model, sources: &[Source]) -> Result<()> {
        let _lock = self.layout.lock().await?;
        let (layout, model) = (self.layout.clone(), model.clone());
        let urls: Vec<_> = sources.iter().map(|source| source.url().to_owned()).collect();
        blocking(move || layout.keep_manifest(&model, &urls)).await
    }

    /// The last step of a model's coming: names are only given to what is there.
    async fn keep_names(&self, model: &Model) -> Result<()> {
        let _lock = self.layout.lock().await?;
        let stored = self.stored(model.clone());
        let there = self.layout.manifest(&model.digest()).exists();
        if !there || !stored.missing.is_empty() {
            return Err(ModelStoreError::Removed(model.manifest().name.clone()));
        }
        let (layout, digest) = (self.layout.clone(), model.digest());
        let names = [model.manifest().name.clone(), format!("{}@{}", model.manifest().name, model.manifest().version)];
        blocking(move || names.iter().try_for_each(|name| layout.keep_name(name, &digest))).await
    }
}

/// Whether a model is what this digest, name, or `NAME@VERSION` stands for. A digest is never taken for a name.
pub fn is_meant(model: &Model, reference: &str) -> bool {
    let manifest = model.manifest();
    match source::digest(reference) {
        Some(digest) => digest == model.digest(),
        None => reference == manifest.name || reference == format!("{}@{}", manifest.name, manifest.version),
    }
}

/// The model's files, each content once.
fn distinct(model: &Model) -> Vec<ModelFile> {
    let mut seen = BTreeSet::new();
    model.manifest().files.iter().filter(|file| seen.insert(file.sha256)).cloned().collect()
}
