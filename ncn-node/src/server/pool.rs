//! What all peers of a server share, so that no peer takes all of it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// An amount of something that peers take shares of.
///
/// A peer may take as much as is left for the others after it: half of all when it is alone, a third when another peer has a third.
/// This is Choudhury and Hahne's rule of dynamic thresholds ("Dynamic queue length thresholds in a shared memory packet switch",
/// 1996): a peer that takes all it can get always leaves something to the next one.
#[derive(Debug)]
pub(super) struct Pool {
    total: usize,
    taken: Mutex<Taken>,
    returned: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

impl Pool {
    pub(super) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, taken: Mutex::default(), returned: Notify::new() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A share, unless the peer has too much already.
    pub(super) fn try_take(self: &Arc<Self>, peer: IpAddr, amount: usize) -> Option<Share> {
        let mut taken = self.taken();
        let all = taken.all.checked_add(amount)?;
        let of_peer = taken.by_peer.get(&peer).copied().unwrap_or_default().checked_add(amount)?;
        if of_peer > self.total.checked_sub(all)? {
            return None;
        }
        taken.all = all;
        taken.by_peer.insert(peer, of_peer);
        Some(Share { pool: self.clone(), peer, amount })
    }

    /// A share, as soon as the peer may have it. Dropping the future gives the wait up.
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
}

/// A part of a pool, which it goes back to when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    pool: Arc<Pool>,
    peer: IpAddr,
    amount: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.pool.taken();
        taken.all = taken.all.saturating_sub(self.amount);
        if let Some(of_peer) = taken.by_peer.get_mut(&self.peer) {
            *of_peer = of_peer.saturating_sub(self.amount);
            if *of_peer == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
        drop(taken);
        self.pool.returned.notify_waiters();
    }
}

/// Who counts as one peer: an IPv4 address, or the 64-bit prefix that an IPv6 subscriber has to itself.
pub(super) fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
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

    #[test]
    fn a_peer_that_takes_all_it_can_get_leaves_as_much() {
        let pool = Pool::new(12);
        let mut shares: Vec<_> = std::iter::from_fn(|| pool.try_take(peer(1), 1)).collect();
        assert_eq!(shares.len(), 6);
        shares.extend(std::iter::from_fn(|| pool.try_take(peer(2), 1)));
        assert_eq!(shares.len(), 9);
        assert!(pool.try_take(peer(3), 1).is_some() && pool.try_take(peer(1), 1).is_none());
        assert!(pool.try_take(peer(3), usize::MAX).is_none());
        shares.clear();
        let taken = pool.taken();
        assert!(taken.by_peer.is_empty() && taken.all == 0);
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_returned() {
        let pool = Pool::new(4);
        let (first, second) = (pool.try_take(peer(1), 1).unwrap(), pool.try_take(peer(1), 1).unwrap());
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
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), peer(1));
    }
}
