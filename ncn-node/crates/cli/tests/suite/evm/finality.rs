//! Confirmations, reorganizations, and changes that are followed over them.

use super::*;

async fn waits_for_three_blocks(scene: &Scene) {
    let client = scene.account(tokens(1)).await;
    scene.ask("evm_setAutomine", json!([false])).await;
    scene.ask("anvil_mine", json!(["0x3"])).await;
    let careful = RpcOptions { confirmations: 3, ..POLLS };
    let ledger = Arc::new(scene.connect(&client, careful, hasty()).await);
    let quote = scene.quote(&client, tokens(1)).await;
    let final_state = async || ledger.payment(quote.client, quote.request_id).await.unwrap();
    let escrow = escrowing(&ledger, &quote);
    scene.until_pending(client.address(), 1).await;
    for _ in 0..2 {
        scene.mine().await;
        tokio::time::sleep(FAST * 10).await;
        assert!(!escrow.is_finished(), "not deep enough");
    }
    assert!(matches!(scene.state(&quote).await, PaymentStatus::Held { .. }), "the newest block has it");
    assert_eq!(final_state().await, PaymentStatus::Unpaid, "three blocks do not");
    assert_eq!(ledger.balance(client.address()).await.unwrap(), tokens(1));
    let told = async || ledger.changes(0).await.unwrap();
    assert!(tokio::time::timeout(FAST * 10, told().await.next()).await.is_err(), "nothing has happened yet");

    scene.reorg(2).await;
    assert_eq!(scene.state(&quote).await, PaymentStatus::Unpaid, "it is gone");
    scene.until_pending(client.address(), 1).await;
    for _ in 0..2 {
        scene.mine().await;
        tokio::time::sleep(FAST * 10).await;
        assert!(!escrow.is_finished(), "not deep enough after the reorganization");
    }
    scene.mine().await;
    let transaction = escrow.await.unwrap().unwrap();
    let escrowed = PaymentStatus::Held { quote: quote.struct_hash(), by: PaymentRef::Transaction(transaction) };
    assert_eq!((final_state().await, scene.nonces(client.address()).await), (escrowed.clone(), (1, 1)));
    assert_eq!(next(&mut told().await, 1).await[0].status, escrowed);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_confirmations_and_a_reorganization_before() {
    waits_for_three_blocks(&Scene::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_confirmations_and_a_reorganization_before_on_anvil() {
    waits_for_three_blocks(&Scene::anvil().await).await;
}

async fn notices_that_a_payment_disappears(scene: &Scene) {
    let client = scene.account(tokens(3)).await;
    let ledger = scene.connect(&client, POLLS, hasty()).await;
    let mut events = scene.connect(&key(), POLLS, hasty()).await.changes(0).await.unwrap();
    let (kept, dropped, later) =
        (scene.quote(&client, tokens(1)).await, scene.quote(&client, tokens(1)).await, scene.quote(&client, tokens(1)).await);
    ledger.escrow(&kept).await.unwrap();
    let first = ledger.escrow(&dropped).await.unwrap();
    let ids = |events: Vec<PaymentChange>| events.into_iter().map(|event| event.request_id).collect::<Vec<_>>();
    assert_eq!(ids(next(&mut events, 2).await), [kept.request_id, dropped.request_id]);

    scene.reorg(1).await;
    assert_eq!(ledger.payment(client.address(), dropped.request_id).await.unwrap(), PaymentStatus::Unpaid);
    assert_eq!(scene.balance(client.address()).await, tokens(2), "it was given back");
    ledger.escrow(&later).await.unwrap();
    // Told again from a block before: without what has disappeared.
    assert_eq!(ids(next(&mut events, 2).await), [kept.request_id, later.request_id]);
    // It can be paid again, and is.
    let again = ledger.escrow(&dropped).await.unwrap();
    let event = next(&mut events, 1).await.remove(0);
    assert_eq!(event.status, PaymentStatus::Held { quote: dropped.struct_hash(), by: PaymentRef::Transaction(again) });
    assert_ne!(again, first);
    assert_eq!(scene.balance(client.address()).await, Amount::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_disappears_is_noticed() {
    notices_that_a_payment_disappears(&Scene::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_disappears_is_noticed_on_anvil() {
    notices_that_a_payment_disappears(&Scene::anvil().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_on_after_a_restart() {
    let scene = Scene::embedded().await;
    let client = scene.account(tokens(40)).await;
    let ledger = Arc::new(scene.connect(&client, POLLS, hasty()).await);
    // What was seen of the chain is old until it is looked at again, and few blocks of logs are told at once.
    let slow = RpcOptions { poll: Duration::from_millis(100), log_range: 2, ..POLLS };
    let mut following = scene.connect(&key(), slow, hasty()).await.changes(0).await.unwrap();
    // Followed while it happens: blocks come between any two questions.
    let following = tokio::spawn(async move { (next(&mut following, 30).await, following) });
    let mut quotes = Vec::new();
    for _ in 0..30 {
        let quote = scene.quote(&client, tokens(1)).await;
        ledger.escrow(&quote).await.unwrap();
        // The account that pays and the one that reads see it at once.
        assert!(matches!(scene.state(&quote).await, PaymentStatus::Held { .. }));
        quotes.push(quote.request_id);
    }
    let (told, mut following) = following.await.unwrap();
    assert_eq!(told.iter().map(|event| event.request_id).collect::<Vec<_>>(), quotes, "none is lost, none told twice");

    let mut resumed = scene.connect(&key(), slow, hasty()).await.changes(told[19].block + 1).await.unwrap();
    assert_eq!(next(&mut resumed, 10).await, told[20..]);
    let quote = scene.quote(&client, tokens(1)).await;
    ledger.escrow(&quote).await.unwrap();
    for events in [&mut following, &mut resumed] {
        assert_eq!(next(events, 1).await[0].request_id, quote.request_id);
    }

    // An outage ends the stream with an error; it goes on from where it was.
    scene.fault("error", 1, "eth_getLogs").await;
    let last = scene.quote(&client, tokens(1)).await;
    ledger.refund(&last, None).await.unwrap_err();
    ledger.transfer(Address::random(), tokens(1)).await.unwrap();
    let ended = in_time("the stream ends", following.next()).await.unwrap();
    assert!(matches!(ended, Err(LedgerError::Unreachable(_))), "{ended:?}");
    let mut following = scene.connect(&key(), slow, hasty()).await.changes(told[29].block + 1).await.unwrap();
    assert_eq!(next(&mut following, 1).await[0].request_id, quote.request_id);
}
