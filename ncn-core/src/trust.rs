//! What a receipt is checked against, and who judges a request.

use alloy_primitives::{Address, B256, keccak256};
use alloy_sol_types::SolValue;
use serde::{Deserialize, Serialize};

use crate::{Domain, RequestId};

/// All that has to be believed to check a receipt offline: the network's domain, its validators, and how many must agree.
///
/// Quotes bind its [`hash`](Self::hash), so a receipt cannot be moved from one validator set to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustRoot {
    /// The chain and the payment contract.
    pub domain: Domain,
    /// The token in which requests are paid.
    pub token: Address,
    /// The contract that holds channels.
    pub channels: Address,
    /// The active validators, strictly ascending.
    pub validators: Vec<Address>,
    /// M: how many approvals make a certificate.
    pub threshold: u16,
    /// N: how many validators judge one request.
    pub committee_size: u16,
    /// Who receives the treasury's part of every payment.
    pub treasury: Address,
}

/// Why a trust root is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustRootError {
    /// Unsorted or duplicate validators: the same set must have one hash.
    #[error("validators: the addresses must be distinct and ascending")]
    Unsorted,
    /// The M-of-N rule makes no sense.
    #[error("threshold: {threshold} of {committee_size} is not a majority of a committee that {validators} validators can fill")]
    Quorum {
        /// M.
        threshold: u16,
        /// N.
        committee_size: u16,
        /// How many validators there are.
        validators: usize,
    },
}

impl TrustRoot {
    /// Checks that the set is canonical and can reach its threshold, and that the threshold is a majority of the committee.
    pub fn validate(&self) -> Result<(), TrustRootError> {
        if !self.validators.is_sorted_by(|a, b| a < b) {
            return Err(TrustRootError::Unsorted);
        }
        let (m, n) = (self.threshold, self.committee_size);
        if u32::from(m) * 2 <= u32::from(n) || m > n || usize::from(m) > self.validators.len() {
            let validators = self.validators.len();
            return Err(TrustRootError::Quorum { threshold: m, committee_size: n, validators });
        }
        Ok(())
    }

    /// keccak256(abi.encode(chainId, contract, token, channels, validators, threshold, committeeSize, treasury)).
    pub fn hash(&self) -> B256 {
        let Self { domain, token, channels, validators, threshold, committee_size, treasury } = self;
        let Domain { chain_id, contract } = *domain;
        let encoded = (chain_id, contract, *token, *channels, validators.clone(), *threshold, *committee_size, *treasury);
        keccak256(encoded.abi_encode_params())
    }

    /// Under which vouchers, settlements of channels and their closing are signed.
    pub const fn channel_domain(&self) -> Domain {
        Domain { chain_id: self.domain.chain_id, contract: self.channels }
    }

    /// The validators that judge a request: the `committee_size` whose keccak256(request id, address) is smallest.
    ///
    /// A request id contains the client's nonce and is fixed before anyone is asked, so nobody picks its own judges.
    pub fn committee(&self, request_id: &RequestId) -> Vec<Address> {
        let mut ranked: Vec<(B256, Address)> = self
            .validators
            .iter()
            .map(|validator| {
                let mut preimage = [0; 52];
                let (id, address) = preimage.split_at_mut(32);
                id.copy_from_slice(request_id.as_slice());
                address.copy_from_slice(validator.as_slice());
                (keccak256(preimage), *validator)
            })
            .collect();
        ranked.sort_unstable();
        ranked.truncate(usize::from(self.committee_size));
        ranked.into_iter().map(|(_, validator)| validator).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn root(validators: u8, threshold: u16, committee_size: u16) -> TrustRoot {
        TrustRoot {
            domain: Domain { chain_id: 1, contract: Address::ZERO },
            token: Address::ZERO,
            channels: Address::ZERO,
            validators: (1..=validators).map(Address::repeat_byte).collect(),
            threshold,
            committee_size,
            treasury: Address::ZERO,
        }
    }

    #[test]
    fn a_committee_is_a_fair_draw() {
        let root = root(10, 3, 5);
        let mut drawn: HashMap<Address, u32> = HashMap::new();
        for request in 0..2_000u32 {
            let committee = root.committee(&keccak256(request.to_be_bytes()));
            assert_eq!(committee.len(), 5);
            for validator in committee {
                *drawn.entry(validator).or_default() += 1;
            }
        }
        assert!(drawn.len() == 10 && drawn.values().all(|count| (850..1_150).contains(count)), "{drawn:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(root(5, 3, 5).validate(), Ok(()));
        for (validators, m, n) in [(5, 0, 5), (5, 2, 5), (5, 6, 5), (2, 3, 5), (5, 2, 4)] {
            assert!(root(validators, m, n).validate().is_err(), "{m} of {n} of {validators}");
        }
        let mut unsorted = root(5, 3, 5);
        unsorted.validators.swap(0, 1);
        assert_eq!(unsorted.validate(), Err(TrustRootError::Unsorted));
        let mut twice = root(5, 3, 5);
        twice.validators[1] = twice.validators[0];
        assert_eq!(twice.validate(), Err(TrustRootError::Unsorted));
    }
}
