//! Models in Python that fail, hang, or look around.

use super::*;

/// What a hostile or broken model does, and how the request fails.
pub(crate) const TROUBLE: &[(&str, &str)] = &[
    ("raise ValueError('no such thing')", "the model failed: ValueError: no such thing (model.py, line 6, in infer)"),
    ("class InvalidInput(Exception): pass\nraise InvalidInput('say: is rude')", "input say: is rude"),
    ("sys.exit(0)", "the model failed: SystemExit: 0"),
    ("os._exit(0)", "the model failed: its process ended without an answer, with exit status 0"),
    ("import ctypes\nctypes.string_at(0)", "the model failed: its process ended without an answer, by signal 11 (SIGSEGV)"),
    ("os.abort()", "the model failed: its process ended without an answer, by signal 6 (SIGABRT)"),
    ("os.closerange(3, 256)\ntime.sleep(1000)", "the model failed: its process ended without an answer, by signal 9 (SIGKILL)"),
    ("def down(n): return down(n + 1)\ndown(0)", "the model failed: RecursionError"),
    ("x = []\nwhile True: x.append(bytearray(1 << 24))", "the model failed: MemoryError"),
    (
        "import threading\nwhile True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        "the model failed: RuntimeError",
    ),
    // A pickle that runs a program: it is not run.
    (
        "import pickle\nreturn {'said': pickle.loads(b'cposix\\nsystem\\n(V/bin/true\\ntR.')}",
        "output `said`: the manifest says a text: give a str",
    ),
    ("while True: os.fork()", "the model failed: PermissionError"),
    ("os.posix_spawn('/bin/true', ['/bin/true'], {})", "the model failed: PermissionError"),
    ("os.kill(os.getppid(), 9)", "the model failed: PermissionError"),
    ("os.killpg(0, 9)", "the model failed: PermissionError"),
    ("import socket\nsocket.create_connection(('127.0.0.1', 1))", "the model failed: PermissionError"),
    ("open('../evil', 'w')", "the model failed: PermissionError"),
    // Into the neighbour: signals that files send, its processors, and memory that nobody counts.
    ("import fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())", "the model failed: PermissionError"),
    ("import fcntl\nfcntl.fcntl(0, 10, 9)", "the model failed: PermissionError"),
    ("import fcntl\nfcntl.fcntl(0, fcntl.F_SETFL, 0o20000)", "the model failed: PermissionError"),
    ("import fcntl\nfcntl.ioctl(0, 0x5452, b'\\1\\0\\0\\0')", "the model failed: PermissionError"),
    ("import fcntl\nfcntl.fcntl(os.open('x', os.O_CREAT | os.O_RDWR), 1024, 1)", "the model failed: PermissionError"),
    ("import fcntl\nfcntl.fcntl(os.pipe()[1], 1031, 1 << 20)", "the model failed: PermissionError"),
    ("os.open('x', os.O_CREAT | os.O_RDWR | 0o20000)", "the model failed: PermissionError"),
    ("os.sched_setaffinity(os.getppid(), {0})", "the model failed: PermissionError"),
    (
        "import socket\nsocket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)",
        "the model failed: PermissionError",
    ),
    ("open('/etc/passwd').read()", "the model failed: FileNotFoundError"),
    ("file = open('much', 'wb')\nwhile True: file.write(bytes(1 << 20))", "the model failed: OSError: [Errno 27]"),
    ("return {'said': 'x' * (17 << 20)}", "output has more than 8388608 bytes in one part"),
    ("return None", "output is a NoneType"),
    ("return {}", "output `said`: the model did not give this output"),
    ("return {'said': 1}", "output `said`: the manifest says a text: give a str"),
    ("return {'said': 'x', 'more': 'y'}", "output `more`: the manifest does not list this output"),
    ("return {'said': '\\ud800'}", "output `said`: "),
    (
        "print('x' * 100_000)\nos.write(1, b'y' * 100_000)\nos.write(2, b'z' * 100_000)\nraise KeyError",
        "the model failed: KeyError",
    ),
    (
        "for fd in range(3, 64):\n    try: os.write(fd, b'\\xff' * 64)\n    except OSError: pass\ntime.sleep(1000)",
        "the model failed: its process says",
    ),
];

/// The body of an `infer` that makes the trouble whose number it is told, and otherwise answers.
pub(crate) fn troubles() -> String {
    let cases = TROUBLE.iter().enumerate().fold(String::new(), |cases, (index, (body, _))| {
        cases + &format!("if say == '{index}':\n    def trouble():\n{}    return trouble()\n", indented(body, "        "))
    });
    format!("{cases}return {{'said': say + '!'}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_the_requests_own() {
    let python = python().await;
    let executor = executor(&python);
    let package = talker(&troubles());
    executor.load(&package.package).await.unwrap();
    let beside = say(&package, "beside", LONG);
    for (index, (body, expected)) in TROUBLE.iter().enumerate() {
        let index = index.to_string();
        let (failed, good) = tokio::join!(said(&executor, &package, &index), executor.run_to_end(beside.clone()));
        let error = failed.expect_err(body).to_string();
        let expected = expected.replace(" (model.py, line 6, in infer)", "");
        assert!(error.starts_with(&expected), "{body}: {error}");
        assert_eq!(good.unwrap().0.text("said"), Some("beside!"), "{body}");
        assert_eq!(said(&executor, &package, "after").await.as_deref(), Ok("after!"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_runs_end_and_leave_nothing() {
    let executor = executor(&python().await);
    let package = talker(
        "if say == 'loop':
    while True: pass
if say == 'sleep':
    time.sleep(1000)
if say == 'files':
    for n in range(1 << 62): open(str(n), 'w').close()
while say == 'stream':
    yield {'said': 'and '}
yield {'said': say}",
    );
    executor.load(&package.package).await.unwrap();
    let limit = Duration::from_secs(1);
    for text in ["loop", "sleep", "files", "stream"] {
        let started = Instant::now();
        let failed = executor.run_to_end(say(&package, text, limit)).await;
        let ended = match &failed {
            Err(ExecutorError::TimedOut(_) | ExecutorError::InvalidOutput(_)) => true,
            // A fast machine has made all the files that there may be before the time is over.
            Err(ExecutorError::Failed(reason)) => text == "files" && reason.contains("No space left"),
            _ => false,
        };
        assert!(ended, "{text}: {failed:?}");
        assert!(started.elapsed() < TIMEOUT, "{text}: {:?}", started.elapsed());
        assert_eq!(said(&executor, &package, "after").await.as_deref(), Ok("after"), "{text}");
    }
}

/// Whatever modes its files have.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_leaves_is_gone_before_the_next() {
    let executor = executor(&python().await);
    let package = talker(
        "there = os.statvfs('.')
if say == 'leave':
    os.makedirs('a/b/c')
    open('a/b/c/secret', 'w').write(say)
    for path in ['a/b/c/secret', 'a/b/c', 'a/b', 'a', '.']: os.chmod(path, 0)
return {'said': str(there.f_files - there.f_ffree)}",
    );
    executor.load(&package.package).await.unwrap();
    let before = said(&executor, &package, "look").await.unwrap();
    for _ in 0..3 {
        said(&executor, &package, "leave").await.unwrap();
    }
    // One fork waits in reserve, with a directory of its own, or does not yet.
    let used = |said: &str| said.parse::<i64>().unwrap();
    let after = said(&executor, &package, "look").await.unwrap();
    assert!((used(&after) - used(&before)).abs() <= 2, "{before} and then {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_run_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let executor = WorkerExecutor::new(vec![python().await.program()], Arc::new(NoSandbox), WorkerOptions::default());
    // Which process it is can be seen from outside, so that its end can be, too.
    let package = talker("yield {'said': str(os.getpid())}\ntime.sleep(1000)\n");
    executor.load(&package.package).await.unwrap();
    let mut outputs = executor.run(say(&package, "", LONG)).await.unwrap();
    let first = outputs.next().await.unwrap().unwrap();
    let process = Path::new("/proc").join(first.values.text("said").unwrap());
    assert!(process.exists());
    drop(outputs);
    eventually("it ends", async || !process.exists()).await;
    drop(directory);
}

/// What a module opens or duplicates while it is loaded leads from no request to another, and none to the node.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_opened_in_load_is_no_way_out_of_a_request() {
    let executor = executor(&python().await);
    let module = "import os, stat
def load(model_dir):
    global ways, weights
    ways = list(os.pipe()) + [os.open('kept', os.O_RDWR | os.O_CREAT)]
    # The worker's connection to its node, among others.
    ways += [os.dup(fd) for fd in range(3, 32) if is_pipe(fd)]
    weights = os.open(model_dir + '/model.py', os.O_RDONLY)
def is_pipe(fd):
    try: return stat.S_ISFIFO(os.fstat(fd).st_mode) or stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError: return False
def works(fd):
    try: return bool(os.write(fd, b'a secret'))
    except OSError: return False
def infer(inputs):
    assert os.pread(weights, 6, 0) == b'import'
    return {'said': f'{len(ways) > 3} {any(works(fd) for fd in ways)}'}
";
    let package = package(module, &json!([{ "type": "text", "name": "say" }]), &json!([{ "type": "text", "name": "said" }]));
    executor.load(&package.package).await.unwrap();
    for _ in 0..3 {
        assert_eq!(said(&executor, &package, "x").await.as_deref(), Ok("True False"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_that_cannot_be_loaded_are_refused() {
    let executor = executor(&python().await);
    let cases = [
        ("def infer(inputs): pass", "has no function `load`"),
        ("def load(model_dir): pass", "has no function `infer`"),
        ("load = infer = 1", "has no function `infer`"),
        ("def load(", "model.py: SyntaxError"),
        ("import nothing_like_this", "model.py: ModuleNotFoundError: No module named 'nothing_like_this' (model.py, line 1"),
        (
            "def load(model_dir): raise OSError('no weights')\ndef infer(inputs): pass",
            "OSError: no weights (model.py, line 1, in load)",
        ),
        ("def load(model_dir): open(model_dir + '/more', 'w')\ndef infer(inputs): pass", "Read-only file system"),
        (
            "import threading, time\ndef load(model_dir): threading.Thread(target=time.sleep, args=(1000,)).start()\ndef infer(inputs): pass",
            "load started 1 threads",
        ),
    ];
    for (module, expected) in cases {
        let package = package(module, &json!([{ "type": "text", "name": "x" }]), &json!([{ "type": "text", "name": "y" }]));
        let refused = executor.load(&package.package).await;
        assert!(
            matches!(&refused, Err(ExecutorError::InvalidModel(problem)) if problem.contains(expected)),
            "{module}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn what_is_missing_is_said_with_its_remedy() {
    let missing = Python::find(Some(Path::new("/nonexistent/python")), Some(&worker())).await.unwrap_err();
    assert!(matches!(missing, PythonError::Interpreter { .. }), "{missing}");
    assert!(missing.to_string().contains("NCN_PYTHON"), "{missing}");
    let other = Python::find(Some(Path::new("/bin/true")), Some(&worker())).await.unwrap_err();
    assert!(other.to_string().contains("does not tell what it is"), "{other}");
    let nowhere = Python::find(None, Some(Path::new("/nonexistent/worker"))).await.unwrap_err();
    assert!(nowhere.to_string().contains("cargo build --release -p ncn-python"), "{nowhere}");
}

/// Until the first part of an answer.
async fn first_byte(executor: &WorkerExecutor, execution: Execution) -> Duration {
    let started = Instant::now();
    let mut outputs = executor.run(execution).await.unwrap();
    outputs.next().await.unwrap().unwrap();
    let took = started.elapsed();
    // To its end: a dropped run is something else.
    while let Some(part) = outputs.next().await {
        part.unwrap();
    }
    took
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// What a warm worker saves: `cargo xtask bench compute`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn bench_first_bytes() {
    const ROUNDS: usize = 30;
    const PAUSE: Duration = Duration::from_millis(20);
    let python = python().await;
    println!("{python}\nfirst byte, confined, p50 of {ROUNDS} rounds that take turns\n");
    println!("| package | cold: start, import, load, run | warm, idle before | warm, back to back | cold / warm |");
    println!("| --- | --- | --- | --- | --- |");
    for name in ["digits-numpy", "digits-onnxruntime"] {
        let directory = tempfile::tempdir().unwrap();
        let package = example(name, directory.path());
        let execution = Execution {
            model_digest: package.model.digest(),
            inputs: [("image", Value::png(fs::read(digit(7)).unwrap()))].into(),
            parameters: "{}".into(),
            time_limit: LONG,
        };
        let warm = executor(&python);
        warm.load(&package).await.unwrap();
        let (mut cold, mut idle, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let fresh = executor(&python);
            let started = Instant::now();
            fresh.load(&package).await.unwrap();
            first_byte(&fresh, execution.clone()).await;
            cold.push(started.elapsed());
            drop(fresh);
            tokio::time::sleep(PAUSE).await;
            idle.push(first_byte(&warm, execution.clone()).await);
            busy.push(first_byte(&warm, execution.clone()).await);
        }
        let (cold, idle, busy) = (median(cold), median(idle), median(busy));
        let ratio = cold.as_secs_f64() / idle.as_secs_f64();
        println!("| {name} | {cold:.1?} | {idle:.2?} | {busy:.2?} | {ratio:.0} |");
        assert!(ratio >= 50.0, "{name}: {ratio}");
    }
}
