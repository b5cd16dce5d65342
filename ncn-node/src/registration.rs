//! Keeping a node on the network: its record in the registry, and a heartbeat every few seconds.

use std::{sync::Arc, time::Duration};

use ncn_core::B256;
use ncn_core::{
    Confinement, Deregistration, Directory, Domain, DynSigner, Heartbeat, NodeRecord, NodeRole, RegistryError, SignatureError,
    Signed,
    membership::{CLOCK_SKEW_SECONDS, HEARTBEAT_SECONDS},
};
use tokio::task::AbortHandle;

use ncn_client::unix_now;

/// How long a record is good for; it is renewed when a third of that is left.
const RECORD_SECONDS: u64 = 60 * 60;

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct NodeDescriptor {
    /// As what it serves.
    pub role: NodeRole,
    /// In which subnet; zero for all.
    pub subnet: B256,
    /// Where it is called.
    pub endpoint: String,
    /// Which models it runs.
    pub models: Vec<B256>,
    /// How strongly it confines them.
    pub confinement: Confinement,
}

impl NodeDescriptor {
    /// The record that says so, good from now on.
    pub async fn record(&self, domain: &Domain, signer: &DynSigner, sequence: u64) -> Result<Signed<NodeRecord>, SignatureError> {
        let Self { role, subnet, endpoint, models, confinement } = self.clone();
        let (node, expires_at) = (signer.address(), unix_now() + RECORD_SECONDS);
        let record = NodeRecord { node, role, subnet, endpoint, models, confinement, sequence, expires_at };
        Signed::sign(record, domain, &**signer).await
    }
}

/// A node's registration. Dropping it stops the heartbeats; [`Registration::leave`] deregisters at once.
pub struct Registration {
    registry: Arc<dyn Directory>,
    signer: DynSigner,
    domain: Domain,
    keeping: AbortHandle,
}

impl Registration {
    /// Registers a node and keeps it alive. Returns once it is registered.
    pub async fn start(
        registry: Arc<dyn Directory>,
        signer: DynSigner,
        domain: Domain,
        descriptor: NodeDescriptor,
    ) -> Result<Self, RegistryError> {
        let mut keeper = Keeper { registry, signer, domain, descriptor, sequence: 0, renew_at: 0 };
        keeper.register().await?;
        let (registry, signer) = (keeper.registry.clone(), keeper.signer.clone());
        let keeping = tokio::spawn(keeper.keep()).abort_handle();
        Ok(Self { registry, signer, domain, keeping })
    }

    /// Takes the node off the network.
    pub async fn leave(self) -> Result<(), RegistryError> {
        self.keeping.abort();
        let deregistration = Deregistration { node: self.signer.address(), sequence: next_sequence(0) };
        self.registry.deregister(Signed::sign(deregistration, &self.domain, &*self.signer).await?).await
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// Sequences are milliseconds of the clock, so that a node that restarts goes on where it was without having kept anything; never
/// the same twice.
pub fn next_sequence(last: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(last.saturating_add(1))
}

struct Keeper {
    registry: Arc<dyn Directory>,
    signer: DynSigner,
    domain: Domain,
    descriptor: NodeDescriptor,
    sequence: u64,
    renew_at: u64,
}

impl Keeper {
    async fn register(&mut self) -> Result<(), RegistryError> {
        self.sequence = next_sequence(self.sequence);
        let record = self.descriptor.record(&self.domain, &self.signer, self.sequence).await?;
        self.registry.register(record).await?;
        self.renew_at = unix_now() + RECORD_SECONDS * 2 / 3;
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), RegistryError> {
        if unix_now() >= self.renew_at {
            return self.register().await;
        }
        self.sequence = next_sequence(self.sequence);
        let heartbeat = Heartbeat { node: self.signer.address(), sequence: self.sequence, sent_at: unix_now() };
        match self.registry.heartbeat(Signed::sign(heartbeat, &self.domain, &*self.signer).await?).await {
            // The registry node has restarted and knows nobody.
            Err(RegistryError::UnknownNode(_)) => self.register().await,
            heard => heard,
        }
    }

    async fn keep(mut self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(HEARTBEAT_SECONDS));
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if let Err(error) = self.beat().await {
                tracing::warn!(node = %self.signer.address(), %error, "a heartbeat failed");
                // This node's clock may have been set back a little. A registry's word for more is not taken: other registries would refuse
                // such a sequence.
                if let RegistryError::Stale { known, .. } = error
                    && known / 1_000 <= unix_now() + CLOCK_SKEW_SECONDS
                {
                    self.sequence = known;
                }
            }
        }
    }
}
