//! What a receipt is checked against, and who judges a request.

use alloy_primitives::{Address, B256, keccak256};
use alloy_sol_types::SolValue;
use serde::{Deserialize, Serialize};

use crate::{Committee, Domain, Quote, RequestId, UnixTime, agreement::Mismatch};

/// The most validators that a network has, which the contract enforces too.
pub const MAX_VALIDATORS: usize = 256;

/// The first second of the year 10000: no chain comes so far.
const FARTHEST: UnixTime = 253_402_300_800;

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

    /// keccak256(abi.encode(chainId, contract, token, channels)): a name of the network that stays the same when validators join or leave. It says
    /// nothing of the validators, which the chain then has to say.
    pub fn contracts_hash(&self) -> B256 {
        let Domain { chain_id, contract } = self.domain;
        keccak256((chain_id, contract, self.token, self.channels).abi_encode_params())
    }

    /// Under which vouchers, settlements of channels and their closing are signed.
    pub const fn channel_domain(&self) -> Domain {
        Domain { chain_id: self.domain.chain_id, contract: self.channels }
    }

    /// The validators that judge a request: the `committee_size` whose keccak256(seed, address) is smallest, where the seed is
    /// keccak256(salt, request id).
    ///
    /// Neither side picks its judges: the gateway chose the salt before it knew the order, and the client signed the order before it knew
    /// the salt.
    pub fn committee(&self, salt: &B256, request_id: &RequestId) -> Committee {
        let seed = keccak256([*salt, *request_id].concat());
        let ranked = self.validators.iter().map(|validator| {
            let mut preimage = [0; 52];
            let (of_seed, address) = preimage.split_at_mut(32);
            of_seed.copy_from_slice(seed.as_slice());
            address.copy_from_slice(validator.as_slice());
            (keccak256(preimage), *validator)
        });
        let mut ranked: Vec<(B256, Address)> = ranked.collect();
        ranked.sort_unstable();
        ranked.truncate(usize::from(self.committee_size));
        let mut members: Vec<Address> = ranked.into_iter().map(|(_, validator)| validator).collect();
        members.sort_unstable();
        Committee { threshold: self.threshold, members }
    }
}

/// What an order has of the salt that decides about its committee, and its quote shows: keccak256 of it.
pub fn draw_of(salt: &B256) -> B256 {
    keccak256(salt)
}

/// When somebody was a validator: from `from`, until the second before `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    /// Who.
    pub validator: Address,
    /// The first second.
    pub from: UnixTime,
    /// The second after the last.
    pub until: UnixTime,
}

/// M of N, from `since` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// The first second.
    pub since: UnixTime,
    /// M.
    pub threshold: u16,
    /// N.
    pub committee_size: u16,
}

/// Who judged when: the network's trust root now, and for every time as far back as a request can be old.
///
/// A request is judged from beginning to end by those who were there when it was quoted, so that nobody makes others' requests fail by
/// joining or leaving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustHistory {
    time: UnixTime,
    current: Epoch,
    tenures: Vec<Tenure>,
    quorums: Vec<Quorum>,
}

/// A trust root, and since when it is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// By the chain's time.
    pub since: UnixTime,
    /// What has been valid since.
    pub trust: TrustRoot,
}

impl TrustHistory {
    /// The history of a network as it was read at `time`. Of `network`, validators and quorum are replaced by what was valid then.
    pub fn new(time: UnixTime, network: TrustRoot, tenures: Vec<Tenure>, quorums: Vec<Quorum>) -> Self {
        let mut history = Self { time, current: Epoch { since: 0, trust: network }, tenures, quorums };
        history.current = history.at(time);
        history
    }

    /// A network that does not change: one that is trusted as it was named.
    pub fn fixed(trust: TrustRoot) -> Self {
        Self { time: UnixTime::MAX, current: Epoch { since: 0, trust }, tenures: Vec::new(), quorums: Vec::new() }
    }

    /// The chain's time when it was read. What comes later is not known.
    pub const fn time(&self) -> UnixTime {
        self.time
    }

    /// The time that payments are judged by, of somebody whose machine has this one: the chain's where it was ahead. A network that was named
    /// has no time of its own, and no chain has one that sums would overflow with.
    pub fn now(&self, machine: UnixTime) -> UnixTime {
        if self.time >= FARTHEST { machine } else { machine.max(self.time) }
    }

    /// What is valid now.
    pub const fn current(&self) -> &Epoch {
        &self.current
    }

    /// What was valid at a time that has come.
    pub fn at(&self, time: UnixTime) -> Epoch {
        let valid = |tenure: &&Tenure| tenure.from <= time && time < tenure.until;
        let mut validators: Vec<_> = self.tenures.iter().filter(valid).map(|tenure| tenure.validator).collect();
        validators.sort_unstable();
        let network = &self.current.trust;
        if self.quorums.is_empty() {
            return self.current.clone();
        }
        let valid = self.quorums.iter().filter(|quorum| quorum.since <= time).max_by_key(|quorum| quorum.since);
        // Before there was anything, nobody judges.
        let quorum = valid.copied().unwrap_or(Quorum { since: 0, threshold: 0, committee_size: 0 });
        let changes = self.tenures.iter().flat_map(|tenure| [tenure.from, tenure.until]);
        let since = changes.filter(|change| *change <= time).fold(quorum.since, UnixTime::max);
        let Quorum { threshold, committee_size, .. } = quorum;
        Epoch { since, trust: TrustRoot { validators, threshold, committee_size, ..network.clone() } }
    }

    /// The trust root and the committee of a quote, when they are this network's at the quote's epoch.
    ///
    /// # Errors
    /// [`Mismatch::Epoch`] when the epoch has not come; [`Mismatch::Network`] when the network was another one then; [`Mismatch::Committee`] when others are to judge than were drawn.
    pub fn of(&self, quote: &Quote) -> Result<(TrustRoot, Committee), Mismatch> {
        if quote.epoch > self.time {
            return Err(Mismatch::Epoch);
        }
        let trust = if quote.epoch >= self.current.since { self.current.trust.clone() } else { self.at(quote.epoch).trust };
        let committee = quote.committee_of(&trust)?;
        Ok((trust, committee))
    }

    /// Whether somebody is a validator, or left so lately that its stake is still there.
    pub fn is_listed(&self, account: &Address) -> bool {
        self.current.trust.validators.contains(account) || self.tenures.iter().any(|tenure| tenure.validator == *account)
    }

    /// Whether what a quote names was still valid `seconds` ago: nobody picks judges out of the past.
    pub fn is_recent(&self, quote: &Quote, seconds: u64) -> bool {
        quote.epoch >= self.current.since || quote.epoch >= self.at(self.time.saturating_sub(seconds)).since
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::Message as _;

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
            let committee = root.committee(&B256::ZERO, &keccak256(request.to_be_bytes()));
            assert_eq!((committee.threshold, committee.members.len()), (3, 5));
            assert!(committee.members.is_sorted_by(|a, b| a < b));
            for validator in committee.members {
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

    #[test]
    fn the_contracts_are_the_same_when_validators_join() {
        let (few, more) = (root(5, 3, 5), root(6, 3, 5));
        assert_ne!(few.hash(), more.hash());
        assert_eq!(few.contracts_hash(), more.contracts_hash());
        let other = |change: fn(&mut TrustRoot)| {
            let mut other = few.clone();
            change(&mut other);
            other.contracts_hash()
        };
        let changes: [fn(&mut TrustRoot); 4] = [
            |root| root.domain.chain_id = 2,
            |root| root.domain.contract = Address::repeat_byte(1),
            |root| root.token = Address::repeat_byte(1),
            |root| root.channels = Address::repeat_byte(1),
        ];
        let all: std::collections::HashSet<_> = changes.map(other).into_iter().chain([few.contracts_hash()]).collect();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn both_sides_choose_the_committee() {
        let root = root(100, 3, 5);
        let (salt, request) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let committee = root.committee(&salt, &request);
        assert_eq!(committee, root.committee(&salt, &request));
        assert_ne!(committee, root.committee(&B256::repeat_byte(3), &request));
        assert_ne!(committee, root.committee(&salt, &B256::repeat_byte(3)));
        assert_ne!(committee, root.committee(&request, &salt));
    }

    fn history(time: UnixTime, tenures: &[(u8, UnixTime, UnixTime)], quorums: &[(UnixTime, u16, u16)]) -> TrustHistory {
        let tenures = tenures.iter().map(|(validator, from, until)| Tenure {
            validator: Address::repeat_byte(*validator),
            from: *from,
            until: *until,
        });
        let quorums = quorums.iter().map(|(since, threshold, committee_size)| Quorum {
            since: *since,
            threshold: *threshold,
            committee_size: *committee_size,
        });
        TrustHistory::new(time, root(0, 1, 1), tenures.collect(), quorums.collect())
    }

    #[test]
    fn what_was_valid_stays_so() {
        const EVER: UnixTime = UnixTime::MAX;
        let first = history(100, &[(2, 10, EVER), (1, 10, EVER)], &[(5, 2, 3)]);
        assert_eq!(first.current().since, 10);
        assert_eq!(first.current().trust.validators, [1, 2].map(Address::repeat_byte));
        // One joins, one leaves, and the quorum changes.
        let later = history(200, &[(3, 151, EVER), (2, 10, 181), (1, 10, EVER)], &[(5, 2, 3), (191, 1, 1)]);
        assert_eq!(later.at(100), *first.current());
        assert_eq!(later.at(150), *first.current());
        let joined = later.at(151);
        assert_eq!((joined.since, joined.trust.validators), (151, [1, 2, 3].map(Address::repeat_byte).to_vec()));
        let left = later.at(181);
        assert_eq!((left.since, left.trust.validators), (181, [1, 3].map(Address::repeat_byte).to_vec()));
        assert_eq!((later.current().since, later.current().trust.threshold), (191, 1));
        // What has not come yet does not count.
        let soon = history(150, &[(3, 151, EVER), (2, 10, 181), (1, 10, EVER)], &[(5, 2, 3), (191, 1, 1)]);
        assert_eq!(soon.current(), first.current());
    }

    #[test]
    fn a_quote_is_of_its_epoch() {
        let history = history(200, &[(1, 10, UnixTime::MAX), (2, 10, 150), (3, 190, UnixTime::MAX)], &[(5, 1, 1)]);
        let request_id = B256::repeat_byte(7);
        let quote = |epoch: UnixTime| {
            let trust = history.at(epoch).trust;
            let salt = B256::repeat_byte(8);
            let committee = trust.committee(&salt, &request_id).struct_hash();
            crate::agreement::tests::quote_of(trust.hash(), epoch, salt, committee, request_id)
        };
        for epoch in [10, 149, 150, 189, 190, 200] {
            let (trust, committee) = history.of(&quote(epoch)).unwrap();
            assert_eq!((trust.hash(), committee.struct_hash()), (quote(epoch).trust_root, quote(epoch).committee));
            assert_eq!(history.is_recent(&quote(epoch), 20), epoch >= 150, "{epoch}");
            assert!(history.is_recent(&quote(epoch), 60), "{epoch}");
        }
        assert_eq!(history.of(&Quote { epoch: 201, ..quote(200) }), Err(Mismatch::Epoch));
        let elsewhen = Quote { epoch: 10, ..quote(190) };
        assert_eq!(history.of(&elsewhen), Err(Mismatch::Network));
        let picked = Quote { committee: B256::ZERO, ..quote(190) };
        assert_eq!(history.of(&picked), Err(Mismatch::Committee));
        assert_eq!([history.now(199), history.now(201)], [200, 201]);
        let fixed = TrustHistory::fixed(history.current().trust.clone());
        assert_eq!(fixed.now(199), 199);
        assert_eq!(TrustHistory { time: u64::MAX - 1, ..fixed.clone() }.now(199), 199);
        assert!(fixed.of(&quote(190)).is_ok() && fixed.of(&quote(10)).is_err());
    }
}
