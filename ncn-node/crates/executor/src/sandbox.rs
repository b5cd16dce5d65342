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
use ncn_core::{Confinement, Sandbox, SandboxError};
pub use unconfined::NoSandbox;

/// How much confinement an operator insists on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxMode {
    /// Every layer, or nothing is started.
    Strict,
    /// The most that this system can do, and at least the reduced level, or nothing is started.
    Reduced,
    /// The most that this system can do, whatever that is.
    #[default]
    Permissive,
    /// None. For development.
    Disabled,
}

impl SandboxMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Strict, Self::Reduced, Self::Permissive, Self::Disabled];
}

impl fmt::Display for SandboxMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::Reduced => "reduced",
            Self::Permissive => "permissive",
            Self::Disabled => "disabled",
        })
    }
}

impl FromStr for SandboxMode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mode = Self::ALL.into_iter().find(|mode| mode.to_string() == name);
        mode.ok_or_else(|| format!("{name:?} is none of strict, reduced, permissive and disabled"))
    }
}

/// The sandbox for this mode. `program` is one that calls [`crate::worker::init`]: at the reduced level, it confines itself before it
/// becomes what is to be started.
///
/// Each sandbox is tried before it is chosen; what keeps one from being tried is an error in every mode. Says loudly, and exactly, what is missing when it is not the full one; in
/// [`SandboxMode::Strict`] that is an error instead, and in [`SandboxMode::Reduced`] less than that level is.
pub fn open(mode: SandboxMode, program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    match mode {
        SandboxMode::Strict => strict(program),
        SandboxMode::Reduced => at_least(Confinement::Reduced, program),
        SandboxMode::Permissive => at_least(Confinement::None, program),
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
type Open = fn(&Path) -> Result<Arc<dyn Sandbox>, SandboxError>;

/// The strongest sandbox that this system has, and why it is none that is stronger.
#[cfg(target_os = "linux")]
fn best(program: &Path) -> Result<(Arc<dyn Sandbox>, Vec<SandboxError>), SandboxError> {
    let mut missing = Vec::new();
    let all: [Open; 4] = [
        |program| Ok(Arc::new(NamespaceSandbox::find(program)?)),
        |program| Ok(Arc::new(NamespaceSandbox::partial(program)?)),
        |program| Ok(Arc::new(LandlockSandbox::new(program)?)),
        |program| Ok(Arc::new(LandlockSandbox::partial(program)?)),
    ];
    for open in all {
        match open(program) {
            Ok(sandbox) => return Ok((sandbox, missing)),
            // That may pass, and models would be less confined for as long as this program runs.
            Err(error @ SandboxError::Start { .. }) => return Err(error),
            Err(error) => missing.push(error),
        }
    }
    Ok((Arc::new(NoSandbox), missing))
}

#[cfg(target_os = "linux")]
fn at_least(least: Confinement, program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    let (sandbox, missing) = best(program)?;
    let level = sandbox.confinement();
    let why: Vec<_> = missing.iter().map(ToString::to_string).collect();
    match (level, missing.into_iter().next()) {
        (level, Some(first)) if level < least => return Err(first),
        (Confinement::None, _) => tracing::error!(?why, "MODELS RUN UNCONFINED, or nearly so: `ncn doctor` says more"),
        (_, Some(_)) => tracing::error!(%level, ?why, "MODELS ARE NOT CONFINED BY EVERY LAYER: `ncn doctor` says more"),
        (_, None) => {}
    }
    Ok(sandbox)
}

#[cfg(not(target_os = "linux"))]
fn strict(_program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    Err(SandboxError::Unsupported("there is no sandbox for this system but for Linux".into()))
}

#[cfg(not(target_os = "linux"))]
fn at_least(least: Confinement, program: &Path) -> Result<Arc<dyn Sandbox>, SandboxError> {
    if least > Confinement::None {
        return strict(program);
    }
    tracing::error!("MODELS RUN UNCONFINED: there is no sandbox for this system but for Linux");
    Ok(Arc::new(NoSandbox))
}
