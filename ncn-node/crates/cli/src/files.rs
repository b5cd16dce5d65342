//! Files that commands read and write.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use ncn_core::{Receipt, receipt::MAX_RECEIPT_BYTES};

use crate::Failure;

/// The largest input file that is read.
pub(crate) const MAX_INPUT_BYTES: usize = 8 << 20;

/// Where the receipt goes. A file is replaced in one step, so that there is a whole receipt at any time, the old one or the new; what
/// is no file, such as a device or a pipe, is written to.
pub(crate) struct ReceiptFile {
    path: PathBuf,
    replace: bool,
}

impl ReceiptFile {
    /// Finds out now what would make writing fail later.
    pub(crate) fn prepare<'a>(path: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> Result<Self, Failure> {
        let refuse = |problem: String| Failure::Input(format!("--receipt {}: {problem}", path.display()));
        let here = |path: &Path| fs::canonicalize(path).ok();
        if inputs.any(|input| here(path).is_some_and(|path| here(input) == Some(path))) {
            return Err(refuse("is the input file: name another".into()));
        }
        // What a link leads to is replaced, not the link.
        let is_link = fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink());
        let target = if is_link { here(path).ok_or_else(|| refuse("is a link that leads nowhere".into()))? } else { path.into() };
        let this = |replace| Self { path: target.clone(), replace };
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => return Err(refuse("is a directory: name a file in it".into())),
            Ok(there) if !there.is_file() => return Ok(this(false)),
            // A key or a channel's file that was named by mistake would be gone.
            Ok(there) if there.len() > 0 && !is_receipt(path) => {
                return Err(refuse("holds something else than a receipt: name another file".into()));
            }
            // What could not be opened for writing must not be replaced either.
            Ok(_) => drop(File::options().append(true).open(path).map_err(|error| refuse(format!("cannot write it: {error}")))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refuse(error.to_string())),
        }
        drop(this(true).beside().map_err(|error| refuse(format!("cannot write there: {error}")))?);
        Ok(this(true))
    }

    /// A new file in the same directory.
    fn beside(&self) -> io::Result<tempfile::NamedTempFile> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        tempfile::Builder::new().prefix(".ncn-receipt").permissions(mode).tempfile_in(directory)
    }

    pub(crate) fn write(&self, receipt: &Receipt) -> Result<(), Failure> {
        let json = receipt.to_json() + "\n";
        let written = if self.replace {
            self.beside().and_then(|mut file| {
                file.write_all(json.as_bytes())?;
                // What the request could be fetched with is deleted next.
                file.as_file().sync_all()?;
                file.persist(&self.path).map(drop).map_err(|error| error.error)
            })
        } else {
            fs::write(&self.path, json)
        };
        let path = self.path.display();
        written.map_err(|error| Failure::Failed(format!("paid and served, but --receipt {path} cannot be written: {error}")))
    }
}

/// A whole file; none when it has more than `limit` bytes.
pub(crate) fn read_within(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    within(&mut File::open(path)?, limit)
}

/// All that can be read; none when it has more than `limit` bytes.
pub(crate) fn within(from: &mut impl io::Read, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    // One byte more than it may have is enough to see that it has too many.
    from.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

/// What to run a model on.
pub(crate) fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let refuse = |problem: String| Failure::Input(format!("--input {}: {problem}", path.display()));
    let read = read_within(path, MAX_INPUT_BYTES).map_err(|error| refuse(error.to_string()))?;
    read.ok_or_else(|| refuse(format!("has more than {MAX_INPUT_BYTES} bytes")))
}

/// Whether a file holds a receipt, of any worth.
fn is_receipt(path: &Path) -> bool {
    let Ok(Some(bytes)) = read_within(path, MAX_RECEIPT_BYTES) else { return false };
    serde_json::from_slice::<serde_json::Value>(&bytes).is_ok_and(|json| json.get("seal").is_some())
}
