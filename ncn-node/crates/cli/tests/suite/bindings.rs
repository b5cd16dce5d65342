//! The SDK in other languages, at a running devnet. `cargo xtask setup` builds and installs what is tested.

mod examples;
mod interrupted;
mod measured;
mod network;
mod scenario;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    cli::Devnet,
    scene::{ncn, repository},
};

/// The interpreters that the package is installed for.
fn interpreters() -> Vec<PathBuf> {
    let installed = fs::read_dir(repository("target/bindings")).into_iter().flatten().filter_map(Result::ok);
    let interpreters = installed.map(|environment| environment.path().join("bin/python")).filter(|python| python.exists());
    interpreters.collect()
}

/// Has a program make the scenario's calls.
async fn makes_the_calls(mut program: Command) {
    let scene = network::Scene::start().await;
    program.envs(scene.environment()).env("NCN_ROOT", repository(""));
    let made = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
    let (said, problems) = (String::from_utf8_lossy(&made.stdout), String::from_utf8_lossy(&made.stderr));
    let good = said.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(made.status.success() && good == scenario::calls(), "{said}{problems}");
    scene.is_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_in_python() {
    for python in interpreters() {
        let mut program = Command::new(python);
        program.arg(repository("ncn-bindings/python/tests/scenario.py")).env("PYTHONSAFEPATH", "1");
        makes_the_calls(program).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_in_typescript() {
    let mut program = Command::new("node");
    program.arg("test/scenario.js").current_dir(repository("ncn-bindings/typescript"));
    makes_the_calls(program).await;
}

/// A program in Kotlin.
fn kotlin(class: &str) -> Command {
    let compiled = repository("target/bindings/kotlin/ncn.jar");
    assert!(compiled.exists(), "target/bindings/kotlin: is not built: run `cargo xtask setup`");
    let library = repository("ncn-bindings/kotlin/node_modules/kotlin-compiler/lib");
    let classes = [compiled, "/usr/share/java/jna.jar".into(), "/usr/share/java/gson.jar".into()];
    let coroutines = ["kotlin-stdlib.jar", "kotlinx-coroutines-core-jvm.jar"].map(|name| library.join(name));
    let mut program = Command::new("java");
    let native = format!("-Djna.library.path={}", ncn().parent().unwrap().display());
    program.arg(native).arg("-cp").arg(std::env::join_paths(classes.iter().chain(&coroutines)).unwrap()).arg(class);
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_in_kotlin() {
    makes_the_calls(kotlin("ScenarioKt")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_in_swift() {
    let toolchain = Command::new("swift").arg("--version").output();
    if !toolchain.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Swift version")) {
        println!("there is no Swift toolchain: what is in ncn-bindings/swift is parsed alone");
        return;
    }
    let scene = network::Scene::start().await;
    let library = ncn().parent().unwrap().to_path_buf();
    let mut program = Command::new("swift");
    program.arg("test").arg("-Xlinker").arg(format!("-L{}", library.display())).env("LD_LIBRARY_PATH", library);
    program.envs(scene.environment()).current_dir(repository("ncn-bindings/swift"));
    let tested = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
    scene.is_idle().await;
}

/// The package's types hold in itself, in the examples, and in programs as strict as can be.
#[test]
fn the_python_package_is_typed() {
    let environment = repository("target/examples/python");
    let mut libraries = fs::read_dir(environment.join("lib")).unwrap().map(|entry| entry.unwrap().path());
    let package = libraries.find_map(|library| Some(library.join("site-packages/ncn")).filter(|package| package.exists()));
    let package = package.expect("the package is not installed: run `cargo xtask setup`");
    let sources = |directory: &Path| {
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|extension| extension == "py")).collect::<Vec<_>>()
    };
    let mut check = Command::new("node");
    check.arg(repository("ncn-bindings/python/tests/node_modules/pyright/index.js"));
    check.arg("--pythonpath").arg(environment.join("bin/python")).args(sources(&package));
    check.args(sources(&repository("examples/python"))).arg(repository("ncn-bindings/python/tests/typed.py"));
    let checked = check.output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && said.contains("0 errors, 0 warnings"), "{said}");
}

#[test]
fn the_python_package_does_what_programs_need() {
    let interpreters = interpreters();
    assert!(!interpreters.is_empty(), "target/bindings: has no Python with the package: run `cargo xtask setup`");
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    for python in interpreters {
        let files = tempfile::tempdir().unwrap();
        let tests = Command::new(&python)
            .arg(repository("ncn-bindings/python/tests/test_ncn.py"))
            .env("NCN_GATEWAY", &devnet.gateway)
            .env("NCN_RPC", &devnet.rpc)
            .env("NCN_ROOT", repository(""))
            .env("NCN_FILES", files.path())
            // Not what stands beside the tests.
            .env("PYTHONSAFEPATH", "1")
            .current_dir(files.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&tests.stderr);
        assert!(tests.status.success() && said.contains("\nOK"), "{}: {said}", python.display());
    }
}

/// Opens a channel of the first client's.
fn open_channel(devnet: &Devnet, directory: &Path) -> Output {
    let mut open = Command::new(ncn());
    open.args(["channel", "open", "--channel", "channel.json", "--key", "keys/client-0.key", "--deposit", "1", "--days", "7"]);
    open.args(["--rpc", &devnet.rpc, "--gateway", &devnet.gateway]).current_dir(directory).output().unwrap()
}

#[test]
fn the_typescript_package_does_what_programs_need() {
    let package = repository("ncn-bindings/typescript");
    assert!(package.join("dist/index.js").exists(), "ncn-bindings/typescript: is not built: run `cargo xtask setup`");
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let opened = open_channel(&devnet, directory.path());
    assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    let tests = Command::new("node")
        .args(["--test", "test/client.test.js", "test/receipts.test.js"])
        .env("NCN_GATEWAY", &devnet.gateway)
        .env("NCN_KEYS", directory.path().join("keys"))
        .env("NCN_CHANNEL", directory.path().join("channel.json"))
        .current_dir(&package)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tests.stdout);
    assert!(tests.status.success() && said.contains("# pass 10") && said.contains("# skipped 0"), "{said}");
}
