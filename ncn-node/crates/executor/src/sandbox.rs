//! Starting processes, confined as well as this system can.

#[cfg(target_os = "linux")]
mod diagnose;
#[cfg(target_os = "linux")]
mod landlock;
#[cfg(target_os = "linux")]
pub(crate) mod launch;
#[cfg(target_os = "linux")]
mod namespaces;
mod unconfined;

use std::{fmt, path::Path, str::FromStr, sync::Arc};

#[cfg(target_os = "linux")]
pub use self::landlock::LandlockSandbox;
#[cfg(target_os = "linux")]
pub use diagnose::{LayerState, SandboxReport, diagnose};
#[cfg(target_os = "linux")]
pub use namespaces::{HELPER, HELPER_VARIABLE, NamespaceSandbox};
use ncn_core::{Sandbox, SandboxError};
pub use unconfined::NoSandbox;

/// How much confinement an operator insists on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxMode {
    /// Every layer, or nothing is started.
    Strict,
    /// The most that this system can do.
    #[default]
    Permissive,
    /// None. For development.
    Disabled,
}

impl SandboxMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Permissive, Self::Disabled];
}

impl fmt::Display for SandboxMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
            Self::Disabled => "disabled",
        })
    }
}

impl FromStr for SandboxMode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mode = Self::ALL.into_iter().find(|mode| mode.to_string() == name);
        mode.ok_or_else(|| format!("{name:?} is none of strict, permissive and disabled"))
    }
}

/// The sandbox for this mode. `program` is one that calls [`crate::worker::init`]: at the reduced level, it confines itself before it
/// becomes what is to be started.
///
/// Each sandbox is tried before it is chosen; what keeps one from being tried is an error in both modes. Says loudly, and exactly, what is missing when it is not the full one; in
/// [`SandboxMode::Strict`] that is an error instead.
pub fn open(mode: SandboxMode, program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    match mode {
        SandboxMode::Strict => strict(program),
        SandboxMode::Permissive => permissive(program),
        SandboxMode::Disabled => {
            tracing::error!("MODELS RUN UNCONFINED: the sandbox is disabled. For development only");
            Ok(Arc::new(NoSandbox))
        }
    }
}

#[cfg(target_os = "linux")]
fn strict(program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    Ok(Arc::new(NamespaceSandbox::find(program)?))
}

#[cfg(target_os = "linux")]
fn permissive(program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    match NamespaceSandbox::find(program) {
        Ok(full) => return Ok(Arc::new(full)),
        // That may pass, and models would be less confined for as long as this program runs.
        Err(error @ SandboxError::Start { .. }) => return Err(error),
        Err(error) => tracing::error!(%error, "MODELS ARE NOT CONFINED BY EVERY LAYER: `ncn doctor` says more"),
    }
    match LandlockSandbox::new(program) {
        Ok(reduced) => return Ok(Arc::new(reduced)),
        Err(error @ SandboxError::Start { .. }) => return Err(error),
        Err(error) => tracing::error!(%error, "MODELS RUN UNCONFINED: this system cannot confine them"),
    }
    Ok(Arc::new(NoSandbox))
}

#[cfg(not(target_os = "linux"))]
fn strict(_program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    Err(SandboxError::Unsupported("there is no sandbox for this system but for Linux".into()))
}

#[cfg(not(target_os = "linux"))]
fn permissive(_program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    tracing::error!("MODELS RUN UNCONFINED: there is no sandbox for this system but for Linux");
    Ok(Arc::new(NoSandbox))
}
