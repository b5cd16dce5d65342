//! The client's key: one that this library holds, or one that only its caller can use.

use std::{fmt, path::Path, sync::Arc};

use alloy_primitives::{Address, B256, ChainId, Signature};
use alloy_signer::Signer as AlloySigner;
use alloy_signer_local::PrivateKeySigner;
use async_trait::async_trait;
use ncn_client::{core::DynSigner, devnet, keystore};
use zeroize::Zeroizing;

use crate::{ErrorKind, NcnError, runtime};

/// A client's key.
#[derive(Clone, uniffi::Enum)]
pub enum Key {
    /// One of the keys of `ncn devnet`, which everybody knows.
    Devnet {
        /// From 0.
        number: u32,
    },
    /// A secret key of 32 bytes, in hexadecimal digits.
    Secret {
        /// It is erased here once it is read.
        secret: String,
    },
    /// A key in a file, as `ncn wallet new` writes it.
    File {
        /// The file.
        path: String,
        /// What it is encrypted with, if it is.
        password: Option<String>,
    },
    /// One that the caller uses: in a hardware wallet, or in the system's key store.
    Foreign {
        /// What signs.
        signer: Arc<dyn Signer>,
    },
}

/// A key that only its owner can use. It is called in a thread that may block, for instance until somebody has pressed a button.
#[uniffi::export(with_foreign)]
pub trait Signer: Send + Sync {
    /// The key's address, `0x` and 40 hexadecimal digits.
    fn address(&self) -> Result<String, SignerError>;

    /// Signs a digest of 32 bytes as it is, without a prefix: r, s and v (27 or 28) in 65 bytes, s in the lower half.
    fn sign_digest(&self, digest: Vec<u8>) -> Result<Vec<u8>, SignerError>;
}

/// Why something was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, uniffi::Error)]
pub enum SignerError {
    /// Whatever it was.
    #[error("{reason}")]
    Failed {
        /// Why.
        reason: String,
    },
}

impl From<uniffi::UnexpectedUniFFICallbackError> for SignerError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        Self::Failed { reason: error.reason }
    }
}

impl Key {
    pub(crate) async fn open(self) -> Result<DynSigner, NcnError> {
        let invalid = |problem: String| NcnError::new(ErrorKind::Key, format!("key: {problem}"));
        match self {
            Self::Devnet { number } => Ok(devnet::key("client", number as usize)),
            Self::Secret { secret } => {
                let secret = Zeroizing::new(secret);
                let key: PrivateKeySigner =
                    secret.trim().parse().map_err(|_| invalid("is no secret key: give 64 hexadecimal digits".into()))?;
                Ok(Arc::new(key))
            }
            Self::File { path, password } => {
                let password = password.map(Zeroizing::new);
                let open = move || keystore::open(Path::new(&path), || password.map(|password| String::clone(&password)));
                runtime::call(open).await?.map_err(|error| invalid(error.to_string()))
            }
            Self::Foreign { signer } => {
                let (asked, asking) = (signer.clone(), move |signer: Arc<dyn Signer>| signer.address());
                let address = runtime::call(move || asking(asked)).await?.map_err(|error| invalid(error.to_string()))?;
                let address = address.parse().map_err(|_| invalid(format!("`{address}` is no address")))?;
                Ok(Arc::new(Foreign { signer, address }))
            }
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// A caller's key, as the client uses keys.
struct Foreign {
    signer: Arc<dyn Signer>,
    address: Address,
}

#[async_trait]
impl AlloySigner for Foreign {
    async fn sign_hash(&self, hash: &B256) -> alloy_signer::Result<Signature> {
        let (signer, digest, failed) = (self.signer.clone(), *hash, |error: String| alloy_signer::Error::message(error));
        let signed = runtime::call(move || signer.sign_digest(digest.to_vec())).await.map_err(|error| failed(error.to_string()))?;
        let bytes = signed.map_err(|error| failed(error.to_string()))?;
        let signature = Signature::from_raw(&bytes).map_err(|error| failed(format!("a signature is r, s and v: {error}")))?;
        // Money must not depend on whether a wallet does what it says.
        match signature.recover_address_from_prehash(hash) {
            Ok(address) if address == self.address => Ok(signature),
            _ => Err(failed(format!("it was not {} that signed", self.address))),
        }
    }

    fn address(&self) -> Address {
        self.address
    }

    fn chain_id(&self) -> Option<ChainId> {
        None
    }

    fn set_chain_id(&mut self, _: Option<ChainId>) {}
}
