//! What the wires cost: `cargo xtask bench wires`. Ratios are of one run, and everything is in this process.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "there are not that many")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    io::{BufRead as _, BufReader},
    num::NonZeroU32,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use axum::{Router, routing::get};
use futures::{StreamExt as _, future::join_all, stream};
use ncn_client::{ChannelPayer, PayerChannel};
use ncn_core::{ChannelParams, Outcome, State};
use ncn_node::{
    channel::BatchPolicy,
    gateway::{GatewayOptions, Page},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    cli::Devnet,
    scene::{ncn, tokens},
};

mod streams;

/// Rounds of each wire in turn, and requests in each.
const ROUNDS: usize = 8;
const REQUESTS: usize = 48;
const AT_ONCE: usize = 16;
/// How long more comes than can be served until the queues are full, how long it is counted then, and how much more comes.
const FILL: Duration = Duration::from_secs(8);
const FLOOD: Duration = Duration::from_secs(12);
const TIMES: f64 = 3.0;
const FLOODS: usize = 3;
/// How long a gateway has nothing to do before it is looked at.
const IDLE: Duration = Duration::from_secs(20);
/// Orders a second while the page is open, and while it is not: in turn, so many times.
const ORDERS: usize = 1_000;
const WINDOW: Duration = Duration::from_secs(5);
const WINDOWS: usize = 8;

/// The processor time that this process has used.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// What a process has in memory, in MB.
fn resident(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1_024
}

fn percentile(times: &mut [Duration], p: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * p / 100]
}

/// Clients that pay out of one channel, by wire.
async fn clients(scene: &Scene) -> Vec<(&'static str, Client)> {
    let deposit = tokens(900);
    scene.network.funder().transfer(scene.client.address(), deposit).await.unwrap();
    let terms = ChannelParams { client: scene.client.address(), gateway: scene.network.gateway_address(), salt: B256::random() };
    let expiry = unix_now() + 7 * 24 * 3_600;
    scene.network.ledger(scene.client.clone()).fund_channel(&terms, deposit, expiry).await.unwrap();
    let channel = Arc::new(PayerChannel::new(terms, deposit, expiry));
    let wires = scene.wires();
    let client = |(name, transport): (&'static str, Arc<dyn Transport>)| {
        let payer = ChannelPayer::new(transport.clone(), scene.trust.clone(), scene.client.clone(), channel.clone());
        let client = Client::builder().transport(transport).payer(Arc::new(payer)).signer(scene.client.clone());
        (name, client.max_price(Amount::TOKEN).timeout(Duration::from_mins(2)).build().unwrap())
    };
    wires.into_iter().map(client).collect()
}

async fn infer(client: &Client) -> bool {
    let answer = client.infer(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).await;
    answer.is_ok_and(|answer| answer.output.text("label") == Some("7"))
}

async fn scene() -> Scene {
    let settle = BatchPolicy { max_age: Duration::from_secs(5), ..BatchPolicy::default() };
    // One client sends them all.
    let options = GatewayOptions { max_orders_a_minute_of_one: NonZeroU32::MAX, ..GatewayOptions::default() };
    Scene::with(network().gateway(move |gateway| gateway.batch_policy(settle).options(options))).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench wires"]
async fn requests() {
    let scene = scene().await;
    let [_, clients @ ..] = &clients(&scene).await[..] else { panic!() };
    let mut spent: Vec<Vec<f64>> = vec![Vec::new(); clients.len()];
    for round in 0..=ROUNDS {
        for (wire, (name, client)) in clients.iter().enumerate() {
            let before = cpu();
            let served = stream::iter(0..REQUESTS).map(async |_| infer(client).await).buffer_unordered(AT_ONCE);
            let served = served.filter(|served| std::future::ready(*served)).count().await;
            assert_eq!(served, REQUESTS, "{name}");
            // The first round is for everything that is made once.
            if round > 0 {
                spent[wire].push(cpu().saturating_sub(before).as_secs_f64() * 1e3 / REQUESTS as f64);
            }
        }
    }
    let grpc = spent[0].clone();
    for ((name, _), of_wire) in clients.iter().zip(&spent) {
        let mut ratios: Vec<_> = of_wire.iter().zip(&grpc).map(|(one, other)| one / other).collect();
        ratios.sort_by(f64::total_cmp);
        let mean = of_wire.iter().sum::<f64>() / of_wire.len() as f64;
        println!(
            "{name}: {mean:.2} ms of CPU a request, client, nodes and validators included; {:.3} of gRPC's",
            ratios[ratios.len() / 2]
        );
    }
    scene.network.channels().flush();
    eventually("everything is settled", async || scene.network.channels().unsettled() == 0).await;
    println!("all {} requests are settled", (ROUNDS + 1) * REQUESTS * clients.len());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench wires"]
async fn hop() {
    let scene = scene().await;
    let quoted = scene.network.gateway().submit(scene.submission().await).await.unwrap();
    // A hyper server that does nothing but answer as many bytes.
    let bytes = serde_json::to_vec(&quoted).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bare = format!("http://{}/", listener.local_addr().unwrap());
    let served = Router::new().route("/", get(move || std::future::ready(Ok::<_, Infallible>(bytes.clone()))));
    tokio::spawn(async move { axum::serve(listener, served).await.unwrap() });
    let http = ncn_client::http().unwrap().build().unwrap();
    // A proxy before it that does nothing but pass on.
    let (forward, behind) = (http.clone(), bare.clone());
    let passed = Router::new().route("/", get(async move || forward.get(behind).send().await.unwrap().bytes().await.unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxied = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, passed).await.unwrap() });
    let wires = scene.wires();
    let (mut of_bare, mut of_proxy, mut of_wires) = (Vec::new(), Vec::new(), vec![Vec::new(); 4]);
    for _ in 0..2_000 {
        for (times, url) in [(&mut of_bare, &bare), (&mut of_proxy, &proxied)] {
            let began = Instant::now();
            http.get(url).send().await.unwrap().bytes().await.unwrap();
            times.push(began.elapsed());
        }
        for (times, (_, wire)) in of_wires.iter_mut().zip(&wires) {
            let began = Instant::now();
            wire.status(quoted.request_id).await.unwrap();
            times.push(began.elapsed());
        }
    }
    let (p50, p99) = (percentile(&mut of_bare, 50), percentile(&mut of_bare, 99));
    println!("bare hyper server: p50 {p50:?}, p99 {p99:?}");
    let [behind_50, behind_99] = [50, 99].map(|of_hundred| percentile(&mut of_proxy, of_hundred));
    println!("bare hyper server behind a bare reverse proxy: p50 {behind_50:?}, p99 {behind_99:?}");
    for (times, (name, _)) in of_wires.iter_mut().zip(scene.wires()) {
        println!("status over {name}: p50 {:?}, p99 {:?}", percentile(times, 50), percentile(times, 99));
    }
}

/// What a gateway takes that has nothing to do.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench wires"]
async fn idle() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_owned();
    let devnet = tokio::task::spawn_blocking(move || Devnet::start_with(&here, &[])).await.unwrap();
    let mut gateway = Command::new(ncn());
    gateway.args(["gateway", "--rpc", &devnet.rpc, "--registry", &devnet.registry, "--state", "state", "--subnet", "idle"]);
    gateway.args(["--listen", "127.0.0.1:0", "--key", "keys/client-0.key"]).current_dir(directory.path());
    let mut gateway = gateway.stdout(Stdio::piped()).spawn().unwrap();
    let (output, id) = (gateway.stdout.take().unwrap(), gateway.id().to_string());
    let listens = move || BufReader::new(output).lines().map_while(Result::ok).any(|line| line.contains("listens at"));
    assert!(tokio::task::spawn_blocking(listens).await.unwrap());
    tokio::time::sleep(IDLE).await;
    println!("a gateway that has nothing to do: {} MB resident", resident(&id));
    gateway.kill().unwrap();
    gateway.wait().unwrap();
}

/// The page of a gateway that takes a thousand orders a second, all of which it refuses: this machine could not serve as many.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench wires"]
async fn page() {
    let most = usize::MAX >> 1;
    let options = GatewayOptions {
        max_tasks: most,
        max_tasks_of_one: most,
        max_unpaid: most,
        max_unpaid_of_one: most,
        max_waiting: most,
        max_orders_a_minute_of_one: NonZeroU32::MAX,
        // Of which it remembers as many as it may.
        retention: Duration::from_millis(8_500),
        ..GatewayOptions::default()
    };
    let page = Page::new();
    let routes = page.routes();
    let scene = Scene::with(network().compute_nodes(0).gateway(move |gateway| gateway.options(options).routes(routes))).await;
    page.show(scene.network.gateway_node());
    let (scene, stopped) = (Arc::new(scene), CancellationToken::new());
    let (asking, stop, refused) = (scene.clone(), stopped.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = refused.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while !stop.is_cancelled() {
            tick.tick().await;
            for _ in 0..ORDERS / 10 {
                let (scene, refused) = (asking.clone(), counted.clone());
                tokio::spawn(async move {
                    let status = scene.network.gateway().submit(scene.submission().await).await.unwrap();
                    assert_eq!(status.state, State::Ended(Outcome::Refused));
                    refused.fetch_add(1, Ordering::Relaxed);
                });
            }
        }
    });
    let url = format!("{}/overview", scene.network.gateway_url());
    let http = ncn_client::http().unwrap().build().unwrap();
    let (mut with, mut without, mut took, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    tokio::time::sleep(2 * WINDOW).await;
    let (first, began) = (refused.load(Ordering::Relaxed), Instant::now());
    for window in 0..WINDOWS {
        let (before, until) = (cpu(), Instant::now() + WINDOW);
        while Instant::now() < until {
            if window % 2 == 0 {
                let asked = Instant::now();
                bytes = http.get(&url).send().await.unwrap().bytes().await.unwrap().len();
                took.push(asked.elapsed());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let spent = cpu().saturating_sub(before).as_secs_f64() / WINDOW.as_secs_f64() * 100.0;
        if window % 2 == 0 { with.push(spent) } else { without.push(spent) }
    }
    let rate = (refused.load(Ordering::Relaxed) - first) as f64 / began.elapsed().as_secs_f64();
    let gateway = scene.network.gateway_node();
    let (asked, before) = (200, cpu());
    let steps: usize = (0..asked).map(|_| serde_json::to_vec(&gateway.overview()).unwrap().len()).sum();
    let one = cpu().saturating_sub(before).as_secs_f64() * 1e3 / f64::from(asked);
    stopped.cancel();
    let median = |of: &mut Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    println!(
        "{rate:.0} orders a second: the process takes {:.1} % of a core with the page open, {:.1} % without; {bytes} bytes a second; answered in p50 {:?}, p99 {:?}",
        median(&mut with),
        median(&mut without),
        percentile(&mut took, 50),
        percentile(&mut took, 99)
    );
    println!(
        "making one overview takes {one:.2} ms of CPU, other work of the process included: {:.2} % of a core; {} bytes",
        one / 10.0,
        steps / 200
    );
}

/// What becomes of a request that is asked for while too many are.
async fn fate(client: &Client) -> String {
    match client.infer(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).await {
        Ok(answer) if answer.output.text("label") == Some("7") => "served".into(),
        Ok(_) => "served wrong".into(),
        // Without what is of this one request.
        Err(error) => error.to_string().chars().filter(|c| !c.is_ascii_digit()).take(90).collect(),
    }
}

/// How many requests a second are served, when so many are under way.
async fn most(client: &Client, at_once: usize) -> f64 {
    let (began, served) = (Instant::now(), AtomicUsize::new(0));
    join_all((0..at_once).map(async |_| {
        while began.elapsed() < FLOOD {
            if infer(client).await {
                served.fetch_add(1, Ordering::Relaxed);
            }
        }
    }))
    .await;
    served.into_inner() as f64 / began.elapsed().as_secs_f64()
}

/// How many requests a second are served, when so many are asked for, how much memory that takes at most, in MB, and what became of them.
async fn flooded(client: &Client, rate: f64) -> (f64, u64, String) {
    let (began, counted) = (Instant::now(), FILL..FILL + FLOOD);
    let fates = Arc::new(std::sync::Mutex::new(BTreeMap::<String, (usize, Duration)>::new()));
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    let (mut asked, mut highest, mut tasks, mut before) = (0, 0, tokio::task::JoinSet::new(), None);
    while began.elapsed() < counted.end {
        tick.tick().await;
        if began.elapsed() >= FILL {
            before.get_or_insert_with(cpu);
        }
        let (client, fates, counted) = (client.clone(), fates.clone(), counted.clone());
        tasks.spawn(async move {
            let asked = Instant::now();
            let fate = fate(&client).await;
            if counted.contains(&began.elapsed()) {
                let mut fates = fates.lock().unwrap();
                let (count, took) = fates.entry(fate).or_default();
                (*count, *took) = (*count + 1, *took + asked.elapsed());
            }
        });
        asked += 1;
        if asked % 50 == 0 {
            highest = highest.max(resident("self"));
        }
    }
    let spent = cpu().saturating_sub(before.unwrap_or_default()).as_secs_f64() / FLOOD.as_secs_f64();
    // Who is gone in the middle of an order holds a place until its deadline.
    while tasks.join_next().await.is_some() {}
    let fates = std::mem::take(&mut *fates.lock().unwrap());
    let each = |(fate, (count, took)): (&String, &(usize, Duration))| {
        format!("\n  {count} after {:?}: {fate}", *took / u32::try_from(*count).unwrap())
    };
    let rate = f64::from(asked) / counted.end.as_secs_f64();
    let report = format!("{rate:.0} asked a second, {spent:.2} cores") + &fates.iter().map(each).collect::<String>();
    (fates.get("served").map_or(0.0, |(count, _)| *count as f64) / FLOOD.as_secs_f64(), highest, report)
}

/// In turn with the most that can be served, since that is not the same on a machine that others use as well.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench wires"]
async fn flood() {
    for wire in 1..=3 {
        let scene = scene().await;
        let (name, client) = clients(&scene).await.swap_remove(wire);
        let (mut ratios, mut before) = (Vec::new(), most(&client, AT_ONCE).await);
        for _ in 0..FLOODS {
            let (served, highest, report) = flooded(&client, before * TIMES).await;
            println!("{name}: {report}");
            let after = most(&client, AT_ONCE).await;
            let ratio = served / before.midpoint(after);
            println!(
                "{name}: {TIMES} times what can be served: {served:.1} served a second, before {before:.1} and after {after:.1}: {ratio:.2}; at most {highest} MB"
            );
            (before, ratios) = (after, [&ratios[..], &[ratio]].concat());
        }
        ratios.sort_by(f64::total_cmp);
        println!("{name}: under {TIMES} times the maximum, {:.2} of it is served", ratios[FLOODS / 2]);
    }
}
