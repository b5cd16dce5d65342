//! Waiting before another try.

use std::time::Duration;

/// Pauses that double, from 50 ms to 2 s: short enough not to be noticed at first, rare enough not to be a burden in the end.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    /// Starts with the shortest pause.
    pub const fn new() -> Self {
        Self(Self::FIRST)
    }

    /// Waits, and will wait longer the next time.
    pub async fn pause(&mut self) {
        self.pause_at_least(Duration::ZERO).await;
    }

    /// The same, and no shorter than this.
    pub async fn pause_at_least(&mut self, least: Duration) {
        tokio::time::sleep(self.0.max(least)).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}
