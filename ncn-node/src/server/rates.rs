//! How many calls a server takes from one address.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc};

use axum::response::Response;
use tonic::codegen::http::{HeaderName, HeaderValue};

use crate::rate::{Left, Rate};

/// How many calls of one address a gateway takes: those of an IPv6 /56 count together. More are refused, and told when to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Over HTTP.
    pub http: PerMinute,
    /// Over gRPC, and over WebSocket.
    pub streams: PerMinute,
    /// How many WebSockets it has open at once.
    pub sockets: usize,
}

/// How many calls in a minute. All may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerMinute {
    /// Orders.
    pub orders: NonZeroU32,
    /// All other calls.
    pub calls: NonZeroU32,
}

impl PerMinute {
    const fn new(orders: u32, calls: u32) -> Self {
        let (Some(orders), Some(calls)) = (NonZeroU32::new(orders), NonZeroU32::new(calls)) else { unreachable!() };
        Self { orders, calls }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self { http: PerMinute::new(100, 1_000), streams: PerMinute::new(1_000, 10_000), sockets: 10 }
    }
}

/// On which kind of wire a call comes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wire {
    Http,
    Stream,
}

impl Wire {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Stream => "grpc",
        }
    }
}

/// What the calls of a server count towards; nothing where it takes as many as come.
#[derive(Clone, Default)]
pub(super) struct Counters(Option<Arc<[[Rate<IpAddr>; 2]; 2]>>);

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    pub(super) fn new(rates: Option<Rates>) -> Self {
        let of = |per_minute: PerMinute| [Rate::per_minute(per_minute.orders), Rate::per_minute(per_minute.calls)];
        Self(rates.map(|rates| Arc::new([of(rates.http), of(rates.streams)])))
    }

    /// Counts a call; an error when it is one too many.
    pub(super) fn count(&self, peer: IpAddr, wire: Wire, is_order: bool) -> Result<Option<Left>, Left> {
        let Some([[http_orders, http_calls], [orders, calls]]) = self.0.as_deref() else { return Ok(None) };
        let rate = match (wire, is_order) {
            (Wire::Http, true) => http_orders,
            (Wire::Http, false) => http_calls,
            (Wire::Stream, true) => orders,
            (Wire::Stream, false) => calls,
        };
        rate.count(&peer).map(Some)
    }
}

/// Says what is left, in the headers that clients of other services know.
pub(super) fn say(response: &mut Response, left: Left) {
    let seconds = left.reset.as_secs() + u64::from(left.reset.subsec_nanos() > 0);
    let headers = response.headers_mut();
    for (name, value) in [
        ("ratelimit-limit", HeaderValue::from(left.limit.get())),
        ("ratelimit-remaining", HeaderValue::from(left.remaining)),
        ("ratelimit-reset", HeaderValue::from(seconds)),
    ] {
        headers.insert(HeaderName::from_static(name), value);
    }
}
