//! Sources behind HTTP.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use ncn_client::foreign::{self, Meaning};
use reqwest::{
    Client, Response, StatusCode,
    header::{CONTENT_RANGE, RANGE},
};

use super::{Object, Problem};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server of files.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Without a slash at its end.
    url: String,
    client: Client,
}

impl Server {
    pub(super) fn new(url: &str) -> Result<Self, String> {
        let client = ncn_client::http().and_then(|builder| builder.connect_timeout(CONNECT_TIMEOUT).build());
        Ok(Self { url: url.trim_end_matches('/').into(), client: client.map_err(foreign::cause)? })
    }

    /// A file from byte `start` on, or from the beginning if the server does not do that.
    pub(super) async fn get(&self, key: &str, start: u64) -> Result<Object, Problem> {
        let mut request = self.client.get(format!("{}/{key}", self.url));
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let response = request.send().await.map_err(|error| failure(key, error))?;
        let (start, size) = match response.status() {
            StatusCode::OK => (0, response.content_length()),
            StatusCode::PARTIAL_CONTENT => match range(&response).filter(|(first, _)| *first == start) {
                Some((_, size)) => (start, size),
                None => return Err(Problem::Ranges(format!("{key}: gave another range than it was asked for"))),
            },
            // How servers without ranges say it.
            StatusCode::BAD_REQUEST
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::RANGE_NOT_SATISFIABLE
            | StatusCode::NOT_IMPLEMENTED
                if start > 0 =>
            {
                return Err(Problem::Ranges(format!("{key}: the answer is {}", response.status())));
            }
            status => return Err(refusal(key, status, &response)),
        };
        let key = key.to_owned();
        let parts = stream::try_unfold((response, key), |(mut response, key)| async {
            let part = response.chunk().await.map_err(|error| failure(&key, error))?;
            Ok(part.map(|part| (part, (response, key))))
        });
        Ok(Object { start, size, parts: parts.boxed() })
    }
}

/// The first byte of an answered range, and how many the whole has where that is said.
fn range(response: &Response) -> Option<(u64, Option<u64>)> {
    let (range, size) = response.headers().get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, size.trim().parse().ok()))
}

fn failure(key: &str, error: reqwest::Error) -> Problem {
    Problem::passing(format!("{key}: {}", foreign::cause(error)))
}

fn refusal(key: &str, status: StatusCode, response: &Response) -> Problem {
    match (status, foreign::of_status(status, response.headers())) {
        (StatusCode::NOT_FOUND | StatusCode::GONE, _) => Problem::Final(format!("{key}: is not there")),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Problem::Final(format!("{key}: access is denied")),
        (_, Meaning::Again { after } | Meaning::TooOften { after }) => {
            Problem::Passing { problem: format!("{key}: the answer is {status}"), after }
        }
        _ => Problem::passing(format!("{key}: the answer is {status}")),
    }
}
