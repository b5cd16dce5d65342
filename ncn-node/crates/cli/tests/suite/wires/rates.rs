//! How much one address, and one client, may ask for.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    time::Duration,
};

use ncn_core::TransportError;
use ncn_node::{
    gateway::GatewayOptions,
    server::{PerMinute, Rates},
};

use super::*;

const ORDERS: u32 = 3;
const CALLS: u32 = 12;
const OF_ONE_CLIENT: u32 = 8;
const SOCKETS: usize = 2;

fn per_minute(orders: u32, calls: u32) -> PerMinute {
    let number = |number| NonZeroU32::new(number).unwrap();
    PerMinute { orders: number(orders), calls: number(calls) }
}

async fn scene() -> Scene {
    let rates = Rates { http: per_minute(ORDERS, CALLS), streams: per_minute(ORDERS, CALLS), sockets: SOCKETS };
    let max_orders_a_minute_of_one = NonZeroU32::new(OF_ONE_CLIENT).unwrap();
    let options = GatewayOptions { max_orders_a_minute_of_one, ..GatewayOptions::default() };
    Scene::with(network().gateway(move |gateway| gateway.rates(rates).options(options))).await
}

/// When the gateway says that another one may come: these tests end long before a whole minute is over.
fn wait(error: &TransportError) -> Duration {
    let TransportError::Overloaded { retry_after } = error else { panic!("{error}") };
    assert!(!retry_after.is_zero() && *retry_after <= Duration::from_mins(1), "{retry_after:?}");
    *retry_after
}

/// How many of these are answered, and the first error.
async fn until_refused<T>(mut call: impl AsyncFnMut() -> Result<T, TransportError>) -> (u32, TransportError) {
    for answered in 0.. {
        if let Err(error) = call().await {
            return (answered, error);
        }
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_so_many_calls_a_minute_on_each_kind_of_wire() {
    let scene = scene().await;
    let order = scene.submission().await;
    // A handshake is a call over HTTP.
    let [(_, process), (_, grpc), (_, http), (_, socket)] = scene.wires();
    // Others are as many as come meanwhile, as the bucket fills again: a slow machine may take a fifth of a minute for this.
    let about = |counted: u32, limit: u32| (limit..=limit + limit / 2).contains(&counted);
    socket.network().await.unwrap();
    let (orders, refused) = until_refused(|| http.submit(order.clone())).await;
    assert!(about(orders, ORDERS), "{orders} orders over HTTP");
    wait(&refused);
    let (calls, refused) = until_refused(|| http.network()).await;
    assert!(about(calls + 1, CALLS), "{calls} calls over HTTP");
    wait(&refused);
    let url = scene.network.gateway_url().replace("http:", "ws:");
    wait(&WebSocketTransport::new(&url).unwrap().network().await.unwrap_err());
    // gRPC and WebSocket share theirs, which HTTP has not used.
    let (by_grpc, refused) = until_refused(|| grpc.submit(order.clone())).await;
    assert!(about(by_grpc, ORDERS), "{by_grpc} orders over gRPC");
    wait(&refused);
    wait(&socket.submit(order.clone()).await.unwrap_err());
    let (by_socket, refused) = until_refused(|| socket.network()).await;
    // A text is a call, though it is a refused order. One was made above, and each compute node has attached by one.
    let nodes = u32::try_from(scene.network.compute_addresses().len()).unwrap();
    assert!(about(by_socket + 2 + nodes, CALLS), "{by_socket} calls over WebSocket");
    wait(&refused);
    wait(&grpc.network().await.unwrap_err());
    process.submit(order).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_say_what_is_left_and_other_addresses_have_their_own() {
    let scene = scene().await;
    let from = |last: u8| {
        let address = IpAddr::from(Ipv4Addr::new(127, 0, 0, last));
        let client = ncn_client::http().unwrap().local_address(address).build().unwrap();
        let url = scene.network.gateway_url();
        async move |method: Method, path: &str, body: &'static str| {
            client.request(method, format!("{url}{path}")).body(body).send().await.unwrap()
        }
    };
    let number = |answer: &reqwest::Response, name: &str| answer.headers()[name].to_str().unwrap().parse::<u32>().unwrap();
    let (first, second) = (from(2), from(3));
    let mut left = Vec::new();
    // Bad orders count as well: to check one takes as long.
    for _ in 0..ORDERS {
        let answer = first(Method::POST, INFERENCE, "{}").await;
        assert_eq!((answer.status(), number(&answer, "ratelimit-limit")), (StatusCode::BAD_REQUEST, ORDERS));
        assert!((1..=60).contains(&number(&answer, "ratelimit-reset")));
        left.push(number(&answer, "ratelimit-remaining"));
    }
    assert!(left[0] == ORDERS - 1 && left.is_sorted_by(|one, next| one >= next), "{left:?}");
    let refused = first(Method::POST, INFERENCE, "{}").await;
    assert_eq!((refused.status(), number(&refused, "ratelimit-remaining")), (StatusCode::TOO_MANY_REQUESTS, 0));
    assert!((1..=20).contains(&number(&refused, "retry-after")), "{:?}", refused.headers());
    let problem: Problem = refused.json().await.unwrap();
    assert!(problem.retryable && problem.kind == "busy", "{problem:?}");
    assert_eq!(number(&first(Method::GET, "/health", "").await, "ratelimit-limit"), CALLS);
    // What a client says of its body does not make it another wire.
    let disguised = scene.call(Method::GET, "/health").header("content-type", "application/grpc").send().await.unwrap();
    assert_eq!(number(&disguised, "ratelimit-limit"), CALLS);
    assert_eq!(number(&second(Method::POST, INFERENCE, "{}").await, "ratelimit-remaining"), ORDERS - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_has_so_many_orders_a_minute_wherever_it_calls_from() {
    let scene = scene().await;
    let gateway = scene.network.gateway();
    let (orders, refused) = until_refused(async || gateway.submit(scene.submission().await).await).await;
    assert!((OF_ONE_CLIENT..OF_ONE_CLIENT * 2).contains(&orders), "{orders}");
    wait(&refused);
    let other = Scene { client: key(), ..scene };
    other.network.gateway().submit(other.submission().await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_nobody_can_read_count_as_well() {
    let scene = scene().await;
    let mut stream = open_socket(&scene).await;
    for _ in 0..2 * CALLS {
        stream.write_all(&frame(0x81, b"{")).await.unwrap();
    }
    let mut said = String::new();
    while !said.contains("busy") {
        let mut answer = [0; 1_024];
        let length = in_time("an answer", stream.read(&mut answer)).await.unwrap();
        assert!(length > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&answer[..length]));
    }
    let read = said.matches("\"invalid\"").count();
    assert!(read <= 2 * CALLS as usize - 2, "{read} were read: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_so_many_sockets() {
    let scene = scene().await;
    let mut open = Vec::new();
    for _ in 0..SOCKETS {
        let socket = WebSocketTransport::new(&scene.network.gateway_url().replace("http:", "ws:")).unwrap();
        socket.network().await.unwrap();
        open.push(socket);
    }
    let url = scene.network.gateway_url().replace("http:", "ws:");
    wait(&WebSocketTransport::new(&url).unwrap().network().await.unwrap_err());
    open.pop();
    eventually("the place is free", async || WebSocketTransport::new(&url).unwrap().network().await.is_ok()).await;
}
