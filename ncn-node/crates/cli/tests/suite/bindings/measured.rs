//! What the other languages add to Rust, in one run: `cargo xtask bench bindings`.

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use super::network::Scene;
use crate::{scene::repository, wait::eventually};

const ROUNDS: usize = 5;

fn programs() -> Vec<(&'static str, Command)> {
    let python = repository("target/bench/bindings/bin/python");
    let script = repository("ncn-bindings/python/tests/measure.py");
    let in_python = |mode: &str| {
        let mut program = Command::new(&python);
        program.arg(&script).arg(mode).env("PYTHONSAFEPATH", "1");
        program
    };
    let mut node = Command::new("node");
    node.arg("test/measure.js").current_dir(repository("ncn-bindings/typescript"));
    vec![
        ("Rust", Command::new(repository("target/release/examples/measure"))),
        ("Python", in_python("blocking")),
        ("Python, asyncio", in_python("asyncio")),
        ("Node", node),
    ]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench bindings"]
async fn what_other_languages_add() {
    let scene = Scene::start().await;
    let mut measured: BTreeMap<(&str, String), Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (name, mut program) in programs() {
            let before = scene.slow().over.len();
            program.envs(scene.environment());
            let ran = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
            assert!(ran.status.success(), "{name}: {ran:?}");
            eventually("the compute node is idle", async || scene.slow().over.len() > before).await;
            let idle = scene.slow().over[before].duration_since(UNIX_EPOCH).unwrap();
            for line in String::from_utf8_lossy(&ran.stdout).lines() {
                let (what, nanos) = line.split_once(' ').unwrap();
                let mut nanos = Duration::from_secs_f64(nanos.parse::<f64>().unwrap() / 1e9);
                if what == "dropped" {
                    nanos = idle.saturating_sub(nanos);
                }
                measured.entry((name, what.into())).or_default().push(nanos.as_secs_f64() * 1e6);
            }
        }
    }
    println!("median and maximum of {ROUNDS} rounds, in microseconds:");
    for ((name, what), mut all) in measured {
        all.sort_by(f64::total_cmp);
        println!("{what:8} {name:16} {:9.0} {:9.0}", all[all.len() / 2], all[all.len() - 1]);
    }
}
