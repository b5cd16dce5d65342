//! Which pages may ask.

use std::{io, sync::Arc};

use jsonrpsee::server::{HttpBody, HttpRequest, HttpResponse};
use tonic::codegen::http::StatusCode;
use tower_http::validate_request::ValidateRequest;
use url::Url;

/// An origin as browsers write it.
pub(super) fn origin(text: &str) -> io::Result<String> {
    let url =
        Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.path() == "/" && url.query().is_none());
    url.map(|url| url.origin().ascii_serialization()).ok_or_else(|| {
        let problem =
            format!("origin: {text:?} is none: write http://HOST or http://HOST:PORT, each page's own; there is no sign for all");
        io::Error::new(io::ErrorKind::InvalidInput, problem)
    })
}

/// Refuses pages that nobody has named: there are methods for everybody here that undo payments, and any page that a developer looks at could
/// call them, over a WebSocket without even being told what comes of it. Wallets that are extensions are no pages, nor are programs.
#[derive(Clone)]
pub(super) struct Origins(pub(super) Arc<[String]>);

impl<B> ValidateRequest<B> for Origins {
    type ResponseBody = HttpBody;

    fn validate(&mut self, request: &mut HttpRequest<B>) -> Result<(), HttpResponse<HttpBody>> {
        let Some(origin) = request.headers().get("origin") else { return Ok(()) };
        let origin = origin.to_str().unwrap_or("null");
        let is_page = origin == "null" || origin.starts_with("http://") || origin.starts_with("https://");
        if !is_page || self.0.iter().any(|allowed| allowed == origin) {
            return Ok(());
        }
        let problem = format!("{origin}: no page of this origin may ask: start ncn devnet with --origin {origin}\n");
        let mut refusal = HttpResponse::new(HttpBody::from(problem));
        *refusal.status_mut() = StatusCode::FORBIDDEN;
        Err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        for (text, is) in [
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://localhost:3000/", "http://localhost:3000"),
            ("HTTP://Example.com:80", "http://example.com"),
            ("https://example.com:443/", "https://example.com"),
        ] {
            assert_eq!(origin(text).unwrap(), is);
        }
        for text in ["*", "", "null", "localhost:3000", "http://", "http://a/b", "http://a?b", "ftp://a", "http://a b"] {
            let refused = origin(text).unwrap_err().to_string();
            assert!(refused.contains("write http://HOST"), "{text}: {refused}");
        }
    }
}
