//! What comes in from other peers: news, questions, and what this node has missed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use libp2p::{Multiaddr, PeerId, gossipsub::MessageAcceptance};
use ncn_client::unix_now;
use ncn_core::{
    Address, ApprovedSubnet, B256, NodeRecord, RegistryError, Signed, UnixTime, Validator,
    membership::{News, Source},
};
use ncn_node::registry::RegistryNode;
use ncn_wire::{
    WireError,
    proto::{self, answer::Answer, question::Question},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::{
    peer::{Inbox, Peer},
    records::Entry,
};

/// How many nodes, and how many subnets, are in one answer: it has 16 MiB at the most, a record up to 33 KiB and a subnet up to 516.
const NODES: usize = 128;
const SUBNETS: usize = 16;
/// How long one may take.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(20);
/// How many pages one peer is asked for: more nodes than are kept.
const MAX_PAGES: usize = 1_024;
/// How often a peer is asked for what was missed.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long news travel at the most, in seconds.
const RECENT: u64 = 30;
/// How often one is asked at the most for what was missed.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// What others may judge otherwise who are no liars: clocks differ, and so does what is seen of the chain.
const UNDECIDED: [&str; 11] = [
    "heartbeat.sentAt",
    "record.expiresAt",
    "record.sequence",
    "heartbeat.sequence",
    "departure.sequence",
    "subnet.name",
    "subnet.approvals",
    "pending.sequence",
    "pending.expiresAt",
    "pending.gateway",
    "subnet.version",
];
/// How many news of one node, or of one owner of subnets, are passed on within a second.
const MOST_OF_ONE: u32 = 4;
/// How many of the peers that are met are asked at once: more of them know no more.
const ASKED_AT_FIRST: usize = 3;

/// The validator that a node is. It asks the node in turn: this is where they are parted.
#[derive(Default)]
pub(crate) struct Own(RwLock<Option<Arc<dyn Validator>>>);

impl Own {
    pub(crate) fn get(&self) -> Option<Arc<dyn Validator>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, validator: Option<Arc<dyn Validator>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = validator;
    }
}

/// What comes in from others.
pub(crate) struct Within {
    pub(crate) node: Arc<RegistryNode>,
    pub(crate) validator: Arc<Own>,
    pub(crate) met: mpsc::Sender<Other>,
    pub(crate) budget: Arc<Budget>,
}

/// How many news of each author this node has told in this second: an author can sign as many as it likes.
#[derive(Default)]
pub(crate) struct Budget(Mutex<(UnixTime, HashMap<Address, u32>)>);

impl Budget {
    /// Whether one more is told.
    pub(crate) fn allows(&self, news: &News) -> bool {
        let (second, told) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = unix_now();
        if *second != now {
            (*second, *told) = (now, HashMap::new());
        }
        let count = told.entry(news.author()).or_insert(0);
        *count += 1;
        *count <= MOST_OF_ONE
    }
}

/// Another peer that may be asked.
pub(crate) enum Other {
    /// It has come.
    Met(PeerId),
    /// It knows what this node has missed.
    Knows(PeerId),
}

/// Whether news are so new that they may still be on their way. Sequences are the clock's milliseconds.
fn is_recent(news: &News, now: u64) -> bool {
    let at = match news {
        News::Record(record) => record.message.sequence / 1_000,
        News::Heartbeat(heartbeat) => heartbeat.message.sent_at,
        News::Departure(departure) => departure.message.sequence / 1_000,
        News::Subnet(subnet) => subnet.subnet().version / 1_000,
        News::Pending(pending) => pending.message.sequence / 1_000,
    };
    at.saturating_add(RECENT) >= now
}

/// An error as an answer.
pub(crate) fn refusal(error: &RegistryError) -> proto::Answer {
    proto::Answer { answer: Some(Answer::Error(serde_json::to_string(error).unwrap_or_default())) }
}

impl Within {
    /// Whether what is known already is passed on.
    fn again(&self, news: &News) -> MessageAcceptance {
        match news.verify(&self.node.domain()) {
            _ if !is_recent(news, unix_now()) => MessageAcceptance::Ignore,
            Err(_) => MessageAcceptance::Reject,
            Ok(()) if self.budget.allows(news) => MessageAcceptance::Accept,
            Ok(()) => MessageAcceptance::Ignore,
        }
    }

    async fn judge(&self, question: Question) -> Result<Answer, RegistryError> {
        let invalid = |error: WireError| RegistryError::invalid(error.field, error.problem);
        let validator = || self.validator.get().ok_or_else(|| RegistryError::Refused("this node is no validator".into()));
        Ok(Answer::Approval(match question {
            Question::Preprocessing(request) => validator()?.preprocessing(&request.try_into().map_err(invalid)?).await?.into(),
            Question::Completion(request) => validator()?.completion(&request.try_into().map_err(invalid)?).await?.into(),
            Question::Settlement(request) => validator()?.settlement(&request.try_into().map_err(invalid)?).await?.into(),
            Question::Subnet(subnet) => validator()?.subnet(&subnet.try_into().map_err(invalid)?).await?.into(),
            Question::Known(after) => return Ok(Answer::Known(self.known(&after))),
        }))
    }

    fn known(&self, after: &proto::KnownAfter) -> proto::Known {
        let node = Address::try_from(&*after.node).unwrap_or_default();
        let subnet = B256::try_from(&*after.subnet).unwrap_or_default();
        let (nodes, subnets) = self.node.known((node, subnet), (NODES, SUBNETS));
        proto::Known { nodes: nodes.into_iter().map(Into::into).collect(), subnets: subnets.into_iter().map(Into::into).collect() }
    }
}

#[async_trait]
impl Inbox for Within {
    async fn hear(&self, news: News, from: PeerId, source: Source) -> MessageAcceptance {
        match self.node.hear(news.clone(), source).await {
            Ok(true) if self.budget.allows(&news) => MessageAcceptance::Accept,
            // What this node has learned in another way, its neighbours may not have. It was not looked at any more, so it is now: who passes on
            // what is forged is not listened to.
            Ok(false) => self.again(&news),
            Err(RegistryError::Stale { given, known }) if given == known => self.again(&news),
            Err(RegistryError::Invalid { field, .. }) if UNDECIDED.contains(&&*field) => MessageAcceptance::Ignore,
            Err(RegistryError::Invalid { .. }) => MessageAcceptance::Reject,
            Err(RegistryError::UnknownNode(_)) => {
                // A peer that passes a heartbeat on knows whose it is.
                let _ = self.met.try_send(Other::Knows(from));
                MessageAcceptance::Ignore
            }
            // What is old goes round no more.
            Ok(_) | Err(_) => MessageAcceptance::Ignore,
        }
    }

    async fn keeps(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Signed(News::Subnet(subnet)) => self.node.check_subnet(subnet).await.is_ok(),
            // Anybody can make any number of manifests up.
            Entry::Manifest(digest, _) => self.node.lists(digest),
            Entry::Signed(_) => true,
        }
    }

    async fn answer(&self, question: proto::Question) -> proto::Answer {
        let judged = match question.question {
            Some(question) => self.judge(question).await,
            None => Err(RegistryError::invalid("question", "is missing")),
        };
        match judged {
            Ok(answer) => proto::Answer { answer: Some(answer) },
            Err(error) => refusal(&error),
        }
    }

    fn met(&self, peer: PeerId) {
        // Others will be asked, or this one later.
        let _ = self.met.try_send(Other::Met(peer));
    }
}

/// Asks each peer that is met for what this node has not heard, and one of them again now and then.
pub(crate) async fn catch_up(node: Arc<RegistryNode>, peer: Peer, mut met: mpsc::Receiver<Other>) {
    let mut again = tokio::time::interval(CATCH_UP);
    let (mut last, mut asked, mut learned) = (None, 0, Instant::now());
    loop {
        let is_due = tokio::select! {
            other = met.recv() => match other {
                Some(Other::Met(other)) => {
                    last = Some(other);
                    asked < ASKED_AT_FIRST
                }
                Some(Other::Knows(other)) => {
                    last = Some(other);
                    learned.elapsed() >= ASK_EVERY
                }
                None => return,
            },
            _ = again.tick() => true,
        };
        let Some(other) = last.filter(|_| is_due) else { continue };
        learned = Instant::now();
        match learn(&node, &peer, other).await {
            Ok(()) => asked += 1,
            Err(error) => {
                tracing::debug!(peer = %other, %error, "a peer does not say whom it knows");
                last = None;
            }
        }
    }
}

async fn learn(node: &RegistryNode, peer: &Peer, other: PeerId) -> Result<(), RegistryError> {
    let mut after = proto::KnownAfter::default();
    for _ in 0..MAX_PAGES {
        let before = after.clone();
        let asked = peer.ask(other, Vec::<Multiaddr>::new(), Question::Known(after.clone()));
        let answer = timeout(KNOWN_TIMEOUT, asked).await;
        let Answer::Known(known) = answer.map_err(|_| RegistryError::Unreachable("no answer in time".into()))?? else {
            return Err(RegistryError::Malformed("is no list of nodes".into()));
        };
        let (nodes, subnets) = (known.nodes.len(), known.subnets.len());
        for subnet in known.subnets {
            let subnet: ApprovedSubnet = subnet.try_into().map_err(malformed)?;
            after.subnet = ncn_wire::bytes(subnet.subnet().id());
            take(node, News::Subnet(subnet)).await;
        }
        for record in known.nodes {
            let record: Signed<NodeRecord> = record.try_into().map_err(malformed)?;
            after.node = ncn_wire::bytes(record.message.node);
            take(node, News::Record(record)).await;
        }
        if nodes < NODES && subnets < SUBNETS {
            return Ok(());
        }
        if (&after.node, &after.subnet) <= (&before.node, &before.subnet) {
            return Err(RegistryError::Malformed("begins again".into()));
        }
    }
    Ok(())
}

/// One that is refused hides none of the others.
async fn take(node: &RegistryNode, news: News) {
    match node.hear(news, Source::default()).await {
        Ok(_) | Err(RegistryError::Stale { .. }) => {}
        Err(error) => tracing::debug!(%error, "what a peer knows is refused"),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(error: WireError) -> RegistryError {
    RegistryError::Malformed(error.to_string())
}
