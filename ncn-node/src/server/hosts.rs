//! Whom browsers may mean.

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
};
use ncn_core::TransportError;
use tonic::codegen::http::{header, uri::Authority};

use super::plain;

/// Answers those who call this server by its IP address, or as `localhost`, and nobody else. A web page whose name was made to lead here is another site's, which
/// its reader's browser would let read everything.
pub fn by_address(routes: Router) -> Router {
    routes.layer(from_fn(check))
}

async fn check(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter();
    let hosts = hosts.map(|host| host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()));
    // HTTP/2 has it in the target, HTTP/1 in the header, or in both.
    let named: Vec<_> = hosts.chain(request.uri().authority().cloned().map(Some)).collect();
    let is_good =
        |named: &Option<Authority>| named.as_ref().is_some_and(|named| !named.as_str().contains('@') && is_address(named.host()));
    if !named.is_empty() && named.iter().all(is_good) {
        return next.run(request).await;
    }
    plain::answer(TransportError::Unauthorized("host: call this server by its IP address, or as localhost".into()))
}

fn is_address(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_no_names() {
        for host in ["127.0.0.1", "[::1]", "192.168.0.7", "LOCALHOST"] {
            assert!(is_address(host), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[]", "0x7f000001"] {
            assert!(!is_address(host), "{host}");
        }
    }
}
