//! Fetching one file: resumed where it was left, hashed as it comes, and named only when it is right.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use ncn_client::{Backoff, foreign::LONGEST_WAIT};
use ncn_core::B256;
use ncn_core::model::ModelFile;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::{
    ModelStoreError, Progress, Result,
    layout::{Layout, READ_ONLY, blocking, hash_on, settle, sync_directory},
    source::{Problem, Source},
};

/// What a source has to give within its timeout, unless less is left.
const SLOWEST: u64 = 64 << 10;
/// A source that has given nothing yet is given up so many times sooner than one that has.
const UNPROVEN: u32 = 6;
/// How long another process that fetches the same file may stand still.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(90);

/// Makes the file be there, from the first source that has it.
pub(super) async fn fetch(layout: &Layout, file: &ModelFile, sources: &[Source], progress: &Progress) -> Result<()> {
    let Some(mut partial) = Partial::claim(layout, file).await? else {
        progress.add(file.bytes);
        return Ok(());
    };
    progress.add(partial.bytes);
    let mut problems = Vec::new();
    for source in sources {
        match from(source, &mut partial, progress).await? {
            Ok(()) => return partial.finish().await,
            Err(problem) => problems.push(format!("{}: {problem}", source.url())),
        }
    }
    if problems.is_empty() {
        problems.push("no source is known: give one with --from".into());
    }
    Err(ModelStoreError::NotFetched { path: file.path.clone(), problems: problems.join("; ") })
}

/// Fetches what is missing from one source; the inner error is the source's, the outer one this machine's.
async fn from(source: &Source, partial: &mut Partial, progress: &Progress) -> Result<std::result::Result<(), String>> {
    // What others began may be wrong without this source's fault.
    let mut all_from_here = partial.bytes == 0;
    let (mut failures, mut backoff, mut timeout) = (0, Backoff::new(), source.timeout / UNPROVEN);
    let mut since = Instant::now();
    // A source that gives the same beginning again and again gets nowhere.
    let mut most = partial.bytes;
    loop {
        let before = partial.bytes;
        match read_on(source, partial, progress).await? {
            Ok(()) if partial.is_right() => return Ok(Ok(())),
            Ok(()) => {
                partial.restart(progress).await?;
                if all_from_here {
                    return Ok(Err("gave other bytes than the manifest promises".into()));
                }
                all_from_here = true;
            }
            Err(Problem::Final(problem) | Problem::Ranges(problem)) => return Ok(Err(problem)),
            Err(Problem::Passing { problem, after }) => {
                if partial.bytes >= before.saturating_add(SLOWEST) && partial.bytes > most {
                    most = partial.bytes;
                    (failures, backoff, timeout, since) = (0, Backoff::new(), source.timeout, Instant::now());
                }
                failures += 1;
                if failures > 1 && since.elapsed() > timeout {
                    return Ok(Err(problem));
                }
                tracing::info!(source = source.url(), problem, "trying again");
                backoff.pause_at_least(after.unwrap_or_default().min(LONGEST_WAIT)).await;
            }
        }
    }
}

/// One request.
async fn read_on(source: &Source, partial: &mut Partial, progress: &Progress) -> Result<std::result::Result<(), Problem>> {
    if partial.bytes == partial.wanted {
        return Ok(Ok(()));
    }
    let (start, mut parts) = match source.blob(&partial.sha256, partial.bytes, partial.wanted).await {
        Ok(found) => found,
        Err(problem) => return Ok(Err(problem)),
    };
    if start != partial.bytes {
        partial.restart(progress).await?;
    }
    let key = source.blob_key(&partial.sha256);
    while partial.bytes < partial.wanted {
        // A source that drips must not hold a place for ever.
        let enough = partial.bytes.saturating_add(SLOWEST).min(partial.wanted);
        let until = tokio::time::Instant::now() + source.timeout;
        while partial.bytes < enough {
            let part = match tokio::time::timeout_at(until, parts.next()).await {
                Ok(Some(Ok(part))) => part,
                Ok(Some(Err(problem))) => return Ok(Err(problem)),
                Ok(None) => return Ok(Err(Problem::passing(format!("{key}: ended after {} bytes", partial.bytes)))),
                Err(_) => return Ok(Err(Problem::passing(format!("{key}: too little came in {:?}", source.timeout)))),
            };
            if part.len() as u64 > partial.wanted - partial.bytes {
                partial.restart(progress).await?;
                return Ok(Err(Problem::Final(format!("{key}: gave more bytes than the manifest promises"))));
            }
            partial.write(&part).await?;
            progress.add(part.len() as u64);
        }
    }
    Ok(Ok(()))
}

/// A file on its way, locked: nobody else writes to it.
struct Partial {
    path: PathBuf,
    blob: PathBuf,
    file: tokio::fs::File,
    hash: Sha256,
    bytes: u64,
    sha256: B256,
    wanted: u64,
}

impl Partial {
    /// Waits until nobody else fetches the file; none when it is whole then.
    async fn claim(layout: &Layout, file: &ModelFile) -> Result<Option<Self>> {
        let path = layout.partial(&file.sha256);
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            if layout.has(file) {
                return Ok(None);
            }
            let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let opened = options.map_err(ModelStoreError::file(&path))?;
            match opened.try_lock() {
                // Whoever had it may have given it its name meanwhile.
                Ok(()) if is_at(&opened, &path) => return Self::go_on(path, layout, file, opened).await.map(Some),
                Ok(()) => {}
                Err(TryLockError::Error(error)) => return Err(ModelStoreError::file(path)(error)),
                Err(TryLockError::WouldBlock) => {
                    let bytes = opened.metadata().map_or(0, |there| there.len());
                    if bytes != seen {
                        (seen, since) = (bytes, Instant::now());
                    } else if since.elapsed() > OTHERS_TIMEOUT {
                        return Err(ModelStoreError::Busy(path));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Takes over what is there.
    async fn go_on(path: PathBuf, layout: &Layout, file: &ModelFile, mut opened: File) -> Result<Self> {
        let (at, wanted) = (path.clone(), file.bytes);
        let read = blocking(move || {
            let problem = |error| ModelStoreError::file(&at)(error);
            if opened.metadata().map_err(problem)?.len() > wanted {
                opened.set_len(0).map_err(problem)?;
            }
            let (hash, bytes) = hash_on(&mut opened).map_err(problem)?;
            Ok((opened, hash, bytes))
        });
        let (opened, hash, bytes) = read.await?;
        let blob = layout.blob(&file.sha256);
        Ok(Self { path, blob, file: tokio::fs::File::from_std(opened), hash, bytes, sha256: file.sha256, wanted })
    }

    async fn write(&mut self, part: &[u8]) -> Result<()> {
        self.file.write_all(part).await.map_err(ModelStoreError::file(&self.path))?;
        self.hash.update(part);
        self.bytes += part.len() as u64;
        Ok(())
    }

    fn is_right(&self) -> bool {
        self.bytes == self.wanted && self.hash.clone().finalize().as_slice() == self.sha256.as_slice()
    }

    async fn restart(&mut self, progress: &Progress) -> Result<()> {
        progress.take_back(self.bytes);
        (self.bytes, self.hash) = (0, Sha256::new());
        let emptied = async {
            self.file.flush().await?;
            self.file.set_len(0).await?;
            self.file.rewind().await.map(drop)
        };
        emptied.await.map_err(ModelStoreError::file(&self.path))
    }

    async fn finish(mut self) -> Result<()> {
        self.file.flush().await.map_err(ModelStoreError::file(&self.path))?;
        let file = self.file.into_std().await;
        blocking(move || {
            settle(&file, READ_ONLY).map_err(ModelStoreError::file(&self.path))?;
            fs::rename(&self.path, &self.blob).map_err(ModelStoreError::file(&self.blob))?;
            sync_directory(&self.blob)
        })
        .await
    }
}

/// Whether this is still the file of this name.
fn is_at(file: &File, path: &std::path::Path) -> bool {
    let identity = |there: io::Result<fs::Metadata>| there.map(|there| (there.dev(), there.ino())).ok();
    let here = identity(file.metadata());
    here.is_some() && here == identity(fs::metadata(path))
}
