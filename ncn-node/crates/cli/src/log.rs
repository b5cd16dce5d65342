//! What the program says of what it does: lines on standard error, and with the feature `otlp` traces.

use std::io::{self, IsTerminal as _};

#[cfg(feature = "otlp")]
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Where traces go, as every program with OpenTelemetry is told.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Sends what is left when it is dropped.
pub(crate) struct Log {
    #[cfg(feature = "otlp")]
    _traces: Option<traces::Traces>,
}

/// Whether it is a terminal that shows colours, and somebody wants to see them: <https://no-color.org>.
fn takes_colours() -> bool {
    let is_set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    io::stderr().is_terminal() && is_set("NO_COLOR").is_none() && is_set("TERM").is_none_or(|term| term != "dumb")
}

/// From here on it is said.
pub(crate) fn init() -> Log {
    let filter = EnvFilter::try_from_env("NCN_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(takes_colours());
    let as_json = std::env::var_os("NCN_LOG_FORMAT").is_some_and(|format| format == "json");
    let lines = if as_json { lines.json().with_filter(filter).boxed() } else { lines.with_filter(filter).boxed() };
    let log = tracing_subscriber::registry().with(lines);
    let endpoint = ENDPOINTS.into_iter().find(|name| std::env::var_os(name).is_some_and(|endpoint| !endpoint.is_empty()));
    #[cfg(feature = "otlp")]
    {
        let traces = endpoint.and_then(|endpoint| match traces::Traces::start() {
            Ok(traces) => Some(traces),
            Err(error) => {
                crate::say(&format!("no traces are sent: {endpoint}: {error}"));
                None
            }
        });
        log.with(traces.as_ref().map(traces::Traces::layer)).init();
        Log { _traces: traces }
    }
    #[cfg(not(feature = "otlp"))]
    {
        log.init();
        if let Some(endpoint) = endpoint {
            crate::say(&format!("no traces are sent: {endpoint} is set, and this program is built without the feature `otlp`"));
        }
        Log {}
    }
}

/// Traces over OTLP. All roles' spans of a request are in one trace, whose id is the beginning of the request's: nothing has to be carried between them.
#[cfg(feature = "otlp")]
mod traces {
    use std::cell::Cell;

    use ncn_core::RequestId;
    use opentelemetry::{
        Context, SpanId, TraceFlags, TraceId,
        trace::{SpanBuilder, SpanContext, TraceContextExt as _, TraceState, Tracer, TracerProvider as _},
    };
    use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
    use opentelemetry_sdk::{
        Resource,
        trace::{IdGenerator, RandomIdGenerator, SdkTracer, SdkTracerProvider, Span},
    };
    use tracing::{Metadata, Subscriber};
    use tracing_subscriber::{Layer, filter::filter_fn};

    use super::LookupSpan;

    /// The span that is the root of a request's trace.
    const ROOT: &str = "gateway";

    thread_local! {
        /// The ids of the root that is being made on this thread.
        static ROOT_IDS: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
    }

    /// Sends spans, on threads of its own.
    pub(super) struct Traces {
        provider: SdkTracerProvider,
        _runtime: tokio::runtime::Runtime,
    }

    impl Traces {
        pub(super) fn start() -> Result<Self, Box<dyn std::error::Error>> {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("traces").enable_all().build()?;
            let exporter: Result<_, ExporterBuildError> = runtime.block_on(async { SpanExporter::builder().with_tonic().build() });
            let resource = Resource::builder();
            // What the environment says counts.
            let named = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"].into_iter().filter_map(|name| std::env::var(name).ok());
            let is_named =
                named.into_iter().any(|named| !named.is_empty() && (!named.contains('=') || named.contains("service.name=")));
            let resource = if is_named { resource.build() } else { resource.with_service_name("ncn").build() };
            let provider = SdkTracerProvider::builder().with_id_generator(Ids::default()).with_resource(resource);
            Ok(Self { provider: provider.with_batch_exporter(exporter?).build(), _runtime: runtime })
        }

        /// What of the program's spans is sent: its own.
        pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
            let own = |metadata: &Metadata<'_>| metadata.target().starts_with("ncn") && *metadata.level() <= tracing::Level::INFO;
            let tracer = ByRequest(self.provider.tracer("ncn"));
            tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false).with_filter(filter_fn(own))
        }
    }

    impl Drop for Traces {
        fn drop(&mut self) {
            // What does not arrive within a few seconds is lost.
            let _ = self.provider.shutdown();
        }
    }

    /// Makes the spans of a request parts of its trace.
    struct ByRequest(SdkTracer);

    impl Tracer for ByRequest {
        type Span = Span;

        fn build_with_context(&self, builder: SpanBuilder, parent: &Context) -> Span {
            let request = builder.attributes.iter().flatten().find(|attribute| attribute.key.as_str() == "request");
            let request = request.and_then(|attribute| attribute.value.as_str().parse::<RequestId>().ok());
            let Some((trace, root)) = request.as_ref().and_then(ids) else { return self.0.build_with_context(builder, parent) };
            if parent.span().span_context().trace_id() == trace {
                return self.0.build_with_context(builder, parent);
            }
            if builder.name == ROOT {
                ROOT_IDS.set(Some((trace, root)));
                let span = self.0.build_with_context(builder, &Context::new());
                ROOT_IDS.set(None);
                return span;
            }
            let root = SpanContext::new(trace, root, TraceFlags::SAMPLED, true, TraceState::default());
            self.0.build_with_context(builder, &Context::new().with_remote_span_context(root))
        }
    }

    /// The ids of a request's trace, and of its root.
    fn ids(request: &RequestId) -> Option<(TraceId, SpanId)> {
        let (trace, rest) = request.split_first_chunk()?;
        Some((TraceId::from_bytes(*trace), SpanId::from_bytes(*rest.first_chunk()?)))
    }

    #[derive(Debug, Default)]
    struct Ids(RandomIdGenerator);

    impl IdGenerator for Ids {
        fn new_trace_id(&self) -> TraceId {
            ROOT_IDS.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
        }

        fn new_span_id(&self) -> SpanId {
            ROOT_IDS.get().map_or_else(|| self.0.new_span_id(), |(_, root)| root)
        }
    }
}
