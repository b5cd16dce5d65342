//! The node's due: a gateway that lies, gives up or vanishes does not keep the pay of a node that has served.

mod acknowledged;
mod credit;
mod scene;

use std::time::Instant;

use futures::StreamExt as _;
use ncn_core::{
    Address, Amount, B256, Collected, Compute as _, ComputeError, ComputeEvent, ComputeTask, Dispatch, FeeSplit, FinishReason,
    Message as _, PaymentStatus, QuorumCertificate, Quote, Reservation, Signature, Subnet, TaskCapability,
    validation::{CLAIM_SECONDS, CLAIM_TURN_SECONDS},
};
use scene::{BASE, LIFETIME, Scene, WORD, WORDS};

use crate::{
    scene::{key, tokens},
    wait::eventually,
};

fn words(count: u64) -> String {
    let words: Vec<_> = (1..=count).map(|number| format!("{number} ")).collect();
    words.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_part_is_handed_over_for_the_certificate_alone() {
    let scene = Scene::new(WORDS).await;
    let (task, other) = (scene.task().await, scene.task().await);
    let (result, text) = scene.run(&task).await;
    assert_eq!(text, words(WORDS - 1), "all but the last");
    let others = {
        let (result, _) = scene.run(&other).await;
        scene.certificate(&other, result).await
    };
    let (node, request_id) = (scene.node.node(), task.quote.request_id);
    for certificate in [QuorumCertificate::default(), task.preprocessing.clone(), others] {
        let refused = scene.collect(&task, &result, certificate).await;
        assert!(matches!(refused, Err(ComputeError::InvalidTask(_))), "{refused:?}");
    }
    let certificate = scene.certificate(&task, result.clone()).await;
    // An answer may get lost.
    for _ in 0..2 {
        let Collected { output, last } = scene.collect(&task, &result, certificate.clone()).await.unwrap();
        assert_eq!(output.text("text"), Some(&*words(WORDS)));
        assert_eq!(last.unwrap().values.text("text"), Some(&*format!("{WORDS} ")));
    }
    node.release(request_id).await;
    assert!(matches!(scene.collect(&task, &result, certificate).await, Err(ComputeError::Unavailable(_))), "it is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_runs_what_its_gateway_has_not_dispatched() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let Quote { request_id, model_digest, expiry, .. } = task.quote;
    let stranger = key();
    let message = task.dispatches[0].message;
    let strangers = scene.sign(Dispatch { gateway: stranger.address(), ..message }, &stranger).await;
    let spoilt: [(&str, ComputeTask); 5] = [
        ("there are 0", ComputeTask { dispatches: Vec::new(), ..task.clone() }),
        ("dispatch.gateway", ComputeTask { dispatches: vec![strangers], ..task.clone() }),
        (
            "dispatch.compute",
            ComputeTask { dispatches: vec![scene.dispatch(&task.quote, stranger.address()).await], ..task.clone() },
        ),
        ("preprocessing", ComputeTask { preprocessing: QuorumCertificate::default(), ..task.clone() }),
        (
            "dispatch.quote",
            ComputeTask {
                dispatches: vec![scene.dispatch(&Quote { expiry: expiry + 1, ..task.quote.clone() }, scene.address()).await],
                ..task.clone()
            },
        ),
    ];
    for (problem, task) in spoilt {
        scene.node.node().reserve(Reservation { request_id, model_digest, expires_at: expiry }).await.unwrap();
        match scene.node.node().execute(task).await.map(drop) {
            Err(ComputeError::InvalidTask(reason)) => assert!(reason.contains(problem), "{problem}: {reason}"),
            other => panic!("{problem}: {other:?}"),
        }
    }
    assert_eq!(scene.run(&task).await.0.message.finish, Some(FinishReason::Stop));
}

#[test]
fn two_nodes_for_one_attempt_are_evidence() {
    let [one, other] = [1, 2].map(|byte| Dispatch {
        gateway: Address::repeat_byte(9),
        compute: Address::repeat_byte(byte),
        quote: B256::ZERO,
        attempt: 0,
        resumed_from: B256::ZERO,
    });
    assert!(one.contradicts(&other) && !one.contradicts(&one));
    assert!(one.contradicts(&Dispatch { resumed_from: B256::repeat_byte(1), ..one }));
    assert!(!one.contradicts(&Dispatch { attempt: 1, ..other }), "one after the other");
    assert!(!one.contradicts(&Dispatch { gateway: Address::ZERO, ..other }), "another gateway's");
}

/// Whatever the gateway does with what it has: nothing, or give the request up.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_paid_that_its_gateway_does_not_settle() {
    for (collected, gives_up) in [(false, false), (false, true), (true, false), (true, true)] {
        let scene = Scene::new(WORDS).await;
        let task = scene.task().await;
        let (result, _) = scene.run(&task).await;
        if collected {
            let certificate = scene.certificate(&task, result.clone()).await;
            scene.collect(&task, &result, certificate).await.unwrap();
        }
        if !collected {
            scene.look().await;
            assert!(matches!(scene.status(&task.quote).await, PaymentStatus::Held { .. }), "a gateway has time until the expiry");
        }
        assert_eq!(scene.node.claims().unwrap().count(), 1);
        if gives_up {
            assert!(!scene.give_up(&task.quote, None).await, "not at once");
        } else {
            scene.pass(LIFETIME + 1);
        }
        if !collected {
            scene.look().await;
            assert_eq!(scene.balance(scene.address()).await, Amount::ZERO, "later attempts come first");
            scene.pass(2 * CLAIM_TURN_SECONDS + 1);
        }
        scene.look().await;
        let status = scene.status(&task.quote).await;
        assert!(matches!(status, PaymentStatus::PaidOut { .. }), "{collected} {gives_up}: {status}");
        // What was not handed over is not paid for.
        let given = if collected { WORDS } else { WORDS - 1 };
        assert!(Scene::share(given).contains(&scene.balance(scene.address()).await));
        let cost = Amount::new(BASE + WORD * u128::from(given));
        assert_eq!(scene.balance(task.quote.client).await.checked_add(cost), Some(tokens(1)), "the client pays the price");
        assert_eq!(scene.node.claims().unwrap().count(), 0);
    }
}

/// What was streamed and signed is paid for, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_paid_for_the_beginning_of_an_output() {
    let scene = Scene::new(WORDS / 2).await;
    let task = scene.task().await;
    let (result, text) = scene.run(&task).await;
    let given = result.message.parts;
    assert_eq!((text, result.message.finish), (words(given), None));
    assert_eq!(given, WORDS / 2 - 1, "the newest is held back");
    scene.give_up(&task.quote, None).await;
    scene.pass(2 * CLAIM_TURN_SECONDS + 1);
    scene.look().await;
    assert!(Scene::share(given).contains(&scene.balance(scene.address()).await));
}

/// A certificate is presented as soon as its gateway has had a moment to do so: until then the gateway may end the escrow in another way.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_presents_its_certificate_itself() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let (result, _) = scene.run(&task).await;
    let certificate = scene.certificate(&task, result.clone()).await;
    // Collected again and again, it is due no later.
    for _ in 0..3 {
        scene.collect(&task, &result, certificate.clone()).await.unwrap();
    }
    scene.node.claims().unwrap().look(Instant::now()).await;
    assert!(matches!(scene.status(&task.quote).await, PaymentStatus::Held { .. }), "its gateway has a moment");
    scene.look().await;
    assert!(matches!(scene.status(&task.quote).await, PaymentStatus::PaidOut { .. }));
    assert!(Scene::share(WORDS).contains(&scene.balance(scene.address()).await));
}

/// Nothing is handed over for a certificate that does not pay any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_an_escrow_that_has_ended_collects_nothing() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let (result, _) = scene.run(&task).await;
    let certificate = scene.certificate(&task, result.clone()).await;
    let digest = TaskCapability::cancel(&task.quote).digest(&scene.network.trust.domain);
    let consent = Signature::sign(&digest, &*scene.client).await.unwrap();
    assert!(scene.give_up(&task.quote, Some(&consent)).await);
    let refused = scene.collect(&task, &result, certificate).await;
    assert!(matches!(refused, Err(ComputeError::Unavailable(_))), "{refused:?}");
}

/// A gateway that has a request run again, and changes its subnet, changes nothing about what the node is owed.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_only_grows_and_does_not_depend_on_the_subnet() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    scene.run(&task).await;
    let Quote { request_id, model_digest, expiry, .. } = task.quote;
    scene.node.node().reserve(Reservation { request_id, model_digest, expires_at: expiry }).await.unwrap();
    let mut again = scene.node.node().execute(task.clone()).await.unwrap();
    assert!(matches!(again.next().await, Some(Ok(ComputeEvent::Chunk(_)))));
    drop(again);
    let gone = Subnet {
        owner: scene.gateway.address(),
        name: "due".into(),
        gateways: Vec::new(),
        models: Vec::new(),
        split: FeeSplit::default(),
        version: 2,
    };
    scene.network.registry.register_subnet(scene.sign(gone, &scene.gateway).await).await.unwrap();
    scene.give_up(&task.quote, None).await;
    scene.pass(2 * CLAIM_TURN_SECONDS);
    scene.look().await;
    assert!(Scene::share(WORDS - 1).contains(&scene.balance(scene.address()).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_restarted_knows_what_it_is_owed() {
    for collected in [false, true] {
        let mut scene = Scene::new(WORDS).await;
        let task = scene.task().await;
        let (result, _) = scene.run(&task).await;
        if collected {
            let certificate = scene.certificate(&task, result.clone()).await;
            scene.collect(&task, &result, certificate).await.unwrap();
        }
        scene = scene.restart().await;
        scene.give_up(&task.quote, None).await;
        scene.pass(2 * CLAIM_TURN_SECONDS);
        let given = if collected { WORDS } else { WORDS - 1 };
        // The node itself may be looking at it: it does so when it is started.
        eventually("the node is paid", async || {
            scene.look().await;
            Scene::share(given).contains(&scene.balance(scene.address()).await)
        })
        .await;
        eventually("what is paid is forgotten", async || scene.node.claims().unwrap().count() == 0).await;
        scene = scene.restart().await;
        assert_eq!(scene.node.claims().unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_agrees_has_its_payment_back_at_once() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let digest = TaskCapability::cancel(&task.quote).digest(&scene.network.trust.domain);
    let consent = Signature::sign(&digest, &*scene.client).await.unwrap();
    assert!(scene.give_up(&task.quote, Some(&consent)).await);
    assert_eq!(scene.balance(task.quote.client).await, tokens(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_claims_goes_back_to_the_client() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    drop(scene.run(&task).await);
    scene.network.chain.chain.advance(LIFETIME + CLAIM_SECONDS + 2);
    let anyone = scene.network.chain.ledger(key());
    anyone.refund(&task.quote, None).await.unwrap();
    assert_eq!(scene.balance(task.quote.client).await, tokens(1));
    // Too late, and no reason to try for ever.
    scene.look().await;
    assert_eq!((scene.node.claims().unwrap().count(), scene.balance(scene.address()).await), (0, Amount::ZERO));
}

/// A node that brings its own completion is heard only where its gateway is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_go_behind_its_gateways_back() {
    let scene = Scene::new(WORDS).await;
    let (task, thief) = (scene.task().await, key());
    let (result, _) = scene.run(&task).await;
    let theft = scene.completion(&task, result, &thief).await;
    let refused = scene.network.registry.completion(theft.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("authorization.author"), "{refused}");
    scene.give_up(&task.quote, None).await;
    let refused = scene.network.registry.completion(theft).await.unwrap_err().to_string();
    assert!(refused.contains("authorization.author"), "also when the request is given up: {refused}");
}
