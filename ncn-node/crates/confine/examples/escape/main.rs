//! Tries one way out of a sandbox, for the conformance suite `ncn_core::conformance::escapes`: never run it unconfined as root.
//!
//! `escape PROBE OUTSIDE VICTIM PORT SOCKET`: prints `trying`, and then `escaped` if it worked, or why not. Before them, `under` has it
//! try from a child of its own. `escape victim` waits to be attacked.

#![allow(unsafe_code, reason = "system calls that no safe interface offers are what is tried")]
#![allow(clippy::print_stdout, reason = "what it prints is its result")]
#![allow(clippy::disallowed_methods, reason = "it has no runtime")]
#![cfg(target_os = "linux")]

mod bombs;

use std::{
    env,
    ffi::{CString, OsString},
    fs::{self, File, OpenOptions},
    hint::black_box,
    io::{self, Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{PermissionsExt as _, symlink},
            net::{SocketAddr, UnixStream},
            process::ExitStatusExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio, id},
    thread,
    time::{Duration, Instant},
};

use bombs::bombs;
use libc::{c_int, c_long};

type Tried = io::Result<()>;

/// What is outside, to be reached.
struct Outside {
    directory: PathBuf,
    victim: i32,
    port: u16,
    socket: String,
}

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "under") {
        arguments.remove(0);
        return match env::current_exe().and_then(|program| Command::new(program).args(&arguments).status()) {
            Ok(_) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let text = |at: usize| arguments.get(at).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    if text(0) == "victim" {
        return be_attacked();
    }
    let outside = Outside {
        directory: text(1).into(),
        victim: text(2).parse().unwrap_or(-1),
        port: text(3).parse().unwrap_or(0),
        socket: text(4),
    };
    let Some(tried) = files(&text(0), &outside)
        .or_else(|| processes(&text(0), &outside))
        .or_else(|| sockets(&text(0), &outside))
        .or_else(|| calls(&text(0), &outside))
        .or_else(|| bombs(&text(0)))
    else {
        say("unknown");
        return ExitCode::FAILURE;
    };
    match tried {
        Ok(()) => say("escaped"),
        Err(error) => say(&error.to_string()),
    }
    ExitCode::SUCCESS
}

fn say(what: &str) {
    println!("{what}");
    let _ = io::stdout().flush();
}

/// Says that the probe begins, and does it.
#[allow(clippy::unnecessary_wraps, reason = "for the lists of probes, which end with none")]
fn attempt(act: impl FnOnce() -> Tried) -> Option<Tried> {
    say("trying");
    Some(act())
}

fn call(number: c_long, arguments: &[usize]) -> io::Result<usize> {
    let argument = |at: usize| arguments.get(at).copied().unwrap_or_default();
    // SAFETY: each caller's pointers are to memory that lives until the call returns, of the size that the call expects.
    let result = unsafe { libc::syscall(number, argument(0), argument(1), argument(2), argument(3), argument(4), argument(5)) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn done(result: io::Result<usize>) -> Tried {
    result.map(|_| ())
}

/// A file that a call has opened is closed again.
fn opened(result: io::Result<usize>) -> Tried {
    let file = c_int::try_from(result?).map_err(io::Error::other)?;
    // SAFETY: the call has just opened it.
    drop(unsafe { OwnedFd::from_raw_fd(file) });
    Ok(())
}

fn unless(holds: bool, why: &str) -> Tried {
    if holds { Err(io::Error::other(why.to_owned())) } else { Ok(()) }
}

fn c(path: impl AsRef<Path>) -> io::Result<CString> {
    Ok(CString::new(path.as_ref().as_os_str().as_bytes())?)
}

/// A process of this user's that waits until its input ends, and lets itself be traced.
fn be_attacked() -> ExitCode {
    const SET_PTRACER: usize = 0x5961_6d61;
    let _ = call(libc::SYS_prctl, &[SET_PTRACER, usize::MAX]);
    say(&id().to_string());
    let _ = io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}

/// Files that were not granted, by every road.
fn files(probe: &str, outside: &Outside) -> Option<Tried> {
    let secret = outside.directory.join("secret");
    let by = |road: &str| fs::read(format!("{road}{}", secret.display())).map(|_| ());
    match probe {
        "read a file" => attempt(|| by("")),
        "write a file" => attempt(|| OpenOptions::new().append(true).open(&secret)?.write_all(b"!")),
        "truncate a file" => attempt(|| OpenOptions::new().write(true).open(&secret)?.set_len(1)),
        "create a file" => attempt(|| {
            let new = outside.directory.join(format!("new{}", id()));
            File::create_new(&new)?;
            fs::remove_file(new)
        }),
        "delete a file" => attempt(|| {
            fs::remove_file(&secret)?;
            fs::write(&secret, "secret")
        }),
        "rename a file" => attempt(|| {
            fs::rename(&secret, outside.directory.join("moved"))?;
            fs::rename(outside.directory.join("moved"), &secret)
        }),
        "link a file in" => attempt(|| {
            fs::hard_link(&secret, "linked")?;
            fs::remove_file("linked")
        }),
        "list a directory" => attempt(|| fs::read_dir(&outside.directory).map(|_| ())),
        "follow a symbolic link" => attempt(|| {
            symlink(&secret, "link")?;
            let read = fs::read("link").map(|_| ());
            fs::remove_file("link")?;
            read
        }),
        "climb out of the work directory" => attempt(|| {
            let way: PathBuf = env::current_dir()?.ancestors().skip(1).map(|_| "..").collect();
            fs::read(way.join(secret.strip_prefix("/").map_err(io::Error::other)?)).map(|_| ())
        }),
        "/proc/self/root" => attempt(|| by("/proc/self/root")),
        "/proc/self/cwd" => attempt(|| by("/proc/self/cwd/../../../../../../../../..")),
        "/proc/self/fd" => attempt(|| {
            let root = File::open("/")?;
            by(&format!("/proc/self/fd/{}", root.as_raw_fd()))
        }),
        "read accounts" => attempt(|| fs::read("/etc/passwd").map(|_| ())),
        "write to /proc/sys" => attempt(|| {
            // SAFETY: it takes no arguments.
            let user = unsafe { libc::getuid() };
            let _ = call(libc::SYS_unshare, &[flags(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)]);
            let _ = fs::write("/proc/self/uid_map", format!("0 {user} 1"));
            fs::write("/proc/sys/net/ipv4/ip_default_ttl", "65")
        }),
        "list devices" => attempt(|| fs::read_dir("/sys/class/net").map(|_| ())),
        "open another device" => attempt(|| OpenOptions::new().read(true).write(true).open("/dev/ptmx").map(|_| ())),
        "see mounts" => attempt(|| {
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            let root = mounts.lines().find(|mount| mount.split(' ').nth(4) == Some("/"));
            unless(root.is_none_or(|root| root.contains(" - tmpfs ")), "another root")
        }),
        "make a device" => attempt(|| {
            let path = c("device")?;
            done(call(libc::SYS_mknodat, &[at_work(), address(&path), flags((libc::S_IFCHR | 0o600).cast_signed()), 0]))?;
            fs::remove_file("device")
        }),
        "make a socket file" => attempt(|| {
            let path = c("socket")?;
            done(call(libc::SYS_mknodat, &[at_work(), address(&path), flags((libc::S_IFSOCK | 0o600).cast_signed()), 0]))?;
            fs::remove_file("socket")
        }),
        "make a program that runs as its owner" => attempt(|| {
            File::create("owner")?;
            let set = fs::set_permissions("owner", fs::Permissions::from_mode(0o4755));
            fs::remove_file("owner")?;
            set
        }),
        "run a dropped file" => attempt(|| {
            fs::copy("/bin/true", "dropped")?;
            let ran = Command::new("./dropped").status();
            fs::remove_file("dropped")?;
            ran.map(|_| ())
        }),
        "map a dropped file to run" => attempt(|| {
            fs::copy("/bin/true", "mapped")?;
            let file = File::open("mapped")?;
            let protection = flags(libc::PROT_READ | libc::PROT_EXEC);
            let file = usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
            let mapped = call(libc::SYS_mmap, &[0, 4096, protection, flags(libc::MAP_PRIVATE), file, 0]);
            fs::remove_file("mapped")?;
            done(mapped)
        }),
        "run a file in memory" => attempt(|| {
            let memory = call(libc::SYS_memfd_create, &[address(c"program"), 0])?;
            // SAFETY: the call has just opened it.
            let mut file = unsafe { File::from_raw_fd(c_int::try_from(memory).map_err(io::Error::other)?) };
            file.write_all(&fs::read("/bin/true")?)?;
            let path = format!("/proc/self/fd/{}", file.into_raw_fd());
            Command::new(path).status().map(|_| ())
        }),
        _ => None,
    }
}

fn at_work() -> usize {
    flags(libc::AT_FDCWD)
}

fn address(text: &std::ffi::CStr) -> usize {
    text.as_ptr().addr()
}

/// As the kernel takes it: with its sign.
fn flags(value: c_int) -> usize {
    isize::try_from(value).unwrap_or_default().cast_unsigned()
}

/// Other processes of the same user.
fn processes(probe: &str, outside: &Outside) -> Option<Tried> {
    let victim = flags(outside.victim);
    // SAFETY: it takes no arguments.
    let parent = unsafe { libc::getppid() };
    let of = |id: i32, what: &str| fs::read(format!("/proc/{id}/{what}")).map(|_| ());
    match probe {
        "signal a process" => attempt(|| done(call(libc::SYS_kill, &[victim, flags(libc::SIGCONT)]))),
        "signal the parent" => attempt(|| done(call(libc::SYS_kill, &[flags(parent), flags(libc::SIGCONT)]))),
        "trace a process" => attempt(|| done(call(libc::SYS_ptrace, &[flags(libc::PTRACE_SEIZE.cast_signed()), victim, 0, 0]))),
        "trace the parent" => {
            attempt(|| done(call(libc::SYS_ptrace, &[flags(libc::PTRACE_SEIZE.cast_signed()), flags(parent), 0, 0])))
        }
        "read a process's memory" => attempt(|| {
            let mut byte = [0_u8];
            let local = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
            // Programs are not moved by more than this process was.
            let maps = fs::read_to_string(format!("/proc/{}/maps", outside.victim))?;
            let start = maps.split('-').next().and_then(|start| usize::from_str_radix(start, 16).ok()).unwrap_or_default();
            let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(start), iov_len: 1 };
            let (local, remote) = ((&raw const local).addr(), (&raw const remote).addr());
            done(call(libc::SYS_process_vm_readv, &[victim, local, 1, remote, 1, 0]))
        }),
        "take a process's file" => attempt(|| {
            let process = call(libc::SYS_pidfd_open, &[victim, 0])?;
            opened(call(libc::SYS_pidfd_getfd, &[process, 0, 0]))
        }),
        "hold a process" => attempt(|| opened(call(libc::SYS_pidfd_open, &[victim, 0]))),
        "read a process's environment" => attempt(|| of(outside.victim, "environ")),
        "read the parent's environment" => attempt(|| of(parent, "environ")),
        "enter a process's root" => attempt(|| fs::read_dir(format!("/proc/{}/root/etc", outside.victim)).map(|_| ())),
        "enter the parent's root" => attempt(|| fs::read_dir(format!("/proc/{parent}/root/etc")).map(|_| ())),
        "see a process's files" => attempt(|| fs::read_dir(format!("/proc/{}/fd", outside.victim)).map(|_| ())),
        "see processes" => attempt(|| of(outside.victim, "stat")),
        "slow a process down" => attempt(|| {
            let lowest = flags(19);
            done(call(libc::SYS_setpriority, &[flags(libc::PRIO_PROCESS.cast_signed()), victim, lowest]))
        }),
        "limit a process" => attempt(|| {
            let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
            let resource = flags(libc::RLIMIT_NOFILE.cast_signed());
            done(call(libc::SYS_prlimit64, &[victim, resource, (&raw const limit).addr(), 0]))
        }),
        "gain privileges by running a program" => {
            attempt(|| unless(call(libc::SYS_prctl, &[flags(libc::PR_GET_NO_NEW_PRIVS)])? == 1, "no new privileges"))
        }
        "become a user" => attempt(|| {
            // SAFETY: it takes no arguments.
            let user = flags(unsafe { libc::getuid() }.cast_signed());
            done(call(libc::SYS_setresuid, &[user, user, user]))
        }),
        "dump core" => attempt(|| {
            let all = libc::rlimit { rlim_cur: 1 << 30, rlim_max: libc::RLIM_INFINITY };
            let _ = call(libc::SYS_prlimit64, &[0, flags(libc::RLIMIT_CORE.cast_signed()), (&raw const all).addr(), 0]);
            let status = Command::new("/bin/sh").args(["-c", "kill -SEGV $$"]).stderr(Stdio::null()).status()?;
            unless(!status.core_dumped(), "no core dumped")
        }),
        _ => None,
    }
}

/// Sockets of every family.
fn sockets(probe: &str, outside: &Outside) -> Option<Tried> {
    let family = |family: c_int, kind: c_int| attempt(move || opened(call(libc::SYS_socket, &[flags(family), flags(kind), 0])));
    match probe {
        "connect by TCP" => attempt(|| TcpStream::connect(("127.0.0.1", outside.port)).map(|_| ())),
        "send by UDP" => attempt(|| UdpSocket::bind("127.0.0.1:0")?.send_to(b"!", ("127.0.0.1", outside.port)).map(|_| ())),
        "connect to a socket file" => attempt(|| UnixStream::connect(outside.directory.join("socket")).map(|_| ())),
        "connect to an abstract socket" => {
            attempt(|| UnixStream::connect_addr(&SocketAddr::from_abstract_name(&outside.socket)?).map(|_| ()))
        }
        "AF_INET" => family(libc::AF_INET, libc::SOCK_DGRAM),
        "AF_INET6" => family(libc::AF_INET6, libc::SOCK_STREAM),
        "AF_UNIX" => family(libc::AF_UNIX, libc::SOCK_DGRAM),
        "AF_NETLINK" => family(libc::AF_NETLINK, libc::SOCK_RAW),
        "AF_PACKET" => attempt(|| {
            let _ = call(libc::SYS_unshare, &[flags(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)]);
            opened(call(libc::SYS_socket, &[flags(libc::AF_PACKET), flags(libc::SOCK_RAW), 0]))
        }),
        "AF_VSOCK" => family(libc::AF_VSOCK, libc::SOCK_STREAM),
        "AF_ALG" => family(libc::AF_ALG, libc::SOCK_SEQPACKET),
        _ => None,
    }
}

/// Calls that a model has no use for.
#[allow(clippy::too_many_lines, reason = "a list")]
fn calls(probe: &str, outside: &Outside) -> Option<Tried> {
    const PAGE: usize = 4096;
    let zeroes = vec![0_u64; PAGE / 8];
    let zeroes = zeroes.as_ptr().addr();
    let unshare = |namespaces: c_int| call(libc::SYS_unshare, &[flags(namespaces)]);
    // Who is unprivileged can mount in namespaces of its own; who is confined should do neither.
    let own = || unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS);
    let tmpfs = c"tmpfs";
    match probe {
        "unshare users" => attempt(|| done(unshare(libc::CLONE_NEWUSER))),
        "unshare mounts" => attempt(|| done(own())),
        "clone into namespaces" => attempt(|| clone_apart(false)),
        "clone3 into namespaces" => attempt(|| clone_apart(true)),
        "enter namespaces" => attempt(|| {
            let _ = unshare(libc::CLONE_NEWUSER);
            let file = File::open("/proc/self/ns/uts")?;
            let file = usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
            let _ = unshare(libc::CLONE_NEWUTS);
            let own = File::open("/proc/self/ns/uts")?;
            let own = usize::try_from(own.as_raw_fd()).map_err(io::Error::other)?;
            done(call(libc::SYS_setns, &[own, 0]).or_else(|_| call(libc::SYS_setns, &[file, 0])))
        }),
        "mount" => attempt(|| {
            let _ = own();
            let path = c(env::current_dir()?)?;
            done(call(libc::SYS_mount, &[address(tmpfs), address(&path), address(tmpfs), 0, 0]))
        }),
        "mount by the new calls" => attempt(|| {
            let _ = own();
            opened(call(libc::SYS_fsopen, &[address(tmpfs), 0]))
        }),
        "copy mounts" => attempt(|| {
            let _ = own();
            opened(call(libc::SYS_open_tree, &[at_work(), address(c"."), 1]))
        }),
        "unmount" => attempt(|| {
            let _ = own();
            let path = c(env::current_dir()?)?;
            let _ = call(libc::SYS_mount, &[address(tmpfs), address(&path), address(tmpfs), 0, 0]);
            done(call(libc::SYS_umount2, &[address(&path), flags(libc::MNT_DETACH)]))
        }),
        "change the root" => attempt(|| {
            let _ = own();
            done(call(libc::SYS_chroot, &[address(c".")]))
        }),
        "swap the root" => attempt(|| {
            let _ = own();
            let path = c(env::current_dir()?)?;
            let private = usize::try_from(libc::MS_PRIVATE | libc::MS_REC).map_err(io::Error::other)?;
            let _ = call(libc::SYS_mount, &[0, address(c"/"), 0, private, 0]);
            let _ = call(libc::SYS_mount, &[address(tmpfs), address(&path), address(tmpfs), 0, 0]);
            env::set_current_dir(env::current_dir()?)?;
            done(call(libc::SYS_pivot_root, &[address(&path), address(&path)]))
        }),
        "name a file by handle" => attempt(|| handle(outside).map(|_| ())),
        "open a file by handle" => attempt(|| {
            let mut handle = handle(outside)?;
            opened(call(libc::SYS_open_by_handle_at, &[at_work(), handle.as_mut_ptr().addr(), 0]))
        }),
        "io_uring" => attempt(|| opened(call(libc::SYS_io_uring_setup, &[1, zeroes]))),
        "aio" => attempt(|| {
            let mut context = 0_usize;
            done(call(libc::SYS_io_setup, &[1, (&raw mut context).addr()]))
        }),
        "keys" => attempt(|| {
            const SESSION: isize = -3;
            let (kind, name) = (address(c"user"), address(c"escape"));
            done(call(libc::SYS_add_key, &[kind, name, zeroes, 1, SESSION.cast_unsigned()]))
        }),
        "keyctl" => attempt(|| done(call(libc::SYS_keyctl, &[0, (-3_isize).cast_unsigned(), 1]))),
        "bpf" => attempt(|| {
            // An array of one value.
            let map: [u32; 5] = [2, 4, 4, 1, 0];
            opened(call(libc::SYS_bpf, &[0, map.as_ptr().addr(), size_of_val(&map)]))
        }),
        "userfaultfd" => attempt(|| opened(call(libc::SYS_userfaultfd, &[1]))),
        "perf events" => attempt(|| {
            // The processor's time, as software counts it, of this process without the kernel.
            let mut event = [0_u64; 16];
            let size = 128_u64 << 32;
            for (at, value) in [(0, size | 1), (1, 1), (5, 1 << 5 | 1 << 6)] {
                if let Some(field) = event.get_mut(at) {
                    *field = value;
                }
            }
            opened(call(libc::SYS_perf_event_open, &[event.as_ptr().addr(), 0, usize::MAX, usize::MAX, 0]))
        }),
        "personality" => attempt(|| done(call(libc::SYS_personality, &[flags(libc::ADDR_NO_RANDOMIZE)]))),
        "fanotify" => attempt(|| opened(call(libc::SYS_fanotify_init, &[0x200, 0]))),
        "inotify" => attempt(|| opened(call(libc::SYS_inotify_init1, &[0]))),
        "shared memory" => attempt(|| {
            let segment = call(libc::SYS_shmget, &[0, PAGE, flags(libc::IPC_CREAT | 0o600)])?;
            done(call(libc::SYS_shmctl, &[segment, flags(libc::IPC_RMID), 0]))
        }),
        "semaphores" => attempt(|| {
            let set = call(libc::SYS_semget, &[0, 1, flags(libc::IPC_CREAT | 0o600)])?;
            done(call(libc::SYS_semctl, &[set, 0, flags(libc::IPC_RMID), 0]))
        }),
        "message queues" => attempt(|| {
            let queue = call(libc::SYS_msgget, &[0, flags(libc::IPC_CREAT | 0o600)])?;
            done(call(libc::SYS_msgctl, &[queue, flags(libc::IPC_RMID), 0]))
        }),
        "secret memory" => attempt(|| opened(call(libc::SYS_memfd_secret, &[0]))),
        "the clock" => attempt(|| {
            let mut clock = vec![0_u64; 64];
            done(call(libc::SYS_adjtimex, &[clock.as_mut_ptr().addr()]))
        }),
        #[cfg(target_arch = "x86_64")]
        "segments" => attempt(|| done(call(libc::SYS_modify_ldt, &[0, zeroes, 16]))),
        "compare processes" => attempt(|| {
            let myself = usize::try_from(id()).map_err(io::Error::other)?;
            done(call(libc::SYS_kcmp, &[myself, myself, 1, 0, 0]))
        }),
        "write back all files" => attempt(|| done(call(libc::SYS_sync, &[]))),
        "shared memory without a file" => attempt(|| {
            let protection = flags(libc::PROT_READ | libc::PROT_WRITE);
            let kind = flags(libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            done(call(libc::SYS_mmap, &[0, PAGE, protection, kind, usize::MAX, 0]))
        }),
        "the host's name" => attempt(|| {
            let name = fs::read_to_string("/proc/sys/kernel/hostname");
            let mut names = [0_u8; 6 * 65];
            done(call(libc::SYS_uname, &[names.as_mut_ptr().addr()]))?;
            let node = names.get(65..130).unwrap_or_default();
            unless(node.starts_with(b"ncn\0") || name.is_ok_and(|name| name.trim().is_empty()), "another name")
        }),
        _ => None,
    }
}

fn handle(outside: &Outside) -> io::Result<Vec<u32>> {
    let mut handle = vec![0_u32; 64];
    if let Some(size) = handle.first_mut() {
        *size = 128;
    }
    let (path, mut mount) = (c(outside.directory.join("secret"))?, 0_u64);
    let arguments = [at_work(), address(&path), handle.as_mut_ptr().addr(), (&raw mut mount).addr(), 0];
    call(libc::SYS_name_to_handle_at, &arguments).map(|_| handle)
}

fn clone_apart(newer: bool) -> Tried {
    let arguments = [flags(libc::CLONE_NEWUSER) as u64, 0, 0, 0, flags(libc::SIGCHLD) as u64, 0, 0, 0];
    let child = if newer {
        call(libc::SYS_clone3, &[arguments.as_ptr().addr(), size_of_val(&arguments)])?
    } else {
        call(libc::SYS_clone, &[flags(libc::CLONE_NEWUSER | libc::SIGCHLD)])?
    };
    if child == 0 {
        // SAFETY: the child of a process with one thread ends at once.
        unsafe { libc::_exit(0) };
    }
    done(call(libc::SYS_wait4, &[child, 0, 0, 0]))
}
