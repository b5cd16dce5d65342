//! The validators' word: approvals, and certificates of M of them.

use alloy_primitives::{Address, B256, Keccak256};
use alloy_signer::Signer;
use serde::{Deserialize, Serialize};

use crate::{Committee, Signature, SignatureError};

/// One validator's signature over a phase's digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Who approves.
    pub validator: Address,
    /// Its signature over the digest of the [`crate::Quote`] (preprocessing) or the [`crate::Completion`] (completion).
    pub signature: Signature,
}

impl Approval {
    /// A validator's approval of `digest`, the digest of a quote or of a completion.
    pub async fn sign(digest: &B256, validator: &(dyn Signer + Send + Sync)) -> Result<Self, SignatureError> {
        Ok(Self { validator: validator.address(), signature: Signature::sign(digest, validator).await? })
    }
}

/// Approvals of one digest, ascending by validator, each validator once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QuorumCertificate(Vec<Approval>);

/// Why a certificate does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CertificateError {
    /// Too few approvals.
    #[error("{have} approvals, {need} are needed")]
    TooFew {
        /// How many there are.
        have: usize,
        /// How many it takes.
        need: usize,
    },
    /// Somebody approves who is not among the request's judges.
    #[error("{0} is not in this request's committee")]
    NotInCommittee(Address),
    /// Out of order, or twice.
    #[error("the approvals must be in ascending order, each validator once: {0} is out of place")]
    Unsorted(Address),
    /// A signature that the named validator did not make over this digest.
    #[error("the approval of {0} is not its signature over this digest")]
    BadSignature(Address),
}

impl QuorumCertificate {
    /// A certificate of these approvals, put in order. Says nothing yet about their worth: see [`QuorumCertificate::verify`].
    pub fn new(mut approvals: Vec<Approval>) -> Self {
        approvals.sort_unstable_by_key(|approval| approval.validator);
        Self(approvals)
    }

    /// The approvals, ascending by validator.
    pub fn approvals(&self) -> &[Approval] {
        &self.0
    }

    /// The same without the approvals of others than these.
    #[must_use]
    pub fn only(self, counts: impl Fn(&Address) -> bool) -> Self {
        Self(self.0.into_iter().filter(|approval| counts(&approval.validator)).collect())
    }

    /// Who approved, ascending.
    pub fn validators(&self) -> Vec<Address> {
        self.0.iter().map(|approval| approval.validator).collect()
    }

    /// The concatenated signatures, as the contracts take them.
    pub fn packed(&self) -> Vec<u8> {
        self.0.iter().flat_map(|approval| *approval.signature.as_bytes()).collect()
    }

    /// keccak256 of [`QuorumCertificate::packed`].
    pub fn hash(&self) -> B256 {
        let mut hasher = Keccak256::new();
        for approval in &self.0 {
            hasher.update(approval.signature.as_bytes());
        }
        hasher.finalize()
    }

    /// Checks that at least as many distinct members of the committee signed `digest` as it takes, and nobody else is listed.
    pub fn verify(&self, digest: &B256, committee: &Committee) -> Result<(), CertificateError> {
        if let Some(stranger) = self.0.iter().find(|approval| !committee.members.contains(&approval.validator)) {
            return Err(CertificateError::NotInCommittee(stranger.validator));
        }
        self.check(committee)?;
        self.check_signatures(digest)
    }

    /// Checks that M of each of these committees have signed `digest`. Others may be listed, too.
    pub fn verify_all<'a>(
        &self,
        digest: &B256,
        committees: impl IntoIterator<Item = &'a Committee>,
    ) -> Result<(), CertificateError> {
        committees.into_iter().try_for_each(|committee| self.check(committee))?;
        self.check_signatures(digest)
    }

    /// Whether enough of a committee are listed.
    fn check(&self, committee: &Committee) -> Result<(), CertificateError> {
        let need = usize::from(committee.threshold);
        let have = self.0.iter().filter(|approval| committee.members.contains(&approval.validator)).count();
        if have < need { Err(CertificateError::TooFew { have, need }) } else { Ok(()) }
    }

    fn check_signatures(&self, digest: &B256) -> Result<(), CertificateError> {
        let mut previous = None;
        for Approval { validator, signature } in &self.0 {
            if previous.is_some_and(|previous| previous >= *validator) {
                return Err(CertificateError::Unsorted(*validator));
            }
            signature.verify(digest, *validator).map_err(|_| CertificateError::BadSignature(*validator))?;
            previous = Some(*validator);
        }
        Ok(())
    }
}
