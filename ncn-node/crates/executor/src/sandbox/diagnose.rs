use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use ncn_confine::{Layer, Missing};
use ncn_core::Confinement;

use super::{NamespaceSandbox, best, open};
use crate::sandbox::SandboxMode;

/// How long the helper may take to try every layer, and how much it may say.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_SAID: u64 = 64 << 10;

/// A layer of confinement, and whether this machine has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerState {
    /// What it is called.
    pub name: &'static str,
    /// Why it cannot be had; none when it can.
    pub missing: Option<String>,
    /// What the operator can do when it cannot.
    pub remedy: &'static str,
}

/// What this machine can confine models by.
#[derive(Clone, Debug)]
pub struct SandboxReport {
    /// The helper program, if it was found.
    pub helper: Option<PathBuf>,
    /// Each layer, tried by itself; or why none could be tried.
    pub layers: Result<Vec<LayerState>, String>,
    /// The level that is reached here in [`SandboxMode::Permissive`].
    pub level: Confinement,
    /// Why [`SandboxMode::Strict`] does not work; none when it does.
    pub refused: Option<String>,
}

/// Tries what this machine can confine models by. `program` is as for [`open`].
pub fn diagnose(program: &Path) -> SandboxReport {
    let helper = NamespaceSandbox::helper(program).filter(|helper| helper.is_file());
    let layers = helper.as_ref().map_or_else(|| Err("there is no helper program".into()), layers);
    let refused = open(SandboxMode::Strict, program).err().map(|error| error.to_string());
    let level = match &refused {
        None => Confinement::Full,
        Some(_) => best(program).map_or(Confinement::None, |(sandbox, _)| sandbox.confinement()),
    };
    SandboxReport { helper, layers, level, refused }
}

/// All that is said, or nothing when it does not end in time.
fn said_in_time(mut output: impl Read + Send + 'static, timeout: Duration) -> String {
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let mut all = String::new();
        let read = output.by_ref().take(MAX_SAID).read_to_string(&mut all);
        said.send(if read.is_ok() { all } else { String::new() })
    });
    heard.recv_timeout(timeout).unwrap_or_default()
}

/// What the helper says of each layer.
fn layers(helper: &PathBuf) -> Result<Vec<LayerState>, String> {
    let directory = tempfile::tempdir()
        .map_err(|error| format!("no temporary directory: {error}: have TMPDIR name one that can be written"))?;
    let tried = (|| {
        // The work directory of a worker is its user's, whoever that is.
        #[cfg(unix)]
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut command = Command::new(helper);
        command.arg("--check").arg(directory.path()).env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let said = child.stdout.take().map(|output| said_in_time(output, CHECK_TIMEOUT)).unwrap_or_default();
        // What is stuck ends now; what has ended already does not mind.
        let _ = child.kill();
        child.wait().map(|_| said)
    })();
    let said = tried.map_err(|error: io::Error| format!("{}: {error}", helper.display()))?;
    let layers: Vec<_> = said
        .lines()
        .filter_map(|line| {
            let missing = line.parse::<Missing>().ok();
            let layer = missing.as_ref().map_or_else(|| line.parse::<Layer>().ok(), |missing| Some(missing.layer))?;
            Some(LayerState { name: layer.name(), missing: missing.map(|missing| missing.reason), remedy: layer.remedy() })
        })
        .collect();
    if layers.is_empty() {
        return Err(format!("{} says nothing of layers: build it again with this program", helper.display()));
    }
    Ok(layers)
}
