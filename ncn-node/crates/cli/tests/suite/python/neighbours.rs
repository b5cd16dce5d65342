//! What one request, or what a package does while it is loaded, may do to other requests of the same worker: nothing. At every level, and
//! as an ordinary user, too.

use std::{
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Command,
};

use super::*;

/// What an ordinary user is.
const NOBODY: u32 = 65_534;

/// While one request lives, the other looks for it. `theirs` is where the first one said that it is.
const INTO_THE_NEIGHBOUR: &[(&str, &str)] = &[
    ("its directory can be listed", "os.listdir(os.path.dirname(os.getcwd()))"),
    ("its directory can be found", "[path for path, _, _ in os.walk('..') if path != '..'][0]"),
    ("the model's directory can be written", "open(os.path.dirname(os.getcwd()) + '/model/x', 'w')"),
    ("its environment can be read", "open(f'/proc/{os.getppid()}/environ', 'rb').read(1)"),
    ("its memory can be read", "open(f'/proc/{os.getppid()}/mem', 'rb').seek(4096)"),
    ("the worker's files can be read", "os.listdir(f'/proc/{os.getppid()}/fd')[0]"),
    ("the worker can be killed", "os.kill(os.getppid(), 9)"),
    ("everybody can be killed", "os.kill(-1, 9)"),
    ("its limits can be changed", "__import__('resource').prlimit(os.getppid(), 7, (0, 0))"),
    ("its processors can be taken", "os.sched_setaffinity(os.getppid(), {0})"),
    ("its priority can be lowered", "os.setpriority(os.PRIO_USER, os.getuid(), 19)"),
    ("it can be traced", "trace(os.getppid())"),
    ("its death can be missed", "death(0)"),
    ("it can be listed by what load has opened", "os.listdir(parent)"),
    ("its directory can be closed", "changed('../model', lambda path: os.chmod(path, 0))"),
    ("its times can tell something", "changed('../model', lambda path: os.utime(path, ns=(7, 7)))"),
    ("the worker's directory can be closed", "changed('..', lambda path: os.chmod(path, 0))"),
    ("a counter of load's can be read", "os.read(counter, 8)"),
    ("memory of load's can be shared", "shared[0]"),
    ("what runs at a fork may fork", "forked[0]"),
    ("what it has can be shared", "__import__('mmap').mmap(-1, 4096)"),
    ("a semaphore can be shared", "__import__('multiprocessing').Lock()"),
    ("a process can be started", "os.fork()"),
];

/// Says what worked of that which must not.
fn prober() -> Package {
    let attempts = INTO_THE_NEIGHBOUR
        .iter()
        .fold(String::new(), |attempts, (what, attempt)| attempts + &format!("        ({what:?}, lambda: {attempt}),\n"));
    let module = format!(
        "import ctypes, mmap, os, time
def load(model_dir):
    # Is there for every request, and may be read.
    open('kept', 'w').write('kept')
    global kept, parent, counter, shared, forked
    kept = os.path.abspath('kept')
    parent = os.open('..', os.O_RDONLY)
    counter = os.eventfd(7) if hasattr(os, 'eventfd') else -1
    shared, forked = [], []
    try: shared.append(mmap.mmap(os.open('kept', os.O_RDWR), 4))
    except OSError: pass
    os.register_at_fork(before=hook, after_in_child=hook)
    for _ in range(150): os.open('kept', os.O_RDONLY)
    import signal
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def hook():
    try: forked.append(os.posix_spawn('/bin/true', ['/bin/true'], {{}}))
    except OSError: pass
def changed(path, change):
    before = os.stat(path)
    change(path)
    after = os.stat(path)
    if (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns): raise OSError('refused')
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0: raise OSError(ctypes.get_errno(), 'refused')
def trace(process):
    if libc.ptrace(16, process, 0, 0) < 0: raise OSError(ctypes.get_errno(), 'refused')
def death(signal):
    if libc.prctl(1, signal, 0, 0, 0) < 0: raise OSError(ctypes.get_errno(), 'refused')
def infer(inputs):
    assert open(kept).read() == 'kept'
    open('secret', 'w').write('mine')
    if inputs['say'] == 'wait':
        time.sleep(3)
        return {{'said': open('secret').read()}}
    worked = []
    for name, attempt in [
{attempts}    ]:
        try: attempt()
        except Exception: continue
        worked.append(name)
    return {{'said': ', '.join(worked)}}
"
    );
    package(&module, &json!([{ "type": "text", "name": "say" }]), &json!([{ "type": "text", "name": "said" }]))
}

/// What `load` does that would outlast it, and what is said of it.
const LEFT_IN_LOAD: &[(&str, &str)] = &[
    ("os.fork() or time.sleep(1000)", "load has started a process"),
    ("subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])", "load has started a process"),
    // One that is nobody's child any more, and in a session of its own.
    ("os.fork() or (os.setsid(), os.fork() and os._exit(0), time.sleep(1000)); os.wait()", "load has started a process"),
    ("os._exit(0)", "ended while it was loaded"),
];

/// What a package leaves in its process is not in the worker, which sees the requests.
const HOOKS: &str = "import os, signal
seen = []
def hook():
    try: seen.extend(os.listdir('..'))
    except OSError: pass
def load(model_dir):
    os.register_at_fork(before=hook, after_in_parent=hook)
    signal.signal(signal.SIGALRM, lambda *_: hook())
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    import subprocess, sys
    assert subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True).stdout.strip() == b'42'
def infer(inputs):
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {'said': ' '.join(name for name in seen if name != 'model')}
";

/// A Python that every user can start. It needs no packages.
async fn plain_python() -> Python {
    let installed = Path::new("/usr/bin/python3");
    let interpreter = installed.exists().then_some(installed);
    Python::find(interpreter, Some(&worker())).await.unwrap()
}

fn sandboxes() -> Vec<Arc<dyn Sandbox>> {
    vec![Arc::new(NamespaceSandbox::new(helper()).unwrap()), Arc::new(LandlockSandbox::new(ncn()).unwrap())]
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_keep_to_themselves() {
    let python = plain_python().await;
    for sandbox in sandboxes() {
        let level = sandbox.confinement();
        let executor = executor_in(&python, sandbox);
        let package = prober();
        executor.load(&package.package).await.unwrap();
        let beside = executor.run_to_end(say(&package, "wait", LONG));
        let probing = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            said(&executor, &package, "probe").await
        };
        let (beside, worked) = tokio::join!(beside, probing);
        assert_eq!(beside.unwrap().0.text("said"), Some("mine"), "{level:?}");
        let worked = worked.unwrap();
        assert_eq!(worked, "", "{level:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlasts_the_load_of_a_package() {
    let python = plain_python().await;
    for sandbox in sandboxes() {
        let level = sandbox.confinement();
        let executor = executor_in(&python, sandbox);
        for (body, expected) in LEFT_IN_LOAD {
            let module = format!("import os, subprocess, sys, time\ndef load(model_dir):\n    {body}\ndef infer(inputs): pass");
            let package = package(&module, &json!([{ "type": "text", "name": "x" }]), &json!([{ "type": "text", "name": "y" }]));
            let refused = executor.load(&package.package).await.unwrap_err().to_string();
            assert!(refused.contains(expected), "{level:?} {body}: {refused}");
        }
        let package = package(HOOKS, &json!([{ "type": "text", "name": "say" }]), &json!([{ "type": "text", "name": "said" }]));
        executor.load(&package.package).await.unwrap();
        for _ in 0..3 {
            assert_eq!(said(&executor, &package, "x").await.as_deref(), Ok(""), "{level:?}");
        }
    }
}

/// Deeper than there are descriptors, and than a path can say.
#[tokio::test(flavor = "multi_thread")]
async fn deep_directories_cost_nobody_anything() {
    let python = plain_python().await;
    for sandbox in sandboxes() {
        let level = sandbox.confinement();
        let executor = executor_in(&python, sandbox);
        let package = talker(
            "if say == 'deep':
    for _ in range(3000):
        os.mkdir('d')
        os.chdir('d')
return {'said': str(os.getppid())}",
        );
        executor.load(&package.package).await.unwrap();
        let worker = said(&executor, &package, "x").await.unwrap();
        said(&executor, &package, "deep").await.unwrap();
        for _ in 0..3 {
            assert_eq!(said(&executor, &package, "x").await.as_deref(), Ok(&*worker), "{level:?}");
        }
    }
}

/// The same as a user who is not root: this test runs the two above again.
#[test]
fn it_is_the_same_for_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    helper();
    // A checkout in a directory that is closed to others, such as root's own, leaves nothing to run.
    let is_open = |path: &Path| fs::metadata(path).is_ok_and(|there| there.permissions().mode() & 0o001 != 0);
    let program = env::current_exe().unwrap();
    if let Some(closed) = program.ancestors().chain(Path::new("/usr/bin/python3").ancestors()).find(|path| !is_open(path)) {
        eprintln!("left out: other users cannot run what is in {}", closed.display());
        return;
    }
    let home = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    for test in ["requests_keep_to_themselves", "nothing_outlasts_the_load_of_a_package"] {
        let mut again = Command::new(&program);
        again.args(["--exact", &format!("python::neighbours::{test}")]).uid(NOBODY).gid(NOBODY);
        let again = again.env("NCN_TESTS_ARE_BUILT", "1").env("TMPDIR", home.path()).env("HOME", home.path()).output().unwrap();
        let said = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success() && said.contains("1 passed"), "{test}: {said}{}", String::from_utf8_lossy(&again.stderr));
    }
}
