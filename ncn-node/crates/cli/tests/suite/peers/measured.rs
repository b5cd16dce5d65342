//! How fast registry nodes are: `cargo xtask bench registry`.

use futures::{StreamExt as _, future::join_all};
use ncn_core::{Attestors as _, NodeChange};
use ncn_p2p::{PeerId, simulation::Links};
use ncn_wire::proto;

use super::{links::Served, *};

/// How many registry nodes a network has that is measured, unless `NCN_NODES` says it.
const MANY: usize = 200;

/// The p-th of a hundred, of these times.
fn percentile(times: &mut [Duration], p: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * p / 100]
}

/// Waits until nodes no longer make and close connections, as they do when many start at once. Returns how many there are.
async fn settled(peers: &Peers) -> usize {
    let count = || peers.nodes.iter().map(|node| node.status().peers.len()).sum::<usize>();
    let (mut last, mut same) = (0, 0);
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = count();
        same = if now.abs_diff(last) <= now / 100 { same + 1 } else { 0 };
        last = now;
        if same == 5 {
            break;
        }
    }
    last
}

/// Prints how fast news travel among many nodes. Run it with `cargo xtask bench registry`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench registry"]
async fn news() {
    let many = std::env::var("NCN_NODES").map_or(MANY, |value| value.parse().unwrap());
    let before = memory();
    let started = Instant::now();
    let peers = Peers::new(5, many - 5).await;
    println!("{many} nodes have started after {:?}", started.elapsed());
    peers.met().await;
    println!("{many} nodes have met after {:?}, with {} kB each", started.elapsed(), memory().saturating_sub(before) / many);
    let connections = settled(&peers).await / many;
    println!("{many} nodes have settled after {:?}, with {connections} connections each", started.elapsed());
    let (mut seen, mut answers) = (Vec::new(), Vec::new());
    for round in 0..10 {
        let node = key();
        let query = NodeQuery { node: Some(node.address()), ..NodeQuery::default() };
        let record = peers.record(&node).await;
        let told = Instant::now();
        peers.nodes[round * 17 % many].registry().register(record).await.unwrap();
        let sees = peers.nodes.iter().map(async |peer| {
            let mut changes = peer.registry().watch(query).await.unwrap();
            while !matches!(changes.next().await, Some(Ok(NodeChange::Live(_)))) {}
            told.elapsed()
        });
        let times = in_time("everyone sees it", join_all(sees)).await;
        seen.extend(times);
        let asked = Instant::now();
        peers.nodes[round].registry().discover(query).await.unwrap();
        answers.push(asked.elapsed());
    }
    let gone = key();
    let query = NodeQuery { node: Some(gone.address()), ..NodeQuery::default() };
    peers.nodes[0].registry().register(peers.record(&gone).await).await.unwrap();
    let silent = Instant::now();
    eventually("all know the node", async || peers.knowing(&gone).await == many).await;
    let sees = peers.nodes.iter().map(async |peer| {
        let mut changes = peer.registry().watch(query).await.unwrap();
        while !matches!(changes.next().await, Some(Ok(NodeChange::Gone(_)))) {}
        silent.elapsed()
    });
    let mut forgotten = in_time("everyone forgets it", join_all(sees)).await;
    println!("| what | p50 | p99 |\n| --- | --- | --- |");
    for (what, times) in [
        ("a new record is seen everywhere", &mut seen),
        ("a silent node is gone everywhere", &mut forgotten),
        ("an answer from the local table", &mut answers),
    ] {
        println!("| {what} | {:?} | {:?} |", percentile(times, 50), percentile(times, 99));
    }
    assert!(percentile(&mut seen, 99) < Duration::from_secs(2) && percentile(&mut forgotten, 99) < Duration::from_secs(17));
    assert!(percentile(&mut answers, 50) < Duration::from_millis(1));
}

/// A third of it are validators' own hosts; the others only keep what is to be found.
const FAR: usize = 40;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench registry"]
async fn far_apart() {
    let links = Links { delay: Duration::from_millis(20)..Duration::from_millis(100), lost: 0 };
    let network = SimulatedNetwork::new(3, links);
    let peers = Peers::within(Some(network), 5, FAR - 5).await;
    peers.met().await;
    let mut nodes = Vec::new();
    for number in 0..FAR {
        let node = key();
        peers.nodes[number].registry().register(peers.record(&node).await).await.unwrap();
        nodes.push(node);
    }
    // A record is on its way to those that keep it, which takes a lookup.
    for node in &nodes {
        let is_kept = async || peers.nodes[0].registry().find(node.address()).await.is_some();
        eventually("each record is kept", is_kept).await;
    }
    let mut lookups = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let asked = Instant::now();
        let found = peers.nodes[(number * 7 + 3) % FAR].registry().find(node.address()).await;
        lookups.push(asked.elapsed());
        assert_eq!(found.map(|found| found.message.node), Some(node.address()));
    }

    let served = Served::at(&peers, 1).await;
    let (mut quorums, mut thirds) = (Vec::new(), Vec::new());
    let coordinator = peers.nodes.last().unwrap().registry();
    for _ in 0..20 {
        let request = served.request(&peers).await;
        let question = proto::question::Question::Preprocessing(request.clone().into());
        // Each validator by itself, at the same time: what the third-fastest takes, no coordinator can do without.
        let own = peers.nodes[..5].iter().map(async |validator| {
            let (peer, started): (PeerId, _) = (validator.registry().peer().id(), Instant::now());
            coordinator.peer().ask(peer, validator.registry().peer().listens().await, question.clone()).await.unwrap();
            started.elapsed()
        });
        let mut own = join_all(own).await;
        own.sort_unstable();
        thirds.push(own[2]);
        let asked = Instant::now();
        coordinator.preprocessing(request).await.unwrap();
        quorums.push(asked.elapsed());
    }
    println!("{FAR} nodes, 20 to 100 ms from each other\n| what | p50 | p99 |\n| --- | --- | --- |");
    for (what, times) in [
        ("a lookup in the hash table", &mut lookups),
        ("the third-fastest of five validators", &mut thirds),
        ("three of five approve", &mut quorums),
    ] {
        println!("| {what} | {:?} | {:?} |", percentile(times, 50), percentile(times, 99));
    }
    let (quorum, third) = (percentile(&mut quorums, 50), percentile(&mut thirds, 50));
    assert!(quorum.as_secs_f64() < third.as_secs_f64() * 1.2, "{quorum:?} against {third:?}");
    assert!(percentile(&mut lookups, 50) < Duration::from_millis(500));
}

/// What this process has in memory, in kB.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
