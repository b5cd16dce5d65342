//! What a gateway says is the same on every wire, and makes sense to who has nothing but the wire.

use std::{sync::Arc, time::Duration};

use ncn_client::{
    Client,
    core::{
        Amount, B256, CapabilityScope, DynSigner, InferenceRequest, ModelInfo, PaymentConfirmation, PaymentSubmission, Signed,
        Submission, TaskCapability, Transport, TransportError, Value, Values,
    },
    grpc::GrpcTransport,
    http::HttpTransport,
    unix_now,
    ws::WebSocketTransport,
};
use ncn_core::{TransportExt as _, TrustRoot};
use ncn_devnet::{LocalNetwork, LocalNetworkBuilder, quickstart};
use ncn_wire::json::{INFERENCE, Problem, access_text};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    scene::{digit, key, network},
    wait::{eventually, in_time},
};

mod differential;
mod measured;
mod openapi;
mod rates;
mod reflection;
mod sessions;

struct Scene {
    network: LocalNetwork,
    trust: TrustRoot,
    info: ModelInfo,
    client: DynSigner,
}

impl Scene {
    async fn new() -> Self {
        Self::with(network()).await
    }

    async fn with(network: LocalNetworkBuilder) -> Self {
        let network = network.start().await.unwrap();
        let trust = network.trust_root().await.unwrap();
        let info = network.gateway().model_named(quickstart::NAME).await.unwrap().unwrap();
        Self { network, trust, info, client: key() }
    }

    /// The same gateway in process, over gRPC, over HTTP and over WebSocket.
    fn wires(&self) -> [(&'static str, Arc<dyn Transport>); 4] {
        let url = |scheme| self.network.gateway_url().replace("http:", scheme);
        [
            ("process", self.network.gateway()),
            ("gRPC", Arc::new(GrpcTransport::new(&url("grpc:")).unwrap())),
            ("HTTP", Arc::new(HttpTransport::new(&url("http:")).unwrap())),
            ("WebSocket", Arc::new(WebSocketTransport::new(&url("ws:")).unwrap())),
        ]
    }

    fn inputs() -> Values {
        [("image", Value::png(quickstart::SAMPLE))].into()
    }

    async fn order(&self) -> (InferenceRequest, B256) {
        let ticket = self.network.gateway().tickets(1).await.unwrap()[0];
        let inputs = Self::inputs();
        let order = InferenceRequest {
            client: self.client.address(),
            subnet: self.info.subnet,
            model_digest: self.info.model.digest(),
            input_hash: inputs.hash(),
            parameters: "{}".into(),
            max_price: self.info.maximum(&inputs, "{}").unwrap().1,
            deadline: unix_now() + 600,
            nonce: B256::random(),
            draw: ticket.draw,
        };
        (order, ticket.id)
    }

    async fn submission(&self) -> Submission {
        let (order, ticket) = self.order().await;
        let request = self.sign(order, &self.client).await;
        Submission { request, inputs: Self::inputs(), ticket }
    }

    async fn sign<T: ncn_core::crypto::Authored>(&self, message: T, key: &DynSigner) -> Signed<T> {
        Signed::sign(message, &self.trust.domain, &**key).await.unwrap()
    }

    async fn access(&self, request_id: B256, scope: CapabilityScope, key: &DynSigner) -> Signed<TaskCapability> {
        self.sign(TaskCapability { client: key.address(), request_id, scope }, key).await
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        ncn_client::http().unwrap().build().unwrap().request(method, format!("{}{path}", self.network.gateway_url()))
    }
}

/// Orders that are wrong, and what says so.
type Wrong = (&'static str, fn(&mut Submission));

const WRONG: [Wrong; 16] = [
    ("request.subnet", |order| order.request.message.subnet = B256::repeat_byte(9)),
    ("model", |order| order.request.message.model_digest = B256::repeat_byte(9)),
    ("inputHash", |order| order.request.message.input_hash = B256::repeat_byte(9)),
    ("parameters", |order| order.request.message.parameters = "{".into()),
    ("parameters", |order| order.request.message.parameters = "{\"temperature\": 1e400}".into()),
    ("maxPrice", |order| order.request.message.max_price = Amount::ZERO),
    ("deadline", |order| order.request.message.deadline = 0),
    ("deadline", |order| order.request.message.deadline = u64::MAX),
    ("signature", |order| order.request.message.nonce = B256::ZERO),
    ("signature", |order| order.request.message.draw = B256::repeat_byte(9)),
    ("signature", |order| order.request.message.client = key().address()),
    ("inputHash", |order| order.inputs = Values::new()),
    ("inputHash", |order| drop(order.inputs.insert("image", "text"))),
    ("inputHash", |order| drop(order.inputs.insert("more", "text"))),
    ("draw", |order| order.ticket = B256::ZERO),
    ("draw", |order| order.ticket = B256::repeat_byte(9)),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_the_same_words_on_every_wire() {
    let scene = Scene::new().await;
    let good = scene.submission().await;
    let mut compared = 0;
    for (about, spoil) in WRONG {
        let mut bad = good.clone();
        spoil(&mut bad);
        let mut said = Vec::new();
        for (wire, transport) in scene.wires() {
            let error = transport.submit(bad.clone()).await.expect_err(about);
            assert!(error.to_string().contains(about), "{wire}: {error} is not about {about}");
            said.push(error);
            compared += 1;
        }
        // A second may have passed, which some of them tell.
        let words = |error: &TransportError| format!("{error:?}").replace(|c: char| c.is_ascii_digit(), "");
        assert!(said.iter().all(|error| words(error) == words(&said[0])), "{said:?}");
    }
    let (stranger, nobodys) = (key(), B256::repeat_byte(3));
    // The order that was spoilt is still good, and the same one everywhere.
    let quoted = scene.network.gateway().submit(good.clone()).await.unwrap();
    for (_, transport) in scene.wires() {
        assert_eq!(transport.submit(good.clone()).await.unwrap(), quoted);
        assert_eq!(transport.status(quoted.request_id).await.unwrap(), quoted);
    }
    let confirm = |request_id| PaymentConfirmation { request_id, proof: PaymentSubmission::Transaction(B256::repeat_byte(1)) };
    for (request_id, signer) in [(quoted.request_id, &stranger), (nobodys, &scene.client)] {
        for scope in [CapabilityScope::Follow, CapabilityScope::Cancel, CapabilityScope::CloseChannel] {
            let access = scene.access(request_id, scope, signer).await;
            let (mut followed, mut cancelled, mut said) = (Vec::new(), Vec::new(), Vec::new());
            for (_, transport) in scene.wires() {
                followed.push(transport.updates(access.clone(), 0).await.err());
                cancelled.push(transport.cancel(access.clone()).await.err());
                said.push((transport.status(nobodys).await, transport.confirm_payment(confirm(nobodys)).await));
                said.push((transport.status(nobodys).await, transport.confirm_payment(confirm(nobodys)).await));
                compared += 4;
            }
            assert!(followed[0].is_some() && followed.iter().all(|error| *error == followed[0]), "{followed:?}");
            assert!(cancelled[0].is_some() && cancelled.iter().all(|error| *error == cancelled[0]), "{cancelled:?}");
            assert!(said.iter().all(|error| *error == said[0]), "{said:?}");
        }
    }
    for count in [0, 65, u32::MAX] {
        let mut said = Vec::new();
        for (_, transport) in scene.wires() {
            said.push(transport.tickets(count).await);
            compared += 1;
        }
        assert!(said.iter().all(|answer| *answer == said[0]), "{said:?}");
    }
    let lists = futures::future::join_all(scene.wires().map(async |(_, wire)| (wire.models().await, wire.network().await))).await;
    assert!(lists[0].0.is_ok() && lists.iter().all(|list| *list == lists[0]), "{lists:?}");
    println!("{compared} answers were compared");
}

/// The status of an answer, and the error in it.
async fn problem(call: RequestBuilder) -> (StatusCode, Problem) {
    let answer = in_time("an answer", call.send()).await.unwrap();
    let status = answer.status();
    assert_eq!(answer.headers()["content-type"], "application/json");
    (status, answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_to_http_is_told_what_is_wrong() {
    let scene = Scene::new().await;
    let submission = serde_json::to_value(scene.submission().await).unwrap();
    let nobodys = format!("{INFERENCE}/{}", B256::repeat_byte(3));
    let mut bodies = vec![
        ("body", String::new()),
        ("body", "{".into()),
        ("body", "[]".into()),
        ("body", format!("{submission} {{}}")),
        ("inputs", json!({ "request": submission["request"], "inputs": 1, "ticket": submission["ticket"] }).to_string()),
        ("more", json!({ "request": submission["request"], "inputs": {}, "ticket": submission["ticket"], "more": 1 }).to_string()),
        ("request.message.deadline", submission.to_string().replace("\"deadline\":", "\"deadline\":-")),
        ("[0]", "[".repeat(100_000)),
        ("body", format!("\"{}\"", "a".repeat(1 << 20))),
    ];
    let mut late = submission.clone();
    late["request"]["message"]["maxPrice"] = json!(1);
    bodies.push(("request.message.maxPrice", late.to_string()));
    for (field, body) in bodies {
        let (status, problem) = problem(scene.call(Method::POST, INFERENCE).body(body)).await;
        assert_eq!((status, &*problem.kind), (StatusCode::BAD_REQUEST, "invalid"), "{problem:?}");
        assert!(problem.message.len() < 2_000, "what was sent does not come back");
        let Some(TransportError::InvalidRequest { field: named, .. }) = problem.error else { panic!("{problem:?}") };
        assert!(named.contains(field) || problem.message.contains(field), "{}", problem.message);
    }
    let access = access_text(&scene.access(B256::repeat_byte(3), CapabilityScope::Follow, &scene.client).await);
    let other = access_text(&scene.access(B256::repeat_byte(4), CapabilityScope::Follow, &scene.client).await);
    let in_parts = |parts: &str| {
        let call = scene.call(Method::POST, INFERENCE).header("content-type", "multipart/form-data; boundary=b");
        call.body(format!("{parts}--b--\r\n"))
    };
    let calls = [
        (scene.call(Method::GET, "/nowhere"), 404, "unknown"),
        (scene.call(Method::GET, &nobodys), 404, "unknown"),
        (scene.call(Method::GET, &format!("{INFERENCE}/0x12")), 400, "invalid"),
        (scene.call(Method::GET, &format!("{nobodys}/events")), 400, "invalid"),
        (scene.call(Method::GET, &format!("{nobodys}/events?access=%00")), 400, "invalid"),
        (scene.call(Method::GET, &format!("{nobodys}/events?access={other}")), 400, "invalid"),
        (scene.call(Method::GET, &format!("{nobodys}/events?access={access}")), 404, "unknown"),
        (scene.call(Method::GET, &format!("{nobodys}/output")).bearer_auth(&access), 404, "unknown"),
        (scene.call(Method::POST, &format!("{nobodys}/cancel")).bearer_auth(&access), 404, "unknown"),
        (scene.call(Method::POST, "/api/v1/tickets").body("{\"count\": 1.5}"), 400, "invalid"),
        (scene.call(Method::POST, "/api/v1/tickets").body(" ".repeat(70_000)), 400, "invalid"),
        // Each part costs little to send and as much as any to read.
        (in_parts(&"--b\r\n\r\n\r\n".repeat(400_000)), 400, "invalid"),
        (in_parts(&"--b\r\ncontent-disposition: form-data; name=\"x\"\r\n\r\n\r\n".repeat(2)), 400, "invalid"),
    ];
    for (call, expected, kind) in calls {
        let (status, problem) = problem(call).await;
        assert_eq!((status.as_u16(), &*problem.kind), (expected, kind), "{problem:?}");
    }
    let parts: Vec<_> =
        (0..2_000).map(|number| format!("--b\r\ncontent-disposition: form-data; name=\"{number}\"\r\n\r\n\r\n")).collect();
    let (_, too_many) = problem(in_parts(&parts.concat())).await;
    assert!(too_many.message.contains("parts"), "{too_many:?}");
    // It is refused by its length; a client that goes on sending may not read why.
    let long = scene.call(Method::POST, INFERENCE).body(" ".repeat(30 << 20)).send().await;
    assert!(long.is_err() || long.unwrap().status() == StatusCode::BAD_REQUEST);
    let (status, problem) = problem(scene.call(Method::DELETE, INFERENCE)).await;
    assert_eq!((status, &*problem.kind), (StatusCode::METHOD_NOT_ALLOWED, "unknown"), "{problem:?}");
    let health: Json = scene.call(Method::GET, "/health").send().await.unwrap().json().await.unwrap();
    assert_eq!((&health["status"], health["gateway"].as_str().map(str::len)), (&json!("ok"), Some(42)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_in_parts_is_answered_with_a_file_and_with_events() {
    let scene = Scene::new().await;
    let submission = scene.submission().await;
    let mut said = serde_json::to_value(&submission).unwrap();
    said["inputs"] = json!({});
    let border = "a-border";
    let head = format!(
        "--{border}\r\ncontent-disposition: form-data; name=\"submission\"\r\n\r\n{said}\r\n\
         --{border}\r\ncontent-disposition: form-data; name=\"image\"; filename=\"7.png\"\r\ncontent-type: image/png\r\n\r\n"
    );
    let body = [head.as_bytes(), quickstart::SAMPLE, format!("\r\n--{border}--\r\n").as_bytes()].concat();
    let call = scene.call(Method::POST, INFERENCE).header("content-type", format!("multipart/form-data; boundary={border}"));
    let answer: Json = call.body(body).send().await.unwrap().json().await.unwrap();
    let request_id: B256 = answer["requestId"].as_str().unwrap_or_else(|| panic!("{answer}")).parse().unwrap();

    // The quote is paid on the chain, and the gateway sees it.
    let quoted = scene.network.gateway().status(request_id).await.unwrap().quote.unwrap();
    scene.network.funder().transfer(scene.client.address(), Amount::TOKEN).await.unwrap();
    let transaction = scene.network.ledger(scene.client.clone()).escrow(&quoted).await.unwrap();
    let paid = scene.call(Method::POST, &format!("{INFERENCE}/{request_id}/payment"));
    let paid = paid.json(&PaymentSubmission::Transaction(transaction)).send().await.unwrap();
    assert_eq!(paid.status(), StatusCode::NO_CONTENT);

    let access = access_text(&scene.access(request_id, CapabilityScope::Follow, &scene.client).await);
    let output = |accept: &str| {
        let call = scene.call(Method::GET, &format!("{INFERENCE}/{request_id}/output")).bearer_auth(&access);
        call.header("accept", accept).send()
    };
    let text = in_time("the output", output("image/png, text/plain;q=0.5")).await.unwrap();
    assert_eq!(text.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(text.text().await.unwrap(), "7");
    let whole: Json = output("application/json").await.unwrap().json().await.unwrap();
    assert!(whole["output"]["label"]["text"] == "7" && whole["receipt"]["quote"].is_object(), "{whole}");
    assert_eq!(output("audio/wav").await.unwrap().status(), StatusCode::BAD_REQUEST);

    let events = |last: &str| {
        let call = scene.call(Method::GET, &format!("{INFERENCE}/{request_id}/events?access={access}"));
        let call = if last.is_empty() { call } else { call.header("last-event-id", last) };
        async { in_time("all events", call.send().await.unwrap().text()).await.unwrap() }
    };
    let all = events("").await;
    let ids: Vec<&str> = all.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert!(ids.len() > 3 && ids[0] == "0" && all.contains("event: delivered"), "{all}");
    let rest = events(ids[ids.len() - 2]).await;
    let rest: Vec<&str> = rest.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(rest, ids[ids.len() - 1..], "what was seen does not come again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_calls_a_gateway_by_the_wire_that_its_url_names() {
    let network = network().start().await.unwrap();
    let url = network.gateway_url();
    for url in ["http:", "grpc:", "ws:"].map(|scheme| url.replace("http:", scheme)) {
        let signer = key();
        network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
        let payer = Arc::new(network.ledger(signer.clone()));
        let client = Client::builder().gateway(&url).payer(payer).signer(signer).max_price(Amount::TOKEN);
        let client = client.timeout(Duration::from_mins(5)).build().unwrap();
        let answer = client.infer(quickstart::NAME, [("image", Value::png(std::fs::read(digit(3)).unwrap()))]).await.unwrap();
        assert_eq!(answer.output.text("label"), Some("3"), "{url}");
    }
    for url in ["ftp://127.0.0.1", "127.0.0.1:50051", "http://", ""] {
        assert!(ncn_client::transport(url).is_err(), "{url}");
    }
    // Nobody listens there: whatever the wire, it is said who was called.
    for url in ["http://127.0.0.1:1", "grpc://127.0.0.1:1", "ws://127.0.0.1:1"] {
        let error = ncn_client::transport(url).unwrap().models().await.unwrap_err();
        let TransportError::Unreachable { endpoint, .. } = &error else { panic!("{error}") };
        assert!(endpoint.ends_with("127.0.0.1:1"), "{error}");
    }
}

/// A WebSocket, whose frames the test writes itself.
async fn open_socket(scene: &Scene) -> TcpStream {
    let mut stream = TcpStream::connect(scene.network.gateway_url().replace("http://", "")).await.unwrap();
    let handshake = "GET /ws HTTP/1.1\r\nhost: gateway\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(handshake.as_bytes()).await.unwrap();
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer[..length]));
    stream
}

/// A frame of a WebSocket as a client sends it, masked by zeros (RFC 6455, section 5.2).
fn frame(first: u8, data: &[u8]) -> Vec<u8> {
    let length = u8::try_from(data.len()).ok().filter(|length| *length < 126);
    let mut frame = vec![first, 0x80 | length.unwrap_or(127)];
    if length.is_none() {
        frame.extend((data.len() as u64).to_be_bytes());
    }
    frame.extend([0; 4]);
    frame.extend(data);
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_never_ends_counts_although_pings_come_between() {
    const FRAGMENT: usize = 256 << 10;
    let scene = Scene::new().await;
    let mut open = Vec::new();
    // One address has half of all: a third text of 15 MiB cannot be taken, nor one soon after it, whatever the system itself holds.
    for _ in 0..8 {
        let mut stream = open_socket(&scene).await;
        let pieces = async {
            for piece in 0..60 {
                let first = u8::from(piece == 0);
                let bytes = [frame(first, &vec![b'x'; FRAGMENT]), frame(0x89, b"")].concat();
                stream.write_all(&bytes).await?;
            }
            std::io::Result::Ok(())
        };
        let is_taken = in_time("the text", pieces).await.is_ok();
        open.push((stream, is_taken));
        if !is_taken {
            break;
        }
    }
    assert!(open.iter().any(|(_, is_taken)| !is_taken), "all texts were taken of one address");
    // Others are served meanwhile, and who is gone takes nothing.
    scene.network.gateway().network().await.unwrap();
    drop(open);
    let wire = HttpTransport::new(&scene.network.gateway_url()).unwrap();
    let submission = scene.submission().await;
    eventually("the order is taken", async || wire.submit(submission.clone()).await.is_ok()).await;
}
