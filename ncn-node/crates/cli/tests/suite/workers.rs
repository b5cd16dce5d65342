//! Workers under stress: real processes that are killed, get stuck, run out of time or memory, with other requests beside them.

use std::{
    collections::HashSet,
    path::Path,
    process::Child,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use ncn_core::{
    Confinement, DataType, Execution, Executor, ExecutorError, ExecutorExt as _, Model, Policy, Sandbox, SandboxCommand,
    SandboxError, Tensor, Values, executor::ModelPackage,
};
use ncn_executor::{WorkerExecutor, WorkerOptions, WorkerProgram, sandbox::NoSandbox};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sha2::{Digest as _, Sha256};

use crate::{scene::ncn, wait::eventually};

const LOOPS: &[u8] = include_bytes!("../data/loops.onnx");

/// The model that is as slow as it is told, under a name of its own.
fn loops(directory: &Path, name: &str, memory: u64) -> ModelPackage {
    let directory = directory.join(name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("loops.onnx"), LOOPS).unwrap();
    let manifest = serde_json::json!({
        "name": name, "version": "1", "task": "test", "description": "", "licence": "MIT", "format": "onnx", "entry": "loops.onnx",
        "files": [{ "path": "loops.onnx", "bytes": LOOPS.len(), "sha256": hex::encode(Sha256::digest(LOOPS)) }],
        "inputs": [
            { "type": "tensor", "name": "count", "dtype": "i64", "shape": [1] },
            { "type": "tensor", "name": "x", "dtype": "f32", "shape": [1] },
        ],
        "outputs": [{ "type": "tensor", "name": "y", "dtype": "f32", "shape": [1] }],
        "limits": { "memory_bytes": memory, "deadline_ms": 60_000 },
        "price": "1",
    });
    let model = Model::parse(manifest.to_string()).unwrap();
    ModelPackage { model: Arc::new(model), directory }
}

const MIB: u64 = 1 << 20;
/// Rounds for a run of some milliseconds, and for one that never ends.
const SHORT: i64 = 100;
const ENDLESS: i64 = i32::MAX as i64;

fn execution(package: &ModelPackage, count: i64, time_limit: Duration) -> Execution {
    let count = Tensor::new(DataType::I64, vec![1], count.to_le_bytes().to_vec()).unwrap();
    let x = Tensor::from_f32(vec![1], &[1.0]).unwrap();
    let inputs = Values::from([("count", count), ("x", x)]);
    Execution { model_digest: package.model.digest(), inputs, parameters: "{}".into(), time_limit }
}

const LONG: Duration = Duration::from_mins(10);

async fn adds(executor: &WorkerExecutor, package: &ModelPackage) -> Result<(), ExecutorError> {
    let (values, _) = executor.run_to_end(execution(package, SHORT, LONG)).await?;
    assert_eq!(values.get("y").unwrap().as_tensor().unwrap().to_f32().unwrap(), [100.0]);
    Ok(())
}

/// Remembers the processes that it starts.
#[derive(Clone, Default)]
struct Recording(Arc<Mutex<Vec<Pid>>>);

impl Sandbox for Recording {
    fn confinement(&self) -> Confinement {
        Confinement::None
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        let child = NoSandbox.start(command, policy)?;
        self.0.lock().unwrap().push(Pid::from_child(&child));
        Ok(child)
    }
}

fn is_alive(process: Pid) -> bool {
    test_kill_process(process).is_ok()
}

/// How long a process has used a processor, in the system's ticks.
fn ticks(process: Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let mut fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    fields.nth(11).unwrap().parse().unwrap()
}

impl Recording {
    fn started(&self) -> Vec<Pid> {
        self.0.lock().unwrap().clone()
    }

    fn alive(&self) -> usize {
        self.started().into_iter().filter(|pid| is_alive(*pid)).count()
    }
}

struct Scene {
    executor: Arc<WorkerExecutor>,
    processes: Recording,
    directory: tempfile::TempDir,
}

impl Scene {
    fn new(options: WorkerOptions) -> Self {
        let processes = Recording::default();
        let executor = WorkerExecutor::new(vec![WorkerProgram::new(ncn())], Arc::new(processes.clone()), options);
        Self { executor: Arc::new(executor), processes, directory: tempfile::tempdir().unwrap() }
    }

    async fn model(&self, name: &str, memory: u64) -> ModelPackage {
        let package = loops(self.directory.path(), name, memory);
        self.executor.load(&package).await.unwrap();
        package
    }

    /// Waits until something is so.
    async fn until(&self, what: &str, so: impl Fn(&Recording) -> bool) {
        eventually(what, async || so(&self.processes)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_costs_no_request() {
    let scene = Scene::new(WorkerOptions::default());
    let package = scene.model("loops", 64 * MIB).await;
    for _ in 0..3 {
        let runs = join_all((0..8).map(|_| scene.executor.run_to_end(execution(&package, 200_000, LONG))));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            kill_process(*scene.processes.started().last().unwrap(), Signal::KILL).unwrap();
        };
        let (runs, ()) = tokio::join!(runs, kill);
        for run in runs {
            run.unwrap();
        }
        // Also when all had ended by then.
        adds(&scene.executor, &package).await.unwrap();
    }
    assert!(scene.processes.started().len() > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kills_its_worker_fails_alone() {
    let scene = Scene::new(WorkerOptions::default());
    let package = scene.model("loops", 64 * MIB).await;
    let (executor, endless) = (scene.executor.clone(), execution(&package, ENDLESS, LONG));
    let poison = tokio::spawn(async move { executor.run_to_end(endless).await });
    let beside = join_all((0..4).map(|_| scene.executor.run_to_end(execution(&package, 200_000, LONG))));
    let kill = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        kill_process(scene.processes.started()[0], Signal::KILL).unwrap();
    };
    let (beside, ()) = tokio::join!(beside, kill);
    assert!(beside.iter().all(Result::is_ok), "{beside:?}");
    // Whatever still runs, runs the endless one. It may have got there only after the first kill.
    let killed = Mutex::new(HashSet::new());
    scene
        .until("the endless one fails", |processes| {
            let alive = processes.started().into_iter().filter(|process| is_alive(*process));
            for process in alive.filter(|process| killed.lock().unwrap().insert(*process)) {
                let _ = kill_process(process, Signal::KILL);
            }
            poison.is_finished()
        })
        .await;
    let poison = poison.await.unwrap();
    assert!(matches!(poison, Err(ExecutorError::Worker(_))), "{poison:?}");
    adds(&scene.executor, &package).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_out_of_time_takes_nobody_along() {
    let scene = Scene::new(WorkerOptions::default());
    let package = scene.model("loops", 64 * MIB).await;
    let limit = Duration::from_secs(5);
    let endless = scene.executor.run_to_end(execution(&package, ENDLESS, limit));
    // In the same worker, one after the other until the endless one is out of time: the last was still there then.
    let out_of_time = AtomicBool::new(false);
    let endless = async {
        let ended = endless.await;
        out_of_time.store(true, Ordering::Relaxed);
        ended
    };
    let beside = async {
        while !out_of_time.load(Ordering::Relaxed) {
            scene.executor.run_to_end(execution(&package, 200_000, LONG)).await.unwrap();
        }
    };
    let (endless, ()) = tokio::join!(endless, beside);
    assert_eq!(endless, Err(ExecutorError::TimedOut(limit)));
    adds(&scene.executor, &package).await.unwrap();
    assert_eq!(scene.processes.started().len(), 2, "what could not be stopped has lost its worker");
    scene.until("the stuck worker ends", |processes| processes.alive() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_frees_what_it_used() {
    let scene = Scene::new(WorkerOptions::default());
    let package = scene.model("loops", 64 * MIB).await;
    let worker = scene.processes.started()[0];
    let before = ticks(worker);
    let endless = scene.executor.run(execution(&package, ENDLESS, LONG)).await.unwrap();
    // What is cancelled before it begins ends at once, and its worker lives on.
    scene.until("the run begins", |_| ticks(worker) > before + 10).await;
    drop(endless);
    // In the same worker, or in another one where the first has ended before this comes to its turn.
    adds(&scene.executor, &package).await.unwrap();
    scene.until("a run that nobody waits for ends, with its worker", |_| !is_alive(worker)).await;
    adds(&scene.executor, &package).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_that_ends_by_itself_costs_no_worker() {
    let cancel_grace = Duration::from_secs(5);
    let scene = Scene::new(WorkerOptions { cancel_grace, ..WorkerOptions::default() });
    let package = scene.model("loops", 64 * MIB).await;
    drop(scene.executor.run(execution(&package, SHORT, LONG)).await.unwrap());
    tokio::time::sleep(cancel_grace + Duration::from_millis(200)).await;
    adds(&scene.executor, &package).await.unwrap();
    assert_eq!(scene.processes.started().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn spares_take_over() {
    let scene = Scene::new(WorkerOptions { spares: 1, ..WorkerOptions::default() });
    let package = scene.model("loops", 64 * MIB).await;
    scene.until("a spare starts", |processes| processes.alive() == 2).await;
    // It has to have loaded the model, too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    kill_process(scene.processes.started()[0], Signal::KILL).unwrap();
    adds(&scene.executor, &package).await.unwrap();
    scene.until("another spare starts", |processes| processes.started().len() >= 3 && processes.alive() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_workers_end_and_come_back() {
    let scene = Scene::new(WorkerOptions { idle: Duration::from_millis(300), ..WorkerOptions::default() });
    let package = scene.model("loops", 64 * MIB).await;
    scene.until("an idle worker ends", |processes| processes.alive() == 0).await;
    adds(&scene.executor, &package).await.unwrap();
    // A worker that is busy for longer is not idle.
    scene.until("it ends again", |processes| processes.alive() == 0).await;
    let before = scene.processes.started().len();
    scene.executor.run_to_end(execution(&package, 2_000_000, LONG)).await.unwrap();
    assert_eq!(scene.processes.started().len(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_share_the_memory() {
    let scene = Scene::new(WorkerOptions { memory_bytes: 256 * MIB, ..WorkerOptions::default() });
    let [a, b] = [scene.model("a", 128 * MIB).await, scene.model("b", 128 * MIB).await];
    adds(&scene.executor, &a).await.unwrap();
    assert_eq!(scene.processes.alive(), 2);
    let c = scene.model("c", 128 * MIB).await;
    scene.until("the one used least recently makes room", |processes| processes.alive() == 2).await;
    let third = scene.processes.started().len();
    adds(&scene.executor, &a).await.unwrap();
    adds(&scene.executor, &c).await.unwrap();
    assert_eq!(scene.processes.started().len(), third, "a and c were kept");
    adds(&scene.executor, &b).await.unwrap();
    assert_eq!(scene.processes.started().len(), third + 1, "b came back");

    // While all are busy, whoever needs memory waits for it.
    let busy = join_all([&b, &c].map(|package| scene.executor.run_to_end(execution(package, 1_000_000, LONG))));
    let (busy, waited) = tokio::join!(busy, adds(&scene.executor, &a));
    assert!(busy.iter().all(Result::is_ok));
    waited.unwrap();

    let large = loops(scene.directory.path(), "large", 512 * MIB);
    let refused = scene.executor.load(&large).await.unwrap_err();
    assert!(refused.to_string().contains("limits.memory_bytes"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_models_and_requests_at_once() {
    let scene = Scene::new(WorkerOptions { memory_bytes: 192 * MIB, ..WorkerOptions::default() });
    let mut packages = Vec::new();
    for name in ["a", "b", "c", "d"] {
        packages.push(scene.model(name, 64 * MIB).await);
    }
    let runs = (0..64).map(|index| adds(&scene.executor, &packages[index % packages.len()]));
    for run in join_all(runs).await {
        run.unwrap();
    }
    assert!(scene.processes.alive() <= 4, "the memory was kept to");
}
