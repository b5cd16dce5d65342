//! One account's transactions, with other senders of the same account beside it, at changing fees.

use super::*;

async fn pays_from_everywhere_at_once(scene: &Scene) {
    let account = scene.account(tokens(40)).await;
    let here = scene.connect(&account, POLLS, hasty()).await;
    let there = scene.connect(&account, POLLS, hasty()).await;
    let handles = [here.with_signer(account.clone()), there.with_signer(account.clone()), here, there].map(Arc::new);
    let to = Address::random();
    let mut running = Vec::new();
    for n in 0..32 {
        let handle = &handles[n % 4];
        // Every handle does both.
        let escrow = n / 4 % 2 == 0;
        running.push(if escrow { escrowing(handle, &scene.quote(&account, tokens(1)).await) } else { transferring(handle, to) });
    }
    let mut hashes = Vec::new();
    for (n, done) in join_all(running).await.into_iter().enumerate() {
        hashes.push(done.unwrap().unwrap_or_else(|error| panic!("number {n}: {error}")));
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 32);
    assert_eq!(scene.nonces(account.address()).await, (32, 32), "no more transactions than there had to be, and no gap");
    assert_eq!((scene.balance(account.address()).await, scene.balance(to).await), (tokens(8), tokens(16)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_in_two_processes() {
    let scene = Scene::embedded().await;
    pays_from_everywhere_at_once(&scene).await;
    let _miner = scene.mines_regularly().await;
    pays_from_everywhere_at_once(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_in_two_processes_on_anvil() {
    let scene = Scene::anvil().await;
    pays_from_everywhere_at_once(&scene).await;
    let _miner = scene.mines_regularly().await;
    pays_from_everywhere_at_once(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_given_up_leaves_no_gap() {
    let scene = Scene::embedded().await;
    let account = scene.account(tokens(9)).await;
    let stuck = Arc::new(AtomicBool::new(true));
    let loses = stuck.clone();
    // Not even handed on.
    let proxy = Proxy::before(&scene.url, move |method| method == "eth_sendRawTransaction" && loses.load(Ordering::Relaxed)).await;
    let ledger = Arc::new(scene.connect_by(&[proxy.url()], &account, POLLS, hasty()).await);
    let to = Address::random();
    let (first, second) = (transferring(&ledger, to), transferring(&ledger, to));
    let handed_in = || proxy.count("eth_sendRawTransaction");
    eventually("both were refused", async || handed_in() >= 4).await;
    first.abort();
    let _ = first.await;
    // What it was handing in at that moment has come to its end as well, once the other one was refused a few times more.
    let before = handed_in();
    eventually("the other one goes on", async || handed_in() >= before + 4).await;
    stuck.store(false, Ordering::Relaxed);
    let third = transferring(&ledger, to);
    second.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    assert_eq!((scene.nonces(account.address()).await, scene.balance(to).await), ((2, 2), tokens(2)));
}

async fn base_fee(scene: &Scene) -> u128 {
    let block = scene.ask("eth_getBlockByNumber", json!(["latest", false])).await;
    serde_json::from_value::<U128>(block["baseFeePerGas"].clone()).unwrap().to()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_transaction_is_bumped_up_to_the_limit() {
    let scene = Scene::anvil().await;
    let account = scene.account(tokens(9)).await;
    let rises = async |to: u128| {
        scene.ask("anvil_setNextBlockBaseFeePerGas", json!([U128::from(to)])).await;
        scene.mine().await;
    };
    scene.ask("evm_setAutomine", json!([false])).await;
    rises(1_000_000_000).await;
    let ledger = Arc::new(scene.connect(&account, POLLS, hasty()).await);
    let to = Address::random();
    let transfer = transferring(&ledger, to);
    scene.until_pending(account.address(), 1).await;
    let first = scene.offer(account.address()).await;
    // Far above twice what was offered.
    rises(20_000_000_000).await;
    assert_eq!(scene.nonces(account.address()).await.0, 0, "it is not in the block");
    eventually("more is offered", async || scene.offer(account.address()).await > first).await;
    // Now and then there is a block; in each, gas is an eighth cheaper.
    eventually("it is taken", async || {
        scene.mine().await;
        tokio::time::sleep(hasty().bump_after).await;
        transfer.is_finished()
    })
    .await;
    let hash = transfer.await.unwrap().unwrap();
    let sent = scene.ask("eth_getTransactionByHash", json!([hash])).await;
    let offer: U128 = serde_json::from_value(sent["maxFeePerGas"].clone()).unwrap();
    assert!(offer.to::<u128>() > 5_000_000_000, "it is a replacement: {sent}");
    for _ in 0..3 {
        scene.mine().await;
    }
    assert_eq!((scene.nonces(account.address()).await, scene.balance(to).await), ((1, 1), tokens(1)), "it landed once");

    // What is too dear at once is not sent.
    let limit = base_fee(&scene).await / 2;
    let frugal = SendOptions { max_fee_per_gas: limit, timeout: Duration::from_secs(10), ..hasty() };
    let ledger = Arc::new(scene.connect(&account, POLLS, frugal).await);
    let refused = ledger.transfer(to, tokens(1)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Unreachable(_)), "{refused:?}");
    let says = format!("the limit is {limit}: wait, or raise the limit");
    assert!(refused.to_string().contains(&says), "{refused}");
    assert_eq!(scene.nonces(account.address()).await, (1, 1));

    // A transaction above the fee cap waits, and the error says why.
    rises(limit / 2).await;
    let transfer = transferring(&ledger, to);
    scene.until_pending(account.address(), 1).await;
    rises(limit * 3).await;
    let refused = transfer.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("was not taken within 10s") && refused.to_string().contains(&says), "{refused}");
    assert_eq!(scene.balance(to).await, tokens(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_waits_at_its_price_when_there_is_no_coin_for_more() {
    let scene = Scene::embedded().await;
    // Gas is free here, and the account has no coin at all.
    let account = key();
    scene.remote.deployer.transfer(account.address(), tokens(1)).await.unwrap();
    scene.ask("evm_setAutomine", json!([false])).await;
    let impatient = SendOptions { bump_after: Duration::from_millis(20), ..hasty() };
    let ledger = Arc::new(scene.connect(&account, POLLS, impatient).await);
    let to = Address::random();
    let transfer = transferring(&ledger, to);
    scene.until_pending(account.address(), 1).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!transfer.is_finished());
    }
    scene.mine().await;
    transfer.await.unwrap().unwrap();
    assert_eq!(scene.balance(to).await, tokens(1));
}

/// What an endpoint may think of a transaction that another one has taken.
const OTHER_WORDS: [&str; 6] = [
    "insufficient funds for gas * price + value: balance 0, tx cost 1",
    "execution reverted",
    "tx fee (1.10 ether) exceeds the configured cap (1.00 ether)",
    "exceeds block gas limit",
    "nonce too low: next nonce 5, tx nonce 4",
    "no such luck",
];

fn says(problem: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "error": { "code": -32_000, "message": problem } })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_endpoint_took_without_an_answer_is_not_sent_again_whatever_the_next_one_says() {
    let scene = Scene::embedded().await;
    let takes = Proxy::answering(&scene.url, |method, answer| {
        if method == "eth_sendRawTransaction" {
            *answer = Value::Null;
        }
    })
    .await;
    for said in OTHER_WORDS {
        let account = scene.account(tokens(9)).await;
        let body = says(said).to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let second =
            Proxy::saying(&scene.url, move |question, _| (question["method"] == "eth_sendRawTransaction").then(|| answer.clone()))
                .await;
        let ledger = scene.connect_by(&[takes.url(), second.url()], &account, POLLS, hasty()).await;
        let to = Address::random();
        ledger.transfer(to, tokens(1)).await.unwrap_or_else(|error| panic!("{said}: {error}"));
        assert_eq!((scene.nonces(account.address()).await, scene.balance(to).await), ((1, 1), tokens(1)), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_taken_and_refused_is_sent_once() {
    let scene = Scene::embedded().await;
    let mut miner = None;
    for (said, mines_at_once) in [
        ("nonce too low", true),
        ("replacement transaction underpriced", true),
        ("nonce too low", false),
        ("replacement transaction underpriced", false),
    ] {
        let keeps = Proxy::answering(&scene.url, move |method, answer| {
            if method == "eth_sendRawTransaction" {
                *answer = says(said);
            }
        })
        .await;
        let account = scene.account(tokens(9)).await;
        if !mines_at_once && miner.is_none() {
            miner = Some(scene.mines_regularly().await);
        }
        let ledger = scene.connect_by(&[keeps.url()], &account, POLLS, hasty()).await;
        let to = Address::random();
        ledger.transfer(to, tokens(1)).await.unwrap_or_else(|error| panic!("{said}: {error}"));
        assert_eq!((scene.nonces(account.address()).await, scene.balance(to).await), ((1, 1), tokens(1)), "{said}");
    }
    drop(miner);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_does_not_say_what_to_offer_is_not_waited_for_longer_than_asked() {
    let scene = Scene::embedded().await;
    let account = scene.account(tokens(9)).await;
    let short = SendOptions { timeout: Duration::from_millis(200), ..hasty() };
    let ledger = scene.connect(&account, POLLS, short).await;
    for method in ["eth_estimateGas", "eth_getTransactionCount"] {
        scene.fault("timeout", 1, method).await;
        let refused = ledger.transfer(Address::random(), tokens(1)).await.unwrap_err().to_string();
        assert!(refused.contains("nothing was sent"), "{method}: {refused}");
    }
    assert_eq!(scene.nonces(account.address()).await, (0, 0));
}
