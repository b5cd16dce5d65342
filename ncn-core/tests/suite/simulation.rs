//! Random schedules of requests, with cancellations, deaths, deadlines, changes of the validators, and lies by any one party. The roles here
//! are small; the messages, the checks, the state machine and the ledger's rules are the real ones. Whatever happens,
//! - no token comes out of nothing or is lost,
//! - an honest client pays for nothing that it did not get, and where one party lies or dies, for no more than one part of it,
//! - an honest node is paid for each part that its client has verified, but for the one that its gateway has not acknowledged before it lied or
//!   died.

mod request;
mod world;

use std::env;

use ncn_core::{B256, Outcome, PaymentStatus, State};
use request::{Request, cost};
use world::{Given, Liar, Seen, World, keys};

/// How many schedules are played, unless `NCN_SCHEDULES` says it, and from which seed on, unless `NCN_SEED` does.
const SCHEDULES: u64 = 2_000;
const MODEL: B256 = B256::repeat_byte(0x42);
const NOW: u64 = 1_800_000_000;
const LIFETIME: u64 = 600;
/// How often a node looks at what it is owed.
const POLL: u64 = 30;
/// Which node it is that lies.
const LIAR: usize = 0;
const MONEY: u128 = 1_000_000_000;

/// Plays one schedule; panics where a rule is broken.
fn play(seed: u64) -> Seen {
    let mut world = World::new(seed);
    let minted = world.total();
    let requests = 1 + world.luck.below(2);
    for _ in 0..requests {
        let liar = world.liar;
        let before = world.balance(keys().client.address());
        let incomes: Vec<_> = keys().nodes.iter().map(|key| world.balance(key.address())).collect();
        let Some(mut request) = Request::begin(&mut world) else { continue };
        request.run();
        request.end();
        let Request { quote, given, heard, delivered, life, .. } = request;
        let status = world.status(&quote);
        let paid = before - world.balance(quote.client);
        assert!(matches!(status, PaymentStatus::PaidOut { .. } | PaymentStatus::Refunded { .. }), "money is stuck: {status}");
        assert_eq!(world.total(), minted, "tokens are conserved");

        // What the client has: all of a delivered output, or the parts that it has verified.
        let has = delivered.unwrap_or(heard.verified);
        assert!(paid <= quote.total.units());
        let gateway_lied = liar == Liar::Gateway;
        let settled = life.state() == State::Ended(Outcome::Completed);
        let owed = if settled { cost(&quote.price, has) } else { cost(&quote.price, has + 1) };
        // What the gateway has and keeps to itself is the client's loss, which SECURITY.md says; the rest is bounded.
        let kept = given.iter().filter_map(Given::delivery).map(|delivery| delivery.last().unwrap().parts).max();
        let bound = if gateway_lied { owed.max(cost(&quote.price, kept.unwrap_or(0))) } else { owed };
        assert!(paid <= bound, "a {liar:?} lied: the client pays {paid} for {has} parts, which cost {owed}");
        if settled && liar != Liar::Node {
            assert_eq!(paid, cost(&quote.price, has), "what was delivered costs what it costs");
        }

        // Each honest node has its share of the parts that are its own among those that the client has verified.
        for (node, (key, income)) in keys().nodes.iter().zip(incomes).enumerate() {
            let income = world.balance(key.address()) - income;
            let chain: Vec<_> = given.iter().filter(|given| given.node == node).collect();
            let own = chain.iter().filter_map(|given| given.given.as_ref().map(|result| (given, &result.message)));
            let verified: u64 = own
                .map(|(given, result)| {
                    let begun = given.before.last().map_or(0, |before| before.message.parts);
                    assert!(given.unacknowledged() <= 1);
                    result.parts.min(heard.verified).saturating_sub(begun + given.unacknowledged())
                })
                .max()
                .unwrap_or(0);
            let share = quote.price.output.price.units() * u128::from(verified) * 8 / 10;
            let lied = liar == Liar::Node && node == LIAR;
            assert!(lied || income >= share, "a {liar:?} lied: node {node} has {income} for {verified} verified parts: {share}");
        }
        match status {
            PaymentStatus::PaidOut { .. } => world.seen.completed += 1,
            _ => world.seen.refunded += 1,
        }
    }
    world.seen
}

#[test]
fn nobody_gains_by_lying() {
    let number = |name: &str, or: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(or);
    let (first, count) = (number("NCN_SEED", 0), number("NCN_SCHEDULES", SCHEDULES));
    println!("seeds {first} to {}", first + count - 1);
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u64;
    let seen = std::thread::scope(|scope| {
        let part = |thread: u64| {
            scope.spawn(move || {
                let mut all = Vec::new();
                for seed in (first..first + count).filter(|seed| seed % threads == thread) {
                    let played = std::panic::catch_unwind(|| play(seed));
                    all.push(played.unwrap_or_else(|_| panic!("broken by the schedule of NCN_SEED={seed} NCN_SCHEDULES=1")));
                }
                all
            })
        };
        let playing: Vec<_> = (0..threads).map(part).collect();
        playing.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let all = Seen {
        completed: sum(|seen| seen.completed),
        partial: sum(|seen| seen.partial),
        refunded: sum(|seen| seen.refunded),
        claimed: sum(|seen| seen.claimed),
        taken_over: sum(|seen| seen.taken_over),
        unpaid: sum(|seen| seen.unpaid),
        epochs: sum(|seen| seen.epochs),
    };
    println!("{all:?}");
    if count >= SCHEDULES {
        let least = [all.completed, all.partial, all.refunded, all.claimed, all.taken_over, all.unpaid, all.epochs];
        assert!(least.iter().all(|seen| *seen >= 20), "too little happens: {all:?}");
    }
}
