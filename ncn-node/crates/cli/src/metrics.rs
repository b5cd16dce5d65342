//! What a node measures, served to Prometheus.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use metrics_exporter_prometheus::PrometheusBuilder;
use ncn_node::{
    measures,
    server::{RenderMetrics, Server, metrics_routes},
};

use crate::Failure;

/// How often the recorder puts together what was measured, whether somebody collects it or not: until then it keeps each time on its own.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct MetricsArguments {
    /// Serve metrics for Prometheus there, as http://ADDRESS:PORT/metrics. A gateway has a page for people there, too, as http://ADDRESS:PORT/
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = crate::listen_address)]
    metrics: Option<SocketAddr>,
}

impl MetricsArguments {
    /// Serves them, and these routes, where they are wanted; `measure` is called before each answer.
    pub(crate) fn serve(&self, routes: Router, measure: impl Fn() + Send + Sync + 'static) -> Result<Option<Server>, Failure> {
        let Some(address) = self.metrics else { return Ok(None) };
        let render = recorder()?;
        let render: RenderMetrics = Arc::new(move || {
            measure();
            render()
        });
        let refuse = |error: std::io::Error| Failure::Input(format!("--metrics {error}"));
        Ok(Some(Server::start_small(address.into(), metrics_routes(render).merge(routes)).map_err(refuse)?))
    }

    /// Whether they are wanted at an address of their own.
    pub(crate) const fn has_address(&self) -> bool {
        self.metrics.is_some()
    }
}

/// Begins to record, once for the process; within a runtime.
pub(crate) fn recorder() -> Result<RenderMetrics, Failure> {
    let recorder = PrometheusBuilder::new().set_buckets(&measures::SECONDS).map_err(Failure::failed)?;
    let handle = recorder.install_recorder().map_err(Failure::failed)?;
    measures::describe();
    let kept = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            kept.run_upkeep();
        }
    });
    Ok(Arc::new(move || handle.render()))
}
