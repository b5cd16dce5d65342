//! Calls over HTTP.

mod events;
mod refusal;
mod transport;

use std::sync::Once;

pub use crate::endpoint::EndpointError;
#[cfg(feature = "ws")]
pub(crate) use refusal::refusal;
pub use transport::HttpTransport;

/// How every HTTP client here begins: TLS by rustls, no waiting to fill packets, no proxy, and no following of redirects, which could lead
/// what is sent elsewhere.
pub fn http() -> reqwest::ClientBuilder {
    // Once per process, unless the program has chosen itself.
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    reqwest::Client::builder().tcp_nodelay(true).redirect(reqwest::redirect::Policy::none())
}
