//! What a server serves.

use std::convert::Infallible;

use axum::{Router, response::IntoResponse};
use ncn_wire::proto;
use tonic::{
    body::Body,
    codegen::{Service, http::Request},
    server::NamedService,
    service::Routes,
};
use tonic_health::{pb::health_server, server::HealthReporter};
use tonic_reflection::{pb::v1::server_reflection_server as reflection, server::Builder};

/// gRPC services, and other routes beside them.
#[derive(Clone, Debug)]
pub struct Services {
    routes: Router,
    names: Vec<&'static str>,
}

impl Default for Services {
    fn default() -> Self {
        Self { routes: Routes::default().into_axum_router(), names: Vec::new() }
    }
}

impl From<Router> for Services {
    fn from(routes: Router) -> Self {
        Self { routes, names: Vec::new() }
    }
}

impl Services {
    /// None so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// And this gRPC service.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send,
    {
        self.names.push(S::NAME);
        self.routes = mount(self.routes, service);
        self
    }

    /// And these routes.
    #[must_use]
    pub fn and(mut self, routes: Router) -> Self {
        // What is at no path is theirs to answer.
        self.routes = self.routes.reset_fallback().merge(routes);
        self
    }

    /// As routes, with gRPC's services that say whether these serve, and what they are: for those who have no code of ours.
    pub(super) fn described(self) -> (HealthReporter, Router) {
        let (reporter, health) = tonic_health::server::health_reporter();
        let names = [health_server::SERVICE_NAME, reflection::SERVICE_NAME];
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let builder = self.names.into_iter().chain(names).fold(builder, Builder::with_service_name);
        let routes = mount(self.routes, health);
        // They are of this build: that they can be read is tested.
        let routes = match builder.build_v1() {
            Ok(reflection) => mount(routes, reflection),
            Err(_) => routes,
        };
        (reporter, routes)
    }
}

fn mount<S>(routes: Router, service: S) -> Router
where
    S: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    Routes::from(routes).add_service(service).into_axum_router()
}
