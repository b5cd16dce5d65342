//! The store's files. Everything here blocks.

use std::{
    collections::BTreeSet,
    fs::{self, File, Permissions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use ncn_core::B256;
use ncn_core::{
    Model,
    model::{MAX_MANIFEST_BYTES, ModelFile},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{MANIFEST_FILE, ModelStoreError, Result, pack::LINK, source};

/// How long others may hold the store's lock. They hold it to write a few small files, or to delete.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// The mode of what is never changed.
pub(super) const READ_ONLY: u32 = 0o444;
/// What the names of files begin with that have no name yet.
const NEW: &str = ".new-";
/// When such a file is nobody's any more.
const STALE: Duration = Duration::from_hours(24);
/// How many sources of a model are remembered.
const MAX_SOURCES: usize = 16;

/// Where the store's files are.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
}

/// Runs what blocks.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ModelStoreError::File { path: PathBuf::new(), source: io::Error::other(error) }),
    }
}

/// A manifest and its bytes.
pub(super) fn read_manifest(path: &Path) -> Result<Model> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(ModelStoreError::file(path))?;
    // One byte more than it may have is enough to see that it has too many.
    file.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(ModelStoreError::file(path))?;
    Model::parse(bytes).map_err(|source| ModelStoreError::Manifest { path: path.into(), source })
}

impl Layout {
    pub(super) fn open(root: PathBuf) -> Result<Self> {
        let this = Self { root };
        for directory in ["manifests", "blobs/sha256", "names", "sources", "packages"] {
            let path = this.root.join(directory);
            fs::create_dir_all(&path).map_err(ModelStoreError::file(path))?;
        }
        Ok(this)
    }

    pub(super) fn manifest(&self, digest: &B256) -> PathBuf {
        self.root.join(format!("manifests/{}.json", hex::encode(digest)))
    }

    pub(super) fn blob(&self, sha256: &B256) -> PathBuf {
        self.root.join("blobs/sha256").join(hex::encode(sha256))
    }

    pub(super) fn partial(&self, sha256: &B256) -> PathBuf {
        self.blob(sha256).with_extension("partial")
    }

    fn package(&self, digest: &B256) -> PathBuf {
        self.root.join("packages").join(hex::encode(digest))
    }

    pub(super) fn name(&self, name: &str) -> PathBuf {
        self.root.join("names").join(name)
    }

    fn source_list(&self, digest: &B256) -> PathBuf {
        self.root.join("sources").join(hex::encode(digest))
    }

    /// The right to change manifests and names, and to remove.
    pub(super) async fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(ModelStoreError::file(&path))?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(ModelStoreError::file(path)(error)),
                Err(TryLockError::WouldBlock) if since.elapsed() > LOCK_TIMEOUT => return Err(ModelStoreError::Busy(path)),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The models of which there is a manifest.
    pub(super) fn digests(&self) -> Result<Vec<B256>> {
        let directory = self.root.join("manifests");
        let listed = fs::read_dir(&directory).map_err(ModelStoreError::file(&directory))?;
        Ok(listed.flatten().filter_map(|entry| source::digest(entry.file_name().to_str()?.strip_suffix(".json")?)).collect())
    }

    /// The model with this digest. A manifest that is no longer what it was counts as not there.
    pub(super) fn model(&self, digest: &B256) -> Result<Model> {
        let model = read_manifest(&self.manifest(digest))?;
        if model.digest() == *digest { Ok(model) } else { Err(ModelStoreError::Unknown(hex::encode(digest))) }
    }

    /// What a name stands for.
    pub(super) fn named(&self, name: &str) -> Option<B256> {
        let text = if source::is_name(name) { fs::read_to_string(self.name(name)).ok()? } else { return None };
        source::digest(text.trim())
    }

    pub(super) fn keep_name(&self, name: &str, digest: &B256) -> Result<()> {
        write(&self.name(name), format!("{}\n", hex::encode(digest)).as_bytes(), READ_ONLY)
    }

    pub(super) fn keep_manifest(&self, model: &Model, sources: &[String]) -> Result<()> {
        let path = self.manifest(&model.digest());
        if self.model(&model.digest()).is_err() {
            write(&path, model.bytes(), READ_ONLY)?;
        }
        if sources.is_empty() {
            return Ok(());
        }
        let mut all = sources.to_vec();
        all.extend(self.sources(&model.digest())?.into_iter().filter(|known| !sources.contains(known)));
        all.truncate(MAX_SOURCES);
        write(&self.source_list(&model.digest()), (all.join("\n") + "\n").as_bytes(), READ_ONLY)
    }

    pub(super) fn sources(&self, digest: &B256) -> Result<Vec<String>> {
        let path = self.source_list(digest);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().take(MAX_SOURCES).map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(ModelStoreError::file(path)(error)),
        }
    }

    /// Whether the blob is there, by its size.
    pub(super) fn has(&self, file: &ModelFile) -> bool {
        fs::metadata(self.blob(&file.sha256)).is_ok_and(|there| there.is_file() && there.len() == file.bytes)
    }

    /// How many bytes of the blob were fetched so far.
    pub(super) fn begun(&self, file: &ModelFile) -> u64 {
        fs::metadata(self.partial(&file.sha256)).map_or(0, |there| there.len().min(file.bytes))
    }

    /// Reads the blob; drops it when it is not what its name says.
    pub(super) fn verify(&self, file: &ModelFile) -> Result<bool> {
        let path = self.blob(&file.sha256);
        match hash(&path) {
            Ok(found) if found == (file.bytes, file.sha256) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, path = %path.display(), "cannot be read"),
        }
        delete(&path)?;
        Ok(false)
    }

    /// Copies a file in from a package's directory, and compares it on the way.
    pub(super) fn copy_in(&self, file: &ModelFile, package: &Path) -> Result<()> {
        let from = &package.join(&file.path);
        for path in from.ancestors().take_while(|path| *path != package) {
            if fs::symlink_metadata(path).map_err(ModelStoreError::file(path))?.is_symlink() {
                return Err(ModelStoreError::package(path, LINK));
            }
        }
        // Opening what is no file may wait for ever.
        if !fs::metadata(from).map_err(ModelStoreError::file(from))?.is_file() {
            return Err(ModelStoreError::package(from, "is no file"));
        }
        let mut source = File::open(from).map_err(ModelStoreError::file(from))?;
        let target = self.blob(&file.sha256);
        let beside = beside(&target)?;
        let mut copy = Copy { to: beside.as_file(), hash: Sha256::new() };
        // One byte more than promised is enough to see that there is more.
        let bytes =
            io::copy(&mut (&mut source).take(file.bytes.saturating_add(1)), &mut copy).map_err(ModelStoreError::file(from))?;
        if bytes != file.bytes {
            let there = source.metadata().map_or(bytes, |there| there.len());
            let problem = format!("has {there} bytes, the manifest says {}: run `ncn model pack` if the file is right", file.bytes);
            return Err(ModelStoreError::package(from, problem));
        }
        if copy.hash.finalize().as_slice() != file.sha256.as_slice() {
            return Err(ModelStoreError::package(
                from,
                "does not have the manifest's SHA-256: run `ncn model pack` if the file is right",
            ));
        }
        place(beside, &target, READ_ONLY)
    }

    /// Puts the model's files where its manifest says they are in a package.
    pub(super) fn link_package(&self, model: &Model) -> Result<PathBuf> {
        let package = self.package(&model.digest());
        let files = model.manifest().files.iter();
        let links = files.map(|file| (self.blob(&file.sha256), package.join(&file.path)));
        let manifest = (self.manifest(&model.digest()), package.join(MANIFEST_FILE));
        for (from, to) in std::iter::once(manifest).chain(links) {
            link(&from, &to).map_err(ModelStoreError::file(&to))?;
        }
        Ok(package)
    }

    /// Drops all that is the model's alone by its digest.
    pub(super) fn forget(&self, digest: &B256) -> Result<()> {
        let package = self.package(digest);
        match fs::remove_dir_all(&package) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ModelStoreError::file(package)(error)),
            _ => {}
        }
        delete(&self.source_list(digest))?;
        delete(&self.manifest(digest)).map(drop)
    }

    /// Lets names whose model is gone stand for the one that came last among those left, or for none.
    pub(super) fn rename_to_latest(&self, name: &str, references: &[&str]) -> Result<()> {
        let came = |digest: &B256| {
            fs::metadata(self.manifest(digest)).and_then(|there| there.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let mut left: Vec<_> = self.digests()?.iter().filter_map(|digest| self.model(digest).ok()).collect();
        left.retain(|model| model.manifest().name == name);
        left.sort_by_key(|model| came(&model.digest()));
        for reference in references {
            if self.named(reference).is_some_and(|digest| self.model(&digest).is_ok()) {
                continue;
            }
            let fits = |model: &&Model| *reference == name || format!("{name}@{}", model.manifest().version) == *reference;
            match left.iter().rev().find(fits) {
                Some(model) => self.keep_name(reference, &model.digest())?,
                None => delete(&self.name(reference)).map(drop)?,
            }
        }
        Ok(())
    }

    /// Deletes those of these files, whole or begun, that no manifest names. A file that somebody fetches right now is left.
    pub(super) fn free(&self, files: &BTreeSet<B256>) -> Result<u64> {
        #[derive(Deserialize)]
        struct Named {
            files: Vec<NamedFile>,
        }
        #[derive(Deserialize)]
        struct NamedFile {
            sha256: String,
        }
        let mut kept = BTreeSet::new();
        for digest in self.digests()? {
            let path = self.manifest(&digest);
            let bytes = fs::read(&path).map_err(ModelStoreError::file(&path))?;
            // Read for its files alone: a manifest that this version does not understand has files too.
            let named: Named = serde_json::from_slice(&bytes).map_err(|error| {
                ModelStoreError::package(path, format!("{error}: nothing was freed; delete the file if it is damaged"))
            })?;
            kept.extend(named.files.iter().filter_map(|file| source::digest(&file.sha256)));
        }
        let mut freed = 0;
        for sha256 in files.difference(&kept) {
            freed += delete(&self.blob(sha256))?;
            let partial = self.partial(sha256);
            if File::open(&partial).is_ok_and(|file| file.try_lock().is_ok()) {
                freed += delete(&partial)?;
            }
        }
        Ok(freed + self.sweep()?)
    }

    /// Deletes what copies left that were killed long ago.
    fn sweep(&self) -> Result<u64> {
        let directory = self.root.join("blobs/sha256");
        let listed = fs::read_dir(&directory).map_err(ModelStoreError::file(directory))?;
        let is_old = |entry: &fs::DirEntry| {
            entry.metadata().and_then(|there| there.modified()).is_ok_and(|then| then.elapsed().is_ok_and(|age| age > STALE))
        };
        let stale =
            listed.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(NEW.as_bytes()) && is_old(entry));
        stale.map(|entry| delete(&entry.path())).sum()
    }
}

/// Writes and hashes in one go.
struct Copy<'a> {
    to: &'a File,
    hash: Sha256,
}

impl io::Write for Copy<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A file's size and SHA-256.
pub(super) fn hash(path: &Path) -> io::Result<(u64, B256)> {
    let (hash, bytes) = hash_on(&mut File::open(path)?)?;
    Ok((bytes, B256::new(hash.finalize().into())))
}

/// The hash of what is left to read of a file, to be gone on with.
pub(super) fn hash_on(file: &mut File) -> io::Result<(Sha256, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hash, bytes)),
            read => {
                hash.update(buffer.get(..read).unwrap_or_default());
                bytes += read as u64;
            }
        }
    }
}

/// A new file in the same directory, so that it can take that one's place in one step.
fn beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(NEW).permissions(Permissions::from_mode(0o644)).tempfile_in(directory);
    file.map_err(ModelStoreError::file(directory))
}

/// Gives a written file its name, once it is on the disk.
fn place(file: tempfile::NamedTempFile, path: &Path, mode: u32) -> Result<()> {
    settle(file.as_file(), mode).map_err(ModelStoreError::file(path))?;
    file.persist(path).map_err(|error| ModelStoreError::file(path)(error.error))?;
    sync_directory(path)
}

/// Writing is over: from now on the file has this mode, and survives a crash.
pub(super) fn settle(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// A new name survives a crash, too.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(ModelStoreError::file(directory))
}

/// Replaces a small file in one step.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = beside(path)?;
    file.write_all(bytes).map_err(ModelStoreError::file(path))?;
    place(file, path, mode)
}

/// Deletes a file if it is there; returns the bytes that it had.
fn delete(path: &Path) -> Result<u64> {
    let bytes = fs::metadata(path).map_or(0, |there| there.len());
    match fs::remove_file(path) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(ModelStoreError::file(path)(error)),
    }
}

/// A hard link, or a copy where the file system has none. A symbolic link would lead a confined worker out of what it may read.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let there = fs::metadata(from)?;
    if fs::symlink_metadata(to).is_ok_and(|old| (old.dev(), old.ino()) == (there.dev(), there.ino())) {
        return Ok(());
    }
    let directory = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let space = tempfile::tempdir_in(directory)?;
    let new = space.path().join("new");
    if fs::hard_link(from, &new).is_err() {
        fs::copy(from, &new)?;
        settle(&File::open(&new)?, READ_ONLY)?;
    }
    fs::rename(new, to)
}
