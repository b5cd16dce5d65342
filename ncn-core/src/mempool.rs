//! Which requests the network's gateways work on, as they say.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Domain, RegistryError, RequestId, Signed, UnixTime, membership::check_sequence};

/// The most requests that a gateway announces.
pub const MAX_PENDING: usize = 512;
/// How long an announcement counts, in seconds.
pub const MAX_PENDING_SECONDS: u64 = 10 * 60;
/// How many requests are kept, of all gateways: about 250 bytes each.
const MAX_REQUESTS: usize = 1 << 18;

/// A gateway's word on which requests it works on. A newer sequence replaces an older announcement, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PendingRequests {
    /// Who works on them.
    pub gateway: Address,
    /// In which subnet.
    pub subnet: B256,
    /// Which, ascending: some of them, when there are more than [`MAX_PENDING`].
    pub requests: Vec<RequestId>,
    /// Larger than that of the gateway's last announcement: the clock's milliseconds.
    pub sequence: u64,
    /// When the announcement stops counting.
    pub expires_at: UnixTime,
}

/// The network's pending requests. A registry node implements it, and so does its client.
///
/// It helps those who look for a request, and decides nothing: money and results are bound to their gateway in other ways. An announcement may be
/// lost, and what is announced may have ended a moment ago.
///
/// # For the implementer
/// - An announcement counts with its gateway's signature, as long as the subnet names that gateway, until it expires or a newer one comes.
#[async_trait]
pub trait Mempool: Send + Sync {
    /// Says what a gateway works on now.
    async fn announce(&self, pending: Signed<PendingRequests>) -> Result<(), RegistryError>;

    /// The announcement of a gateway of this subnet that works on this request; none when nobody does.
    async fn pending(&self, subnet: B256, request: RequestId) -> Result<Option<Signed<PendingRequests>>, RegistryError>;

    /// What this gateway has said last; none when that has expired.
    async fn pending_of(&self, gateway: Address) -> Result<Option<Signed<PendingRequests>>, RegistryError>;
}

/// The announcements that a registry node knows.
///
/// Where there is no room, the gateway with the most requests loses its announcement.
#[derive(Clone, Debug, Default)]
pub struct PendingTable {
    announced: BTreeMap<Address, Signed<PendingRequests>>,
    by_request: BTreeSet<(B256, RequestId, Address)>,
    by_count: BTreeSet<(usize, Address)>,
}

impl PendingTable {
    /// Takes an announcement in. False when it is known. Whether its gateway is one of the subnet is the caller's to check.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`], which names what is wrong; [`RegistryError::Stale`] when a newer one is known.
    pub fn take(&mut self, pending: Signed<PendingRequests>, domain: &Domain, now: UnixTime) -> Result<bool, RegistryError> {
        let PendingRequests { gateway, sequence, expires_at, ref requests, .. } = pending.message;
        if requests.len() > MAX_PENDING {
            let problem = format!("has {} requests, at most {MAX_PENDING} are taken", requests.len());
            return Err(RegistryError::invalid("pending.requests", problem));
        }
        if !requests.is_sorted_by(|one, next| one < next) {
            return Err(RegistryError::invalid("pending.requests", "have to be ascending, each once"));
        }
        if expires_at < now || expires_at - now > MAX_PENDING_SECONDS {
            return Err(RegistryError::invalid("pending.expiresAt", format!("is not within the next {MAX_PENDING_SECONDS} s")));
        }
        check_sequence("pending.sequence", sequence, now)?;
        match self.announced.get(&gateway) {
            Some(known) if known.message == pending.message => return Ok(false),
            Some(known) if sequence <= known.message.sequence => {
                return Err(RegistryError::Stale { given: sequence, known: known.message.sequence });
            }
            _ => {}
        }
        pending.verify(domain).map_err(|error| RegistryError::invalid("pending.signature", error.to_string()))?;
        self.forget(&gateway);
        self.make_room(requests.len(), now);
        let entries = requests.iter().map(|request| (pending.message.subnet, *request, gateway));
        self.by_request.extend(entries);
        self.by_count.insert((requests.len(), gateway));
        self.announced.insert(gateway, pending);
        Ok(true)
    }

    /// Forgets what a gateway has said of this subnet, which does not name it any more.
    pub(crate) fn dismiss(&mut self, gateway: &Address, subnet: B256) {
        if self.announced.get(gateway).is_some_and(|known| known.message.subnet == subnet) {
            self.forget(gateway);
        }
    }

    fn forget(&mut self, gateway: &Address) {
        let Some(Signed { message, .. }) = self.announced.remove(gateway) else { return };
        for request in &message.requests {
            self.by_request.remove(&(message.subnet, *request, *gateway));
        }
        self.by_count.remove(&(message.requests.len(), *gateway));
    }

    /// An announcement without requests takes room, too.
    fn make_room(&mut self, requests: usize, now: UnixTime) {
        let is_full = |table: &Self| table.by_request.len() + table.announced.len() + requests >= MAX_REQUESTS;
        if is_full(self) {
            let expired: Vec<_> =
                self.announced.values().filter(|known| known.message.expires_at < now).map(|known| known.message.gateway).collect();
            for gateway in &expired {
                self.forget(gateway);
            }
        }
        while is_full(self) {
            let Some((_, largest)) = self.by_count.last().copied() else { return };
            self.forget(&largest);
        }
    }

    /// The announcements of gateways of this subnet that work on this request.
    pub fn pending(&self, subnet: B256, request: RequestId, now: UnixTime) -> impl Iterator<Item = &Signed<PendingRequests>> {
        let range = (subnet, request, Address::ZERO)..=(subnet, request, Address::repeat_byte(0xff));
        self.by_request.range(range).filter_map(move |(_, _, gateway)| self.pending_of(gateway, now))
    }

    /// What this gateway has said last.
    pub fn pending_of(&self, gateway: &Address, now: UnixTime) -> Option<&Signed<PendingRequests>> {
        self.announced.get(gateway).filter(|known| known.message.expires_at >= now)
    }

    /// How many requests are pending, among them some of announcements that have expired.
    pub fn len(&self) -> usize {
        self.by_request.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_request.is_empty()
    }
}
