//! What registry nodes tell each other.

use std::ops::Bound;

use alloy_primitives::{Address, B256};

use super::{Membership, Origin};
use crate::{Deregistration, Heartbeat, NodeRecord, RegistryError, Signed, Subnet, UnixTime};

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
    Subnet(Signed<Subnet>),
}

impl Membership {
    /// The live nodes and the subnets after these, in the order of their addresses and ids: at most so many of each.
    pub fn known(
        &self,
        (node, subnet): (Address, B256),
        most: usize,
        now: UnixTime,
    ) -> (Vec<Signed<NodeRecord>>, Vec<Signed<Subnet>>) {
        let nodes = self.members.range((Bound::Excluded(node), Bound::Unbounded)).filter(|(_, member)| member.is_live(now));
        let nodes = nodes.take(most).map(|(_, member)| member.record.clone());
        (nodes.collect(), self.subnets(subnet, most))
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
            News::Subnet(subnet) => self.register_subnet(subnet),
        }
    }
}
