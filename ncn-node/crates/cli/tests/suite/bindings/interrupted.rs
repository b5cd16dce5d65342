//! Programs in Python that are interrupted while they wait for a model: it hears of it.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{interpreters, network::Scene};
use crate::wait::eventually;

/// How many words a node has signed some of.
const SIGNED: usize = 30;

const PRELUDE: &str = "
import asyncio, json, os, signal, ncn
from functools import partial
# What a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
network = ncn.Network([json.loads(os.environ['NCN_GATEWAYS'])['honest']], hash=os.environ['NCN_NETWORK'])
settings = {'key': os.environ['NCN_KEY'], 'payment': ncn.Relayed(), 'max_price': ncn.TOKEN}
connect, aconnect = partial(ncn.connect, network, **settings), partial(ncn.aconnect, network, **settings)
";
const WAITING: [&str; 4] = [
    "connect().infer('slow', prompt='count')",
    "for part in connect().stream('slow', prompt='count'): pass",
    "
async def main():
    client = await aconnect()
    await client.infer('slow', prompt='count')
asyncio.run(main())",
    "
async def main():
    client = await aconnect()
    async for part in client.stream('slow', prompt='count'): pass
asyncio.run(main())",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_program_in_python_cancels_its_request() {
    let scene = Scene::start().await;
    for python in interpreters() {
        for waiting in WAITING {
            let before = scene.slow().over.len();
            let mut program = Command::new(&python);
            program.arg("-c").arg(format!("{PRELUDE}{waiting}")).envs(scene.environment()).stderr(Stdio::piped());
            let mut program = program.spawn().unwrap();
            scene.slow().words = 0;
            // What is cancelled before anything was signed costs nothing, and a client may do that a few times only.
            eventually("it runs", async || scene.slow().running == 1 && scene.slow().words > SIGNED).await;
            kill_process(Pid::from_child(&program), Signal::INT).unwrap();
            eventually("the compute node is idle", async || scene.slow().over.len() > before).await;
            let ended = tokio::task::spawn_blocking(move || {
                let mut said = String::new();
                program.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                (program.wait().unwrap(), said)
            });
            let (status, said) = ended.await.unwrap();
            let last = said.trim().lines().last().unwrap_or_default();
            assert!(last == "KeyboardInterrupt" && !status.success(), "{waiting}: {status}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_python_that_ends_at_once_ends_well() {
    let scene = Scene::start().await;
    let calls = ["asyncio.run(aconnect())", "stream = connect().stream('slow', prompt='x'); next(stream)"];
    for python in interpreters() {
        for call in calls.iter().cycle().take(12) {
            let mut program = Command::new(&python);
            program.arg("-c").arg(format!("{PRELUDE}{call}")).envs(scene.environment());
            let ended = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
            assert!(ended.status.success() && ended.stderr.is_empty(), "{call}: {ended:?}");
        }
    }
    eventually("what was left open is cancelled", async || scene.slow().running == 0).await;
}
