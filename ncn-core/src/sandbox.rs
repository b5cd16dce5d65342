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

/// What a confined process may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Directories that it may read.
    pub readable: Vec<PathBuf>,
    /// The one directory that it may write, and that it starts in.
    pub work_directory: PathBuf,
    /// How much memory it may have, where the sandbox can limit that.
    pub memory_bytes: Option<u64>,
    /// The weakest confinement that is acceptable: below it, starting is refused.
    pub at_least: Confinement,
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
/// - [`Sandbox::confinement`] is what is really enforced. When that is less than `policy.at_least`, nothing is started.
pub trait Sandbox: Send + Sync {
    /// How strongly a process started here is confined.
    fn confinement(&self) -> Confinement;

    /// Starts a process.
    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError>;
}
