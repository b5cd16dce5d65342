//! Requests on their way: what is kept of each beside its receipt, from before money moves until its end is proven.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use ncn_client::Stored;
use ncn_core::{Date, Quote, RequestId};
use serde::{Deserialize, Serialize};

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments},
    files::read_within,
    sanitize, say, typed,
};

/// What such a file's name ends with.
const SUFFIX: &str = ".unfinished";
/// The receipt's name where none is given.
pub(crate) const RECEIPT: &str = "ncn-receipt.json";
/// A real one has about 5,000 bytes.
const MAX_BYTES: usize = 1 << 20;
/// How many entries of a directory are looked through.
const MAX_ENTRIES: usize = 100_000;

/// How a request is paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Means {
    /// By the client's own transaction.
    Transaction,
    /// By a signature that the gateway brings to the chain.
    Relayed,
    /// Out of the channel in this file.
    Channel(String),
}

/// What is kept of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Request {
    /// The gateway's URL.
    pub(crate) gateway: String,
    pub(crate) means: Means,
    pub(crate) stored: Stored,
}

/// What a file holds: of earlier versions, a quote.
#[allow(clippy::large_enum_variant, reason = "lives for a moment")]
pub(crate) enum Kept {
    Request(Request),
    Quote(Quote),
}

/// Reads such a file.
pub(crate) fn read(path: &Path) -> Result<Kept, Failure> {
    let refuse = |problem: String| Failure::Input(format!("{}: {problem}", path.display()));
    let json = read_within(path, MAX_BYTES).map_err(|error| refuse(error.to_string()))?;
    let json = json.ok_or_else(|| refuse(format!("is not an unfinished request: it has more than {MAX_BYTES} bytes")))?;
    if let Ok(quote) = serde_json::from_slice(&json) {
        return Ok(Kept::Quote(quote));
    }
    let request = serde_json::from_slice(&json);
    request.map(Kept::Request).map_err(|error| refuse(format!("is not an unfinished request, or damaged: {error}")))
}

/// The requests whose files lie in the receipt's directory.
pub(crate) fn beside(receipt: &Path) -> Result<Vec<(PathBuf, Request)>, Failure> {
    let directory = receipt.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refuse = |error: io::Error| Failure::Input(format!("--receipt: cannot read {}: {error}", directory.display()));
    let entries = fs::read_dir(directory).map_err(refuse)?.take(MAX_ENTRIES);
    // Named as the user would name it: without the "./" of the present directory.
    let path = |entry: fs::DirEntry| directory_of(receipt).join(entry.file_name());
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(SUFFIX))
        .map(path)
        .filter_map(|path| match read(&path) {
            Ok(Kept::Request(request)) => Some((path, request)),
            _ => None,
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

fn directory_of(receipt: &Path) -> &Path {
    receipt.parent().unwrap_or(Path::new(""))
}

/// Where the receipt of the request in this file goes.
pub(crate) fn receipt_of(path: &Path, request: RequestId) -> PathBuf {
    let name = path.to_string_lossy();
    let name = name.strip_suffix(SUFFIX).unwrap_or(&name);
    PathBuf::from(name.strip_suffix(&format!(".{request}")).unwrap_or(name))
}

/// Deletes the file of a request whose end is proven. What has another name, somebody has put there.
pub(crate) fn end(path: &Path) {
    if path.to_string_lossy().ends_with(SUFFIX)
        && let Err(error) = fs::remove_file(path)
    {
        say(&sanitize(&format!("{}: cannot delete it: {error}; the request has ended, so you can", path.display())));
    }
}

/// The file of a request that this program has begun, and what there is to say when the program ends before it.
pub(crate) struct Unfinished {
    path: PathBuf,
    request: Request,
    says: Vec<String>,
}

impl Unfinished {
    /// Keeps a request that is about to be paid. It survives this process, and a loss of power.
    pub(crate) fn keep(receipt: &Path, request: Request, key: &KeyArguments, chain: &ChainArguments) -> Result<Self, Failure> {
        let id = request.stored.request_id();
        let json = serde_json::to_vec(&request).map_err(Failure::failed)?;
        // Nothing can lie beside a device or a pipe.
        let receipt = if receipt.exists() && !receipt.is_file() { Path::new(RECEIPT) } else { receipt };
        let path = PathBuf::from(format!("{}{SUFFIX}", receipt.display()));
        let path = create(&path, &json).or_else(|error| match error.kind() {
            // Of a request that another run has not seen the end of: it must stay what answer and payment can be had with.
            io::ErrorKind::AlreadyExists => {
                let fetch = format!("ncn fetch {} {}", typed(&path), key.flags());
                say(&sanitize(&format!("{} is of an earlier request: `{fetch}` fetches its answer", path.display())));
                create(&PathBuf::from(format!("{}.{id}{SUFFIX}", receipt.display())), &json)
            }
            _ => Err(error),
        });
        let path = path.map_err(|error| Failure::Input(format!("--receipt: cannot write beside it: {error}")))?;
        let says = says(&path, &request, key, chain);
        Ok(Self { path, request, says })
    }

    /// The payment was seen to be taken.
    pub(crate) fn paid(&mut self, stored: Stored) {
        self.request.stored = stored;
        let written = serde_json::to_vec(&self.request).map_err(io::Error::other).and_then(|json| {
            let beside = PathBuf::from(format!("{}.new", self.path.display()));
            create(&beside, &json).and_then(|beside| fs::rename(beside, &self.path))
        });
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "cannot note that the request is paid");
        }
    }

    /// The request's end is proven.
    pub(crate) fn over(mut self) {
        self.says.clear();
        end(&self.path);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        for line in &self.says {
            say(&sanitize(line));
        }
    }
}

/// What there is to do for whoever was cut off.
fn says(path: &Path, request: &Request, key: &KeyArguments, chain: &ChainArguments) -> Vec<String> {
    let (id, key, file) = (request.stored.request_id(), key.flags(), typed(path));
    let given = if chain.is_given() { format!(" {}", chain.flags()) } else { String::new() };
    let mut says = vec![
        format!("request {id} may be paid, and goes on without this program"),
        format!("  to fetch its answer: ncn fetch {file} {key}{given}"),
    ];
    if !matches!(request.means, Means::Channel(_)) {
        let (expiry, chain) = (Date(request.stored.quote.expiry), chain.flags());
        says.push(format!("  to take the payment back after {expiry}, when it is not served: ncn refund {file} {chain} {key}"));
    }
    says
}

/// Writes what was not there before, for its owner only.
fn create(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(path.to_path_buf())
}
