//! News over a WebSocket, and what fixtures do to a chain.

use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::*;

/// A connection whose notifications are kept apart from its answers.
struct Socket(tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>);

impl Socket {
    async fn open(node: &Node) -> Self {
        let (socket, _) = tokio_tungstenite::connect_async(node.server.url().replace("http", "ws")).await.unwrap();
        Self(socket)
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Message::Text(text) = in_time("a message", self.0.next()).await.unwrap().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        self.0.send(Message::text(call)).await.unwrap();
        self.next().await
    }

    async fn subscribe(&mut self, params: Value) -> String {
        let id = self.ask("eth_subscribe", params).await["result"].as_str().unwrap().to_owned();
        assert!(id.starts_with("0x") && id.len() == 34, "{id}");
        id
    }

    /// What is told next, to this subscription.
    async fn told(&mut self, id: &str) -> Value {
        let told = self.next().await;
        assert_eq!((&told["method"], &told["params"]["subscription"]), (&json!("eth_subscription"), &json!(id)), "{told}");
        told["params"]["result"].clone()
    }
}

#[tokio::test]
async fn subscriptions_tell_of_blocks_logs_and_transactions() {
    let node = Node::start().await;
    let (owner, to) = (key(), Address::random());
    let token = node.token(&owner).await;
    let (mut heads, mut logs, mut pending) = (Socket::open(&node).await, Socket::open(&node).await, Socket::open(&node).await);
    let head = heads.subscribe(json!(["newHeads"])).await;
    let log = logs.subscribe(json!(["logs", { "address": token }])).await;
    let arrival = pending.subscribe(json!(["newPendingTransactions"])).await;
    let filter = node.get("eth_newPendingTransactionFilter", json!([])).await;

    let hash = node.send(&signed(&owner, transfers(1, token, to, 7)).await).await;
    let told = heads.told(&head).await;
    assert_eq!((&told["number"], told["hash"].as_str().unwrap().len()), (&json!("0x2"), 66));
    assert!(told.get("transactions").is_none(), "a header has none: {told}");
    let transfer = logs.told(&log).await;
    assert_eq!((&transfer["transactionHash"], &transfer["removed"]), (&json!(hash), &json!(false)));
    assert_eq!(pending.told(&arrival).await, json!(hash));
    assert_eq!(node.get("eth_getFilterChanges", json!([filter])).await, json!([hash]));
    assert_eq!(node.get("eth_getFilterChanges", json!([filter])).await, json!([]));

    // What a reorganization takes back is told, and what takes its place.
    node.get("ncn_reorg", json!(["0x1"])).await;
    let (gone, again) = (logs.told(&log).await, logs.told(&log).await);
    assert_eq!((&gone["removed"], &gone["blockHash"]), (&json!(true), &transfer["blockHash"]));
    assert_eq!((&again["removed"], &again["transactionHash"]), (&json!(false), &json!(hash)));
    for number in ["0x2", "0x3"] {
        assert_eq!(heads.told(&head).await["number"], number);
    }
    assert_eq!(heads.ask("eth_unsubscribe", json!([head])).await["result"], true);
    node.get("evm_mine", json!([])).await;
    assert_eq!(heads.ask("eth_blockNumber", json!([])).await["result"], "0x4", "nothing is told any more");

    for params in [json!(["syncing"]), json!(["newPendingTransactions", true]), json!([]), json!(["logs", 7])] {
        let refused = heads.ask("eth_subscribe", params.clone()).await;
        assert_eq!(refused["error"]["code"], -32602, "{params}: {refused}");
    }
    for _ in 0..64 {
        heads.subscribe(json!(["newHeads"])).await;
    }
    assert!(heads.ask("eth_subscribe", json!(["newHeads"])).await.get("error").is_some(), "they are bounded");
}

/// Of who does not read, nothing piles up, and others are not held up.
#[tokio::test]
async fn a_subscriber_that_does_not_read_holds_nobody_up() {
    let node = Node::start().await;
    let mut lazy = Socket::open(&node).await;
    for _ in 0..64 {
        lazy.subscribe(json!(["newHeads"])).await;
    }
    for _ in 0..20 {
        node.get("anvil_mine", json!(["0x64"])).await;
    }
    assert_eq!(node.number().await, 2_000);
    let mut busy = Socket::open(&node).await;
    let head = busy.subscribe(json!(["newHeads"])).await;
    node.get("evm_mine", json!([])).await;
    assert_eq!(busy.told(&head).await["number"], "0x7d1");
}

/// A contract that never ends keeps a call busy, and not the chain.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_its_time_holds_no_block_up() {
    let node = Arc::new(Node::start().await);
    let account = Address::repeat_byte(9);
    // JUMPDEST PUSH0 JUMP, for all the gas of a block.
    node.get("anvil_setCode", json!([account, "0x5b5f56"])).await;
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { node.ask("eth_call", json!([{ "to": account }, "latest"])).await })
        })
        .collect();
    let mut mined = 0;
    while calls.iter().any(|call| !call.is_finished()) {
        node.get("evm_mine", json!([])).await;
        mined += 1;
    }
    for call in calls {
        let said = call.await.unwrap();
        assert!(said["error"]["message"].as_str().unwrap().contains("halted"), "{said}");
    }
    assert!(mined >= 5, "only {mined} blocks were made meanwhile");
}

#[tokio::test]
async fn fixtures_come_back_to_a_block() {
    let node = Node::start().await;
    let (owner, to) = (key(), Address::random());
    let token = node.token(&owner).await;
    let snapshot = node.get("evm_snapshot", json!([])).await;
    let before = node.get("eth_getBlockByNumber", json!(["latest", false])).await;
    node.send(&signed(&owner, transfers(1, token, to, 7)).await).await;
    node.get("evm_increaseTime", json!(["0x2710"])).await;
    node.get("evm_mine", json!([])).await;
    let later = node.get("evm_snapshot", json!([])).await;
    assert_eq!(node.get("evm_revert", json!([snapshot])).await, true);
    assert_eq!(node.get("eth_getBlockByNumber", json!(["latest", false])).await, before);
    assert_eq!(node.tokens(token, to, json!("latest")).await, U256::ZERO);
    for used in [snapshot, later] {
        assert_eq!(node.get("evm_revert", json!([used])).await, false, "{used}");
    }
    // The chain goes on from there.
    node.send(&signed(&owner, transfers(1, token, to, 9)).await).await;
    assert_eq!(node.tokens(token, to, json!("latest")).await, U256::from(9));

    let time = async || parse::<U64>(&node.get("eth_getBlockByNumber", json!(["latest", false])).await["timestamp"]).to::<u64>();
    let at = time().await + 1_000;
    node.get("evm_setNextBlockTimestamp", json!([U64::from(at)])).await;
    node.get("evm_mine", json!([])).await;
    assert_eq!(time().await, at);
    node.get("evm_mine", json!([])).await;
    assert!((at..at + 10).contains(&time().await), "time goes on from there");
    let (_, said) = node.refused("evm_setNextBlockTimestamp", json!([U64::from(at - 1)])).await;
    assert!(said.contains("not after the newest block's"), "{said}");
    node.refused("evm_setNextBlockTimestamp", json!(["0xffffffffffffff00"])).await;
}

#[tokio::test]
async fn accounts_are_set_and_blocks_looked_up() {
    let node = Node::start().await;
    let account = Address::repeat_byte(9);
    node.get("hardhat_setBalance", json!([account, "0x7"])).await;
    node.get("hardhat_setNonce", json!([account, "0x5"])).await;
    // PUSH0 SLOAD PUSH0 MSTORE PUSH1 32 PUSH0 RETURN: what is in its first slot.
    node.get("anvil_setCode", json!([account, "0x5f545f5260205ff3"])).await;
    node.get("anvil_setStorageAt", json!([account, "0x0", "0x2a"])).await;
    assert_eq!(node.balance(account).await, 7);
    assert_eq!(node.get("eth_getTransactionCount", json!([account, "latest"])).await, "0x5");
    assert_eq!(node.get("eth_getCode", json!([account, "latest"])).await, "0x5f545f5260205ff3");
    let answer: U256 = parse(&node.get("eth_call", json!([{ "to": account }, "latest"])).await);
    assert_eq!(answer, U256::from(42));
    let metadata = node.get("hardhat_metadata", json!([])).await;
    assert_eq!((&metadata["chainId"], &metadata["latestBlockNumber"]), (&json!(CHAIN_ID), &json!(0)));

    let owner = key();
    node.token(&owner).await;
    let block = node.get("eth_getBlockByNumber", json!(["0x1", false])).await;
    let (hash, transaction) = (&block["hash"], &block["transactions"][0]);
    for (method, of) in [("Number", json!("0x1")), ("Hash", hash.clone())] {
        let found = node.get(&format!("eth_getTransactionByBlock{method}AndIndex"), json!([of, "0x0"])).await;
        assert_eq!(&found["hash"], transaction);
        assert_eq!(node.get(&format!("eth_getTransactionByBlock{method}AndIndex"), json!([of, "0x1"])).await, Value::Null);
        assert_eq!(node.get(&format!("eth_getBlockTransactionCountBy{method}"), json!([of])).await, "0x1");
        assert_eq!(node.get(&format!("eth_getUncleCountByBlock{method}"), json!([of])).await, "0x0");
    }
    assert_eq!(node.get("net_listening", json!([])).await, true);
}
