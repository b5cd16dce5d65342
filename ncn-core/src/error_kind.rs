//! What an error is on each wire.

use std::fmt;

/// What kind of error a port gives, whatever wire it crosses. Each wire has a code for each kind, for those who know only the wire; the error
/// itself travels beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call can never succeed as it is.
    Invalid,
    /// The caller may not have it.
    Denied,
    /// What is asked for is not there.
    Unknown,
    /// It cannot be had in the state that things are in.
    Refused,
    /// Too much is asked for at once. Another try, later, may succeed.
    Busy,
    /// The one who would have to answer cannot be reached. Another try may succeed.
    Unavailable,
    /// The one who answers has failed.
    Internal,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Invalid, Self::Denied, Self::Unknown, Self::Refused, Self::Busy, Self::Unavailable, Self::Internal];

    /// The number of its status code in gRPC.
    pub const fn grpc(self) -> u8 {
        match self {
            Self::Invalid => 3,
            Self::Unknown => 5,
            Self::Denied => 7,
            Self::Busy => 8,
            Self::Refused => 9,
            Self::Internal => 13,
            Self::Unavailable => 14,
        }
    }

    /// Its status in HTTP (RFC 9110, section 15; 429 is of RFC 6585).
    pub const fn http(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Denied => 403,
            Self::Unknown => 404,
            Self::Refused => 409,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// The code that a WebSocket is closed with (RFC 6455, section 7.4): one of its own where it has one, or else 4000 and the status in HTTP.
    pub const fn websocket(self) -> u16 {
        match self {
            Self::Internal => 1011,
            Self::Busy => 1013,
            kind => 4000 + kind.http(),
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        })
    }
}
