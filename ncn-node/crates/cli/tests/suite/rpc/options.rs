//! What tools send beside the usual, and what they look for in answers.

use alloy_primitives::{hex, keccak256};
use alloy_sol_types::SolError as _;

use super::*;
use crate::anvil::{Anvil, ask};

#[tokio::test]
async fn options_are_done_or_refused() {
    let node = Node::start().await;
    let to = Address::repeat_byte(7);
    // 2,400 for the address and 1,900 for each of its slots.
    let gas =
        async |list: Value| parse::<U64>(&node.get("eth_estimateGas", json!([{ "to": to, "accessList": list }])).await).to::<u64>();
    let listed = json!([{ "address": to, "storageKeys": [B256::ZERO, B256::repeat_byte(1)] }]);
    assert_eq!(gas(listed).await, gas(json!([])).await + 2_400 + 2 * 1_900);
    let (_, said) = node.refused("eth_call", json!([{ "to": to }, "latest", null, { "number": "0x1" }])).await;
    assert!(said.contains("block overrides"), "{said}");

    let newest = async || node.get("eth_getBlockByNumber", json!(["latest", false])).await;
    let time = async || parse::<U64>(&newest().await["timestamp"]).to::<u64>();
    let before = time().await;
    node.get("evm_mine", json!([U64::from(before + 5_000)])).await;
    assert!((before + 5_000..before + 5_010).contains(&time().await));
    let (_, said) = node.refused("evm_mine", json!([U64::from(before)])).await;
    assert!(said.contains("before the chain's time"), "{said}");
    let (before, number) = (time().await, node.number().await);
    node.get("anvil_mine", json!(["0x3", "0x3e8"])).await;
    assert_eq!(node.number().await, number + 3);
    assert!((before + 2_000..before + 2_010).contains(&time().await));

    for percentiles in [json!([-1.0]), json!([101.0]), json!([50.0, 25.0]), json!(vec![1.0; 101])] {
        let (code, said) = node.refused("eth_feeHistory", json!(["0x1", "latest", percentiles])).await;
        assert!(code == -32602 && said.contains("percentiles"), "{said}");
    }
    let empty = node.post(&json!([])).await.json::<Value>().await.unwrap();
    assert_eq!(empty["error"]["code"], -32600, "{empty}");
}

#[tokio::test]
async fn errors_say_what_tools_look_for() {
    let node = Node::start().await;
    let signer = key();
    node.chain.fund(signer.address(), U256::from(ETHER));
    // PUSH7 code PUSH0 MSTORE PUSH1 7 PUSH1 25 RETURN
    let creation = [&[0x66][..], &REVERTS, &[0x5f, 0x52, 0x60, 7, 0x60, 25, 0xf3]].concat();
    let deployed = node.receipt(node.send(&signed(&signer, TxEip1559 { input: creation.into(), ..free(0) }).await).await).await;
    let revert = alloy_sol_types::Revert::from("not today").abi_encode();
    let (code, said) = node.refused("eth_call", json!([{ "to": deployed["contractAddress"], "input": Bytes::from(revert) }])).await;
    assert_eq!((code, said.as_str()), (3, "execution reverted: not today"));

    let raw = signed(&signer, pays(1, Address::ZERO, 1)).await;
    node.send(&raw).await;
    let (_, said) = node.refused("eth_sendRawTransaction", json!([raw])).await;
    assert!(said.starts_with("nonce too low"), "{said}");
    // In the same process, one that is there has been sent.
    node.chain.send_raw_transaction(raw).await.unwrap();
    let other = signed(&signer, TxEip1559 { chain_id: 1, ..pays(2, Address::ZERO, 1) }).await;
    let (_, said) = node.refused("eth_sendRawTransaction", json!([other])).await;
    assert!(said.contains("have 1 want 4242"), "{said}");

    node.get("evm_setAutomine", json!([false])).await;
    let hash = node.send(&signed(&signer, TxEip1559 { max_fee_per_gas: 9, ..pays(2, Address::ZERO, 1) }).await).await;
    assert_eq!(node.get("eth_getTransactionByHash", json!([hash])).await["gasPrice"], "0x9");
}

/// Pages could undo payments, or take the chain away, from any site.
#[tokio::test]
async fn pages_ask_when_they_are_named() {
    let named = "http://localhost:3000";
    let start = |origins: Vec<String>| RpcServer::start_for(Arc::new(EmbeddedChain::new(31_337)), loopback(), origins);
    let (closed, open) = (start(Vec::new()).await.unwrap(), start(vec![named.into()]).await.unwrap());
    let http = reqwest::Client::new();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_chainId" });
    for (server, origin, status) in [
        (&closed, None, 200),
        (&closed, Some("chrome-extension://abcdef"), 200),
        (&closed, Some(named), 403),
        (&closed, Some("https://example.com"), 403),
        (&closed, Some("null"), 403),
        (&open, Some(named), 200),
        (&open, Some("http://localhost:3001"), 403),
        (&open, Some("https://example.com"), 403),
    ] {
        let request = |request: reqwest::RequestBuilder| match origin {
            Some(origin) => request.header("origin", origin),
            None => request,
        };
        let answer = request(http.post(server.url())).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), status, "{origin:?}");
        let shown = answer.headers().get("access-control-allow-origin").map(|origin| origin.to_str().unwrap());
        assert_eq!(shown, (origin == Some(named) && status == 200).then_some(named));
        // No page is asked before a WebSocket is opened.
        let upgrade = request(http.get(server.url()))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(upgrade.send().await.unwrap().status(), if status == 200 { 101 } else { 403 }, "{origin:?}");
    }
    assert!(start(vec!["no\norigin".into()]).await.is_err());
}

/// What `forge script` and others deploy by is where anvil has it.
#[tokio::test(flavor = "multi_thread")]
async fn contracts_can_be_deployed_to_addresses_that_are_known_before() {
    let (anvil, node) = (Anvil::start(&[]), Node::start().await);
    let deployer: Address = "0x4e59b44847b379578588920ca78fbf26c0b4956c".parse().unwrap();
    let code = node.get("eth_getCode", json!([deployer, "latest"])).await;
    assert_eq!(code, ask(&anvil.url, "eth_getCode", json!([deployer, "latest"])).await);
    // Salt 0, and a program that makes a contract of one byte, STOP.
    let made = Bytes::from_static(&hex!("60016000f3"));
    let input = Bytes::from([&[0; 32][..], &made].concat());
    let expected = deployer.create2(B256::ZERO, keccak256(&made));
    let answer = node.get("eth_call", json!([{ "to": deployer, "input": input }])).await;
    assert_eq!(serde_json::from_value::<Address>(answer).unwrap(), expected);
}
