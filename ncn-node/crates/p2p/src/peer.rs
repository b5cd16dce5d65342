//! A node of the peer-to-peer network: one task has the connections, everything else asks it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{self, MessageAcceptance, MessageId},
    identify,
    identity::Keypair,
    kad::{self, GetRecordOk, QueryId, QueryResult, Quorum, Record, RecordKey},
    multiaddr::Protocol,
    request_response::{self, OutboundRequestId, ResponseChannel},
    swarm::SwarmEvent,
};
use ncn_core::{
    Domain, RegistryError,
    membership::{News, Source},
};
use ncn_wire::{decode, proto};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    PeerError,
    frames::Frame,
    records, shares,
    swarm::{self, Behaviour, BehaviourEvent},
};

/// What waits for the task that has the connections.
const QUEUE: usize = 256;
/// How many news are judged, and questions answered, at once.
const MAX_HEARING: usize = 64;
const MAX_ANSWERING: usize = 64;
/// How many questions to others wait for their answers, and how many records are looked up, at once.
const MAX_ASKED: usize = 4_096;
const MAX_WANTED: usize = 16;
/// How often peers to begin with are called that are not there, as long as there is no other one.
const REDIAL: Duration = Duration::from_secs(1);
/// With fewer peers than this, a node calls more of those that it knows: gossip needs some neighbours.
const FEW: usize = 8;

/// What a peer does with what comes in.
#[async_trait]
pub(crate) trait Inbox: Send + Sync {
    /// Takes news in that this peer, of this network, has passed on, and says whether others are to hear them.
    async fn hear(&self, news: News, from: PeerId, source: Source) -> MessageAcceptance;

    /// Answers a question.
    async fn answer(&self, question: proto::Question) -> proto::Answer;

    /// Another peer is there that serves.
    fn met(&self, peer: PeerId);
}

/// Where a peer listens, and whom it knows.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// Its key; [`PeerId`] is the hash of its public half.
    pub key: Keypair,
    /// Where it listens.
    pub listen: Vec<Multiaddr>,
    /// How others call it, where that is not one of the addresses at which it listens.
    pub announce: Option<Multiaddr>,
    /// Peers to begin with, each with its id: `/ip4/192.0.2.1/tcp/8828/p2p/12D3...`.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether it serves: a light client only asks.
    pub serves: bool,
}

/// A node of the network. Clones are the same node.
#[derive(Clone)]
pub struct Peer {
    id: PeerId,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<PeerStatus>,
    refused: Arc<Refused>,
}

/// What a peer knows of its network.
#[derive(Clone, Debug, Default)]
pub struct PeerStatus {
    /// Where it can be called, with its id.
    pub addresses: Vec<Multiaddr>,
    /// With whom it is connected.
    pub peers: Vec<PeerId>,
}

/// What a peer has refused since it was started, before anything was made of it.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Messages that it could not read.
    pub(crate) malformed: AtomicU64,
    /// Messages for which there was no room.
    pub(crate) busy: AtomicU64,
    /// Records of the distributed hash table.
    pub(crate) records: AtomicU64,
}

/// One more.
pub(crate) fn count(refused: &AtomicU64) {
    refused.fetch_add(1, Ordering::Relaxed);
}

enum Command {
    Tell(Vec<u8>),
    Ask { peer: PeerId, addresses: Vec<Multiaddr>, question: Vec<u8>, answer: oneshot::Sender<Result<Frame, RegistryError>> },
    Put(Record),
    Get(RecordKey, oneshot::Sender<Option<News>>),
}

/// A peer that does not run yet: it is known whom it will be.
pub(crate) struct Prepared {
    pub(crate) peer: Peer,
    pub(crate) serves: bool,
    task: Task,
}

impl Peer {
    /// Prepares a peer of the network that this domain is of.
    pub(crate) fn prepare(options: PeerOptions, domain: Domain) -> Result<Prepared, PeerError> {
        let id = options.key.public().to_peer_id();
        let refused = Arc::<Refused>::default();
        let mut swarm = swarm::build(options.key, domain, options.serves, &refused)?;
        if let Some(address) = &options.announce {
            swarm.add_external_address(address.clone());
        }
        for address in options.listen {
            let refused = |error: String| PeerError::Listen { address: address.clone(), problem: error };
            swarm.listen_on(address.clone()).map_err(|error| refused(error.to_string()))?;
        }
        let mut bootstrap = HashMap::new();
        for address in options.bootstrap {
            let peer = peer_of(&address).ok_or_else(|| PeerError::Bootstrap(address.clone()))?;
            swarm.behaviour_mut().table.add_address(&peer, address.clone());
            bootstrap.insert(peer, address);
        }
        let (commands, inbound) = mpsc::channel(QUEUE);
        let (report, status) = watch::channel(PeerStatus::default());
        let (done, finished) = mpsc::channel(QUEUE);
        let task = Task {
            swarm,
            domain,
            announce: options.announce,
            bootstrap,
            inbound,
            report,
            done,
            finished,
            asked: HashMap::new(),
            wanted: HashMap::new(),
            serving: HashSet::new(),
            untold: VecDeque::new(),
            refused: refused.clone(),
            hearing: Arc::new(Semaphore::new(MAX_HEARING)),
            answering: Arc::new(Semaphore::new(MAX_ANSWERING)),
        };
        Ok(Prepared { peer: Self { id, commands, status, refused }, serves: options.serves, task })
    }

    /// Who it is.
    pub const fn id(&self) -> PeerId {
        self.id
    }

    /// What it knows of its network now.
    pub fn status(&self) -> PeerStatus {
        self.status.borrow().clone()
    }

    /// How much it has refused, by the reason.
    pub(crate) fn refused(&self) -> [(&'static str, u64); 3] {
        let Refused { malformed, busy, records } = &*self.refused;
        let counts = [("malformed", malformed), ("busy", busy), ("record", records)];
        counts.map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    /// Waits until it can be called somewhere.
    pub async fn listens(&self) -> Vec<Multiaddr> {
        let mut status = self.status.clone();
        let listens = status.wait_for(|status| !status.addresses.is_empty()).await;
        listens.map(|status| status.addresses.clone()).unwrap_or_default()
    }

    /// Tells all others. What the queue has no room for is lost: it comes again.
    pub fn tell(&self, news: News) {
        if self.commands.try_send(Command::Tell(proto::News::from(news).encode_to_vec())).is_err() {
            tracing::warn!("too much news at once: some of it is not told");
        }
    }

    /// Keeps a record where others find it by its key, besides here.
    pub(crate) fn put(&self, key: RecordKey, news: News) {
        let record = Record::new(key, proto::News::from(news).encode_to_vec());
        let _ = self.commands.try_send(Command::Put(record));
    }

    /// Looks a record up, at the nodes whose ids are closest to its key.
    pub(crate) async fn get(&self, key: RecordKey) -> Option<News> {
        let (sender, found) = oneshot::channel();
        self.commands.send(Command::Get(key, sender)).await.ok()?;
        found.await.ok()?
    }

    /// Asks another peer, which is called at these addresses unless it is connected.
    ///
    /// # Errors
    /// [`RegistryError::Unreachable`] when there is no answer; [`RegistryError::Malformed`] when it is malformed; or the error that it
    /// answers.
    pub async fn ask(
        &self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        question: proto::question::Question,
    ) -> Result<proto::answer::Answer, RegistryError> {
        let gone = || RegistryError::Unreachable("this peer has ended".into());
        let question = proto::Question { question: Some(question) }.encode_to_vec();
        let (sender, answer) = oneshot::channel();
        let asking = Command::Ask { peer, addresses, question, answer: sender };
        self.commands.send(asking).await.map_err(|_| gone())?;
        let frame = answer.await.map_err(|_| gone())??;
        let malformed = |problem: String| RegistryError::Malformed(problem);
        let answer: proto::Answer = decode(frame.bytes).map_err(|error| malformed(error.to_string()))?;
        match answer.answer {
            Some(proto::answer::Answer::Error(error)) => {
                Err(serde_json::from_str(&error).unwrap_or_else(|_| malformed("an error that cannot be read".into())))
            }
            Some(answer) => Ok(answer),
            None => Err(malformed("is empty".into())),
        }
    }
}

/// The peer that an address leads to.
pub(crate) fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// Whether only this machine reaches an address.
fn is_loopback(address: &Multiaddr) -> bool {
    shares::ip(address).is_some_and(|ip| ip.is_loopback())
}

impl Prepared {
    /// Runs it, until the handle is dropped.
    pub(crate) fn start(self, inbox: Arc<dyn Inbox>) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(self.task.run(inbox)))
    }
}

/// What was done beside the connections.
enum Done {
    Heard(MessageId, PeerId, MessageAcceptance),
    Answered(ResponseChannel<Frame>, Vec<u8>),
}

struct Task {
    swarm: Swarm<Behaviour>,
    domain: Domain,
    announce: Option<Multiaddr>,
    bootstrap: HashMap<PeerId, Multiaddr>,
    inbound: mpsc::Receiver<Command>,
    report: watch::Sender<PeerStatus>,
    done: mpsc::Sender<Done>,
    finished: mpsc::Receiver<Done>,
    asked: HashMap<OutboundRequestId, oneshot::Sender<Result<Frame, RegistryError>>>,
    wanted: HashMap<QueryId, Wanted>,
    /// What there was nobody to tell yet: the newest of it.
    untold: VecDeque<Vec<u8>>,
    /// Who has said that it serves.
    serving: HashSet<PeerId>,
    refused: Arc<Refused>,
    hearing: Arc<Semaphore>,
    answering: Arc<Semaphore>,
}

/// A record that is looked up, and the newest that was found of it so far.
struct Wanted {
    key: RecordKey,
    found: Option<News>,
    answer: oneshot::Sender<Option<News>>,
}

impl Task {
    async fn run(mut self, inbox: Arc<dyn Inbox>) {
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
        let connected = self.swarm.network_info().num_peers();
        if connected > 0 {
            if connected < FEW {
                self.meet_more();
            }
            return;
        }
        for address in self.bootstrap.values() {
            if let Err(error) = self.swarm.dial(address.clone()) {
                tracing::debug!(%address, %error, "a peer to begin with cannot be called");
            }
        }
    }

    /// Calls some of those that the table knows.
    fn meet_more(&mut self) {
        let known: Vec<PeerId> = self
            .swarm
            .behaviour_mut()
            .table
            .kbuckets()
            .flat_map(|bucket| bucket.iter().map(|entry| *entry.node.key.preimage()).collect::<Vec<_>>())
            .collect();
        let others: Vec<_> = known.into_iter().filter(|peer| !self.swarm.is_connected(peer)).collect();
        // Their order is that of their distance, which is as good as chance.
        for peer in others.iter().step_by((others.len() / FEW).max(1)).take(FEW) {
            let _ = self.swarm.dial(*peer);
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
                self.asked.insert(id, answer);
            }
            Command::Put(record) => {
                if let Err(error) = behaviour.table.put_record(record, Quorum::N(NonZeroUsize::MIN)) {
                    tracing::debug!(%error, "a record is not kept");
                }
            }
            // Each calls some twenty peers: a stranger who asks for what nobody has makes this node busy, and not the network.
            Command::Get(_, answer) if self.wanted.len() >= MAX_WANTED => drop(answer),
            Command::Get(key, answer) => {
                let id = behaviour.table.get_record(key.clone());
                self.wanted.insert(id, Wanted { key, found: None, answer });
            }
        }
    }

    fn finish(&mut self, done: Done) {
        let behaviour = self.swarm.behaviour_mut();
        match done {
            Done::Heard(message, from, acceptance) => {
                behaviour.gossip.report_message_validation_result(&message, &from, acceptance);
            }
            // The peer that asked may be gone.
            Done::Answered(channel, answer) => drop(behaviour.questions.send_response(channel, answer.into())),
        }
    }

    fn handle(&mut self, event: SwarmEvent<BehaviourEvent>, inbox: &Arc<dyn Inbox>) {
        match event {
            SwarmEvent::Behaviour(event) => self.behaviour(event, inbox),
            SwarmEvent::NewListenAddr { .. } | SwarmEvent::ExpiredListenAddr { .. } | SwarmEvent::ConnectionEstablished { .. } => {
                self.report();
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.serving.remove(&peer_id);
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
                    for address in info.listen_addrs {
                        self.swarm.behaviour_mut().table.add_address(&peer_id, address);
                    }
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
                self.hear(propagation_source, message_id, message.data, inbox);
            }
            BehaviourEvent::Questions(request_response::Event::Message { message, .. }) => match message {
                request_response::Message::Request { request, channel, .. } => self.answer(request, channel, inbox),
                request_response::Message::Response { request_id, response } => {
                    if let Some(asked) = self.asked.remove(&request_id) {
                        let _ = asked.send(Ok(response));
                    }
                }
            },
            BehaviourEvent::Questions(request_response::Event::OutboundFailure { request_id, error, .. }) => {
                if let Some(asked) = self.asked.remove(&request_id) {
                    let _ = asked.send(Err(RegistryError::Unreachable(error.to_string())));
                }
            }
            BehaviourEvent::Table(event) => self.table(event),
            _ => {}
        }
    }

    /// Judges news beside the connections. What there is no room for is not passed on by this node.
    fn hear(&mut self, from: PeerId, message: MessageId, news: Vec<u8>, inbox: &Arc<dyn Inbox>) {
        let Ok(news) = decode::<proto::News>(news.into()).and_then(News::try_from) else {
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

    fn answer(&self, question: Frame, channel: ResponseChannel<Frame>, inbox: &Arc<dyn Inbox>) {
        // The peer that asked is told by its stream's end.
        let Ok(place) = self.answering.clone().try_acquire_owned() else {
            count(&self.refused.busy);
            return;
        };
        let (inbox, done) = (inbox.clone(), self.done.clone());
        tokio::spawn(async move {
            let answer = match decode::<proto::Question>(question.bytes.clone()) {
                Ok(asked) => inbox.answer(asked).await,
                Err(error) => crate::within::refusal(&RegistryError::invalid(error.field, error.problem)),
            };
            drop(question);
            let _ = done.send(Done::Answered(channel, answer.encode_to_vec())).await;
            drop(place);
        });
    }

    fn table(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest { request: kad::InboundRequest::PutRecord { record: Some(record), .. } } => {
                // The store has the rules.
                let _ = kad::store::RecordStore::put(self.swarm.behaviour_mut().table.store_mut(), record);
            }
            kad::Event::OutboundQueryProgressed { id, result: QueryResult::GetRecord(result), step, .. } => {
                let Some(wanted) = self.wanted.get_mut(&id) else { return };
                if let Ok(GetRecordOk::FoundRecord(found)) = result
                    && let Some(news) = records::read(&wanted.key, &found.record.value, &self.domain)
                    && wanted.found.as_ref().is_none_or(|known| records::version(&news) > records::version(known))
                {
                    wanted.found = Some(news);
                }
                if step.last
                    && let Some(wanted) = self.wanted.remove(&id)
                {
                    let _ = wanted.answer.send(wanted.found);
                }
            }
            _ => {}
        }
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
