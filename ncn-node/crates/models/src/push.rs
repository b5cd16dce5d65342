//! Publishing a model: the files first, and its name last, so that nobody finds a name without the files.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{ObjectStoreExt as _, buffered::BufWriter, path::Path};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{AT_ONCE, ModelStore, ModelStoreError, Progress, Result, Source, distinct, source::problem};

/// How much of a file is read at once.
const PART: usize = 1 << 20;
/// How long a part of an upload, of up to 10 MiB, may take.
const TIMEOUT: Duration = Duration::from_mins(10);

impl ModelStore {
    /// Puts a model where others can pull it from: a directory or a bucket. What is there already is not sent again.
    pub async fn push(&self, reference: &str, target: &Source, progress: &Progress) -> Result<()> {
        let package = self.package(reference).await?;
        let (model, manifest) = (&package.model, package.model.manifest());
        let objects = target.objects()?;
        let files = distinct(model);
        progress.begin(&files);
        let sending = stream::iter(&files).map(|file| async move {
            if target.has(&file.sha256, file.bytes).await {
                progress.add(file.bytes);
                return Ok(());
            }
            let path = self.layout.blob(&file.sha256);
            let mut from = tokio::fs::File::open(&path).await.map_err(ModelStoreError::file(&path))?;
            let key = target.blob_key(&file.sha256);
            let mut to = BufWriter::new(objects.clone(), key.clone()).with_max_concurrency(2);
            let mut part = vec![0; PART];
            loop {
                let read = from.read(&mut part).await.map_err(ModelStoreError::file(&path))?;
                if read == 0 {
                    break;
                }
                let bytes = Bytes::copy_from_slice(part.get(..read).unwrap_or_default());
                within(target, &key, to.put(bytes)).await?;
                progress.add(read as u64);
            }
            let end = async {
                to.shutdown().await.map_err(|error| object_store::Error::Generic { store: "upload", source: error.into() })
            };
            within(target, &key, end).await
        });
        sending.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let digest = model.digest();
        self.put(target, target.manifest_key(&digest), model.bytes().clone()).await?;
        for name in [manifest.name.clone(), format!("{}@{}", manifest.name, manifest.version)] {
            let line = format!("{}\n", hex::encode(digest));
            self.put(target, target.name_key(&name), line.into()).await?;
        }
        Ok(())
    }

    async fn put(&self, target: &Source, key: Path, bytes: Bytes) -> Result<()> {
        within(target, &key, target.objects()?.put(&key, bytes.into())).await.map(drop)
    }
}

async fn within<T>(target: &Source, key: &Path, sending: impl Future<Output = object_store::Result<T>>) -> Result<T> {
    let problem = match tokio::time::timeout(TIMEOUT, sending).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => problem(key, &error).text(),
        Err(_) => format!("{key}: a part was not taken within {} min", TIMEOUT.as_secs() / 60),
    };
    Err(ModelStoreError::Source { url: target.url().into(), problem })
}
