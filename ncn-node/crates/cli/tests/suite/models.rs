//! The model store, and sources that fail, lag and lie.

mod sources;

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use ncn_core::{Executor as _, Model};
use ncn_executor::EngineExecutor;
use ncn_models::{ModelStore, ModelStoreError, Progress, Source};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) mod server;

use server::{Behavior, Server};

use crate::{scene::repository, wait::eventually};

/// The built-in model's manifest with other files: what else it says does not matter here.
fn draft(name: &str, version: &str) -> Value {
    let mut manifest: Value = serde_json::from_str(include_str!("../../../../models/digits/manifest.json")).unwrap();
    for (field, value) in [("name", name), ("version", version), ("format", "echo")] {
        manifest[field] = value.into();
    }
    manifest.as_object_mut().unwrap().remove("files");
    manifest
}

/// A package with these files.
pub(crate) fn package(name: &str, version: &str, files: &[(&str, &[u8])]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::write(directory.path().join("manifest.json"), draft(name, version).to_string()).unwrap();
    ncn_models::pack(directory.path(), None).unwrap();
    directory
}

/// So many bytes that look like a model's.
pub(crate) fn content(bytes: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[3]
    };
    std::iter::repeat_with(&mut next).take(bytes).collect()
}

struct Scene {
    _directory: TempDir,
    store: ModelStore,
}

/// An empty store.
fn empty() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let store = ModelStore::open(directory.path().join("store")).unwrap();
    Scene { _directory: directory, store }
}

/// A store with one model of these files.
async fn with(files: &[(&str, &[u8])]) -> (Scene, Model) {
    let scene = empty();
    let model = scene.store.add(package("model", "1", files).path()).await.unwrap();
    (scene, model)
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |there| there.len())
}

fn blob(store: &ModelStore, model: &Model, path: &str) -> std::path::PathBuf {
    let file = model.manifest().files.iter().find(|file| file.path == path).unwrap();
    store.directory().join("blobs/sha256").join(hex::encode(file.sha256))
}

fn overwrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// All files of a directory, by their paths in it.
fn files(directory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { all.push(path.strip_prefix(directory).unwrap().display().to_string()) }
        }
    }
    all.sort();
    all
}

async fn pull(scene: &Scene, model: &Model, sources: &[Source]) -> Result<(), ModelStoreError> {
    scene.store.pull(model, sources, &Progress::default()).await
}

#[tokio::test]
async fn a_package_comes_out_as_it_went_in() {
    let scene = empty();
    let model = scene.store.add(&repository("ncn-node/models/digits")).await.unwrap();
    let package = scene.store.package("digits").await.unwrap();
    assert_eq!(package.model.digest(), model.digest());
    EngineExecutor::built_in().load(&package).await.unwrap();
    let (link, original) = (package.directory.join("model.onnx"), blob(&scene.store, &model, "model.onnx"));
    assert_eq!(fs::metadata(&link).unwrap().ino(), fs::metadata(&original).unwrap().ino(), "not copied");
    assert_eq!(fs::metadata(&link).unwrap().mode() & 0o777, 0o444);
    assert_eq!(&fs::read(package.directory.join("manifest.json")).unwrap(), model.bytes());

    let listed = scene.store.list().unwrap();
    assert_eq!((listed.len(), listed[0].missing.len()), (1, 0));
    let digest = hex::encode(model.digest());
    for reference in ["digits", "digits@1.0.0", &digest, &format!("0x{digest}"), &digest[..8]] {
        assert_eq!(scene.store.find(reference).unwrap().model.digest(), model.digest(), "{reference}");
    }
    for reference in ["digit", "digits@2", &digest[..7], "../names/digits", "", &"0".repeat(64)] {
        assert!(matches!(scene.store.find(reference), Err(ModelStoreError::Unknown(_))), "{reference}");
    }
}

#[test]
fn packing_lists_the_files_and_says_what_is_wrong() {
    let directory = package("model", "1", &[("b.bin", b"two"), ("a/deep/file.txt", b"one"), ("empty", b"")]);
    let manifest = directory.path().join("manifest.json");
    let packed = fs::read(&manifest).unwrap();
    let model = ncn_models::pack(directory.path(), None).unwrap();
    assert_eq!(fs::read(&manifest).unwrap(), packed, "packing again changes nothing");
    let listed: Vec<_> = model.manifest().files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    assert_eq!(listed, [("a/deep/file.txt", 3), ("b.bin", 3), ("empty", 0)]);

    fs::write(directory.path().join("b.bin"), "2").unwrap();
    assert_ne!(ncn_models::pack(directory.path(), None).unwrap().digest(), model.digest());

    let fails = |says: &str, draft: Option<&Path>| {
        let error = ncn_models::pack(directory.path(), draft).unwrap_err();
        assert!(error.to_string().contains(says) && error.is_input(), "{error}");
    };
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join("draft.json");
    let mut without_price = draft("model", "1");
    without_price.as_object_mut().unwrap().remove("price");
    for (text, says) in [("[]".into(), "no JSON object"), ("{".into(), "EOF"), (without_price.to_string(), "price")] {
        fs::write(&path, text).unwrap();
        fails(says, Some(&path));
    }
    let mut unknown = draft("model", "1");
    unknown["colour"] = json!("blue");
    fs::write(&path, unknown.to_string()).unwrap();
    fails("colour", Some(&path));
    fs::write(&path, draft("model", "2").to_string()).unwrap();
    assert_eq!(ncn_models::pack(directory.path(), Some(&path)).unwrap().manifest().version, "2");
    fs::write(directory.path().join(".hidden"), "").unwrap();
    let visible = ncn_models::pack(directory.path(), None).unwrap();
    assert_eq!(visible.manifest().files.len(), 3, "hidden files are left out");
    fs::write(directory.path().join("with space"), "").unwrap();
    fails("with space: rename it", None);
    fs::remove_file(directory.path().join("with space")).unwrap();
    std::os::unix::fs::symlink("..", directory.path().join("a/loop")).unwrap();
    fails("a/loop: is a link", None);
    fs::remove_file(directory.path().join("a/loop")).unwrap();
    (0..256).for_each(|n| fs::write(directory.path().join(format!("{n}")), "").unwrap());
    fails("more than 256 files", None);
}

/// What a link leads to may be somebody's secret, whose size and digest the package knows.
#[tokio::test]
async fn links_lead_nowhere() {
    for linked in ["b", "dir"] {
        let package = package("model", "1", &[("a", b"first"), ("b", b"second"), ("dir/c", b"third")]);
        let elsewhere = tempfile::tempdir().unwrap();
        let (path, target) = (package.path().join(linked), elsewhere.path().join("moved"));
        fs::rename(&path, &target).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let refused = ncn_models::pack(package.path(), None).unwrap_err().to_string();
        assert!(refused.contains("is a link"), "{refused}");
        let scene = empty();
        let refused = scene.store.add(package.path()).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("{linked}: is a link")), "{refused}");
    }
}

#[tokio::test]
async fn a_package_that_is_not_what_it_says_leaves_nothing_behind() {
    for change in ["gone", "shorter", "longer", "other"] {
        let package = package("model", "1", &[("a", b"first"), ("b", b"second")]);
        let path = package.path().join("b");
        match change {
            "gone" => fs::remove_file(&path).unwrap(),
            "shorter" => fs::write(&path, "secon").unwrap(),
            "longer" => fs::write(&path, "second and more").unwrap(),
            _ => fs::write(&path, "sEcond").unwrap(),
        }
        let scene = empty();
        let error = scene.store.add(package.path()).await.unwrap_err().to_string();
        assert!(error.contains("/b: "), "{error}");
        assert_eq!(files(scene.store.directory()), ["lock"], "{change}");
    }
}

#[tokio::test]
async fn files_live_as_long_as_a_model_names_them() {
    let scene = empty();
    let one = package("model", "1", &[("shared", b"shared"), ("own", b"one")]);
    let two = package("model", "2", &[("shared", b"shared"), ("own", b"two!"), ("twice", b"two!")]);
    let one = scene.store.add(one.path()).await.unwrap();
    let two = scene.store.add(two.path()).await.unwrap();
    assert_eq!(scene.store.find("model").unwrap().model.digest(), two.digest(), "the one that came last");
    scene.store.package("model@1").await.unwrap();
    scene.store.package("model@2").await.unwrap();

    assert_eq!(scene.store.remove(&two).await.unwrap(), 4, "what only this one has");
    assert_eq!(scene.store.find("model").unwrap().model.digest(), one.digest(), "the name goes to what is left");
    assert!(scene.store.find("model@2").is_err());
    scene.store.package("model").await.unwrap();
    assert_eq!(scene.store.remove(&one).await.unwrap(), 9);
    assert_eq!(files(scene.store.directory()), ["lock"]);
}

#[tokio::test]
async fn two_models_of_one_name_and_version_are_told_apart_by_digest() {
    let scene = empty();
    let first = scene.store.add(package("model", "1", &[("a", b"1")]).path()).await.unwrap();
    let second = scene.store.add(package("model", "1", &[("a", b"2")]).path()).await.unwrap();
    assert_eq!(scene.store.find("model@1").unwrap().model.digest(), second.digest());
    let digest = hex::encode(first.digest());
    assert_eq!(scene.store.package(&digest).await.unwrap().model.digest(), first.digest());
    // Without names, as after a pull that did not end.
    fs::remove_dir_all(scene.store.directory().join("names")).unwrap();
    let error = scene.store.find("model").unwrap_err();
    assert!(matches!(error, ModelStoreError::Ambiguous { models: 2, .. }), "{error}");
}

#[tokio::test]
async fn a_digest_is_never_taken_for_a_name() {
    let scene = empty();
    let digest = "7".repeat(64);
    let model = scene.store.add(package(&digest, "1", &[("a", b"1")]).path()).await.unwrap();
    assert_eq!(model.manifest().name, digest);
    assert!(matches!(scene.store.find(&digest), Err(ModelStoreError::Unknown(_))));
    assert!(!ncn_models::is_meant(&model, &digest));
    let source = Source::new(&format!("file://{}", scene.store.directory().display())).unwrap();
    assert!(source.model(&digest).await.unwrap_err().to_string().contains("is not there"));
}

#[tokio::test]
async fn what_a_killed_copy_left_is_swept_away_later() {
    let (scene, model) = with(&[("a", b"1")]).await;
    let left = |name: &str| scene.store.directory().join("blobs/sha256").join(name);
    for name in [".new-old", ".new-young"] {
        fs::write(left(name), "half").unwrap();
    }
    let yesterday = std::time::SystemTime::now() - Duration::from_hours(25);
    fs::File::options().write(true).open(left(".new-old")).unwrap().set_modified(yesterday).unwrap();
    assert_eq!(scene.store.remove(&model).await.unwrap(), 1 + 4);
    assert!(!left(".new-old").exists() && left(".new-young").exists(), "somebody may still write the young one");
}

#[tokio::test]
async fn a_damaged_manifest_is_no_model() {
    let (scene, model) = with(&[("a", b"1")]).await;
    let manifest = scene.store.directory().join(format!("manifests/{}.json", hex::encode(model.digest())));
    let text = String::from_utf8(model.bytes().to_vec()).unwrap();
    overwrite(&manifest, text.replace("\"1\"", "\"2\"").as_bytes());
    assert!(scene.store.find("model").is_err() && scene.store.package("model").await.is_err());
    scene.store.add(package("model", "1", &[("a", b"1")]).path()).await.unwrap();
    assert_eq!(&fs::read(&manifest).unwrap(), model.bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens to a blob, nobody gets it: there is an error, or it is fetched again.
    #[test]
    fn what_is_corrupt_is_never_handed_out(at in 0_usize..5_000, bit in 0_u8..8, cut: bool, has_source: bool) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (a, b) = (content(5_000, 1), content(300, 2));
            let (origin, model) = with(&[("a", &a), ("b", &b)]).await;
            let (scene, source) = (empty(), Source::new(&format!("file://{}", origin.store.directory().display())).unwrap());
            pull(&scene, &model, &[source]).await.unwrap();
            scene.store.package("model").await.unwrap();
            if !has_source {
                fs::remove_dir_all(scene.store.directory().join("sources")).unwrap();
            }
            let path = blob(&scene.store, &model, "a");
            let mut bytes = a.clone();
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            // In place: what was handed out before is damaged with it.
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
            fs::write(&path, &bytes).unwrap();
            match scene.store.package("model").await {
                Ok(package) => {
                    assert!(has_source);
                    assert_eq!(fs::read(package.directory.join("a")).unwrap(), a);
                }
                Err(ModelStoreError::Incomplete { path, .. }) => assert!(!has_source && path == "a"),
                Err(error) => panic!("{error}"),
            }
        });
    }
}
