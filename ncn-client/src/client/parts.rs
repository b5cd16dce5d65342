//! The parts of a streamed output on their way to the caller: handed out as they come, and held against what the compute node signs.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use ncn_core::{
    Address, Domain, InferenceResult, OutputChunk, Quote, RequestId, Signed, StreamBudget, StreamChain, Values,
    stream::CHECKPOINT_PARTS,
};

use super::InferenceOutput;

/// What a caller sees of a paid request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InferenceEvent {
    /// The next part of a streamed output. The validators have not approved it yet.
    Part(OutputChunk),
    /// The parts so far are void, and the output starts anew: another node has taken the request over.
    Restarted,
    /// The verified answer.
    Finished(Box<InferenceOutput>),
}

/// How long the first part without the compute node's signature may be the newest that is signed. The node signs every quarter of a
/// second; the rest is for the way and for a busy machine.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(15);

/// The parts of one request's output, over all connections to its gateway.
///
/// A misfit ends the handing out, not the request: the delivered output and its receipt decide.
pub(super) struct Parts {
    request_id: RequestId,
    domain: Domain,
    quoted: Address,
    /// Whose checkpoints count.
    node: Address,
    /// The chain of the parts of the present attempt that this connection has brought.
    chain: StreamChain,
    /// The chain of those of them that a node has signed.
    signed: StreamChain,
    /// A node has signed one, in whatever attempt.
    any_signed: bool,
    unsigned_since: Option<Instant>,
    /// What the caller has, since the last restart, and what it may have beside it.
    handed: Vec<OutputChunk>,
    budget: StreamBudget,
    /// Why no more parts are handed out.
    misfit: Option<String>,
    /// What is to be handed out.
    events: VecDeque<InferenceEvent>,
}

impl Parts {
    pub(super) fn new(quote: &Quote, domain: Domain) -> Self {
        let (request_id, node) = (quote.request_id, quote.compute);
        Self {
            request_id,
            domain,
            quoted: node,
            node,
            chain: StreamChain::new(request_id),
            signed: StreamChain::new(request_id),
            any_signed: false,
            unsigned_since: None,
            handed: Vec::new(),
            budget: StreamBudget::default(),
            misfit: None,
            events: VecDeque::new(),
        }
    }

    /// A connection brings the updates that follow. Nobody could have signed anything while there was none.
    pub(super) fn go_on(&mut self) {
        self.unsigned_since = None;
    }

    /// Whether a part of the output has come with its node's word on it, whatever has become of that.
    pub(super) const fn were_signed(&self) -> bool {
        self.any_signed
    }

    /// A connection brings the updates from the first one on. What the caller has is not handed out again.
    pub(super) fn rewind(&mut self) {
        self.attempt(self.quoted);
    }

    /// A node begins with the request: its parts start anew.
    pub(super) fn attempt(&mut self, node: Address) {
        self.node = node;
        self.chain = StreamChain::new(self.request_id);
        (self.signed, self.unsigned_since) = (self.chain, None);
    }

    /// A node goes on after the parts that are signed.
    pub(super) fn take_over(&mut self, node: Address) {
        (self.node, self.chain, self.unsigned_since) = (node, self.signed, None);
    }

    pub(super) fn part(&mut self, chunk: OutputChunk) {
        let at = usize::try_from(self.chain.parts()).unwrap_or(usize::MAX);
        self.chain.extend(&chunk.values);
        let unsigned = self.chain.parts() - self.signed.parts();
        let since = *self.unsigned_since.get_or_insert_with(Instant::now);
        if unsigned > CHECKPOINT_PARTS || since.elapsed() > CHECKPOINT_TIMEOUT {
            self.end(format!("the compute node has not signed the last {unsigned} parts"));
        }
        // The same parts, from whatever node: it may have taken its own time.
        if self.misfit.is_some() || self.handed.get(at).is_some_and(|known| known.values == chunk.values) {
            return;
        }
        if at < self.handed.len() {
            self.restart(at);
        }
        if let Err(limit) = self.budget.take(&chunk.values) {
            return self.end(format!("the output {limit}"));
        }
        self.handed.push(chunk.clone());
        self.events.push_back(InferenceEvent::Part(chunk));
    }

    /// Voids what the caller has, but for the first `keep` parts, which have come again.
    fn restart(&mut self, keep: usize) {
        self.handed.truncate(keep);
        self.budget = StreamBudget::default();
        // What was within the budget before still is.
        for chunk in &self.handed {
            let _ = self.budget.take(&chunk.values);
        }
        // What the caller has not taken yet is void as well: what waits is never more than an output may have.
        self.events.clear();
        self.events.push_back(InferenceEvent::Restarted);
        self.events.extend(self.handed.iter().cloned().map(InferenceEvent::Part));
    }

    /// Whether something is to be handed out.
    pub(super) fn is_waiting(&self) -> bool {
        !self.events.is_empty()
    }

    /// What is to be handed out next.
    pub(super) fn next(&mut self) -> Option<InferenceEvent> {
        self.events.pop_front()
    }

    /// Drops what waits: there is no caller for it.
    pub(super) fn discard(&mut self) {
        self.events.clear();
    }

    pub(super) fn checkpoint(&mut self, signed: &Signed<InferenceResult>) {
        if signed.message.compute != self.node {
            return self.end(format!("checkpoint.compute: is {}, the request is with {}", signed.message.compute, self.node));
        }
        match self.chain.verify(signed, &self.domain) {
            Ok(()) => (self.signed, self.unsigned_since, self.any_signed) = (self.chain, None, true),
            Err(problem) => self.end(problem.to_string()),
        }
    }

    fn end(&mut self, misfit: String) {
        if self.misfit.is_none() {
            tracing::warn!(request = %self.request_id, %misfit, "the stream is not handed out any further");
            self.misfit = Some(misfit);
        }
    }

    /// Checks that what the caller has is the beginning of the delivered output, which came in so many parts; gives why it is not.
    pub(super) fn delivered(&mut self, output: &Values, parts: u64) -> Result<(), String> {
        let seen = usize::try_from(self.chain.parts().min(parts)).unwrap_or(usize::MAX);
        if seen < self.handed.len() {
            // They were of an attempt that another one has replaced, or the node was lost before it had signed them.
            self.restart(seen);
        }
        let mut whole = Values::new();
        for chunk in &self.handed {
            whole.append(chunk.values.clone());
        }
        // After a misfit nothing was compared any more.
        let signed = self.misfit.is_none() && self.signed.parts() >= self.handed.len() as u64;
        // A later part may have replaced what is no text, so the node's signature decides.
        match (whole.misfit(output, signed), &self.misfit) {
            (None, _) => Ok(()),
            (Some(name), None) => Err(format!("`{name}` does not begin with them")),
            (Some(name), Some(misfit)) => Err(format!("`{name}` does not begin with them; {misfit}")),
        }
    }
}

#[cfg(test)]
mod tests;
