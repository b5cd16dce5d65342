//! TLS, by a certificate and its key in PEM.

use std::{io, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsAcceptor;

/// A certificate, with those that lead to its root, and its key.
#[derive(Clone)]
pub(super) struct Identity {
    certificate: Arc<[u8]>,
    key: Arc<[u8]>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    pub(super) fn from_pem(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        Self { certificate: certificate.as_ref().into(), key: key.as_ref().into() }
    }

    /// What makes handshakes with it.
    pub(super) fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let refuse = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificate).collect();
        let chain = chain.map_err(|error| refuse(format!("the certificate cannot be read: {error}")))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| refuse(format!("the key cannot be read: {error}")))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| refuse(error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
