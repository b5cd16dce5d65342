//! The hash chain of a streamed output: what a compute node has said so far, in one hash that it signs now and then.

use alloy_primitives::B256;
use sha2::{Digest as _, Sha256};

use crate::{Domain, RequestId, SignatureError, Signed, StreamCheckpoint, Values};

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

    /// What the compute node signs of it.
    pub const fn checkpoint(&self, compute: alloy_primitives::Address) -> StreamCheckpoint {
        StreamCheckpoint { request_id: self.request_id, compute, parts: self.parts, hash: self.hash }
    }

    /// Checks a compute node's word on the parts so far.
    pub fn verify(&self, checkpoint: &Signed<StreamCheckpoint>, domain: &Domain) -> Result<(), StreamError> {
        let said = &checkpoint.message;
        if said.request_id != self.request_id {
            return Err(StreamError::Request);
        }
        if (said.parts, said.hash) != (self.parts, self.hash) {
            return Err(StreamError::Parts(self.parts));
        }
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
            let message = chain.checkpoint(Address::ZERO);
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
