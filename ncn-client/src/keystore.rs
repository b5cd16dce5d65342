//! Keys in files: Web3 Secret Storage (version 3), as other Ethereum programs write and read them.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_signer_local::PrivateKeySigner;
use ncn_core::DynSigner;
use rand::rngs::OsRng;

/// A real one has about 500 bytes.
const MAX_BYTES: u64 = 64 << 10;

/// Why a key file cannot be used. Never says anything of what is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeystoreError {
    /// It cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is something else.
    #[error("{}: is neither a keystore (JSON) nor a private key of 64 hexadecimal digits", .0.display())]
    Format(PathBuf),
    /// It is encrypted, and no password was given.
    #[error("{}: is encrypted: give its password", .0.display())]
    PasswordMissing(PathBuf),
    /// Another password, or a damaged file.
    #[error("{}: the password is wrong, or the file is damaged", .0.display())]
    Password(PathBuf),
}

/// Makes a new key and keeps it, encrypted, in a file that must not exist yet. Only its owner can read the file.
pub fn create(path: &Path, password: &str) -> Result<DynSigner, KeystoreError> {
    let signer = PrivateKeySigner::random();
    write(path, &signer, password)?;
    Ok(Arc::new(signer))
}

fn write(path: &Path, signer: &PrivateKeySigner, password: &str) -> Result<(), KeystoreError> {
    let file = |error: io::Error| KeystoreError::File { path: path.to_owned(), error };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Written where nobody else looks, and moved to its place when its permissions are right.
    let private = directory.join(format!(".ncn-key-{}", signer.address()));
    fs::create_dir(&private).map_err(file)?;
    let written = (|| {
        fs::set_permissions(&private, Permissions::from_mode(0o700))?;
        PrivateKeySigner::encrypt_keystore(&private, &mut OsRng, signer.to_bytes(), password, Some("key"))
            .map_err(io::Error::other)?;
        let key = private.join("key");
        fs::set_permissions(&key, Permissions::from_mode(0o600))?;
        File::open(&key)?.sync_all()?;
        // Unlike a renaming, a link never replaces a file that is there.
        fs::hard_link(&key, path)
    })();
    let _ = fs::remove_dir_all(&private);
    written.map_err(file)
}

/// The key in a file: a keystore, whose password is asked for when it is needed, or a private key as hexadecimal digits.
pub fn open(path: &Path, password: impl FnOnce() -> Option<String>) -> Result<DynSigner, KeystoreError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    read.map_err(|error| KeystoreError::File { path: path.to_owned(), error })?;
    let text = text.trim();
    if text.starts_with('{') {
        let password = password().ok_or_else(|| KeystoreError::PasswordMissing(path.to_owned()))?;
        let signer = PrivateKeySigner::decrypt_keystore(path, password);
        return Ok(Arc::new(signer.map_err(|_| KeystoreError::Password(path.to_owned()))?));
    }
    let signer: PrivateKeySigner = text.parse().map_err(|_| KeystoreError::Format(path.to_owned()))?;
    Ok(Arc::new(signer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_with_its_password_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.json");
        let signer = create(&path, "correct horse").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else stays behind");
        assert_eq!(open(&path, || Some("correct horse".into())).unwrap().address(), signer.address());
        assert!(matches!(open(&path, || Some("wrong".into())), Err(KeystoreError::Password(_))));
        assert!(matches!(open(&path, || None), Err(KeystoreError::PasswordMissing(_))));
        assert!(create(&path, "another").is_err(), "a key is never overwritten");

        let plain = directory.path().join("plain");
        let known = PrivateKeySigner::random();
        fs::write(&plain, format!("{}\n", known.to_bytes())).unwrap();
        assert_eq!(open(&plain, || None).unwrap().address(), known.address());
        fs::write(&plain, "not a key").unwrap();
        assert!(matches!(open(&plain, || None), Err(KeystoreError::Format(_))));
        assert!(matches!(open(&directory.path().join("none"), || None), Err(KeystoreError::File { .. })));
    }
}
