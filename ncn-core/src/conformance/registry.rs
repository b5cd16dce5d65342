mod catalog;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;

use super::{Rules, Spoilt, Verdict, Violation, delivery, key, order, quote, signed};
use crate::{
    Address, Amount, B256, CompletionAuthorization, CompletionRequest, Confinement, Deregistration, DirectoryExt as _, Dispatch,
    DynSigner, Epoch, FeeSplit, FinishReason, Heartbeat, InferenceResult, Message as _, NodeChange, NodeChanges, NodeQuery,
    NodeRecord, NodeRole, PreprocessingRequest, Price, Quote, Registry, RegistryError, Signature, Signed, Subnet, SubnetModel,
    TrustRoot, UnixTime, lifecycle::MAX_ATTEMPTS, registry::manifest_digest,
};

/// What the suite for [`Registry`] needs.
#[async_trait]
pub trait RegistryFixture: Send + Sync {
    /// The registry under test.
    fn registry(&self) -> &dyn Registry;

    /// The network that it serves; its validators are up.
    async fn epoch(&self) -> Epoch;

    /// The time that it goes by.
    fn now(&self) -> UnixTime;

    /// Escrows a quote on the registry's chain, as this client. Registries that do not look at the chain do nothing.
    async fn pay(&self, client: &DynSigner, quote: &Quote);

    /// Creates a subnet on the registry's chain and pays for it, where that is needed.
    async fn create_subnet(&self, _owner: &DynSigner, _name: &str) {}
}

/// A gateway of the subnet besides its owner.
const MEMBER: [u8; 20] = [9; 20];
const MODEL: [u8; 32] = [0x42; 32];
/// A manifest of another model of the subnet.
const MANIFEST: &[u8] = br#"{"name":"echo","version":"1","task":"echo","description":"","licence":"MIT","format":"echo","entry":"",
    "files":[],"inputs":[{"type":"text","name":"x"}],"outputs":[{"type":"text","name":"x"}],"limits":{"memory_bytes":1,"deadline_ms":1000},"price":{"base":"1"}}"#;
const PRICE: Amount = Amount::new(1_000);

struct Scene<'a> {
    fixture: &'a dyn RegistryFixture,
    epoch: Epoch,
    trust: TrustRoot,
    subnet: Subnet,
    gateway: DynSigner,
    compute: DynSigner,
}

impl Scene<'_> {
    fn registry(&self) -> &dyn Registry {
        self.fixture.registry()
    }

    fn record(&self, node: &DynSigner, sequence: u64) -> NodeRecord {
        NodeRecord {
            node: node.address(),
            role: NodeRole::Compute,
            subnet: self.subnet.id(),
            endpoint: String::new(),
            models: vec![MODEL.into()],
            confinement: Confinement::None,
            sequence,
            expires_at: self.fixture.now() + 600,
        }
    }

    async fn sign<T: crate::crypto::Authored>(&self, message: T, key: &DynSigner) -> Signed<T> {
        signed(message, &self.trust, key).await
    }

    /// The gateway's word that it wants this result approved.
    async fn authorize(&self, request: &CompletionRequest) -> Signed<CompletionAuthorization> {
        let completion = request.delivery.completion(&request.quote).map(|completion| completion.struct_hash());
        let authorization = CompletionAuthorization { author: request.quote.gateway, completion: completion.unwrap_or_default() };
        self.sign(authorization, &self.gateway).await
    }

    /// The gateway's word that this node was to serve.
    async fn dispatch(&self, quote: &Quote, compute: Address) -> Signed<Dispatch> {
        let (gateway, quote, resumed_from) = (quote.gateway, quote.struct_hash(), B256::ZERO);
        self.sign(Dispatch { gateway, compute, quote, attempt: 0, resumed_from }, &self.gateway).await
    }

    /// Has the compute node be heard of, however long the rules before have taken. When it was within the same second, it is still.
    async fn beat(&self) {
        let (node, sent_at) = (self.compute.address(), self.fixture.now());
        let heartbeat = self.sign(Heartbeat { node, sequence: sent_at * 1_000, sent_at }, &self.compute).await;
        let _ = self.registry().heartbeat(heartbeat).await;
    }

    async fn request(&self, client: &DynSigner) -> PreprocessingRequest {
        self.request_within(client, 600).await
    }

    /// With so many seconds left.
    async fn request_within(&self, client: &DynSigner, seconds: u64) -> PreprocessingRequest {
        let order = order(client.address(), self.subnet.id(), MODEL.into(), PRICE, self.fixture.now() + seconds);
        let quote = quote(&order, &self.epoch, self.gateway.address(), self.compute.address(), PRICE);
        PreprocessingRequest { request: self.sign(order, client).await, quote }
    }
}

/// Runs the suite for [`Registry`].
pub async fn registry(fixture: &dyn RegistryFixture) -> Verdict {
    let mut rules = Rules::default();
    let (gateway, compute) = (key(), key());
    let subnet = Subnet {
        owner: gateway.address(),
        name: "conformance".into(),
        gateways: vec![MEMBER.into()],
        models: [MODEL.into(), rules.ok("a manifest is read", manifest_digest(&Bytes::from_static(MANIFEST)))?]
            .map(|digest| SubnetModel { name: "m".into(), digest, price: Price::flat(PRICE) })
            .into(),
        split: FeeSplit::default(),
        version: 1,
    };
    let epoch = fixture.epoch().await;
    let scene = Scene { trust: epoch.trust.clone(), epoch, fixture, subnet, gateway, compute };
    catalog::subnets(&mut rules, &scene).await?;
    catalog::pending(&mut rules, &scene).await?;
    nodes(&mut rules, &scene).await?;
    watches(&mut rules, &scene).await?;
    judges_quotes(&mut rules, &scene).await?;
    judges_results(&mut rules, &scene).await?;
    Ok(rules.0)
}

async fn nodes(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let registry = scene.registry();
    let (node, address) = (&scene.compute, scene.compute.address());
    let query = NodeQuery { node: Some(address), ..NodeQuery::default() };
    let unknown = registry.node(address).await;
    rules.check("an unknown node is said so", unknown == Err(RegistryError::UnknownNode(address)), unknown)?;

    let mut forged = scene.sign(scene.record(node, 10), node).await;
    forged.message.confinement = Confinement::Full;
    rules.refused("a forged record is refused", registry.register(forged).await, RegistryError::is_retryable)?;
    let mut expired = scene.record(node, 10);
    expired.expires_at = scene.fixture.now() - 100;
    let expired = scene.sign(expired, node).await;
    rules.refused("an expired record is refused", registry.register(expired).await, RegistryError::is_retryable)?;
    let mut eternal = scene.record(node, 10);
    eternal.expires_at += crate::membership::MAX_RECORD_SECONDS;
    let eternal = scene.sign(eternal, node).await;
    rules.refused("a record is short-lived", registry.register(eternal).await, RegistryError::is_retryable)?;

    let record = scene.sign(scene.record(node, 10), node).await;
    rules.ok("a node registers", registry.register(record.clone()).await)?;
    rules.ok("the identical record again is accepted", registry.register(record.clone()).await)?;
    let found = registry.discover(query).await;
    rules.check("a node is found as it signed", found == Ok(vec![record.clone()]), found)?;
    let all = NodeQuery { role: Some(NodeRole::Compute), subnet: Some(scene.subnet.id()), model: Some(MODEL.into()), node: None };
    let found = rules.ok("nodes are found by what they do", registry.discover(all).await)?;
    rules.check("nodes are found by what they do", found.contains(&record), found.len())?;
    for narrower in [
        NodeQuery { role: Some(NodeRole::Validator), ..query },
        NodeQuery { subnet: Some([9; 32].into()), ..query },
        NodeQuery { model: Some([9; 32].into()), ..query },
    ] {
        let found = registry.discover(narrower).await;
        rules.check("every part of a query narrows", found == Ok(Vec::new()), (narrower, found))?;
    }
    let older = scene.sign(scene.record(node, 9), node).await;
    let stale = registry.register(older).await;
    rules.check("an older record is stale", stale == Err(RegistryError::Stale { given: 9, known: 10 }), stale)?;

    let beat = |sequence| Heartbeat { node: address, sequence, sent_at: scene.fixture.now() };
    let heartbeat = scene.sign(beat(11), node).await;
    rules.ok("a heartbeat is taken", registry.heartbeat(heartbeat.clone()).await)?;
    let again = registry.heartbeat(heartbeat).await;
    rules.check("a heartbeat is not replayed", matches!(again, Err(RegistryError::Stale { .. })), again)?;
    let mut forged = scene.sign(beat(12), node).await;
    forged.message.sequence = 13;
    rules.refused("a forged heartbeat is refused", registry.heartbeat(forged).await, RegistryError::is_retryable)?;
    let mut off = beat(12);
    off.sent_at += 3_600;
    let off = scene.sign(off, node).await;
    rules.refused("a heartbeat is of now", registry.heartbeat(off).await, RegistryError::is_retryable)?;
    let stale = registry.register(record).await;
    rules.check("a record does not undo a heartbeat", matches!(stale, Err(RegistryError::Stale { .. })), stale)?;

    let deregistration = scene.sign(Deregistration { node: address, sequence: 20 }, node).await;
    let mut forged = deregistration.clone();
    forged.message.sequence = 21;
    rules.refused("a forged departure is refused", registry.deregister(forged).await, RegistryError::is_retryable)?;
    rules.ok("a node leaves", registry.deregister(deregistration.clone()).await)?;
    rules.ok("leaving twice is leaving", registry.deregister(deregistration).await)?;
    let found = registry.discover(query).await;
    rules.check("who has left is not found", found == Ok(Vec::new()), found)?;
    let back = scene.sign(scene.record(node, 21), node).await;
    rules.ok("a node comes back with a newer record", registry.register(back).await)
}

/// The changes that are reported before this one.
async fn changes_until(changes: &mut NodeChanges, last: &NodeChange) -> Result<Vec<NodeChange>, RegistryError> {
    let mut told = Vec::new();
    while let Some(change) = changes.next().await {
        let change = change?;
        if change == *last {
            return Ok(told);
        }
        told.push(change);
    }
    Err(RegistryError::Unreachable("the watch ended".into()))
}

async fn watches(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let registry = scene.registry();
    let (first, second) = (key(), key());
    let query = NodeQuery { role: Some(NodeRole::Compute), subnet: Some(scene.subnet.id()), model: Some(MODEL.into()), node: None };
    let live = async |key: &DynSigner, sequence, models: Vec<B256>| {
        let record = scene.sign(NodeRecord { models, ..scene.record(key, sequence) }, key).await;
        registry.register(record.clone()).await.map(|()| NodeChange::Live(record))
    };
    let model = || vec![MODEL.into()];

    let known = rules.ok("a node registers", live(&first, 10, model()).await)?;
    let mut all = rules.ok("nodes are watched", registry.watch(query).await)?;
    let told = rules.ok("nodes are watched", changes_until(&mut all, &NodeChange::Synced).await)?;
    rules.check("a watch begins with all that is live", told.contains(&known), told)?;
    let mut others = Vec::new();
    for narrower in [
        NodeQuery { role: Some(NodeRole::Validator), ..query },
        NodeQuery { subnet: Some([9; 32].into()), ..query },
        NodeQuery { model: Some([9; 32].into()), ..query },
        NodeQuery { node: Some(second.address()), ..query },
    ] {
        let mut changes = rules.ok("nodes are watched", registry.watch(narrower).await)?;
        let told = rules.ok("nodes are watched", changes_until(&mut changes, &NodeChange::Synced).await)?;
        rules.check("every part of a query narrows a watch", told.is_empty(), (narrower, told))?;
        others.push((narrower, changes));
    }

    let renewed = rules.ok("a node registers", live(&first, 11, model()).await)?;
    let told = rules.ok("a new record is told", changes_until(&mut all, &renewed).await)?;
    rules.check("a new record is told", told.is_empty(), told)?;
    let heartbeat = scene.sign(Heartbeat { node: first.address(), sequence: 12, sent_at: scene.fixture.now() }, &first).await;
    rules.ok("a heartbeat is taken", registry.heartbeat(heartbeat).await)?;

    // Each change is followed by one of another node, so that it is seen when it is not told.
    let deregistration = scene.sign(Deregistration { node: first.address(), sequence: 13 }, &first).await;
    rules.ok("a node leaves", registry.deregister(deregistration).await)?;
    let came = rules.ok("a node registers", live(&second, 10, model()).await)?;
    let told = rules.ok("who left is told", changes_until(&mut all, &came).await)?;
    rules.check("who left is told, a heartbeat is not", told == [NodeChange::Gone(first.address())], told)?;
    rules.ok("a node registers", live(&second, 11, vec![[9; 32].into()]).await)?;
    let back = rules.ok("a node registers", live(&first, 14, model()).await)?;
    let told = rules.ok("who fits no longer is told", changes_until(&mut all, &back).await)?;
    rules.check("who fits no longer is gone", told == [NodeChange::Gone(second.address())], told)?;

    // The second node goes through all queries, so that each watch has a last change: before it are other changes of the second node, or what does
    // not match.
    for (sequence, (query, mut changes)) in (12..).zip(others) {
        let record = NodeRecord {
            role: query.role.unwrap_or(NodeRole::Compute),
            subnet: query.subnet.unwrap_or_default(),
            endpoint: "http://127.0.0.1:1".into(),
            models: query.model.into_iter().collect(),
            ..scene.record(&second, sequence)
        };
        let last = scene.sign(record, &second).await;
        rules.ok("a node registers", registry.register(last.clone()).await)?;
        let last = NodeChange::Live(last);
        let told = rules.ok("a watch reports what matches", changes_until(&mut changes, &last).await)?;
        let other = |change: &&NodeChange| match change {
            NodeChange::Live(record) => record.message.node != second.address(),
            NodeChange::Gone(node) => *node != second.address(),
            NodeChange::Synced => true,
        };
        let other = told.iter().find(other);
        rules.check("a watch reports what matches", other.is_none(), other)?;
    }
    Ok(())
}

async fn judges_quotes(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    scene.beat().await;
    let (registry, client) = (scene.registry(), key());
    let good = scene.request(&client).await;
    let certificate = rules.ok("validators approve a good quote", registry.preprocessing(good.clone()).await)?;
    let digest = good.quote.digest(&scene.trust.domain);
    let committee = rules.ok("a quote names its committee", good.quote.committee_of(&scene.trust))?;
    let verified = certificate.verify(&digest, &committee);
    rules.check("the certificate verifies", verified.is_ok(), verified)?;
    rules.ok("asking again is harmless", registry.preprocessing(good.clone()).await)?;
    let times = rules.ok("it says who has answered", registry.answer_times().await)?;
    let counted = times.iter().any(|of| of.approved > 0 && committee.members.contains(&of.validator))
        && times.iter().all(|of| of.approved <= of.asked);
    rules.check("who has approved is counted", counted, &times)?;
    let mut another = scene.request(&client).await;
    another.quote.gateway = MEMBER.into();
    rules.ok("each gateway of a subnet quotes", registry.preprocessing(another).await)?;

    let bad: [Spoilt<PreprocessingRequest>; 13] = [
        ("a price is the subnet's", |request| {
            request.quote.price.base = Amount::new(999);
            request.quote.total = Amount::new(999);
        }),
        ("a total is what its units cost", |request| request.quote.total = Amount::new(999)),
        ("a quote is of its request", |request| request.quote.request_id = [7; 32].into()),
        ("a quote is for its client", |request| request.quote.client = [7; 20].into()),
        ("a gateway is the subnet's", |request| request.quote.gateway = [7; 20].into()),
        ("a split is the subnet's", |request| request.quote.split.treasury_bps = 0),
        ("a quote is of this network", |request| request.quote.trust_root = [7; 32].into()),
        ("a network is as it was at the quote's epoch", |request| request.quote.epoch = 0),
        ("an epoch has come", |request| request.quote.epoch = UnixTime::MAX),
        ("a salt is the order's", |request| request.quote.salt = [7; 32].into()),
        ("a committee is the one that was drawn", |request| request.quote.committee = [7; 32].into()),
        ("a quote ends by the deadline", |request| request.quote.expiry += 1),
        ("a compute node is live", |request| request.quote.compute = [7; 20].into()),
    ];
    for (rule, spoil) in bad {
        let mut request = good.clone();
        spoil(&mut request);
        let refused = registry.preprocessing(request).await;
        rules.check(rule, refused.is_err(), refused)?;
    }
    let mut forged = good;
    forged.request.message.max_price = Amount::new(2_000);
    // By the node itself: nobody else is asked about what no client has signed, and asking again is of no use.
    let refused = registry.preprocessing(forged).await;
    rules.refused("an order is its client's", refused, RegistryError::is_retryable)
}

async fn judges_results(rules: &mut Rules, scene: &Scene<'_>) -> Result<(), Violation> {
    let registry = scene.registry();
    let good = served(rules, scene).await?;
    let completion = rules.ok("a delivery leads to a completion", good.delivery.completion(&good.quote))?;
    let certificate = rules.ok("validators approve a good result", registry.completion(good.clone()).await)?;
    let digest = completion.digest(&scene.trust.domain);
    let committee = rules.ok("a quote names its committee", good.quote.committee_of(&scene.trust))?;
    rules.ok("the certificate verifies", certificate.verify(&digest, &committee))?;

    let bad: [Spoilt<InferenceResult>; 9] = [
        ("what is given out is no more than was quoted", |result| {
            (result.usage.output_units, result.output_bytes) = (1 << 40, 1 << 50);
        }),
        ("what is given out fits the output's size", |result| result.usage.output_units = result.output_bytes + 2),
        ("what is taken in is no more than was quoted", |result| result.usage.input_units = u64::MAX),
        ("a result has a part", |result| result.parts = 0),
        ("a result begins where its output does", |result| result.resumed_from = [7; 32].into()),
        ("a result is of its request", |result| result.request_id = [7; 32].into()),
        ("a result is of its model", |result| result.model_digest = [7; 32].into()),
        ("a result is of its input", |result| result.input_hash = [7; 32].into()),
        ("a confinement is no more than the record's", |result| result.confinement = Confinement::Full),
    ];
    for (rule, spoil) in bad {
        let mut request = good.clone();
        for result in &mut request.delivery.results {
            spoil(&mut result.message);
            *result = scene.sign(result.message.clone(), &scene.compute).await;
        }
        request.authorization = scene.authorize(&request).await;
        let refused = registry.completion(request).await;
        rules.check(rule, refused.is_err(), refused)?;
    }
    let endless = brought(rules, scene, scene.request_within(&key(), 8 * 24 * 3_600).await).await?;
    let refused = registry.completion(endless).await;
    let is_for_that = refused.as_ref().is_err_and(|error| error.to_string().contains("quote.expiry"));
    rules.check("a request lasts a week at most", is_for_that, refused)?;
    let mut other_end = good.clone();
    other_end.delivery.finish = FinishReason::Length;
    other_end.authorization = scene.authorize(&other_end).await;
    let refused = registry.completion(other_end).await;
    rules.refused("an output ends for the reason that its node has signed", refused, RegistryError::is_retryable)?;
    let mut forged = good.clone();
    for result in &mut forged.delivery.results {
        result.message.output_hash = [7; 32].into();
    }
    forged.authorization = scene.authorize(&forged).await;
    let refused = registry.completion(forged).await;
    rules.check("a result is its compute node's", refused.is_err(), refused)?;

    who_serves(rules, scene, &good).await?;
    let mut second = good.clone();
    for result in &mut second.delivery.results {
        result.message.output_hash = [8; 32].into();
        *result = scene.sign(result.message.clone(), &scene.compute).await;
    }
    second.authorization = scene.authorize(&second).await;
    let second = registry.completion(second).await;
    rules.check("no two results of one node are approved for a request", second.is_err(), second)?;
    rules.ok("the one that was approved is approved again", registry.completion(good).await).map(drop)
}

/// Who is paid is whom the gateway had serve.
async fn who_serves(rules: &mut Rules, scene: &Scene<'_>, good: &CompletionRequest) -> Result<(), Violation> {
    let registry = scene.registry();
    // Whoever knows an order may register a node for nothing, and sign a result that is good in itself.
    let bystander = key();
    let record = scene.sign(scene.record(&bystander, 1), &bystander).await;
    rules.ok("another node registers", registry.register(record).await)?;
    let stolen = delivery(&good.request.message, &good.quote, &scene.trust, &bystander).await;
    let mut theft = CompletionRequest { delivery: stolen, ..good.clone() };
    let refused = registry.completion(theft.clone()).await;
    rules.refused("the gateway's word is for one result", refused, RegistryError::is_retryable)?;
    let own = CompletionAuthorization { author: bystander.address(), ..scene.authorize(&theft).await.message };
    theft.authorization = scene.sign(own, &bystander).await;
    let refused = registry.completion(theft.clone()).await;
    rules.refused("a result without the word of its quote's gateway is refused", refused, RegistryError::is_retryable)?;
    let mut forged = scene.authorize(&theft).await;
    forged.signature = scene.sign(own, &bystander).await.signature;
    theft.authorization = forged;
    let refused = registry.completion(theft.clone()).await;
    rules.refused("the gateway's word is signed by the gateway", refused, RegistryError::is_retryable)?;
    theft.authorization = scene.authorize(&theft).await;
    let refused = registry.completion(theft.clone()).await;
    rules.refused("who has served is whom the gateway had serve", refused, RegistryError::is_retryable)?;
    theft.dispatches = vec![scene.dispatch(&theft.quote, bystander.address()).await];
    let bad: [Spoilt<Dispatch>; 5] = [
        ("a dispatch is the quote's gateway's", |dispatch| dispatch.gateway = [7; 20].into()),
        ("a dispatch is for the node that has served", |dispatch| dispatch.compute = [7; 20].into()),
        ("a dispatch is of the quote", |dispatch| dispatch.quote = [7; 32].into()),
        ("an attempt is one of those that there may be", |dispatch| dispatch.attempt = MAX_ATTEMPTS),
        ("a dispatch says where its node began", |dispatch| dispatch.resumed_from = [7; 32].into()),
    ];
    for (rule, spoil) in bad {
        let mut request = theft.clone();
        for dispatch in &mut request.dispatches {
            spoil(&mut dispatch.message);
            let digest = dispatch.message.digest(&scene.trust.domain);
            dispatch.signature = rules.ok("a key signs", Signature::sign(&digest, &*scene.gateway).await)?;
        }
        let refused = registry.completion(request).await;
        rules.refused(rule, refused, RegistryError::is_retryable)?;
    }
    let mut unsigned = theft.clone();
    for dispatch in &mut unsigned.dispatches {
        let digest = dispatch.message.digest(&scene.trust.domain);
        dispatch.signature = rules.ok("a key signs", Signature::sign(&digest, &*bystander).await)?;
    }
    let refused = registry.completion(unsigned).await;
    rules.refused("a dispatch is signed by the gateway", refused, RegistryError::is_retryable)?;
    let mut claim = theft.clone();
    claim.authorization = scene.sign(own, &bystander).await;
    let refused = registry.completion(claim).await;
    rules.check("a node waits for its gateway", refused.is_err(), refused)?;
    rules.ok("a node that took over is approved by the gateway's word", registry.completion(theft).await).map(drop)
}

/// A request that was paid and served, as its gateway brings it.
async fn served(rules: &mut Rules, scene: &Scene<'_>) -> Result<CompletionRequest, Violation> {
    scene.beat().await;
    let client = key();
    let quoted = scene.request(&client).await;
    scene.fixture.pay(&client, &quoted.quote).await;
    brought(rules, scene, quoted).await
}

/// A request that was served.
async fn brought(rules: &mut Rules, scene: &Scene<'_>, quoted: PreprocessingRequest) -> Result<CompletionRequest, Violation> {
    let PreprocessingRequest { request, quote } = quoted;
    let delivery = delivery(&request.message, &quote, &scene.trust, &scene.compute).await;
    let completion = rules.ok("a delivery leads to a completion", delivery.completion(&quote))?;
    let authorized = CompletionAuthorization { author: quote.gateway, completion: completion.struct_hash() };
    let authorization = scene.sign(authorized, &scene.gateway).await;
    let dispatches = vec![scene.dispatch(&quote, quote.compute).await];
    let (preprocessing, voucher, acknowledgement) = (None, None, None);
    Ok(CompletionRequest { request, quote, delivery, preprocessing, voucher, dispatches, acknowledgement, authorization })
}
