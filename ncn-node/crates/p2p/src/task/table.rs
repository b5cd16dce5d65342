//! What a node does with the distributed hash table: whom it notes there, what it brings to others, and what it looks up.

use std::{
    cmp::Reverse,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{self, GetRecordOk, QueryResult, Quorum, Record, RecordKey, store::RecordStore as _},
};
use ncn_core::RegistryError;
use tokio::sync::oneshot;

use super::{Done, FEW, Task};
use crate::{
    peer::{Inbox, count},
    records::{self, Entry},
    shares,
    swarm::Behaviour,
};

/// When a node looks at its table, it looks for those near to itself, whom few others know, and for so many that are near to each of a few
/// random keys. Kademlia has it look for the twenty nearest to a key of each distance: nearly all nodes there are, in a network of hundreds.
/// The table knows more of them as they call, and with each lookup.
const FAR_KEYS: usize = 2;
const FAR_NODES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);
/// How many records are looked up at once.
const MAX_WANTED: usize = 16;
/// How many good copies of a record end its lookup: one of them may be old.
const ENOUGH: usize = 3;
/// How many addresses of one peer are noted.
const MAX_ADDRESSES: usize = 4;
/// How many records are brought to others at once; what comes meanwhile they hear by gossip, and find here.
const MAX_PUTTING: usize = 32;
/// How long a record is not put again, and of how many that is remembered.
const PUT_AGAIN: Duration = Duration::from_secs(20);
const MAX_PUT: usize = 4_096;

/// A record that is looked up, and what was found of it so far that differs: one of each node's at the most, so [`ENOUGH`] bounds it.
pub(super) struct Wanted {
    key: RecordKey,
    found: Vec<Entry>,
    /// How many nodes have given a good one.
    copies: usize,
    answer: Found,
}

/// Who waits for it.
type Found = oneshot::Sender<Result<Vec<Entry>, RegistryError>>;

/// How much may be looked up for this key to be, too: strangers ask for manifests more easily than for nodes and subnets.
fn most_wanted(key: &RecordKey) -> usize {
    if records::is_manifest(key) { MAX_WANTED / 2 } else { MAX_WANTED }
}

impl Task {
    /// Calls some of those that the table knows.
    pub(super) fn meet_more(&mut self) {
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

    /// Notes where a peer says that it is called: a few of its addresses, and only where it is seen to be. Otherwise this node could be made to
    /// call anybody.
    pub(super) fn note_addresses(&mut self, peer: PeerId, said: Vec<Multiaddr>) {
        let Behaviour { shares, table, .. } = self.swarm.behaviour_mut();
        let seen = shares.ip(&peer);
        // With its id, as the table has them.
        let said = said.into_iter().filter(|address| shares::ip(address) == seen).filter_map(|address| address.with_p2p(peer).ok());
        let said: Vec<_> = said.take(MAX_ADDRESSES).collect();
        let bucket = table.kbucket(peer);
        let entry = bucket.as_ref().and_then(|bucket| bucket.iter().find(|entry| *entry.node.key.preimage() == peer));
        let is_full = entry.is_none() && bucket.as_ref().is_some_and(|bucket| bucket.num_entries() >= kad::K_VALUE.get());
        let known: Vec<Multiaddr> = entry.map(|entry| entry.node.value.iter().cloned().collect()).unwrap_or_default();
        if is_full {
            return;
        }
        for address in said.iter().filter(|address| !known.contains(address)) {
            table.add_address(&peer, address.clone());
        }
        // Those of earlier connections do not add up. A peer is not removed for that: whenever one comes, the whole table is looked through.
        let given = self.bootstrap.get(&peer).map(Vec::as_slice).unwrap_or_default();
        for address in known.iter().filter(|address| !said.contains(address) && !given.contains(address)) {
            table.remove_address(&peer, address);
        }
    }

    /// Has a peer that cannot be called make room for another one, unless it may be this node that can call nobody.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        if !self.bootstrap.contains_key(peer) && self.swarm.network_info().num_peers() > 0 {
            self.swarm.behaviour_mut().table.remove_peer(peer);
        }
    }

    /// Brings a record to those nodes that keep it: the same one not again and again.
    pub(super) fn put(&mut self, record: Record) {
        let table = &mut self.swarm.behaviour_mut().table;
        let is_kept = table.store_mut().get(&record.key).is_some_and(|kept| kept.value == record.value);
        if is_kept && self.put_at.get(&record.key).is_some_and(|at| at.elapsed() < PUT_AGAIN) {
            return;
        }
        if self.put_at.len() >= MAX_PUT {
            self.put_at.retain(|_, at| at.elapsed() < PUT_AGAIN);
        }
        if self.put_at.len() < MAX_PUT {
            self.put_at.insert(record.key.clone(), Instant::now());
        }
        let put = if self.putting.len() < MAX_PUTTING {
            let put = table.put_record(record, Quorum::N(NonZeroUsize::MIN));
            put.map(|query| {
                self.putting.insert(query);
            })
        } else {
            table.store_mut().put(record)
        };
        if let Err(error) = put {
            tracing::debug!(%error, "a record is not kept");
        }
    }

    /// Looks a record up. Each lookup calls some twenty peers: a stranger who asks for what nobody has makes this node busy, and not the network.
    pub(super) fn get(&mut self, key: RecordKey, answer: Found) {
        if self.wanted.len() >= most_wanted(&key) {
            let _ = answer.send(Err(RegistryError::Overloaded("too much is looked up".into())));
            return;
        }
        let id = self.swarm.behaviour_mut().table.get_record(key.clone());
        self.wanted.insert(id, Wanted { key, found: Vec::new(), copies: 0, answer });
    }

    /// Keeps a record that another node has put here, if it is good.
    fn consider(&self, record: Record, inbox: &Arc<dyn Inbox>) {
        let Some(entry) = records::read(&record.key, &record.value, &self.domain) else { return count(&self.refused.records) };
        let Ok(place) = self.hearing.clone().try_acquire_owned() else { return count(&self.refused.busy) };
        let (inbox, done, refused) = (inbox.clone(), self.done.clone(), self.refused.clone());
        tokio::spawn(async move {
            if inbox.keeps(&entry).await {
                let _ = done.send(Done::Considered(record, Box::new(entry))).await;
            } else {
                count(&refused.records);
            }
            drop(place);
        });
    }

    pub(super) fn table(&mut self, event: kad::Event, inbox: &Arc<dyn Inbox>) {
        match event {
            kad::Event::InboundRequest { request: kad::InboundRequest::PutRecord { record: Some(record), .. } } => {
                self.consider(record, inbox);
            }
            kad::Event::OutboundQueryProgressed { id, result: QueryResult::Bootstrap(_), step, .. } => {
                let table = &mut self.swarm.behaviour_mut().table;
                if let Some(mut next) = table.query_mut(&id) {
                    next.finish();
                }
                for _ in 0..if step.last { FAR_KEYS } else { 0 } {
                    table.get_n_closest_peers(PeerId::random(), FAR_NODES);
                }
            }
            kad::Event::OutboundQueryProgressed { id, result: QueryResult::PutRecord(_), .. } => {
                self.putting.remove(&id);
            }
            kad::Event::OutboundQueryProgressed { id, result: QueryResult::GetRecord(result), step, .. } => {
                let Some(wanted) = self.wanted.get_mut(&id) else { return };
                if let Ok(GetRecordOk::FoundRecord(found)) = result
                    && let Some(entry) = records::read(&wanted.key, &found.record.value, &self.domain)
                {
                    wanted.copies += 1;
                    if !wanted.found.contains(&entry) {
                        wanted.found.push(entry);
                    }
                }
                let is_over = step.last || wanted.copies >= ENOUGH;
                if let Some(mut wanted) = is_over.then(|| self.wanted.remove(&id)).flatten() {
                    wanted.found.sort_by_key(|entry| Reverse(records::version(entry)));
                    let _ = wanted.answer.send(Ok(wanted.found));
                    if let Some(mut query) = self.swarm.behaviour_mut().table.query_mut(&id) {
                        query.finish();
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use async_trait::async_trait;
    use futures::StreamExt as _;
    use libp2p::{gossipsub::MessageAcceptance, identity::Keypair, swarm::SwarmEvent};
    use ncn_core::{
        Address, Domain,
        membership::{News, Source},
    };
    use ncn_wire::proto;
    use tokio::{
        sync::{mpsc, watch},
        time::timeout,
    };

    use super::*;
    use crate::swarm::{self, Ways};

    struct Silent;

    #[async_trait]
    impl Inbox for Silent {
        async fn hear(&self, _: News, _: PeerId, _: Source) -> MessageAcceptance {
            MessageAcceptance::Ignore
        }

        async fn answer(&self, _: proto::Question) -> proto::Answer {
            proto::Answer::default()
        }

        async fn keeps(&self, _: &Entry) -> bool {
            false
        }

        fn met(&self, _: PeerId) {}
    }

    fn task() -> Task {
        let (domain, refused) = (Domain { chain_id: 1, contract: Address::ZERO }, Arc::default());
        let swarm = swarm::build(Keypair::generate_ed25519(), domain, true, &refused, &Ways::default()).unwrap();
        let queues = (mpsc::channel(1).1, watch::channel(crate::peer::PeerStatus::default()).0);
        Task::new(swarm, domain, None, HashMap::new(), queues, refused)
    }

    fn addresses(task: &mut Task, peer: PeerId) -> Vec<String> {
        let bucket = task.swarm.behaviour_mut().table.kbucket(peer).unwrap();
        let entry = bucket.iter().find(|entry| *entry.node.key.preimage() == peer);
        entry.map(|entry| entry.node.value.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_peer_that_comes_again_keeps_its_place() {
        let (mut task, peer) = (task(), PeerId::random());
        for at in [7, 7, 7, 8, 8] {
            task.note_addresses(peer, vec![format!("/memory/{at}").parse().unwrap()]);
            assert_eq!(addresses(&mut task, peer), [format!("/memory/{at}/p2p/{peer}")]);
        }
    }

    #[tokio::test]
    async fn a_peer_that_cannot_be_called_makes_room() {
        let inbox: Arc<dyn Inbox> = Arc::new(Silent);
        let (mut task, mut other, dead) = (task(), task(), PeerId::random());
        other.swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let met = async {
            // Nobody listens at port 1.
            task.swarm.behaviour_mut().table.add_address(&dead, "/ip4/127.0.0.1/tcp/1".parse().unwrap());
            task.swarm.dial(dead).unwrap();
            let mut is_over = false;
            while !is_over {
                let event = task.swarm.select_next_some().await;
                is_over = matches!(event, SwarmEvent::OutgoingConnectionError { .. });
                task.handle(event, &inbox);
            }
            assert_eq!(addresses(&mut task, dead).len(), 1, "it may be this node that can call nobody");
            let listens = loop {
                if let SwarmEvent::NewListenAddr { address, .. } = other.swarm.select_next_some().await {
                    break address;
                }
            };
            task.swarm.dial(listens).unwrap();
            while task.swarm.network_info().num_peers() == 0 {
                tokio::select! {
                    event = task.swarm.select_next_some() => task.handle(event, &inbox),
                    event = other.swarm.select_next_some() => other.handle(event, &inbox),
                }
            }
            task.swarm.dial(dead).unwrap();
            while !addresses(&mut task, dead).is_empty() {
                tokio::select! {
                    event = task.swarm.select_next_some() => task.handle(event, &inbox),
                    event = other.swarm.select_next_some() => other.handle(event, &inbox),
                }
            }
        };
        timeout(Duration::from_mins(1), met).await.unwrap();
    }
}
