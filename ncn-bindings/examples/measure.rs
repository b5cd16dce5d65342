//! What `cargo xtask bench bindings` compares the other languages with: the same in Rust, without the bindings.

#![allow(clippy::print_stdout, reason = "what it prints is its result")]

use std::{
    env,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use alloy_signer_local::PrivateKeySigner;
use futures::StreamExt as _;
use ncn_client::{
    Client, InferenceEvent, Order, Payment,
    core::{Amount, Receipt},
    transport,
};

/// After how many parts a request is dropped: the node has signed some of them.
const PARTS: usize = 30;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos()
}

fn median(mut all: Vec<u128>) -> u128 {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

#[tokio::main]
async fn main() -> Result<()> {
    let gateways: serde_json::Value = serde_json::from_str(&env::var("NCN_GATEWAYS")?)?;
    let gateway = transport(gateways.get("honest").and_then(serde_json::Value::as_str).ok_or("NCN_GATEWAYS: has no `honest`")?)?;
    let trust = gateway.network().await?.trust_root;
    let client = Client::builder().transport(gateway).payment(Payment::Relayed).trust(trust).max_price(Amount::TOKEN);
    let key: PrivateKeySigner = env::var("NCN_KEY")?.parse()?;
    let client = client.signer(std::sync::Arc::new(key)).build()?;

    let mut events = client.submit(Order::new("clock", [("prompt", "count")])).await?.events().await?;
    let (mut late, mut json) = (Vec::new(), String::new());
    while let Some(event) = events.next().await {
        match event? {
            InferenceEvent::Part(part) => {
                let said: u128 = part.values.text("text").unwrap_or_default().trim().parse()?;
                late.push(now() - said);
            }
            InferenceEvent::Finished(answer) => json = answer.receipt.to_json(),
            _ => {}
        }
    }
    println!("part {}", median(late));

    let mut took = Vec::new();
    for _ in 0..500 {
        let started = Instant::now();
        Receipt::from_json(json.as_bytes())?.verify_self_consistent()?;
        took.push(started.elapsed().as_nanos());
    }
    println!("verify {}", median(took));

    let mut events = client.submit(Order::new("slow", [("prompt", "count")])).await?.events().await?;
    for _ in 0..PARTS {
        events.next().await.ok_or("no part")??;
    }
    println!("dropped {}", now());
    drop(events);
    ncn_client::cancellations().await;
    Ok(())
}
