//! Where models can be fetched from.

#[cfg(feature = "http")]
mod http;
#[cfg(feature = "s3")]
mod s3;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use ncn_client::foreign::Meaning;
use ncn_core::{B256, Model, model::MAX_MANIFEST_BYTES};
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, local::LocalFileSystem, path::Path};
use url::Url;

use super::{ModelStoreError, Result};

/// How long a source may take to answer, or stand still in the middle of an answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest URL of a source.
const MAX_URL: usize = 2_048;

/// Something with a store's `manifests/`, `blobs/` and `names/` in it: a directory, a server, a bucket, or another node that serves its
/// store. What comes from it is compared with the digest that was asked for, so it need not be trusted; only for what a *name* stands
/// for is its word taken.
#[derive(Clone, Debug)]
pub struct Source {
    url: String,
    origin: Origin,
    pub(super) timeout: Duration,
}

#[derive(Clone, Debug)]
enum Origin {
    /// A directory or a bucket, and where in it.
    Objects(Arc<dyn ObjectStore>, Path),
    #[cfg(feature = "http")]
    Server(http::Server),
}

/// Why a source did not give something.
#[derive(Debug)]
pub(super) enum Problem {
    /// It would say the same again.
    Final(String),
    /// It gives the whole, or nothing.
    Ranges(String),
    /// Another try may help.
    Passing {
        problem: String,
        /// How long the source asks to wait.
        after: Option<Duration>,
    },
}

impl Problem {
    pub(super) const fn passing(problem: String) -> Self {
        Self::Passing { problem, after: None }
    }

    pub(super) fn text(self) -> String {
        match self {
            Self::Final(problem) | Self::Ranges(problem) | Self::Passing { problem, .. } => problem,
        }
    }
}

/// A stream of an object's bytes.
pub(super) type Parts = BoxStream<'static, std::result::Result<Bytes, Problem>>;

/// What a source gives.
struct Object {
    /// The byte that it begins with.
    start: u64,
    /// How many bytes the whole has, where the source says so.
    size: Option<u64>,
    parts: Parts,
}

impl Source {
    /// The source at this URL: `file:///DIRECTORY`, `http://` or `https://`, or `s3://BUCKET/PREFIX`. Keys and endpoint of the last
    /// are in the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT` for compatible servers, and others). A URL
    /// never holds a secret: it is remembered and shown.
    pub fn new(url: &str) -> Result<Self> {
        let invalid = |problem: &str| ModelStoreError::InvalidSource { url: url.into(), problem: problem.into() };
        if url.len() > MAX_URL {
            let start = url.chars().take(64).collect::<String>() + "...";
            return Err(ModelStoreError::InvalidSource { url: start, problem: format!("is longer than {MAX_URL} bytes") });
        }
        let parsed = Url::parse(url)
            .map_err(|_| invalid("is no URL: write file:///DIRECTORY, http://.., https://.. or s3://BUCKET/PREFIX"))?;
        if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some() || parsed.fragment().is_some() {
            let shown = format!("{}://{}{}", parsed.scheme(), parsed.host_str().unwrap_or_default(), parsed.path());
            let problem = "leave user, password and query out: a source's URL is remembered and shown".into();
            return Err(ModelStoreError::InvalidSource { url: shown, problem });
        }
        let refuse = |error: Error| ModelStoreError::InvalidSource { url: url.into(), problem: cause(&error) };
        let origin = match parsed.scheme() {
            "file" => {
                let directory =
                    parsed.to_file_path().map_err(|()| invalid("names no directory of this machine: write file:///DIRECTORY"))?;
                Origin::Objects(Arc::new(LocalFileSystem::new_with_prefix(directory).map_err(refuse)?), Path::default())
            }
            #[cfg(feature = "http")]
            "http" | "https" => Origin::Server(http::Server::new(parsed.as_str()).map_err(|problem| invalid(&problem))?),
            #[cfg(feature = "s3")]
            "s3" => {
                let prefix = Path::from_url_path(parsed.path()).map_err(|error| refuse(error.into()))?;
                Origin::Objects(Arc::new(s3::s3(url).map_err(refuse)?), prefix)
            }
            _ => {
                return Err(invalid("is of no known kind: write file:///DIRECTORY, http://.., https://.. or s3://BUCKET/PREFIX"));
            }
        };
        Ok(Self { url: url.trim_end_matches('/').into(), origin, timeout: TIMEOUT })
    }

    /// The source at this URL, to push to: a bucket, or a directory, which is made if it is not there.
    pub fn to_push_to(url: &str) -> Result<Self> {
        if let Some(directory) = Url::parse(url).ok().filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok()) {
            std::fs::create_dir_all(&directory).map_err(ModelStoreError::file(directory))?;
        }
        let source = Self::new(url)?;
        source.objects()?;
        Ok(source)
    }

    /// The source that somebody else names, such as a gateway: the same, but for what is on this very machine.
    pub fn named_by_others(url: &str) -> Result<Self> {
        if url.trim_start().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:")) {
            let problem = "is a directory on whatever machine named it: give it with --from if it is on this one".into();
            return Err(ModelStoreError::InvalidSource { url: url.chars().take(MAX_URL).collect(), problem });
        }
        Self::new(url)
    }

    /// How long it may take to answer, and to give the next 64 KiB: 30 s by default.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What the source has under a digest, a name, or `NAME@VERSION`.
    pub async fn model(&self, reference: &str) -> Result<Model> {
        let failed = |problem: String| ModelStoreError::Source { url: self.url.clone(), problem };
        let (wanted, named) = match digest(reference) {
            Some(digest) => (digest, false),
            None if is_name(reference) => {
                let text = self.small(&self.name_key(reference), 256).await.map_err(failed)?;
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                (digest(&text).ok_or_else(|| failed(format!("names/{reference}: is not a digest")))?, true)
            }
            None => return Err(ModelStoreError::Unknown(reference.into())),
        };
        let bytes = self.small(&self.manifest_key(&wanted), MAX_MANIFEST_BYTES).await.map_err(failed)?;
        let model = Model::parse(bytes).map_err(|error| failed(format!("manifests/{}.json: {error}", hex::encode(wanted))))?;
        if model.digest() != wanted {
            return Err(failed(format!("manifests/{}.json: is another manifest than its name says", hex::encode(wanted))));
        }
        if named && !super::is_meant(&model, reference) {
            let manifest = model.manifest();
            return Err(failed(format!("has {}@{} under the name {reference}", manifest.name, manifest.version)));
        }
        Ok(model)
    }

    /// A blob of so many bytes in all, from byte `start` on where the source can do that, else from the beginning; says which.
    pub(super) async fn blob(&self, sha256: &B256, start: u64, bytes: u64) -> std::result::Result<(u64, Parts), Problem> {
        let key = self.blob_key(sha256);
        let object = match self.get(&key, start).await {
            // Some servers know no ranges: they say so in many ways, or answer with the whole.
            Err(problem @ Problem::Ranges(_)) => self.get(&key, 0).await.map_err(|_| problem)?,
            got => got?,
        };
        match object.size {
            Some(size) if size != bytes => Err(Problem::Final(format!("{key}: has {size} bytes, the manifest says {bytes}"))),
            _ => Ok((object.start, object.parts)),
        }
    }

    /// Whether there is a blob of this size.
    pub(super) async fn has(&self, sha256: &B256, bytes: u64) -> bool {
        let Ok(objects) = self.objects() else { return false };
        let head = tokio::time::timeout(self.timeout, objects.head(&self.blob_key(sha256))).await;
        head.is_ok_and(|head| head.is_ok_and(|meta| meta.size == bytes))
    }

    /// Where something can be put.
    #[cfg_attr(not(feature = "http"), allow(clippy::unnecessary_wraps, reason = "servers take nothing"))]
    pub(super) fn objects(&self) -> Result<&Arc<dyn ObjectStore>> {
        match &self.origin {
            Origin::Objects(store, _) => Ok(store),
            #[cfg(feature = "http")]
            Origin::Server(_) => {
                let problem = "is read only: models are pushed to file:///DIRECTORY or s3://BUCKET/PREFIX".into();
                Err(ModelStoreError::InvalidSource { url: self.url.clone(), problem })
            }
        }
    }

    /// A whole small object, which is asked for a few times if need be.
    async fn small(&self, key: &Path, limit: usize) -> std::result::Result<Vec<u8>, String> {
        for next in 1.. {
            let problem = match self.read(key, limit).await {
                Ok(all) => return Ok(all),
                Err(problem) => problem,
            };
            match problem {
                Problem::Passing { after, .. } if let Some(pause) = (Meaning::Again { after }).pause(next) => {
                    tokio::time::sleep(pause).await;
                }
                problem => return Err(problem.text()),
            }
        }
        unreachable!("the tries end")
    }

    async fn read(&self, key: &Path, limit: usize) -> std::result::Result<Vec<u8>, Problem> {
        let mut parts = self.get(key, 0).await?.parts;
        let mut all = Vec::new();
        let reading = async {
            while let Some(part) = parts.next().await {
                all.extend_from_slice(&part?);
                if all.len() > limit {
                    return Err(Problem::Final(format!("{key}: has more than {limit} bytes")));
                }
            }
            Ok(())
        };
        tokio::time::timeout(self.timeout, reading).await.map_err(|_| self.still(key))??;
        Ok(all)
    }

    async fn get(&self, key: &Path, start: u64) -> std::result::Result<Object, Problem> {
        let asking = async {
            match &self.origin {
                Origin::Objects(store, _) => from_store(store, key, start).await,
                #[cfg(feature = "http")]
                Origin::Server(server) => server.get(key.as_ref(), start).await,
            }
        };
        tokio::time::timeout(self.timeout, asking).await.map_err(|_| self.still(key))?
    }

    pub(super) fn still(&self, key: impl std::fmt::Display) -> Problem {
        Problem::passing(format!("{key}: nothing has come for {} s", self.timeout.as_secs_f32()))
    }

    pub(super) fn manifest_key(&self, digest: &B256) -> Path {
        self.prefix().join("manifests").join(format!("{}.json", hex::encode(digest)))
    }

    pub(super) fn blob_key(&self, sha256: &B256) -> Path {
        self.prefix().join("blobs").join("sha256").join(hex::encode(sha256))
    }

    pub(super) fn name_key(&self, name: &str) -> Path {
        self.prefix().join("names").join(name)
    }

    fn prefix(&self) -> Path {
        match &self.origin {
            Origin::Objects(_, prefix) => prefix.clone(),
            #[cfg(feature = "http")]
            Origin::Server(_) => Path::default(),
        }
    }
}

async fn from_store(store: &Arc<dyn ObjectStore>, key: &Path, start: u64) -> std::result::Result<Object, Problem> {
    let range = (start > 0).then_some(GetRange::Offset(start));
    let got = store.get_opts(key, GetOptions { range, ..GetOptions::default() }).await.map_err(|error| problem(key, &error))?;
    let (start, size, key) = (got.range.start, got.meta.size, key.clone());
    let parts = got.into_stream().map(move |part| part.map_err(|error| problem(&key, &error)));
    Ok(Object { start, size: Some(size), parts: parts.boxed() })
}

/// A digest as people and file names have it: 64 hexadecimal digits, with or without `0x`.
pub(super) fn digest(text: &str) -> Option<B256> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.len() == 64 { digits.parse().ok() } else { None }
}

/// Whether this may be a model's name or `NAME@VERSION`, and so a file's.
pub(super) fn is_name(text: &str) -> bool {
    let simple = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    text.len() <= 160 && text.chars().all(simple) && text.chars().next().is_some_and(|first| first != '.')
}

pub(super) fn problem(key: &Path, error: &Error) -> Problem {
    match error {
        Error::NotFound { .. } => Problem::Final(format!("{key}: is not there")),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            Problem::Final(format!("{key}: access is denied; for s3, check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"))
        }
        // What some say when a server knows no ranges.
        Error::NotSupported { .. } => Problem::Ranges(format!("{key}: {}", cause(error))),
        Error::Generic { .. } => Problem::passing(format!("{key}: {}", cause(error))),
        _ => Problem::Final(format!("{key}: {}", cause(error))),
    }
}

/// What lies beneath; what is wrapped around it says the same at length.
fn cause(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(beneath) = cause.source() {
        cause = beneath;
    }
    cause.to_string()
}
