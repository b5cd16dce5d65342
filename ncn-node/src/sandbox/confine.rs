//! A process that confines itself and then becomes another program.
//!
//! It runs in the thread that calls it and ends in `exec`, which takes that thread's confinement over and ends all others.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetStatus, Scope, path_beneath_rules,
};
use ncn_core::Policy;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

/// The argument that makes a program that calls [`crate::worker::init`] confine itself and become another.
pub(crate) const ARGUMENT: &str = "ncn-confine";
/// In place of a program: only try, and say [`PROBED`].
pub(super) const PROBE: &str = "ncn-probe";
pub(super) const PROBED: &str = "confined\n";

/// What every dynamically linked program needs to start.
const SYSTEM: [&str; 5] = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"];
/// What it may read besides: its own entry in /proc stays its own when it becomes the other program.
const HARMLESS: [&str; 4] = ["/proc/self", "/dev/zero", "/dev/urandom", "/sys/devices/system/cpu"];
/// Landlock's rules must be at least these: files with truncation, TCP, device commands, signals and abstract sockets.
const REQUIRED: ABI = ABI::V6;

/// Memory on top of the policy's, for the program itself, its stacks and its allocator.
const MEMORY_OVERHEAD: u64 = 256 << 20;
/// The largest file that it may write.
const MAX_FILE_BYTES: u64 = 1 << 30;
const MAX_OPEN_FILES: u64 = 256;

/// Runs as the helper with these arguments, which follow [`ARGUMENT`]: the policy as JSON, a program, its arguments. Returns only when
/// that fails, with the exit status.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> i32 {
    let error = become_confined(arguments);
    // Standard error is the parent's; nothing else may be said.
    let _ = writeln!(io::stderr(), "ncn-confine: {error}");
    126
}

fn become_confined(mut arguments: impl Iterator<Item = OsString>) -> io::Error {
    let (Some(policy), Some(program)) = (arguments.next(), arguments.next()) else {
        return io::Error::other("needs a policy and a program");
    };
    let policy: Policy = match serde_json::from_slice(policy.as_encoded_bytes()) {
        Ok(policy) => policy,
        Err(error) => return error.into(),
    };
    if let Err(error) = confine(&policy, Path::new(&program)) {
        return error;
    }
    if program == PROBE {
        let said = io::stdout().write_all(PROBED.as_bytes());
        // The probe is done: ending here is its success.
        return said.map_or_else(|error| error, |()| std::process::exit(0));
    }
    Command::new(program).args(arguments).exec()
}

/// Confines the calling thread, and whatever it starts or becomes. All layers or an error.
pub(super) fn confine(policy: &Policy, program: &Path) -> io::Result<()> {
    limit_resources(policy)?;
    limit_access(policy, program)?;
    limit_system_calls()
}

fn limit_resources(policy: &Policy) -> io::Result<()> {
    let limit = |resource, wanted: u64| {
        // A limit that is stricter already stays: raising it is not ours to do.
        let most = getrlimit(resource).maximum.map_or(wanted, |hard| hard.min(wanted));
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).map_err(io::Error::from)
    };
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, MAX_FILE_BYTES)?;
    limit(Resource::Nofile, MAX_OPEN_FILES)?;
    match policy.memory_bytes {
        // What is written to counts, not what is mapped: allocators reserve far more than they use.
        Some(memory) => limit(Resource::Data, memory.saturating_add(MEMORY_OVERHEAD)),
        None => Ok(()),
    }
}

fn limit_access(policy: &Policy, program: &Path) -> io::Result<()> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let execute = read | AccessFs::Execute;
    // Nothing that was written here can be executed, and no devices, sockets or pipes are made.
    let write = AccessFs::from_all(REQUIRED)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::IoctlDev);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(REQUIRED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(REQUIRED)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(REQUIRED)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(SYSTEM, execute)))
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules([program], execute)))
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(HARMLESS, read)))
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(["/dev/null"], read | AccessFs::WriteFile)))
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(&policy.readable, read)))
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules([&policy.work_directory], write)))
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(|error| io::Error::other(format!("Landlock: {error}")))?;
    if status.ruleset == RulesetStatus::FullyEnforced && status.no_new_privs {
        Ok(())
    } else {
        Err(io::Error::other("Landlock: not fully enforced by this kernel"))
    }
}

/// System calls that a model has no use for: sockets, other processes' memory, namespaces, mounts, keys, kernel interfaces.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

fn limit_system_calls() -> io::Result<()> {
    let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("seccomp: {error}"));
    let filter = |calls: BTreeMap<i64, Vec<SeccompRule>>, errno: i32| -> io::Result<()> {
        let architecture = std::env::consts::ARCH.try_into().map_err(|error: seccompiler::BackendError| failed(&error))?;
        let action = SeccompAction::Errno(errno.unsigned_abs());
        let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, architecture).map_err(|error| failed(&error))?;
        let program: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| failed(&error))?;
        apply_filter(&program).map_err(|error| failed(&error))
    };
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    // Threads and processes may be made, but not in namespaces of their own.
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let mut rules = Vec::new();
    for flag in namespaces {
        let flag = u64::from(flag.unsigned_abs());
        let has = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag);
        rules.push(SeccompRule::new(vec![has.map_err(|error| failed(&error))?]).map_err(|error| failed(&error))?);
    }
    calls.insert(libc::SYS_clone, rules);
    filter(calls, libc::EPERM)?;
    // Its flags are behind a pointer, where no filter can look. Said to be unknown, libraries use `clone` instead.
    filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::ErrorKind, net::TcpStream, os::unix::net::UnixStream};

    use ncn_core::Confinement;

    use super::*;

    /// Runs a probe in a thread of its own, which alone is confined.
    fn confined<T: Send>(probe: impl FnOnce(&Path) -> T + Send) -> T {
        let work = tempfile::tempdir().unwrap();
        let readable = tempfile::tempdir().unwrap();
        fs::write(readable.path().join("model"), "weights").unwrap();
        let policy = Policy {
            readable: vec![readable.path().to_path_buf()],
            work_directory: work.path().to_path_buf(),
            memory_bytes: None,
            at_least: Confinement::Reduced,
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // Not the limits on resources: those are the whole process's.
                limit_access(&policy, Path::new("/bin/true")).unwrap();
                limit_system_calls().unwrap();
                let model = fs::read_to_string(readable.path().join("model"));
                assert_eq!(model.unwrap(), "weights", "what is given can be read");
                assert_eq!(fs::write(readable.path().join("model"), "x").unwrap_err().kind(), ErrorKind::PermissionDenied);
                probe(work.path())
            });
            thread.join().unwrap()
        })
    }

    fn denied<T: std::fmt::Debug>(result: io::Result<T>) {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn files_outside_are_out_of_reach() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        assert!(fs::read(secret.path()).is_ok(), "unconfined, it can be read");
        confined(|work| {
            denied(fs::read(secret.path()));
            denied(fs::write(secret.path(), "x"));
            denied(fs::remove_file(secret.path()));
            denied(fs::read_dir("/"));
            denied(fs::read("/etc/passwd"));
            denied(fs::read("/proc/1/environ"));
            std::os::unix::fs::symlink(secret.path(), work.join("link")).unwrap();
            denied(fs::read(work.join("link")));
        });
    }

    #[test]
    fn the_work_directory_takes_files_that_cannot_be_executed() {
        confined(|work| {
            let program = work.join("program");
            fs::write(&program, fs::read("/bin/true").unwrap()).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&program, mode).unwrap();
            denied(Command::new(&program).status());
            assert!(Command::new("/bin/true").status().unwrap().success(), "the system's can");
        });
    }

    #[test]
    fn there_is_no_network() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(TcpStream::connect(address).is_ok(), "unconfined, there is");
        confined(|work| {
            denied(TcpStream::connect(address));
            denied(std::net::UdpSocket::bind("127.0.0.1:0"));
            denied(UnixStream::connect(work.join("socket")));
            assert!(UnixStream::pair().is_ok(), "what the runtime needs is left");
        });
    }
}
