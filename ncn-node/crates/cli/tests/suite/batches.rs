//! What validators approve for settlement, and what they do not.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use alloy_primitives::B256;
use ncn_client::unix_now;
use ncn_core::{
    Address, Amount, Approval, BatchRequest, BatchSettler, ChainView, ChannelCharge, ChannelParams, Committee, Delivery, DynSigner,
    Message as _, PaymentAuthorization, PaymentLedger, QuorumCertificate, Quote, RegistryError, Settlement, SettlementRequest,
    Signature, Signed, SignedVoucher,
    channel::{Batch, BatchEntry, CertifiedBatch, ChargeStart, Numbers},
};
use ncn_node::channel::{BatchPolicy, ChannelProcessor};

use crate::{
    money::Contracts as _,
    provider::Provider,
    scene::{Behavior, InProcess, delivered, flat_quote, key, result_of},
    wait::eventually,
};

const PRICE: Amount = Amount::new(1_000_003);

struct Scene {
    network: InProcess,
    client: DynSigner,
    gateway: DynSigner,
    compute: DynSigner,
    terms: ChannelParams,
}

impl Scene {
    async fn new() -> Self {
        let network = InProcess::new(&[Behavior::Honest; 5]).await;
        let (client, gateway, compute) = (key(), key(), key());
        let terms = ChannelParams { client: client.address(), gateway: gateway.address(), salt: B256::random() };
        let deposit = Amount::new(PRICE.units() * 10);
        network.chain.account(client.clone(), deposit).await;
        network.chain.ledger(client.clone()).fund_channel(&terms, deposit, unix_now() + 7 * 24 * 3_600).await.unwrap();
        Self { network, client, gateway, compute, terms }
    }

    fn quote(&self) -> Quote {
        let parties = [self.client.address(), self.gateway.address(), self.compute.address()];
        flat_quote(&self.network.epoch, B256::random(), parties, PRICE, unix_now() + 3_600)
    }

    /// What the node gives for a quote, and the digest of its completion.
    async fn served(&self, quote: &Quote) -> (Delivery, B256) {
        let domain = self.network.trust.domain;
        let delivery = delivered(result_of(quote, self.compute.address()), &self.compute, &domain).await;
        let digest = delivery.completion(quote).unwrap().digest(&domain);
        (delivery, digest)
    }

    async fn certify(&self, digest: &B256, quote: &Quote, approvals: usize) -> QuorumCertificate {
        let Committee { members, .. } = quote.committee_of(&self.network.trust).unwrap();
        let mut signed = Vec::new();
        let judges = self.network.chain.validators.iter().filter(|judge| members.contains(&judge.address()));
        for judge in judges.take(approvals) {
            signed.push(Approval::sign(digest, &**judge).await.unwrap());
        }
        QuorumCertificate::new(signed)
    }

    /// The voucher of the channel's request of this number, which brings it to so many prices.
    async fn pay(&self, quote: &Quote, number: u64) -> SignedVoucher {
        let cumulative = Amount::new(PRICE.units() * u128::from(number));
        SignedVoucher::sign(self.terms, quote, number, cumulative, &self.network.trust, &self.client).await.unwrap()
    }

    async fn entry(&self, cumulative: u64) -> BatchEntry {
        let quote = self.quote();
        let (delivery, digest) = self.served(&quote).await;
        let certificate = self.certify(&digest, &quote, 3).await;
        let payment = self.pay(&quote, cumulative).await;
        BatchEntry { quote, delivery, certificate, payment }
    }

    fn batch(&self, entries: Vec<BatchEntry>, settled: Amount) -> Batch {
        self.batch_after(entries, settled, Numbers::default())
    }

    /// The same, of a channel in which these numbers are over.
    fn batch_after(&self, entries: Vec<BatchEntry>, settled: Amount, numbers: Numbers) -> Batch {
        let numbers = numbers.with(entries.iter().map(|entry| entry.payment.voucher.number), []);
        let start = BTreeMap::from([(self.terms.id(), ChargeStart { settled, numbers })]);
        Batch::new(entries, &start, self.network.trust.treasury).unwrap()
    }

    async fn judge(&self, batch: Batch) -> Result<QuorumCertificate, RegistryError> {
        self.judge_for(&self.gateway, batch).await
    }

    /// The same batch, brought by somebody.
    async fn judge_for(&self, who: &DynSigner, batch: Batch) -> Result<QuorumCertificate, RegistryError> {
        let committees = self.committees(&batch);
        self.judge_by(who, batch, committees).await
    }

    /// The same, by these.
    async fn judge_by(
        &self,
        who: &DynSigner,
        batch: Batch,
        committees: Vec<Committee>,
    ) -> Result<QuorumCertificate, RegistryError> {
        let message = SettlementRequest { gateway: who.address(), settlement: batch.settlement.struct_hash() };
        let request = Signed::sign(message, &self.network.trust.channel_domain(), &**who).await.unwrap();
        self.network.registry.settlement(Arc::new(BatchRequest { batch, committees, request })).await
    }

    /// Of the vouchers that a batch charges its channels by.
    fn committees(&self, batch: &Batch) -> Vec<Committee> {
        let quote = |voucher: &SignedVoucher| {
            batch.entries.iter().find(|entry| entry.payment == *voucher).map(|entry| &entry.quote).unwrap()
        };
        let committee = |quote: &Quote| self.network.trust.committee(&quote.salt, &quote.request_id);
        batch.vouchers().values().map(|voucher| committee(quote(voucher))).collect()
    }

    /// Has the chain charge a batch that was approved.
    async fn settle(&self, batch: &Batch, certificate: QuorumCertificate) {
        let (vouchers, committees) = (batch.vouchers().into_values().collect(), self.committees(batch));
        let batch = CertifiedBatch { settlement: batch.settlement.clone(), vouchers, committees, certificate };
        self.network.chain.ledger(self.gateway.clone()).settle_batch(&batch).await.unwrap();
    }

    async fn refuses(&self, batch: Batch, says: &str) {
        let refused = self.judge(batch).await.unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
    }
}

#[tokio::test]
async fn an_honest_batch_is_approved_again_until_it_is_settled() {
    let scene = Scene::new().await;
    let entries = vec![scene.entry(1).await, scene.entry(2).await, scene.entry(3).await];
    let batch = scene.batch(entries.clone(), Amount::ZERO);
    let digest = batch.settlement.digest(&scene.network.trust.channel_domain());
    let certificate = scene.judge(batch.clone()).await.unwrap();
    certificate.verify_all(&digest, &scene.committees(&batch)).unwrap();
    // A gateway that lost the answer, or puts the same requests together in another way, starts from the same sum.
    scene.judge(batch).await.unwrap();
    let part = scene.batch(entries[..2].to_vec(), Amount::ZERO);
    let certificate = scene.judge(part.clone()).await.unwrap();
    scene.settle(&part, certificate).await;

    // What was settled must not come again; what was only approved with it may.
    let ChannelCharge { settled_after: settled, numbers, .. } = part.settlement.charges[0];
    scene.refuses(scene.batch_after(entries.clone(), settled, numbers), "was settled or given up before").await;
    // Nor does a batch that makes the chain forget.
    scene.refuses(scene.batch(entries[2..].to_vec(), settled), "are over and would not be").await;
    let rest = scene.batch_after(entries[2..].to_vec(), settled, numbers);
    let certificate = scene.judge(rest.clone()).await.unwrap();
    scene.settle(&rest, certificate).await;
    let ChannelCharge { settled_after: settled, numbers, .. } = rest.settlement.charges[0];
    scene.refuses(scene.batch_after(entries[2..].to_vec(), settled, numbers), "was settled").await;
}

#[tokio::test]
async fn only_the_gateway_itself_brings_a_batch_and_only_from_where_the_channel_is() {
    let scene = Scene::new().await;
    let batch = scene.batch(vec![scene.entry(1).await], Amount::ZERO);
    // The client has everything that a batch takes: quote, result, approvals and voucher.
    let brought = scene.judge_for(&scene.client, batch.clone()).await.unwrap_err();
    assert!(brought.to_string().contains("request.gateway"), "{brought}");
    let mut forged = batch.clone();
    forged.settlement.count += 1;
    let message = SettlementRequest { gateway: scene.gateway.address(), settlement: forged.settlement.struct_hash() };
    let request = Signed::sign(message, &scene.network.trust.channel_domain(), &*scene.client).await;
    assert!(request.is_err() || request.unwrap().verify(&scene.network.trust.channel_domain()).is_err());

    let invented = scene.batch(vec![scene.entry(1).await], Amount::new(12_345));
    scene.refuses(invented, "was charged 0").await;
    // Nothing of that stands in the way of the real one.
    let certificate = scene.judge(batch.clone()).await.unwrap();
    scene.settle(&batch, certificate).await;
}

#[tokio::test]
async fn what_does_not_belong_together_is_not_approved() {
    let scene = Scene::new().await;
    let good = scene.entry(1).await;
    let other = scene.entry(2).await;
    let alone = |entry: BatchEntry| scene.batch(vec![entry], Amount::ZERO);

    let mut few = good.clone();
    few.certificate = QuorumCertificate::new(good.certificate.approvals()[..2].to_vec());
    scene.refuses(alone(few), "2 approvals").await;
    let mut foreign = good.clone();
    foreign.certificate = other.certificate.clone();
    scene.refuses(alone(foreign), "completion").await;
    let mut forged = good.clone();
    forged.delivery.results[0].signature = Signature::sign(&B256::repeat_byte(1), &*scene.compute).await.unwrap();
    scene.refuses(alone(forged), "result").await;
    let mut moved = good.clone();
    moved.delivery.results[0].message.compute = scene.gateway.address();
    scene.refuses(alone(moved), "result").await;
    let mut unpaid = good.clone();
    unpaid.payment = other.payment;
    scene.refuses(alone(unpaid), "voucher.requestId").await;
    let mut unsigned = good.clone();
    unsigned.payment.voucher.cumulative = Amount::new(PRICE.units() * 9);
    scene.refuses(alone(unsigned), "voucher.signature").await;
    let mut dear = good.clone();
    (dear.quote.price.base, dear.quote.total) = (Amount::new(PRICE.units() * 2), Amount::new(PRICE.units() * 2));
    scene.refuses(alone(dear), "voucher.quote").await;
    // What cannot be put together does not pass when it was put together otherwise, either.
    for (base, problem) in [(PRICE.units() + 1, "cost: "), (0, "costs nothing")] {
        let mut batch = alone(good.clone());
        batch.entries[0].quote.price.base = Amount::new(base);
        scene.refuses(batch, problem).await;
    }

    // A settlement that is not what its requests lead to.
    let honest = alone(good.clone());
    let mut greedy = honest.clone();
    greedy.settlement.charges[0].settled_after = Amount::new(PRICE.units() * 2);
    scene.refuses(greedy, "is not what its requests lead to").await;
    let mut thief = honest.clone();
    thief.settlement.payouts[0].account = scene.client.address();
    scene.refuses(thief, "is not what its requests lead to").await;
    let mut more = honest.clone();
    more.settlement.count = 2;
    scene.refuses(more, "is not what its requests lead to").await;
    let mut twice = honest.clone();
    twice.entries.push(good);
    scene.refuses(twice, "twice").await;
    scene.judge(honest).await.unwrap();
}

/// A batch is judged by the committees of its requests, and each request by its own.
#[tokio::test]
async fn others_than_the_drawn_judges_approve_nothing() {
    let scene = Scene::new().await;
    let good = scene.entry(1).await;
    let mut elsewhen = good.clone();
    elsewhen.quote.epoch -= 1;
    elsewhen.payment = scene.pay(&elsewhen.quote, 1).await;
    scene.refuses(scene.batch(vec![elsewhen], Amount::ZERO), "quote.trustRoot").await;
    let mut picked = good.clone();
    picked.quote.committee = B256::repeat_byte(1);
    picked.payment = scene.pay(&picked.quote, 1).await;
    scene.refuses(scene.batch(vec![picked], Amount::ZERO), "quote.committee").await;

    let batch = scene.batch(vec![good], Amount::ZERO);
    let strangers = vec![Committee { threshold: 1, members: vec![scene.client.address()] }];
    let refused = scene.judge_by(&scene.gateway, batch.clone(), strangers).await.unwrap_err();
    assert!(matches!(refused, RegistryError::TooFewApprovals { have: 0, need: 1, .. }), "{refused}");
    let crowd = Committee { threshold: 129, members: (0..257u64).map(|n| Address::left_padding_from(&n.to_be_bytes())).collect() };
    let refused = scene.judge_by(&scene.gateway, batch.clone(), vec![crowd]).await.unwrap_err();
    assert!(refused.to_string().contains("more than 256 members"), "{refused}");
    let refused = scene.judge_by(&scene.gateway, batch, Vec::new()).await.unwrap_err();
    assert!(refused.to_string().contains("committees: there has to be one"), "{refused}");
}

/// The validators have approved batches that were never settled, and one request can never be: all others are settled, once.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_hold_up_nobody_but_the_request_that_is_bad() {
    const REQUESTS: u64 = 10;
    let scene = Scene::new().await;
    let chain = Arc::new(Provider::new(scene.network.chain.ledger(scene.gateway.clone()), 6));
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("gateway.redb");
    let options = BatchPolicy { max_requests: 10, ..BatchPolicy::default() };
    let (registry, gateway) = (scene.network.registry.clone(), scene.gateway.clone());
    let ledger = ChannelProcessor::open(chain.clone(), registry, gateway, &path, options).unwrap();
    for n in 1..=REQUESTS {
        let mut entry = scene.entry(n).await;
        if n == 4 {
            // The compute node's word does not carry its signature: no validator approves that.
            entry.delivery.results[0].signature = Signature::sign(&B256::repeat_byte(1), &*scene.compute).await.unwrap();
        }
        ledger.redeem(&entry.quote, &PaymentAuthorization::Voucher(entry.payment)).await.unwrap();
        let BatchEntry { quote, delivery, certificate, .. } = entry;
        let committee = quote.committee_of(&scene.network.trust).unwrap();
        ledger.settle(&Settlement::new(quote, committee, delivery, certificate).unwrap()).await.unwrap();
    }
    let expected = Amount::new(PRICE.units() * u128::from(REQUESTS - 1));
    let settled = async || chain.channel(scene.terms.id()).await.unwrap().unwrap().settled;
    // The channel state follows the chain a moment later. It is what counts: until then, entries that are settled are in it.
    eventually("what is good is settled, and the bad one is kept for people to look at", async || {
        ledger.flush();
        settled().await == expected && ledger.unsettled() == 1
    })
    .await;
    assert_eq!(settled().await, expected, "nothing is charged twice");
    assert_eq!(chain.refusals.load(Ordering::SeqCst), 0);
}
