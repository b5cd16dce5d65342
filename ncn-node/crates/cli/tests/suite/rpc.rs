//! The embedded chain as clients of the Ethereum JSON-RPC API meet it.

mod news;
mod options;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEip2930, TxEnvelope, TxLegacy, TypedTransaction};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256, hex, keccak256};
use alloy_sol_types::{SolCall as _, SolConstructor as _};
use ncn_client::evm::{EvmBackend as _, EvmError, EvmReader as _, JsonRpc, NCNToken, Nonces, RpcOptions};
use ncn_core::DynSigner;
use ncn_devnet::{EmbeddedChain, Mining, RpcServer, TooDeep};
use serde_json::{Value, json};

use crate::{scene::key, wait::in_time};

const CHAIN_ID: u64 = 4_242;
const ETHER: u128 = 1_000_000_000_000_000_000;
/// Reverts with its caller's data: CALLDATASIZE PUSH0 PUSH0 CALLDATACOPY CALLDATASIZE PUSH0 REVERT.
const REVERTS: [u8; 7] = [0x36, 0x5f, 0x5f, 0x37, 0x36, 0x5f, 0xfd];

struct Node {
    chain: Arc<EmbeddedChain>,
    server: RpcServer,
    http: reqwest::Client,
}

impl Node {
    async fn start() -> Self {
        let chain = Arc::new(EmbeddedChain::new(CHAIN_ID));
        let server = RpcServer::start(chain.clone(), loopback()).await.unwrap();
        // The ledger's own client connects too; by that, reqwest has what it takes to be used here.
        JsonRpc::connect(&[server.url()], Some(CHAIN_ID), RpcOptions::default()).await.unwrap();
        Self { chain, server, http: reqwest::Client::new() }
    }

    async fn post(&self, body: &Value) -> reqwest::Response {
        self.http.post(self.server.url()).json(body).send().await.unwrap()
    }

    /// The whole answer.
    async fn ask(&self, method: &str, params: Value) -> Value {
        self.post(&json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})).await.json().await.unwrap()
    }

    /// The result of a call that succeeds.
    async fn get(&self, method: &str, params: Value) -> Value {
        let answer = self.ask(method, params).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Code and message of a call that fails.
    async fn refused(&self, method: &str, params: Value) -> (i64, String) {
        let answer = self.ask(method, params).await;
        let error = answer.get("error").unwrap_or_else(|| panic!("{method} is not refused: {answer}"));
        (error["code"].as_i64().unwrap(), error["message"].as_str().unwrap().to_owned())
    }

    async fn send(&self, raw: &Bytes) -> B256 {
        parse(&self.get("eth_sendRawTransaction", json!([raw])).await)
    }

    async fn receipt(&self, hash: B256) -> Value {
        self.get("eth_getTransactionReceipt", json!([hash])).await
    }

    async fn balance(&self, account: Address) -> u128 {
        parse::<U256>(&self.get("eth_getBalance", json!([account, "latest"])).await).to()
    }

    async fn number(&self) -> u64 {
        parse::<U64>(&self.get("eth_blockNumber", json!([])).await).to()
    }

    /// A token, all of which belongs to `owner`, who has sent one transaction then.
    async fn token(&self, owner: &DynSigner) -> Address {
        let constructor = NCNToken::constructorCall { owner: owner.address(), supply: U256::from(1_000) };
        let code = [NCNToken::BYTECODE.as_ref(), &constructor.abi_encode()].concat();
        let hash = self.send(&signed(owner, TxEip1559 { input: code.into(), ..free(0) }).await).await;
        parse(&self.receipt(hash).await["contractAddress"])
    }

    async fn tokens(&self, token: Address, account: Address, block: Value) -> U256 {
        let input = Bytes::from(NCNToken::balanceOfCall { account }.abi_encode());
        let answer: Bytes = parse(&self.get("eth_call", json!([{"to": token, "input": input}, block])).await);
        U256::from_be_slice(&answer)
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"))
}

/// A transaction that offers nothing for gas; it creates a contract unless it is told otherwise.
fn free(nonce: u64) -> TxEip1559 {
    TxEip1559 { chain_id: CHAIN_ID, nonce, gas_limit: 5_000_000, ..TxEip1559::default() }
}

fn pays(nonce: u64, to: Address, wei: u128) -> TxEip1559 {
    TxEip1559 { gas_limit: 21_000, to: TxKind::Call(to), value: U256::from(wei), ..free(nonce) }
}

fn transfers(nonce: u64, token: Address, to: Address, amount: u64) -> TxEip1559 {
    let input = NCNToken::transferCall { to, value: U256::from(amount) }.abi_encode().into();
    TxEip1559 { gas_limit: 200_000, to: TxKind::Call(token), input, ..free(nonce) }
}

pub(crate) async fn signed(signer: &DynSigner, transaction: impl Into<TypedTransaction>) -> Bytes {
    let transaction = transaction.into();
    let signature = signer.sign_hash(&transaction.signature_hash()).await.unwrap();
    TxEnvelope::from(transaction.into_signed(signature)).encoded_2718().into()
}

#[tokio::test]
async fn deploy_call_logs_and_receipts() {
    let node = Node::start().await;
    let (owner, to) = (key(), Address::random());
    let token = node.token(&owner).await;
    let hash = node.send(&signed(&owner, transfers(1, token, to, 7)).await).await;
    assert_eq!(node.tokens(token, to, json!("latest")).await, U256::from(7));
    assert_eq!(node.tokens(token, to, json!("0x1")).await, U256::ZERO, "before the transfer");

    let receipt = node.receipt(hash).await;
    assert_eq!((&receipt["status"], &receipt["blockNumber"], &receipt["type"]), (&json!("0x1"), &json!("0x2"), &json!("0x2")));
    assert_eq!(parse::<Address>(&receipt["from"]), owner.address());
    assert_eq!(receipt["gasUsed"], receipt["cumulativeGasUsed"]);
    assert_eq!(receipt["logs"][0]["logIndex"], "0x0");
    let transaction = node.get("eth_getTransactionByHash", json!([hash])).await;
    assert_eq!((&transaction["nonce"], &transaction["gasPrice"]), (&json!("0x1"), &json!("0x0")));

    let block = node.get("eth_getBlockByNumber", json!(["latest", true])).await;
    assert_eq!(block["transactions"], json!([transaction]));
    assert_eq!((&block["hash"], &block["logsBloom"]), (&receipt["blockHash"], &receipt["logsBloom"]));
    assert_eq!(block, node.get("eth_getBlockByHash", json!([block["hash"], true])).await);
    let parent = node.get("eth_getBlockByNumber", json!(["0x1", false])).await;
    assert_eq!((&parent["hash"], parent["transactions"].as_array().unwrap().len()), (&block["parentHash"], 1));
    assert_eq!(node.get("eth_getBlockReceipts", json!(["0x2"])).await, json!([receipt]));
    // The hash is that of the header.
    let header: alloy_consensus::Header = parse(&block);
    assert_eq!(header.hash_slow(), parse::<B256>(&block["hash"]));

    let everything = json!([{"fromBlock": "earliest", "toBlock": "latest"}]);
    assert_eq!(node.get("eth_getLogs", everything).await.as_array().unwrap().len(), 3, "given an owner, minted, transferred");
    let transferred = keccak256("Transfer(address,address,uint256)");
    for filter in [
        json!({"address": token, "topics": [transferred, null, to.into_word()], "fromBlock": "0x0"}),
        json!({"address": [token, to], "topics": [[B256::ZERO, transferred], owner.address().into_word()], "fromBlock": "0x0"}),
        json!({"blockHash": block["hash"]}),
    ] {
        assert_eq!(node.get("eth_getLogs", json!([filter])).await, receipt["logs"], "{filter}");
    }
    let nothing = json!([{"fromBlock": "0x0", "topics": [B256::ZERO]}]);
    assert_eq!(node.get("eth_getLogs", nothing).await, json!([]));

    let balances_slot = keccak256([to.into_word().0, [0; 32]].concat());
    let stored: Vec<B256> = vec![
        parse(&node.get("eth_getStorageAt", json!([token, balances_slot, "latest"])).await),
        parse(&node.get("eth_getStorageAt", json!([token, balances_slot, "0x1"])).await),
    ];
    assert_eq!(stored, [U256::from(7).into(), B256::ZERO]);
    assert!(!parse::<Bytes>(&node.get("eth_getCode", json!([token, "latest"])).await).is_empty());
    assert!(parse::<Bytes>(&node.get("eth_getCode", json!([token, "0x0"])).await).is_empty());
}

#[tokio::test]
async fn legacy_and_access_list_transactions_pay_for_gas() {
    let node = Node::start().await;
    let (account, to) = (key(), Address::random());
    let price = 1_000_000_000;
    let legacy = TxLegacy {
        chain_id: Some(CHAIN_ID),
        gas_price: price,
        gas_limit: 21_000,
        to: TxKind::Call(to),
        value: U256::from(5),
        ..TxLegacy::default()
    };
    let raw = signed(&account, legacy).await;
    let (code, message) = node.refused("eth_sendRawTransaction", json!([raw])).await;
    assert_eq!(code, -32_000);
    assert!(message.starts_with("insufficient funds for gas * price + value"), "{message}");
    let in_process = node.chain.send_raw_transaction(raw.clone()).await;
    assert!(matches!(in_process, Err(EvmError::InsufficientGasFunds(_))), "{in_process:?}");

    node.get("anvil_setBalance", json!([account.address(), U256::from(ETHER)])).await;
    let receipt = node.receipt(node.send(&raw).await).await;
    assert_eq!(receipt["effectiveGasPrice"], json!(U64::from(price)));
    assert_eq!(node.balance(account.address()).await, ETHER - 5 - 21_000 * price);
    let access_list = TxEip2930 { chain_id: CHAIN_ID, nonce: 1, gas_limit: 50_000, to: TxKind::Call(to), ..TxEip2930::default() };
    let receipt = node.receipt(node.send(&signed(&account, access_list).await).await).await;
    assert_eq!((&receipt["status"], &receipt["type"]), (&json!("0x1"), &json!("0x1")));
    assert_eq!(node.balance(to).await, 5);
}

#[tokio::test]
async fn nonces_wait_are_replaced_and_refused() {
    let node = Node::start().await;
    let (account, to) = (key(), Address::random());
    node.chain.fund(account.address(), U256::from(ETHER));
    let nonces = async || node.chain.nonces(account.address()).await.unwrap();
    let third = node.send(&signed(&account, pays(2, to, 4)).await).await;
    let second = signed(&account, pays(1, to, 2)).await;
    node.send(&second).await;
    assert_eq!(nonces().await, Nonces { mined: 0, pending: 0 }, "there is a gap");
    assert_eq!(node.receipt(third).await, Value::Null);
    assert_eq!(node.get("eth_getTransactionByHash", json!([third])).await["blockNumber"], Value::Null);
    assert_eq!(node.refused("eth_sendRawTransaction", json!([second])).await, (-32_000, "already known".into()));
    node.chain.send_raw_transaction(second).await.unwrap();
    let first = signed(&account, pays(0, to, 1)).await;
    node.send(&first).await;
    assert_eq!((nonces().await.mined, node.balance(to).await, node.number().await), (3, 7, 3));
    node.chain.send_raw_transaction(first).await.unwrap();

    let other = signed(&account, pays(0, to, 9)).await;
    let (code, message) = node.refused("eth_sendRawTransaction", json!([other])).await;
    assert_eq!((code, message.as_str()), (-32_000, "nonce too low: next nonce 3, tx nonce 0"));
    assert_eq!(node.chain.send_raw_transaction(other).await, Err(EvmError::Nonce(0)));

    node.get("evm_setAutomine", json!([false])).await;
    let offer = |fee, tip, wei| TxEip1559 { max_fee_per_gas: fee, max_priority_fee_per_gas: tip, ..pays(3, to, wei) };
    let replaced = node.send(&signed(&account, offer(100, 10, 10)).await).await;
    for (fee, tip) in [(109, 11), (110, 10), (1_000, 10), (100, 100)] {
        let raw = signed(&account, offer(fee, tip, 20)).await;
        let refusal = node.refused("eth_sendRawTransaction", json!([raw])).await;
        assert_eq!(refusal, (-32_000, "replacement transaction underpriced".into()), "{fee} {tip}");
    }
    let replacement = node.send(&signed(&account, offer(110, 11, 30)).await).await;
    assert_eq!(node.get("eth_getTransactionByHash", json!([replaced])).await, Value::Null);
    assert_eq!(nonces().await, Nonces { mined: 3, pending: 4 });
    let count = async |tag: &str| node.get("eth_getTransactionCount", json!([account.address(), tag])).await;
    assert_eq!((count("latest").await, count("pending").await), (json!("0x3"), json!("0x4")));
    assert_eq!(node.balance(to).await, 7);
    node.get("evm_mine", json!([])).await;
    assert_eq!(node.balance(to).await, 37);
    assert_eq!(node.receipt(replacement).await["status"], "0x1");
}

#[tokio::test]
async fn reverts_come_with_their_data() {
    let node = Node::start().await;
    let account = key();
    // PUSH7 code PUSH0 MSTORE PUSH1 7 PUSH1 25 RETURN
    let creation = [&[0x66][..], &REVERTS, &[0x5f, 0x52, 0x60, 7, 0x60, 25, 0xf3]].concat();
    let hash = node.send(&signed(&account, TxEip1559 { input: creation.into(), ..free(0) }).await).await;
    let contract: Address = parse(&node.receipt(hash).await["contractAddress"]);
    for method in ["eth_call", "eth_estimateGas"] {
        let answer = node.ask(method, json!([{"from": account.address(), "to": contract, "data": "0xdeadbeef"}, "latest"])).await;
        assert_eq!(answer["error"], json!({"code": 3, "message": "execution reverted", "data": "0xdeadbeef"}), "{method}");
    }
    let reverting = TxEip1559 { to: TxKind::Call(contract), input: hex!("deadbeef").into(), ..free(1) };
    let receipt = node.receipt(node.send(&signed(&account, reverting).await).await).await;
    assert_eq!((&receipt["status"], &receipt["logs"]), (&json!("0x0"), &json!([])));

    // A contract may be asked to call, and what it has cannot be exceeded.
    let transfer = json!({"from": contract, "to": account.address(), "value": "0x1"});
    let (code, message) = node.refused("eth_call", json!([transfer])).await;
    assert!(code == -32_000 && message.starts_with("insufficient funds for gas * price + value"), "{code} {message}");
    node.chain.fund(contract, U256::ONE);
    assert_eq!(node.get("eth_estimateGas", json!([transfer])).await, json!(U64::from(21_000)));

    // What is estimated suffices, to the unit.
    let token = node.token(&key()).await;
    let owner = key();
    let mine = node.token(&owner).await;
    assert_ne!(token, mine);
    let to = Address::random();
    let planned = transfers(1, mine, to, 3);
    let request = json!({"from": owner.address(), "to": mine, "input": planned.input});
    let estimate: u64 = parse::<U64>(&node.get("eth_estimateGas", json!([request])).await).to();
    let receipt = node.receipt(node.send(&signed(&owner, TxEip1559 { gas_limit: estimate, ..planned }).await).await).await;
    assert_eq!(receipt["status"], "0x1");
}

#[tokio::test]
async fn a_reorganization_undoes_and_mines_again() {
    let node = Node::start().await;
    let (owner, to) = (key(), Address::random());
    let token = node.token(&owner).await;
    node.chain.fund(owner.address(), U256::from(10));
    let filter = node.get("eth_newFilter", json!([{"address": token}])).await;
    let blocks = node.get("eth_newBlockFilter", json!([])).await;
    let paid = node.send(&signed(&owner, pays(1, to, 4)).await).await;
    let moved = node.send(&signed(&owner, transfers(2, token, to, 7)).await).await;
    assert_eq!(node.get("eth_getFilterChanges", json!([filter])).await.as_array().unwrap().len(), 1);
    assert_eq!(node.get("eth_getFilterChanges", json!([blocks])).await.as_array().unwrap().len(), 2);
    assert_eq!(node.get("eth_getFilterChanges", json!([filter])).await, json!([]));
    let (before, old) = (node.receipt(moved).await, node.get("eth_getBlockByNumber", json!(["0x2", false])).await);

    node.get("ncn_reorg", json!([2, false])).await;
    assert_eq!(node.number().await, 4, "the longer chain wins");
    assert_eq!((node.balance(to).await, node.balance(owner.address()).await), (4, 6));
    assert_eq!(node.tokens(token, to, json!("latest")).await, U256::from(7));
    let after = node.receipt(moved).await;
    assert_eq!(
        (&after["blockNumber"], &after["transactionIndex"], &after["logs"][0]["logIndex"]),
        (&json!("0x2"), &json!("0x1"), &json!("0x0"))
    );
    assert_ne!(after["blockHash"], before["blockHash"]);
    assert_eq!(node.receipt(paid).await["blockHash"], after["blockHash"]);
    let new = node.get("eth_getBlockByNumber", json!(["0x2", false])).await;
    assert_ne!(new["hash"], old["hash"]);
    assert_eq!(new["parentHash"], old["parentHash"]);
    let changes = node.get("eth_getFilterChanges", json!([filter])).await;
    assert_eq!((&changes[0]["removed"], &changes[1]["removed"]), (&json!(true), &json!(false)));
    assert_eq!((&changes[0]["blockHash"], &changes[1]["blockHash"]), (&before["blockHash"], &after["blockHash"]));
    assert_eq!(node.get("eth_getFilterChanges", json!([blocks])).await.as_array().unwrap().len(), 3);

    node.get("ncn_reorg", json!([3, true])).await;
    assert_eq!((node.number().await, node.balance(to).await, node.balance(owner.address()).await), (5, 0, 10));
    assert_eq!(node.tokens(token, to, json!("latest")).await, U256::ZERO);
    assert_eq!(node.receipt(moved).await, Value::Null);
    assert_eq!(node.get("eth_getTransactionByHash", json!([moved])).await, Value::Null);
    assert_eq!(node.get("eth_getLogs", json!([{"fromBlock": "0x2"}])).await, json!([]));
    assert_eq!(node.get("eth_getTransactionCount", json!([owner.address(), "pending"])).await, "0x1");
    assert_eq!(node.get("eth_uninstallFilter", json!([filter])).await, true);
    assert_eq!(node.refused("eth_getFilterChanges", json!([filter])).await, (-32_000, "filter not found".into()));

    // Even the contracts' creation is undone.
    node.chain.reorg(5, true).unwrap();
    assert_eq!(node.get("eth_getCode", json!([token, "latest"])).await, "0x");
    assert_eq!(node.chain.reorg(7, true), Err(TooDeep { depth: 7, kept: 6 }));
    assert_eq!(node.refused("ncn_reorg", json!([7])).await.0, -32_602);
}

#[tokio::test]
async fn older_blocks_can_be_asked_within_the_window() {
    let node = Node::start().await;
    let (account, to) = (key(), Address::random());
    node.chain.fund(account.address(), U256::from(1_000));
    for nonce in 0..300 {
        node.chain.send_raw_transaction(signed(&account, pays(nonce, to, 1)).await).await.unwrap();
    }
    let at = async |number: u64| node.ask("eth_getBalance", json!([to, U64::from(number)])).await;
    for number in [300, 299, 100, 44] {
        assert_eq!(at(number).await["result"], json!(U64::from(number)));
    }
    assert!(at(43).await["error"]["message"].as_str().unwrap().contains("newest 256"));
    assert!(at(301).await["error"].is_object());
    let hash = node.get("eth_getBlockByNumber", json!(["0xff", false])).await["hash"].clone();
    assert_eq!(node.get("eth_getBalance", json!([to, {"blockHash": hash}])).await, "0xff");
    // As deep as it goes.
    node.chain.reorg(256, false).unwrap();
    assert_eq!((node.number().await, node.balance(to).await), (301, 300));
    assert_eq!(at(45).await["result"], json!(U64::from(300)), "all of them are in the first new block");
}

#[tokio::test]
async fn blocks_at_intervals_and_time_travel() {
    let node = Node::start().await;
    let (account, to) = (key(), Address::random());
    node.chain.set_mining(Mining::Every(Duration::from_millis(20)));
    node.chain.fund(account.address(), U256::from(10));
    let hashes = [pays(1, to, 2), pays(0, to, 1)].map(async |transaction| node.send(&signed(&account, transaction).await).await);
    let hashes = futures::future::join_all(hashes).await;
    assert_eq!(node.chain.nonces(account.address()).await.unwrap().pending, 2);
    node.chain.block_after(node.number().await).await.unwrap();
    assert_eq!(node.receipt(hashes[0]).await["status"], "0x1");
    assert_eq!(node.receipt(hashes[1]).await["status"], "0x1");
    node.chain.block_after(node.number().await + 1).await.unwrap();

    node.get("evm_setIntervalMining", json!([0])).await;
    let number = node.number().await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(node.number().await, number, "nothing is made any more");
    let time = async || parse::<U64>(&node.get("eth_getBlockByNumber", json!(["latest", false])).await["timestamp"]).to::<u64>();
    let before = time().await;
    assert_eq!(node.get("evm_increaseTime", json!([3_600])).await, 3_600);
    assert_eq!(time().await, before, "time passes with the next block");
    node.get("evm_mine", json!([])).await;
    assert!(time().await >= before + 3_600);
    node.get("anvil_mine", json!(["0x3"])).await;
    assert_eq!(node.number().await, number + 4);
    assert_eq!(node.refused("anvil_mine", json!([1_001])).await.0, -32_602);
    node.get("evm_increaseTime", json!([u64::MAX])).await;
    node.get("evm_mine", json!([])).await;
    assert_eq!(time().await, u64::MAX, "and not over the end");

    // The chain ends although it mines.
    let chain = Arc::new(EmbeddedChain::new(1));
    chain.set_mining(Mining::Every(Duration::from_millis(1)));
    let weak = Arc::downgrade(&chain);
    drop(chain);
    assert!(weak.upgrade().is_none());
}

#[tokio::test]
async fn faults_come_as_planned() {
    let node = Node::start().await;
    let plan = async |mode: &str, method: Option<&str>| {
        node.get("ncn_fault", json!([{"mode": mode, "count": 1, "method": method}])).await;
    };
    plan("error", None).await;
    assert_eq!(node.refused("eth_chainId", json!([])).await.0, -32_603);
    assert_eq!(node.get("eth_chainId", json!([])).await, json!(U64::from(CHAIN_ID)));

    plan("garbage", Some("eth_blockNumber")).await;
    assert_eq!(node.get("eth_chainId", json!([])).await, json!(U64::from(CHAIN_ID)), "it is not meant");
    assert_eq!(node.get("eth_blockNumber", json!([])).await, "0xgarbage");
    assert_eq!(node.number().await, 0);

    plan("lost", Some("eth_sendRawTransaction")).await;
    let (account, to) = (key(), Address::random());
    node.chain.fund(account.address(), U256::ONE);
    let raw = signed(&account, pays(0, to, 1)).await;
    let body = json!([{"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": [raw]}]);
    assert_eq!(node.post(&body).await.status(), 502);
    assert_eq!(node.balance(to).await, 1, "it was carried out");

    plan("timeout", Some("eth_chainId")).await;
    let silent = node.ask("eth_chainId", json!([]));
    assert!(tokio::time::timeout(Duration::from_millis(100), silent).await.is_err());
    assert!(node.refused("ncn_fault", json!([{"mode": "unheard-of", "count": 1}])).await.0 == -32_602);
}

#[tokio::test]
async fn only_this_machine_may_ask() {
    let outside = RpcServer::start(Arc::new(EmbeddedChain::new(1)), "0.0.0.0:0".parse().unwrap()).await;
    assert!(outside.err().unwrap().to_string().contains("development only"));

    let node = Node::start().await;
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"});
    let port = node.server.address().port();
    for (host, status) in [
        (format!("localhost:{port}"), 200),
        (format!("[::1]:{port}"), 200),
        ("127.0.0.1".into(), 200),
        (format!("rebound.example:{port}"), 403),
        (format!("127.0.0.1.example:{port}"), 403),
    ] {
        let answer = node.http.post(node.server.url()).header("host", &host).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), status, "{host}");
    }
    let url = node.server.url();
    drop(node.server);
    let gone = async || {
        while node.http.post(&url).json(&body).send().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time("the port is closed", gone()).await;
}

#[tokio::test]
async fn what_is_too_much_is_refused() {
    let node = Node::start().await;
    assert_eq!(node.refused("eth_mining", json!([])).await.0, -32_601);
    assert_eq!(node.refused("eth_getBalance", json!(["0x12"])).await.0, -32_602);
    assert_eq!(node.refused("eth_getBalance", json!([])).await.0, -32_602);
    assert_eq!(node.refused("eth_getLogs", json!([{"fromBlock": "0x2", "toBlock": "0x1"}])).await.0, -32_602);
    let call = |id| json!({"jsonrpc": "2.0", "id": id, "method": "eth_chainId"});
    let batch = |count: u64| Value::Array((0..count).map(call).collect());
    let answer: Value = node.post(&batch(1_000)).await.json().await.unwrap();
    assert_eq!(answer.as_array().unwrap().len(), 1_000);
    let answer: Value = node.post(&batch(1_001)).await.json().await.unwrap();
    assert!(answer["error"].is_object());
    assert_eq!(node.post(&json!(["x".repeat(5 << 20)])).await.status(), 413);
    let oversized = Bytes::from(vec![2; (256 << 10) + 1]);
    let (code, message) = node.refused("eth_sendRawTransaction", json!([oversized])).await;
    assert!(code == -32_000 && message.starts_with("oversized data"), "{message}");

    let account = key();
    let greedy = signed(&account, TxEip1559 { gas_limit: 60_000_001, ..pays(0, Address::ZERO, 0) }).await;
    assert!(node.refused("eth_sendRawTransaction", json!([greedy])).await.1.starts_with("exceeds block gas limit"));
    let poor = signed(&account, TxEip1559 { gas_limit: 20_999, ..pays(0, Address::ZERO, 0) }).await;
    assert!(node.refused("eth_sendRawTransaction", json!([poor])).await.1.starts_with("intrinsic gas too low"));
    let foreign = signed(&account, TxEip1559 { chain_id: 1, ..pays(0, Address::ZERO, 0) }).await;
    assert!(node.refused("eth_sendRawTransaction", json!([foreign])).await.1.starts_with("invalid chain id"));

    for _ in 0..1_030 {
        node.get("eth_newBlockFilter", json!([])).await;
    }
    assert_eq!(node.refused("eth_getFilterChanges", json!(["0x1"])).await.1, "filter not found");
}

#[tokio::test]
async fn the_pool_is_bounded() {
    let node = Node::start().await;
    node.chain.set_mining(Mining::Manual);
    let account = key();
    for nonce in 0..4_096 {
        node.chain.send_raw_transaction(signed(&account, pays(nonce, Address::ZERO, 0)).await).await.unwrap();
    }
    let full = signed(&account, pays(4_096, Address::ZERO, 0)).await;
    assert_eq!(node.refused("eth_sendRawTransaction", json!([full])).await, (-32_000, "txpool is full".into()));
    assert!(matches!(node.chain.send_raw_transaction(full).await, Err(EvmError::Unreachable(_))));
    node.chain.mine();
    // 60,000,000 of gas for 21,000 each.
    assert_eq!(node.chain.nonces(account.address()).await.unwrap(), Nonces { mined: 2_857, pending: 4_096 });
}
