//! What all peers of a server share, so that no peer takes all of it.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// An amount of something that peers take shares of.
///
/// A peer may take as much as is left for the others after it: half of all when it is alone, a third when another peer has a third.
/// This is Choudhury and Hahne's rule of dynamic thresholds ("Dynamic queue length thresholds in a shared memory packet switch",
/// 1996): a peer that takes all it can get always leaves something to the next one. A dozen of such peers leave next to nothing,
/// so whoever [claims](Pool::claim) a share takes it from the peers that have more than it will have.
#[derive(Debug)]
pub(super) struct Pool {
    total: usize,
    /// The most that one peer has.
    most: usize,
    taken: Mutex<Taken>,
    returned: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// How many shares there were; the next one's number.
    shares: u64,
    by_peer: HashMap<IpAddr, Holding>,
}

#[derive(Debug, Default)]
struct Holding {
    sum: usize,
    /// In the order of their numbers, so the newest is last.
    shares: BTreeMap<u64, (usize, CancellationToken)>,
}

impl Taken {
    fn sum_of(&self, peer: IpAddr) -> usize {
        self.by_peer.get(&peer).map_or(0, |holding| holding.sum)
    }

    fn add(&mut self, peer: IpAddr, amount: usize, end: CancellationToken) -> u64 {
        let number = self.shares;
        self.shares = self.shares.wrapping_add(1);
        self.all = self.all.saturating_add(amount);
        let holding = self.by_peer.entry(peer).or_default();
        holding.sum = holding.sum.saturating_add(amount);
        holding.shares.insert(number, (amount, end));
        number
    }

    /// Takes a share out, unless it was before. The token is what ends its use.
    fn remove(&mut self, peer: IpAddr, number: u64) -> Option<CancellationToken> {
        let holding = self.by_peer.get_mut(&peer)?;
        let (amount, end) = holding.shares.remove(&number)?;
        holding.sum = holding.sum.saturating_sub(amount);
        if holding.shares.is_empty() {
            self.by_peer.remove(&peer);
        }
        self.all = self.all.saturating_sub(amount);
        Some(end)
    }

    /// The newest share of the peer that has the most, if that is more than this.
    fn newest_of_largest(&self, most: usize) -> Option<(IpAddr, u64)> {
        let (peer, holding) = self.by_peer.iter().max_by_key(|(_, holding)| holding.sum)?;
        let (number, _) = holding.shares.last_key_value()?;
        (holding.sum > most).then_some((*peer, *number))
    }
}

impl Pool {
    pub(super) fn new(total: usize) -> Arc<Self> {
        Self::with_most(total, total)
    }

    /// The same, of which no peer has more than so much.
    pub(super) fn with_most(total: usize, most: usize) -> Arc<Self> {
        Arc::new(Self { total, most, taken: Mutex::default(), returned: Notify::new() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left after this amount; `None` if there is not that much.
    fn left(&self, taken: &Taken, amount: usize) -> Option<usize> {
        self.total.checked_sub(taken.all.checked_add(amount)?)
    }

    fn share(self: &Arc<Self>, taken: &mut Taken, peer: IpAddr, amount: usize, end: CancellationToken) -> Share {
        let number = taken.add(peer, amount, end);
        Share { pool: self.clone(), peer, number }
    }

    /// A share, unless the peer has as much as the others already. Where others have more, their newest shares are ended: the tokens
    /// that they came with are cancelled, and what uses them must stop at once.
    pub(super) fn claim(self: &Arc<Self>, peer: IpAddr, amount: usize, end: &CancellationToken) -> Option<Share> {
        let mut taken = self.taken();
        let of_peer = taken.sum_of(peer).checked_add(amount).filter(|sum| *sum <= self.most)?;
        let excess = taken.by_peer.values().fold(0_usize, |sum, other| sum.saturating_add(other.sum.saturating_sub(of_peer)));
        let could_be_left = self.total.saturating_add(excess).checked_sub(taken.all.checked_add(amount)?)?;
        if of_peer > could_be_left {
            return None;
        }
        while self.left(&taken, amount).is_none_or(|left| of_peer > left) {
            let (largest, newest) = taken.newest_of_largest(of_peer)?;
            tracing::debug!(%largest, for_peer = %peer, "a share is taken from the peer that has most");
            taken.remove(largest, newest)?.cancel();
        }
        Some(self.share(&mut taken, peer, amount, end.clone()))
    }

    /// A share, as soon as the peer may have it. It is taken from nobody. Dropping the future gives the wait up.
    pub(super) async fn take(self: Arc<Self>, peer: IpAddr, amount: usize) -> Share {
        loop {
            let mut returned = std::pin::pin!(self.returned.notified());
            // What is returned between the next two lines is not missed.
            returned.as_mut().enable();
            if let Some(share) = self.try_take(peer, amount) {
                return share;
            }
            returned.await;
        }
    }

    fn try_take(self: &Arc<Self>, peer: IpAddr, amount: usize) -> Option<Share> {
        let mut taken = self.taken();
        let of_peer = taken.sum_of(peer).checked_add(amount).filter(|sum| *sum <= self.most)?;
        (of_peer <= self.left(&taken, amount)?).then(|| self.share(&mut taken, peer, amount, CancellationToken::new()))
    }
}

/// A part of a pool, which it goes back to when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    pool: Arc<Pool>,
    peer: IpAddr,
    number: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pool.taken().remove(self.peer, self.number);
        self.pool.returned.notify_waiters();
    }
}

/// Who counts as one peer: an IPv4 address, or the 56-bit prefix that an IPv6 subscriber has to itself at the least (RIPE-690). Some have
/// 48 bits, and count as 256 peers; some servers share 56 bits with others.
pub(super) fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 72)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    /// As many shares of this size as the peer gets, each with the token that ends it.
    fn claim_all(pool: &Arc<Pool>, number: u8, amount: usize) -> Vec<(Share, CancellationToken)> {
        let claim = || {
            let end = CancellationToken::new();
            Some((pool.claim(peer(number), amount, &end)?, end))
        };
        std::iter::from_fn(claim).collect()
    }

    fn kept(shares: &[(Share, CancellationToken)]) -> usize {
        shares.iter().filter(|(_, end)| !end.is_cancelled()).count()
    }

    #[test]
    fn peers_that_take_all_they_can_get_have_equal_shares() {
        let pool = Pool::new(12);
        let first = claim_all(&pool, 1, 1);
        assert_eq!(first.len(), 6);
        let second = claim_all(&pool, 2, 1);
        assert_eq!((kept(&first), kept(&second)), (4, 4));
        assert!(first[..4].iter().all(|(_, end)| !end.is_cancelled()), "the newest go first");
        let third = claim_all(&pool, 3, 1);
        assert_eq!((kept(&first), kept(&second), kept(&third)), (3, 3, 3));
        assert!(pool.claim(peer(4), usize::MAX, &CancellationToken::new()).is_none());
        drop((first, second, third));
        let taken = pool.taken();
        assert!(taken.by_peer.is_empty() && taken.all == 0);
    }

    #[test]
    fn no_peer_has_more_than_the_most_of_one() {
        let pool = Pool::with_most(100, 3);
        let (first, second) = (claim_all(&pool, 1, 1), claim_all(&pool, 2, 1));
        assert_eq!((kept(&first), kept(&second)), (3, 3));
        drop(first);
        assert!(pool.claim(peer(1), 4, &CancellationToken::new()).is_none());
        assert_eq!(claim_all(&pool, 1, 3).len(), 1);
    }

    #[test]
    fn a_newcomer_gets_its_share_however_many_were_there_before() {
        let pool = Pool::new(2_048);
        let strangers: Vec<_> = (0..100).flat_map(|number| claim_all(&pool, number, 1)).collect();
        let before = kept(&strangers);
        assert!(before > 2_000, "{before}");
        let honest = claim_all(&pool, 200, 1);
        assert!((15..25).contains(&kept(&honest)), "{}", kept(&honest));
        assert!(pool.taken().all <= 2_048);
    }

    #[test]
    fn what_cannot_be_had_is_not_taken_from_others() {
        let pool = Pool::new(64);
        let small: Vec<_> = (0..10).flat_map(|number| claim_all(&pool, number, 1)).collect();
        let before = kept(&small);
        assert!(pool.claim(peer(200), 16, &CancellationToken::new()).is_none());
        assert_eq!(kept(&small), before);
        let large = claim_all(&Pool::new(64), 1, 16);
        assert_eq!(large.len(), 2);
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_returned() {
        let pool = Pool::new(4);
        let (first, second) = (pool.clone().take(peer(1), 1).await, pool.clone().take(peer(1), 1).await);
        let waiting = tokio::spawn(pool.clone().take(peer(1), 2));
        tokio::task::yield_now().await;
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
    }

    #[test]
    fn an_ipv6_subscriber_is_one_peer() {
        let address = |text: &str| peer_of(text.parse().unwrap());
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_eq!(address("2001:db8::1"), address("2001:db8:0:ff::1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:100::1"));
        assert_eq!(address("::ffff:10.0.0.1"), peer(1));
    }
}
