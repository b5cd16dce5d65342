//! Where a gateway listens, by which certificate, and how much it takes from one address.

use std::{
    net::{SocketAddr, TcpListener},
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use ncn_core::membership::MembershipLimits;
use ncn_node::server::{Identity, Listen, PerMinute, Rates};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use crate::{Failure, files::read_within, sanitize, say};

/// A certificate and all that lead to its root have a few thousand.
const MAX_PEM_BYTES: usize = 256 << 10;

#[derive(clap::Args)]
pub(super) struct ListenArguments {
    /// Where clients and compute nodes reach it: over gRPC, HTTP and WebSocket, at each address that is given. It is registered with the first
    #[arg(long, value_name = "ADDRESS:PORT[,..]", value_delimiter = ',', default_values = ["127.0.0.1:50051", "127.0.0.1:8080", "127.0.0.1:9000"], value_parser = crate::listen_address)]
    listen: Vec<SocketAddr>,
    /// Serve with TLS, by this certificate (PEM, with those that lead to its root after it)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// How others call it: http://HOST:PORT or https://HOST:PORT. The address that it listens on by default
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// How many orders one address may send in a minute over HTTP
    #[arg(long, value_name = "ORDERS", default_value_t = Rates::default().http.orders)]
    http_orders: NonZeroU32,
    /// How many other calls over HTTP
    #[arg(long, value_name = "CALLS", default_value_t = Rates::default().http.calls)]
    http_calls: NonZeroU32,
    /// How many orders over gRPC and WebSocket
    #[arg(long, value_name = "ORDERS", default_value_t = Rates::default().streams.orders)]
    stream_orders: NonZeroU32,
    /// How many other calls over gRPC and WebSocket
    #[arg(long, value_name = "CALLS", default_value_t = Rates::default().streams.calls)]
    stream_calls: NonZeroU32,
    /// How many WebSockets one address may have open
    #[arg(long, value_name = "SOCKETS", default_value_t = Rates::default().sockets)]
    sockets: usize,
}

/// Where it listens, and its certificate.
pub(super) struct Listening {
    pub(super) listen: Vec<Listen>,
    pub(super) certificate: Option<Certificate>,
}

/// A certificate in two files.
pub(super) struct Certificate {
    identity: Identity,
    certificate: PathBuf,
    key: PathBuf,
}

impl ListenArguments {
    pub(super) const fn has_certificate(&self) -> bool {
        self.tls_certificate.is_some()
    }

    pub(super) const fn rates(&self) -> Rates {
        Rates {
            http: PerMinute { orders: self.http_orders, calls: self.http_calls },
            streams: PerMinute { orders: self.stream_orders, calls: self.stream_calls },
            sockets: self.sockets,
        }
    }

    /// Whether it is called by a name that says nothing of its other addresses.
    pub(super) const fn has_url(&self) -> bool {
        self.url.is_some()
    }

    /// Where it listens, and how it is called.
    pub(super) fn open(&self) -> Result<Listening, Failure> {
        let mut listen: Vec<_> = self.listen.iter().copied().map(Listen::on).collect();
        let certificate = match self.tls_certificate.as_ref().zip(self.tls_key.as_ref()) {
            Some((certificate, key)) => Some(Certificate::open(certificate, key)?),
            None => None,
        };
        if let Some(certificate) = &certificate {
            listen = listen.into_iter().map(|listen| listen.tls(certificate.identity.clone())).collect();
        }
        if let Some(url) = &self.url {
            let refuse = |problem: &str| Failure::Input(format!("--url: {problem}: write http://HOST:PORT or https://HOST:PORT"));
            let parsed = Url::parse(url).map_err(|error| refuse(&error.to_string()))?;
            let is_origin = parsed.has_host() && parsed.username().is_empty() && parsed.password().is_none();
            let is_origin = is_origin && parsed.path() == "/" && parsed.query().is_none() && parsed.fragment().is_none();
            if !is_origin || !matches!(parsed.scheme(), "http" | "https") || url.len() > MembershipLimits::default().text {
                return Err(refuse("is not the URL of a host"));
            }
            if certificate.is_some() && parsed.scheme() != "https" {
                return Err(refuse("has to be https, since there is a certificate"));
            }
            let url = url.trim_end_matches('/');
            listen = listen.into_iter().map(|listen| listen.url(url)).collect();
        } else if let Some(address) = self.listen.iter().find(|address| address.ip().is_unspecified()) {
            return Err(Failure::Input(format!("--listen {address}: nobody can call that: say how with --url")));
        }
        Ok(Listening { listen, certificate })
    }

    /// Whether its addresses are free: before anything is paid for.
    pub(super) fn check_free(&self) -> Result<(), Failure> {
        for address in &self.listen {
            drop(TcpListener::bind(address).map_err(|error| Failure::Input(format!("--listen {address}: {error}")))?);
        }
        Ok(())
    }
}

fn read(option: &str, path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    let refuse = |problem: String| Failure::Input(format!("{option} {}: {problem}", path.display()));
    let read = read_within(path, MAX_PEM_BYTES).map_err(|error| refuse(error.to_string()))?;
    let marked = |read: &Vec<u8>| String::from_utf8_lossy(read).contains(&format!("{what}-----"));
    read.filter(marked).ok_or_else(|| refuse(format!("is no PEM file with a {what}")))
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unusable(error: std::io::Error) -> Failure {
    Failure::Input(format!("--tls-certificate, --tls-key: {error}"))
}

impl Certificate {
    fn open(certificate: &Path, key: &Path) -> Result<Self, Failure> {
        let (certificate_pem, key_pem) = Self::read(certificate, key)?;
        let identity = Identity::from_pem(certificate_pem, key_pem).map_err(unusable)?;
        Ok(Self { identity, certificate: certificate.to_path_buf(), key: key.to_path_buf() })
    }

    fn read(certificate: &Path, key: &Path) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        Ok((read("--tls-certificate", certificate, "CERTIFICATE")?, read("--tls-key", key, "PRIVATE KEY")?))
    }

    fn reload(&self) -> Result<(), Failure> {
        let (certificate, key) = Self::read(&self.certificate, &self.key)?;
        self.identity.replace(certificate, key).map_err(unusable)
    }

    /// Reads the files again with each SIGHUP, which `systemctl reload` and those who renew certificates send. Does not return.
    pub(super) async fn reload_on_hangup(self) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        while hangup.recv().await.is_some() {
            match self.reload() {
                Ok(()) => say("the certificate is read again"),
                Err(error) => say(&sanitize(&format!("the earlier certificate stays: {}", error.problem()))),
            }
        }
    }
}
