//! A private key under a password: [Web3 Secret Storage](https://ethereum.org/en/developers/docs/data-structures-and-encoding/web3-secret-storage),
//! version 3, as programs have written it over the years.

use aes::Aes128;
use alloy_primitives::{Address, B256, keccak256};
use ctr::{
    Ctr128BE,
    cipher::{KeyIvInit as _, StreamCipher as _},
};
use rand::{RngCore as _, rngs::OsRng};
use scrypt::Params;
use serde_json::{Value, json};
use sha2::Sha256;

/// What geth writes: N is 2^18. A guess takes 256 MiB and about a second.
const COST: (u8, u32, u32) = (18, 8, 1);
/// The most work that a file may ask for, in N x r x p, and in N x r, which is memory in units of 128 bytes.
const MAX_WORK: u64 = 1 << 24;
const MAX_MEMORY: u64 = 1 << 23;
/// The most rounds of PBKDF2.
const MAX_ROUNDS: u64 = 10_000_000;
/// The longest salt.
const MAX_SALT: usize = 256;

/// A key under a password.
pub(super) struct Sealed {
    derivation: Derivation,
    iv: [u8; 16],
    ciphertext: [u8; 32],
    mac: [u8; 32],
    /// Whose key it is, where that is said.
    address: Option<Address>,
}

/// Why a key does not come out.
pub(super) enum Unopened {
    /// Another password, or damage that cannot be told from that.
    Password,
    Damaged(&'static str),
}

enum Derivation {
    Scrypt { params: Params, salt: Vec<u8> },
    Pbkdf2 { rounds: u32, salt: Vec<u8> },
}

impl Derivation {
    fn key(&self, password: &str) -> Option<[u8; 32]> {
        let mut key = [0; 32];
        match self {
            Self::Scrypt { params, salt } => scrypt::scrypt(password.as_bytes(), salt, params, &mut key).ok()?,
            Self::Pbkdf2 { rounds, salt } => pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, *rounds, &mut key),
        }
        Some(key)
    }
}

impl Sealed {
    /// Reads a file's text. What programs leave out or write otherwise is taken: `Crypto`, no `id`, no `prf`, `0x` before digits.
    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        let json: Value = serde_json::from_str(text).map_err(|_| "is no JSON")?;
        let crypto = json.get("crypto").or_else(|| json.get("Crypto")).ok_or("crypto: is missing")?;
        let at = |pointer: &str| crypto.pointer(pointer);
        let text = |pointer: &str| at(pointer).and_then(Value::as_str);
        let number = |name: &str| at("/kdfparams").and_then(|params| params.get(name)).and_then(Value::as_u64);
        if json.get("version").and_then(Value::as_u64) != Some(3) {
            return Err("version: is not 3");
        }
        if text("/cipher") != Some("aes-128-ctr") {
            return Err("crypto.cipher: is not aes-128-ctr");
        }
        let salt = text("/kdfparams/salt").and_then(bytes).filter(|salt| salt.len() <= MAX_SALT);
        let salt = salt.ok_or("crypto.kdfparams.salt: is missing, no hexadecimal digits, or too long")?;
        if number("dklen") != Some(32) {
            return Err("crypto.kdfparams.dklen: is not 32");
        }
        let derivation = match text("/kdf") {
            Some("scrypt") => Derivation::Scrypt { params: scrypt_params(number("n"), number("r"), number("p"))?, salt },
            Some("pbkdf2") => {
                if text("/kdfparams/prf").is_some_and(|prf| prf != "hmac-sha256") {
                    return Err("crypto.kdfparams.prf: is not hmac-sha256");
                }
                let rounds =
                    number("c").filter(|rounds| (1..=MAX_ROUNDS).contains(rounds)).and_then(|rounds| rounds.try_into().ok());
                Derivation::Pbkdf2 {
                    rounds: rounds.ok_or("crypto.kdfparams.c: is missing, or more work than this program does")?,
                    salt,
                }
            }
            _ => return Err("crypto.kdf: is neither scrypt nor pbkdf2"),
        };
        let address = json.get("address").and_then(Value::as_str).filter(|address| !address.is_empty());
        Ok(Self {
            derivation,
            iv: exact(text("/cipherparams/iv")).ok_or("crypto.cipherparams.iv: is not 16 bytes")?,
            ciphertext: exact(text("/ciphertext")).ok_or("crypto.ciphertext: is not 32 bytes")?,
            mac: exact(text("/mac")).ok_or("crypto.mac: is not 32 bytes")?,
            address: address.map(|address| exact(Some(address)).map(Address::from).ok_or("address: is none")).transpose()?,
        })
    }

    /// The private key.
    pub(super) fn open(self, password: &str, address_of: impl FnOnce(&B256) -> Option<Address>) -> Result<B256, Unopened> {
        let derived = self.derivation.key(password).ok_or(Unopened::Damaged("crypto.kdfparams: cannot be computed"))?;
        let (cipher, rest) = derived.split_at(16);
        if keccak256([rest, &self.ciphertext].concat()) != self.mac {
            return Err(Unopened::Password);
        }
        let mut key = self.ciphertext;
        apply(cipher, &self.iv, &mut key);
        let key = B256::from(key);
        let address = address_of(&key).ok_or(Unopened::Damaged("crypto.ciphertext: is no private key"))?;
        if self.address.is_some_and(|said| said != address) {
            return Err(Unopened::Damaged("address: is not that of the key in it"));
        }
        Ok(key)
    }
}

/// A file's text for this private key, whose account has this address.
pub(super) fn seal(key: &B256, address: Address, password: &str) -> Option<String> {
    let (mut salt, mut iv, mut id) = ([0; 32], [0; 16], [0; 16]);
    OsRng.fill_bytes(&mut salt);
    OsRng.fill_bytes(&mut iv);
    OsRng.fill_bytes(&mut id);
    let (log_n, r, p) = COST;
    let derivation = Derivation::Scrypt { params: Params::new(log_n, r, p).ok()?, salt: salt.to_vec() };
    let derived = derivation.key(password)?;
    let (cipher, rest) = derived.split_at(16);
    let mut ciphertext = key.0;
    apply(cipher, &iv, &mut ciphertext);
    let mac = keccak256([rest, &ciphertext].concat());
    // A random UUID, by RFC 9562.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let id = hex::encode(id);
    let id = [id.get(..8)?, id.get(8..12)?, id.get(12..16)?, id.get(16..20)?, id.get(20..)?].join("-");
    let params = json!({ "dklen": 32, "n": 1_u64 << log_n, "p": p, "r": r, "salt": hex::encode(salt) });
    let crypto = json!({
        "cipher": "aes-128-ctr", "cipherparams": { "iv": hex::encode(iv) }, "ciphertext": hex::encode(ciphertext),
        "kdf": "scrypt", "kdfparams": params, "mac": hex::encode(mac),
    });
    Some(json!({ "address": hex::encode(address), "crypto": crypto, "id": id, "version": 3 }).to_string())
}

fn apply(key: &[u8], iv: &[u8; 16], data: &mut [u8]) {
    if let Ok(mut cipher) = Ctr128BE::<Aes128>::new_from_slices(key, iv) {
        cipher.apply_keystream(data);
    }
}

fn scrypt_params(n: Option<u64>, r: Option<u64>, p: Option<u64>) -> Result<Params, &'static str> {
    let (Some(n), Some(r), Some(p)) = (n, r, p) else { return Err("crypto.kdfparams: n, r or p is missing") };
    if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 {
        return Err("crypto.kdfparams: n is no power of two, or r or p is none");
    }
    let memory = n.checked_mul(r).filter(|memory| *memory <= MAX_MEMORY);
    if memory.and_then(|memory| memory.checked_mul(p)).is_none_or(|work| work > MAX_WORK) {
        return Err("crypto.kdfparams: is more work than this program does");
    }
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Params::new(u8::try_from(n.ilog2()).unwrap_or(u8::MAX), small(r), small(p)).map_err(|_| "crypto.kdfparams: cannot be computed")
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    hex::decode(digits.strip_prefix("0x").unwrap_or(digits)).ok()
}

fn exact<const N: usize>(digits: Option<&str>) -> Option<[u8; N]> {
    bytes(digits?)?.try_into().ok()
}
