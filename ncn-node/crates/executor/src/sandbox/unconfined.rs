use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use ncn_core::{Confinement, Policy, Sandbox, SandboxCommand, SandboxError};

/// Starts processes without confining them, and says so. For development: never run a stranger's model in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSandbox;

impl Sandbox for NoSandbox {
    fn confinement(&self) -> Confinement {
        Confinement::None
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        if self.confinement() < policy.at_least {
            return Err(SandboxError::TooWeak { wanted: policy.at_least, reached: self.confinement() });
        }
        spawn(&command.program, &command.arguments, &command.environment, &policy.work_directory)
            .map_err(|source| SandboxError::Start { program: command.program.clone(), source })
    }
}

/// Starts a process with pipes, its own environment and process group, in a directory.
pub(super) fn spawn(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    environment: &BTreeMap<String, String>,
    directory: &Path,
) -> io::Result<Child> {
    Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A group of its own: the caller ends it with whatever it has started.
        .process_group(0)
        .spawn()
}
