//! A node of the peer-to-peer network: one task has the connections, everything else asks it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use libp2p::{
    Multiaddr, PeerId,
    gossipsub::MessageAcceptance,
    identity::Keypair,
    kad::{Record, RecordKey},
    multiaddr::Protocol,
};
use ncn_core::{
    Domain, RegistryError,
    membership::{News, Source},
};
use ncn_wire::{decode, proto};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    PeerError,
    frames::Frame,
    records::Entry,
    swarm::{self, Ways},
    task::Task,
};

/// What waits for the task that has the connections.
pub(crate) const QUEUE: usize = 256;
/// What a peer does with what comes in.
#[async_trait]
pub(crate) trait Inbox: Send + Sync {
    /// Takes news in that this peer, of this network, has passed on, and says whether others are to hear them.
    async fn hear(&self, news: News, from: PeerId, source: Source) -> MessageAcceptance;

    /// Answers a question.
    async fn answer(&self, question: proto::Question) -> proto::Answer;

    /// Whether what somebody else puts into the hash table is to be kept there.
    async fn keeps(&self, entry: &Entry) -> bool;

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
    /// At how many addresses it is called at least, once it listens.
    listening: usize,
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

pub(crate) enum Command {
    Tell(Vec<u8>),
    Ask { peer: PeerId, addresses: Vec<Multiaddr>, question: Vec<u8>, answer: oneshot::Sender<Result<Frame, RegistryError>> },
    Put(Record),
    Get(RecordKey, oneshot::Sender<Result<Vec<Entry>, RegistryError>>),
}

/// A peer that does not run yet: it is known whom it will be.
pub(crate) struct Prepared {
    pub(crate) peer: Peer,
    pub(crate) serves: bool,
    task: Task,
}

impl Peer {
    /// Prepares a peer of the network that this domain is of.
    pub(crate) fn prepare(options: PeerOptions, domain: Domain, ways: &Ways) -> Result<Prepared, PeerError> {
        let id = options.key.public().to_peer_id();
        let refused = Arc::<Refused>::default();
        let mut swarm = swarm::build(options.key, domain, options.serves, &refused, ways)?;
        let announce = options.announce.map(|address| announced(&address, id)).transpose()?;
        if let Some(address) = &announce {
            swarm.add_external_address(address.clone());
        }
        let listening = options.listen.len() + usize::from(announce.is_some());
        for address in options.listen {
            let refused = |error: String| PeerError::Listen { address: address.clone(), problem: error };
            swarm.listen_on(address.clone()).map_err(|error| refused(error.to_string()))?;
        }
        let mut bootstrap: HashMap<PeerId, Vec<Multiaddr>> = HashMap::new();
        for address in options.bootstrap {
            let peer = peer_of(&address).ok_or_else(|| PeerError::Bootstrap(address.clone()))?;
            // A list that all nodes have in common has each of them in it.
            if peer != id {
                swarm.behaviour_mut().table.add_address(&peer, address.clone());
                bootstrap.entry(peer).or_default().push(address);
            }
        }
        let (commands, inbound) = mpsc::channel(QUEUE);
        let (report, status) = watch::channel(PeerStatus::default());
        let task = Task::new(swarm, domain, announce, bootstrap, (inbound, report), refused.clone());
        Ok(Prepared { peer: Self { id, commands, status, listening, refused }, serves: options.serves, task })
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

    /// Waits until it can be called wherever it is to listen.
    pub async fn listens(&self) -> Vec<Multiaddr> {
        let mut status = self.status.clone();
        let listens = status.wait_for(|status| status.addresses.len() >= self.listening).await;
        listens.map(|status| status.addresses.clone()).unwrap_or_default()
    }

    /// Tells all others. What the queue has no room for is lost: it comes again.
    pub fn tell(&self, news: News) {
        if self.commands.try_send(Command::Tell(proto::News::from(news).encode_to_vec())).is_err() {
            tracing::warn!("too much news at once: some of it is not told");
        }
    }

    /// Keeps a record where others find it by its key, besides here.
    pub(crate) fn put(&self, entry: Entry) {
        let _ = self.commands.try_send(Command::Put(entry.into()));
    }

    /// Looks a record up, at the nodes whose ids are closest to its key. Returns what differs of what they have given, newest first.
    pub(crate) async fn get(&self, key: RecordKey) -> Result<Vec<Entry>, RegistryError> {
        let gone = || RegistryError::Unreachable("this peer has ended".into());
        let (sender, found) = oneshot::channel();
        self.commands.send(Command::Get(key, sender)).await.map_err(|_| gone())?;
        found.await.map_err(|_| gone())?
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

/// An address that leads to this peer, without its id.
fn announced(address: &Multiaddr, id: PeerId) -> Result<Multiaddr, PeerError> {
    let refuse = |problem: &str| Err(PeerError::Announce { address: address.clone(), problem: problem.into() });
    let mut parts: Vec<_> = address.iter().collect();
    if let Some(Protocol::P2p(named)) = parts.last() {
        if *named != id {
            return refuse("names another peer");
        }
        parts.pop();
    }
    match &*parts {
        [Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_), Protocol::Tcp(_)]
        | [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Udp(_), Protocol::QuicV1]
        | [Protocol::Memory(_)] => Ok(parts.into_iter().collect()),
        _ => refuse("is no address of a registry node: write /ip4/ADDRESS/tcp/PORT"),
    }
}

impl Prepared {
    /// Runs it, until the handle is dropped.
    pub(crate) fn start(self, inbox: Arc<dyn Inbox>) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(self.task.run(inbox)))
    }
}
