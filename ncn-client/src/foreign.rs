//! What the refusals of other people's programs mean for who asked: nodes of a chain, inference engines, servers of files, and the proxies
//! before them. Each says the same things in words of its own; what to do about them is decided here alone.

#[cfg(feature = "http")]
mod http;
#[cfg(feature = "evm")]
mod rpc;

use std::time::Duration;

#[cfg(feature = "http")]
pub use http::{cause, of_failure, of_status, retry_after};
#[cfg(feature = "evm")]
pub(crate) use rpc::{Question, is_unknown_method, of_rpc};

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The question is at fault: it gets the same answer everywhere.
    Final,
    /// It may be answered by the same one later, after this time at least where it said so.
    Again {
        /// The time that it asked for.
        after: Option<Duration>,
    },
    /// This one was asked too often: it may answer later, but less at once is not what it wants.
    TooOften {
        /// The time that it asked for.
        after: Option<Duration>,
    },
    /// Another one may answer it, this one does not.
    Elsewhere,
    /// A smaller question may be answered.
    Narrower,
}

/// The longest time that is waited because a foreign program says so: it is not to hold a request up at will.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The waits before the second and the third try of something that may be answered later.
pub const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

impl Meaning {
    /// How long to wait before try `next`, counted from 1; none if there is none. More than [`LONGEST_WAIT`] is not waited.
    pub fn pause(self, next: usize) -> Option<Duration> {
        let (Self::Again { after } | Self::TooOften { after }) = self else { return None };
        let pause = *PAUSES.get(next.checked_sub(1)?)?;
        Some(after.map_or(pause, |after| after.max(pause))).filter(|pause| *pause <= LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_asks_to_wait_is_waited_within_reason() {
        let pauses = |after| [0, 1, 2, 3].map(|next| Meaning::Again { after }.pause(next));
        assert_eq!(pauses(None), [None, Some(PAUSES[0]), Some(PAUSES[1]), None]);
        let three = Duration::from_secs(3);
        assert_eq!(pauses(Some(three)), [None, Some(three), Some(three), None]);
        assert_eq!(pauses(Some(LONGEST_WAIT * 2)), [None; 4], "nobody is held up for so long");
        assert_eq!(Meaning::Elsewhere.pause(1), None);
    }
}
