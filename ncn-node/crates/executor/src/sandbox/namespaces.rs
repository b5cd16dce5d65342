use std::{
    env, io,
    path::{Path, PathBuf},
    process::Child,
};

use ncn_confine::Report;
use ncn_core::{Confinement, Policy, Sandbox, SandboxCommand, SandboxError};

use super::{launch, unconfined};
/// The helper program.
pub const HELPER: &str = "ncn-sandbox";
/// The environment variable that says where the helper is.
pub const HELPER_VARIABLE: &str = "NCN_SANDBOX";

/// Confines processes by every layer: namespaces of all kinds with a root of their own, a user without privileges, Landlock, seccomp,
/// limits on resources and on what is written, and an end with whoever started them.
///
/// The helper program does it, which is one of its own: it links a library whose licence is not this one's.
#[derive(Clone, Debug)]
pub struct NamespaceSandbox {
    helper: PathBuf,
    /// The kernel lacks some or all of Landlock.
    partial: bool,
}

impl NamespaceSandbox {
    /// A sandbox by way of the helper that [`Self::helper`] finds.
    pub fn find(program: &Path) -> Result<Self, SandboxError> {
        Self::new(Self::found(program)?)
    }

    /// The same with as much of Landlock as the kernel has, for those before Linux 6.12: the reduced level. Files and network are out of
    /// reach by the namespaces alone then.
    pub fn partial(program: &Path) -> Result<Self, SandboxError> {
        Self::open(&Self::found(program)?, true)
    }

    fn found(program: &Path) -> Result<PathBuf, SandboxError> {
        Self::helper(program).ok_or_else(|| {
            SandboxError::Unsupported(format!(
                "the program {HELPER} is neither beside this one nor in PATH: build it (`cargo build --release -p ncn-sandbox`), or say \
                 where it is in {HELPER_VARIABLE}"
            ))
        })
    }

    /// Where the helper is: as `NCN_SANDBOX` says, beside this program or beside the workers', or in the search path.
    pub fn helper(program: &Path) -> Option<PathBuf> {
        if let Some(named) = env::var_os(HELPER_VARIABLE) {
            return Some(named.into());
        }
        let programs = [env::current_exe().ok(), program.canonicalize().ok()];
        let beside = programs.into_iter().flatten().filter_map(|program| Some(program.parent()?.to_path_buf()));
        let path = env::var_os("PATH").unwrap_or_default();
        beside.chain(env::split_paths(&path)).map(|directory| directory.join(HELPER)).find(|path| path.is_file())
    }

    /// A sandbox by way of this helper. Tries it, and refuses when a layer is missing.
    pub fn new(helper: impl AsRef<Path>) -> Result<Self, SandboxError> {
        Self::open(helper.as_ref(), false)
    }

    fn open(helper: &Path, partial: bool) -> Result<Self, SandboxError> {
        let unsupported = |error: io::Error| SandboxError::Unsupported(format!("{}: {error}", helper.display()));
        let helper = helper.canonicalize().map_err(unsupported)?;
        let inside = launch::try_out(&helper, &[], partial)?;
        let outside = Report::of_this_process().map_err(unsupported)?;
        inside.check_all(&outside).map_err(launch::missing)?;
        Ok(Self { helper, partial })
    }
}

impl Sandbox for NamespaceSandbox {
    fn confinement(&self) -> Confinement {
        if self.partial { Confinement::Reduced } else { Confinement::Full }
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        if self.confinement() < policy.at_least {
            return Err(SandboxError::TooWeak { wanted: policy.at_least, reached: self.confinement() });
        }
        let launch = launch::launch(command, policy, self.partial)?;
        unconfined::spawn(&self.helper, launch.to_arguments(), &command.environment, Path::new("/"))
            .map_err(|source| SandboxError::Start { program: self.helper.clone(), source })
    }
}
