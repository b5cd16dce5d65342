//! What may stand between a ledger and its node.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

type Refuses = dyn Fn(&str) -> bool + Send + Sync;
type Changes = dyn Fn(&str, &mut Value) + Send + Sync;
type Says = dyn Fn(&Value, usize) -> Option<String> + Send + Sync;

/// A proxy that counts what is asked, and fails or changes answers.
pub(super) struct Proxy {
    address: std::net::SocketAddr,
    counts: Arc<Mutex<HashMap<String, usize>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Hands calls on unless `refuses` says no to their method: those get an error page.
    pub(super) async fn before(node: &str, refuses: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self::start(node, Arc::new(refuses), Arc::new(|_: &str, _: &mut Value| ())).await
    }

    /// Hands calls on and `changes` the answers; what becomes null is an error page.
    pub(super) async fn answering(node: &str, changes: impl Fn(&str, &mut Value) + Send + Sync + 'static) -> Self {
        Self::start(node, Arc::new(|_: &str| false), Arc::new(changes)).await
    }

    /// Hands calls on unless it has something to say to this question, which is the so manieth of its method: a whole answer over HTTP,
    /// or nothing, and the connection is closed.
    pub(super) async fn saying(node: &str, says: impl Fn(&Value, usize) -> Option<String> + Send + Sync + 'static) -> Self {
        Self::with(node, Arc::new(|_: &str| false), Arc::new(|_: &str, _: &mut Value| ()), Arc::new(says)).await
    }

    /// Refuses some, and changes answers to others.
    pub(super) async fn start(node: &str, refuses: Arc<Refuses>, changes: Arc<Changes>) -> Self {
        Self::with(node, refuses, changes, Arc::new(|_: &Value, _| None)).await
    }

    async fn with(node: &str, refuses: Arc<Refuses>, changes: Arc<Changes>, says: Arc<Says>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Mutex<HashMap<String, usize>>>::default();
        let (counted, node, http) = (counts.clone(), node.to_owned(), reqwest::Client::new());
        let serving = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counts, node, http) = (counted.clone(), node.clone(), http.clone());
                let (refuses, changes, says) = (refuses.clone(), changes.clone(), says.clone());
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some((path, question)) = read(&mut stream).await {
                        let method = question["method"].as_str().unwrap_or_default().to_owned();
                        let count = {
                            let mut counts = counts.lock().unwrap();
                            let count = counts.entry(method.clone()).or_default();
                            *count += 1;
                            *count
                        };
                        if let Some(said) = says(&question, count) {
                            if said.is_empty() || stream.write_all(said.as_bytes()).await.is_err() {
                                return;
                            }
                            continue;
                        }
                        let mut answer = Value::Null;
                        if !refuses(&method) {
                            answer = http.post(&node).json(&question).send().await.unwrap().json().await.unwrap();
                            changes(&method, &mut answer);
                        }
                        let (status, body) = match answer {
                            Value::Null => (500, format!("Cannot POST {path}")),
                            answer => (200, answer.to_string()),
                        };
                        let head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n\r\n", body.len());
                        if stream.write_all(format!("{head}{body}").as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }));
        Self { address, counts, _serving: serving }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often a method was asked for.
    pub(super) fn count(&self, method: &str) -> usize {
        self.counts.lock().unwrap().get(method).copied().unwrap_or_default()
    }

    /// How much was asked altogether.
    pub(super) fn total(&self) -> usize {
        self.counts.lock().unwrap().values().sum()
    }
}

/// The path and body of the next request.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<(String, Value)> {
    let (mut path, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        path = path.or_else(|| line.split(' ').nth(1).map(str::to_owned));
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((path?, serde_json::from_slice(&body).ok()?))
}
