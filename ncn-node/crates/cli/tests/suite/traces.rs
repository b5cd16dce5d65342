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
    let roles = [
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
    assert_eq!(names, BTreeSet::from(roles));
}
