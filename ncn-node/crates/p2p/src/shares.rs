//! How many connections come from one network, so that no stranger takes them all.

use std::{
    collections::HashMap,
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
        ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm, dummy,
    },
};
use ncn_core::membership::Source;

/// How many connections one network's addresses make to this node. Those of this machine are not counted: its users can do worse.
const MAX_OF_SOURCE: usize = 64;

/// From where each peer is connected.
#[derive(Default)]
pub(crate) struct Shares {
    connections: HashMap<ConnectionId, (PeerId, Source)>,
    /// Connections that others have made, by the network that they are from.
    inbound: HashMap<Source, usize>,
}

/// Too many connections from one network.
#[derive(Debug)]
struct Crowded;

impl fmt::Display for Crowded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MAX_OF_SOURCE} connections are from this network")
    }
}

impl std::error::Error for Crowded {}

/// The address that another one leads to; none of a name, or of a relay.
pub(crate) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    })
}

fn source(address: &Multiaddr) -> Source {
    ip(address).map(Source::of).unwrap_or_default()
}

impl Shares {
    /// The network from which a peer is connected.
    pub(crate) fn source(&self, peer: &PeerId) -> Source {
        let of_peer = self.connections.values().find(|(connected, _)| connected == peer);
        of_peer.map(|(_, source)| *source).unwrap_or_default()
    }

    fn check(&self, address: &Multiaddr) -> Result<(), ConnectionDenied> {
        let is_own = ip(address).is_some_and(|ip| ip.is_loopback());
        match self.inbound.get(&source(address)) {
            Some(count) if *count >= MAX_OF_SOURCE && !is_own => Err(ConnectionDenied::new(Crowded)),
            _ => Ok(()),
        }
    }
}

impl NetworkBehaviour for Shares {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        // Before the handshake, which takes time.
        self.check(remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check(remote)?;
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
                let source = source(made.endpoint.get_remote_address());
                self.connections.insert(made.connection_id, (made.peer_id, source));
                if made.endpoint.is_listener() {
                    *self.inbound.entry(source).or_default() += 1;
                }
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, endpoint, .. }) => {
                let closed = self.connections.remove(&connection_id);
                if let Some((_, source)) = closed.filter(|_| endpoint.is_listener())
                    && let Some(count) = self.inbound.get_mut(&source)
                {
                    *count -= 1;
                    if *count == 0 {
                        self.inbound.remove(&source);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
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
        let endpoint = ConnectedPoint::Listener { local_addr: local, send_back_addr: remote };
        let made = ConnectionEstablished {
            peer_id: peer,
            connection_id: id,
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        };
        shares.on_swarm_event(FromSwarm::ConnectionEstablished(made));
        assert_eq!(shares.source(&peer), source(endpoint.get_remote_address()));
        true
    }

    fn close(shares: &mut Shares, number: usize, from: &str) {
        let endpoint = ConnectedPoint::Listener {
            local_addr: "/ip4/192.0.2.1/tcp/8828".parse().unwrap(),
            send_back_addr: from.parse().unwrap(),
        };
        let closed = ConnectionClosed {
            peer_id: PeerId::random(),
            connection_id: ConnectionId::new_unchecked(number),
            endpoint: &endpoint,
            cause: None,
            remaining_established: 0,
        };
        shares.on_swarm_event(FromSwarm::ConnectionClosed(closed));
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
        close(&mut shares, 0, "/ip4/203.0.113.0/tcp/4001");
        assert!(connect(&mut shares, 1_003, "/ip4/203.0.113.200/tcp/1"), "a place is free again");
        for number in 2_000..2_200 {
            assert!(connect(&mut shares, number, "/ip4/127.0.0.1/tcp/1"), "this machine's are not counted");
        }
    }
}
