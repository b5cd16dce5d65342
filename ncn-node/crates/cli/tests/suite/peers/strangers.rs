//! A stranger on the libp2p port: what it sends is refused and counted, and others are served.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    PeerId, StreamProtocol, Swarm, SwarmBuilder, gossipsub, identify,
    kad::{self, Quorum, Record, RecordKey, store::MemoryStore},
    noise, request_response,
    swarm::{NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle},
    tcp, yamux,
};
use ncn_core::{Directory as _, Heartbeat, NodeQuery, NodeRecord, membership::News};
use ncn_wire::proto;
use prost::Message as _;

use super::*;

const ASK: StreamProtocol = StreamProtocol::new("/ncn/ask/1");

/// Sends what it is given, and ends the stream where that is said.
#[derive(Clone, Default)]
struct Raw;

type Sent = (Vec<u8>, bool);

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Sent;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<Sent> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>> {
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await?;
        Ok(answer)
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T, sent: Sent) -> io::Result<()> {
        io.write_all(&sent.0).await?;
        if sent.1 { io.close().await } else { io.flush().await }
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(&mut self, _: &StreamProtocol, _: &mut T, _: Vec<u8>) -> io::Result<()> {
        Ok(())
    }
}

#[derive(NetworkBehaviour)]
struct Speaks {
    identify: identify::Behaviour,
    gossip: gossipsub::Behaviour,
    /// Only where it is needed: it finds the other nodes, which are then told directly.
    table: Toggle<kad::Behaviour<MemoryStore>>,
    questions: request_response::Behaviour<Raw>,
}

/// A peer that says what it likes.
struct Stranger {
    swarm: Swarm<Speaks>,
    topic: gossipsub::IdentTopic,
    target: PeerId,
}

impl Stranger {
    /// Connects with a node, and returns once that listens to its news.
    async fn meet(node: &RunningPeerRegistry, trust: &TrustRoot, has_table: bool) -> Self {
        let domain = trust.domain;
        let topic = gossipsub::IdentTopic::new(format!("/ncn/news/1/{}/{}", domain.chain_id, domain.contract));
        let builder = SwarmBuilder::with_new_identity().with_tokio();
        let builder = builder.with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default).unwrap();
        let swarm = builder.with_behaviour(|key| {
            let gossip = gossipsub::ConfigBuilder::default()
                .validation_mode(gossipsub::ValidationMode::Anonymous)
                .message_id_fn(|message| gossipsub::MessageId::from(message.data.clone()))
                .max_transmit_size(4 << 20)
                .build()
                .unwrap();
            let id = key.public().to_peer_id();
            let mut table = kad::Config::new(StreamProtocol::new("/ncn/kad/1"));
            table.set_query_timeout(Duration::from_secs(5));
            Speaks {
                identify: identify::Behaviour::new(identify::Config::new("/ncn/1".into(), key.public())),
                gossip: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, gossip).unwrap(),
                table: has_table.then(|| kad::Behaviour::with_config(id, MemoryStore::new(id), table)).into(),
                questions: request_response::Behaviour::new(
                    [(ASK, request_response::ProtocolSupport::Outbound)],
                    request_response::Config::default().with_request_timeout(Duration::from_mins(1)),
                ),
            }
        });
        let mut swarm = swarm.unwrap().build();
        swarm.behaviour_mut().gossip.subscribe(&topic).unwrap();
        let (target, address) = (node.registry().peer().id(), node.registry().peer().listens().await.remove(0));
        swarm.dial(address.clone()).unwrap();
        if let Some(table) = swarm.behaviour_mut().table.as_mut() {
            table.add_address(&target, address);
        }
        let mut stranger = Self { swarm, topic, target };
        stranger
            .until("it is listened to", |event| matches!(event, SpeaksEvent::Gossip(gossipsub::Event::Subscribed { .. })))
            .await;
        stranger
    }

    async fn until(&mut self, what: &str, mut is_it: impl FnMut(&SpeaksEvent) -> bool) -> SpeaksEvent {
        in_time(what, async {
            loop {
                if let SwarmEvent::Behaviour(event) = self.swarm.select_next_some().await
                    && is_it(&event)
                {
                    return event;
                }
            }
        })
        .await
    }

    /// Does what there is to do, while something else is waited for.
    async fn meanwhile<T>(&mut self, what: &str, waited: impl Future<Output = T>) -> T {
        in_time(what, async {
            let mut waited = std::pin::pin!(waited);
            loop {
                tokio::select! {
                    done = &mut waited => return done,
                    _ = self.swarm.select_next_some() => {}
                }
            }
        })
        .await
    }

    fn say(&mut self, news: Vec<u8>) {
        self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), news).unwrap();
    }

    fn tell(&mut self, news: News) {
        self.say(proto::News::from(news).encode_to_vec());
    }

    fn ask(&mut self, question: Vec<u8>, ends: bool) {
        self.swarm.behaviour_mut().questions.send_request(&self.target, (question, ends));
    }
}

/// How much a node has refused for a reason.
fn refused(node: &RunningPeerRegistry, reason: &str) -> u64 {
    node.status().refused.get(reason).copied().unwrap_or_default()
}

/// A network of which the stranger knows one node.
async fn network(validators: usize, has_table: bool) -> (Peers, Stranger) {
    let peers = Peers::new(validators, 2).await;
    peers.met().await;
    let stranger = Stranger::meet(&peers.nodes[1], peers.trust(), has_table).await;
    (peers, stranger)
}

/// Others are heard as before.
async fn is_served(peers: &Peers, stranger: &mut Stranger) {
    let honest = key();
    peers.nodes[2].registry().register(peers.record(&honest).await).await.unwrap();
    let known = eventually("all know an honest node", async || peers.knowing(&honest).await == peers.nodes.len());
    stranger.meanwhile("all know an honest node", known).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn news_that_are_wrong_are_counted_and_their_teller_is_not_heard_any_more() {
    let (peers, mut stranger) = network(1, false).await;
    let (node, thief, now) = (key(), key(), unix_now());
    let record = |change: fn(&mut NodeRecord)| {
        let (peers, node) = (&peers, &node);
        async move {
            let mut record = peers.record(node).await.message;
            change(&mut record);
            News::Record(peers.sign(record, node).await)
        }
    };
    let good = peers.record(&node).await;
    stranger.tell(News::Record(good.clone()));
    let heard = eventually("all know the node", async || peers.knowing(&node).await == 3);
    stranger.meanwhile("all know the node", heard).await;

    let mut stolen = peers.record(&thief).await;
    stolen.message.node = node.address();
    stolen.message.sequence += 1;
    let beat = Heartbeat { node: node.address(), sequence: now * 1_000 + 5, sent_at: now - 3 * 3_600 };
    let old = NodeRecord { sequence: 1, ..good.message.clone() };
    let wrong = [
        ("record.signature", News::Record(stolen)),
        ("record.expiresAt", record(|record| record.expires_at = 1).await),
        ("record.expiresAt", record(|record| record.expires_at += 48 * 3_600).await),
        ("record.sequence", record(|record| record.sequence += 3_600_000).await),
        ("record", record(|record| record.models = vec![B256::ZERO; 2_000]).await),
        ("heartbeat.sentAt", News::Heartbeat(peers.sign(beat, &node).await)),
        ("sequence", News::Record(peers.sign(old, &node).await)),
    ];
    for (reason, news) in wrong {
        let before = refused(&peers.nodes[1], reason);
        stranger.tell(news);
        let counted = eventually(reason, async || refused(&peers.nodes[1], reason) > before);
        stranger.meanwhile(reason, counted).await;
    }
    // Malformed, and of a size that nobody sends: neither ends the node.
    stranger.say(vec![0xff; 100]);
    let counted = eventually("malformed", async || refused(&peers.nodes[1], "malformed") > 0);
    stranger.meanwhile("malformed", counted).await;
    for number in 0..8_u8 {
        stranger.say(vec![0xff, number]);
    }
    is_served(&peers, &mut stranger).await;
    assert!(peers.nodes.iter().all(|node| refused(node, "malformed") == 0 || node.status().peer == peers.nodes[1].status().peer));
    let malformed = refused(&peers.nodes[1], "malformed");
    assert!(malformed < 9, "its teller was heard for too long: {malformed}");

    // By now nothing counts that it tells.
    let late = key();
    stranger.tell(News::Record(peers.record(&late).await));
    is_served(&peers, &mut stranger).await;
    assert_eq!(peers.knowing(&late).await, 0);
    stranger.say(vec![0xff; 3 << 20]);
    is_served(&peers, &mut stranger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_are_wrong_slow_or_many_leave_others_alone() {
    let (peers, mut stranger) = network(5, false).await;
    let answered = |event: &SpeaksEvent| matches!(event, SpeaksEvent::Questions(_));
    for (question, says) in [(vec![0xff; 64], "message"), (Vec::new(), "question"), (vec![0x22, 3, 0x0a, 1, 9], "")] {
        stranger.ask(question, true);
        let event = stranger.until("an answer", answered).await;
        let SpeaksEvent::Questions(request_response::Event::Message { message, .. }) = event else { panic!("{event:?}") };
        let request_response::Message::Response { response, .. } = message else { panic!("{message:?}") };
        assert!(String::from_utf8_lossy(&response).contains(says), "{response:?}");
    }
    stranger.ask(vec![0; 17 << 20], true);
    let event = stranger.until("it is cut off", answered).await;
    if let SpeaksEvent::Questions(request_response::Event::Message { message, .. }) = event {
        let request_response::Message::Response { response, .. } = message else { panic!("{message:?}") };
        assert!(response.is_empty(), "it is answered by nothing but the stream's end");
    }

    // Questions that never end, and more of them than are answered at once.
    for number in 0..200 {
        stranger.ask(vec![0x22; 1 + number % 2_000], false);
        stranger.ask(vec![0x22, 0], true);
    }
    is_served(&peers, &mut stranger).await;
    let order = Box::pin(conformance::registry(&peers));
    stranger.meanwhile("validators are asked as before", order).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_others_keys_are_not_kept() {
    let (peers, mut stranger) = network(1, true).await;
    let (node, other) = (key(), key());
    let value = proto::News::from(News::Record(peers.record(&node).await)).encode_to_vec();
    let key_of = |node: &DynSigner| RecordKey::from([b"/ncn/node/".as_slice(), node.address().as_slice()].concat());
    let wrong = [(key_of(&node), vec![7; 80]), (key_of(&other), value.clone()), (RecordKey::from(vec![1; 9]), value.clone())];
    for (key, value) in wrong {
        let before = refused(&peers.nodes[1], "record");
        stranger.swarm.behaviour_mut().table.as_mut().unwrap().put_record(Record::new(key, value), Quorum::One).unwrap();
        let counted = eventually("the record is refused", async || refused(&peers.nodes[1], "record") > before);
        stranger.meanwhile("the record is refused", counted).await;
    }
    stranger.swarm.behaviour_mut().table.as_mut().unwrap().put_record(Record::new(key_of(&node), value), Quorum::One).unwrap();
    let found = eventually("a record of its own key is found", async || {
        let query = NodeQuery { node: Some(node.address()), ..NodeQuery::default() };
        !peers.nodes[1].registry().discover(query).await.unwrap().is_empty()
    });
    stranger.meanwhile("a record of its own key is found", found).await;
    is_served(&peers, &mut stranger).await;
}
