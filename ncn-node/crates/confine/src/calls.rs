//! The filter of system calls: a list of those that a model, its runtime and an interpreter need. All others are refused.

mod filter;

use libc::c_long;

use self::filter::{Test, Verdict, assemble};
use crate::{Layer, Missing};

/// Allows the calling thread, and whatever it starts or becomes, only what is in [`ALLOWED`] and [`CONDITIONAL`].
pub(crate) fn apply() -> Result<(), Missing> {
    let program = assemble(&verdicts());
    seccompiler::apply_filter(&program).map_err(|error| Missing::new(Layer::Seccomp, error))
}

/// What becomes of each call; of those that are not here, `EPERM`.
fn verdicts() -> Vec<(c_long, Verdict)> {
    let always = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Verdict::Allow));
    let sometimes = CONDITIONAL.iter().chain(CONDITIONAL_HERE).map(|(call, test)| (*call, Verdict::AllowIf(test)));
    // Its flags are behind a pointer, where no filter can look. Said to be unknown, libraries use `clone` instead.
    always.chain(sometimes).chain([(libc::SYS_clone3, Verdict::Unknown)]).collect()
}

const ALLOWED: &[c_long] = &[
    // Files. Which ones is Landlock's to say.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_umask,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_utimensat,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_pipe2,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_pkey_mprotect,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_membarrier,
    libc::SYS_get_mempolicy,
    // Processes and threads. Which ones can be signalled is Landlock's to say.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getresuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_prctl,
    // What a process can only take from itself.
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getattr,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_getpriority,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    // Signals, time, events.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_signalfd4,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // What a pair of connected sockets can be used for; others cannot be made.
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
];

/// Those that only this architecture has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// None of the bits that make a program run as its owner: who runs this may own more than what it is granted.
const fn no_owner_bits(argument: u8) -> Test {
    Test::Bits(argument, OWNER_BITS, 0)
}
const OWNER_BITS: u32 = libc::S_ISUID | libc::S_ISGID;
/// A file is made, so that its mode counts.
const MAKES: u32 = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)).cast_unsigned();
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

const ASYNC: u32 = libc::O_ASYNC.cast_unsigned();

const CONDITIONAL: &[(c_long, Test)] = &[
    (libc::SYS_openat, Test::All(&[Test::Bits(2, ASYNC, 0), Test::Any(&[Test::Bits(2, MAKES, 0), no_owner_bits(3)])])),
    // What a file has sent to another process is a signal; a lease holds up those who open the file; pipes and sockets hold memory that no limit counts.
    (
        libc::SYS_fcntl,
        Test::All(&[
            Test::Not(1, &[F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ]),
            Test::Any(&[Test::Not(1, &[libc::F_SETFL.cast_unsigned()]), Test::Bits(2, ASYNC, 0)]),
        ]),
    ),
    (libc::SYS_setsockopt, Test::Not(2, &[SO_SNDBUF, SO_RCVBUF, SO_SNDBUFFORCE, SO_RCVBUFFORCE])),
    (libc::SYS_mkdirat, no_owner_bits(2)),
    (libc::SYS_fchmod, no_owner_bits(1)),
    (libc::SYS_fchmodat, no_owner_bits(2)),
    // Memory that the limit on memory would not count: shared without a file, or growing like a stack.
    (
        libc::SYS_mmap,
        Test::All(&[
            Test::Bits(3, libc::MAP_GROWSDOWN.cast_unsigned(), 0),
            Test::Any(&[
                Test::Bits(3, libc::MAP_ANONYMOUS.cast_unsigned(), 0),
                Test::Bits(3, libc::MAP_TYPE.cast_unsigned(), libc::MAP_PRIVATE.cast_unsigned()),
            ]),
        ]),
    ),
    // Threads and processes may be made, but not in namespaces of their own, and not as somebody else's children.
    (libc::SYS_clone, Test::Bits(0, NAMESPACES | libc::CLONE_PARENT.cast_unsigned(), 0)),
    // Only a process's own: limits and priorities of others are not Landlock's concern.
    (libc::SYS_prlimit64, Test::Bits(0, u32::MAX, 0)),
    (libc::SYS_sched_setaffinity, Test::Bits(0, u32::MAX, 0)),
    (libc::SYS_sched_setscheduler, Test::Bits(0, u32::MAX, 0)),
    (libc::SYS_sched_setparam, Test::Bits(0, u32::MAX, 0)),
    (libc::SYS_sched_setattr, Test::Bits(0, u32::MAX, 0)),
    (libc::SYS_setpriority, Test::All(&[Test::Bits(0, u32::MAX, libc::PRIO_PROCESS), Test::Bits(1, u32::MAX, 0)])),
    // Connected ones that can be sent nowhere else: a datagram's address would be behind a pointer.
    (
        libc::SYS_socketpair,
        Test::All(&[Test::Bits(0, u32::MAX, libc::AF_UNIX.cast_unsigned()), Test::Bits(1, 0xf, libc::SOCK_STREAM.cast_unsigned())]),
    ),
    (libc::SYS_sendto, Test::NoPointer(4)),
    // Standard error may be the operator's terminal: nothing may be typed into it. The last three are what `fcntl` is refused.
    (libc::SYS_ioctl, Test::Not(1, &[TIOCSTI, TIOCLINUX, TIOCSETD, TIOCCONS, TIOCSCTTY, FIOASYNC, FIOSETOWN, SIOCSPGRP])),
];

#[cfg(target_arch = "x86_64")]
const CONDITIONAL_HERE: &[(c_long, Test)] = &[
    (libc::SYS_open, Test::All(&[Test::Bits(1, ASYNC, 0), Test::Any(&[Test::Bits(1, MAKES, 0), no_owner_bits(2)])])),
    (libc::SYS_creat, no_owner_bits(1)),
    (libc::SYS_mkdir, no_owner_bits(1)),
    (libc::SYS_chmod, no_owner_bits(1)),
];
#[cfg(not(target_arch = "x86_64"))]
const CONDITIONAL_HERE: &[(c_long, Test)] = &[];

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
const TIOCSETD: u32 = 0x5423;
const TIOCCONS: u32 = 0x541d;
const TIOCSCTTY: u32 = 0x540e;
const FIOASYNC: u32 = 0x5452;
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;
const F_SETOWN: u32 = 8;
const F_SETSIG: u32 = 10;
const F_SETOWN_EX: u32 = 15;
const F_SETLEASE: u32 = 1_024;
const F_NOTIFY: u32 = 1_026;
const F_SETPIPE_SZ: u32 = 1_031;
const SO_SNDBUF: u32 = 7;
const SO_RCVBUF: u32 = 8;
const SO_SNDBUFFORCE: u32 = 32;
const SO_RCVBUFFORCE: u32 = 33;
