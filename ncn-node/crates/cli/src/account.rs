//! Keys, chains and registries, as commands are given them.

use std::{
    env, fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use ncn_client::{
    Registries,
    evm::{Deployment, EvmError, EvmLedger, JsonRpc, RpcOptions, SendOptions},
    grpc::GrpcRegistry,
    keystore::{self, KeystoreError},
};
use ncn_core::{Address, Amount, DynSigner, Registry, Transport};

use crate::{Failure, typed};

/// The gateway at the URL that `--gateway` gives.
pub(crate) fn gateway(url: &str) -> Result<Arc<dyn Transport>, Failure> {
    ncn_client::transport(url).map_err(|error| Failure::Input(format!("--gateway {error}")))
}

/// Where a keystore's password is looked for before anyone is asked.
const PASSWORD_VARIABLE: &str = "NCN_PASSWORD";

#[derive(clap::Args)]
pub(crate) struct KeyArguments {
    /// The account's key: a keystore, or a file with 64 hexadecimal digits. A keystore's password is taken from NCN_PASSWORD or
    /// asked for
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

impl KeyArguments {
    /// A key in this file, which another option names.
    pub(crate) fn at(path: &Path) -> Self {
        Self { key: path.into() }
    }

    /// As they can be typed again.
    pub(crate) fn flags(&self) -> String {
        format!("--key {}", typed(&self.key))
    }

    pub(crate) fn open(&self) -> Result<DynSigner, Failure> {
        let text = self.key.to_string_lossy();
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        if digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit()) && !self.key.exists() {
            return Err(Failure::Input("--key: is a key itself: write it into a file, and name that".into()));
        }
        Ok(keystore::open(&self.key, || password("password: "))?)
    }
}

/// A password: from the environment, or from whoever sits there.
pub(crate) fn password(prompt: &str) -> Option<String> {
    env::var(PASSWORD_VARIABLE).ok().or_else(|| {
        let asked = io::stdin().is_terminal().then(|| rpassword::prompt_password(prompt));
        asked.and_then(Result::ok)
    })
}

/// A new password: typed twice where somebody types it.
pub(crate) fn new_password() -> Result<String, Failure> {
    let given = env::var(PASSWORD_VARIABLE).ok();
    let typed = given.is_none();
    let first = given.or_else(|| password("new password: ")).filter(|password| !password.trim().is_empty());
    let first = first.ok_or_else(|| Failure::Input("a password is needed: set NCN_PASSWORD, or run this on a terminal".into()))?;
    if typed && password("again: ").as_ref() != Some(&first) {
        return Err(Failure::Input("the two passwords differ: nothing was made".into()));
    }
    Ok(first)
}

/// An address. One in mixed case carries a checksum (EIP-55), which has to be right.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let problem = || "an address has 40 hexadecimal digits".to_owned();
    if digits.len() != 40 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(problem());
    }
    let mixed = digits.chars().any(|c| c.is_ascii_lowercase()) && digits.chars().any(|c| c.is_ascii_uppercase());
    if mixed {
        return Address::parse_checksummed(format!("0x{digits}"), None)
            .map_err(|_| "its checksum (upper and lower case) is wrong: check it for a typing error".to_owned());
    }
    digits.parse().map_err(|_| problem())
}

impl From<KeystoreError> for Failure {
    fn from(error: KeystoreError) -> Self {
        let hint = if matches!(error, KeystoreError::PasswordMissing(_)) { " in NCN_PASSWORD" } else { "" };
        Self::Input(format!("--key {error}{hint}"))
    }
}

#[derive(clap::Args)]
pub(crate) struct RegistryArguments {
    /// The registry node; of several, separated by commas, the next is asked when one does not answer
    #[arg(long, value_name = "URL", value_delimiter = ',', default_value = "http://127.0.0.1:50050")]
    registry: Vec<String>,
}

impl RegistryArguments {
    /// Those at these URLs: at least one.
    pub(crate) const fn of(registry: Vec<String>) -> Self {
        Self { registry }
    }

    /// As they can be typed again.
    pub(crate) fn flags(&self) -> String {
        format!("--registry {}", typed(Path::new(&self.registry.join(","))))
    }

    /// Each of them by itself.
    pub(crate) fn each(&self) -> Result<Vec<(&str, GrpcRegistry)>, Failure> {
        let open = |url: &String| GrpcRegistry::new(url).map_err(|error| Failure::Input(format!("--registry {error}")));
        self.registry.iter().map(|url| Ok((url.as_str(), open(url)?))).collect()
    }

    pub(crate) fn open(&self) -> Result<Arc<dyn Registry>, Failure> {
        let open = |url: &String| -> Result<Arc<dyn Registry>, Failure> {
            Ok(Arc::new(GrpcRegistry::new(url).map_err(|error| Failure::Input(format!("--registry {error}")))?))
        };
        let all = self.registry.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        match &*all {
            [] => Err(Failure::Input("--registry: name one".into())),
            [only] => Ok(only.clone()),
            _ => Ok(Arc::new(Registries::new(all))),
        }
    }
}

/// Whom a command asks that only shows something, and how it says it.
#[derive(clap::Args)]
pub(crate) struct Asked {
    #[command(flatten)]
    pub(crate) registry: RegistryArguments,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args)]
pub(crate) struct ChainArguments {
    /// The chain's JSON-RPC endpoint; several, separated by commas, are asked one after the other
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "NCN_RPC", hide_env_values = true)]
    rpc: Vec<String>,
    /// Where the network's contracts are, as `ncn contracts deploy` wrote it; those of `ncn devnet` by default
    #[arg(long, value_name = "FILE")]
    contracts: Option<PathBuf>,
    /// How many blocks make a transaction final
    #[arg(long, value_name = "BLOCKS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    confirmations: u64,
}

impl ChainArguments {
    /// To read from this chain.
    pub(crate) const fn at(rpc: Vec<String>, contracts: Option<PathBuf>) -> Self {
        Self { rpc, contracts, confirmations: 1 }
    }

    /// As they can be typed again. An endpoint that may hold a secret is not told.
    pub(crate) fn flags(&self) -> String {
        let all = self.rpc.join(",");
        let bare = |url: &String| {
            let host = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).trim_end_matches('/');
            !host.contains(['/', '?', '#', '@'])
        };
        let rpc = match env::var("NCN_RPC") {
            Ok(known) if known == all => "\"$NCN_RPC\"".to_owned(),
            _ if self.is_given() && self.rpc.iter().all(bare) => typed(Path::new(&all)),
            _ => "URL".to_owned(),
        };
        let contracts = self.contracts.as_deref().map(|path| format!(" --contracts {}", typed(path))).unwrap_or_default();
        let confirmations =
            if self.confirmations == 1 { String::new() } else { format!(" --confirmations {}", self.confirmations) };
        format!("--rpc {rpc}{contracts}{confirmations}")
    }

    pub(crate) fn is_given(&self) -> bool {
        self.rpc.iter().any(|url| !url.is_empty())
    }

    pub(crate) async fn backend(&self) -> Result<Arc<JsonRpc>, Failure> {
        if !self.is_given() {
            return Err(Failure::Input("--rpc is missing: give the URL of the chain".into()));
        }
        let options = RpcOptions { confirmations: self.confirmations, ..RpcOptions::default() };
        let backend = JsonRpc::connect(&self.rpc, None, options).await;
        Ok(Arc::new(backend.map_err(|error| match error {
            EvmError::InvalidEndpoint(_) => Failure::Input(format!("--rpc {error}")),
            error => Failure::Failed(format!("--rpc: {error}")),
        })?))
    }

    /// The network's contracts, as the key's account sees them.
    pub(crate) async fn ledger(&self, signer: DynSigner) -> Result<EvmLedger, Failure> {
        let deployment = self.deployment()?;
        let backend = self.backend().await?;
        let ledger = EvmLedger::connect(backend, deployment, signer, SendOptions::default()).await;
        ledger.map_err(|error| match self.contracts {
            Some(_) => Failure::failed(error),
            None => Failure::Failed(format!("{error} (no --contracts given: those of `ncn devnet` were looked for)")),
        })
    }

    fn deployment(&self) -> Result<Deployment, Failure> {
        let Some(path) = &self.contracts else { return Ok(ncn_devnet::well_known_deployment()) };
        let refuse = |problem: String| Failure::Input(format!("--contracts {}: {problem}", path.display()));
        let json = fs::read(path).map_err(|error| refuse(error.to_string()))?;
        serde_json::from_slice(&json).map_err(|error| refuse(error.to_string()))
    }
}

/// An amount in tokens, such as `1.5`.
pub(crate) fn tokens(text: &str) -> Result<Amount, String> {
    Amount::from_tokens(text).map_err(|error| error.to_string())
}
