//! The one place where the SDK and the nodes ask what time it is.

use std::time::{SystemTime, UNIX_EPOCH};

use ncn_core::UnixTime;

/// The system's time.
pub fn unix_now() -> UnixTime {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
