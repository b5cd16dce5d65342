//! The page's form: runs a model for the person at this machine, out of an account whose key everybody knows.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{SinkExt as _, StreamExt as _, channel::mpsc};
use ncn_client::{Client, ClientError, InferenceEvent, Order};
use ncn_core::{
    Value, Values,
    model::{InputSpec, Preprocessing},
};
use ncn_devnet::quickstart;
use ncn_node::server::{TRIAL, by_address};
use serde::Deserialize;
use serde_json::{Value as Json, json};

/// How many lines of an answer wait for the browser.
const LINES: usize = 16;

/// Answers before the network is there, too: that it is not.
#[derive(Clone, Default)]
pub(super) struct Trial(Arc<OnceLock<Client>>);

/// What somebody wants to see.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    model: String,
    inputs: Values,
}

impl Trial {
    /// From here on models are run for this client.
    pub(super) fn open(&self, client: Client) {
        let _ = self.0.set(client);
    }

    /// `GET /trial` says which models there are; `POST /trial` runs one, and answers with a line of JSON for each thing that happens.
    pub(super) fn routes(&self) -> Router {
        // The server bounds bodies by what all of them take.
        by_address(Router::new().route(TRIAL, get(offer).post(run)).layer(DefaultBodyLimit::disable()).with_state(self.0.clone()))
    }
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], json!({ "message": message }).to_string()).into_response()
}

async fn offer(State(client): State<Arc<OnceLock<Client>>>) -> Response {
    let Some(client) = client.get() else { return refuse(StatusCode::SERVICE_UNAVAILABLE, "the network is starting: ask again") };
    let offered = match client.models().await {
        Ok(offered) => offered,
        Err(error) => return refuse(StatusCode::BAD_GATEWAY, &error.to_string()),
    };
    let models: Vec<_> = offered
        .iter()
        .filter_map(|info| {
            let manifest = info.model.manifest();
            let inputs: Option<Vec<_>> = manifest.inputs.iter().map(|input| field(&manifest.name, input)).collect();
            Some(json!({ "name": manifest.name, "inputs": inputs? }))
        })
        .collect();
    ([(header::CONTENT_TYPE, "application/json")], json!({ "models": models }).to_string()).into_response()
}

/// How a person gives an input; none when it takes plain numbers.
fn field(model: &str, input: &InputSpec) -> Option<Json> {
    let (kind, optional) = match input {
        InputSpec::Text(text) => ("text", text.optional),
        InputSpec::File(file) => ("file", file.optional),
        InputSpec::Tensor(tensor) => match tensor.from {
            Some(Preprocessing::Image { .. } | Preprocessing::Bytes { .. }) => ("file", false),
            _ => return None,
        },
        _ => return None,
    };
    let sample = (model == quickstart::NAME).then(|| Value::png(quickstart::SAMPLE));
    Some(json!({ "name": input.name(), "kind": kind, "optional": optional, "sample": sample }))
}

async fn run(State(client): State<Arc<OnceLock<Client>>>, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Response {
    // A page of another site cannot send this kind of body without having asked first.
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/json") {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json");
    }
    let Some(client) = client.get() else { return refuse(StatusCode::SERVICE_UNAVAILABLE, "the network is starting: ask again") };
    let body = match body {
        Ok(body) => body,
        Err(error) => return refuse(error.status(), &error.body_text()),
    };
    let wanted: Wanted = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let (client, (mut lines, written)) = (client.clone(), mpsc::channel(LINES));
    tokio::spawn(async move {
        if let Err(error) = perform(&client, wanted, &mut lines).await {
            let _ = lines.send(json!({ "failed": error.to_string() })).await;
        }
    });
    let lines = written.map(|line| Ok::<_, Infallible>(format!("{line}\n")));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Runs it, and tells what happens until nobody reads it any more.
async fn perform(client: &Client, Wanted { model, inputs }: Wanted, lines: &mut mpsc::Sender<Json>) -> Result<(), ClientError> {
    let quoted = client.submit(Order::new(&model, inputs)).await?;
    let quote = quoted.quote();
    let said = json!({ "quoted": { "requestId": quote.request_id, "total": quote.total } });
    if lines.send(said).await.is_err() {
        return quoted.cancel().await;
    }
    let paid = quoted.pay().await?;
    let mut is_read = lines.send(json!({ "paid": true })).await.is_ok();
    let mut events = paid.events();
    while is_read && let Some(event) = events.next().await {
        let line = match event? {
            InferenceEvent::Part(part) => {
                let texts = part.values.iter().filter(|_| !part.is_last()).filter_map(|(_, value)| value.as_text());
                json!({ "text": texts.collect::<String>() })
            }
            InferenceEvent::Restarted => json!({ "anew": true }),
            InferenceEvent::Finished(answer) => {
                json!({ "finished": { "requestId": answer.receipt.quote.request_id, "output": answer.output, "cost": answer.cost() } })
            }
            _ => continue,
        };
        is_read = lines.send(line).await.is_ok();
    }
    Ok(())
}
