//! An engine over bare TCP, which says exactly what a test wants, to the byte.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// What an engine answers, and whether it then leaves or stays without a word.
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) stays: bool,
}

/// An engine that ends with its test.
pub(crate) struct Engine {
    pub(crate) url: String,
    /// What it was asked, heads and bodies, but for the list of its models.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    /// Is told when someone closes a connection before the engine does.
    pub(crate) left: Arc<Notify>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Engine {
    /// Has the model `tiny`, and answers everything else like this.
    pub(crate) async fn start(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (asked, left, answer) = (Arc::default(), Arc::new(Notify::new()), Arc::new(answer));
        let (all, gone) = (Arc::clone(&asked), Arc::clone(&left));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, left, answer) = (Arc::clone(&all), Arc::clone(&gone), Arc::clone(&answer));
                tokio::spawn(async move { serve(stream, &asked, &left, &*answer).await });
            }
        });
        Self { url, asked, left, serving }
    }

    /// Answers every question with these bytes, and leaves.
    pub(crate) async fn saying(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_| Reply { bytes: bytes.clone(), stays: false }).await
    }
}

async fn serve(mut stream: TcpStream, asked: &Mutex<Vec<String>>, left: &Notify, answer: &(dyn Fn(&str) -> Reply + Send + Sync)) {
    let Some(question) = question(&mut stream).await else { return };
    let reply = if question.starts_with("GET /v1/models ") {
        Reply { bytes: json(r#"{"object":"list","data":[{"id":"other","object":"model"},{"id":"tiny"}]}"#), stays: false }
    } else {
        let reply = answer(&question);
        asked.lock().unwrap().push(question);
        reply
    };
    // In small pieces, so that nobody can take a piece for a line.
    for piece in reply.bytes.chunks(if reply.bytes.len() > 10_000 { 10_000 } else { 7 }) {
        if stream.write_all(piece).await.is_err() {
            left.notify_one();
            return;
        }
        tokio::task::yield_now().await;
    }
    if reply.stays {
        while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
        left.notify_one();
        return;
    }
    // Otherwise what is not read yet would be lost with the connection.
    let _ = stream.shutdown().await;
    let _ = stream.read(&mut [0; 64]).await;
}

/// The head and the body of a question.
async fn question(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let read = stream.read_buf(&mut bytes).await.ok()?;
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
            if body.len() >= length {
                return Some(text.into_owned());
            }
        }
        if read == 0 {
            return None;
        }
    }
}

/// An answer in JSON.
pub(crate) fn json(body: &str) -> Vec<u8> {
    status("200 OK", body)
}

/// An answer with this status.
pub(crate) fn status(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A streamed answer, which ends with the connection.
pub(crate) fn stream(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}").into_bytes()
}
