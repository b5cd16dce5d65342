use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use futures::{StreamExt as _, stream};
use ncn_core::{
    Amount, ChannelParams, ModelInfo, NetworkInfo, PaymentConfirmation, RequestId, Signature, Signed, Submission, TaskCapability,
    TaskStatus, Ticket, Transport, TransportError, Update, transport::Updates,
};
use ncn_wire::{
    MAX_MESSAGE_BYTES,
    json::{ChannelClosing, CloseChannel, INFERENCE, MAX_JSON_BYTES, Problem, TicketRequest, access_text},
};
use reqwest::{RequestBuilder, Response, Url, header};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{
    EndpointError,
    events::{Events, ServerEvent},
    http,
    refusal::refusal,
};
use crate::calls::{CALL_TIMEOUT, CONNECT_TIMEOUT, QUOTE_TIMEOUT, SETTLEMENT_TIMEOUT, unreachable};

/// How long a stream of events may be silent: a gateway says every 15 s that it is there.
const SILENCE: Duration = Duration::from_secs(45);
/// The most bytes that a list of models is read to, and any other answer without an output.
const MAX_LIST_BYTES: usize = 4 * MAX_MESSAGE_BYTES;
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// A gateway, called over HTTP: JSON, and server-sent events for what it tells.
#[derive(Clone, Debug)]
pub struct HttpTransport {
    url: Url,
    client: reqwest::Client,
}

impl HttpTransport {
    /// The gateway at this URL, `http://HOST:PORT` or `https://HOST:PORT`. It is called when it is first used.
    ///
    /// # Errors
    /// The URL is none, that of the [proxy](crate::http::PROXY) is none, or this system has no certificates of authorities for `https`.
    pub fn new(url: &str) -> Result<Self, EndpointError> {
        let no_url = || EndpointError::new(url, "is not a URL to call: write http://HOST:PORT or https://HOST:PORT");
        let parsed = url.parse::<Url>().ok().filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
        let mut parsed = parsed.ok_or_else(no_url)?;
        parsed.set_path("");
        let builder = http().map_err(|_| EndpointError::new(url, "is not called: NCN_PROXY is no URL of a proxy"))?;
        let untrusted = "cannot be trusted: this system has no certificates of authorities; SSL_CERT_FILE may name some";
        let client = builder.connect_timeout(CONNECT_TIMEOUT).build();
        Ok(Self { url: parsed, client: client.map_err(|_| EndpointError::new(url, untrusted))? })
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.at(path))
    }

    fn post(&self, path: &str, body: &impl Serialize) -> RequestBuilder {
        // Types of ours are JSON, all of them.
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.client.post(self.at(path)).header(header::CONTENT_TYPE, "application/json").body(body)
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        url
    }

    fn of(request_id: RequestId, what: &str) -> String {
        format!("{INFERENCE}/{request_id}{what}")
    }

    /// An answer's value, of at most so many bytes of JSON.
    async fn value<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        within: Duration,
        most: usize,
    ) -> Result<T, TransportError> {
        let body = self.body(request, within, most).await?;
        serde_json::from_slice(&body).map_err(|error| TransportError::Malformed(error.to_string()))
    }

    /// An answer's body; the whole call within this time.
    async fn body(&self, request: RequestBuilder, within: Duration, most: usize) -> Result<BytesMut, TransportError> {
        let call = async { self.read(self.accepted(request).await?, most).await };
        let late = || self.unreachable(&format!("no answer within {within:?}"));
        timeout(within, Box::pin(call)).await.map_err(|_| late())?
    }

    /// The answer, unless it tells an error.
    async fn accepted(&self, request: RequestBuilder) -> Result<Response, TransportError> {
        let response = request.send().await.map_err(|error| self.broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.read(response, MAX_ANSWER_BYTES).await?;
        Err(refusal(&self.endpoint(), status, &headers, &body))
    }

    async fn read(&self, mut response: Response, most: usize) -> Result<BytesMut, TransportError> {
        let mut body = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.broken(&error))? {
            if body.len() + piece.len() > most {
                return Err(TransportError::Malformed(format!("has more than {most} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn unreachable(&self, problem: &str) -> TransportError {
        unreachable(&self.endpoint(), problem)
    }

    fn endpoint(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// A call that broke off. What lies beneath says more than the error.
    fn broken(&self, error: &reqwest::Error) -> TransportError {
        let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
        self.unreachable(&causes.last().map(ToString::to_string).unwrap_or_default())
    }

    /// The next update, if there is one.
    async fn update(&self, following: &mut Following) -> Result<Option<Update>, TransportError> {
        loop {
            if let Some(ServerEvent { name, data }) = following.events.next() {
                let malformed =
                    |error: serde_json::Error| TransportError::Malformed(format!("{error}: is there a gateway at this address?"));
                if name == "error" {
                    let problem: Problem = serde_json::from_slice(&data).map_err(malformed)?;
                    return Err(problem.error.unwrap_or(TransportError::Internal(problem.message)));
                }
                return serde_json::from_slice(&data).map(Some).map_err(malformed);
            }
            if following.events.len() > MAX_JSON_BYTES {
                return Err(TransportError::Malformed(format!("an event has more than {MAX_JSON_BYTES} bytes")));
            }
            let next = timeout(SILENCE, following.response.chunk()).await;
            let silent = || self.unreachable(&format!("nothing was heard for {SILENCE:?}"));
            match next.map_err(|_| silent())?.map_err(|error| self.broken(&error))? {
                Some(piece) => following.events.take(&piece),
                None => return Ok(None),
            }
        }
    }
}

/// An answer that goes on.
struct Following {
    response: Response,
    events: Events,
}

#[async_trait]
impl Transport for HttpTransport {
    async fn tickets(&self, count: u32) -> Result<Vec<Ticket>, TransportError> {
        self.value(self.post("/api/v1/tickets", &TicketRequest { count }), CALL_TIMEOUT, MAX_ANSWER_BYTES).await
    }

    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        self.value(self.post(INFERENCE, &submission), QUOTE_TIMEOUT, MAX_ANSWER_BYTES).await
    }

    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError> {
        let request = self.post(&Self::of(confirmation.request_id, "/payment"), &confirmation.proof);
        self.body(request, CALL_TIMEOUT, MAX_ANSWER_BYTES).await.map(drop)
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        let events = Self::of(access.message.request_id, &format!("/events?from={from}"));
        let request = self.get(&events).header(header::ACCEPT, "text/event-stream").bearer_auth(access_text(&access));
        let late = || self.unreachable(&format!("no answer within {CALL_TIMEOUT:?}"));
        let response = timeout(CALL_TIMEOUT, self.accepted(request)).await.map_err(|_| late())??;
        let following = Following { response, events: Events::default() };
        let updates = stream::unfold(Some((self.clone(), following)), async |following| {
            let (this, mut following) = following?;
            match this.update(&mut following).await {
                Ok(update) => Some((Ok(update?), Some((this, following)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(updates.boxed())
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        self.value(self.get(&Self::of(request_id, "")), CALL_TIMEOUT, MAX_ANSWER_BYTES).await
    }

    async fn cancel(&self, access: Signed<TaskCapability>) -> Result<(), TransportError> {
        let cancel = self.at(&Self::of(access.message.request_id, "/cancel"));
        let request = self.client.post(cancel).bearer_auth(access_text(&access));
        self.body(request, CALL_TIMEOUT, MAX_ANSWER_BYTES).await.map(drop)
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        self.value(self.get("/api/v1/models"), CALL_TIMEOUT, MAX_LIST_BYTES).await
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        self.value(self.get("/api/v1/network"), CALL_TIMEOUT, MAX_ANSWER_BYTES).await
    }

    async fn close_channel(
        &self,
        terms: ChannelParams,
        access: Signed<TaskCapability>,
    ) -> Result<(Amount, Signature), TransportError> {
        let channel = CloseChannel { gateway: terms.gateway, salt: terms.salt };
        let request = self.post("/api/v1/channels/close", &channel).bearer_auth(access_text(&access));
        let ChannelClosing { settled, signature } = self.value(request, SETTLEMENT_TIMEOUT, MAX_ANSWER_BYTES).await?;
        Ok((settled, signature))
    }
}
