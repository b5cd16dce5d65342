//! What a request's process may do less than the interpreter that it was forked from, whatever the sandbox around both allows:
//! no request may harm another's.

use std::{collections::BTreeMap, error::Error, path::Path};

use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, Scope, path_beneath_rules};
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, set_parent_process_death_signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

/// The largest file that a request may write.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Confines this process to its own directory, its own threads and its own signals.
pub(crate) fn request(directory: &Path) -> Result<(), Box<dyn Error>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let most = getrlimit(Resource::Fsize).maximum.map_or(MAX_FILE_BYTES, |hard| hard.min(MAX_FILE_BYTES));
    setrlimit(Resource::Fsize, Rlimit { current: Some(most), maximum: Some(most) })?;
    // As much of it as the kernel has.
    let write = AccessFs::from_write(ABI::V5) & !AccessFs::IoctlDev;
    Ruleset::default()
        .handle_access(write)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules([directory], write))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::WriteFile))?
        .restrict_self()?;
    limit_system_calls()
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
