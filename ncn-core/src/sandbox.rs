//! The port for starting confined processes.

use std::{collections::BTreeMap, fmt, path::PathBuf, process::Child};

use serde::{Deserialize, Serialize};

/// How strongly a process is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Confinement {
    /// Not at all. For development.
    #[default]
    None = 0,
    /// By what works without user namespaces: limits on file access, network, system calls and resources.
    Reduced = 1,
    /// By every layer.
    Full = 2,
}

impl Confinement {
    /// The level with this code (its discriminant), as digests and wires use it.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::None,
            1 => Self::Reduced,
            2 => Self::Full,
            _ => return None,
        })
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Reduced => "reduced",
            Self::Full => "full",
        })
    }
}

/// What a confined process may use. Of the paths, those that are not there are no error: whoever needs them will miss them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Files and directories that it may read, besides the system's programs and libraries, and nothing more.
    pub readable: Vec<PathBuf>,
    /// Files and directories that it may read and execute, for example an interpreter with its modules.
    pub executable: Vec<PathBuf>,
    /// Device files, or directories of them, that it may read, write and command, for example a graphics processor's.
    pub devices: Vec<PathBuf>,
    /// The one directory that it may write, and that it starts in. With [`ResourceLimits::writable_bytes`] it is private: what is in it
    /// beforehand is hidden, and what is written is gone with the process. A sandbox that starts processes as another user gives that
    /// user the directory.
    pub work_directory: PathBuf,
    /// How much of everything it may use.
    pub limits: ResourceLimits,
    /// The weakest confinement that is acceptable: below it, starting is refused.
    pub at_least: Confinement,
}

impl Policy {
    /// Nothing but the system's programs and this directory, within the default limits, confined however.
    pub fn new(work_directory: impl Into<PathBuf>) -> Self {
        Self {
            readable: Vec::new(),
            executable: Vec::new(),
            devices: Vec::new(),
            work_directory: work_directory.into(),
            limits: ResourceLimits::default(),
            at_least: Confinement::None,
        }
    }
}

/// Limits on resources, as far as a sandbox can enforce them; `None` is no limit. A full one enforces all of them, a reduced one neither
/// `writable_bytes` nor `processes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// How much memory each process may write to, besides 256 MiB for the program itself and room for the stacks of two threads a
    /// processor. What is only reserved does not count, up to 64 GiB; nor do files that are mapped to be read. 4 GiB by default.
    pub memory_bytes: Option<u64>,
    /// How much processor time each process may use in its whole life, all its threads together. None by default: a worker serves
    /// many requests, each with a deadline of its own.
    pub cpu_seconds: Option<u64>,
    /// The largest file that it may write. 1 GiB by default.
    pub file_bytes: Option<u64>,
    /// How much it may have in its work directory at once; it takes memory. 1 GiB by default.
    pub writable_bytes: Option<u64>,
    /// How many processes and threads there may be at once. 1,024 by default: runtimes make threads for each processor.
    pub processes: Option<u32>,
    /// How many files each process may have open. 256 by default.
    pub open_files: Option<u32>,
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self {
            memory_bytes: Some(4 << 30),
            cpu_seconds: None,
            file_bytes: Some(1 << 30),
            writable_bytes: Some(1 << 30),
            processes: Some(1_024),
            open_files: Some(256),
        }
    }
}

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxCommand {
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its whole environment: nothing is inherited.
    pub environment: BTreeMap<String, String>,
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The policy wants more than this sandbox can do here.
    #[error("confinement: the policy wants at least `{wanted}`, this sandbox reaches `{reached}`")]
    TooWeak {
        /// What the policy wants.
        wanted: Confinement,
        /// What can be had.
        reached: Confinement,
    },
    /// The system cannot do what this sandbox needs.
    #[error("this sandbox does not work here: {0}")]
    Unsupported(String),
    /// A layer of confinement cannot be had.
    #[error("the {layer} layer of this sandbox does not work here: {reason}; remedy: {remedy}")]
    MissingLayer {
        /// Which one.
        layer: &'static str,
        /// Why.
        reason: String,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// The system refused.
    #[error("cannot start {program}: {source}")]
    Start {
        /// What was to be started.
        program: PathBuf,
        /// Why it was not.
        source: std::io::Error,
    },
}

impl SandboxError {
    /// True when the same start may succeed on another try.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Starts processes confined by a policy, and says how strongly.
///
/// # For the implementer
/// - The child's standard input and output are pipes; standard error is the parent's.
/// - Its environment is the command's and nothing else; its current directory is the policy's work directory.
/// - It leads a process group of its own, so that the caller can end it with all that it started.
/// - What the policy grants can be used also where file permissions alone would not allow it to whom the process runs as.
/// - The process ends when the caller does, and with it all that it started; so it is at [`Confinement::Full`], however the caller ends.
/// - [`Sandbox::confinement`] is what is really enforced. When that is less than `policy.at_least`, nothing is started.
pub trait Sandbox: Send + Sync {
    /// How strongly a process started here is confined.
    fn confinement(&self) -> Confinement;

    /// Starts a process.
    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError>;
}
