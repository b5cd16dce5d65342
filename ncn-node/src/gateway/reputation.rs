//! How compute nodes have served lately. To register costs nothing, and so does to take places and to fail: who fails is asked after those that serve.

use std::{
    cmp::Reverse,
    collections::HashMap,
    time::{Duration, Instant},
};

use ncn_core::Address;

/// How many nodes are remembered: 100 bytes each. Of too many, those go first of whom the least is known.
const MOST: usize = 4_096;
/// As many completions as count for a node: so often halved, they outlast what a few failures take.
const BEST: i8 = 64;
/// As many failures as count against one.
const WORST: i8 = -6;
/// For how long the first failure counts; each one after it, twice as long.
const FAILED_FOR: Duration = Duration::from_mins(1);

/// By address; also of nodes that are gone, which may come back.
#[derive(Default)]
pub(super) struct Reputation(HashMap<Address, Standing>);

#[derive(Clone, Copy)]
struct Standing {
    /// Above zero, how often it has served; below, how often it has failed.
    score: i8,
    since: Instant,
}

/// Who comes first: who has served, then who is not known, then who has failed, the least often first.
pub(super) type Rank = (bool, bool, u8);

impl Standing {
    fn has_failed(&self) -> bool {
        let doublings = u32::from(self.score.unsigned_abs().saturating_sub(1));
        self.score < 0 && self.since.elapsed() < FAILED_FOR * 2_u32.saturating_pow(doublings)
    }
}

impl Reputation {
    /// A request was completed over what a node gave.
    pub(super) fn served(&mut self, node: Address) {
        self.note(node, |score| score.max(0).saturating_add(1).min(BEST));
    }

    /// A node did not answer, or gave a request nothing. What it has served before it counts half: clients can make models fail, if they pay for it.
    pub(super) fn failed(&mut self, node: Address) {
        self.note(node, |score| if score > 0 { score / 2 } else { score.saturating_sub(1).max(WORST) });
    }

    fn note(&mut self, node: Address, change: impl Fn(i8) -> i8) {
        if self.0.len() >= MOST && !self.0.contains_key(&node) {
            let mut scores: Vec<_> =
                self.0.values().map(|known| (known.score.unsigned_abs(), Reverse(known.since.elapsed()))).collect();
            let (_, median, _) = scores.select_nth_unstable(MOST / 2);
            let median = *median;
            self.0.retain(|_, known| (known.score.unsigned_abs(), Reverse(known.since.elapsed())) > median);
        }
        let known = self.0.get(&node).map_or(0, |known| known.score);
        self.0.insert(node, Standing { score: change(known), since: Instant::now() });
    }

    /// A node's rank: the lowest is asked first. Where one is `sought` that is not known yet, so that new nodes are found, these come first.
    pub(super) fn rank(&self, node: Address, sought: bool) -> Rank {
        let standing = self.0.get(&node);
        match standing {
            Some(standing) if standing.has_failed() => (true, false, standing.score.unsigned_abs()),
            _ => (false, standing.is_some_and(|standing| standing.score > 0) == sought, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn node(number: u8) -> Address {
        Address::repeat_byte(number)
    }

    #[test]
    fn who_serves_comes_before_who_is_not_known_and_who_fails_last() {
        let mut reputation = Reputation::default();
        reputation.served(node(1));
        reputation.failed(node(3));
        (0..2).for_each(|_| reputation.failed(node(4)));
        let order = |reputation: &Reputation, sought| {
            let mut nodes = [4, 3, 2, 1];
            nodes.sort_by_key(|number| reputation.rank(node(*number), sought));
            nodes
        };
        assert_eq!(order(&reputation, false), [1, 2, 3, 4]);
        assert_eq!(order(&reputation, true), [2, 1, 3, 4], "new ones are found");
        reputation.served(node(4));
        assert_eq!(order(&reputation, false), [4, 1, 2, 3], "who serves again is as good as any");
    }

    #[test]
    fn a_few_failures_do_not_outweigh_what_was_served() {
        let mut reputation = Reputation::default();
        (0..100).for_each(|_| reputation.served(node(1)));
        for _ in 0..6 {
            assert!(reputation.rank(node(1), false) < reputation.rank(node(2), false));
            reputation.failed(node(1));
        }
        (0..2).for_each(|_| reputation.failed(node(1)));
        assert!(reputation.rank(node(1), false) > reputation.rank(node(2), false));
    }

    #[test]
    fn new_keys_displace_nobody_who_has_served() {
        let mut reputation = Reputation::default();
        (0..3).for_each(|_| reputation.served(node(1)));
        for number in 0..3 * MOST {
            let mut address = [7; 20];
            address[..8].copy_from_slice(&number.to_be_bytes());
            reputation.failed(address.into());
            assert!(reputation.0.len() <= MOST);
        }
        assert!(reputation.rank(node(1), false) < reputation.rank(node(2), false));
    }
}
