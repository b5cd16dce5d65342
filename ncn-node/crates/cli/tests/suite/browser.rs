//! A browser that a test sits at: Chromium without a window, by the WebDriver protocol (W3C).

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::wait::{PAUSE, in_time};

/// Ends with the test.
pub(crate) struct Browser {
    driver: Child,
    _files: tempfile::TempDir,
    session: String,
    http: reqwest::Client,
}

/// A key, as the protocol writes it.
pub(crate) mod keys {
    pub(crate) const TAB: &str = "\u{E004}";
    pub(crate) const ENTER: &str = "\u{E007}";
    pub(crate) const ESCAPE: &str = "\u{E00C}";
}

impl Browser {
    /// A window of this size.
    pub(crate) async fn open((width, height): (u32, u32)) -> Self {
        let files = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("TMPDIR", files.path())
            // What it starts ends with it.
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("chromedriver: {error}: run `cargo xtask setup`"));
        let lines = BufReader::new(driver.stdout.take().unwrap());
        let port = tokio::task::spawn_blocking(move || {
            let mut said = lines.lines().map_while(Result::ok);
            said.find_map(|line| line.strip_suffix('.')?.rsplit_once("on port ")?.1.parse::<u16>().ok())
        });
        let port = in_time("chromedriver's start", port).await.unwrap().expect("chromedriver says its port");
        let mut browser = Self {
            driver,
            _files: files,
            session: format!("http://127.0.0.1:{port}/session"),
            http: ncn_client::http().unwrap().build().unwrap(),
        };
        let mut arguments = vec!["--headless".to_owned(), "--disable-gpu".to_owned(), format!("--window-size={width},{height}")];
        if rustix::process::getuid().is_root() {
            // Chromium's sandbox is for other users.
            arguments.push("--no-sandbox".into());
        }
        let options = json!({ "args": arguments });
        let wanted = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let session = browser.call(Method::POST, "", json!({ "capabilities": { "alwaysMatch": wanted } })).await;
        browser.session = format!("{}/{}", browser.session, session["sessionId"].as_str().unwrap());
        browser
    }

    async fn call(&self, method: Method, path: &str, body: Json) -> Json {
        let request = self.http.request(method.clone(), format!("{}{path}", self.session));
        let request = if method == Method::POST { request.json(&body) } else { request };
        let answer = in_time(path, async { request.send().await.unwrap().json::<Json>().await.unwrap() }).await;
        let error = answer["value"]["error"].as_str();
        assert!(error.is_none(), "{path} {body}: {answer}");
        answer["value"].clone()
    }

    /// Goes to a page.
    pub(crate) async fn go(&self, url: &str) {
        self.call(Method::POST, "/url", json!({ "url": url })).await;
    }

    /// What a piece of JavaScript returns.
    pub(crate) async fn run(&self, script: &str) -> Json {
        self.call(Method::POST, "/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Waits until an expression is true.
    pub(crate) async fn wait_for(&self, expression: &str) {
        in_time(expression, async {
            while self.run(&format!("return Boolean({expression})")).await != true {
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await;
    }

    /// Presses a key, at whatever has the focus.
    pub(crate) async fn press(&self, key: &str) {
        let strokes = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.call(Method::POST, "/actions", json!({ "actions": [keyboard] })).await;
    }

    /// Has pages see these preferences of their reader: names and values of media features.
    pub(crate) async fn prefer(&self, feature: &str, value: &str) {
        let parameters = json!({ "features": [{ "name": feature, "value": value }] });
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": parameters });
        self.call(Method::POST, "/goog/cdp/execute", command).await;
    }

    /// Sees pages as on a device of this size.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let parameters = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": true });
        let command = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": parameters });
        self.call(Method::POST, "/goog/cdp/execute", command).await;
    }

    /// What pages have complained of since this was last asked.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let log = self.call(Method::POST, "/se/log", json!({ "type": "browser" })).await;
        log.as_array().unwrap().iter().map(|entry| entry["message"].to_string()).collect()
    }

    /// A picture of what is in the window, to be looked at.
    pub(crate) async fn picture(&self, path: &Path) {
        let picture = self.call(Method::GET, "/screenshot", Json::Null).await;
        std::fs::write(path, BASE64_STANDARD.decode(picture.as_str().unwrap()).unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.driver);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.driver.wait();
    }
}
