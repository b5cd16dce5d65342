//! Streams: what a gateway and its wires add between an engine and a client.

use std::collections::HashMap;

use async_trait::async_trait;
use ncn_client::{ClientError, InferenceEvent, Order, grpc::GrpcRegistry};
use ncn_core::{
    Acknowledgement, Address, Collected, Compute, ComputeError, ComputeEvent, ComputeTask, Confinement, Execution, Executor,
    ExecutorError, FinishReason, OutputChunk, QuorumCertificate, Reservation, TaskEvent, Update, Usage,
    compute::ComputeEvents,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use ncn_node::compute::ComputeNode;

use super::*;
use crate::harmful::changed;

const STREAMS: usize = 64;
/// In the time that the model has.
const PARTS: usize = 80;
/// No part of the time between two signatures of the node, which would come together with a part each time.
const PAUSE: Duration = Duration::from_millis(47);

/// Says when it says each part, in nanoseconds. The streams take turns: each begins a little later than the one before.
struct Clock {
    began: Instant,
    pause: Duration,
    runs: AtomicUsize,
}

#[async_trait]
impl Executor for Clock {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Onnx]
    }

    fn confinement(&self, _model_digest: &B256) -> Confinement {
        Confinement::None
    }

    async fn load(&self, _package: &ModelPackage) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn unload(&self, _digest: &B256) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn run(&self, _execution: Execution) -> Result<Outputs, ExecutorError> {
        let (began, pause) = (self.began, self.pause);
        let turn = self.runs.fetch_add(1, Ordering::Relaxed) % STREAMS;
        let first = tokio::time::Instant::now() + pause * turn as u32 / STREAMS as u32;
        let parts = stream::iter(1..=PARTS).then(move |number| async move {
            tokio::time::sleep_until(first + pause * number as u32).await;
            let values = Values::from([("text", Value::Text(format!("{} ", began.elapsed().as_nanos())))]);
            let usage = Usage { input_units: 1, output_units: number as u64, duration_micros: 1 };
            Ok(OutputChunk { values, usage, finish: (number == PARTS).then_some(FinishReason::Stop) })
        });
        Ok(parts.boxed())
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo xtask bench wires"]
async fn streams() {
    let began = Instant::now();
    let directory = tempfile::tempdir().unwrap();
    let package = changed(directory.path(), |manifest| manifest["outputs"] = json!([{ "type": "text", "name": "text" }]));
    let executor = Arc::new(Clock { began, pause: PAUSE, runs: AtomicUsize::new(0) });
    let scene = Scene::with(LocalNetwork::builder().compute_nodes(0).models(vec![package.clone()])).await;
    // In this process, so that one client sees what the gateway alone adds, and the others what their wires do.
    let (signer, subnet) = (key(), scene.network.gateway_node().subnet_id());
    let registry = Arc::new(GrpcRegistry::new(&scene.network.registry_urls()[0]).unwrap());
    let ledger = Arc::new(scene.network.ledger(signer.clone()));
    let node = ComputeNode::builder(signer, subnet, executor, ledger, registry).models(vec![package]).capacity(4 * STREAMS);
    let node = node.start().await.unwrap();
    let given = Arc::new(Given { node: node.node().clone(), began, at: Arc::default() });
    scene.network.gateway_node().attach(given.clone());
    let scene = Arc::new(scene);
    let clients = clients(&scene).await;
    let gateway = ("the gateway's own updates", clients[0].1.clone());
    for (way, (name, client)) in [gateway].into_iter().chain(clients).enumerate() {
        let before = cpu();
        let hearing = (0..STREAMS).map(|_| tokio::spawn(hear(scene.clone(), client.clone(), way == 0, began)));
        let streams: Vec<_> = join_all(hearing).await.into_iter().map(Result::unwrap).collect();
        let spent = cpu().saturating_sub(before).as_secs_f64() * 1e6 / (STREAMS * PARTS) as f64;
        // While all of them run: before and after, there are requests to be quoted, approved and settled.
        let first = streams.iter().map(|said| said[0].0).max().unwrap();
        let last = streams.iter().map(|said| said[PARTS - 1].0).min().unwrap();
        // The node keeps the newest part back until the next one is there.
        let late = |said: &Vec<(Duration, Duration)>| {
            let delays = said.windows(2).filter(|pair| (first..last).contains(&pair[1].0));
            delays.map(|pair| pair[0].1.saturating_sub(pair[1].0)).collect::<Vec<_>>()
        };
        let mut late: Vec<_> = streams.iter().flat_map(late).collect();
        let given = std::mem::take(&mut *given.at.lock().unwrap());
        let passed = |(at, heard): &(Duration, Duration)| given.get(at).map(|given| heard.saturating_sub(*given));
        let while_all = |(at, _): &&(Duration, Duration)| (first..last).contains(at);
        let mut passing: Vec<_> = streams.iter().flatten().filter(while_all).filter_map(passed).collect();
        println!(
            "{STREAMS} streams over {name}: none of {PARTS} parts lost, {spent:.0} us of CPU each, requests included; from engine to client, of {} parts while all run: p50 {:?}, p99 {:?}",
            late.len(),
            percentile(&mut late, 50),
            percentile(&mut late, 99)
        );
        println!("  of which from node to client: p50 {:?}, p99 {:?}", percentile(&mut passing, 50), percentile(&mut passing, 99));
    }
}

/// A node, and when it gave each part to its gateway, by when the engine said it.
struct Given {
    node: Arc<dyn Compute>,
    began: Instant,
    at: Arc<std::sync::Mutex<HashMap<Duration, Duration>>>,
}

#[async_trait]
impl Compute for Given {
    fn address(&self) -> Address {
        self.node.address()
    }

    async fn reserve(&self, reservation: Reservation) -> Result<(), ComputeError> {
        self.node.reserve(reservation).await
    }

    async fn release(&self, request_id: B256) {
        self.node.release(request_id).await;
    }

    async fn execute(&self, task: ComputeTask) -> Result<ComputeEvents, ComputeError> {
        let (began, at) = (self.began, self.at.clone());
        let events = self.node.execute(task).await?.inspect(move |event| {
            if let Ok(ComputeEvent::Chunk(part)) = event {
                at.lock().unwrap().insert(said(&part.values), began.elapsed());
            }
        });
        Ok(events.boxed())
    }

    async fn acknowledge(&self, request_id: B256, acknowledgement: Signed<Acknowledgement>) {
        self.node.acknowledge(request_id, acknowledgement).await;
    }

    async fn collect(
        &self,
        request_id: B256,
        certificate: QuorumCertificate,
        acknowledgement: Signed<Acknowledgement>,
    ) -> Result<Collected, ComputeError> {
        self.node.collect(request_id, certificate, acknowledgement).await
    }

    async fn stop(&self, request_id: B256) {
        self.node.stop(request_id).await;
    }
}

/// When the engine said a part.
fn said(part: &Values) -> Duration {
    Duration::from_nanos(part.text("text").unwrap().trim().parse().unwrap())
}

/// When each part of an output was said, and when it was heard: in the order in which they were said, and all of them.
async fn hear(scene: Arc<Scene>, client: Client, alone: bool, began: Instant) -> Vec<(Duration, Duration)> {
    let order = Order::new(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).timeout(Duration::from_mins(5));
    let paid = client.submit(order).await.unwrap().pay().await.unwrap();
    let mut parts = if alone {
        let access = scene.access(paid.request_id(), CapabilityScope::Follow, &scene.client).await;
        let updates = scene.network.gateway().updates(access, 0).await.unwrap();
        let part = async |update: Result<Update, TransportError>| match update.unwrap().event {
            TaskEvent::Chunk(part) => Some(part.values),
            TaskEvent::Failed { reason, .. } => panic!("{reason}"),
            _ => None,
        };
        updates.filter_map(part).boxed()
    } else {
        let part = async |event: Result<InferenceEvent, ClientError>| match event.unwrap() {
            InferenceEvent::Part(part) => Some(part.values),
            InferenceEvent::Finished(_) => None,
            event => panic!("{event:?}"),
        };
        paid.events().filter_map(part).boxed()
    };
    let mut heard = Vec::new();
    while let Some(part) = parts.next().await {
        heard.push((said(&part), began.elapsed()));
    }
    assert!(heard.len() == PARTS && heard.is_sorted_by_key(|(at, _)| *at), "all, in order");
    heard
}
