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
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{}: is neither a keystore (JSON) nor a private key of 64 hexadecimal digits", .0.display())]
    Format(PathBuf),
    /// A keystore that is none.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
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
    let file = |error: io::Error| KeystoreError::File { path: path.to_owned(), source: error };
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
    read.map_err(|error| KeystoreError::File { path: path.to_owned(), source: error })?;
    let text = text.trim();
    if text.starts_with('{') {
        check(text).map_err(|problem| KeystoreError::Damaged { path: path.to_owned(), problem })?;
        let password = password().ok_or_else(|| KeystoreError::PasswordMissing(path.to_owned()))?;
        let signer = PrivateKeySigner::decrypt_keystore(path, password);
        return Ok(Arc::new(signer.map_err(|_| KeystoreError::Password(path.to_owned()))?));
    }
    let signer: PrivateKeySigner = text.parse().map_err(|_| KeystoreError::Format(path.to_owned()))?;
    Ok(Arc::new(signer))
}

/// Checks what the library that decrypts takes for granted, and that it will not work for hours.
fn check(text: &str) -> Result<(), &'static str> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|_| "is no JSON")?;
    let at = |pointer: &str| json.pointer(pointer).or_else(|| json.pointer(&pointer.replace("/crypto", "/Crypto")));
    let number = |pointer: &str| at(pointer).and_then(serde_json::Value::as_u64);
    let bytes = |pointer: &str| {
        let text = at(pointer).and_then(serde_json::Value::as_str)?;
        (text.len() % 2 == 0 && text.chars().all(|c| c.is_ascii_hexdigit())).then_some(text.len() / 2)
    };
    if number("/version") != Some(3) {
        return Err("version: is not 3");
    }
    if at("/crypto/cipher").and_then(serde_json::Value::as_str) != Some("aes-128-ctr") {
        return Err("crypto.cipher: is not aes-128-ctr");
    }
    if bytes("/crypto/cipherparams/iv") != Some(16) || bytes("/crypto/ciphertext") != Some(32) || bytes("/crypto/mac") != Some(32) {
        return Err("crypto: iv, ciphertext or mac has the wrong length");
    }
    if number("/crypto/kdfparams/dklen") != Some(32) || bytes("/crypto/kdfparams/salt").is_none_or(|length| length > 256) {
        return Err("crypto.kdfparams: dklen is not 32, or the salt is none");
    }
    let (n, r, p) = (number("/crypto/kdfparams/n"), number("/crypto/kdfparams/r"), number("/crypto/kdfparams/p"));
    let cheap = match at("/crypto/kdf").and_then(serde_json::Value::as_str) {
        Some("scrypt") => {
            n.is_some_and(|n| n.is_power_of_two() && (2..=1 << 20).contains(&n))
                && r.is_some_and(|r| (1..=16).contains(&r))
                && p.is_some_and(|p| (1..=16).contains(&p))
        }
        Some("pbkdf2") => number("/crypto/kdfparams/c").is_some_and(|c| (1..=10_000_000).contains(&c)),
        _ => false,
    };
    if cheap { Ok(()) } else { Err("crypto.kdfparams: unknown, or more work than this program does") }
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

        let good = fs::read_to_string(&path).unwrap();
        let mut keystore: serde_json::Value = serde_json::from_str(&good).unwrap();
        let edits = [
            ("/version", serde_json::json!(1)),
            ("/crypto/cipherparams/iv", serde_json::json!("00")),
            ("/crypto/kdfparams/dklen", serde_json::json!(8)),
            ("/crypto/kdfparams/n", serde_json::json!(1_u64 << 30)),
            ("/crypto/ciphertext", serde_json::json!("")),
            ("/crypto/kdf", serde_json::json!("none")),
        ];
        let edited = directory.path().join("edited.json");
        for (field, value) in edits {
            let before = std::mem::replace(keystore.pointer_mut(field).unwrap(), value);
            fs::write(&edited, keystore.to_string()).unwrap();
            let opened = open(&edited, || Some("correct horse".into()));
            assert!(matches!(opened, Err(KeystoreError::Damaged { .. })), "{field}");
            *keystore.pointer_mut(field).unwrap() = before;
        }

        let plain = directory.path().join("plain");
        let known = PrivateKeySigner::random();
        fs::write(&plain, format!("{}\n", known.to_bytes())).unwrap();
        assert_eq!(open(&plain, || None).unwrap().address(), known.address());
        fs::write(&plain, "not a key").unwrap();
        assert!(matches!(open(&plain, || None), Err(KeystoreError::Format(_))));
        assert!(matches!(open(&directory.path().join("none"), || None), Err(KeystoreError::File { .. })));
    }
}
