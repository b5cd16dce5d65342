//! Times, as people read them.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use crate::UnixTime;

/// The first second of the year 10000, which has no such form.
const END: UnixTime = 253_402_300_800;

/// A time in the form of RFC 3339, such as `2026-12-01T14:00:00Z`; one that has none, as the number that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(pub UnixTime);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= END {
            return write!(f, "{}", self.0);
        }
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0)).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_read() {
        for (time, read) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (END - 1, "9999-12-31T23:59:59Z"),
            (END, "253402300800"),
            (UnixTime::MAX, "18446744073709551615"),
        ] {
            assert_eq!(Date(time).to_string(), read);
        }
    }
}
