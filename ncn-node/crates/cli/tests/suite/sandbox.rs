//! The sandboxes, with real processes.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use ncn_confine::Report;
use ncn_core::{
    Confinement, Policy, Sandbox, SandboxCommand, SandboxError,
    conformance::{self, EscapeFixture, Escapes, SandboxFixture, Violation},
};
use ncn_executor::{
    WorkerExecutor, WorkerOptions, WorkerProgram,
    sandbox::{LandlockSandbox, NamespaceSandbox, NoSandbox, SandboxMode, open},
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::{
    conformance::digits,
    scene::{escape, helper, ncn},
    wait::TIMEOUT,
};

fn full() -> NamespaceSandbox {
    NamespaceSandbox::new(helper()).unwrap()
}

fn reduced() -> LandlockSandbox {
    LandlockSandbox::new(ncn()).unwrap()
}

fn shell(directory: &Path) -> SandboxFixture {
    SandboxFixture { shell: "/bin/sh".into(), work_directory: directory.canonicalize().unwrap() }
}

#[test]
fn the_full_sandbox() {
    let directory = tempfile::tempdir().unwrap();
    conformance::sandbox(&full(), &shell(directory.path())).unwrap();
}

#[test]
fn the_reduced_sandbox() {
    let directory = tempfile::tempdir().unwrap();
    conformance::sandbox(&reduced(), &shell(directory.path())).unwrap();
}

#[test]
fn the_unconfined_sandbox() {
    let directory = tempfile::tempdir().unwrap();
    conformance::sandbox(&NoSandbox, &shell(directory.path())).unwrap();
}

#[tokio::test]
async fn onnx_in_confined_workers() {
    let program = WorkerProgram::new(ncn());
    let sandboxes: [Arc<dyn Sandbox>; 2] = [Arc::new(full()), Arc::new(reduced())];
    for sandbox in sandboxes {
        let directory = tempfile::tempdir().unwrap();
        let level = sandbox.confinement();
        let options = WorkerOptions { at_least: level, ..WorkerOptions::default() };
        let executor = WorkerExecutor::new(vec![program.clone()], sandbox, options);
        conformance::executor(&executor, &digits(directory.path())).await.unwrap();
    }
}

#[test]
fn a_program_that_cannot_confine_makes_no_sandbox() {
    for program in ["/bin/true", "/bin/echo", "/nonexistent"] {
        let refused = LandlockSandbox::new(program);
        assert!(refused.is_err(), "{program}: {refused:?}");
        let refused = NamespaceSandbox::new(program);
        assert!(refused.is_err(), "{program}: {refused:?}");
    }
    let reduced = NamespaceSandbox::new(ncn());
    assert!(matches!(reduced, Err(SandboxError::Unsupported(_))), "{reduced:?}");
}

#[test]
fn modes_open_what_they_say() {
    helper();
    for (mode, level) in [
        (SandboxMode::Strict, Confinement::Full),
        (SandboxMode::Reduced, Confinement::Full),
        (SandboxMode::Permissive, Confinement::Full),
        (SandboxMode::Disabled, Confinement::None),
    ] {
        assert_eq!(open(mode, &ncn()).unwrap().confinement(), level, "{mode}");
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    assert!("Strict".parse::<SandboxMode>().is_err());
}

/// A sandbox that promises what it does not do, or leaks.
enum BrokenSandbox {
    Boasts,
    LeaksEnvironment,
}

impl Sandbox for BrokenSandbox {
    fn confinement(&self) -> Confinement {
        Confinement::None
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        let (mut command, mut policy) = (command.clone(), policy.clone());
        match self {
            Self::Boasts => policy.at_least = Confinement::None,
            Self::LeaksEnvironment => {
                command.environment.insert("HOME".into(), "/root".into());
            }
        }
        NoSandbox.start(&command, &policy)
    }
}

#[test]
fn broken_sandboxes_are_caught() {
    let rule = |broken: BrokenSandbox| {
        let directory = tempfile::tempdir().unwrap();
        conformance::sandbox(&broken, &shell(directory.path())).unwrap_err().rule
    };
    assert_eq!(rule(BrokenSandbox::Boasts), "less confinement than wanted is refused, and only that");
    assert_eq!(rule(BrokenSandbox::LeaksEnvironment), "the environment is the command's and no more");
}

/// NoSandbox, and safely: in a mount namespace of its own, and as nobody when it would be root.
struct Control;

impl Sandbox for Control {
    fn confinement(&self) -> Confinement {
        Confinement::None
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        let program = command.program.display().to_string();
        let root = rustix::process::geteuid().is_root();
        let first: &[&str] = if root {
            &["--mount", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        } else {
            &["--mount", "--user", "--map-current-user"]
        };
        let arguments = first.iter().map(ToString::to_string).chain([program]).chain(command.arguments.clone()).collect();
        let environment = [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into();
        NoSandbox.start(&SandboxCommand { program: "/usr/bin/unshare".into(), arguments, environment }, policy)
    }
}

/// Tries all ways out, by a program that every user may run.
fn escapes(sandbox: &dyn Sandbox) -> Result<Escapes, Violation> {
    // Not where this crate is, which other users may not enter.
    let directory = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o777)).tempdir_in("/tmp").unwrap();
    let program = directory.path().join("escape");
    fs::copy(escape(), &program).unwrap();
    conformance::escapes(sandbox, &EscapeFixture { program, directory: directory.path().into(), control: &Control })
}

#[test]
fn nothing_escapes_from_the_full_sandbox() {
    let found = escapes(&full()).unwrap();
    println!("{} ways out are closed: {:?}", found.closed.len(), found.closed);
    println!("{} are not open here at all: {:?}", found.not_applicable.len(), found.not_applicable);
}

#[test]
fn nothing_escapes_from_the_reduced_sandbox() {
    let found = escapes(&reduced()).unwrap();
    println!("{} ways out are closed; not applicable: {:?}", found.closed.len(), found.not_applicable);
}

/// Calls itself full, and is what it holds.
struct Boasting<S>(S);

impl<S: Sandbox> Sandbox for Boasting<S> {
    fn confinement(&self) -> Confinement {
        Confinement::Full
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        self.0.start(command, policy)
    }
}

#[test]
fn a_boasting_sandbox_is_escaped_from() {
    let violation = escapes(&Boasting(Control)).unwrap_err();
    assert_eq!(violation.rule, "read a file");
    let violation = escapes(&Boasting(reduced())).unwrap_err();
    assert!(["map a dropped file to run", "see mounts"].contains(&violation.rule), "{violation:?}");
}

/// All processes that this one has started, and they in turn, by number and start.
fn descendants(of: u32) -> Vec<(u32, String)> {
    let mut children: BTreeMap<u32, Vec<(u32, String)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some((parent, start)) = stat(id) {
            children.entry(parent).or_default().push((id, start));
        }
    }
    let (mut all, mut next) = (Vec::new(), vec![of]);
    while let Some(id) = next.pop() {
        for child in children.remove(&id).unwrap_or_default() {
            next.push(child.0);
            all.push(child);
        }
    }
    all
}

/// A process's parent and when it started; `None` when it is gone, or only waits to be asked how it ended.
fn stat(id: u32) -> Option<(u32, String)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then(|| (fields[1].parse().unwrap(), fields[19].to_owned()))
}

/// How long it takes until all of them are gone.
fn gone(processes: &[(u32, String)]) -> Duration {
    let since = Instant::now();
    while let Some(left) = processes.iter().find(|(id, start)| stat(*id).is_some_and(|(_, now)| now == *start)) {
        assert!(since.elapsed() < TIMEOUT, "{left:?} of {processes:?} is left");
        std::thread::yield_now();
    }
    since.elapsed()
}

/// A command without anything.
fn bare() -> SandboxCommand {
    SandboxCommand { program: "/bin/sh".into(), arguments: Vec::new(), environment: BTreeMap::new() }
}

/// A confined shell with children that do all to live on: another session, no signals, no open files.
fn stubborn(directory: &Path) -> Child {
    let script = "trap '' TERM HUP INT
        (setsid sh -c 'trap \"\" TERM HUP INT; sleep 1000' </dev/null >/dev/null 2>&1 &)
        sleep 1000 & echo ready; wait";
    let command = SandboxCommand {
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        environment: [("PATH".into(), "/usr/bin:/bin".into())].into(),
    };
    let mut child = full().start(&command, &Policy::new(directory)).unwrap();
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ready\n");
    child
}

#[test]
fn killing_the_helper_or_its_group_leaves_no_orphan() {
    let directory = tempfile::tempdir().unwrap();
    let kills: [fn(Pid) -> rustix::io::Result<()>; 3] =
        [|id| kill_process(id, Signal::KILL), |id| kill_process_group(id, Signal::KILL), |id| kill_process(id, Signal::TERM)];
    for kill in kills {
        let mut child = stubborn(directory.path());
        let left = descendants(child.id());
        // The first of the namespace, the shell, and what that has started.
        assert!(left.len() >= 4, "{left:?}");
        kill(Pid::from_child(&child)).unwrap();
        child.wait().unwrap();
        println!("all gone in {:?}", gone(&left));
    }
}

#[test]
fn killing_the_node_leaves_no_orphan() {
    helper();
    let mut node = Command::new(ncn())
        .args(["devnet", "--sandbox", "strict", "--gateway", "127.0.0.1:0", "--registry", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It says where it listens once its workers have loaded the model.
    let mut line = String::new();
    BufReader::new(node.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let left = descendants(node.id());
    assert!(left.len() >= 4, "a worker, with its helper and what that starts: {line} {left:?}");
    node.kill().unwrap();
    node.wait().unwrap();
    println!("all gone in {:?}", gone(&left));
}

#[test]
fn a_helper_whose_node_is_gone_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let helper = Command::new(helper())
        .args(["--parent", "1", "--work"])
        .arg(directory.path())
        .args(["--", "/bin/true"])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(helper.status.code(), Some(126));
    assert!(String::from_utf8_lossy(&helper.stderr).contains("lifeline"), "{helper:?}");
}

/// Prints how long starting a program confined by every layer takes, beside bubblewrap's namespaces alone. Run it with
/// `cargo xtask bench compute`.
#[test]
#[ignore = "measures: cargo xtask bench compute"]
fn bench_sandbox_start() {
    const ROUNDS: usize = 300;
    let directory = tempfile::tempdir().unwrap();
    let sandbox = full();
    let (command, policy) = (SandboxCommand { program: "/bin/true".into(), ..bare() }, Policy::new(directory.path()));
    let timed = |start: &dyn Fn() -> Child| {
        let started = Instant::now();
        assert!(start().wait().unwrap().success());
        started.elapsed()
    };
    let piped = |mut command: Command| command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let ours = || sandbox.start(&command, &policy).unwrap();
    let theirs = || {
        let mut command = Command::new("bwrap");
        command.args(["--ro-bind", "/", "/", "--unshare-all", "/bin/true"]);
        piped(command)
    };
    let plain = || piped(Command::new("/bin/true"));
    let starts: [(&str, &dyn Fn() -> Child); 3] =
        [("confined by every layer", &ours), ("bwrap --unshare-all", &theirs), ("unconfined", &plain)];
    let mut took = starts.map(|_| Vec::new());
    // In turns, so that whatever else the machine does meets them all.
    for _ in 0..ROUNDS {
        for ((_, start), took) in starts.iter().zip(&mut took) {
            took.push(timed(start));
        }
    }
    let median = [0, 1, 2].map(|which| {
        took[which].sort_unstable();
        let at = |percent: usize| took[which][(ROUNDS - 1) * percent / 100].as_secs_f64() * 1_000.0;
        println!("{:<44} p50 {:>7.3} ms   p99 {:>7.3} ms", starts[which].0, at(50), at(99));
        at(50)
    });
    println!("{:.2} times bubblewrap's (goal: at most 1)", median[0] / median[1]);
}

/// Has this thread, and what it starts, believe that the kernel does not know these calls.
fn without(calls: &[i64]) {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, std::env::consts::ARCH.try_into().unwrap()).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// As on kernels before 6.12: every layer that works is used, and what the operator insists on holds.
#[test]
fn kernels_without_landlock_have_all_other_layers() {
    const AGAIN: &str = "NCN_TEST_OF_OLD_KERNELS";
    let opened = |mode| open(mode, &ncn()).map(|sandbox| (sandbox.confinement(), in_force(&*sandbox)));
    match std::env::var(AGAIN).as_deref() {
        Ok("landlock") => {
            without(&[libc::SYS_landlock_create_ruleset]);
            assert!(matches!(opened(SandboxMode::Strict), Err(SandboxError::MissingLayer { layer: "Landlock", .. })));
            for mode in [SandboxMode::Reduced, SandboxMode::Permissive] {
                let (level, inside) = opened(mode).unwrap();
                assert_eq!(level, Confinement::Reduced);
                inside.check_all(&Report::of_this_process().unwrap()).unwrap();
            }
            let demo = Command::new(ncn()).arg("demo").current_dir(tempfile::tempdir().unwrap().path()).output().unwrap();
            let said = String::from_utf8_lossy(&demo.stderr).into_owned() + &String::from_utf8_lossy(&demo.stdout);
            assert!(demo.status.success() && said.contains("reduced") && said.contains("label: 7"), "{said}");
        }
        Ok("namespaces") => {
            without(&[libc::SYS_landlock_create_ruleset, libc::SYS_unshare]);
            assert!(matches!(opened(SandboxMode::Reduced), Err(SandboxError::MissingLayer { .. })));
            let (level, inside) = opened(SandboxMode::Permissive).unwrap();
            assert_eq!(level, Confinement::None);
            inside.check().unwrap();
        }
        _ => {
            helper();
            for lacks in ["landlock", "namespaces"] {
                let mut again = Command::new(std::env::current_exe().unwrap());
                again.args(["--exact", "sandbox::kernels_without_landlock_have_all_other_layers"]).env(AGAIN, lacks);
                let again = again.output().unwrap();
                assert!(again.status.success(), "{lacks}: {}", String::from_utf8_lossy(&again.stdout));
            }
        }
    }
}

/// What a process finds that is started in this sandbox.
fn in_force(sandbox: &dyn Sandbox) -> Report {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = "for n in user pid mnt net ipc uts cgroup; do echo $n $(readlink /proc/self/ns/$n); done; \
                  while read -r name value rest; do case $name in NoNewPrivs:|Seccomp:|CapEff:|CapPrm:|Uid:) echo ${name%:} $value;; esac; done < /proc/self/status";
    let arguments = ["-c".to_owned(), script.to_owned()].to_vec();
    let command = SandboxCommand {
        program: "/bin/sh".into(),
        arguments,
        environment: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
    };
    let child = sandbox.start(&command, &Policy::new(directory.path())).unwrap();
    let output = child.wait_with_output().unwrap();
    std::str::from_utf8(&output.stdout).unwrap().parse().unwrap()
}

/// What keeps a sandbox from being tried may pass; without it models would run unconfined for as long as the node runs.
#[test]
fn a_failure_that_may_pass_takes_no_layer_away() {
    const AGAIN: &str = "NCN_TEST_OF_PASSING_FAILURES";
    if std::env::var_os(AGAIN).is_some() {
        let opened = open(SandboxMode::Permissive, &ncn());
        assert!(matches!(opened, Err(SandboxError::Start { .. })), "{:?}", opened.map(|sandbox| sandbox.confinement()));
        return;
    }
    helper();
    // In a process of its own, in which no temporary directory can be made.
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "sandbox::a_failure_that_may_pass_takes_no_layer_away"]).env(AGAIN, "1").env("TMPDIR", "/nonexistent");
    let again = again.output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
}
