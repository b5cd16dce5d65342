//! Access to files, network and other processes, by Landlock.

use std::{
    io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use crate::{Grants, Layer, Missing};

/// What every dynamically linked program needs to start, as far as it is there.
pub const SYSTEM: [&str; 5] = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"];
/// What it may read besides: its own entry in /proc stays its own when it becomes another program.
pub const HARMLESS: [&str; 5] = ["/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/dev/urandom", "/sys/devices/system/cpu"];
/// What it may also write.
pub const NULL: &str = "/dev/null";
/// The oldest Landlock that is enough: files with truncation, TCP, device commands, signals and abstract sockets.
pub const REQUIRED_LANDLOCK: i32 = REQUIRED as i32;

const REQUIRED: ABI = ABI::V6;
/// The newest that is known here: its rules are used as far as the kernel has them.
const NEWEST: ABI = ABI::V10;

/// The version of Landlock that the kernel has, or why it has none.
#[allow(unsafe_code, reason = "the library does not say what the kernel has before it is used")]
pub fn landlock_abi() -> io::Result<i32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call only answers with a number; it takes no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0, VERSION) };
    if version < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(version).map_err(io::Error::other) }
}

/// What the kernel lacks of the Landlock that is enough.
pub fn landlock() -> Result<(), Missing> {
    let failed = |reason: String| Missing::new(Layer::Landlock, reason);
    match landlock_abi() {
        Ok(abi) if abi < REQUIRED_LANDLOCK => {
            Err(failed(format!("the kernel has version {abi}, version {REQUIRED_LANDLOCK} is needed")))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Limits what the calling thread, and whatever it starts or becomes, can reach. `whole` says that this has to be all of it; otherwise it
/// is as much as the kernel has.
pub(crate) fn apply(grants: &Grants, program: &Path, whole: bool) -> Result<(), Missing> {
    let failed = |reason: String| Missing::new(Layer::Landlock, reason);
    if whole {
        landlock()?;
    }
    let status = restrict(grants, program, whole).map_err(|error| failed(error.to_string()))?;
    if whole && status.ruleset == RulesetStatus::NotEnforced {
        return Err(failed("not enforced".into()));
    }
    if !status.no_new_privs {
        return Err(Missing::new(Layer::NoNewPrivileges, "not enforced"));
    }
    Ok(())
}

fn restrict(grants: &Grants, program: &Path, whole: bool) -> Result<landlock::RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let execute = read | AccessFs::Execute;
    let device = read | AccessFs::WriteFile | AccessFs::IoctlDev;
    // Nothing that was written can be executed, and no devices or sockets are made.
    let write: BitFlags<AccessFs> = AccessFs::from_all(REQUIRED)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::IoctlDev);
    let program: &[&Path] = if program.as_os_str().is_empty() { &[] } else { &[program] };
    let existing = |paths: &[&'static str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    Ruleset::default()
        .set_compatibility(if whole { CompatLevel::HardRequirement } else { CompatLevel::BestEffort })
        .handle_access(AccessFs::from_all(REQUIRED))?
        .handle_access(AccessNet::from_all(REQUIRED))?
        .scope(Scope::from_all(REQUIRED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(existing(&SYSTEM), execute))?
        .add_rules(path_beneath_rules(program, execute))?
        .add_rules(path_beneath_rules(&grants.executable, execute))?
        .add_rules(path_beneath_rules(existing(&HARMLESS), read))?
        .add_rules(path_beneath_rules([NULL], read | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(&grants.readable, read))?
        .add_rules(path_beneath_rules(&grants.devices, device))?
        .add_rules(path_beneath_rules([&grants.work_directory], write))?
        .restrict_self()
}
