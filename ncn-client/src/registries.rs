//! Several registry nodes as one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use ncn_core::{
    Address, AnswerTime, ApprovedSubnet, Attestors, B256, BatchRequest, Catalog, CompletionRequest, Deregistration, Directory,
    Heartbeat, NodeChanges, NodeQuery, NodeRecord, PreprocessingRequest, QuorumCertificate, Registry, RegistryError, RequestId,
    Signed, Subnet,
    mempool::{Mempool, PendingRequests},
};
use tokio::time::Instant;

/// How long one is waited for before the next is asked besides.
const HEDGE_AFTER: Duration = Duration::from_millis(700);
/// The same where validators are asked, who may take a while.
const HEDGE_JUDGING_AFTER: Duration = Duration::from_secs(3);

/// Several registry nodes of one network as one: whichever answered last is asked first, and the next one when it does not answer, or cannot.
/// Whatever is asked may be asked twice: no question changes anything the second time.
pub struct Registries {
    all: Vec<Arc<dyn Registry>>,
    /// Which of them is asked first.
    first: AtomicUsize,
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").field("count", &self.all.len()).field("first", &self.first).finish()
    }
}

/// True when another node may answer what this one did not.
const fn is_its_own(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unreachable(_) | RegistryError::Overloaded(_) | RegistryError::Malformed(_))
}

impl Registries {
    /// These, the preferred one first.
    pub fn new(all: Vec<Arc<dyn Registry>>) -> Self {
        Self { all, first: AtomicUsize::new(0) }
    }

    /// Asks one after the other, and the next one already when one is slow. The first answer counts: a refusal is one.
    async fn ask<T: Send>(
        &self,
        hedge_after: Duration,
        ask: impl Fn(Arc<dyn Registry>) -> BoxFuture<'static, Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        let first = self.first.load(Ordering::Relaxed);
        let mut left = (0..self.all.len()).map(|place| (first + place) % self.all.len());
        let mut asked = FuturesUnordered::new();
        let mut problem = RegistryError::Unreachable("no registry node is named".into());
        loop {
            let next = left.next();
            if let Some((place, registry)) = next.and_then(|place| Some((place, self.all.get(place)?))) {
                let answer = ask(registry.clone());
                asked.push(async move { (place, answer.await) });
            }
            if asked.is_empty() {
                return Err(problem);
            }
            let deadline = Instant::now() + hedge_after;
            loop {
                let answer = tokio::select! {
                    answer = asked.next() => answer,
                    () = tokio::time::sleep_until(deadline), if next.is_some() => break,
                };
                match answer {
                    Some((_, Err(error))) if is_its_own(&error) => {
                        problem = error;
                        if next.is_some() {
                            break;
                        }
                    }
                    Some((place, answer)) => {
                        self.first.store(place, Ordering::Relaxed);
                        return answer;
                    }
                    None => break,
                }
            }
        }
    }
}

/// Asks with copies of the arguments.
macro_rules! ask {
    ($self:ident, $after:expr, $method:ident($($argument:ident),*)) => {
        $self
            .ask($after, |registry| {
                $(let $argument = $argument.clone();)*
                Box::pin(async move { registry.$method($($argument),*).await })
            })
            .await
    };
}

#[async_trait]
impl Directory for Registries {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        ask!(self, HEDGE_AFTER, register(record))
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        match ask!(self, HEDGE_AFTER, heartbeat(heartbeat)) {
            // The one that was asked first has told the other.
            Err(RegistryError::Stale { given, known }) if given == known => Ok(()),
            answer => answer,
        }
    }

    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError> {
        ask!(self, HEDGE_AFTER, deregister(deregistration))
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        ask!(self, HEDGE_AFTER, discover(query))
    }

    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError> {
        ask!(self, HEDGE_AFTER, watch(query))
    }
}

#[async_trait]
impl Catalog for Registries {
    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        // Validators are asked.
        ask!(self, HEDGE_JUDGING_AFTER, register_subnet(subnet))
    }

    async fn subnet(&self, id: B256) -> Result<ApprovedSubnet, RegistryError> {
        ask!(self, HEDGE_AFTER, subnet(id))
    }

    async fn subnets(&self, after: B256) -> Result<Vec<Arc<ApprovedSubnet>>, RegistryError> {
        ask!(self, HEDGE_AFTER, subnets(after))
    }

    async fn register_manifest(&self, subnet: B256, manifest: Bytes) -> Result<(), RegistryError> {
        ask!(self, HEDGE_AFTER, register_manifest(subnet, manifest))
    }

    async fn manifest(&self, digest: B256) -> Result<Bytes, RegistryError> {
        ask!(self, HEDGE_JUDGING_AFTER, manifest(digest))
    }
}

#[async_trait]
impl Mempool for Registries {
    async fn announce(&self, pending: Signed<PendingRequests>) -> Result<(), RegistryError> {
        ask!(self, HEDGE_AFTER, announce(pending))
    }

    async fn pending(&self, subnet: B256, request: RequestId) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        ask!(self, HEDGE_AFTER, pending(subnet, request))
    }

    async fn pending_of(&self, gateway: Address) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        ask!(self, HEDGE_AFTER, pending_of(gateway))
    }
}

#[async_trait]
impl Attestors for Registries {
    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<QuorumCertificate, RegistryError> {
        ask!(self, HEDGE_JUDGING_AFTER, preprocessing(request))
    }

    async fn completion(&self, request: CompletionRequest) -> Result<QuorumCertificate, RegistryError> {
        ask!(self, HEDGE_JUDGING_AFTER, completion(request))
    }

    async fn settlement(&self, request: Arc<BatchRequest>) -> Result<QuorumCertificate, RegistryError> {
        // Thousands of requests: twice at once would be twice the work.
        ask!(self, Duration::from_mins(5), settlement(request))
    }

    async fn answer_times(&self) -> Result<Vec<AnswerTime>, RegistryError> {
        ask!(self, HEDGE_AFTER, answer_times())
    }
}
