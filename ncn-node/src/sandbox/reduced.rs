use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    process::Child,
};

use ncn_core::{Confinement, Policy, Sandbox, SandboxCommand, SandboxError};

use super::{confine, unconfined};
use crate::executor::WorkerProgram;

/// Confines processes with what works without user namespaces: Landlock for files and network, seccomp for system calls, limits on
/// resources, and no way to new privileges. Who runs it keeps its user id.
///
/// The program that it is given confines itself first and then becomes what is to be started, so nothing runs unconfined in between.
#[derive(Clone, Debug)]
pub struct Reduced {
    program: WorkerProgram,
}

impl Reduced {
    /// A sandbox that confines by way of `program`, which calls [`crate::worker::init`]. Tries it, and refuses when a layer is missing.
    pub fn new(program: &WorkerProgram) -> Result<Self, SandboxError> {
        let sandbox = Self { program: program.clone() };
        let unsupported = |problem: String| SandboxError::Unsupported(problem);
        let directory = tempfile::tempdir().map_err(|error| unsupported(error.to_string()))?;
        let policy = Policy {
            readable: Vec::new(),
            work_directory: directory.path().to_path_buf(),
            memory_bytes: None,
            at_least: Confinement::Reduced,
        };
        let probe = SandboxCommand { program: confine::PROBE.into(), arguments: Vec::new(), environment: BTreeMap::new() };
        let mut child = sandbox.spawn(probe, &policy)?;
        let mut answer = String::new();
        if let Some(output) = child.stdout.take() {
            let limit = confine::PROBED.len() as u64 + 1;
            output.take(limit).read_to_string(&mut answer).map_err(|error| unsupported(error.to_string()))?;
        }
        let status = child.wait().map_err(|error| unsupported(error.to_string()))?;
        if status.success() && answer == confine::PROBED {
            Ok(sandbox)
        } else {
            Err(unsupported(format!("{} could not confine itself ({status})", program.path.display())))
        }
    }

    fn spawn(&self, command: SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        let failed = |source| SandboxError::Start { program: command.program.clone(), source };
        let rules = serde_json::to_string(policy).map_err(|error| failed(io::Error::other(error)))?;
        let mut arguments = vec![confine::ARGUMENT.to_owned(), rules, command.program.to_string_lossy().into_owned()];
        arguments.extend(command.arguments);
        let confined = SandboxCommand { program: self.program.path.clone(), arguments, environment: command.environment };
        unconfined::spawn(&confined, policy)
    }
}

impl Sandbox for Reduced {
    fn confinement(&self) -> Confinement {
        Confinement::Reduced
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        if self.confinement() < policy.at_least {
            return Err(SandboxError::TooWeak { wanted: policy.at_least, reached: self.confinement() });
        }
        // Found missing here, where it can be said; the confined process could only end.
        if !command.program.is_file() {
            let source = io::ErrorKind::NotFound.into();
            return Err(SandboxError::Start { program: command.program.clone(), source });
        }
        self.spawn(command.clone(), policy)
    }
}
