//! Strangers that send more than a server can hold: it refuses them, its memory stays within bounds, and others are answered.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs,
    future::poll_fn,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use http_body::{Body as _, Frame};
use ncn_client::grpc::{GrpcRegistry, channel};
use ncn_core::{Directory as _, NodeChange, NodeQuery, NodeRole, channel::MAX_BATCH};
use ncn_wire::{
    MAX_MESSAGE_BYTES,
    proto::{
        self, gateway_client_service_client::GatewayClientServiceClient, p2p_registry_service_client::P2pRegistryServiceClient,
        validator_service_client::ValidatorServiceClient,
    },
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::Request,
    transport::{Channel, Endpoint},
};
use tower::{Service as _, ServiceExt as _};

use crate::{
    cli::Devnet,
    scene::{digit, ncn},
    wait::{PAUSE, eventually, in_time},
};

const SUBMIT: &str = "/ncn.v1.GatewayClientService/SubmitInferenceTask";
const ATTACH: &str = "/ncn.v1.GatewayComputeService/Attach";
const SETTLE: &str = "/ncn.v1.P2PRegistryService/RequestSettlementValidation";
const WATCH: &str = "/ncn.v1.P2PRegistryService/WatchNodes";
const APPROVE: &str = "/ncn.v1.ValidatorService/ApproveSettlement";
/// The stranger's address; everyone else is at 127.0.0.1.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
/// What a devnet, with all its servers in one process, may grow by. The servers' bounds for one address come to less.
const MOST_GROWTH: usize = 400 << 20;

/// A body of these parts, which ends after them or not at all.
struct Sent {
    parts: VecDeque<Bytes>,
    ends: bool,
    count: Arc<AtomicUsize>,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.parts.pop_front() {
            Some(part) => {
                self.count.fetch_add(part.len(), Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(part))))
            }
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// A message's prefix, which announces this many bytes.
fn prefix(length: usize) -> Bytes {
    let mut prefix = BytesMut::new();
    prefix.put_u8(0);
    prefix.put_u32(u32::try_from(length).unwrap());
    prefix.freeze()
}

/// An entry of a repeated field: its tag, and its length.
const fn empty(number: u8) -> [u8; 2] {
    [number << 3 | 2, 0]
}

/// Calls a method with a body, and returns how it was refused.
async fn refused(mut server: Channel, path: &'static str, body: Sent) -> Status {
    let request = Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    let request = request.body(Body::new(body)).unwrap();
    let response = server.ready().await.unwrap().call(request).await;
    let (head, mut body) = match response {
        Ok(response) => response.into_parts(),
        Err(error) => return Status::from_error(error.into()),
    };
    // A stream is refused at its end.
    let mut status = Status::from_header_map(&head.headers);
    while status.is_none() {
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.expect("a refusal has a status");
        status = frame.map_or_else(Some, |frame| frame.trailers_ref().and_then(Status::from_header_map));
    }
    status.unwrap()
}

fn stranger(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).unwrap().local_address(Some(STRANGER)).connect_lazy()
}

/// A number of bytes out of the process's status.
fn memory(process: u32, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// The memory that a process takes, and the most that it takes from now on.
struct Memory {
    process: u32,
    before: usize,
}

impl Memory {
    fn watch(process: u32) -> Self {
        // Where the kernel cannot forget the peak, that of the start counts too.
        let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
        Self { process, before: memory(process, "VmRSS") }
    }

    fn assert_bounded(&self, what: &str) {
        let growth = memory(self.process, "VmHWM").saturating_sub(self.before);
        assert!(growth < MOST_GROWTH, "{what}: the process grew by {} MiB", growth >> 20);
    }
}

async fn validator(devnet: &Devnet) -> String {
    let registry = GrpcRegistry::new(&devnet.registry).unwrap();
    let query = NodeQuery { role: Some(NodeRole::Validator), ..NodeQuery::default() };
    registry.discover(query).await.unwrap().remove(0).message.endpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_entries_are_refused_before_they_take_memory() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let validator = validator(&devnet).await;
    let memory = Memory::watch(devnet.process());
    let attacks = [
        (&*devnet.registry, SETTLE, empty(1), Code::Internal),
        (&*devnet.registry, "/ncn.v1.P2PRegistryService/RegisterNode", empty(5), Code::OutOfRange),
        (&*devnet.registry, "/ncn.v1.P2PRegistryService/RequestCompletionValidation", empty(1), Code::OutOfRange),
        (&*validator, APPROVE, empty(1), Code::Internal),
        (&*validator, "/ncn.v1.ValidatorService/ApproveCompletion", empty(1), Code::OutOfRange),
        (&*devnet.gateway, SUBMIT, empty(10), Code::Internal),
        (&*devnet.gateway, "/ncn.v1.GatewayClientService/GetTaskStatus", empty(1), Code::OutOfRange),
    ];
    for (url, path, entry, code) in attacks {
        let parts = [prefix(MAX_MESSAGE_BYTES), entry.repeat(MAX_MESSAGE_BYTES / 2).into()];
        let body = Sent { parts: parts.into(), ends: true, count: Arc::default() };
        let status = refused(stranger(url), path, body).await;
        memory.assert_bounded(path);
        assert_eq!(status.code(), code, "{path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_honest_messages_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let channel = |url: &str| channel(url).unwrap();
    // What is refused by name was decoded.
    let quote = proto::Quote { trust_root: vec![7; 1_200].into(), ..proto::Quote::default() };
    let entry = proto::BatchEntry { quote: Some(quote), ..proto::BatchEntry::default() };
    let batch = proto::SettlementBatch { entries: vec![entry; MAX_BATCH], root: vec![7; 32].into(), ..Default::default() };
    let mut registry = P2pRegistryServiceClient::new(channel(&devnet.registry));
    let status = registry.request_settlement_validation(batch.clone()).await.unwrap_err();
    assert_eq!(status.message(), "gateway: has 0 bytes, an address has 20");
    let mut judge = ValidatorServiceClient::new(channel(&validator(&devnet).await));
    let status = judge.approve_settlement(batch).await.unwrap_err();
    assert_eq!(status.message(), "gateway: has 0 bytes, an address has 20");

    let submitted = (0..3).map(|_| async {
        let value = proto::named_value::Value::Text("x".repeat(8 << 20));
        let inputs = vec![proto::NamedValue { name: "text".into(), value: Some(value) }];
        let request = proto::InferenceRequest { inputs, ..proto::InferenceRequest::default() };
        let mut gateway = GatewayClientServiceClient::new(channel(&devnet.gateway));
        gateway.submit_inference_task(request).await.unwrap_err()
    });
    for status in join_all(submitted).await {
        assert_eq!(status.message(), "request.client: has 0 bytes, an address has 20");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_end_are_ended() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let memory = Memory::watch(devnet.process());
    let count = Arc::new(AtomicUsize::new(0));
    let chunk = Bytes::from(vec![0; 64 << 10]);
    let attacks: FuturesUnordered<_> = (0..6)
        .flat_map(|connection| {
            let server = stranger(&devnet.gateway);
            let (count, chunk) = (&count, &chunk);
            (0..220).map(move |number| {
                // All but the last byte of a long message, or of a short one.
                let (path, parts) = match (connection, number) {
                    (0, _) => (SUBMIT, std::iter::once(prefix(MAX_MESSAGE_BYTES)).chain(vec![chunk.clone(); 255]).collect()),
                    (_, 0..200) => (SUBMIT, VecDeque::from([prefix(60_000), chunk.slice(..59_999)])),
                    _ => (ATTACH, VecDeque::from([prefix(60_000), chunk.slice(..59_999)])),
                };
                tokio::spawn(refused(server.clone(), path, Sent { parts, ends: false, count: count.clone() }))
            })
        })
        .collect();
    let arrived = async {
        while count.load(Ordering::Relaxed) < 20 << 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), arrived).await.expect("what the stranger may send is taken in");

    let value = proto::named_value::Value::Text("x".repeat(8 << 20));
    let inputs = vec![proto::NamedValue { name: "text".into(), value: Some(value) }];
    let request = proto::InferenceRequest { inputs, ..proto::InferenceRequest::default() };
    let mut gateway = GatewayClientServiceClient::new(channel(&devnet.gateway).unwrap());
    let status = gateway.submit_inference_task(request).await.unwrap_err();
    assert_eq!(status.message(), "request.client: has 0 bytes, an address has 20");
    infer(&devnet, directory.path()).await;
    memory.assert_bounded("unfinished bodies");

    let ended = attacks.map(Result::unwrap).collect::<Vec<_>>();
    let ended = tokio::time::timeout(Duration::from_mins(3), ended).await.expect("each body is ended");
    for status in ended {
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::ResourceExhausted), "{status}");
    }
    memory.assert_bounded("unfinished bodies");
}

/// Orders an answer as a user would.
async fn infer(devnet: &Devnet, directory: &Path) {
    let arguments =
        ["infer", "--gateway", &devnet.gateway, "--rpc", &devnet.rpc, "--key", "keys/client-0.key", "--model", "digits", "--yes"];
    let mut infer = Command::new(ncn());
    infer.args(arguments).arg("--input").arg(digit(7)).current_dir(directory);
    let answered = tokio::task::spawn_blocking(move || infer.output().unwrap()).await.unwrap();
    assert!(String::from_utf8_lossy(&answered.stdout).contains("label: 7"), "{}", String::from_utf8_lossy(&answered.stderr));
}

/// Makes as many such calls from each of some addresses as a connection takes, until the server is full: until it refuses one. They
/// are left open.
async fn fill(url: &str, path: &'static str, message: &[Bytes]) {
    let calls: FuturesUnordered<_> = (100..116)
        .flat_map(|last| {
            let from = Some([127, 0, 0, last].into());
            let server = Endpoint::from_shared(url.to_owned()).unwrap().local_address(from).connect_lazy();
            let body = || Sent { parts: message.iter().cloned().collect(), ends: path == WATCH, count: Arc::default() };
            (0..256).map(move |_| tokio::spawn(refused(server.clone(), path, body()))).collect::<Vec<_>>()
        })
        .collect();
    let mut refused = calls.filter(|status| std::future::ready(status.as_ref().unwrap().code() == Code::ResourceExhausted));
    let refused = tokio::time::timeout(Duration::from_mins(2), refused.next()).await.expect("the server is full at some point");
    assert!(refused.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn open_calls_from_many_addresses_leave_room_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let validator = validator(&devnet).await;
    // Nothing is sent in these calls.
    fill(&devnet.registry, SETTLE, &[]).await;
    fill(&validator, APPROVE, &[]).await;
    fill(&devnet.gateway, ATTACH, &[]).await;
    infer(&devnet, directory.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_from_many_addresses_leave_room_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let memory = Memory::watch(devnet.process());
    fill(&devnet.registry, WATCH, &[prefix(0)]).await;
    infer(&devnet, directory.path()).await;
    let registry = GrpcRegistry::new(&devnet.registry).unwrap();
    let changes = registry.watch(NodeQuery::default()).await.unwrap();
    let mut told = changes.skip_while(|change| std::future::ready(*change != Ok(NodeChange::Synced)));
    tokio::time::timeout(Duration::from_mins(1), told.next()).await.expect("another watch is told everything").unwrap().unwrap();
    memory.assert_bounded("watches");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_take_every_place_leave_other_calls_alone() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let memory = Memory::watch(devnet.process());
    // One from each address: nobody has more than another, so nobody has to give a place back.
    let addresses = (1..4).flat_map(|third| (1..=200).map(move |last| Ipv4Addr::new(127, 0, third, last)));
    let watches = addresses.map(|address| {
        let server = Endpoint::from_shared(devnet.registry.clone()).unwrap().local_address(Some(address.into()));
        let mut registry = P2pRegistryServiceClient::new(server.connect_lazy());
        async move {
            loop {
                let watch = registry.watch_nodes(proto::DiscoverNodesRequest::default()).await;
                // On a busy machine not every connection comes about at once, and some break off.
                if watch.as_ref().map_or_else(|status| status.code() == Code::ResourceExhausted, |_| true) {
                    // The client is kept: its connection ends with it.
                    return (watch, registry);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
    let watches = in_time("all watches are answered", join_all(watches)).await;
    // The rest were refused. Of a connection that broke off, the place is free a moment later.
    let taken = watches.iter().filter(|(watch, _)| watch.is_ok()).count();
    assert!((330..=392).contains(&taken), "of {}, {taken} have a place", watches.len());
    infer(&devnet, directory.path()).await;
    let registry = GrpcRegistry::new(&devnet.registry).unwrap();
    // A node whose heartbeats were late is back with the next one.
    eventually("every node is there", async || registry.discover(NodeQuery::default()).await.unwrap().len() == 8).await;
    memory.assert_bounded("watches");
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_from_many_addresses_leave_room_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    fill(&devnet.registry, SETTLE, &[prefix(1 << 20)]).await;
    fill(&devnet.gateway, SUBMIT, &[prefix(1 << 20)]).await;
    infer(&devnet, directory.path()).await;
    let value = proto::named_value::Value::Text("x".repeat(2 << 20));
    let inputs = vec![proto::NamedValue { name: "text".into(), value: Some(value) }];
    let request = proto::InferenceRequest { inputs, ..proto::InferenceRequest::default() };
    let mut gateway = GatewayClientServiceClient::new(channel(&devnet.gateway).unwrap());
    let status = gateway.submit_inference_task(request).await.unwrap_err();
    assert_eq!(status.message(), "request.client: has 0 bytes, an address has 20");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_count() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    // One byte of each answer may be sent, so HTTP/2 keeps the rest.
    let unread = |connection: usize| {
        let server = Endpoint::from_shared(devnet.gateway.clone()).unwrap().local_address(Some(STRANGER));
        let server = server.initial_stream_window_size(1).connect_lazy();
        (0..250).map(move |_| {
            let mut server = server.clone();
            let request = Request::post("/ncn.v1.GatewayClientService/GetSupportedModels");
            let request = request.header("content-type", "application/grpc").header("te", "trailers");
            let request = request.body(Body::new(Sent { parts: [prefix(0)].into(), ends: true, count: Arc::default() })).unwrap();
            async move {
                let answer = server.ready().await.unwrap().call(request).await.unwrap();
                (connection, Status::from_header_map(answer.headers()).is_none(), answer)
            }
        })
    };
    let answers = join_all((0..5).flat_map(unread)).await;
    let open = answers.iter().filter(|(_, open, _)| *open).count();
    assert!((680..=768).contains(&open), "{open} of {} calls are open", answers.len());
    infer(&devnet, directory.path()).await;
}
