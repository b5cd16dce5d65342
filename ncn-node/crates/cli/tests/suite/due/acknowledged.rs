//! What a node can claim by itself is what its gateway has acknowledged.

use futures::StreamExt as _;
use ncn_core::{
    Acknowledgement, Amount, CompletionRequest, Compute as _, ComputeError, ComputeEvent, ComputeTask, InferenceResult,
    Message as _, Reservation, Signed, validation::CLAIM_TURN_SECONDS,
};

use super::scene::{Scene, WORDS};
use crate::scene::key;

/// A node's words on a task, without one of its gateway's but those to the first of its checkpoints.
async fn run_unacknowledged(
    scene: &Scene,
    task: &ComputeTask,
    acknowledged: usize,
) -> (Vec<Signed<InferenceResult>>, ComputeError) {
    let node = scene.node.node();
    let request_id = task.quote.request_id;
    node.reserve(Reservation { request_id, model_digest: task.quote.model_digest, expires_at: task.quote.expiry }).await.unwrap();
    let mut events = node.execute(task.clone()).await.unwrap();
    let mut words = Vec::new();
    loop {
        match events.next().await.unwrap() {
            Ok(ComputeEvent::Checkpoint(word)) => {
                if words.len() < acknowledged {
                    node.acknowledge(request_id, scene.acknowledgement(&word).await).await;
                } else {
                    // Nobody else's word counts.
                    let (own, message) = (&scene.compute, scene.acknowledgement(&word).await.message);
                    let forged = Acknowledgement { gateway: own.address(), ..message };
                    node.acknowledge(request_id, scene.sign(forged, own).await).await;
                }
                words.push(word);
            }
            Ok(_) => {}
            Err(error) => return (words, error),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_does_not_acknowledge_what_it_is_given_gets_little_of_it() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let (words, error) = run_unacknowledged(&scene, &task, 0).await;
    assert!(matches!(&error, ComputeError::Unavailable(problem) if problem.contains("acknowledge")), "{error}");
    assert_eq!(words.len(), 1, "one checkpoint, and what follows up to the next");
    assert_eq!(scene.node.claims().unwrap().count(), 0, "nothing to claim");
}

/// Whatever else its gateway says.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_no_acknowledgement() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let (node, request_id) = (scene.node.node(), task.quote.request_id);
    node.reserve(Reservation { request_id, model_digest: task.quote.model_digest, expires_at: task.quote.expiry }).await.unwrap();
    let mut events = node.execute(task).await.unwrap();
    let mut words = 0;
    let error = loop {
        match events.next().await.unwrap() {
            Ok(ComputeEvent::Checkpoint(_)) => {
                words += 1;
                node.release(request_id).await;
            }
            Ok(event) => assert!(!matches!(event, ComputeEvent::Finished(_)), "it gives all"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ComputeError::Unavailable(_)) && words == 1, "{error}");
}

/// A session that broke leaves nothing behind that the next run would wait for.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_waited_for_the_next_one_does_not() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let (node, request_id) = (scene.node.node(), task.quote.request_id);
    node.reserve(Reservation { request_id, model_digest: task.quote.model_digest, expires_at: task.quote.expiry }).await.unwrap();
    let mut events = node.execute(task.clone()).await.unwrap();
    while !matches!(events.next().await.unwrap().unwrap(), ComputeEvent::Checkpoint(_)) {}
    drop(events);
    let (result, _) = scene.run(&task).await;
    assert_eq!(result.message.parts, WORDS);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_handed_over_without_the_gateways_word() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    let (result, _) = scene.run(&task).await;
    let certificate = scene.certificate(&task, result.clone()).await;
    let another = Signed { message: InferenceResult { parts: 1, ..result.message.clone() }, ..result.clone() };
    let refused = scene.collect(&task, &another, certificate.clone()).await;
    assert!(matches!(refused, Err(ComputeError::InvalidTask(_))), "{refused:?}");
    assert!(scene.collect(&task, &result, certificate).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_claim_what_its_gateway_has_not_got() {
    let scene = Scene::new(WORDS).await;
    let task = scene.task().await;
    // The node says that it has given all; its gateway has the beginning.
    let (whole, _) = scene.run(&task).await;
    let beginning = Signed { message: InferenceResult { finish: None, parts: 1, ..whole.message.clone() }, ..whole.clone() };
    scene.give_up(&task.quote, None).await;
    scene.pass(2 * CLAIM_TURN_SECONDS + 1);
    let good = scene.completion(&task, whole.clone(), &scene.compute).await;
    let another = Some(scene.acknowledgement(&beginning).await);
    let own = Acknowledgement { gateway: scene.address(), result: whole.message.struct_hash() };
    let own = Some(scene.sign(own, &scene.compute).await);
    let stranger = key();
    let mut forged =
        scene.sign(Acknowledgement { gateway: stranger.address(), result: whole.message.struct_hash() }, &stranger).await;
    forged.message.gateway = scene.gateway.address();
    for (problem, acknowledgement) in [
        ("acknowledgement: is missing", None),
        ("acknowledgement.result", another),
        ("acknowledgement.gateway", own),
        ("acknowledgement: ", Some(forged)),
    ] {
        let request = CompletionRequest { acknowledgement, ..good.clone() };
        let refused = scene.network.registry.completion(request).await.unwrap_err().to_string();
        assert!(refused.contains(problem), "{problem}: {refused}");
    }
    assert!(scene.network.registry.completion(good).await.is_ok(), "what it has, the node can claim");
    assert_eq!(scene.balance(scene.address()).await, Amount::ZERO);
}
