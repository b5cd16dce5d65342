//! Real models, as `cargo xtask models` fetched them.

use std::{env, path::PathBuf};

use ncn_models::{ModelStore, Progress, Source};

/// The directory of a fetched package.
pub(crate) fn directory(name: &str) -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").unwrap_or_else(|| env::home_dir().unwrap().join(".cache")).join("ncn/test-models");
    let package = set("NCN_TEST_MODELS").unwrap_or_else(cache).join(name);
    assert!(package.join("manifest.json").exists(), "{} is not there: run `cargo xtask models` first", package.display());
    package
}

#[tokio::test(flavor = "multi_thread")]
async fn real_packages_go_from_store_to_store() {
    let directories = tempfile::tempdir().unwrap();
    let ours = ModelStore::open(directories.path().join("ours")).unwrap();
    let theirs = ModelStore::open(directories.path().join("theirs")).unwrap();
    let source = Source::new(&format!("file://{}", ours.directory().display())).unwrap();
    for name in ["magika", "silero-vad", "minilm", "smollm2"] {
        let model = ours.add(&directory(name)).await.unwrap();
        assert_eq!(source.model(name).await.unwrap().digest(), model.digest());
        theirs.pull(&model, std::slice::from_ref(&source), &Progress::default()).await.unwrap();
        assert!(theirs.verify(&model).await.unwrap().is_empty());
    }
}
