//! Failures on demand, as real endpoints have them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jsonrpsee::{
    MethodResponse,
    core::{
        middleware::{Batch, BatchEntry, Notification, RpcServiceT},
        server::{BatchResponseBuilder, ResponsePayload},
    },
    server::{HttpBody, HttpResponse},
    types::{ErrorCode, Id, Request},
};
use serde::Deserialize;
use tonic::codegen::http::StatusCode;
use tower::Layer;

use super::MAX_RESPONSE_BYTES;

/// How long a call is left without an answer.
const SILENCE: Duration = Duration::from_mins(1);
/// The method that plans faults, which has none.
const PLAN: &str = "ncn_fault";

/// Which faults come next.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    mode: Mode,
    /// How many calls it concerns.
    count: u64,
    /// Calls of any method, when none is named.
    method: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// An internal error; nothing is done.
    Error,
    /// No answer for a minute, then an internal error; nothing is done.
    Timeout,
    /// It is done, but what comes back is an error of a proxy.
    Lost,
    /// It is done, but the result makes no sense.
    Garbage,
}

/// What is planned. A new plan replaces the one before.
#[derive(Default)]
pub(super) struct Faults(Mutex<Option<Plan>>);

impl Faults {
    pub(super) fn plan(&self, plan: Plan) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan);
    }

    /// What goes wrong with this call.
    fn next(&self, method: &str) -> Option<Mode> {
        let mut planned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = planned.as_mut()?;
        if method == PLAN || plan.method.as_ref().is_some_and(|only| only != method) {
            return None;
        }
        plan.count = plan.count.checked_sub(1)?;
        Some(plan.mode)
    }
}

/// Marks a response that gets lost.
#[derive(Clone, Copy)]
struct Lost;

/// What arrives of a response.
pub(super) fn lose(mut response: HttpResponse) -> HttpResponse {
    if response.extensions().get::<Lost>().is_some() {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        *response.body_mut() = HttpBody::from("the response was lost, as ncn_fault has asked for\n");
    }
    response
}

/// Puts faults into a service.
#[derive(Clone)]
pub(super) struct FaultLayer(pub(super) Arc<Faults>);

impl<S> Layer<S> for FaultLayer {
    type Service = Faulty<S>;

    fn layer(&self, service: S) -> Faulty<S> {
        Faulty { service: Arc::new(service), faults: self.0.clone() }
    }
}

pub(super) struct Faulty<S> {
    service: Arc<S>,
    faults: Arc<Faults>,
}

impl<S> Clone for Faulty<S> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), faults: self.faults.clone() }
    }
}

type Response = MethodResponse;

impl<S> RpcServiceT for Faulty<S>
where
    S: RpcServiceT<MethodResponse = Response, BatchResponse = Response, NotificationResponse = Response> + Send + Sync + 'static,
{
    type MethodResponse = Response;
    type NotificationResponse = Response;
    type BatchResponse = Response;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Response> + Send + 'a {
        let (service, fault) = (self.service.clone(), self.faults.next(request.method_name()));
        async move {
            let id = request.id().into_owned();
            match fault {
                None => service.call(request).await,
                Some(Mode::Error) => Response::error(id, ErrorCode::InternalError),
                Some(Mode::Timeout) => {
                    tokio::time::sleep(SILENCE).await;
                    Response::error(id, ErrorCode::InternalError)
                }
                Some(Mode::Lost) => {
                    let mut response = service.call(request).await;
                    response.extensions_mut().insert(Lost);
                    response
                }
                Some(Mode::Garbage) => {
                    service.call(request).await;
                    Response::response(id, ResponsePayload::success("0xgarbage"), MAX_RESPONSE_BYTES as usize)
                }
            }
        }
    }

    // The service's own would call its own methods, past the faults.
    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = Response> + Send + 'a {
        let service = self.clone();
        async move {
            if batch.is_empty() {
                return Response::error(Id::Null, ErrorCode::InvalidRequest);
            }
            let mut responses = BatchResponseBuilder::new_with_limit(MAX_RESPONSE_BYTES as usize);
            let mut lost = false;
            for entry in batch {
                let response = match entry {
                    Ok(BatchEntry::Call(request)) => service.call(request).await,
                    Ok(BatchEntry::Notification(_)) => continue,
                    Err(error) => {
                        let (error, id) = error.into_parts();
                        Response::error(id, error)
                    }
                };
                lost |= response.extensions().get::<Lost>().is_some();
                if let Err(too_large) = responses.append(response) {
                    return too_large;
                }
            }
            // Nothing but notifications has no answer.
            let mut response =
                if responses.is_empty() { Response::notification() } else { Response::from_batch(responses.finish()) };
            if lost {
                response.extensions_mut().insert(Lost);
            }
            response
        }
    }

    fn notification<'a>(&self, notification: Notification<'a>) -> impl Future<Output = Response> + Send + 'a {
        self.service.notification(notification)
    }
}
