//! What is refused, and how it is said.

use ncn_core::{Signature, TaskCapability, validation::CLAIM_SECONDS};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_problem_and_the_remedy() {
    let scene = Scene::anvil().await;
    let deployer = &scene.remote.deployer;
    let poor = key();
    deployer.transfer(poor.address(), tokens(5)).await.unwrap();
    let ledger = scene.connect(&poor, POLLS, hasty()).await;
    let refused = ledger.escrow(&scene.quote(&poor, tokens(1)).await).await.unwrap_err();
    assert!(matches!(refused, LedgerError::NotAllowed(_)), "{refused:?}");
    assert!(refused.to_string().contains("give it some of the chain's own coin, or have a gateway relay"), "{refused}");

    let (client, gateway) = (scene.account(tokens(5)).await, scene.account(Amount::ZERO).await);
    let ledger = scene.connect(&client, POLLS, hasty()).await;
    let (owner, balance, needed) = (client.address(), tokens(5), tokens(6));
    let broke = LedgerError::InsufficientFunds { owner, balance, needed };
    assert_eq!(ledger.escrow(&scene.quote(&client, needed).await).await, Err(broke.clone()));
    assert_eq!(ledger.transfer(Address::random(), needed).await, Err(broke));
    assert!(ledger.stake(Amount::TOKEN).await.unwrap_err().to_string().contains("StakeBelowMinimum"));
    let stake = ledger.stake(Amount::TOKEN).await.unwrap_err().to_string();
    let figures = [format!("stake: {}", tokens(1).units()), format!("minimum: {}", tokens(100).units())];
    assert!(figures.iter().all(|figure| stake.contains(figure)), "{stake}");
    let nameless = ledger.create_subnet("", tokens(10)).await.unwrap_err();
    assert_eq!(nameless, LedgerError::Reverted("InvalidName { length: 0 }".into()));

    let registry = registry(&scene).await;
    let register = ValidatorRegistry::registerValidatorCall { amount: U256::from(tokens(100).units()) };
    let refused = scene.refusal(&gateway, registry, register).await;
    let (spender, allowance, needed) = (registry, Amount::ZERO, tokens(100));
    assert_eq!(refused, LedgerError::InsufficientAllowance { spender, allowance, needed });

    let deployment = deployer.deployment();
    let quote = scene.quote(&client, tokens(1)).await;
    ledger.escrow(&quote).await.unwrap();
    let stranger = scene.connect(&gateway, POLLS, hasty()).await;
    let refundable_at = quote.expiry + CLAIM_SECONDS + 1;
    assert_eq!(stranger.refund(&quote, None).await, Err(LedgerError::NotRefundable(refundable_at)));
    assert!(stranger.escrow(&quote).await.is_ok(), "it is paid already, whichever account asks");
    let withdraw =
        scene.refusal(&gateway, registry, ValidatorRegistry::withdrawStakeCall { account: gateway.address() }).await.to_string();
    assert!(withdraw.contains("NotLeaving"), "{withdraw}");

    let terms = ChannelParams { client: client.address(), gateway: gateway.address(), salt: B256::random() };
    let expiry = deployer.now().await.unwrap() + 24 * 3_600;
    ledger.fund_channel(&terms, tokens(2), expiry).await.unwrap();
    let solidity = PaymentChannel::ChannelTerms { client: terms.client, gateway: terms.gateway, salt: terms.salt };
    let open = PaymentChannel::openCall { terms: solidity.clone(), amount: 1, expiry };
    let of = |problem: String| LedgerError::Channel { channel: terms.id(), problem };
    let refused = scene.refusal(&client, deployment.channels, open).await;
    assert_eq!(refused, of(format!("is open already, with a deposit of {}", tokens(2).units())));
    let waits = of(format!("is open until {expiry}: ask its gateway to close it, or wait until then"));
    assert_eq!(ledger.close_channel(&terms, None).await, Err(waits));
    stranger.close_channel(&terms, None).await.unwrap();
    let closed = of("is closed: open another with a new salt".into());
    assert_eq!(ledger.fund_channel(&terms, tokens(2), expiry).await, Err(closed.clone()));
    let top_up = PaymentChannel::topUpCall { terms: solidity, amount: 1, expiry };
    assert_eq!(scene.refusal(&client, deployment.channels, top_up).await, closed);
}

async fn registry(scene: &Scene) -> Address {
    let input = InferencePayment::registryCall {}.abi_encode().into();
    let call = Call { from: Address::ZERO, to: TxKind::Call(scene.remote.deployer.deployment().payment), input };
    InferencePayment::registryCall::abi_decode_returns(&scene.backend().await.call(&call).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_is_asked_once() {
    let scene = Scene::anvil().await;
    let proxy = Proxy::answering(&scene.url, |_, _| ()).await;
    let client = scene.account(tokens(5)).await;
    let ledger = scene.connect_by(&[proxy.url()], &client, POLLS, SendOptions::default()).await;
    let mut late = scene.quote(&client, tokens(1)).await;
    late.expiry = 1;
    let refused = ledger.escrow(&late).await.unwrap_err();
    assert!(
        !refused.is_retryable() && matches!(&refused, LedgerError::InvalidQuote { field, .. } if field == "expiry"),
        "{refused}"
    );
    assert_eq!((proxy.count("eth_estimateGas"), proxy.count("eth_sendRawTransaction")), (1, 0));

    scene.ask("anvil_setBalance", json!([client.address(), "0x0"])).await;
    let refused = ledger.escrow(&scene.quote(&client, tokens(1)).await).await.unwrap_err();
    assert!(!refused.is_retryable(), "{refused}");
    assert!(proxy.count("eth_estimateGas") <= 2 && proxy.count("eth_sendRawTransaction") <= 1);

    // A node's words that are of no known kind.
    let stubborn = Proxy::answering(&scene.url, |method, answer| {
        if method == "eth_sendRawTransaction" {
            *answer = json!({ "jsonrpc": "2.0", "id": answer["id"], "error": { "code": -32_000, "message": "no such luck" } });
        }
    })
    .await;
    scene.ask("anvil_setBalance", json!([client.address(), "0x56bc75e2d63100000"])).await;
    let ledger = scene.connect_by(&[stubborn.url(), scene.url.clone()], &client, POLLS, SendOptions::default()).await;
    let refused = ledger.transfer(Address::random(), tokens(1)).await.unwrap_err();
    assert_eq!((refused, stubborn.count("eth_sendRawTransaction")), (LedgerError::Reverted("no such luck".into()), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_answers_are_told_by_method_and_field() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(1)).await;
    let quote = scene.quote(&client, tokens(1)).await;
    let ledger = scene.connect(&client, POLLS, hasty()).await;
    let hash = ledger.escrow(&quote).await.unwrap();
    let payment = scene.remote.deployer.deployment().payment;
    let filter = LogFilter { address: payment, topic1: Some(quote.request_id), ..LogFilter::default() };
    let block = scene.ask("eth_getTransactionReceipt", json!([hash])).await["blockNumber"].clone();
    for (method, field, wrong) in [
        ("eth_blockNumber", "result", json!("0xgarbage")),
        ("eth_blockNumber", "result", json!({})),
        ("eth_blockNumber", "result", Value::Null),
        ("eth_estimateGas", "result", json!("0xfffffffffffffffffffff")),
        ("eth_call", "result", json!("0x123")),
        ("eth_getTransactionCount", "result", json!([1])),
        ("eth_maxPriorityFeePerGas", "result", json!("many")),
        ("eth_getBlockByNumber", "result.number", json!("latest")),
        ("eth_getBlockByNumber", "result.number", json!("0x1234567")),
        ("eth_getBlockByNumber", "result.hash", json!("0x12")),
        ("eth_getBlockByNumber", "result.timestamp", Value::Null),
        ("eth_getBlockByNumber", "result.baseFeePerGas", json!("-1")),
        ("eth_getTransactionReceipt", "result.transactionHash", json!(B256::ZERO)),
        ("eth_getTransactionReceipt", "result.status", Value::Null),
        ("eth_getTransactionReceipt", "result.status", json!("0x2")),
        ("eth_getTransactionReceipt", "result.gasUsed", json!("much")),
        ("eth_getTransactionReceipt", "result.contractAddress", json!("0x1")),
        ("eth_getLogs", "result", json!({})),
        ("eth_getLogs", "result.0.address", json!(Address::ZERO)),
        ("eth_getLogs", "result.0.blockNumber", json!("0xffffff")),
        ("eth_getLogs", "result.0.topics", json!([B256::ZERO])),
        ("eth_getLogs", "result.0.topics", json!([B256::ZERO, quote.request_id, B256::ZERO, B256::ZERO, B256::ZERO])),
        ("eth_getLogs", "result.0.data", json!("data")),
        ("eth_getLogs", "result.0.transactionHash", Value::Null),
    ] {
        let (path, value) = (format!("/{}", field.replace('.', "/")), wrong.clone());
        let proxy = Proxy::answering(&scene.url, move |asked, answer| {
            if asked == method
                && let Some(field) = answer.pointer_mut(&path)
            {
                *field = value.clone();
            }
        })
        .await;
        let backend = JsonRpc::connect(&[proxy.url()], None, POLLS).await.unwrap();
        let call =
            Call { from: Address::ZERO, to: TxKind::Call(payment), input: InferencePayment::tokenCall {}.abi_encode().into() };
        let refused = match method {
            "eth_blockNumber" => backend.block_after(0).await.err(),
            "eth_getBlockByNumber" if field.ends_with("baseFeePerGas") => backend.fees().await.err(),
            "eth_getBlockByNumber" => backend.block_hash(number(&block)).await.err(),
            "eth_estimateGas" => backend.estimate(&call).await.err(),
            "eth_call" => backend.call(&call).await.err(),
            "eth_getTransactionCount" => backend.nonces(client.address()).await.err(),
            "eth_maxPriorityFeePerGas" => backend.fees().await.err(),
            "eth_getTransactionReceipt" => backend.transaction_receipt(hash).await.err(),
            _ => backend.logs(filter).await.err(),
        };
        let Some(EvmError::Malformed { method: said, problem }) = &refused else { panic!("{method} {wrong}: {refused:?}") };
        let name = field.rsplit('.').next().unwrap();
        assert!(*said == method && problem.starts_with(&format!("{name}: ")), "{method} {field}: {refused:?}");
        let error = LedgerError::from(refused.unwrap());
        assert!(matches!(error, LedgerError::Malformed(_)) && !error.is_retryable());
    }

    // A receipt that stays malformed pays no one, and the error names the field.
    let proxy = Proxy::answering(&scene.url, |method, answer| {
        if method == "eth_getTransactionReceipt" && answer["result"].is_object() {
            answer["result"]["gasUsed"] = json!("much");
        }
    })
    .await;
    let impatient = SendOptions { timeout: Duration::from_millis(300), ..hasty() };
    let ledger = scene.connect_by(&[proxy.url()], &client, POLLS, impatient).await;
    let refused = ledger.transfer(Address::random(), Amount::ZERO).await.unwrap_err();
    assert!(refused.to_string().contains("eth_getTransactionReceipt") && refused.to_string().contains("gasUsed: "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn authorizations_are_checked_before_anything_is_sent() {
    let scene = Scene::embedded().await;
    let proxy = Proxy::answering(&scene.url, |_, _| ()).await;
    let (client, gateway) = (scene.account(tokens(5)).await, scene.account(Amount::ZERO).await);
    let relays = scene.connect_by(&[proxy.url()], &gateway, POLLS, hasty()).await;
    let trust = relays.trust_root().await.unwrap();
    let (mut quote, other) = (scene.quote(&client, tokens(1)).await, scene.quote(&client, tokens(1)).await);
    quote.gateway = gateway.address();
    let sent = || proxy.count("eth_sendRawTransaction");
    let authorization = PaymentAuthorization::transfer(&trust, &quote, &client).await.unwrap();
    let mut dear = quote.clone();
    dear.total = tokens(2);
    for (signed, by) in [(&other, &client), (&dear, &client), (&quote, &gateway)] {
        let wrong = PaymentAuthorization::transfer(&trust, signed, by).await.unwrap();
        let refused = relays.redeem(&quote, &wrong).await.unwrap_err();
        assert!(matches!(&refused, LedgerError::NotAllowed(problem) if problem.starts_with("transfer: ")), "{refused:?}");
    }
    assert_eq!(sent(), 0);
    let paid = relays.redeem(&quote, &authorization).await.unwrap();
    assert_eq!((relays.redeem(&quote, &authorization).await, sent()), (Ok(paid), 1), "again is as good as once");
    assert_eq!(scene.balance(client.address()).await, tokens(4));
    let consent = Signature::sign(&TaskCapability::cancel(&quote).digest(&trust.domain), &*client).await.unwrap();
    relays.refund(&quote, Some(&consent)).await.unwrap();
    let replayed = relays.redeem(&quote, &authorization).await.unwrap_err();
    assert!(!replayed.is_retryable() && matches!(replayed, LedgerError::WrongState { .. }), "{replayed:?}");
    assert_eq!((sent(), scene.balance(client.address()).await), (2, tokens(5)), "the payment and the refund, and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_refunds_second_gets_the_first_ones_transaction() {
    for scene in [Scene::embedded().await, Scene::anvil().await] {
        let (client, one, two) =
            (scene.account(tokens(1)).await, scene.account(Amount::ZERO).await, scene.account(Amount::ZERO).await);
        let quote = scene.quote(&client, tokens(1)).await;
        scene.connect(&client, POLLS, hasty()).await.escrow(&quote).await.unwrap();
        // Now anyone can.
        scene.ask("evm_increaseTime", json!([7 * 24 * 3_600])).await;
        scene.mine().await;
        scene.ask("evm_setAutomine", json!([false])).await;
        // A node may estimate on top of what waits: neither is handed in before both are estimated.
        let estimated = Arc::new(AtomicUsize::new(0));
        let (early, counted) = (estimated.clone(), estimated.clone());
        let refuses = move |method: &str| method == "eth_sendRawTransaction" && early.load(Ordering::SeqCst) < 2;
        let counts = move |method: &str, _: &mut Value| {
            counted.fetch_add(usize::from(method == "eth_estimateGas"), Ordering::SeqCst);
        };
        let proxy = Proxy::start(&scene.url, Arc::new(refuses), Arc::new(counts)).await;
        let mut refunding = Vec::new();
        for signer in [&one, &two] {
            let ledger = scene.connect_by(&[proxy.url()], signer, POLLS, hasty()).await;
            let quote = quote.clone();
            refunding.push(tokio::spawn(async move { ledger.refund(&quote, None).await }));
        }
        let waiting = async {
            scene.until_pending(one.address(), 1).await;
            scene.until_pending(two.address(), 1).await;
        };
        tokio::select! {
            () = waiting => {}
            (ended, ..) = futures::future::select_all(&mut refunding) => panic!("a refund ended before there was a block: {ended:?}"),
        }
        scene.mine().await;
        let transaction = refunding.remove(0).await.unwrap().unwrap();
        assert_eq!(refunding.remove(0).await.unwrap(), Ok(transaction));
        assert!(matches!(scene.state(&quote).await, PaymentStatus::Refunded { by } if by == PaymentRef::Transaction(transaction)));
        assert_eq!(
            (scene.nonces(one.address()).await, scene.nonces(two.address()).await),
            ((1, 1), (1, 1)),
            "both are in the block"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_requests_of_the_same_id_hide_nothing() {
    let scene = Scene::embedded().await;
    let (client, squatter) = (scene.account(tokens(1)).await, scene.account(tokens(1)).await);
    let near = RpcOptions { log_range: 1, ..POLLS };
    let ledger = scene.connect(&client, near, hasty()).await;
    let quote = scene.quote(&client, tokens(1)).await;
    let transaction = ledger.escrow(&quote).await.unwrap();
    let same = Quote { client: squatter.address(), ..quote.clone() };
    scene.connect(&squatter, POLLS, hasty()).await.escrow(&same).await.unwrap();
    let state = ledger.payment(client.address(), quote.request_id).await.unwrap();
    assert_eq!(state, PaymentStatus::Held { quote: quote.struct_hash(), by: PaymentRef::Transaction(transaction) });
}
