//! The SDK in other languages: builds what the tests use of each.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    root,
    setup::{INSTALL, answers, apt, environment, environment_of, npm_ci, once},
    watch::run,
};

/// The library that what is generated calls, as [`python`] builds it.
const LIBRARY: &str = "target/debug/libncn_bindings.so";
/// What is generated for Swift, and where it is kept: what is written by hand cannot do without it, and those who use it need no Rust.
const SWIFT: [(&str, &str); 3] = [
    ("NCNCore.swift", "ncn-bindings/swift/Sources/NCNCore/NCNCore.swift"),
    ("NCNCoreFFI.h", "ncn-bindings/swift/Sources/NCNCoreFFI/NCNCoreFFI.h"),
    ("NCNCoreFFI.modulemap", "ncn-bindings/swift/Sources/NCNCoreFFI/module.modulemap"),
];

/// Generates the bindings of a language, in this directory.
fn generate(language: &str, directory: &Path) -> Result<()> {
    let bindgen = ["run", "--quiet", "--locked", "--package", "ncn-bindgen", "--bin", "uniffi-bindgen", "--"];
    let generate = ["generate", "--language", language, "--no-format", "--out-dir", &*directory.to_string_lossy(), LIBRARY];
    run("cargo", &[&bindgen[..], &generate].concat(), &root())
}

/// The package for Swift: writes what is generated, or makes sure that it is there. There is no compiler here; its header is compiled, and what is written by
/// hand is parsed.
pub(crate) fn swift(check: bool) -> Result<()> {
    let (root, directory) = (root(), root().join("target/bindings/swift"));
    if !check {
        run("cargo", &["build", "--quiet", "--locked", "--package", "ncn-bindings"], &root)?;
    }
    generate("swift", &directory)?;
    for (generated, committed) in SWIFT {
        let generated = fs::read_to_string(directory.join(generated))?;
        // Its lines end as they were made.
        let generated: String = generated.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
        let committed = root.join(committed);
        if !check {
            fs::write(committed, generated)?;
        } else if fs::read_to_string(&committed).ok().as_ref() != Some(&generated) {
            bail!("{} is not what ncn-bindings generates: run `cargo xtask codegen` and commit the result", committed.display());
        }
    }
    let header = root.join(SWIFT[1].1).to_string_lossy().into_owned();
    run("cc", &["-fsyntax-only", "-w", "-D_Nonnull=", "-D_Nullable=", "-x", "c", &header], &root)?;
    let python = environment("swift", "ncn-bindings/swift/requirements.txt", &["--no-deps"])?;
    run(python, &["ncn-bindings/swift/parse.py", "ncn-bindings/swift", "examples/swift"], &root)
}

/// The package for Python, built as one wheel, and installed in a virtual environment for the oldest CPython that it supports and for the newest one that
/// is here.
pub(crate) fn python() -> Result<()> {
    let wheel = wheel("dev")?;
    let tools = root().join("ncn-bindings/python/tests");
    npm_ci(&tools)?;
    let tests = "ncn-bindings/python/tests/requirements.txt";
    let interpreters = interpreters();
    for (version, python) in &interpreters {
        install(python, &format!("bindings/{version}"), tests, &[], &wheel)?;
    }
    let (_, newest) = interpreters.last().context("python3: there is no CPython from 3.9 on")?;
    install(newest, "examples/python", "examples/python/requirements.txt", &["--no-deps"], &wheel)
}

/// The same as people install it, and what it is compared with: for measurements.
pub(crate) fn release() -> Result<()> {
    let tests = "ncn-bindings/python/tests/requirements.txt";
    install(Path::new("python3"), "bench/bindings", tests, &[], &wheel("release")?)?;
    run("cargo", &["build", "--quiet", "--release", "--locked", "--package", "ncn-bindings", "--example", "measure"], &root())
}

/// Builds the wheel with one of Cargo's profiles.
fn wheel(profile: &str) -> Result<String> {
    let maturin = environment("maturin", "ncn-bindings/python/requirements.txt", &["--no-deps"])?.with_file_name("maturin");
    let wheels = root().join("target/wheels").join(profile);
    if wheels.exists() {
        fs::remove_dir_all(&wheels)?;
    }
    let build = ["build", "--quiet", "--profile", profile, "--out", &*wheels.to_string_lossy()];
    run(&maturin, &build, &root().join("ncn-bindings/python"))?;
    let built = fs::read_dir(&wheels)?.next().context("target/wheels: maturin has built no wheel")??.path();
    Ok(built.to_string_lossy().into_owned())
}

/// Installs a wheel for an interpreter, in an environment of this name with what it needs.
fn install(python: &Path, name: &str, requirements: &str, options: &[&str], wheel: &str) -> Result<()> {
    let options = [&["--only-binary", ":all:", "--no-warn-script-location"], options].concat();
    let own = environment_of(python, name, requirements, &options)?;
    run(own, &[&INSTALL[..], &["--force-reinstall", "--no-deps", wheel]].concat(), &root())
}

/// CPython 3.9, where it is, and the newest one, by version: those that are found by name, and those of pyenv.
fn interpreters() -> Vec<(String, PathBuf)> {
    let pyenv = Command::new("pyenv").arg("root").output().ok().filter(|output| output.status.success());
    let pyenv = pyenv.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("versions"));
    let installed = pyenv.and_then(|versions| fs::read_dir(versions).ok()).into_iter().flatten().filter_map(Result::ok);
    let named = (9..30).map(|minor| PathBuf::from(format!("python3.{minor}"))).chain([PathBuf::from("python3")]);
    let candidates = installed.map(|version| version.path().join("bin/python")).chain(named);
    let version = "import sys, venv; print(sys.implementation.name == 'cpython' and sys.version_info >= (3, 9) and '3.%02d' % sys.version_info[1])";
    let mut found = BTreeMap::new();
    for python in candidates {
        let Ok(output) = Command::new(&python).args(["-c", version]).output() else { continue };
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && version.starts_with("3.") {
            found.entry(version).or_insert(python);
        }
    }
    let newest = found.last_key_value().map(|(version, python)| (version.clone(), python.clone()));
    let oldest = found.remove_entry("3.09");
    let mut both: Vec<_> = oldest.into_iter().chain(newest).collect();
    both.dedup_by(|one, other| one.0 == other.0);
    both
}

/// Where the classes of the package for Kotlin, of its tests and of its examples are.
const KOTLIN: &str = "target/bindings/kotlin";

/// The package for Kotlin: what is generated, and what is written over it, compiled together with its tests. It takes a Java runtime, and Debian's packages
/// of how Java calls libraries and reads JSON.
pub(crate) fn kotlin() -> Result<()> {
    let (root, package) = (root(), root().join("ncn-bindings/kotlin"));
    let there = |path: &str| Path::new(path).exists();
    if !(there("/usr/share/java/jna.jar") && there("/usr/share/java/gson.jar") && answers("java")) {
        apt(&["libjna-java", "libjna-jni", "libgoogle-gson-java", "default-jre-headless"])?;
    }
    npm_ci(&package)?;
    let output = root.join(KOTLIN);
    let generated = output.join("generated");
    generate("kotlin", &generated)?;
    let sources = [generated.join("network/ncn/ncn.kt"), package.join("src"), package.join("tests"), root.join("examples/kotlin")];
    let mut all = String::new();
    for source in &sources {
        all.push_str(&text_of(source)?);
    }
    let list = output.join("sources");
    fs::write(&list, all)?;
    let library = |name: &str| package.join("node_modules/kotlin-compiler/lib").join(name).to_string_lossy().into_owned();
    let path = ["/usr/share/java/jna.jar", "/usr/share/java/gson.jar", &library("kotlinx-coroutines-core-jvm.jar")].join(":");
    once(&output.join("compiled"), &list, || {
        let compiler = library("*");
        let jar = output.join("ncn.jar").to_string_lossy().into_owned();
        let mut arguments =
            vec!["-Xmx1g", "-cp", &compiler, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-reflect", "-nowarn"];
        arguments.extend(["-jvm-target", "17", "-cp", &path, "-d", &jar]);
        let sources: Vec<_> = sources.iter().map(|source| source.to_string_lossy().into_owned()).collect();
        arguments.extend(sources.iter().map(String::as_str));
        run("java", &arguments, &root)
    })
}

/// The text of a file, or of all files in a directory.
fn text_of(path: &Path) -> Result<String> {
    if path.is_file() {
        return fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let mut files: Vec<_> = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    files.iter().map(|file| text_of(file)).collect()
}

/// The package for browsers and Node, built with what its lock file has.
pub(crate) fn typescript() -> Result<()> {
    let package = root().join("ncn-bindings/typescript");
    npm_ci(&package)?;
    run("npm", &["run", "--silent", "build"], &package)
}
