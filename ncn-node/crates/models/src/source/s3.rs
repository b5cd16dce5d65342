//! Sources in buckets.

use std::{net::IpAddr, time::Duration};

use ncn_client::foreign;
use object_store::{
    ClientConfigKey, ClientOptions, Error, Result, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    client::{HttpClient, HttpConnector},
};
use url::{Host, Url};

use super::TIMEOUT;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn s3(url: &str) -> Result<AmazonS3> {
    // The fetching side tries again, and goes on where it was.
    let retries = RetryConfig { max_retries: 1, retry_timeout: TIMEOUT, ..RetryConfig::default() };
    let builder = AmazonS3Builder::from_env().with_url(url).with_retry(retries);
    let endpoints = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
    let is_here = endpoints.iter().any(|key| is_loopback(builder.get_config_value(key)));
    let builder = if is_here { builder.with_allow_http(true) } else { builder };
    builder.with_http_connector(Connector).build()
}

/// Connects as everything here does: with TLS by ring, and without other programs' proxies.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    /// The options are not the same for every purpose: what a machine's own role gives access to is asked for by plain HTTP.
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let says = options.get_config_value(&ClientConfigKey::AllowHttp).unwrap_or_default().to_ascii_lowercase();
        let is_plain = matches!(says.as_str(), "1" | "true" | "on" | "yes" | "y");
        // The whole of a large file may take long; that it goes on is seen to elsewhere.
        let client = ncn_client::http()
            .and_then(|builder| builder.connect_timeout(CONNECT_TIMEOUT).read_timeout(TIMEOUT).https_only(!is_plain).build());
        client.map(HttpClient::new).map_err(|error| Error::Generic { store: "s3", source: foreign::cause(error).into() })
    }
}

/// Plain HTTP is for servers on this machine, unless it is allowed.
fn is_loopback(endpoint: Option<String>) -> bool {
    let Some(url) = endpoint.and_then(|endpoint| Url::parse(&endpoint).ok()) else { return false };
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    }
}
