use std::{io, path::PathBuf};

use ncn_core::model::ManifestError;

/// Why something cannot be done with a model store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelStoreError {
    /// The store's directory, or a package's, cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file or directory.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A package's manifest makes no sense.
    #[error("{}: {source}", path.display())]
    Manifest {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// A package is not what its manifest says, or cannot be one.
    #[error("{}: {problem}", path.display())]
    Package {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// No such model.
    #[error("model {0}: is not in the store: see `ncn model list`")]
    Unknown(String),
    /// More than one model is meant.
    #[error("model {reference}: may be any of {models}: give more digits of its digest, see `ncn model list`")]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// How many it may be.
        models: usize,
    },
    /// Files are corrupt or missing, and nobody said where they can be fetched.
    #[error(
        "model {model}: {path} is missing or corrupt: fetch it with `ncn model pull {model} --from URL`, or add the package again"
    )]
    Incomplete {
        /// The model's name.
        model: String,
        /// The first such file.
        path: String,
    },
    /// Somebody removed the model while it was added or fetched.
    #[error("model {0}: was removed meanwhile: add or fetch it again")]
    Removed(String),
    /// Somebody else holds the store, or fetches the same file and stands still.
    #[error("{}: another process holds it: wait for that one, or end it", .0.display())]
    Busy(PathBuf),
    /// This is no source.
    #[error("source {url}: {problem}")]
    InvalidSource {
        /// The URL, as it was given.
        url: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A source does not have what it was asked for, or could not be asked.
    #[error("source {url}: {problem}")]
    Source {
        /// Which.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// No source has given a file. What arrived of it is kept.
    #[error("{path}: could not be fetched: {problems}")]
    NotFetched {
        /// The file's path in its package.
        path: String,
        /// What went wrong with each source.
        problems: String,
    },
}

impl ModelStoreError {
    /// True when the caller has to change something, rather than try again.
    pub const fn is_input(&self) -> bool {
        match self {
            Self::File { .. } | Self::Removed(_) | Self::Busy(_) | Self::Source { .. } | Self::NotFetched { .. } => false,
            Self::Manifest { .. }
            | Self::Package { .. }
            | Self::Unknown(_)
            | Self::Ambiguous { .. }
            | Self::Incomplete { .. }
            | Self::InvalidSource { .. } => true,
        }
    }

    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    pub(super) fn package(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Package { path: path.into(), problem: problem.into() }
    }
}
