//! Trying a library in a process of its own: one that crashes there takes nobody along.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::Path,
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, process::Command};

use super::{Device, Library, OnnxRuntime, Options, Search, Unusable, find};
use crate::WorkerProgram;

/// The argument that makes a program that calls [`crate::worker::init`] try a library.
pub(crate) const ARGUMENT: &str = "ncn-onnxruntime";
/// How long that may take: libraries for graphics cards have gigabytes.
const TIMEOUT: Duration = Duration::from_mins(1);
/// How much it may say.
const MAX_ANSWER: u64 = 64 << 10;
/// The ONNX graph `y = x`, of one number.
const IDENTITY: &[u8] = b"\x08\x08:7\x0a\x10\x0a\x01x\x12\x01y\x22\x08Identity\x12\x01g\
    Z\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01b\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01\
    B\x02\x10\x0d";

/// What a library that works says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Its version.
    pub version: String,
    /// True when it was built for CUDA, too. Whether that works is seen by trying it on such a device.
    pub cuda: bool,
}

/// Has a process of this program load a library and compute something on a device.
pub async fn probe(program: &WorkerProgram, library: &Library, device: Device) -> Result<Probed, Unusable> {
    let broken = |problem: String| Unusable::Broken { path: library.path.clone(), device, problem };
    let options = Options { library: library.path.clone(), device, threads: Some(1) };
    let options = serde_json::to_string(&options).map_err(|error| broken(error.to_string()))?;
    let mut command = Command::new(&program.path);
    command.args([ARGUMENT, &options]).env_clear().envs(library.environment());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let answer = tokio::time::timeout(TIMEOUT, answer(command)).await;
    let answer = answer.map_err(|_| broken(format!("it did nothing for {TIMEOUT:?}")))?;
    answer.map_err(|error| broken(error.to_string()))?
}

/// Finds and tries every library there is, the one to be preferred first: the first that can be used is the one to use.
pub async fn diagnose(
    program: &WorkerProgram,
    search: &Search,
    device: Device,
) -> Result<Vec<(Library, Result<Probed, Unusable>)>, Unusable> {
    let mut examined = Vec::new();
    for library in find(search).await? {
        let probed = probe(program, &library, device).await;
        examined.push((library, probed));
    }
    Ok(examined)
}

async fn answer(mut command: Command) -> io::Result<Result<Probed, Unusable>> {
    let mut child = command.spawn()?;
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    }
    let status = child.wait().await?;
    serde_json::from_slice(&answer).map_err(|_| io::Error::other(format!("the process that tried it ended with {status}")))
}

/// Tries a library with the options in the argument, which follows [`ARGUMENT`], and says how it went; returns the exit status.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> i32 {
    let options = arguments.next().and_then(|options| serde_json::from_slice(options.as_encoded_bytes()).ok());
    let Some(options) = options else { return 2 };
    let said = serde_json::to_vec(&attempt(options)).unwrap_or_default();
    i32::from(io::stdout().write_all(&said).is_err())
}

fn attempt(options: Options) -> Result<Probed, Unusable> {
    let Options { library: path, device, .. } = options.clone();
    let runtime = OnnxRuntime::new(options);
    let environment = runtime.load()?;
    let computed = runtime.session(&environment, IDENTITY, Some(1)).and_then(|mut session| {
        let input = ort::value::Tensor::from_array(([1_usize], vec![1.5_f32]))?;
        let outputs = session.run(ort::inputs!["x" => input])?;
        Ok(outputs.get("y").and_then(|output| output.try_extract_tensor::<f32>().ok()).map(|(_, numbers)| numbers.to_vec()))
    });
    let problem = match computed {
        Ok(Some(numbers)) if numbers == [1.5] => return Ok(Probed { version: version(&path), cuda: super::has_cuda() }),
        Ok(numbers) => format!("for 1.5 it gave {numbers:?}"),
        Err(error) => error.to_string(),
    };
    Err(Unusable::Broken { path, device, problem })
}

/// The version of the loaded library, which is only in its file's name and, when it was built for a release, in its description.
fn version(path: &Path) -> String {
    let described = || ort::info().split(['=', ',', ' ']).find_map(|part| part.strip_prefix("rel-")).map(str::to_owned);
    super::library::version_of(path).or_else(described).unwrap_or_else(|| format!("1.{} or newer", super::MINOR_VERSION))
}
