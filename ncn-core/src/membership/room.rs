//! Who gets a place in a full membership.
//!
//! Keys cost nothing, so their number says nothing. What cannot be had for nothing are a stake, a subnet, and many networks' addresses: a full
//! membership takes a newcomer in at the cost of those with the least standing, of the source that has the most of them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use super::{Member, Membership};
use crate::{Address, NodeRecord, NodeRole, RegistryError, Signed, UnixTime};

/// What a record takes beside its endpoint and its models, in bytes.
const RECORD_BYTES: usize = 512;
/// Of the nodes that had to give their place up, one in so many stays known for a while, so that watchers hear of it.
const REMEMBERED: usize = 16;

/// What stands behind a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing.
    Stranger,
    /// A subnet that is known: the node says that it serves it.
    Member,
    /// A validator's stake, or the subnet that a gateway has paid for.
    Admitted,
}

/// From which network a node's newest record was heard of: a few addresses next to each other count as one. Of what other registry nodes pass on it
/// is theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u64);

impl Source {
    /// That of an address: its /24, or its /48 for version 6.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(u32::from(address) >> 8) | 1 << 63),
            IpAddr::V6(address) => Self(u64::try_from(u128::from(address) >> 80).unwrap_or_default()),
        }
    }
}

/// What is known of where a record comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Who has told it.
    pub source: Source,
    /// Whether the chain lists the node as a validator.
    pub is_validator: bool,
}

/// Those who are displaced together, by the least standing and the most that they take.
type Rank = (Standing, Reverse<usize>, Source);

/// How the places are taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    nodes: usize,
    bytes: usize,
    groups: BTreeMap<(Standing, Source), (usize, BTreeSet<Address>)>,
    ranks: BTreeSet<Rank>,
    /// Who has lost its place, oldest first, with the number of that change.
    displaced: VecDeque<(Address, u64)>,
}

/// What a member takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) standing: Standing,
    source: Source,
    bytes: usize,
}

impl Room {
    fn change(&mut self, node: Address, place: Place, takes: bool) {
        let Place { standing, source, bytes } = place;
        let (taken, members) = self.groups.entry((standing, source)).or_default();
        self.ranks.remove(&(standing, Reverse(*taken), source));
        if takes {
            members.insert(node);
            *taken += bytes;
            self.bytes += bytes;
            self.nodes += 1;
        } else {
            members.remove(&node);
            *taken -= bytes;
            self.bytes -= bytes;
            self.nodes -= 1;
        }
        if members.is_empty() {
            self.groups.remove(&(standing, source));
        } else {
            self.ranks.insert((standing, Reverse(*taken), source));
        }
    }

    pub(super) fn take(&mut self, node: Address, place: Place) {
        self.change(node, place, true);
    }

    pub(super) fn give(&mut self, node: Address, place: Place) {
        self.change(node, place, false);
    }

    /// Who has to go for a newcomer, if anybody does: not for one who is no better than those who are there.
    fn victim(&self, newcomer: Place) -> Option<Address> {
        let own = self.groups.get(&(newcomer.standing, newcomer.source)).map_or(0, |(bytes, _)| *bytes) + newcomer.bytes;
        let (standing, Reverse(bytes), source) = *self.ranks.first()?;
        let gives = standing < newcomer.standing || (standing == newcomer.standing && bytes > own);
        let (_, members) = self.groups.get(&(standing, source)).filter(|_| gives)?;
        members.last().copied()
    }
}

impl Membership {
    pub(super) fn place(&self, record: &Signed<NodeRecord>, origin: Origin) -> Place {
        let NodeRecord { node, role, subnet, ref endpoint, ref models, .. } = record.message;
        let subnet = self.subnets.get(&subnet);
        let standing = match role {
            NodeRole::Validator if origin.is_validator => Standing::Admitted,
            NodeRole::Gateway if subnet.is_some_and(|subnet| subnet.subnet().has_gateway(&node)) => Standing::Admitted,
            NodeRole::Compute if subnet.is_some() => Standing::Member,
            _ => Standing::Stranger,
        };
        Place { standing, source: origin.source, bytes: RECORD_BYTES + endpoint.len() + 32 * models.len() }
    }

    fn is_full(&self, bytes: usize) -> bool {
        self.room.nodes >= self.bounds.nodes || self.room.bytes + bytes > self.bounds.bytes
    }

    /// Has a node take this place instead of the one that it has, if it has one; of a node that there is no room for, the latter stays. The
    /// caller makes one that is new a member.
    pub(super) fn move_to(&mut self, node: Address, place: Place, now: UnixTime) -> Result<(), RegistryError> {
        let before = self.members.get_mut(&node).and_then(|known| known.place.take());
        if let Some(before) = before {
            self.room.give(node, before);
        }
        let made = self.make_room(place, now);
        // What it had may have expired while room was made.
        let known = self.members.get_mut(&node);
        match (&made, before, known) {
            (Ok(()), _, known) => {
                if let Some(known) = known {
                    known.place = Some(place);
                }
                self.room.take(node, place);
            }
            (Err(_), Some(before), Some(known)) => {
                known.place = Some(before);
                self.room.take(node, before);
            }
            (Err(_), ..) => {}
        }
        made
    }

    /// Makes room for a newcomer.
    fn make_room(&mut self, newcomer: Place, now: UnixTime) -> Result<(), RegistryError> {
        if self.is_full(newcomer.bytes) {
            self.forget_expired(now);
        }
        while self.is_full(newcomer.bytes) {
            let Some(victim) = self.room.victim(newcomer) else {
                return Err(RegistryError::Overloaded(format!("{} nodes are known", self.room.nodes)));
            };
            self.displace(victim);
        }
        Ok(())
    }

    /// Has a node lose its place. It stays known for a while, so that watchers hear that it is gone, and its next heartbeat finds room if there is any.
    fn displace(&mut self, node: Address) {
        let Some(Member { place, live, .. }) = self.members.get_mut(&node) else { return };
        let (place, was_live) = (place.take(), std::mem::take(live));
        if let Some(place) = place {
            self.room.give(node, place);
        }
        if was_live {
            self.has_changed(node);
        }
        let changed = self.members.get(&node).map_or(0, |member| member.changed);
        self.room.displaced.push_back((node, changed));
        while self.room.displaced.len() > self.bounds.nodes / REMEMBERED + 1 {
            self.forget_displaced();
        }
    }

    fn forget_displaced(&mut self) {
        let Some((node, changed)) = self.room.displaced.pop_front() else { return };
        // It may have come back since then.
        if self.members.get(&node).is_some_and(|member| member.place.is_none() && member.changed == changed) {
            self.members.remove(&node);
            self.by_change.remove(&changed);
            self.forgotten = self.forgotten.max(changed);
        }
    }
}
