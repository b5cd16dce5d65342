//! What a request's process may do less than the interpreter that it was forked from, whatever the sandbox around both allows:
//! no request may harm another's.

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
};

use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, Scope, path_beneath_rules};
use ncn_confine::{HARMLESS, NULL, SYSTEM};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

use crate::template::Place;

/// The largest file that a request may write.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// How many files a request may have open: what watches them uses up something that all processes of a user share.
const MAX_FILES: u64 = 128;

/// What a template may do less than the worker that it was forked from: it cannot outlive it.
pub(crate) fn template() -> Result<(), Box<dyn Error>> {
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
    apply(BTreeMap::from([(libc::SYS_prctl, prctl)]), libc::EPERM)
}

/// Confines this process to its own threads and its own signals. It ends with the worker.
pub(crate) fn request(place: &Place) -> Result<(), Box<dyn Error>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(place.worker) {
        return Err("the worker has ended".into());
    }
    limit_system_calls()
}

/// Confines this process to its own directory and to what every request may read, and to its own signals.
pub(crate) fn files(directory: &Path, place: &Place) -> Result<(), Box<dyn Error>> {
    limit(Resource::Fsize, MAX_FILE_BYTES)?;
    limit(Resource::Nofile, MAX_FILES)?;
    // As much of it as the kernel has.
    let write = AccessFs::from_write(ABI::V5) & !AccessFs::IoctlDev;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let readable = SYSTEM.iter().chain(&HARMLESS).map(PathBuf::from).chain(place.readable.iter().cloned());
    let readable: Vec<_> = readable.chain([place.directory.clone()]).filter(|path| path.exists()).collect();
    Ruleset::default()
        .handle_access(write | read)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules([directory], write | read))?
        .add_rules(path_beneath_rules([NULL], AccessFs::WriteFile | AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(readable, read))?
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
    // Its flags are behind a pointer, where no filter can look. Said to be unknown, libraries use `clone` instead.
    apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn apply(calls: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<(), Box<dyn Error>> {
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, std::env::consts::ARCH.try_into()?)?;
    Ok(apply_filter(&BpfProgram::try_from(filter)?)?)
}
