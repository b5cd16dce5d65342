//! A server of files that answers as it is told.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ncn_models::Source;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// How blobs are answered; everything else is answered honestly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behavior {
    Honest,
    /// Without saying how long the answer is.
    NoLength,
    /// With a header that is no date.
    OddDate,
    /// Asks to wait for a second, at first.
    Busy,
    /// Right in size, wrong in content.
    Wrong,
    TooLong,
    TooShort,
    Missing,
    /// A byte every now and then.
    Drips,
    /// No answer at all.
    Hangs,
    /// No HTTP.
    Garbage,
    /// Ranges are answered with the whole.
    NoRanges,
    /// Closes the connection after so many bytes of each answer.
    Dies {
        after: usize,
    },
    /// Goes on after the end of a range that it was asked for, and dies early when asked for the whole.
    MoreThanRange,
    /// Stands still at this byte of the file until it is told to go on.
    StopsAt {
        byte: usize,
    },
}

#[derive(Default)]
struct State {
    asked: Mutex<Vec<(String, Option<u64>)>>,
    sent: AtomicU64,
    goes_on: AtomicBool,
}

pub(crate) struct Server {
    url: String,
    state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(directory: &Path, behavior: Behavior) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let (directory, shared) = (directory.to_owned(), state.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, directory.clone(), behavior, shared.clone()));
            }
        });
        Self { url, state, accepting }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn source(&self) -> Source {
        Source::new(&self.url).unwrap()
    }

    /// The requests whose path begins so: the path, and the first byte if a range was asked for.
    pub(crate) fn asked(&self, path: &str) -> Vec<(String, Option<u64>)> {
        self.state.asked.lock().unwrap().iter().filter(|(asked, _)| asked.starts_with(path)).cloned().collect()
    }

    /// The bytes of blobs that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn go_on(&self) {
        self.state.goes_on.store(true, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One request a connection.
async fn answer(mut stream: TcpStream, directory: PathBuf, behavior: Behavior, state: Arc<State>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let path = head.split_whitespace().nth(1).unwrap().to_owned();
    let start: Option<u64> = head.split_once("range: bytes=").map(|(_, range)| range.split_once('-').unwrap().0.parse().unwrap());
    state.asked.lock().unwrap().push((path.clone(), start));
    let mut body = fs::read(directory.join(path.trim_start_matches('/'))).ok();
    let behavior = if path.starts_with("/blobs/") && !head.contains("/e3b0c442") { behavior } else { Behavior::Honest };
    match behavior {
        Behavior::Missing => body = None,
        Behavior::Hangs => std::future::pending().await,
        Behavior::Garbage => {
            let _ = stream.write_all(b"\x15\x03\x01\x00\x02\x02\x50 not HTTP at all\r\n\r\n").await;
            return None;
        }
        Behavior::Busy if state.asked.lock().unwrap().iter().filter(|(asked, _)| *asked == path).count() == 1 => {
            let busy = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(busy).await.ok()?;
            return None;
        }
        _ => {}
    }
    let Some(mut body) = body else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.ok()?;
        return None;
    };
    match behavior {
        Behavior::Wrong => body[0] ^= 1,
        Behavior::TooLong => body.extend([0; 10]),
        Behavior::TooShort => body.truncate(body.len() - 10),
        _ => {}
    }
    let total = body.len();
    let start = usize::try_from(start.filter(|_| behavior != Behavior::NoRanges).unwrap_or(0)).unwrap();
    let mut rest = body.split_off(start);
    if start > 0 && behavior == Behavior::MoreThanRange {
        rest.extend(vec![0; 100_000]);
    }
    let status = if start > 0 {
        format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{total}", total - 1)
    } else {
        "200 OK".into()
    };
    let length = match behavior {
        Behavior::NoLength => String::new(),
        Behavior::OddDate => format!("content-length: {}\r\nlast-modified: the day before yesterday\r\n", rest.len()),
        _ => format!("content-length: {}\r\n", rest.len()),
    };
    let head = format!("HTTP/1.1 {status}\r\n{length}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut send = async |bytes: &[u8]| {
        stream.write_all(bytes).await.ok()?;
        if path.starts_with("/blobs/") {
            state.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        }
        Some(())
    };
    match behavior {
        Behavior::Dies { after } => send(&rest[..after.min(rest.len())]).await?,
        Behavior::Drips => {
            for byte in rest {
                send(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Behavior::StopsAt { byte } if byte > start => {
            let (first, second) = rest.split_at(byte - start);
            send(first).await?;
            while !state.goes_on.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            send(second).await?;
        }
        _ => send(&rest).await?,
    }
    stream.shutdown().await.ok()
}
