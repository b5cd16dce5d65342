//! Sources that are reached over a network.

#[cfg(feature = "s3")]
use std::net::IpAddr;
use std::time::Duration;

#[cfg(feature = "s3")]
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
#[cfg(feature = "http")]
use object_store::http::{HttpBuilder, HttpStore};
use object_store::{ClientConfigKey, Result, RetryConfig};
#[cfg(feature = "s3")]
use url::{Host, Url};

use super::TIMEOUT;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(feature = "http")]
pub(super) fn http(url: &str) -> Result<HttpStore> {
    let builder = HttpBuilder::new().with_url(url).with_retry(retries()).with_config(ClientConfigKey::AllowHttp, "true");
    client_options().into_iter().fold(builder, |builder, (key, value)| builder.with_config(key, value)).build()
}

#[cfg(feature = "s3")]
pub(super) fn s3(url: &str) -> Result<AmazonS3> {
    let builder = AmazonS3Builder::from_env().with_url(url).with_retry(retries());
    let option = |builder: AmazonS3Builder, (key, value)| builder.with_config(AmazonS3ConfigKey::Client(key), value);
    let builder = client_options().into_iter().fold(builder, option);
    let endpoints = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
    let plain = endpoints.iter().any(|key| is_loopback(builder.get_config_value(key)));
    if plain { builder.with_allow_http(true).build() } else { builder.build() }
}

fn retries() -> RetryConfig {
    // Whoever fetches tries again, and goes on where it was.
    RetryConfig { max_retries: 1, retry_timeout: TIMEOUT, ..RetryConfig::default() }
}

fn client_options() -> [(ClientConfigKey, String); 3] {
    // Once per process; the program may have chosen itself.
    drop(rustls::crypto::ring::default_provider().install_default());
    [
        (ClientConfigKey::ConnectTimeout, format!("{}s", CONNECT_TIMEOUT.as_secs())),
        (ClientConfigKey::ReadTimeout, format!("{}s", TIMEOUT.as_secs())),
        // The whole of a large file may take long; that it goes on is seen to elsewhere.
        (ClientConfigKey::Timeout, "30days".into()),
    ]
}

/// Plain HTTP is for servers on this machine.
#[cfg(feature = "s3")]
fn is_loopback(endpoint: Option<String>) -> bool {
    let Some(url) = endpoint.and_then(|endpoint| Url::parse(&endpoint).ok()) else { return false };
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    }
}
