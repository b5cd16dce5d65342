//! Signing and recovering, in one place, so that the curve library behind it can change without a caller noticing. Signatures are
//! recovered by libsecp256k1, which takes a quarter of the time of the libraries in Rust.

use std::{fmt, sync::Arc};

use alloy_primitives::{Address, B256, U256, hex, uint};
use alloy_signer::Signer;
use secp256k1::{
    SECP256K1,
    ecdsa::{RecoverableSignature, RecoveryId},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::message::{Domain, Message};

/// A key that can sign: a local key, a keystore, a hardware wallet.
pub type DynSigner = Arc<dyn Signer + Send + Sync>;

/// Half the order of secp256k1: a signature with a larger `s` has a twin, and only the smaller one is accepted.
const HALF_ORDER: U256 = uint!(0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0_U256);

/// An ECDSA signature on secp256k1 in its one accepted spelling: `r`, `s` (low half) and `v` (27 or 28), 65 bytes.
///
/// A value of this type is well-formed; whether it is anyone's signature is what [`Signature::recover`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; 65]);

/// Why bytes are no signature, or a signature not the one that was needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not 65 bytes.
    #[error("a signature is 65 bytes (r, s, v), not {0}")]
    Length(usize),
    /// `v` is neither 27 nor 28.
    #[error("a signature's last byte is 27 or 28, not {0}")]
    RecoveryId(u8),
    /// `s` in the upper half: the malleable twin of a valid signature.
    #[error("the signature's s is in the upper half of the order: use the low-s form")]
    HighS,
    /// No public key has made this signature over this digest.
    #[error("the signature does not recover to any address")]
    Unrecoverable,
    /// Someone else signed it.
    #[error("signed by {actual}, but it has to be signed by {expected}")]
    WrongSigner {
        /// Who had to sign.
        expected: Address,
        /// Who did.
        actual: Address,
    },
    /// The key could not be used.
    #[error("signing failed: {0}")]
    Signer(String),
}

impl Signature {
    /// The signature's bytes: r, s, v.
    pub const fn as_bytes(&self) -> &[u8; 65] {
        &self.0
    }

    /// The address whose key signed `digest`.
    pub fn recover(&self, digest: &B256) -> Result<Address, SignatureError> {
        let recover = || {
            let (compact, v) = self.0.split_at(64);
            let id = RecoveryId::try_from(i32::from(v.first()?.checked_sub(27)?)).ok()?;
            let signature = RecoverableSignature::from_compact(compact, id).ok()?;
            let key = SECP256K1.recover_ecdsa(secp256k1::Message::from_digest(digest.0), &signature).ok()?;
            // The first byte only says how the point is written.
            let [_, point @ ..] = key.serialize_uncompressed();
            Some(Address::from_raw_public_key(&point))
        };
        recover().ok_or(SignatureError::Unrecoverable)
    }

    /// Checks that `expected` signed `digest`.
    pub fn verify(&self, digest: &B256, expected: Address) -> Result<(), SignatureError> {
        let actual = self.recover(digest)?;
        if actual == expected { Ok(()) } else { Err(SignatureError::WrongSigner { expected, actual }) }
    }

    /// Has `signer` sign `digest`.
    pub async fn sign(digest: &B256, signer: &(dyn Signer + Send + Sync)) -> Result<Self, SignatureError> {
        let signature = signer.sign_hash(digest).await.map_err(|error| SignatureError::Signer(error.to_string()))?;
        Self::try_from(signature.normalized_s().as_bytes().as_slice())
    }
}

impl TryFrom<&[u8]> for Signature {
    type Error = SignatureError;

    fn try_from(bytes: &[u8]) -> Result<Self, SignatureError> {
        let array: [u8; 65] = bytes.try_into().map_err(|_| SignatureError::Length(bytes.len()))?;
        let [_, _, .., v] = array;
        if !matches!(v, 27 | 28) {
            return Err(SignatureError::RecoveryId(v));
        }
        if array.get(32..64).is_none_or(|s| U256::from_be_slice(s) > HALF_ORDER) {
            return Err(SignatureError::HighS);
        }
        Ok(Self(array))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_prefixed(self.0))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode_prefixed(self.0))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        Self::try_from(bytes.as_slice()).map_err(D::Error::custom)
    }
}

/// A message together with the signature of the one whom it names as its author.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<T> {
    /// What was signed.
    pub message: T,
    /// The author's signature over the message's EIP-712 digest.
    pub signature: Signature,
}

/// A message that names who has to sign it.
pub trait Authored: Message {
    /// The only address whose signature counts.
    fn author(&self) -> Address;
}

impl<T: Authored> Signed<T> {
    /// Signs `message`; refuses when `signer` is not its author, so that a mix-up of keys shows at once.
    pub async fn sign(message: T, domain: &Domain, signer: &(dyn Signer + Send + Sync)) -> Result<Self, SignatureError> {
        if signer.address() != message.author() {
            return Err(SignatureError::WrongSigner { expected: message.author(), actual: signer.address() });
        }
        let signature = Signature::sign(&message.digest(domain), signer).await?;
        Ok(Self { message, signature })
    }

    /// Checks the author's signature and returns the digest that was signed.
    pub fn verify(&self, domain: &Domain) -> Result<B256, SignatureError> {
        let digest = self.message.digest(domain);
        self.signature.verify(&digest, self.message.author())?;
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use alloy_signer_local::PrivateKeySigner;

    use super::*;

    #[tokio::test]
    async fn only_the_canonical_spelling_is_accepted() {
        let signer = PrivateKeySigner::random();
        let digest = B256::repeat_byte(7);
        let good = Signature::sign(&digest, &signer).await.unwrap();
        assert_eq!(good.recover(&digest), Ok(signer.address()));
        assert_ne!(good.recover(&B256::repeat_byte(8)), Ok(signer.address()));

        let mut other_v = *good.as_bytes();
        other_v[64] -= 27;
        assert_eq!(Signature::try_from(&other_v[..]), Err(SignatureError::RecoveryId(other_v[64])));

        let order = uint!(0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141_U256);
        let mut twin = *good.as_bytes();
        let s = order - U256::from_be_slice(&twin[32..64]);
        twin[32..64].copy_from_slice(&s.to_be_bytes::<32>());
        twin[64] = 55 - twin[64];
        assert_eq!(Signature::try_from(&twin[..]), Err(SignatureError::HighS));
        assert_eq!(Signature::try_from(&twin[..64]), Err(SignatureError::Length(64)));
    }
}
