use std::{path::PathBuf, process::Child};

use ncn_core::{Confinement, Policy, Sandbox, SandboxCommand, SandboxError};

use super::{launch, unconfined};

/// Confines processes with what works without user namespaces: Landlock for files and network, seccomp for system calls, limits on
/// resources, and no way to new privileges. Who runs it keeps its user id.
///
/// The program that it is given confines itself first and then becomes what is to be started, so nothing runs unconfined in between.
#[derive(Clone, Debug)]
pub struct LandlockSandbox {
    program: PathBuf,
    /// The kernel lacks some or all of Landlock.
    partial: bool,
}

impl LandlockSandbox {
    /// A sandbox that confines by way of `program`, which calls [`crate::worker::init`]. Tries it, and refuses when a layer is missing.
    pub fn new(program: impl Into<PathBuf>) -> Result<Self, SandboxError> {
        Self::open(program.into(), false)
    }

    /// The same with as much of Landlock as the kernel has, which may be nothing: no level of confinement, and better than nothing.
    pub fn partial(program: impl Into<PathBuf>) -> Result<Self, SandboxError> {
        Self::open(program.into(), true)
    }

    fn open(program: PathBuf, partial: bool) -> Result<Self, SandboxError> {
        launch::try_out(&program, &[launch::CONFINE], partial)?.check().map_err(launch::missing)?;
        Ok(Self { program, partial })
    }
}

impl Sandbox for LandlockSandbox {
    fn confinement(&self) -> Confinement {
        if self.partial { Confinement::None } else { Confinement::Reduced }
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        if self.confinement() < policy.at_least {
            return Err(SandboxError::TooWeak { wanted: policy.at_least, reached: self.confinement() });
        }
        let launch = launch::launch(command, policy, self.partial)?;
        let arguments = [launch::CONFINE.into()].into_iter().chain(launch.to_arguments());
        unconfined::spawn(&self.program, arguments, &command.environment, &policy.work_directory)
            .map_err(|source| SandboxError::Start { program: command.program.clone(), source })
    }
}
