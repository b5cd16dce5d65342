//! A real node, for the ledger to be used against: anvil, from npm.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use ncn_client::evm::{EvmLedger, JsonRpc, RpcOptions};
use ncn_core::{Address, DynSigner};
use serde_json::{Value, json};

use crate::{
    money::Contracts,
    scene::{genesis, key, repository, tokens},
};

/// A node that ends with its test.
pub(crate) struct Anvil {
    process: Child,
    pub(crate) url: String,
}

impl Anvil {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let program = repository("contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil");
        let mut process = Command::new(&program)
            .args(["--host", "127.0.0.1", "--port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{}: {error}: run `cargo xtask artifacts --check` first, which installs it", program.display())
            });
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| line.unwrap().strip_prefix("Listening on ").map(str::to_owned)).unwrap();
        // The rest is not read, but the pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, url: format!("http://{address}") }
    }

    pub(crate) async fn backend(&self, options: RpcOptions) -> Arc<JsonRpc> {
        Arc::new(JsonRpc::connect(std::slice::from_ref(&self.url), None, options).await.unwrap())
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) async fn ask(url: &str, method: &str, params: Value) -> Value {
    let question = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let answer = reqwest::Client::new().post(url).json(&question).send().await.unwrap();
    let mut answer: Value = answer.json().await.unwrap();
    assert!(answer.get("error").is_none(), "{method}: {answer}");
    answer["result"].take()
}

pub(crate) const FAST: Duration = Duration::from_millis(10);

/// The network's contracts on a node behind JSON-RPC.
pub(crate) struct Remote {
    url: String,
    pub(crate) deployer: EvmLedger,
    validators: Vec<DynSigner>,
}

impl Remote {
    pub(crate) async fn new(url: &str, backend: Arc<JsonRpc>) -> Self {
        let deployer = key();
        give_coin(url, deployer.address()).await;
        let deployer = genesis().deploy(backend, &deployer).await.unwrap();
        let validators: Vec<_> = (0..5).map(|_| key()).collect();
        for validator in &validators {
            give_coin(url, validator.address()).await;
            deployer.transfer(validator.address(), tokens(100)).await.unwrap();
            deployer.with_signer(validator.clone()).stake(tokens(100)).await.unwrap();
        }
        let remote = Self { url: url.to_owned(), deployer, validators };
        // Validators count from the second after their stake.
        remote.pass(1).await;
        remote
    }
}

/// Enough of the chain's own coin for any test.
pub(crate) async fn give_coin(url: &str, account: Address) {
    ask(url, "anvil_setBalance", json!([account, "0x56bc75e2d63100000"])).await;
}

#[async_trait]
impl Contracts for Remote {
    fn deployer(&self) -> &EvmLedger {
        &self.deployer
    }

    fn validators(&self) -> Vec<DynSigner> {
        self.validators.clone()
    }

    async fn prepare(&self, account: Address) {
        give_coin(&self.url, account).await;
    }

    async fn pass(&self, seconds: u64) {
        ask(&self.url, "evm_increaseTime", json!([seconds])).await;
        ask(&self.url, "evm_mine", json!([])).await;
    }
}
