//! The task that has a peer's connections.

mod table;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{self, MessageAcceptance, MessageId},
    identify,
    kad::{QueryId, Record, RecordKey},
    request_response::{self, OutboundRequestId, ResponseChannel},
    swarm::{DialError, SwarmEvent, dial_opts::DialOpts},
};
use ncn_core::{Domain, RegistryError, membership::News};
use ncn_wire::{decode, proto};
use prost::Message as _;
use table::Wanted;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    frames::Frame,
    peer::{Command, Inbox, PeerStatus, QUEUE, Refused, count},
    records::Entry,
    shares,
    swarm::{self, Behaviour, BehaviourEvent},
};

/// How many news are judged, and questions answered, at once.
const MAX_HEARING: usize = 64;
const MAX_ANSWERING: usize = 64;
/// How many questions to others wait for their answers at once.
const MAX_ASKED: usize = 4_096;
/// How often peers to begin with are called that are not there, as long as there is no other one.
const REDIAL: Duration = Duration::from_secs(1);
/// With fewer peers than this, a node calls more of those that it knows: gossip needs some neighbours.
const FEW: usize = 8;

/// With more peers than this, a node ends connections that were not used for a while: a lookup calls many peers, and the number of connections
/// does not grow with the network. Neighbours in gossip stay.
const ENOUGH_PEERS: usize = 24;
const UNUSED: Duration = Duration::from_secs(10);
/// How many it ends in a second.
const ENDED_AT_ONCE: usize = 8;

/// When a peer was last asked, or has asked, and how many of these questions are open.
struct Use {
    last: Instant,
    open: usize,
}

/// Whether only this machine reaches an address.
fn is_loopback(address: &Multiaddr) -> bool {
    shares::ip(address).is_some_and(|ip| ip.is_loopback())
}

/// What was done beside the connections.
enum Done {
    Heard(MessageId, PeerId, MessageAcceptance),
    Answered(PeerId, ResponseChannel<Frame>, Vec<u8>),
    Considered(Record, Box<Entry>),
}

pub(crate) struct Task {
    swarm: Swarm<Behaviour>,
    domain: Domain,
    announce: Option<Multiaddr>,
    bootstrap: HashMap<PeerId, Vec<Multiaddr>>,
    /// Those of them that could not be called, of which was told.
    missed: HashSet<PeerId>,
    inbound: mpsc::Receiver<Command>,
    report: watch::Sender<PeerStatus>,
    done: mpsc::Sender<Done>,
    finished: mpsc::Receiver<Done>,
    asked: HashMap<OutboundRequestId, (PeerId, oneshot::Sender<Result<Frame, RegistryError>>)>,
    used: HashMap<PeerId, Use>,
    wanted: HashMap<QueryId, Wanted>,
    putting: HashSet<QueryId>,
    /// When what was brought here was put into the hash table.
    put_at: HashMap<RecordKey, Instant>,
    /// What there was nobody to tell yet: the newest of it.
    untold: VecDeque<Vec<u8>>,
    /// Who has said that it serves.
    serving: HashSet<PeerId>,
    refused: Arc<Refused>,
    hearing: Arc<Semaphore>,
    answering: Arc<Semaphore>,
}

impl Task {
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        domain: Domain,
        announce: Option<Multiaddr>,
        bootstrap: HashMap<PeerId, Vec<Multiaddr>>,
        (inbound, report): (mpsc::Receiver<Command>, watch::Sender<PeerStatus>),
        refused: Arc<Refused>,
    ) -> Self {
        let (done, finished) = mpsc::channel(QUEUE);
        Self {
            swarm,
            domain,
            announce,
            bootstrap,
            missed: HashSet::new(),
            inbound,
            report,
            done,
            finished,
            asked: HashMap::new(),
            used: HashMap::new(),
            wanted: HashMap::new(),
            putting: HashSet::new(),
            put_at: HashMap::new(),
            serving: HashSet::new(),
            untold: VecDeque::new(),
            refused,
            hearing: Arc::new(Semaphore::new(MAX_HEARING)),
            answering: Arc::new(Semaphore::new(MAX_ANSWERING)),
        }
    }

    pub(crate) async fn run(mut self, inbox: Arc<dyn Inbox>) {
        let mut redial = tokio::time::interval(REDIAL);
        loop {
            tokio::select! {
                command = self.inbound.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some(done) = self.finished.recv() => self.finish(done),
                event = self.swarm.select_next_some() => self.handle(event, &inbox),
                _ = redial.tick() => self.redial(),
            }
        }
    }

    /// Calls others, while there are few.
    fn redial(&mut self) {
        match self.swarm.network_info().num_peers() {
            0 => {}
            1..FEW => return self.meet_more(),
            FEW..=ENOUGH_PEERS => return,
            many => return self.part(many - ENOUGH_PEERS),
        }
        for (peer, addresses) in &self.bootstrap {
            if let Err(error) = self.swarm.dial(DialOpts::peer_id(*peer).addresses(addresses.clone()).build()) {
                tracing::debug!(%peer, %error, "a peer to begin with is not called");
            }
        }
    }

    /// Ends so many connections, if there are as many that were not used for a while. A light client has few, and would call again.
    fn part(&mut self, many: usize) {
        let neighbours: HashSet<PeerId> =
            self.swarm.behaviour().gossip.mesh_peers(&swarm::topic(&self.domain).hash()).copied().collect();
        let is_unused = |peer: &&PeerId| {
            !neighbours.contains(peer)
                && self.serving.contains(peer)
                && !self.bootstrap.contains_key(peer)
                && self.used.get(peer).is_none_or(|used| used.open == 0 && used.last.elapsed() > UNUSED)
        };
        let unused: Vec<_> = self.swarm.connected_peers().filter(is_unused).take(many.min(ENDED_AT_ONCE)).copied().collect();
        for peer in unused {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn use_of(&mut self, peer: PeerId) -> &mut Use {
        self.used.entry(peer).or_insert_with(|| Use { last: Instant::now(), open: 0 })
    }

    fn use_begins(&mut self, peer: PeerId) {
        self.use_of(peer).open += 1;
    }

    /// Nothing is noted of a peer that has gone meanwhile, or could not be called.
    fn use_ends(&mut self, peer: &PeerId) {
        if !self.swarm.is_connected(peer) {
            self.used.remove(peer);
        } else if let Some(used) = self.used.get_mut(peer) {
            *used = Use { last: Instant::now(), open: used.open.saturating_sub(1) };
        }
    }

    fn command(&mut self, command: Command) {
        let domain = self.domain;
        let behaviour = self.swarm.behaviour_mut();
        match command {
            Command::Tell(news) => match behaviour.gossip.publish(swarm::topic(&domain), news.clone()) {
                Ok(_) | Err(gossipsub::PublishError::Duplicate) => {}
                Err(error) => {
                    tracing::debug!(%error, "nobody is told yet");
                    self.untold.push_back(news);
                    if self.untold.len() > QUEUE {
                        self.untold.pop_front();
                    }
                }
            },
            Command::Ask { answer, .. } if self.asked.len() >= MAX_ASKED => {
                let _ = answer.send(Err(RegistryError::Overloaded(format!("{MAX_ASKED} questions wait for an answer"))));
            }
            Command::Ask { peer, addresses, question, answer } => {
                let id = behaviour.questions.send_request_with_addresses(&peer, question.into(), addresses);
                self.asked.insert(id, (peer, answer));
                self.use_begins(peer);
            }
            Command::Put(record) => self.put(record),
            Command::Get(key, answer) => self.get(key, answer),
        }
    }

    fn finish(&mut self, done: Done) {
        let behaviour = self.swarm.behaviour_mut();
        match done {
            Done::Heard(message, from, acceptance) => {
                behaviour.gossip.report_message_validation_result(&message, &from, acceptance);
            }
            Done::Considered(record, entry) => drop(behaviour.table.store_mut().admit(record, *entry)),
            // The peer that asked may be gone.
            Done::Answered(peer, channel, answer) => {
                drop(behaviour.questions.send_response(channel, answer.into()));
                self.use_ends(&peer);
            }
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>, inbox: &Arc<dyn Inbox>) {
        match event {
            SwarmEvent::Behaviour(event) => self.behaviour(event, inbox),
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                self.use_of(peer_id).last = Instant::now();
                self.report();
            }
            SwarmEvent::NewListenAddr { .. } | SwarmEvent::ExpiredListenAddr { .. } => self.report(),
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                if self.bootstrap.contains_key(&peer) && self.missed.insert(peer) {
                    tracing::warn!(%peer, %error, "a peer to begin with cannot be called: it is tried again");
                }
                if matches!(error, DialError::Transport(_)) {
                    self.forget(&peer);
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.serving.remove(&peer_id);
                self.used.remove(&peer_id);
                self.report();
            }
            _ => {}
        }
    }

    fn behaviour(&mut self, event: BehaviourEvent, inbox: &Arc<dyn Inbox>) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                let serves = info.protocols.contains(&swarm::ASK);
                if serves && self.serving.insert(peer_id) {
                    self.note_addresses(peer_id, info.listen_addrs);
                    inbox.met(peer_id);
                }
            }
            BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. }) => {
                // There is somebody to tell now.
                for news in std::mem::take(&mut self.untold) {
                    self.command(Command::Tell(news));
                }
            }
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.hear(propagation_source, message_id, &message.data, inbox);
            }
            BehaviourEvent::Questions(request_response::Event::Message { peer, message, .. }) => match message {
                request_response::Message::Request { request, channel, .. } => self.answer(peer, request, channel, inbox),
                request_response::Message::Response { request_id, response } => self.answered(request_id, Ok(response)),
            },
            BehaviourEvent::Questions(request_response::Event::OutboundFailure { request_id, error, .. }) => {
                self.answered(request_id, Err(RegistryError::Unreachable(error.to_string())));
            }
            BehaviourEvent::Table(event) => self.table(event, inbox),
            _ => {}
        }
    }

    /// Judges news beside the connections. What there is no room for is not passed on by this node.
    fn hear(&mut self, from: PeerId, message: MessageId, news: &[u8], inbox: &Arc<dyn Inbox>) {
        // One message has one form: otherwise the same news could be told in endless ones.
        let is_canonical = |read: &News| proto::News::from(read.clone()).encode_to_vec() == news;
        let read = decode::<proto::News>(news.to_vec().into()).and_then(News::try_from);
        let Some(news) = read.ok().filter(is_canonical) else {
            count(&self.refused.malformed);
            return self.finish(Done::Heard(message, from, MessageAcceptance::Reject));
        };
        let Ok(place) = self.hearing.clone().try_acquire_owned() else {
            // Not its teller's fault.
            count(&self.refused.busy);
            return self.finish(Done::Heard(message, from, MessageAcceptance::Ignore));
        };
        let (inbox, done, source) = (inbox.clone(), self.done.clone(), self.swarm.behaviour().shares.source(&from));
        tokio::spawn(async move {
            let acceptance = inbox.hear(news, from, source).await;
            let _ = done.send(Done::Heard(message, from, acceptance)).await;
            drop(place);
        });
    }

    fn answered(&mut self, request: OutboundRequestId, answer: Result<Frame, RegistryError>) {
        if let Some((peer, asked)) = self.asked.remove(&request) {
            let _ = asked.send(answer);
            self.use_ends(&peer);
        }
    }

    fn answer(&mut self, peer: PeerId, question: Frame, channel: ResponseChannel<Frame>, inbox: &Arc<dyn Inbox>) {
        // The peer that asked is told by its stream's end.
        let Ok(place) = self.answering.clone().try_acquire_owned() else {
            count(&self.refused.busy);
            return;
        };
        self.use_begins(peer);
        let (inbox, done) = (inbox.clone(), self.done.clone());
        tokio::spawn(async move {
            let answer = match decode::<proto::Question>(question.bytes.clone()) {
                Ok(asked) => inbox.answer(asked).await,
                Err(error) => crate::within::refusal(&RegistryError::invalid(error.field, error.problem)),
            };
            drop(question);
            let _ = done.send(Done::Answered(peer, channel, answer.encode_to_vec())).await;
            drop(place);
        });
    }

    fn report(&mut self) {
        let id = *self.swarm.local_peer_id();
        // Who announces an address is called there. Without one, what other machines may reach comes first.
        let mut listening: Vec<_> = self.swarm.listeners().cloned().collect();
        listening.sort_by_key(is_loopback);
        let known = self.announce.iter().cloned().chain(listening);
        let addresses = known.map(|address| address.with_p2p(id).unwrap_or_else(|address| address)).collect();
        let peers = self.swarm.connected_peers().copied().collect();
        self.report.send_replace(PeerStatus { addresses, peers });
    }
}
