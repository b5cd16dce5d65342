use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    path::PathBuf,
    process::Child,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::Violation;
use crate::{Confinement, Policy, ResourceLimits, Sandbox, SandboxCommand};

/// How many ways out must have been tried, and be closed, at [`Confinement::Full`].
const ENOUGH: usize = 40;
/// How long a probe may take; some wait for seconds, and the machine may be slow and busy.
const TIMEOUT: Duration = Duration::from_mins(2);
/// How soon everything must be gone when its end is wanted. What escapes lives much longer.
const SOON: Duration = Duration::from_secs(10);

/// Ways out that a reduced sandbox closes too.
const REDUCED: &[&str] = &[
    "read a file",
    "write a file",
    "truncate a file",
    "create a file",
    "delete a file",
    "rename a file",
    "link a file in",
    "list a directory",
    "follow a symbolic link",
    "climb out of the work directory",
    "/proc/self/root",
    "/proc/self/cwd",
    "/proc/self/fd",
    "read accounts",
    "write to /proc/sys",
    "list devices",
    "open another device",
    "make a device",
    "make a socket file",
    "make a program that runs as its owner",
    "run a dropped file",
    "run a file in memory",
    "signal a process",
    "signal the parent",
    "trace a process",
    "trace the parent",
    "read a process's memory",
    "take a process's file",
    "hold a process",
    "read a process's environment",
    "read the parent's environment",
    "enter a process's root",
    "enter the parent's root",
    "see a process's files",
    "see processes",
    "slow a process down",
    "limit a process",
    "gain privileges by running a program",
    "become a user",
    "dump core",
    "connect by TCP",
    "send by UDP",
    "connect to a socket file",
    "connect to an abstract socket",
    "AF_INET",
    "AF_INET6",
    "AF_UNIX",
    "AF_NETLINK",
    "AF_PACKET",
    "AF_VSOCK",
    "AF_ALG",
    "unshare users",
    "unshare mounts",
    "clone into namespaces",
    "clone3 into namespaces",
    "enter namespaces",
    "mount",
    "mount by the new calls",
    "copy mounts",
    "unmount",
    "change the root",
    "swap the root",
    "name a file by handle",
    "open a file by handle",
    "io_uring",
    "aio",
    "keys",
    "keyctl",
    "bpf",
    "userfaultfd",
    "perf events",
    "personality",
    "fanotify",
    "inotify",
    "shared memory",
    "semaphores",
    "message queues",
    "secret memory",
    "the clock",
    "segments",
    "compare processes",
    "write back all files",
    "shared memory without a file",
    "memory bomb",
    "processor bomb",
    "one large file",
    "open files",
];

/// Ways out that only a full sandbox closes.
const FULL: &[&str] = &[
    "map a dropped file to run",
    "see mounts",
    "the host's name",
    "fork bomb",
    "large files",
    "many files",
    "outlive the program",
    "outlive the deadline",
];

/// What the suite of escapes needs.
pub struct EscapeFixture<'a> {
    /// The program that tries them: the example `escape` of the crate `ncn-confine`, where every user may read and execute it.
    pub program: PathBuf,
    /// An empty directory that every user may enter and write.
    pub directory: PathBuf,
    /// Starts processes unconfined, and safely: in a mount namespace of their own, as an unprivileged user. Each way out is tried there
    /// first: one that is closed there already proves nothing.
    pub control: &'a dyn Sandbox,
}

/// What the suite of escapes has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Escapes {
    /// The ways out that are open unconfined and closed by the sandbox.
    pub closed: Vec<&'static str>,
    /// Those that are closed on this machine already, and why: nothing is known of them.
    pub not_applicable: Vec<(&'static str, String)>,
}

/// Tries ways out of a sandbox, each unconfined first. What its level promises to close must be closed; at [`Confinement::Full`], at
/// least 40 of them must have been open unconfined. Takes a minute, most of it waiting.
pub fn escapes(sandbox: &dyn Sandbox, fixture: &EscapeFixture<'_>) -> Result<Escapes, Violation> {
    let level = sandbox.confinement();
    let reduced: &[&str] = if level >= Confinement::Reduced { REDUCED } else { &[] };
    let full: &[&str] = if level >= Confinement::Full { FULL } else { &[] };
    let outside = Outside::new(fixture)?;
    let mut found = Escapes::default();
    for probe in reduced.iter().chain(full).copied() {
        match outside.attempt(fixture.control, probe, true)? {
            Outcome::Escaped => {}
            Outcome::Stopped(why) => {
                found.not_applicable.push((probe, why));
                continue;
            }
        }
        match outside.attempt(sandbox, probe, false)? {
            Outcome::Escaped => return Err(Violation { rule: probe, what: format!("a way out at level {level}") }),
            Outcome::Stopped(_) => found.closed.push(probe),
        }
    }
    if level == Confinement::Full && found.closed.len() < ENOUGH {
        let what = format!("{} of {ENOUGH}; not applicable here: {:?}", found.closed.len(), found.not_applicable);
        return Err(Violation { rule: "enough ways out are open unconfined", what });
    }
    Ok(found)
}

enum Outcome {
    Escaped,
    Stopped(String),
}

/// What is there to be reached.
struct Outside<'a> {
    fixture: &'a EscapeFixture<'a>,
    directory: PathBuf,
    port: u16,
    abstract_name: String,
    _tcp: TcpListener,
    #[cfg(target_os = "linux")]
    _sockets: [std::os::unix::net::UnixListener; 2],
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: impl ToString) -> Violation {
    Violation { rule: "a probe runs", what: error.to_string() }
}

impl<'a> Outside<'a> {
    #[cfg(target_os = "linux")]
    fn new(fixture: &'a EscapeFixture<'a>) -> Result<Self, Violation> {
        use std::os::{
            linux::net::SocketAddrExt as _,
            unix::{
                fs::PermissionsExt as _,
                net::{SocketAddr, UnixListener},
            },
        };
        let open_to_all = |path: &PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(broken);
        let directory = fixture.directory.join("outside");
        fs::create_dir(&directory).map_err(broken)?;
        open_to_all(&directory, 0o777)?;
        let (secret, socket) = (directory.join("secret"), directory.join("socket"));
        fs::write(&secret, "secret").map_err(broken)?;
        open_to_all(&secret, 0o666)?;
        let by_file = UnixListener::bind(&socket).map_err(broken)?;
        open_to_all(&socket, 0o777)?;
        let abstract_name = format!("ncn{}", directory.display());
        let address = SocketAddr::from_abstract_name(&abstract_name).map_err(broken)?;
        let by_name = UnixListener::bind_addr(&address).map_err(broken)?;
        let tcp = TcpListener::bind("127.0.0.1:0").map_err(broken)?;
        let port = tcp.local_addr().map_err(broken)?.port();
        Ok(Self { fixture, directory, port, abstract_name, _tcp: tcp, _sockets: [by_file, by_name] })
    }

    #[cfg(not(target_os = "linux"))]
    fn new(_: &'a EscapeFixture<'a>) -> Result<Self, Violation> {
        Err(broken("only Linux is known well enough to be escaped from"))
    }

    fn start(&self, sandbox: &dyn Sandbox, arguments: Vec<String>) -> Result<Child, Violation> {
        // A directory of its own each time: what one has left is in no other's way.
        let work = self.fixture.directory.join("work");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir(&work).map_err(broken)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&work, fs::Permissions::from_mode(0o777)).map_err(broken)?;
        }
        let limits = ResourceLimits {
            memory_bytes: Some(64 << 20),
            cpu_seconds: Some(1),
            file_bytes: Some(1 << 20),
            writable_bytes: Some(4 << 20),
            processes: Some(64),
            open_files: Some(64),
        };
        let policy = Policy { limits, ..Policy::new(work) };
        let command = SandboxCommand { program: self.fixture.program.clone(), arguments, environment: BTreeMap::new() };
        sandbox.start(&command, &policy).map_err(broken)
    }

    /// Tries a way out. `apart`: from a child, so that the parent is one that an unconfined process could reach.
    fn attempt(&self, sandbox: &dyn Sandbox, probe: &str, apart: bool) -> Result<Outcome, Violation> {
        let mut victim = self.start(self.fixture.control, vec!["victim".into()])?;
        let mut number = String::new();
        if let Some(stdout) = victim.stdout.as_mut() {
            BufReader::new(stdout).read_line(&mut number).map_err(broken)?;
        }
        let arguments = apart.then(|| "under".to_owned()).into_iter();
        let arguments = arguments.chain([
            probe.to_owned(),
            self.directory.display().to_string(),
            number.trim().to_owned(),
            self.port.to_string(),
            self.abstract_name.clone(),
        ]);
        let outcome = self.start(sandbox, arguments.collect()).and_then(|child| watch(child, probe));
        drop(victim.stdin.take());
        victim.wait().map_err(broken)?;
        outcome
    }
}

/// What a probe says, and for those that are to outlive it, whether somebody still holds its output open afterwards.
fn watch(mut child: Child, probe: &str) -> Result<Outcome, Violation> {
    let stdout = child.stdout.take().ok_or_else(|| broken("standard output is no pipe"))?;
    let (said, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        while stdout.read_line(&mut line).is_ok_and(|read| read > 0) {
            let _ = said.send(std::mem::take(&mut line).trim().to_owned());
        }
        // It is at its end: nobody has it open any more.
        let _ = stdout.read_to_end(&mut Vec::new());
    });
    let next = |timeout| lines.recv_timeout(timeout);
    match next(TIMEOUT).as_deref() {
        Ok("trying") => {}
        // Not known on this architecture.
        Ok("unknown") => return ended(child).map(|()| Outcome::Stopped("unknown here".into())),
        other => return Err(broken(format!("{probe}: {other:?}"))),
    }
    let orphans = probe.starts_with("outlive");
    if orphans {
        // It says that it has left something behind, or why it cannot.
        let _ = next(TIMEOUT);
        if probe == "outlive the deadline" {
            // The deadline: the caller ends what it has started, and only that.
            child.kill().map_err(broken)?;
        }
        ended(child)?;
        let since = Instant::now();
        return Ok(match next(SOON) {
            Err(mpsc::RecvTimeoutError::Timeout) => Outcome::Escaped,
            _ => Outcome::Stopped(format!("gone after {:?}", since.elapsed())),
        });
    }
    let said = next(TIMEOUT);
    ended(child)?;
    Ok(match said.as_deref() {
        Ok("escaped") => Outcome::Escaped,
        Ok(why) => Outcome::Stopped(why.to_owned()),
        Err(_) => Outcome::Stopped("it was ended".into()),
    })
}

#[allow(clippy::disallowed_methods, reason = "no runtime runs this")]
fn ended(mut child: Child) -> Result<(), Violation> {
    let since = Instant::now();
    while child.try_wait().map_err(broken)?.is_none() {
        if since.elapsed() > TIMEOUT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(broken("it did not end"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
