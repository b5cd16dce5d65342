//! A request's output, in the form that its client asks for.

use axum::{
    body::Body,
    extract::{Query, State},
    response::Response,
};
use ncn_core::{Receipt, TaskEvent, TransportError, TransportExt as _, Value, Values};
use serde::{Deserialize, Serialize};
use tonic::codegen::http::{HeaderMap, HeaderValue, header};

use super::{
    Access, Answer, Gateway, Id, json,
    openapi::{self, Failures, OfRequest},
};

/// What is delivered.
#[derive(Serialize)]
struct Delivery<'a> {
    output: &'a Values,
    receipt: &'a Receipt,
}

/// Which of the output's values is wanted; without it, the first that is of an accepted kind.
#[derive(Deserialize)]
pub(super) struct Wanted {
    name: Option<String>,
}

/// Waits for a request's end, and gives its output: with its receipt, as JSON, or one value of it as a file. Only the former can be verified.
#[utoipa::path(get, path = "/api/v1/inference/{request_id}/output",
    params(("request_id" = openapi::Hash, Path), ("name" = Option<String>, Query)), security(("access" = [])),
    responses((status = 200, description = "Its output", content((openapi::Delivery = "application/json"), (String = "text/plain"), (String = "*/*"))), Failures, OfRequest))]
pub(super) async fn output(
    State(gateway): Gateway,
    id: Id,
    access: Access,
    headers: HeaderMap,
    Query(wanted): Query<Wanted>,
) -> Answer {
    let (output, receipt) = match gateway.last_update(access.of(&id)?).await? {
        TaskEvent::Delivered { output, receipt } => (output, receipt),
        TaskEvent::Failed { reason, .. } => return Err(TransportError::Refused(reason).into()),
        _ => return Err(TransportError::Internal("the request has no end".into()).into()),
    };
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    for kind in accepted.split(',').filter_map(|item| item.split(';').next()).map(str::trim) {
        let is_wanted = |name: &str| wanted.name.as_deref().is_none_or(|wanted| wanted == name);
        if matches!(kind, "*/*" | "application/json") && wanted.name.is_none() {
            return json(&Delivery { output: &output, receipt: &receipt });
        }
        let found = output.iter().filter(|(name, _)| is_wanted(name)).find_map(|(_, value)| file(kind, value));
        if let Some(file) = found {
            return Ok(file);
        }
    }
    let kinds: Vec<_> = output.iter().map(|(name, value)| format!("{name}: {}", media_type(value))).collect();
    Err(TransportError::invalid("accept", format!("the output has no such value; it has {}", kinds.join(", "))).into())
}

fn media_type(value: &Value) -> &str {
    match value {
        Value::Text(_) => "text/plain",
        Value::File { media_type, .. } => media_type,
        _ => "application/json",
    }
}

/// A value as a file, when it is of this kind.
fn file(kind: &str, value: &Value) -> Option<Response> {
    let data = match value {
        Value::Text(text) => Body::from(text.clone()),
        Value::File { data, .. } => Body::from(data.clone()),
        _ => return None,
    };
    let media_type = media_type(value);
    let of_type = kind.strip_suffix("/*").is_some_and(|kind| media_type.split('/').next() == Some(kind));
    if kind != "*/*" && kind != media_type && !of_type {
        return None;
    }
    let mut response = Response::new(data);
    let headers = response.headers_mut();
    let named = if matches!(value, Value::Text(_)) { "text/plain; charset=utf-8" } else { media_type };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(named).ok()?);
    // A node's file is no page of this gateway's, whatever it says that it is.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Some(response)
}
