//! What people see of a request before it has its answer.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use ncn_client::InferenceEvent;

use crate::{output::prose, say};

/// How often it shows that it goes on.
const TICK: Duration = Duration::from_millis(100);

/// What is waited for, and text while it comes, for people at a terminal; nobody has approved the text yet.
pub(crate) struct Stream {
    watched: bool,
    begun: bool,
    waiting: ProgressBar,
}

impl Stream {
    pub(crate) fn new(json: bool) -> Self {
        let watched = !json && io::stderr().is_terminal();
        let waiting = if watched { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} waiting for {msg} ({elapsed})") {
            waiting.set_style(style);
        }
        Self { watched, begun: false, waiting }
    }

    /// Says what is waited for, from here on.
    pub(crate) fn wait(&self, what: &str) {
        self.waiting.set_message(what.to_owned());
        self.waiting.enable_steady_tick(TICK);
    }

    /// Nothing is waited for any more.
    pub(crate) fn end(&self) {
        self.waiting.finish_and_clear();
    }

    /// Shows a part, but not the last, which says how it went.
    pub(crate) fn show(&mut self, event: &InferenceEvent) {
        let InferenceEvent::Part(part) = event else {
            if std::mem::take(&mut self.begun) {
                say("\n(another node has taken over: the output starts anew)\n");
            }
            return;
        };
        let sanitize = self.watched && !part.is_last();
        for text in part.values.iter().filter_map(|(_, value)| value.as_text()).filter(|_| sanitize) {
            self.end();
            self.begun = true;
            let _ = write!(io::stderr(), "{}", prose(text));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
        if self.begun {
            say("\n");
        }
    }
}
