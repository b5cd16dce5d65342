//! Every role's part of a request has a span with the request's id.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex},
};

use ncn_client::Order;
use ncn_core::Value;
use ncn_devnet::quickstart;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};

use crate::scene::network;

/// The spans of a request, one of each role's part or more.
const ROLES: [&str; 10] = [
    "client.finish",
    "client.pay",
    "client.submit",
    "compute",
    "gateway",
    "registry.completion",
    "registry.preprocessing",
    "validator.completion",
    "validator.preprocessing",
    "worker",
];

/// The names of spans, each with the request that it is for.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeSet<(String, String)>>>);

struct Request(Option<String>);

impl Visit for Request {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "request" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

impl Spans {
    fn add(&self, name: &str, request: Request) {
        if let Some(request) = request.0 {
            self.0.lock().unwrap().insert((name.to_owned(), request));
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut request = Request(None);
        attributes.record(&mut request);
        let span = context.span(id).unwrap();
        if let Some(request) = &request.0 {
            span.extensions_mut().insert(request.clone());
        } else if span.name() == "worker" {
            // It runs models, and knows of no requests: its caller's span does.
            request.0 = span.parent().and_then(|caller| caller.extensions().get::<String>().cloned());
        }
        self.add(span.name(), request);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let mut request = Request(None);
        values.record(&mut request);
        self.add(context.span(id).unwrap().name(), request);
    }
}

#[tokio::test]
async fn each_role_names_the_request() {
    let spans = Spans::default();
    // For all threads: which spans anyone wants is asked once, by whichever test comes to them first.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(spans.clone())).unwrap();
    let network = network().start().await.unwrap();
    let client = network.client().await.unwrap().build().unwrap();
    let order = Order::new(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]);
    let quoted = client.submit(order).await.unwrap();
    let request = quoted.request_id().to_string();
    quoted.pay().await.unwrap().finish().await.unwrap();

    let seen = spans.0.lock().unwrap();
    let names: BTreeSet<_> = seen.iter().filter(|(_, id)| *id == request).map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(ROLES));
}

#[cfg(feature = "otlp")]
mod otlp {
    use std::{process::Command, time::Duration};

    use ncn_core::Receipt;
    use opentelemetry_proto::tonic::{
        collector::trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
        trace::v1::{ResourceSpans, Span},
    };
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    use crate::{
        cli::Devnet,
        scene::{digit, ncn},
        wait::{eventually, in_time},
    };

    use super::*;

    /// Keeps what programs send.
    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<ResourceSpans>>>);

    #[async_trait::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            self.0.lock().unwrap().extend(request.into_inner().resource_spans);
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_is_one_trace_through_all_roles() {
        let collector = Collector::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        let serving = tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().to_owned();
        let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.clone()), ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned())];
        let (at, of_network) = (here.clone(), environment.clone());
        let devnet = tokio::task::spawn_blocking(move || {
            let [endpoint, delay] = of_network.each_ref().map(|(name, value)| (*name, value.as_str()));
            Devnet::start_in(&at, &[], &[endpoint, delay, ("OTEL_SERVICE_NAME", "a network")])
        });
        let devnet = in_time("the network", devnet).await.unwrap();
        let mut infer = Command::new(ncn());
        infer.args(["infer", "--gateway", &devnet.gateway, "--rpc", &devnet.rpc, "--key", "keys/client-0.key", "--yes"]);
        infer.args(["--model", "digits", "--input"]).arg(digit(7)).envs(environment).current_dir(&here);
        let output = in_time("the answer", tokio::task::spawn_blocking(move || infer.output().unwrap())).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let receipt: Receipt = serde_json::from_slice(&std::fs::read(here.join("ncn-receipt.json")).unwrap()).unwrap();
        let request = receipt.quote.request_id;

        let of_request = || -> Vec<Span> {
            let all = collector.0.lock().unwrap();
            let spans = all.iter().flat_map(|of| &of.scope_spans).flat_map(|of| &of.spans);
            spans.filter(|span| span.trace_id == request[..16]).cloned().collect()
        };
        eventually("every role has sent its spans", async || {
            let names: BTreeSet<_> = of_request().into_iter().map(|span| span.name).collect();
            tokio::time::sleep(Duration::from_millis(50)).await;
            ROLES.iter().all(|role| names.contains(*role))
        })
        .await;
        let spans = of_request();
        let roots: Vec<_> = spans.iter().filter(|span| span.parent_span_id.is_empty()).map(|span| span.name.as_str()).collect();
        assert_eq!(roots, ["gateway"]);
        for span in &spans {
            let has_parent = spans.iter().any(|other| other.span_id == span.parent_span_id);
            assert!(has_parent || span.name == "gateway", "{} has no parent here", span.name);
        }
        let states: BTreeSet<_> = spans
            .iter()
            .filter(|span| span.name == "state")
            .flat_map(|span| &span.attributes)
            .collect::<Vec<_>>()
            .iter()
            .filter(|of| of.key == "name")
            .map(|of| format!("{:?}", of.value))
            .collect();
        assert!(states.len() >= 6, "{states:?}");
        // Nothing of what is secret, nor of what was asked and answered.
        let said = format!("{:?}", collector.0.lock().unwrap());
        assert!(said.contains("a network") && said.contains("\"ncn\""), "services are named: {said}");
        let key = std::fs::read_to_string(here.join("keys/client-0.key")).unwrap();
        assert!(!said.contains(key.trim().trim_start_matches("0x")) && !said.contains("image/png"), "{said}");
        serving.abort();
    }
}
