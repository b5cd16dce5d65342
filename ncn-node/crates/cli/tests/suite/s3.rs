//! The model store and a server of objects that speaks S3, a real one: signatures are checked, uploads come in parts, ranges are served.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;

use crate::{
    models,
    scene::{ncn, repository},
    wait::eventually_blocking,
};

/// The server takes no port 0.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server that ends with its test.
struct ObjectServer {
    process: Child,
    url: String,
    log: Arc<Mutex<Vec<String>>>,
    directory: TempDir,
}

impl ObjectServer {
    fn start() -> Self {
        // Another process may take the port before this one does: then there is another.
        (0..10).find_map(|_| Self::start_at(free_port())).expect("the server ended ten times")
    }

    /// None when it ended before it listened.
    fn start_at(port: u16) -> Option<Self> {
        let program = repository("target/s3/bin/nanio");
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("bucket")).unwrap();
        let mut process = Command::new(&program)
            .args(["serve", "--host", "127.0.0.1", "--port", &port.to_string(), "--data-dir"])
            .arg(directory.path())
            .envs([("NANIO_ACCESS_KEY", "key"), ("NANIO_SECRET_KEY", "a-secret")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask models` first, which installs it", program.display()));
        let log = Arc::new(Mutex::new(Vec::new()));
        let output = log.clone();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| output.lock().unwrap().push(line)));
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let url = lines.find_map(|line| {
            let line = line.unwrap();
            Some(line.split_once("running on ")?.1.split_whitespace().next()?.to_owned())
        });
        let Some(url) = url else {
            process.wait().unwrap();
            return None;
        };
        // The rest is not read, but the pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, url, log, directory })
    }

    /// Requests that were answered so, by method and status.
    fn answered(&self, method: &str, status: &str) -> usize {
        let of = |line: &&String| line.contains(&format!("\"{method} ")) && line.contains(&format!("\" {status}"));
        self.log.lock().unwrap().iter().filter(of).count()
    }

    fn ncn(&self, store: &Path, secret: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(ncn());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command
            .arg("model")
            .args(arguments)
            .env("NCN_MODELS", store)
            .envs([("AWS_ENDPOINT", self.url.as_str()), ("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", secret)])
            .output()
            .unwrap()
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_model_goes_through_a_bucket() {
    let server = ObjectServer::start();
    let stores = tempfile::tempdir().unwrap();
    let (ours, theirs) = (stores.path().join("ours"), stores.path().join("theirs"));
    // More than one part of an upload.
    let (large, small) = (models::content(25_000_000, 1), models::content(10, 2));
    let package = models::package("large", "1", &[("large.bin", &large), ("dir/small.bin", &small)]);
    let good = |store: &Path, arguments: &[&str]| {
        let output = server.ncn(store, "a-secret", arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let told = good(&ours, &["add", package.path().to_str().unwrap()]);
    assert_eq!(good(&ours, &["push", "large", "--to", "s3://bucket/some/models"]), told);
    assert!(server.directory.path().join("bucket/some/models/names/large@1").exists());
    // What the server writes about its answers may come after them.
    eventually_blocking("the large file went in parts", || server.answered("POST", "200") >= 2);

    assert_eq!(good(&theirs, &["pull", "large", "--from", "s3://bucket/some/models"]), told);
    assert_eq!(good(&theirs, &["verify"]), "large 1: whole\n");

    // Half of it is lost: the other half comes by a range, without being told where from.
    let blobs = theirs.join("blobs/sha256");
    let path = fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| entry.metadata().unwrap().len() > 10)
        .unwrap()
        .path();
    fs::remove_file(&path).unwrap();
    fs::write(path.with_extension("partial"), &large[..12_000_000]).unwrap();
    let before = server.answered("GET", "206");
    good(&theirs, &["pull", "large"]);
    eventually_blocking("a range was asked for", || server.answered("GET", "206") > before);
    assert_eq!(server.answered("GET", "206"), before + 1);
    assert_eq!(fs::read(&path).unwrap(), large);

    let fails = |secret: &str, from: &str, says: &str| {
        let output = server.ncn(&stores.path().join("none"), secret, &["pull", "large", "--from", from]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains(says), "{error}");
        assert!(!error.contains("a-secret"), "{error}");
    };
    fails("wrong", "s3://bucket/some/models", "access is denied");
    fails("a-secret", "s3://bucket/other/models", "is not there");
    fails("a-secret", "s3://nobucket", "is not there");
}
