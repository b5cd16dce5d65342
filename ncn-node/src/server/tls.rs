//! TLS, by a certificate and its key in PEM.

use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsAcceptor;

/// A certificate, with those that lead to its root, and its key. Clones are the same one, which can be replaced while servers use it.
#[derive(Clone)]
pub struct Identity(Arc<RwLock<TlsAcceptor>>);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    /// Out of PEM.
    ///
    /// # Errors
    /// They are none, or do not belong together.
    pub fn from_pem(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> io::Result<Self> {
        Ok(Self(Arc::new(RwLock::new(acceptor(certificate.as_ref(), key.as_ref())?))))
    }

    /// Uses these from the next connection on.
    ///
    /// # Errors
    /// They are none, or do not belong together; the earlier ones stay in use.
    pub fn replace(&self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> io::Result<()> {
        let acceptor = acceptor(certificate.as_ref(), key.as_ref())?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }

    /// What makes handshakes with it.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn acceptor(certificate: &[u8], key: &[u8]) -> io::Result<TlsAcceptor> {
    let refuse = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|error| refuse(format!("the certificate cannot be read: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| refuse(format!("the key cannot be read: {error}")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| refuse(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
