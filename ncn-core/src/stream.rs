//! The hash chain of an output: what a compute node has given so far, in one hash that it signs now and then, and at the end.

use alloy_primitives::B256;
use sha2::{Digest as _, Sha256};

use crate::{
    Domain, InferenceResult, RequestId, SignatureError, Signed, Values,
    compute::{MAX_OUTPUT_BYTES, MAX_STREAM_BYTES, MAX_STREAM_PARTS},
};

/// After so many parts, a compute node signs what it has said at the latest.
pub const CHECKPOINT_PARTS: u64 = 32;
/// After so many milliseconds, a compute node signs what it has said at the latest.
pub const CHECKPOINT_MILLIS: u64 = 250;

/// The chain over the parts of one request's output: it begins with SHA-256 of `ncn.stream.v1` and the request's id, and goes on with
/// SHA-256 of the hash so far and the part's [`Values::hash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamChain {
    request_id: RequestId,
    parts: u64,
    hash: B256,
}

/// What is left of what the parts of one output may take. Each hop counts for itself and believes none before it: worker, compute node,
/// gateway, client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamBudget {
    parts: u64,
    bytes: usize,
}

/// An output has more in its parts than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamLimit {
    /// A part that is larger than an output.
    #[error("has more than {MAX_OUTPUT_BYTES} bytes in one part")]
    Part,
    /// Too many parts.
    #[error("has more than {MAX_STREAM_PARTS} parts")]
    Parts,
    /// Too many bytes.
    #[error("has more than {MAX_STREAM_BYTES} bytes in all its parts")]
    Bytes,
}

impl StreamBudget {
    /// Counts a part; an error says that it is one too many.
    pub fn take(&mut self, part: &Values) -> Result<(), StreamLimit> {
        let size = part.size();
        self.parts = self.parts.saturating_add(1);
        self.bytes = self.bytes.saturating_add(size);
        if size > MAX_OUTPUT_BYTES {
            return Err(StreamLimit::Part);
        }
        if self.parts > MAX_STREAM_PARTS {
            return Err(StreamLimit::Parts);
        }
        if self.bytes > MAX_STREAM_BYTES { Err(StreamLimit::Bytes) } else { Ok(()) }
    }
}

/// Why a checkpoint is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// It is about another request.
    #[error("checkpoint.requestId: is of another request")]
    Request,
    /// The parts that were seen are not the ones that were signed.
    #[error("checkpoint.hash: is not the hash of the {0} parts that came: some were changed, left out or added")]
    Parts(u64),
    /// It is not signed by whom it names.
    #[error("checkpoint.signature: {0}")]
    Signature(#[from] SignatureError),
}

impl StreamChain {
    /// The chain of a request, before its first part.
    pub fn new(request_id: RequestId) -> Self {
        let hash = Sha256::new().chain_update(b"ncn.stream.v1").chain_update(request_id).finalize();
        Self { request_id, parts: 0, hash: B256::new(hash.into()) }
    }

    /// The chain of the parts that a result covers.
    pub const fn of(result: &InferenceResult) -> Self {
        Self { request_id: result.request_id, parts: result.parts, hash: result.chain }
    }

    /// Adds the next part.
    pub fn extend(&mut self, part: &Values) {
        let hash = Sha256::new().chain_update(self.hash).chain_update(part.hash()).finalize();
        self.hash = B256::new(hash.into());
        self.parts += 1;
    }

    /// How many parts it has.
    pub const fn parts(&self) -> u64 {
        self.parts
    }

    /// The hash of the chain so far.
    pub const fn hash(&self) -> B256 {
        self.hash
    }

    /// A result with what it says of the output: that these parts have come to this.
    pub fn describe(&self, output: &Values, mut result: InferenceResult) -> InferenceResult {
        (result.output_hash, result.output_bytes) = (output.hash(), output.content_bytes());
        (result.parts, result.chain) = (self.parts, self.hash);
        result
    }

    /// Whether a compute node's result so far is of these parts.
    pub fn fits(&self, result: &InferenceResult) -> Result<(), StreamError> {
        if result.request_id != self.request_id {
            return Err(StreamError::Request);
        }
        if (result.parts, result.chain) != (self.parts, self.hash) {
            return Err(StreamError::Parts(self.parts));
        }
        Ok(())
    }

    /// Checks a compute node's word on the parts so far.
    pub fn verify(&self, checkpoint: &Signed<InferenceResult>, domain: &Domain) -> Result<(), StreamError> {
        self.fits(&checkpoint.message)?;
        Ok(checkpoint.verify(domain).map(drop)?)
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::Address;

    use super::*;

    fn chain(parts: &[&str]) -> StreamChain {
        let mut chain = StreamChain::new(B256::repeat_byte(1));
        for part in parts {
            chain.extend(&Values::from([("text", *part)]));
        }
        chain
    }

    #[test]
    fn parts_and_their_bytes_are_counted() {
        let mut budget = StreamBudget::default();
        let empty = Values::new();
        let taken = (0..=MAX_STREAM_PARTS).take_while(|_| budget.take(&empty).is_ok()).count();
        assert_eq!(taken as u64, MAX_STREAM_PARTS);
        assert_eq!(budget.take(&empty), Err(StreamLimit::Parts));

        let mut budget = StreamBudget::default();
        let typed = |bytes| crate::Value::File { media_type: "x".repeat(bytes), data: bytes::Bytes::new() };
        let part = Values::from([("file", typed(MAX_STREAM_BYTES / 5))]);
        assert_eq!([0; 5].map(|_| budget.take(&part)), [Ok(()), Ok(()), Ok(()), Ok(()), Err(StreamLimit::Bytes)]);
        let part = Values::from([("file", typed(MAX_OUTPUT_BYTES))]);
        assert_eq!(StreamBudget::default().take(&part), Err(StreamLimit::Part));
    }

    #[test]
    fn every_change_changes_the_hash() {
        let all = [&["a", "b"][..], &["ab"], &["a", "b", ""], &["b", "a"], &["a"], &[]];
        let mut hashes: Vec<_> = all.iter().map(|parts| chain(parts).hash).collect();
        hashes.push(StreamChain::new(B256::repeat_byte(2)).hash);
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), all.len() + 1);
    }

    #[test]
    fn a_checkpoint_is_for_these_parts_of_this_request() {
        let signed = |chain: StreamChain| {
            let message = InferenceResult {
                request_id: chain.request_id,
                compute: Address::ZERO,
                model_digest: B256::ZERO,
                input_hash: B256::ZERO,
                output_hash: B256::ZERO,
                output_bytes: 0,
                parts: chain.parts,
                chain: chain.hash,
                resumed_from: B256::ZERO,
                continuation: None,
                usage: crate::Usage::default(),
                confinement: crate::Confinement::None,
                finish: None,
            };
            Signed { message, signature: crate::Signature::try_from(&[27; 65][..]).unwrap() }
        };
        let domain = Domain { chain_id: 1, contract: Address::ZERO };
        let seen = chain(&["a", "b"]);
        let error = |checkpoint| seen.verify(&checkpoint, &domain).unwrap_err();
        assert_eq!(error(signed(chain(&["a"]))), StreamError::Parts(2));
        assert_eq!(error(signed(chain(&["a", "c"]))), StreamError::Parts(2));
        assert_eq!(error(signed(StreamChain::new(B256::ZERO))), StreamError::Request);
        assert!(matches!(error(signed(seen)), StreamError::Signature(_)), "nobody signs as the zero address");
    }
}
