//! What a request's process may do less than the interpreter that it was forked from, whatever the sandbox around both allows:
//! no request may harm another's.

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
};

use landlock::{ABI, AccessFs, BitFlags, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, Scope, path_beneath_rules};
use ncn_confine::{HARMLESS, NULL, SYSTEM};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

use crate::template::Place;

/// The largest file that a request may write.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// How many files a request may have open, and how many more than it has from the template: what watches them uses up something that all
/// processes of a user share.
const MAX_FILES: u64 = 128;
const MORE_FILES: u64 = 64;

/// What a template may do less than the worker that it was forked from: it cannot outlive it, nor look into it, and it shares no memory
/// that its forks could write.
pub(crate) fn template(place: &Place) -> Result<(), Box<dyn Error>> {
    if !place.readable.is_empty() {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let beneath = place.directory.parent().map(PathBuf::from);
        Ruleset::default()
            .handle_access(read)?
            .create()?
            .add_rules(path_beneath_rules(readable(place).chain(beneath), read))?
            .add_rules(path_beneath_rules([NULL], AccessFs::ReadFile))?
            .restrict_self()?;
    }
    let argument = |index, operator, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value);
    let (death, subreaper) = (libc::PR_SET_PDEATHSIG.unsigned_abs(), libc::PR_SET_CHILD_SUBREAPER.unsigned_abs());
    let prctl = vec![
        SeccompRule::new(vec![
            argument(0, SeccompCmpOp::Eq, death.into())?,
            argument(1, SeccompCmpOp::Ne, libc::SIGKILL.unsigned_abs().into())?,
        ])?,
        // Its forks' forks would be its own children in place of the worker's.
        SeccompRule::new(vec![argument(0, SeccompCmpOp::Eq, subreaper.into())?])?,
    ];
    let bits = |mask: i32| SeccompCmpOp::MaskedEq(u64::from(mask.unsigned_abs()));
    let shared = |kind: i32| {
        let writable = argument(2, bits(libc::PROT_WRITE), u64::from(libc::PROT_WRITE.unsigned_abs()))?;
        SeccompRule::new(vec![writable, argument(3, bits(libc::MAP_TYPE), u64::from(kind.unsigned_abs()))?])
    };
    let mmap = vec![shared(libc::MAP_SHARED)?, shared(libc::MAP_SHARED_VALIDATE)?];
    apply(BTreeMap::from([(libc::SYS_prctl, prctl), (libc::SYS_mmap, mmap)]), libc::EPERM)
}

/// What models may read, but what is the worker's own.
fn readable(place: &Place) -> impl Iterator<Item = PathBuf> {
    let harmless = HARMLESS.iter().filter(|path| !path.starts_with("/proc/self"));
    let system = SYSTEM.iter().chain(harmless).map(PathBuf::from);
    system.chain(place.readable.iter().cloned()).filter(|path| path.exists())
}

/// Confines this process to its own threads and its own signals. It ends with the worker. `highest` is its open file with the highest number.
pub(crate) fn request(place: &Place, highest: u64) -> Result<(), Box<dyn Error>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(place.worker) {
        return Err("the worker has ended".into());
    }
    limit(Resource::Nofile, MAX_FILES.max(highest + MORE_FILES))?;
    limit_system_calls()
}

/// Confines this process to its own directory and to what every request may read, and to its own signals.
pub(crate) fn files(directory: &Path, place: &Place) -> Result<(), Box<dyn Error>> {
    limit(Resource::Fsize, MAX_FILE_BYTES)?;
    // As much of it as the kernel has.
    let write = AccessFs::from_write(ABI::V5) & !AccessFs::IoctlDev;
    // Without a sandbox, everything can be read.
    let read = if place.readable.is_empty() { BitFlags::EMPTY } else { AccessFs::ReadFile | AccessFs::ReadDir };
    let rules = if read.is_empty() { Vec::new() } else { readable(place).chain([place.directory.clone()]).collect() };
    Ruleset::default()
        .handle_access(write | read)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules([directory], write | read))?
        .add_rules(path_beneath_rules([NULL], (read & AccessFs::ReadFile) | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(rules, read))?
        .restrict_self()?;
    Ok(())
}

/// A limit that is stricter already stays.
fn limit(resource: Resource, wanted: u64) -> Result<(), Errno> {
    let most = getrlimit(resource).maximum.map_or(wanted, |hard| hard.min(wanted));
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
}

/// No other processes: none are started, and none get signals or limits from here. What a request started could outlive it.
fn limit_system_calls() -> Result<(), Box<dyn Error>> {
    let own = u64::try_from(getpid().as_raw_nonzero().get())?;
    let argument = |index, operator, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value);
    let rule = |conditions| SeccompRule::new(conditions);
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let mut calls = BTreeMap::from([
        (libc::SYS_clone, vec![rule(vec![argument(0, SeccompCmpOp::MaskedEq(thread), 0)?])?]),
        (libc::SYS_prlimit64, vec![rule(vec![argument(0, SeccompCmpOp::Ne, 0)?, argument(0, SeccompCmpOp::Ne, own)?])?]),
        (libc::SYS_tkill, Vec::new()),
        (libc::SYS_pidfd_open, Vec::new()),
    ]);
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo] {
        calls.insert(call, vec![rule(vec![argument(0, SeccompCmpOp::Ne, own)?])?]);
    }
    #[cfg(target_arch = "x86_64")]
    calls.extend([(libc::SYS_fork, Vec::new()), (libc::SYS_vfork, Vec::new())]);
    apply(calls, libc::EPERM)?;
    // The directories of others, and what they share, are this user's too, and Landlock knows no right to change modes and times. What copies
    // files does so as well: it is told that it is done.
    let mut modes = BTreeMap::from([
        (libc::SYS_fchmod, Vec::new()),
        (libc::SYS_fchmodat, Vec::new()),
        (libc::SYS_fchmodat2, Vec::new()),
        (libc::SYS_utimensat, Vec::new()),
    ]);
    #[cfg(target_arch = "x86_64")]
    modes.extend([libc::SYS_chmod, libc::SYS_utime, libc::SYS_utimes, libc::SYS_futimesat].map(|call| (call, Vec::new())));
    apply(modes, 0)?;
    // Its flags are behind a pointer, where no filter can look. Said to be unknown, libraries use `clone` instead.
    apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn apply(calls: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<(), Box<dyn Error>> {
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, std::env::consts::ARCH.try_into()?)?;
    Ok(apply_filter(&BpfProgram::try_from(filter)?)?)
}
