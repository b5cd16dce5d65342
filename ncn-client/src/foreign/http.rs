//! What is said over HTTP.

use std::{
    error::Error as _,
    time::{Duration, SystemTime},
};

use reqwest::{
    StatusCode,
    header::{self, HeaderMap},
};

use super::Meaning;

/// What an HTTP status that is no success means.
pub fn of_status(status: StatusCode, headers: &HeaderMap) -> Meaning {
    match status.as_u16() {
        400 | 422 => Meaning::Final,
        413 | 414 | 431 => Meaning::Narrower,
        // From 520 on: what a well-known proxy says of the server behind it.
        429 => Meaning::TooOften { after: retry_after(headers) },
        408 | 425 | 500 | 502..=504 | 520..=524 | 529 => Meaning::Again { after: retry_after(headers) },
        // A key that is not taken, a path that is not there, a redirect, which is not followed.
        _ => Meaning::Elsewhere,
    }
}

/// What it means that there is no answer, or only a part of one.
pub fn of_failure(error: &reqwest::Error) -> Meaning {
    // Nobody is there, or who is there keeps silent: asking again at once would be the same.
    if error.is_connect() || error.is_timeout() || error.is_builder() { Meaning::Elsewhere } else { Meaning::Again { after: None } }
}

/// How long the answer asks to wait: seconds, or a date.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let said = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match said.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(said).ok()?.duration_since(SystemTime::now()).unwrap_or_default()),
    }
}

/// What went wrong, down to the cause and without the URL, which may be a secret.
pub fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut deepest: &dyn std::error::Error = &error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match error.source() {
        Some(_) => deepest.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Meaning = Meaning::Again { after: None };

    #[test]
    fn statuses_say_what_is_to_be_done() {
        let none = HeaderMap::new();
        for (status, meaning) in [
            (400, Meaning::Final),
            (422, Meaning::Final),
            (413, Meaning::Narrower),
            (301, Meaning::Elsewhere),
            (401, Meaning::Elsewhere),
            (403, Meaning::Elsewhere),
            (404, Meaning::Elsewhere),
            (501, Meaning::Elsewhere),
            (429, Meaning::TooOften { after: None }),
            (500, NOW),
            (502, NOW),
            (503, NOW),
            (522, NOW),
        ] {
            assert_eq!(of_status(StatusCode::from_u16(status).unwrap(), &none), meaning, "{status}");
        }
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        let after = |text: String| retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]));
        assert_eq!(after("3".into()), Some(Duration::from_secs(3)));
        let date = after(httpdate::fmt_http_date(SystemTime::now() + Duration::from_mins(1))).unwrap();
        assert!((50..=60).contains(&date.as_secs()), "{date:?}");
        let past = after(httpdate::fmt_http_date(SystemTime::now() - Duration::from_mins(1)));
        assert_eq!((past, after("soon".into()), after("-1".into())), (Some(Duration::ZERO), None, None));
    }
}
