//! How many connections come from one network, so that no stranger takes them all.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    fmt,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm, dummy,
    },
};
use ncn_core::membership::Source;

/// How many connections others make to this node, in all and from one network's addresses; and how many of these are being made at once. This
/// machine's users can do worse, and have more.
const MAX_INBOUND: usize = 384;
const MAX_OF_SOURCE: usize = 16;
const MAX_PENDING: usize = 16;
const MAX_PENDING_OWN: usize = 64;

/// From where peers are connected, and who has to go when there are too many: who comes gets a place of the network that has the most.
#[derive(Default)]
pub(crate) struct Shares {
    connections: HashMap<ConnectionId, (PeerId, Option<IpAddr>)>,
    /// Those that others have made, by the network that they are from, in their order.
    inbound: HashMap<Source, Vec<ConnectionId>>,
    /// Those that others are making.
    pending: HashMap<ConnectionId, Source>,
    /// Those that have to go.
    leaving: VecDeque<(PeerId, ConnectionId)>,
}

/// Too many connections from one network.
#[derive(Debug)]
struct Crowded;

impl fmt::Display for Crowded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many connections are from this network")
    }
}

impl std::error::Error for Crowded {}

/// The address that another one leads to; none of a name.
pub(crate) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    })
}

fn source(ip: Option<IpAddr>) -> Source {
    ip.map(Source::of).unwrap_or_default()
}

fn is_own(ip: Option<IpAddr>) -> bool {
    ip.is_none_or(|ip| ip.is_loopback())
}

impl Shares {
    /// From where a peer is connected.
    pub(crate) fn ip(&self, peer: &PeerId) -> Option<IpAddr> {
        self.connections.values().find(|(connected, _)| connected == peer).and_then(|(_, ip)| *ip)
    }

    /// From which network a peer is connected.
    pub(crate) fn source(&self, peer: &PeerId) -> Source {
        source(self.ip(peer))
    }

    fn count(&self, source: Source) -> usize {
        self.inbound.get(&source).map_or(0, Vec::len)
    }

    /// Whether one more is taken from there, at the cost of another one's where there is no place.
    fn admit(&mut self, ip: Option<IpAddr>) -> Result<(), ConnectionDenied> {
        let own = self.count(source(ip));
        if own >= MAX_OF_SOURCE && !is_own(ip) {
            return Err(ConnectionDenied::new(Crowded));
        }
        if self.inbound.values().map(Vec::len).sum::<usize>() < MAX_INBOUND {
            return Ok(());
        }
        let most = self.inbound.values_mut().max_by_key(|connections| connections.len());
        let newest = most.filter(|connections| connections.len() > own + 1).and_then(Vec::pop);
        let newest = newest.and_then(|id| Some((self.connections.get(&id)?.0, id)));
        self.leaving.push_back(newest.ok_or_else(|| ConnectionDenied::new(Crowded))?);
        Ok(())
    }

    fn closed(&mut self, id: ConnectionId) {
        let Some((_, ip)) = self.connections.remove(&id) else { return };
        if let Some(connections) = self.inbound.get_mut(&source(ip)) {
            connections.retain(|connection| *connection != id);
            if connections.is_empty() {
                self.inbound.remove(&source(ip));
            }
        }
    }
}

impl NetworkBehaviour for Shares {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let ip = ip(remote);
        // Before the handshake, which takes time.
        let (most, from) = (if is_own(ip) { MAX_PENDING_OWN } else { MAX_PENDING }, source(ip));
        if self.pending.values().filter(|pending| **pending == from).count() >= most {
            return Err(ConnectionDenied::new(Crowded));
        }
        self.pending.insert(id, from);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.remove(&id);
        self.admit(ip(remote))?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(made) => {
                let ip = ip(made.endpoint.get_remote_address());
                self.connections.insert(made.connection_id, (made.peer_id, ip));
                if made.endpoint.is_listener() {
                    self.inbound.entry(source(ip)).or_default().push(made.connection_id);
                }
            }
            FromSwarm::ListenFailure(failed) => drop(self.pending.remove(&failed.connection_id)),
            FromSwarm::ConnectionClosed(closed) => self.closed(closed.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.leaving.pop_front() {
            Some((peer_id, connection)) => {
                Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(connection) })
            }
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::ConnectedPoint;
    use libp2p::swarm::behaviour::ConnectionEstablished;

    use super::*;

    fn connect(shares: &mut Shares, number: usize, from: &str) -> bool {
        let (peer, id) = (PeerId::random(), ConnectionId::new_unchecked(number));
        let (local, remote): (Multiaddr, Multiaddr) = ("/ip4/192.0.2.1/tcp/8828".parse().unwrap(), from.parse().unwrap());
        if shares.handle_pending_inbound_connection(id, &local, &remote).is_err() {
            return false;
        }
        if shares.handle_established_inbound_connection(id, peer, &local, &remote).is_err() {
            return false;
        }
        let endpoint = ConnectedPoint::Listener { local_addr: local, send_back_addr: remote.clone() };
        let made = ConnectionEstablished {
            peer_id: peer,
            connection_id: id,
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        };
        shares.on_swarm_event(FromSwarm::ConnectionEstablished(made));
        assert_eq!(shares.ip(&peer), ip(&remote));
        // As the swarm does at once.
        while let Some((_, leaving)) = shares.leaving.pop_front() {
            shares.closed(leaving);
        }
        true
    }

    #[test]
    fn one_network_takes_its_share_of_connections_and_no_more() {
        let mut shares = Shares::default();
        for number in 0..MAX_OF_SOURCE {
            assert!(connect(&mut shares, number, &format!("/ip4/203.0.113.{}/tcp/4001", number % 256)));
        }
        assert!(!connect(&mut shares, 1_000, "/ip4/203.0.113.200/tcp/1"), "its share is taken");
        assert!(connect(&mut shares, 1_001, "/ip4/203.0.114.200/tcp/1"), "another network has its own");
        assert!(connect(&mut shares, 1_002, "/ip6/2001:db8::1/udp/1/quic-v1"));
        shares.closed(ConnectionId::new_unchecked(0));
        assert!(connect(&mut shares, 1_003, "/ip4/203.0.113.200/tcp/1"), "a place is free again");
        for number in 2_000..2_200 {
            assert!(connect(&mut shares, number, "/ip4/127.0.0.1/tcp/1"), "this machine has more");
        }
    }

    #[test]
    fn who_comes_gets_a_place_of_the_network_that_has_the_most() {
        let mut shares = Shares::default();
        let mut number = 0;
        let mut connects = |shares: &mut Shares, from: &str| {
            number += 1;
            connect(shares, number, from)
        };
        for network in 0..24 {
            for _ in 0..MAX_OF_SOURCE {
                assert!(connects(&mut shares, &format!("/ip4/203.0.{network}.1/tcp/4001")));
            }
        }
        for network in 0..48 {
            assert!(connects(&mut shares, &format!("/ip4/198.51.{network}.1/tcp/4001")), "{network}");
        }
        assert_eq!(shares.inbound.values().map(Vec::len).sum::<usize>(), MAX_INBOUND);
        let counts: Vec<_> = (0..24).map(|network| shares.count(Source::of([203, 0, network, 1].into()))).collect();
        assert!(counts.iter().all(|count| *count == MAX_OF_SOURCE - 2), "{counts:?}");
        assert_eq!(shares.connections.len(), MAX_INBOUND);
    }

    #[test]
    fn who_says_nothing_takes_its_share_of_handshakes_and_no_more() {
        let mut shares = Shares::default();
        let local: Multiaddr = "/ip4/192.0.2.1/tcp/8828".parse().unwrap();
        let mut knocks = |number: usize, from: &str| {
            let id = ConnectionId::new_unchecked(number);
            shares.handle_pending_inbound_connection(id, &local, &from.parse().unwrap()).is_ok()
        };
        for number in 0..MAX_PENDING {
            assert!(knocks(number, "/ip4/203.0.113.1/tcp/4001"));
        }
        assert!(!knocks(1_000, "/ip4/203.0.113.2/tcp/4001"));
        assert!(knocks(1_001, "/ip4/203.0.114.2/tcp/4001"));
    }
}
