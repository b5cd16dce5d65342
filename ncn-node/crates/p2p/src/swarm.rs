//! What a node speaks, and within which bounds.

use std::{sync::Arc, time::Duration};

use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, connection_limits, gossipsub, identify, identity::Keypair, kad, noise, ping,
    request_response, swarm::NetworkBehaviour, tcp,
};
use ncn_core::Domain;
use ncn_wire::MAX_SUBNET_BYTES;
use sha2::{Digest as _, Sha256};

use crate::{
    PeerError,
    frames::Frames,
    peer::Refused,
    records::Records,
    shares::Shares,
    streams::{MAX_STREAMS, Streams},
};

/// What nodes of any network of this protocol speak; which network it is, the topic and the signatures say.
const IDENTIFY: &str = "/ncn/1";
const KADEMLIA: StreamProtocol = StreamProtocol::new("/ncn/kad/1");
pub(crate) const ASK: StreamProtocol = StreamProtocol::new("/ncn/ask/1");

/// Connections at once, those that are being made, and those of one peer. [`Shares`] has fewer for those that others make.
const MAX_CONNECTIONS: u32 = 512;
const MAX_PENDING: u32 = 256;
const MAX_OF_ONE: u32 = 2;
/// What a stream of a QUIC connection, or twice that all of its streams, may have sent that nobody has read.
const MAX_UNREAD: u32 = 1 << 20;
/// Questions at once on one connection. What they have in memory, all connections together, [`Frames`] bounds.
const MAX_QUESTIONS: usize = 64;
/// How long an answer may take: a validator judges thousands of requests in that time.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(4);
/// The largest news: a subnet's configuration.
const MAX_NEWS_BYTES: usize = MAX_SUBNET_BYTES + (4 << 10);
/// How long a connection may take to come about.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection is kept that has no streams. Gossip has one to each peer: see [`crate::task`] for the others.
const IDLE: Duration = Duration::from_secs(30);
/// How often a node looks for others, and how much later, at most: each at its own time. Those that started together would otherwise
/// call each other at once.
const REFRESH: Duration = Duration::from_mins(5);
const REFRESH_LATER: u32 = 256;
/// When a new node begins to choose its neighbours in gossip, and how often it looks at them again.
const GOSSIP_AFTER: Duration = Duration::from_millis(300);
const GOSSIP_EVERY: Duration = Duration::from_secs(1);
/// Of so many of these, what was heard is offered to others, and kept for those who want it.
const OFFERED: usize = 3;
const KEPT: usize = 6;

/// Who tells what is forged or malformed is no neighbour for some minutes, and from the fifth time on within them nothing that it tells is taken.
/// Besides that, it counts when a peer offers news and does not give them.
fn scores(domain: &Domain) -> (gossipsub::PeerScoreParams, gossipsub::PeerScoreThresholds) {
    let news = gossipsub::TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.9,
        ..gossipsub::TopicScoreParams::default()
    };
    let scores = gossipsub::PeerScoreParams {
        topics: [(topic(domain).hash(), news)].into(),
        // Several nodes may share an address; how many connections that makes, `Shares` bounds.
        ip_colocation_factor_weight: 0.0,
        slow_peer_weight: 0.0,
        behaviour_penalty_weight: -1.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: 0.9,
        decay_interval: Duration::from_secs(10),
        decay_to_zero: 0.01,
        retain_score: Duration::from_mins(10),
        ..gossipsub::PeerScoreParams::default()
    };
    let thresholds = gossipsub::PeerScoreThresholds {
        gossip_threshold: -80.0,
        publish_threshold: -80.0,
        graylist_threshold: -200.0,
        ..gossipsub::PeerScoreThresholds::default()
    };
    (scores, thresholds)
}

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    /// First, so that it refuses a connection before the others learn of it.
    limits: connection_limits::Behaviour,
    pub(crate) shares: Shares,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) table: kad::Behaviour<Records>,
    pub(crate) gossip: gossipsub::Behaviour,
    pub(crate) questions: request_response::Behaviour<Frames>,
}

/// The topic of one network's news.
pub(crate) fn topic(domain: &Domain) -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(format!("/ncn/news/1/{}/{}", domain.chain_id, domain.contract))
}

/// How peers reach each other.
#[derive(Clone, Debug, Default)]
pub(crate) enum Ways {
    /// By TCP and QUIC.
    #[default]
    Internet,
    /// By a network within this process, as this host.
    #[cfg(feature = "simulation")]
    Simulated(Arc<crate::simulation::SimulatedNetwork>, u64),
}

/// A node that listens nowhere yet.
pub(crate) fn build(
    key: Keypair,
    domain: Domain,
    serves: bool,
    refused: &Arc<Refused>,
    ways: &Ways,
) -> Result<Swarm<Behaviour>, PeerError> {
    let setup = |error: String| PeerError::Setup(error);
    let builder = SwarmBuilder::with_existing_identity(key).with_tokio();
    match ways {
        #[cfg(feature = "simulation")]
        Ways::Simulated(network, host) => {
            let builder = builder
                .with_other_transport(|key| network.transport(*host, key))
                .map_err(|error| setup(error.to_string()))?
                .with_behaviour(|key| behaviour(key, domain, serves, refused.clone()))
                .map_err(|error| setup(error.to_string()))?;
            return Ok(builder.with_swarm_config(|config| config.with_idle_connection_timeout(IDLE)).build());
        }
        Ways::Internet => {}
    }
    let builder = builder
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, || Streams)
        .map_err(|error| setup(error.to_string()))?
        .with_quic_config(|mut config| {
            config.max_concurrent_stream_limit = MAX_STREAMS;
            (config.max_stream_data, config.max_connection_data) = (MAX_UNREAD, 2 * MAX_UNREAD);
            config
        })
        .with_behaviour(|key| behaviour(key, domain, serves, refused.clone()))
        .map_err(|error| setup(error.to_string()))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE));
    Ok(builder.with_connection_timeout(HANDSHAKE).build())
}

fn behaviour(
    key: &Keypair,
    domain: Domain,
    serves: bool,
    refused: Arc<Refused>,
) -> Result<Behaviour, Box<dyn std::error::Error + Send + Sync>> {
    let peer = key.public().to_peer_id();
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_established(Some(MAX_CONNECTIONS))
        .with_max_pending_incoming(Some(MAX_PENDING))
        .with_max_pending_outgoing(Some(MAX_PENDING))
        .with_max_established_per_peer(Some(MAX_OF_ONE));
    let mut table = kad::Config::new(KADEMLIA);
    // What somebody else puts here is looked at first.
    table.set_record_filtering(kad::StoreInserts::FilterBoth);
    // Who is connected has a place while there is one. Otherwise each newcomer has somebody called who is not connected now, for whom it is the same.
    table.set_kbucket_inserts(kad::BucketInserts::Manual);
    let later = peer.to_bytes().last().map_or(0, |byte| u32::from(*byte));
    table.set_periodic_bootstrap_interval(Some(REFRESH + REFRESH / REFRESH_LATER * later));
    let mut table = kad::Behaviour::with_config(peer, Records::new(domain, peer, refused), table);
    table.set_mode(Some(if serves { kad::Mode::Server } else { kad::Mode::Client }));
    // News are signed by whom they are about, and the same from every peer: neither author nor number is of any use.
    let gossip = gossipsub::ConfigBuilder::default()
        .validate_messages()
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .message_id_fn(|message| gossipsub::MessageId::from(Sha256::digest(&message.data).to_vec()))
        .max_transmit_size(MAX_NEWS_BYTES)
        .heartbeat_initial_delay(GOSSIP_AFTER)
        .heartbeat_interval(GOSSIP_EVERY)
        // Offers go to a few, however many are connected: they cost more than the news themselves.
        .gossip_factor(0.0)
        .history_gossip(OFFERED)
        .history_length(KEPT)
        .build()?;
    let mut gossip = gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, gossip)?;
    let (scores, thresholds) = scores(&domain);
    gossip.with_peer_score(scores, thresholds)?;
    gossip.subscribe(&topic(&domain))?;
    let identity =
        identify::Config::new(IDENTIFY.into(), key.public()).with_agent_version(format!("ncn/{}", env!("CARGO_PKG_VERSION")));
    let support = if serves { request_response::ProtocolSupport::Full } else { request_response::ProtocolSupport::Outbound };
    let asking =
        request_response::Config::default().with_request_timeout(ANSWER_TIMEOUT).with_max_concurrent_streams(MAX_QUESTIONS);
    Ok(Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        shares: Shares::default(),
        identify: identify::Behaviour::new(identity),
        ping: ping::Behaviour::default(),
        table,
        gossip,
        questions: request_response::Behaviour::with_codec(Frames::default(), [(ASK, support)], asking),
    })
}
