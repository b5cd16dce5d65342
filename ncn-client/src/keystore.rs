//! Keys in files: Web3 Secret Storage (version 3), as other Ethereum programs write and read them.

mod sealed;

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use alloy_signer_local::PrivateKeySigner;
use ncn_core::DynSigner;
use sealed::{Sealed, Unopened};

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
        let text = sealed::seal(&signer.to_bytes(), signer.address(), password);
        let text = text.ok_or_else(|| io::Error::other("the key cannot be encrypted"))?;
        let key = private.join("key");
        let mut file = File::create_new(&key)?;
        fs::set_permissions(&key, Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
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
        let damaged = |problem| KeystoreError::Damaged { path: path.to_owned(), problem };
        let sealed = Sealed::read(text).map_err(damaged)?;
        let password = password().ok_or_else(|| KeystoreError::PasswordMissing(path.to_owned()))?;
        let signer = |key: &_| PrivateKeySigner::from_bytes(key).ok();
        let key = sealed.open(&password, |key| signer(key).map(|signer| signer.address())).map_err(|unopened| match unopened {
            Unopened::Password => KeystoreError::Password(path.to_owned()),
            Unopened::Damaged(problem) => damaged(problem),
        })?;
        return Ok(Arc::new(signer(&key).ok_or_else(|| KeystoreError::Format(path.to_owned()))?));
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

    /// The test vectors of the format's description: the first has more rounds than RFC 7914 says there may be.
    const SCRYPT: &str = r#"{
        "crypto": {
            "cipher": "aes-128-ctr", "cipherparams": { "iv": "83dbcc02d8ccb40e466191a123791e0e" },
            "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c", "kdf": "scrypt",
            "kdfparams": { "dklen": 32, "n": 262144, "p": 8, "r": 1, "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19" },
            "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097"
        },
        "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "version": 3
    }"#;
    const PBKDF2: &str = r#"{
        "crypto": {
            "cipher": "aes-128-ctr", "cipherparams": { "iv": "6087dab2f9fdbbfaddc31a909735c1e6" },
            "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46", "kdf": "pbkdf2",
            "kdfparams": { "c": 262144, "dklen": 32, "prf": "hmac-sha256", "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd" },
            "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"
        },
        "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "version": 3
    }"#;
    const KEY: &str = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";

    #[test]
    fn what_other_programs_have_written_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.json");
        let owner = KEY.parse::<PrivateKeySigner>().unwrap().address();
        let opened = |json: &serde_json::Value, password: &str| {
            fs::write(&path, json.to_string()).unwrap();
            open(&path, || Some(password.into())).map(|signer| signer.address())
        };
        let scrypt: serde_json::Value = serde_json::from_str(SCRYPT).unwrap();
        assert_eq!(opened(&scrypt, "testpassword").unwrap(), owner);
        let json: serde_json::Value = serde_json::from_str(PBKDF2).unwrap();
        let changed = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut json = json.clone();
            change(&mut json);
            json
        };
        let address = format!("{owner:x}");
        for good in [
            json.clone(),
            changed(&|json| json["Crypto"] = json.as_object_mut().unwrap().remove("crypto").unwrap()),
            changed(&|json| drop(json.as_object_mut().unwrap().remove("id"))),
            changed(&|json| json["id"] = serde_json::Value::Null),
            changed(&|json| json["id"] = "my key".into()),
            changed(&|json| drop(json["crypto"]["kdfparams"].as_object_mut().unwrap().remove("prf"))),
            changed(&|json| json["address"] = address.as_str().into()),
            changed(&|json| json["address"] = address.trim_start_matches("0x").to_uppercase().into()),
            changed(&|json| json["crypto"]["mac"] = format!("0x{}", json["crypto"]["mac"].as_str().unwrap()).into()),
        ] {
            assert_eq!(opened(&good, "testpassword").unwrap(), owner, "{good}");
        }
        assert!(matches!(opened(&json, "wrong"), Err(KeystoreError::Password(_))));
        for (bad, says) in [
            (
                changed(&|json| json["address"] = "0x1111111111111111111111111111111111111111".into()),
                "address: is not that of the key",
            ),
            (changed(&|json| json["crypto"]["kdfparams"]["prf"] = "hmac-md5".into()), "prf: is not"),
            (changed(&|json| json["crypto"]["kdfparams"]["c"] = 0.into()), ".c: "),
            (changed(&|json| drop(json.as_object_mut().unwrap().remove("crypto"))), "crypto: is missing"),
        ] {
            let refused = opened(&bad, "testpassword").unwrap_err().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }

    /// As strong as what geth writes.
    #[test]
    fn a_guess_costs_what_it_costs_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.json");
        let signer = create(&path, "password").unwrap();
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let params = &json["crypto"]["kdfparams"];
        assert_eq!((&params["n"], &params["r"], &params["p"]), (&262_144.into(), &8.into(), &1.into()));
        assert_eq!(json["address"], format!("{:x}", signer.address()).trim_start_matches("0x"));
        assert_eq!((json["id"].as_str().unwrap().len(), &json["version"]), (36, &3.into()));
    }
}
