//! The live membership that a registry node keeps in memory, as a pure table: records in, live nodes and their changes out.

mod kept;
mod news;
mod room;
mod shared;
mod watch;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    ops::Bound,
    sync::Arc,
};

use alloy_primitives::{Address, B256};

use room::{Place, Room};

use crate::{
    ApprovedSubnet, Deregistration, Domain, Heartbeat, NodeQuery, NodeRecord, NodeRole, RegistryError, RequestId, Signed, Subnet,
    UnixTime,
    mempool::{PendingRequests, PendingTable},
};

pub use kept::KnownNode;
pub use news::News;
pub use room::{Origin, Source, Standing};
pub use shared::SharedMembership;
pub use watch::Watch;

/// How often a node sends a heartbeat, in seconds.
pub const HEARTBEAT_SECONDS: u64 = 5;
/// A node that has been silent for this long is not live: three heartbeats missed.
pub const LIVENESS_SECONDS: u64 = 3 * HEARTBEAT_SECONDS;
/// The longest that a record may claim to be good.
pub const MAX_RECORD_SECONDS: u64 = 24 * 60 * 60;
/// How far a node's clock may be off.
pub const CLOCK_SKEW_SECONDS: u64 = 60;

/// Up to how many bytes a subnet's definition counts as small.
pub const SMALL_SUBNET_BYTES: usize = 8 << 10;

/// How much a membership takes in.
#[derive(Clone, Copy, Debug)]
pub struct MembershipLimits {
    /// Nodes.
    pub nodes: usize,
    /// Bytes of all nodes' records.
    pub bytes: usize,
    /// Subnets.
    pub subnets: usize,
    /// Bytes of all those whose definition has more than [`SMALL_SUBNET_BYTES`]: what they take leaves room for the small ones.
    pub subnet_bytes: usize,
    /// Models in one record or subnet.
    pub models: usize,
    /// Gateways of a subnet besides its owner.
    pub gateways: usize,
    /// Bytes of an endpoint or a name.
    pub text: usize,
}

impl Default for MembershipLimits {
    fn default() -> Self {
        Self { nodes: 65_536, bytes: 64 << 20, subnets: 4_096, subnet_bytes: 32 << 20, models: 1_024, gateways: 64, text: 256 }
    }
}

impl MembershipLimits {
    /// Checks what a subnet's definition says of itself.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`], which names what is wrong.
    pub fn subnet(&self, definition: &Subnet, now: UnixTime) -> Result<(), RegistryError> {
        // Otherwise its owner could never define another one.
        check_sequence("subnet.version", definition.version, now)?;
        if definition.name.is_empty() || definition.name.len() > self.text || definition.models.len() > self.models {
            return Err(RegistryError::invalid("subnet", format!("needs a name, and no more than {self:?}")));
        }
        if !definition.split.is_valid() {
            return Err(RegistryError::invalid("subnet.split", "adds up to more than 10,000 basis points"));
        }
        if definition.models.iter().any(|model| model.price.is_free() || model.name.len() > self.text) {
            return Err(RegistryError::invalid("subnet.models", "needs prices above zero and names of reasonable length"));
        }
        if definition.gateways.len() > self.gateways || !definition.gateways.is_sorted_by(|one, next| one < next) {
            let problem = format!("have to be ascending, and no more than {}", self.gateways);
            return Err(RegistryError::invalid("subnet.gateways", problem));
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Member {
    record: Signed<NodeRecord>,
    /// The newest sequence seen: the record's or a heartbeat's.
    sequence: u64,
    last_seen: UnixTime,
    departed: bool,
    /// What was known of where it comes from when its record was taken in.
    origin: Origin,
    /// None while it had to give its place up.
    place: Option<Place>,
    /// As it is reported to watchers: silence and expiry are noticed by [`Membership::sweep`].
    live: bool,
    /// The number of the latest change of `live` or of the record.
    changed: u64,
    /// The number of the latest change of what queries match: role, subnet or models.
    moved: u64,
}

impl Member {
    fn is_live(&self, now: UnixTime) -> bool {
        !self.departed
            && self.place.is_some()
            && self.record.message.expires_at >= now
            && now.saturating_sub(self.last_seen) <= LIVENESS_SECONDS
    }
}

/// Who is on the network.
#[derive(Clone, Debug)]
pub struct Membership {
    domain: Domain,
    bounds: MembershipLimits,
    members: BTreeMap<Address, Member>,
    subnets: BTreeMap<B256, Arc<ApprovedSubnet>>,
    /// Bytes of those that are not small.
    subnet_bytes: usize,
    /// How many subnets offer each model.
    models: HashMap<B256, usize>,
    pending: PendingTable,
    /// The number of changes so far, which is also the number of the latest one.
    changes: u64,
    /// The members by the numbers of their latest changes.
    by_change: BTreeMap<u64, Address>,
    /// The largest number of a change whose member was removed.
    forgotten: u64,
    /// When members were last checked for silence and expiry.
    swept_at: UnixTime,
    room: Room,
}

/// The bytes of a subnet that is not small.
fn large(approved: &ApprovedSubnet) -> usize {
    Some(approved.subnet().kept_bytes()).filter(|bytes| *bytes > SMALL_SUBNET_BYTES).unwrap_or_default()
}

/// A sequence is at most the clock's milliseconds: there is none newer than the largest number, and a node that was made to sign that would
/// be shut out.
pub(crate) fn check_sequence(field: &str, sequence: u64, now: UnixTime) -> Result<(), RegistryError> {
    if sequence / 1_000 > now.saturating_add(CLOCK_SKEW_SECONDS) {
        return Err(RegistryError::invalid(
            field,
            format!("{sequence} is ahead of the clock's milliseconds: set the node's clock"),
        ));
    }
    Ok(())
}

impl Membership {
    /// An empty membership of one network.
    pub fn new(domain: Domain, bounds: MembershipLimits) -> Self {
        Self {
            domain,
            bounds,
            members: BTreeMap::new(),
            subnets: BTreeMap::new(),
            subnet_bytes: 0,
            models: HashMap::new(),
            pending: PendingTable::default(),
            changes: 0,
            by_change: BTreeMap::new(),
            forgotten: 0,
            swept_at: 0,
            room: Room::default(),
        }
    }

    /// Takes a record in. False when it is known already.
    pub fn register(&mut self, record: Signed<NodeRecord>, origin: Origin, now: UnixTime) -> Result<bool, RegistryError> {
        let NodeRecord { node, ref endpoint, ref models, sequence, expires_at, role, .. } = record.message;
        if endpoint.len() > self.bounds.text || models.len() > self.bounds.models {
            return Err(RegistryError::invalid("record", format!("larger than {:?}", self.bounds)));
        }
        if role != NodeRole::Compute && endpoint.is_empty() {
            return Err(RegistryError::invalid("record.endpoint", "is empty: say where the node is called"));
        }
        if expires_at < now || expires_at - now > MAX_RECORD_SECONDS {
            return Err(RegistryError::invalid("record.expiresAt", format!("has to be within {MAX_RECORD_SECONDS} s from now")));
        }
        check_sequence("record.sequence", sequence, now)?;
        if let Some(known) = self.members.get(&node) {
            // A lost answer is repeatable; but the same record again is no sign of life: anyone could send it.
            let is_same = known.record.message == record.message && !known.departed && known.sequence == sequence;
            if is_same && known.place.is_some() {
                return Ok(false);
            }
            if sequence <= known.sequence && !is_same {
                return Err(RegistryError::Stale { given: sequence, known: known.sequence });
            }
        }
        record.verify(&self.domain).map_err(|error| RegistryError::invalid("record.signature", error.to_string()))?;
        let place = self.place(&record, origin);
        self.move_to(node, place, now)?;
        let known = self.members.get(&node);
        let (changed, moved) = known.map_or((0, 0), |known| {
            let (old, new) = (&known.record.message, &record.message);
            let stays = old.role == new.role && old.subnet == new.subnet && old.models == new.models;
            (known.changed, if stays { known.moved } else { self.changes + 1 })
        });
        let member =
            Member { record, sequence, last_seen: now, departed: false, origin, place: Some(place), live: true, changed, moved };
        self.members.insert(node, member);
        self.has_changed(node);
        Ok(true)
    }

    /// Takes a heartbeat in.
    pub fn heartbeat(&mut self, heartbeat: &Signed<Heartbeat>, now: UnixTime) -> Result<(), RegistryError> {
        let Heartbeat { node, sequence, sent_at } = heartbeat.message;
        if sent_at.abs_diff(now) > CLOCK_SKEW_SECONDS {
            return Err(RegistryError::invalid(
                "heartbeat.sentAt",
                format!("is {} s off: set the node's clock", sent_at.abs_diff(now)),
            ));
        }
        check_sequence("heartbeat.sequence", sequence, now)?;
        let domain = self.domain;
        let member = self.newer(node, sequence)?;
        if member.departed || member.record.message.expires_at < now {
            return Err(RegistryError::UnknownNode(node));
        }
        heartbeat.verify(&domain).map_err(|error| RegistryError::invalid("heartbeat.signature", error.to_string()))?;
        (member.sequence, member.last_seen) = (sequence, now);
        // What stands behind it may have come later than its record; and there may be room again for one that had to go.
        let (before, record, origin) = (member.place, member.record.clone(), member.origin);
        let place = self.place(&record, origin);
        if before.is_none_or(|before| before.standing != place.standing) {
            self.move_to(node, place, now)?;
        }
        if let Some(member) = self.members.get_mut(&node).filter(|member| !member.live) {
            member.live = true;
            self.has_changed(node);
        }
        Ok(())
    }

    /// Takes a departure in; false when it is known already. The node stays known as departed until its record expires, so that the record
    /// cannot be replayed.
    pub fn deregister(&mut self, deregistration: &Signed<Deregistration>, now: UnixTime) -> Result<bool, RegistryError> {
        let Deregistration { node, sequence } = deregistration.message;
        check_sequence("departure.sequence", sequence, now)?;
        let domain = self.domain;
        if self.members.get(&node).is_some_and(|member| member.departed && member.sequence == sequence) {
            return Ok(false);
        }
        let member = self.newer(node, sequence)?;
        deregistration.verify(&domain).map_err(|error| RegistryError::invalid("departure.signature", error.to_string()))?;
        (member.sequence, member.departed, member.live) = (sequence, true, false);
        // Also of one that was silent: who keeps the membership has to hear that it has left.
        self.has_changed(node);
        Ok(true)
    }

    fn newer(&mut self, node: Address, sequence: u64) -> Result<&mut Member, RegistryError> {
        let member = self.members.get_mut(&node).ok_or(RegistryError::UnknownNode(node))?;
        if sequence <= member.sequence {
            return Err(RegistryError::Stale { given: sequence, known: member.sequence });
        }
        Ok(member)
    }

    /// The live nodes that fit.
    pub fn discover(&self, query: &NodeQuery, now: UnixTime) -> Vec<Signed<NodeRecord>> {
        let fits = |member: &&Member| member.is_live(now) && query.matches(&member.record.message);
        match query.node {
            Some(node) => self.members.get(&node).filter(fits).map(|member| member.record.clone()).into_iter().collect(),
            None => self.members.values().filter(fits).map(|member| member.record.clone()).collect(),
        }
    }

    /// Takes a subnet's definition in, once the caller has verified it. False when it is known already.
    pub fn register_subnet(&mut self, approved: ApprovedSubnet, now: UnixTime) -> Result<bool, RegistryError> {
        let id = self.definable(approved.subnet(), now)?;
        let is_new = id.is_some();
        if let Some(id) = id {
            self.keep_subnet(id, approved);
        }
        Ok(is_new)
    }

    /// Takes other approvals of a definition in that is known, once the caller has found that those that are known count no more.
    pub fn renew(&mut self, approved: ApprovedSubnet) {
        let id = approved.subnet().id();
        if self.subnets.get(&id).is_some_and(|known| known.definition == approved.definition) {
            self.keep_subnet(id, approved);
        }
    }

    fn keep_subnet(&mut self, id: B256, approved: ApprovedSubnet) {
        for model in &approved.subnet().models {
            *self.models.entry(model.digest).or_default() += 1;
        }
        self.subnet_bytes += large(&approved);
        let before = self.subnets.insert(id, Arc::new(approved));
        self.subnet_bytes -= before.as_deref().map_or(0, large);
        let named = self.subnets.get(&id).map(|approved| &approved.subnet().gateways);
        for gateway in before.iter().flat_map(|before| &before.subnet().gateways) {
            if named.is_none_or(|named| named.binary_search(gateway).is_err()) {
                self.pending.dismiss(gateway, id);
            }
        }
        for model in before.iter().flat_map(|before| &before.subnet().models) {
            if let Entry::Occupied(mut listed) = self.models.entry(model.digest) {
                *listed.get_mut() -= 1;
                if *listed.get() == 0 {
                    listed.remove();
                }
            }
        }
    }

    /// Whether a subnet offers the model with this digest.
    pub fn lists(&self, model: &B256) -> bool {
        self.models.contains_key(model)
    }

    /// The id of a subnet that may be defined so; none when it already is.
    ///
    /// # Errors
    /// As [`Self::register_subnet`].
    pub fn definable(&self, definition: &Subnet, now: UnixTime) -> Result<Option<B256>, RegistryError> {
        self.bounds.subnet(definition, now)?;
        let id = definition.id();
        match self.subnets.get(&id) {
            Some(known) if known.subnet() == definition => Ok(None),
            Some(known) if definition.version <= known.subnet().version => {
                Err(RegistryError::Stale { given: definition.version, known: known.subnet().version })
            }
            None if self.subnets.len() >= self.bounds.subnets => {
                Err(RegistryError::Overloaded(format!("{} subnets are known", self.subnets.len())))
            }
            known => {
                let (bytes, before) = (definition.kept_bytes(), known.map_or(0, |known| large(known)));
                if bytes > SMALL_SUBNET_BYTES && self.subnet_bytes - before + bytes > self.bounds.subnet_bytes {
                    let problem = format!("no room for a subnet of {bytes} bytes: one of {SMALL_SUBNET_BYTES} may have some");
                    return Err(RegistryError::Overloaded(problem));
                }
                Ok(Some(id))
            }
        }
    }

    /// Takes in what a gateway works on. False when it is known already.
    ///
    /// # Errors
    /// [`RegistryError::UnknownSubnet`]; [`RegistryError::Invalid`] when it is no gateway of the subnet, or as [`PendingTable::take`].
    pub fn announce(&mut self, pending: Signed<PendingRequests>, now: UnixTime) -> Result<bool, RegistryError> {
        let PendingRequests { gateway, subnet, .. } = &pending.message;
        if !self.subnet(subnet)?.subnet().has_gateway(gateway) {
            return Err(RegistryError::invalid("pending.gateway", "is no gateway of the subnet"));
        }
        self.pending.take(pending, &self.domain, now)
    }

    /// The announcement of a gateway that works on this request, as long as the subnet names that gateway.
    pub fn pending(&self, subnet: B256, request: RequestId, now: UnixTime) -> Option<&Signed<PendingRequests>> {
        let definition = self.subnets.get(&subnet)?.subnet();
        self.pending.pending(subnet, request, now).find(|pending| definition.has_gateway(&pending.message.gateway))
    }

    /// Which requests gateways work on.
    pub const fn pending_requests(&self) -> &PendingTable {
        &self.pending
    }

    /// A subnet's definition.
    pub fn subnet(&self, id: &B256) -> Result<&ApprovedSubnet, RegistryError> {
        self.subnets.get(id).map(|subnet| &**subnet).ok_or(RegistryError::UnknownSubnet(*id))
    }

    /// The subnets after this id, in the order of their ids: at most so many.
    pub fn subnets(&self, after: B256, most: usize) -> Vec<Arc<ApprovedSubnet>> {
        let after = self.subnets.range((Bound::Excluded(after), Bound::Unbounded));
        after.take(most).map(|(_, subnet)| subnet.clone()).collect()
    }

    /// How many nodes are live, and how many subnets there are.
    pub fn counts(&self, now: UnixTime) -> (usize, usize) {
        (self.members.values().filter(|member| member.is_live(now)).count(), self.subnets.len())
    }

    /// Finds the nodes that are no longer live because of silence or expiry, and records that as a change for watchers. A second call within the
    /// same second does nothing.
    pub fn sweep(&mut self, now: UnixTime) {
        if self.swept_at == now {
            return;
        }
        self.swept_at = now;
        let gone = self.members.iter_mut().filter(|(_, member)| member.live && !member.is_live(now));
        let gone: Vec<_> = gone.map(|(node, member)| (*node, member.live = false).0).collect();
        for node in gone {
            self.has_changed(node);
        }
    }

    fn has_changed(&mut self, node: Address) {
        let Some(member) = self.members.get_mut(&node) else { return };
        self.changes += 1;
        self.by_change.remove(&member.changed);
        self.by_change.insert(self.changes, node);
        member.changed = self.changes;
    }

    /// Drops nodes whose record has expired: such a record cannot come back, so neither can its sequence.
    fn forget_expired(&mut self, now: UnixTime) {
        let before = self.members.len();
        self.remove_swept(now);
        // Watchers have mostly received what was swept before; those that have not received what is removed have to begin again.
        if self.members.len() == before {
            self.sweep(now);
            self.remove_swept(now);
        }
    }

    fn remove_swept(&mut self, now: UnixTime) {
        let (by_change, forgotten, room) = (&mut self.by_change, &mut self.forgotten, &mut self.room);
        self.members.retain(|node, member| {
            let expired = !member.live && member.record.message.expires_at < now;
            if expired {
                by_change.remove(&member.changed);
                *forgotten = member.changed.max(*forgotten);
                if let Some(place) = member.place {
                    room.give(*node, place);
                }
            }
            !expired
        });
    }
}
