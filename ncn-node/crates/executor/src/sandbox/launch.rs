//! What both sandboxes of Linux share: a policy as a command line, and trying one out.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf, absolute},
    process::{Command, Stdio, id},
};

use ncn_confine::{Grants, Launch, Layer, Limits, Missing, Report};
use ncn_core::{Policy, SandboxCommand, SandboxError};

/// The argument that makes a program that calls [`crate::worker::init`] confine itself and become another.
pub(crate) const CONFINE: &str = "ncn-confine";

/// Runs as what [`CONFINE`] asks for. Returns only when that fails, with the exit status.
pub(crate) fn become_confined(arguments: impl Iterator<Item = OsString>) -> i32 {
    let launch = Launch::parse(arguments).map_err(|problem| Missing::new(Layer::Program, problem));
    let missing = launch.map_or_else(|missing| missing, |launch| ncn_confine::run(&launch, false));
    // Standard error is the parent's; nothing else may be said.
    let _ = writeln!(io::stderr(), "{CONFINE}: {missing}");
    126
}

/// What starts this command under this policy, with what there is of Landlock where `partial` says so.
pub(super) fn launch(command: &SandboxCommand, policy: &Policy, partial: bool) -> Result<Launch, SandboxError> {
    let failed = |source| SandboxError::Start { program: command.program.clone(), source };
    // What is not there cannot be granted; whoever needs it will miss it.
    let all = |paths: &[PathBuf]| {
        let there = paths.iter().filter(|path| path.exists());
        there.map(absolute).collect::<io::Result<Vec<_>>>().map_err(failed)
    };
    let limits = &policy.limits;
    let program = absolute(&command.program).map_err(failed)?;
    // Found missing here, where it can be said; the confined process could only end.
    if !program.is_file() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(Launch {
        grants: Grants {
            readable: all(&policy.readable)?,
            executable: all(&policy.executable)?,
            devices: all(&policy.devices)?,
            work_directory: absolute(&policy.work_directory).map_err(failed)?,
        },
        limits: Limits {
            memory_bytes: limits.memory_bytes,
            cpu_seconds: limits.cpu_seconds,
            file_bytes: limits.file_bytes,
            writable_bytes: limits.writable_bytes,
            processes: limits.processes.map(u64::from),
            open_files: limits.open_files.map(u64::from),
        },
        environment: command.environment.keys().map(Into::into).collect(),
        parent: Some(id()),
        user: None,
        partial,
        report: false,
        program,
        arguments: command.arguments.iter().map(Into::into).collect(),
    })
}

/// Has a process confine itself by way of `program` with these first arguments, and report what is in force for it.
pub(super) fn try_out(program: &Path, first: &[&str], partial: bool) -> Result<Report, SandboxError> {
    let unsupported = |problem: String| SandboxError::Unsupported(format!("{}: {problem}", program.display()));
    let failed = |source| SandboxError::Start { program: program.to_path_buf(), source };
    let directory = tempfile::tempdir().map_err(failed)?;
    // The default limits, each of which has to work.
    let any = SandboxCommand { program: program.to_path_buf(), arguments: Vec::new(), environment: [].into() };
    let launch = Launch { report: true, ..launch(&any, &Policy::new(directory.path()), partial)? };
    let mut command = Command::new(program);
    command.args(first).args(launch.to_arguments()).env_clear().stdin(Stdio::null());
    let output = command.output().map_err(|error| match error.kind() {
        // What is no program never will be one; other failures may pass.
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => unsupported(error.to_string()),
        _ => failed(error),
    })?;
    let report = std::str::from_utf8(&output.stdout).ok().filter(|report| output.status.success() && !report.is_empty());
    report.and_then(|report| report.parse().ok()).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        refusal(said).unwrap_or_else(|| unsupported(format!("did not confine itself ({}) {said}", output.status)))
    })
}

/// The missing layer that a process has named before it ended.
fn refusal(said: &str) -> Option<SandboxError> {
    said.lines().find_map(|line| {
        let (_, problem) = line.split_once(": ")?;
        // birdcage's own words for what fails once there are namespaces: mounts, and the new root.
        let root = line.starts_with("sandboxing failure").then(|| Missing::new(Layer::Root, problem));
        Some(missing(root.or_else(|| problem.parse().ok())?))
    })
}

/// A missing layer as the port's error.
pub(super) fn missing(missing: Missing) -> SandboxError {
    SandboxError::MissingLayer { layer: missing.layer.name(), reason: missing.reason, remedy: missing.layer.remedy() }
}
