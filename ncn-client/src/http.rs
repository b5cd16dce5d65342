//! Calls over HTTP.

mod events;
mod refusal;
mod transport;

use std::sync::Once;

pub use crate::endpoint::EndpointError;
#[cfg(feature = "ws")]
pub(crate) use refusal::refusal;
pub use transport::HttpTransport;

/// The variable that names a proxy for what goes over HTTP, such as `http://10.0.0.1:3128`. It is not used for this machine's own servers.
/// What other programs' variables say (`HTTP_PROXY`, `ALL_PROXY`) is not followed.
pub const PROXY: &str = "NCN_PROXY";

/// How every HTTP client here begins: TLS by rustls, no waiting to fill packets, the proxy of [`PROXY`] alone, and no following of redirects,
/// which could lead what is sent elsewhere.
///
/// # Errors
/// The proxy's URL is none.
pub fn http() -> reqwest::Result<reqwest::ClientBuilder> {
    // Once per process, unless the program has chosen itself.
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let builder = reqwest::Client::builder().tcp_nodelay(true).redirect(reqwest::redirect::Policy::none()).no_proxy();
    match std::env::var(PROXY) {
        Ok(url) if !url.is_empty() => {
            let here = reqwest::NoProxy::from_string("localhost,127.0.0.0/8,::1");
            Ok(builder.proxy(reqwest::Proxy::all(url)?.no_proxy(here)))
        }
        _ => Ok(builder),
    }
}
