//! Several hundred requests, good and bad, over every wire and in process: each wire says the same of the same request, and does the same.

use futures::TryStreamExt as _;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use super::*;

/// How many of each kind, over four wires each.
const GOOD: usize = 24;
const BAD: usize = 160;

/// Changes something about an order, at random, so that it is refused; signs it again in some cases.
async fn spoil(scene: &Scene, random: &mut ChaCha8Rng, order: &mut Submission) {
    let mut word = B256::ZERO;
    random.fill_bytes(word.as_mut_slice());
    let message = &mut order.request.message;
    let what = random.next_u32() % 14;
    match what {
        0 => message.subnet = word,
        1 => message.model_digest = word,
        2 => message.input_hash = word,
        3 => message.parameters = format!("{{\"a\": {}}}", random.next_u32()),
        4 => message.parameters = "[".repeat(random.next_u32() as usize % 200),
        5 => message.max_price = Amount::new(u128::from(random.next_u32() % 1_000)),
        6 => message.deadline = u64::from(random.next_u32()),
        7 => message.deadline = random.next_u64(),
        8 => message.client = key().address(),
        9 => message.nonce = word,
        10 => order.ticket = word,
        11 => drop(order.inputs.insert(format!("input-{}", random.next_u32() % 3), "text")),
        12 => {
            let mut data = vec![0; random.next_u32() as usize % 500];
            random.fill_bytes(&mut data);
            order.inputs = [("image", Value::png(data))].into();
        }
        _ => message.draw = word,
    }
    // With another nonce it would be good, and nobody signs for another client.
    if !matches!(what, 8 | 9) && random.next_u32().is_multiple_of(2) {
        order.request = scene.sign(order.request.message.clone(), &scene.client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_requests_have_the_same_answers_on_every_wire() {
    let scene = Scene::new().await;
    let mut random = ChaCha8Rng::seed_from_u64(13);
    let funder = scene.network.funder();
    funder.transfer(scene.client.address(), Amount::TOKEN).await.unwrap();
    let ledger = scene.network.ledger(scene.client.clone());
    let (mut paid, mut kinds) = (Amount::ZERO, std::collections::BTreeMap::<String, usize>::new());
    for number in 0..BAD {
        let mut order = scene.submission().await;
        spoil(&scene, &mut random, &mut order).await;
        let mut said = Vec::new();
        // Some errors say what time it is, which goes on meanwhile.
        for _ in 0..5 {
            said.clear();
            for (wire, transport) in scene.wires() {
                said.push((wire, transport.submit(order.clone()).await.map(|status| status.request_id)));
            }
            if said.iter().all(|(_, answer)| *answer == said[0].1) {
                break;
            }
        }
        let error = said[0].1.clone().expect_err("it is spoilt");
        *kinds.entry(error.kind().to_string()).or_default() += 1;
        assert!(said.iter().all(|(_, answer)| *answer == Err(error.clone())), "{number}: {said:?}");
    }
    for number in 0..GOOD {
        let order = scene.submission().await;
        // Each is sent over another wire first, and then over all.
        let mut wires = scene.wires();
        wires.rotate_left(number % 4);
        let quoted = wires[0].1.submit(order.clone()).await.unwrap();
        for (wire, transport) in &wires {
            assert_eq!(transport.submit(order.clone()).await.unwrap(), quoted, "{wire}");
        }
        let quote = quoted.quote.unwrap();
        let request_id = quote.request_id;
        let transaction = ledger.escrow(&quote).await.unwrap();
        let confirmation = PaymentConfirmation { request_id, proof: PaymentSubmission::Transaction(transaction) };
        let access = scene.access(request_id, CapabilityScope::Follow, &scene.client).await;
        let follow = wires.iter().map(async |(_, transport)| {
            let updates = transport.updates(access.clone(), 0).await.unwrap();
            in_time("the end", updates.try_collect::<Vec<_>>()).await.unwrap()
        });
        let (updates, ()) = tokio::join!(futures::future::join_all(follow), async {
            for (_, transport) in &wires {
                transport.confirm_payment(confirmation).await.unwrap();
            }
        });
        assert!(updates[0].last().unwrap().event.is_last());
        for (followed, (wire, transport)) in updates.iter().zip(&wires) {
            assert_eq!(*followed, updates[0], "{wire}");
            let from = (followed.len() / 2) as u64;
            let rest: Vec<_> = transport.updates(access.clone(), from).await.unwrap().try_collect().await.unwrap();
            assert_eq!(rest, followed[followed.len() / 2..], "{wire}: from an update on");
            assert_eq!(transport.status(request_id).await.unwrap(), wires[0].1.status(request_id).await.unwrap(), "{wire}");
        }
        let ncn_core::TaskEvent::Delivered { output, receipt } = &updates[0].last().unwrap().event else { panic!("{updates:?}") };
        assert_eq!(output.text("label"), Some("7"));
        receipt.verify(&scene.trust).unwrap();
        paid = paid.checked_add(receipt.payments.total).unwrap();
    }
    // What was said four times was paid once, and the rest not at all.
    let left = funder.balance(scene.client.address()).await.unwrap();
    assert_eq!(left.checked_add(paid), Some(Amount::TOKEN));
    println!("{} answers were compared; refused: {kinds:?}", 4 * (GOOD + BAD));
}
