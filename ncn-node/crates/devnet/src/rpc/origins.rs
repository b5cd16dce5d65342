//! Which pages may ask.

use std::sync::Arc;

use jsonrpsee::server::{HttpBody, HttpRequest, HttpResponse};
use tonic::codegen::http::StatusCode;
use tower_http::validate_request::ValidateRequest;

/// Refuses pages that nobody has named: there are methods for everybody here that undo payments, and any page that a developer looks at could
/// call them, over a WebSocket without even being told what comes of it. Wallets that are extensions are no pages, nor are programs.
#[derive(Clone)]
pub(super) struct Origins(pub(super) Arc<[String]>);

impl<B> ValidateRequest<B> for Origins {
    type ResponseBody = HttpBody;

    fn validate(&mut self, request: &mut HttpRequest<B>) -> Result<(), HttpResponse<HttpBody>> {
        let Some(origin) = request.headers().get("origin") else { return Ok(()) };
        let origin = origin.to_str().unwrap_or("null");
        let is_page = origin == "null" || origin.starts_with("http://") || origin.starts_with("https://");
        if !is_page || self.0.iter().any(|allowed| allowed == origin) {
            return Ok(());
        }
        let problem = format!("{origin}: no page of this origin may ask: start ncn devnet with --origin {origin}\n");
        let mut refusal = HttpResponse::new(HttpBody::from(problem));
        *refusal.status_mut() = StatusCode::FORBIDDEN;
        Err(refusal)
    }
}
