//! Compute nodes that lie: they are not paid for it, and another one serves.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_core::{
    Acknowledgement, Address, B256, Collected, Compute, ComputeError, ComputeEvent, ComputeTask, Confinement, Domain, DynSigner,
    ExecutorError, InferenceResult, OutputChunk, QuorumCertificate, RequestId, Reservation, Signed, StreamChain, TaskEvent, Usage,
    Values, compute::ComputeEvents,
};
use ncn_node::store::MemoryStore;
use tokio::sync::Notify;

use crate::{executor::failing, recovery, wait::in_time};

/// What a node does the first time.
#[derive(Clone, Copy, Debug)]
enum NodesLie {
    /// Streams this before what it gives.
    Streams(&'static str),
    /// Signs a checkpoint of an output that is larger than what it has given: more units would fit it.
    Boasts,
    /// Signs the same checkpoint twice.
    Repeats,
    /// Takes the certificate, and hands nothing over.
    Keeps,
    /// Takes it, and hands something else over.
    HandsOver(&'static str),
    /// Says that its model was confined as it never is.
    Exaggerates,
}

struct LyingCompute {
    honest: Arc<dyn Compute>,
    key: DynSigner,
    domain: Domain,
    lie: NodesLie,
    tries: AtomicUsize,
    acknowledged: AtomicUsize,
    tried: Notify,
}

impl LyingCompute {
    /// Its gateway has a certificate of what it has run, and cannot have another one of it: only another node can serve the request now.
    const fn is_certified(&self) -> bool {
        matches!(self.lie, NodesLie::Keeps | NodesLie::HandsOver(_))
    }

    /// A part that the model could give, and the node's word on it.
    async fn checkpoint(&self, task: &ComputeTask) -> [ComputeEvent; 2] {
        let (values, order) = (Values::from([("label", "7")]), &task.request.message);
        let mut chain = StreamChain::new(task.quote.request_id);
        chain.extend(&values);
        let result = InferenceResult {
            request_id: task.quote.request_id,
            compute: self.key.address(),
            model_digest: order.model_digest,
            input_hash: order.input_hash,
            output_hash: B256::ZERO,
            output_bytes: 0,
            parts: 0,
            chain: B256::ZERO,
            resumed_from: B256::ZERO,
            continuation: None,
            usage: Usage::default(),
            confinement: Confinement::None,
            finish: None,
        };
        let mut result = chain.describe(&values, result);
        if matches!(self.lie, NodesLie::Boasts) {
            result.output_bytes = 1 << 20;
        }
        let part = ComputeEvent::Chunk(OutputChunk { values, usage: Usage::default(), finish: None });
        [part, ComputeEvent::Checkpoint(Signed::sign(result, &self.domain, &*self.key).await.unwrap())]
    }
}

#[async_trait]
impl Compute for LyingCompute {
    fn address(&self) -> Address {
        self.honest.address()
    }

    async fn reserve(&self, reservation: Reservation) -> Result<(), ComputeError> {
        if self.is_certified() && self.tries.load(Ordering::SeqCst) > 0 {
            return Err(ComputeError::Unavailable("for the test".into()));
        }
        self.honest.reserve(reservation).await
    }

    async fn release(&self, request_id: RequestId) {
        self.honest.release(request_id).await;
    }

    async fn acknowledge(&self, request_id: RequestId, acknowledgement: Signed<Acknowledgement>) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        self.honest.acknowledge(request_id, acknowledgement).await;
    }

    async fn stop(&self, request_id: RequestId) {
        self.honest.stop(request_id).await;
    }

    async fn collect(
        &self,
        request_id: RequestId,
        certificate: QuorumCertificate,
        acknowledgement: Signed<Acknowledgement>,
    ) -> Result<Collected, ComputeError> {
        let collected = self.honest.collect(request_id, certificate, acknowledgement).await?;
        match self.lie {
            NodesLie::Keeps if self.tries.load(Ordering::SeqCst) == 1 => Err(ComputeError::Unavailable("for the test".into())),
            NodesLie::HandsOver(label) if self.tries.load(Ordering::SeqCst) == 1 => {
                Ok(Collected { output: Values::from([("label", label)]), ..collected })
            }
            _ => Ok(collected),
        }
    }

    async fn execute(&self, task: ComputeTask) -> Result<ComputeEvents, ComputeError> {
        let [part, checkpoint] = self.checkpoint(&task).await;
        let events = self.honest.execute(task).await?;
        let first = self.tries.fetch_add(1, Ordering::SeqCst) == 0;
        self.tried.notify_one();
        match self.lie {
            NodesLie::Boasts if first => return Ok(stream::iter([Ok(part), Ok(checkpoint)]).chain(stream::pending()).boxed()),
            NodesLie::Repeats if first => {
                let twice = [Ok(part), Ok(checkpoint.clone()), Ok(checkpoint)];
                return Ok(stream::iter(twice).chain(stream::pending()).boxed());
            }
            _ => {}
        }
        if first && matches!(self.lie, NodesLie::Exaggerates) {
            let (key, domain) = (self.key.clone(), self.domain);
            let exaggerated = events.then(move |event| {
                let key = key.clone();
                async move {
                    let Ok(ComputeEvent::Finished(result)) = event else { return event };
                    let result = InferenceResult { confinement: Confinement::Full, ..result.message };
                    Ok(ComputeEvent::Finished(Signed::sign(result, &domain, &*key).await.unwrap()))
                }
            });
            return Ok(exaggerated.boxed());
        }
        let lie = if let (NodesLie::Streams(name), true) = (self.lie, first) { Some(name) } else { None };
        let lie = lie.map(|name| {
            Ok(ComputeEvent::Chunk(OutputChunk { values: Values::from([(name, "1")]), usage: Usage::default(), finish: None }))
        });
        Ok(stream::iter(lie).chain(events).boxed())
    }
}

#[tokio::test]
async fn a_node_that_streams_something_else_than_it_gives_is_not_paid_for_it() {
    // The model gives labels, and this one is not the answer; the other it does not give at all.
    for (lie, acknowledged) in [
        (NodesLie::Streams("label"), 0),
        (NodesLie::Streams("more"), 0),
        (NodesLie::Boasts, 0),
        (NodesLie::Repeats, 1),
        (NodesLie::Keeps, 0),
        (NodesLie::HandsOver("8"), 0),
        (NodesLie::Exaggerates, 0),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let scene = recovery::Scene::new(directory.path()).await;
        let client = recovery::Client::new(&scene).await;
        let gateway = scene.start_with(MemoryStore::default(), scene.network.registry.clone()).await;
        let (honest, key, domain) = (scene.compute.clone(), scene.compute_key.clone(), scene.network.trust.domain);
        let (tries, count) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let lying = Arc::new(LyingCompute { honest, key, domain, lie, tries, acknowledged: count, tried: Notify::new() });
        gateway.gateway().attach(lying.clone());
        let files = tempfile::tempdir().unwrap();
        let (another, registered) = scene.another(files.path(), lying.tried.notified()).await;
        let served = if lying.is_certified() {
            gateway.gateway().attach(another);
            let (served, _registration) = tokio::join!(client.serve(&**gateway.gateway()), registered);
            served
        } else {
            client.serve(&**gateway.gateway()).await
        };
        let TaskEvent::Delivered { output, .. } = served else { panic!("not delivered") };
        assert_eq!(output.text("label"), Some("7"));
        let tries = if lying.is_certified() { 1 } else { 2 };
        assert_eq!(lying.tries.load(Ordering::SeqCst), tries, "{lie:?} did not count");
        assert_eq!(lying.acknowledged.load(Ordering::SeqCst), acknowledged, "{lie:?}");
    }
}

/// Ten of twelve nodes take places and give nothing. To register cost them nothing.
#[tokio::test]
async fn nodes_that_fail_are_not_asked_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let scene = recovery::Scene::new(directory.path()).await;
    let gateway = scene.start_with(MemoryStore::default(), scene.network.registry.clone()).await;
    let mut others = Vec::new();
    for failures in [&[0][..], &[usize::MAX; 10]].concat() {
        let files = tempfile::tempdir().unwrap();
        let executor = failing(ExecutorError::Worker("for the test".into()), failures);
        let (node, registration) = scene.with(files.path(), executor.clone()).await;
        gateway.gateway().attach(node);
        others.push((executor, registration, files));
    }
    let mut served = Vec::new();
    for _ in 0..24 {
        let client = recovery::Client::new(&scene).await;
        let end = in_time("the end", client.serve(&**gateway.gateway())).await;
        served.push(matches!(end, TaskEvent::Delivered { .. }));
    }
    let failed = served.iter().filter(|served| !**served).count();
    assert!(failed <= 4, "each of three that failed was known then: {served:?}");
    assert!(served[12..].iter().all(|served| *served), "{served:?}");
    let asked: Vec<_> = others.iter().skip(1).map(|(executor, ..)| executor.runs.load(Ordering::SeqCst)).collect();
    assert!(asked.iter().all(|runs| *runs <= 2), "{asked:?}");
}
