//! What providers say instead of an answer.

use std::time::Instant;

use super::*;

fn page(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn refusal(code: i64, message: &str) -> String {
    page("200 OK", &json!({ "jsonrpc": "2.0", "id": null, "error": { "code": code, "message": message } }).to_string())
}

/// An answer of the right kind for whom another one is asked: no chain says it.
const REFUSALS: [(i64, &str); 10] = [
    (-32_007, "50/second request limit reached - reduce calls per second or upgrade your account"),
    (-32_097, "Rate limit exceeded"),
    (-32_000, "missing trie node 9f7e (path ) state is not available"),
    (-32_000, "historical state 1234 is not available"),
    (-32_601, "the method does not exist/is not available"),
    (-32_052, "method handler crashed"),
    (-32_001, "Unable to perform request"),
    (-32_602, "this request is not whitelisted"),
    (-32_000, "header not found"),
    (429, "Your app has exceeded its compute units per second capacity"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_one_provider_refuses_the_next_one_is_asked() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(9)).await;
    for (code, message) in REFUSALS {
        let refuses =
            |question: &Value, _| matches!(question["method"].as_str(), Some("eth_call" | "eth_getBalance" | "eth_getLogs"));
        let proxy = Proxy::saying(&scene.url, move |question, n| refuses(question, n).then(|| refusal(code, message))).await;
        let both = JsonRpc::connect(&[proxy.url(), scene.url.clone()], None, POLLS).await.unwrap();
        let token = InferencePayment::tokenCall {}.abi_encode().into();
        let call = Call { from: Address::ZERO, to: TxKind::Call(scene.remote.deployer.deployment().payment), input: token };
        both.call(&call).await.unwrap_or_else(|error| panic!("{message}: {error}"));
        assert_eq!(proxy.count("eth_call"), 1, "{message}");
        // Alone, it is not the contract that has refused.
        let alone = JsonRpc::connect(&[proxy.url()], None, POLLS).await.unwrap();
        let refused = LedgerError::from(alone.call(&call).await.unwrap_err());
        assert!(
            matches!(&refused, LedgerError::Unreachable(said) if said.contains(message)) && refused.is_retryable(),
            "{refused:?}"
        );
    }
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_on_the_only_endpoint_ends_nothing() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(9)).await;
    let later = page("429 Too Many Requests", "").replace("content-length", "retry-after: 1\r\ncontent-length");
    let busy =
        page("429 Too Many Requests", &json!({ "jsonrpc": "2.0", "error": { "code": 429, "message": "slow down" } }).to_string());
    for (said, least) in [
        (later, Duration::from_secs(1)),
        (busy, Duration::ZERO),
        (page("502 Bad Gateway", "<html>"), Duration::ZERO),
        (page("503 Service Unavailable", ""), Duration::ZERO),
        (refusal(-32_000, "header not found"), Duration::ZERO),
        (refusal(-32_603, "Internal error"), Duration::ZERO),
        (String::new(), Duration::ZERO),
    ] {
        // Once each, the question before a connection, too.
        let shown = said.clone();
        let proxy = Proxy::saying(&scene.url, move |question, count| {
            let reads = ["eth_chainId", "eth_call", "eth_getTransactionCount", "eth_getTransactionReceipt"];
            (count == 1 && reads.iter().any(|method| question["method"] == *method)).then(|| said.clone())
        })
        .await;
        let started = Instant::now();
        let ledger = scene.connect_by(&[proxy.url()], &client, POLLS, hasty()).await;
        let paid = ledger.transfer(Address::random(), Amount::TOKEN).await;
        paid.unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert!(started.elapsed() >= least, "{shown}");
        assert_eq!(proxy.count("eth_sendRawTransaction"), 1, "{shown}");
    }
    // For so long nobody is held up.
    let long = page("429 Too Many Requests", "").replace("content-length", "retry-after: 3600\r\ncontent-length");
    let proxy = Proxy::saying(&scene.url, move |_, _| Some(long.clone())).await;
    let refused = in_time("it is told", JsonRpc::connect(&[proxy.url()], None, POLLS)).await.err().unwrap();
    assert!(refused.to_string().contains("429") && proxy.total() == 1, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_asked_for_in_ranges_that_are_answered() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(9)).await;
    let quote = scene.quote(&client, tokens(1)).await;
    scene.connect(&client, POLLS, hasty()).await.escrow(&quote).await.unwrap();
    for _ in 0..40 {
        scene.mine().await;
    }
    let filter =
        LogFilter { address: scene.remote.deployer.deployment().payment, topic1: Some(quote.request_id), ..LogFilter::default() };
    for said in [
        refusal(-32_603, "Internal error"),
        refusal(-32_001, "Unable to complete request at this time."),
        refusal(-32_000, "query timeout exceeded"),
        refusal(-32_005, "query returned more than 10000 results"),
        refusal(-32_602, "eth_getLogs is limited to a 2 range"),
        page("413 Content Too Large", ""),
        page("400 Bad Request", &json!({ "error": { "code": -32_600, "message": "up to a 2 block range" } }).to_string()),
    ] {
        let (most, shown) = (2, said.clone());
        let proxy = Proxy::saying(&scene.url, move |question, _| {
            let block = |name: &str| number(&question["params"][0][name]);
            let is_wide = question["method"] == "eth_getLogs" && block("toBlock") - block("fromBlock") >= most;
            is_wide.then(|| said.clone())
        })
        .await;
        let backend = JsonRpc::connect(&[proxy.url()], None, POLLS).await.unwrap();
        let found = backend.logs(filter).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(found.len(), 1, "{shown}");
        let first = proxy.count("eth_getLogs");
        backend.logs(filter).await.unwrap();
        assert!(proxy.count("eth_getLogs") - first < first, "{shown}: what is answered is remembered");
    }
    let gone =
        Proxy::saying(&scene.url, |question, _| (question["method"] == "eth_getLogs").then(|| page("404 Not Found", ""))).await;
    let backend = JsonRpc::connect(&[gone.url()], None, POLLS).await.unwrap();
    backend.logs(filter).await.unwrap_err();
    assert_eq!(gone.count("eth_getLogs"), 1, "it does not answer less either");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_beside_an_error_that_is_none_is_a_result() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(9)).await;
    let proxy = Proxy::answering(&scene.url, |_, answer| answer["error"] = Value::Null).await;
    scene.connect_by(&[proxy.url()], &client, POLLS, hasty()).await.transfer(Address::random(), Amount::TOKEN).await.unwrap();
}
