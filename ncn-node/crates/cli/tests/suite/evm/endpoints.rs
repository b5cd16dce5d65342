//! Endpoints that do not answer, lie, or are of another chain.

use super::*;

/// An address at which no server listens, nor will as long as this exists: it has the port.
struct Closed(tokio::net::TcpSocket);

impl Closed {
    fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_endpoint_is_asked() {
    let scene = Scene::embedded().await;
    let Node::Embedded(chain, _) = &scene.node else { unreachable!() };
    let client = scene.account(tokens(9)).await;
    let silent = serve(chain).await;
    ask(&silent.url(), "ncn_fault", json!([{ "mode": "timeout", "count": 1_000 }])).await;
    let failing = serve(chain).await;
    ask(&failing.url(), "ncn_fault", json!([{ "mode": "error", "count": 1_000 }])).await;
    let breaks = Proxy::answering(&scene.url, |_, answer| *answer = Value::Null).await;
    let babbles = Proxy::answering(&scene.url, |_, answer| answer["result"] = json!("0xgarbage")).await;
    let lies = Proxy::answering(&scene.url, |method, answer| {
        if method != "eth_chainId" {
            answer["result"] = json!({ "number": "0x1" });
        }
    })
    .await;
    let hasty_polls = RpcOptions { timeout: Duration::from_secs(5), ..POLLS };
    let closed = Closed::new();
    for (n, bad) in [closed.url(), silent.url(), failing.url(), breaks.url(), babbles.url(), lies.url()].into_iter().enumerate() {
        let ledger = scene.connect_by(&[bad, scene.url.clone()], &client, hasty_polls, hasty()).await;
        let quote = scene.quote(&client, tokens(1)).await;
        ledger.escrow(&quote).await.unwrap_or_else(|error| panic!("{n}: {error}"));
        assert_eq!(scene.balance(client.address()).await, tokens(8 - n as u64));
    }

    // One that stops in the middle.
    let up = Arc::new(AtomicBool::new(true));
    let stops = up.clone();
    let first = Proxy::answering(&scene.url, move |_, answer| {
        if !stops.load(Ordering::Relaxed) {
            *answer = Value::Null;
        }
    })
    .await;
    let second = format!("{}/v3/secret?key=secret", closed.url());
    let options = RpcOptions { timeout: Duration::from_secs(5), ..POLLS };
    let urls = [format!("{}/v3/secret?key=secret", first.url()), second.clone(), silent.url()];
    let ledger = scene.connect_by(&urls, &client, options, hasty()).await;
    up.store(false, Ordering::Relaxed);
    let all = [&first.url(), second.split("/v3").next().unwrap(), &silent.url()];
    let refused = ledger.balance(client.address()).await.unwrap_err().to_string();
    let unconnected = JsonRpc::connect(&urls, None, options).await.err().unwrap().to_string();
    for refused in [refused, unconnected] {
        assert!(all.iter().all(|origin| refused.contains(*origin)) && !refused.contains("secret"), "{refused}");
        assert!(refused.contains("HTTP status 500") && refused.contains("within 5s"), "{refused}");
    }
    let none = JsonRpc::connect(&[], None, options).await.err().unwrap().to_string();
    assert!(none.contains("none is given"), "{none}");
    for (url, problem) in [("127.0.0.1:1", "endpoint: is no URL"), ("ftp://127.0.0.1", "endpoint: begins with neither")] {
        let refused = JsonRpc::connect(&[url.into()], None, options).await.err().unwrap().to_string();
        assert!(refused.starts_with(problem), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_another_chain_is_asked_nothing() {
    let scene = Scene::embedded().await;
    let account = scene.account(tokens(1)).await;
    let other = serve(&Arc::new(EmbeddedChain::new(5))).await;
    let switched = Arc::new(AtomicBool::new(true));
    let switch = switched.clone();
    let foreign = Proxy::answering(&other.url(), move |_, answer| {
        if !switch.load(Ordering::Relaxed) {
            *answer = Value::Null;
        }
    })
    .await;
    let (good, bad) = (scene.url.clone(), foreign.url());
    let wrong = |expected, actual, endpoint: &str| Some(EvmError::WrongChain { endpoint: endpoint.into(), actual, expected });
    for (urls, chain_id) in [
        (vec![good.clone(), bad.clone()], Some(CHAIN_ID)),
        (vec![bad.clone(), good.clone()], Some(CHAIN_ID)),
        (vec![bad.clone()], Some(CHAIN_ID)),
        (vec![good.clone(), bad.clone()], None),
    ] {
        assert_eq!(JsonRpc::connect(&urls, chain_id, POLLS).await.err(), wrong(CHAIN_ID, 5, &bad), "{urls:?}");
    }
    assert_eq!(JsonRpc::connect(&[bad.clone(), good.clone()], None, POLLS).await.err(), wrong(5, CHAIN_ID, &good));

    // One that comes back as another chain.
    switched.store(false, Ordering::Relaxed);
    let working = Arc::new(AtomicBool::new(true));
    let works = working.clone();
    let first = Proxy::before(&scene.url, move |_| !works.load(Ordering::Relaxed)).await;
    let ledger = scene.connect_by(&[first.url(), bad.clone()], &account, POLLS, hasty()).await;
    switched.store(true, Ordering::Relaxed);
    working.store(false, Ordering::Relaxed);
    let refused = ledger.transfer(Address::random(), tokens(1)).await.unwrap_err();
    assert_eq!(refused.to_string(), wrong(CHAIN_ID, 5, &bad).unwrap().to_string());
    assert!(refused.to_string().contains(&format!("use an endpoint of chain {CHAIN_ID}")), "{refused}");
    assert!(matches!(refused, LedgerError::NotAllowed(_)));
    assert_eq!(foreign.count("eth_chainId"), foreign.total(), "nothing else was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_answer_is_lost_is_made_once() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(9)).await;
    let ledger = scene.connect(&client, POLLS, hasty()).await;
    for mode in ["lost", "garbage"] {
        scene.fault(mode, 1, "eth_sendRawTransaction").await;
        let quote = scene.quote(&client, tokens(1)).await;
        let transaction = ledger.escrow(&quote).await.unwrap();
        assert_eq!(
            scene.state(&quote).await,
            PaymentStatus::Held { quote: quote.struct_hash(), by: PaymentRef::Transaction(transaction) }
        );
    }
    // What is asked about it afterwards may fail too.
    for mode in ["error", "lost", "garbage"] {
        scene.fault(mode, 1, "eth_getTransactionReceipt").await;
        ledger.transfer(Address::random(), tokens(1)).await.unwrap();
    }
    assert_eq!((scene.nonces(client.address()).await, scene.balance(client.address()).await), ((5, 5), tokens(4)));
    // What fails before costs nothing.
    scene.fault("garbage", 1, "eth_getTransactionCount").await;
    let refused = ledger.transfer(Address::random(), tokens(1)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Malformed(_)), "{refused:?}");
    assert_eq!((scene.nonces(client.address()).await, scene.balance(client.address()).await), ((5, 5), tokens(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_answer_is_lost_is_not_made_again_by_the_next_endpoint() {
    let scene = Scene::anvil().await;
    let account = scene.account(tokens(9)).await;
    let first = Proxy::answering(&scene.url, |method, answer| {
        if method == "eth_sendRawTransaction" {
            *answer = Value::Null;
        }
    })
    .await;
    // Anvil says that the nonce is too low: the transaction is in a block by then.
    let ledger = scene.connect_by(&[first.url(), scene.url.clone()], &account, POLLS, hasty()).await;
    let to = Address::random();
    ledger.transfer(to, tokens(1)).await.unwrap();
    assert_eq!((scene.balance(to).await, scene.nonces(account.address()).await), (tokens(1), (1, 1)));
}
