//! Evidence against a validator that gives its word twice.

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use crate::{Approval, Completion, CompletionAuthorization, Domain, FinishReason, Message as _, RequestId, Signed};

/// What a validator approves one completion of: a request, as one party brings it, and as one node has served last. Another node's is another
/// one: the last node may keep the output to itself for which it has a certificate. So is what was given until a node was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApprovalKey {
    /// The request.
    pub request_id: RequestId,
    /// Who brings the completion.
    pub author: Address,
    /// Who has served last.
    pub node: Address,
    /// Whether it was lost. Then what it had given counts, whatever it may have been about to give: a certificate of that may never have come.
    pub is_lost: bool,
}

impl ApprovalKey {
    /// That of a completion.
    pub fn of(completion: &Completion, author: Address) -> Self {
        let node = completion.contributions.last().map(|contribution| contribution.compute);
        let is_lost = completion.finish == FinishReason::NodeLost;
        Self { request_id: completion.request_id, author, node: node.unwrap_or_default(), is_lost }
    }
}

/// A validator's approval of a completion, with what it was asked by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovedCompletion {
    /// What was approved.
    pub completion: Completion,
    /// Who has brought it.
    pub authorization: Signed<CompletionAuthorization>,
    /// Who has approved it.
    pub approval: Approval,
}

/// Two completions of one request that the same party has brought and the same node has served last, both of which the same validator has
/// approved: an honest one approves the first of them. Everybody can check it, with nothing but the network's domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equivocation {
    /// One of them.
    pub first: ApprovedCompletion,
    /// The other one.
    pub second: ApprovedCompletion,
}

/// Why it is no evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// The two do not contradict each other.
    #[error("{0}: is not the same in both")]
    Different(&'static str),
    /// Both are the same completion.
    #[error("completion: is the same in both")]
    Same,
    /// Something is not signed by whom it names.
    #[error("{0}: is not signed by whom it names")]
    Unsigned(&'static str),
    /// The authorization is another completion's.
    #[error("authorization.completion: is another one")]
    Unauthorized,
}

impl Equivocation {
    /// The request of which both are.
    pub const fn request_id(&self) -> RequestId {
        self.first.completion.request_id
    }

    /// Checks it. Returns the validator that it convicts.
    ///
    /// # Errors
    /// What is missing for that.
    pub fn verify(&self, domain: &Domain) -> Result<Address, EvidenceError> {
        let (first, second) = (&self.first, &self.second);
        let key = |approved: &ApprovedCompletion| ApprovalKey::of(&approved.completion, approved.authorization.message.author);
        let (one, other) = (key(first), key(second));
        let differences = [
            (one.request_id != other.request_id, "completion.requestId"),
            (one.author != other.author, "authorization.author"),
            (one.node != other.node, "completion.contributions"),
            (one.is_lost != other.is_lost, "completion.finish"),
            (first.approval.validator != second.approval.validator, "approval.validator"),
        ];
        if let Some((_, field)) = differences.into_iter().find(|(differs, _)| *differs) {
            return Err(EvidenceError::Different(field));
        }
        if first.completion == second.completion {
            return Err(EvidenceError::Same);
        }
        for ApprovedCompletion { completion, authorization, approval } in [first, second] {
            if authorization.message.completion != completion.struct_hash() {
                return Err(EvidenceError::Unauthorized);
            }
            authorization.verify(domain).map_err(|_| EvidenceError::Unsigned("authorization"))?;
            let digest: B256 = completion.digest(domain);
            let signed = approval.signature.verify(&digest, approval.validator);
            signed.map_err(|_| EvidenceError::Unsigned("approval"))?;
        }
        Ok(first.approval.validator)
    }
}
