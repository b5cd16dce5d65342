//! What registry nodes tell each other.

use std::{ops::Bound, sync::Arc};

use alloy_primitives::{Address, B256};

use super::{Membership, Origin};
use crate::{
    ApprovedSubnet, Deregistration, Domain, Heartbeat, NodeRecord, RegistryError, SignatureError, Signed, UnixTime,
    mempool::PendingRequests,
};

/// What one registry node has taken in, and the others are to know. Each is signed by whom it is about: who passes it on can only withhold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A node is on the network, as its record says.
    Record(Signed<NodeRecord>),
    /// A node is alive.
    Heartbeat(Signed<Heartbeat>),
    /// A node has left.
    Departure(Signed<Deregistration>),
    /// A subnet, or a newer version of it.
    Subnet(ApprovedSubnet),
    /// What a gateway works on.
    Pending(Signed<PendingRequests>),
}

impl News {
    /// Checks its signature. Of a subnet, that is its owner's: who may approve it, the chain says.
    ///
    /// # Errors
    /// When it is not signed by whom it is about.
    pub fn verify(&self, domain: &Domain) -> Result<(), SignatureError> {
        match self {
            Self::Record(record) => record.verify(domain),
            Self::Heartbeat(heartbeat) => heartbeat.verify(domain),
            Self::Departure(departure) => departure.verify(domain),
            Self::Subnet(subnet) => subnet.definition.verify(domain),
            Self::Pending(pending) => pending.verify(domain),
        }
        .map(drop)
    }

    /// Whom it is about: a node, or the owner of a subnet.
    pub const fn author(&self) -> Address {
        match self {
            Self::Record(record) => record.message.node,
            Self::Heartbeat(heartbeat) => heartbeat.message.node,
            Self::Departure(departure) => departure.message.node,
            Self::Subnet(subnet) => subnet.subnet().owner,
            Self::Pending(pending) => pending.message.gateway,
        }
    }
}

impl Membership {
    /// The live nodes and the subnets after these, in the order of their addresses and ids: at most so many of either.
    pub fn known(
        &self,
        (node, subnet): (Address, B256),
        (nodes, subnets): (usize, usize),
        now: UnixTime,
    ) -> (Vec<Signed<NodeRecord>>, Vec<ApprovedSubnet>) {
        let live = self.members.range((Bound::Excluded(node), Bound::Unbounded)).filter(|(_, member)| member.is_live(now));
        let live = live.take(nodes).map(|(_, member)| member.record.clone());
        (live.collect(), self.subnets(subnet, subnets).into_iter().map(Arc::unwrap_or_clone).collect())
    }

    /// Takes news in, by the same rules wherever they come from. False when they are no news.
    ///
    /// # Errors
    /// As [`Self::register`], [`Self::heartbeat`], [`Self::deregister`] and [`Self::register_subnet`].
    pub fn take(&mut self, news: News, origin: Origin, now: UnixTime) -> Result<bool, RegistryError> {
        match news {
            News::Record(record) => self.register(record, origin, now),
            News::Heartbeat(heartbeat) => self.heartbeat(&heartbeat, now).map(|()| true),
            News::Departure(departure) => self.deregister(&departure, now),
            News::Subnet(subnet) => self.register_subnet(subnet, now),
            News::Pending(pending) => self.announce(pending, now),
        }
    }
}
