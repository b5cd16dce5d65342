//! Every implementation keeps its port's contract: in process, over the wire, in a worker.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use ncn_client::grpc::{GrpcRegistry, GrpcTransport};
use ncn_client::http::HttpTransport;
use ncn_client::unix_now;
use ncn_client::ws::WebSocketTransport;
use ncn_core::{
    Address, Amount, DynSigner, Epoch, Payer, Quote, Registry, Signed, Submission, TaskCapability, TaskEvent, TaskStatus,
    Transport, TransportError, TrustRoot, UnixTime, Update, Value, Values,
    conformance::{self, ExecutorFixture, RegistryFixture, TransportFixture, Violation},
    executor::ModelPackage,
    transport::Updates,
};
use ncn_devnet::{LocalNetwork, quickstart};
use ncn_executor::{EngineExecutor, WorkerExecutor, WorkerOptions, WorkerProgram, sandbox::NoSandbox};
use ncn_node::{
    registry::registry_service,
    server::{LOOPBACK, Server, Services},
};

use crate::{
    scene::{Behavior, InProcess, digit, ncn, network},
    tamper::{Tamper, Tampered},
};

#[tokio::test]
async fn the_registry_node_in_process() {
    let rules = conformance::registry(&InProcess::new(&[Behavior::Honest; 7]).await).await.unwrap();
    assert!(rules.len() > 25, "{rules:?}");
}

/// The same registry node, called over gRPC.
struct OverGrpc(InProcess, GrpcRegistry);

#[async_trait]
impl RegistryFixture for OverGrpc {
    fn registry(&self) -> &dyn Registry {
        &self.1
    }

    async fn epoch(&self) -> Epoch {
        self.0.epoch.clone()
    }

    fn now(&self) -> UnixTime {
        unix_now()
    }

    async fn pay(&self, client: &DynSigner, quote: &Quote) {
        self.0.pay(client, quote).await;
    }

    async fn create_subnet(&self, owner: &DynSigner, name: &str) {
        self.0.create_subnet(owner, name).await;
    }
}

#[tokio::test]
async fn the_registry_over_grpc() {
    let scene = InProcess::new(&[Behavior::Honest; 5]).await;
    let registry = scene.registry.clone();
    let server = Server::start(LOOPBACK.into(), Services::new().with(registry_service(registry))).unwrap();
    let client = GrpcRegistry::new(&server.url()).unwrap();
    conformance::registry(&OverGrpc(scene, client)).await.unwrap();
}

pub(crate) fn digits(directory: &Path) -> ExecutorFixture {
    let package = quickstart::unpack(directory).unwrap();
    let bad = directory.join("corrupt");
    std::fs::create_dir(&bad).unwrap();
    let corrupt = ModelPackage { directory: bad.clone(), ..quickstart::unpack(&bad).unwrap() };
    let file = bad.join("model.onnx");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(file, bytes).unwrap();
    let seven = std::fs::read(digit(7)).unwrap();
    ExecutorFixture {
        package,
        corrupt: Some(corrupt),
        inputs: [("image", Value::png(seven))].into(),
        outputs: [("label", "7")].into(),
        bad_inputs: [("image", Value::png(&b"no image"[..]))].into(),
    }
}

#[tokio::test]
async fn onnx_in_process() {
    let directory = tempfile::tempdir().unwrap();
    conformance::executor(&EngineExecutor::built_in(), &digits(directory.path())).await.unwrap();
}

#[tokio::test]
async fn onnx_in_a_worker() {
    let directory = tempfile::tempdir().unwrap();
    let executor = WorkerExecutor::new(vec![WorkerProgram::new(ncn())], Arc::new(NoSandbox), WorkerOptions::default());
    conformance::executor(&executor, &digits(directory.path())).await.unwrap();
}

/// A local network, seen through one transport.
struct Network {
    network: LocalNetwork,
    transport: Arc<dyn Transport>,
}

#[async_trait]
impl TransportFixture for Network {
    fn transport(&self) -> Arc<dyn Transport> {
        self.transport.clone()
    }

    async fn payer(&self, signer: DynSigner) -> Arc<dyn Payer> {
        self.network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
        Arc::new(self.network.ledger(signer))
    }

    async fn balance(&self, owner: Address) -> Amount {
        self.network.funder().balance(owner).await.unwrap()
    }

    async fn trust_root(&self) -> TrustRoot {
        self.network.trust_root().await.unwrap()
    }

    fn model(&self) -> &str {
        quickstart::NAME
    }

    fn inputs(&self) -> Values {
        [("image", Value::png(quickstart::SAMPLE))].into()
    }

    fn bad_inputs(&self) -> Values {
        [("image", Value::png(&b"no image"[..]))].into()
    }

    fn now(&self) -> UnixTime {
        unix_now()
    }
}

#[tokio::test]
async fn the_gateway_in_process() {
    let network = network().start().await.unwrap();
    let transport = network.gateway();
    let rules = conformance::transport(&Network { network, transport }).await.unwrap();
    assert!(rules.len() > 35, "{rules:?}");
}

#[tokio::test]
async fn the_gateway_over_grpc() {
    let network = network().start().await.unwrap();
    let transport = Arc::new(GrpcTransport::new(&network.gateway_url()).unwrap());
    conformance::transport(&Network { network, transport }).await.unwrap();
}

#[tokio::test]
async fn the_gateway_over_http() {
    let network = network().start().await.unwrap();
    let transport = Arc::new(HttpTransport::new(&network.gateway_url()).unwrap());
    conformance::transport(&Network { network, transport }).await.unwrap();
}

#[tokio::test]
async fn the_gateway_over_websocket() {
    let network = network().start().await.unwrap();
    let transport = Arc::new(WebSocketTransport::new(&network.gateway_url().replace("http", "ws")).unwrap());
    conformance::transport(&Network { network, transport }).await.unwrap();
}

/// What is wrong with a transport.
#[derive(Clone, Copy, Debug)]
enum Fault {
    LosesSteps,
    LosesCount,
    BeginsAnew,
    TellsStrangers,
    ForgetsTheQuote,
}

struct BrokenTransport(Arc<dyn Transport>, Fault);

#[async_trait]
impl Tamper for BrokenTransport {
    fn inner(&self) -> &dyn Transport {
        &*self.0
    }

    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        let mut status = self.0.submit(submission).await?;
        if matches!(self.1, Fault::ForgetsTheQuote) {
            status.preprocessing = Some(ncn_core::QuorumCertificate::default());
        }
        Ok(status)
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        use futures::StreamExt as _;
        let from = if matches!(self.1, Fault::BeginsAnew) { 0 } else { from };
        let updates = self.0.updates(access, from).await;
        let blank = |update: Update| match update {
            Update { index: 0, .. } => Update { event: TaskEvent::Attempt(Address::ZERO), ..update },
            update => update,
        };
        match self.1 {
            Fault::LosesSteps => Ok(updates?.map(move |update| update.map(blank)).boxed()),
            Fault::LosesCount => Ok(updates?.map(|update| update.map(|update| Update { index: 0, ..update })).boxed()),
            Fault::TellsStrangers => Ok(updates.unwrap_or_else(|_| futures::stream::empty().boxed())),
            Fault::BeginsAnew | Fault::ForgetsTheQuote => updates,
        }
    }
}

#[tokio::test]
async fn broken_transports_are_caught() {
    let caught = [
        (Fault::LosesSteps, "every step of the gateway's is reported, in order"),
        (Fault::LosesCount, "updates are counted"),
        (Fault::BeginsAnew, "updates go on from the one that is asked for"),
        (Fault::TellsStrangers, "strangers do not follow"),
        (Fault::ForgetsTheQuote, "its quote is approved"),
    ];
    for (fault, rule) in caught {
        let network = network().start().await.unwrap();
        let transport = Arc::new(Tampered(BrokenTransport(network.gateway(), fault)));
        let violation: Violation = conformance::transport(&Network { network, transport }).await.unwrap_err();
        assert_eq!(violation.rule, rule, "{fault:?}: {violation}");
    }
}
