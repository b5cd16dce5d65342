//! Many requests out of one deposit.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256};

use super::{LIFETIME, PRICE, PURSE, Scene, times};
use crate::{
    Amount, Approval, Channel, ChannelClose, ChannelParams, Committee, DynSigner, LedgerError, Message as _, PaymentStatus,
    PayoutSchedule, QuorumCertificate, Settlement, Signature, SignedVoucher, UnixTime,
    channel::{Batch, BatchEntry, CertifiedBatch, ChargeStart, MAX_CHANNEL_SECONDS, Numbers},
    conformance::{Rules, SALT, Violation, key, rand_bytes},
};

/// How long a channel of the suite can be charged: longer than any of its quotes.
const OPEN: u64 = 4 * LIFETIME;

type Checked = Result<(), Violation>;

#[allow(clippy::expect_used, reason = "a local key always signs; this is a test suite")]
impl Scene<'_> {
    /// A channel that is not open yet.
    pub(super) fn terms(&self) -> ChannelParams {
        ChannelParams { client: self.client.address(), gateway: self.gateway.address(), salt: rand_bytes().into() }
    }

    /// A channel with this deposit.
    pub(super) async fn opened(&self, rules: &mut Rules, deposit: Amount) -> Result<ChannelParams, Violation> {
        let (terms, expiry) = (self.terms(), self.now().await? + OPEN);
        rules.ok("a client opens a channel", self.fund(&self.client, &terms, deposit, expiry).await)?;
        Ok(terms)
    }

    /// Funds a channel, as this account.
    pub(super) async fn fund(
        &self,
        signer: &DynSigner,
        terms: &ChannelParams,
        deposit: Amount,
        expiry: UnixTime,
    ) -> Result<B256, LedgerError> {
        self.fixture.chain().fund_channel(signer.clone(), terms, deposit, expiry).await
    }

    /// Closes a channel, as this account.
    pub(super) async fn close(
        &self,
        signer: &DynSigner,
        terms: &ChannelParams,
        agreement: Option<Signature>,
    ) -> Result<B256, LedgerError> {
        self.fixture.chain().close_channel(signer.clone(), terms, agreement).await
    }

    /// What the ledger has of a channel that was opened.
    pub(super) async fn channel(&self, terms: &ChannelParams) -> Result<Channel, Violation> {
        let channel = self.strange_settler.channel(terms.id()).await;
        let found = channel.clone().ok().flatten();
        found.ok_or_else(|| Violation { rule: "everyone sees a channel", what: format!("{channel:?}") })
    }

    /// A served request of this price, by a voucher that `signer` signed.
    async fn request(
        &self,
        terms: &ChannelParams,
        (number, total, cumulative): (u64, Amount, Amount),
        signer: &DynSigner,
    ) -> Result<BatchEntry, Violation> {
        let mut quote = self.quote().await?;
        (quote.total, quote.price.base) = (total, total);
        let Settlement { quote, delivery, certificate, .. } = self.settlement(&quote, self.threshold()).await;
        let payment =
            SignedVoucher::sign(*terms, &quote, number, cumulative, &self.trust, signer).await.expect("a local key signs");
        Ok(BatchEntry { quote, delivery, certificate, payment })
    }

    /// Served requests, with the vouchers number `from` to `to` of their channel.
    pub(super) async fn requests(&self, terms: &ChannelParams, from: u64, to: u64) -> Result<Vec<BatchEntry>, Violation> {
        let mut entries = Vec::new();
        for number in from..=to {
            entries.push(self.request(terms, (number, PRICE, times(number.into())), &self.client).await?);
        }
        Ok(entries)
    }

    /// Requests as a gateway hands them in, approved by this many validators.
    pub(super) async fn certified(
        &self,
        entries: Vec<BatchEntry>,
        settled: &[(&ChannelParams, Amount)],
        approvals: usize,
    ) -> CertifiedBatch {
        let start = |(terms, settled): &(&ChannelParams, Amount)| {
            let over = entries.iter().map(|entry| entry.payment.voucher).filter(|voucher| voucher.channel == terms.id());
            let last = over.map(|voucher| voucher.number).max().unwrap_or_default();
            (terms.id(), ChargeStart { settled: *settled, numbers: Numbers { base: last + 1, over: 0 } })
        };
        let channels = settled.iter().map(start).collect();
        let batch = Batch::new(entries, &channels, self.trust.treasury).expect("the suite's requests make a batch");
        let vouchers: Vec<_> = batch.vouchers().into_values().collect();
        let committees = self.committees(&vouchers);
        let certificate = QuorumCertificate::default();
        let mut certified = CertifiedBatch { settlement: batch.settlement, vouchers, committees, certificate };
        self.approve(&mut certified, approvals).await;
        certified
    }

    /// Who has to approve charges by these vouchers.
    fn committees(&self, vouchers: &[SignedVoucher]) -> Vec<Committee> {
        vouchers.iter().map(|payment| self.trust.committee(&SALT, &payment.voucher.request_id)).collect()
    }

    /// Has this many validators of each committee approve what is in the batch now.
    async fn approve(&self, batch: &mut CertifiedBatch, approvals: usize) {
        let digest = batch.settlement.digest(&self.trust.channel_domain());
        let validators = self.fixture.chain().validators();
        let mut signed = BTreeMap::new();
        for committee in &batch.committees {
            let members = validators.iter().filter(|validator| committee.members.contains(&validator.address()));
            for validator in members.take(approvals) {
                let approval = Approval::sign(&digest, &**validator).await.expect("a local key signs");
                signed.insert(validator.address(), approval);
            }
        }
        batch.certificate = QuorumCertificate::new(signed.into_values().collect());
    }

    /// The signature of `gateway` to close a channel that was charged this much.
    async fn agreement(&self, terms: &ChannelParams, settled: Amount, gateway: &DynSigner) -> Signature {
        let close = ChannelClose { channel: terms.id(), settled };
        Signature::sign(&close.digest(&self.trust.channel_domain()), &**gateway).await.expect("a local key signs")
    }

    /// The tokens of these accounts.
    async fn balances(&self, accounts: impl IntoIterator<Item = &Address>) -> Result<BTreeMap<Address, Amount>, Violation> {
        let mut balances = BTreeMap::new();
        for account in accounts {
            let balance = self.ledger.balance(*account).await;
            let balance = balance.map_err(|error| Violation { rule: "balances can be read", what: error.to_string() })?;
            balances.insert(*account, balance);
        }
        Ok(balances)
    }

    /// What these requests pay, by the rule for each of them.
    fn shares(&self, rules: &mut Rules, entries: &[BatchEntry]) -> Result<BTreeMap<Address, Amount>, Violation> {
        let mut shares: BTreeMap<Address, Amount> = BTreeMap::new();
        for entry in entries {
            let completion = rules.ok("a delivery leads to a completion", entry.completion())?;
            let validators = entry.certificate.validators();
            let tree = PayoutSchedule::new(&entry.quote, &completion, &validators, self.trust.treasury);
            for payout in rules.ok("a payment can be split", tree)?.payouts {
                let share = shares.entry(payout.address).or_default();
                *share = [*share, payout.amount].into_iter().sum();
            }
        }
        Ok(shares)
    }
}

/// What the chain shows to everybody.
pub(super) async fn shows(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let trust = scene.strange_settler.trust_root().await;
    rules.check("everyone sees the same network", trust.as_ref() == Ok(&scene.trust), trust)?;
    let owner = scene.settler.subnet_owner(B256::repeat_byte(9)).await;
    rules.check("a subnet that nobody has created has no owner", owner == Ok(None), owner)?;
    let quote = scene.quote().await?;
    rules.ok("a client pays", scene.escrow(&quote).await)?;
    let known = scene.ledger.status(quote.client, quote.request_id).await;
    let seen = scene.strange_settler.status(quote.client, quote.request_id).await;
    rules.check("everyone sees an escrow", seen == known && matches!(seen, Ok(PaymentStatus::Held { .. })), (known, seen))?;
    let by = rules.ok("the gateway gives back", scene.give_back(&quote).await)?;
    let seen = scene.strange_settler.status(quote.client, quote.request_id).await;
    rules.check("everyone sees a refund", seen == Ok(PaymentStatus::Refunded { by }), seen)
}

pub(super) async fn funds(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let (terms, expiry) = (scene.terms(), scene.now().await? + OPEN);
    let (deposit, client) = (times(3), &scene.client);
    let unknown = scene.settler.channel(terms.id()).await;
    rules.check("a channel that was never opened is not known", unknown == Ok(None), unknown)?;
    let refused = scene.close(&scene.gateway, &terms, None).await;
    rules.refused("what was never opened is not closed", refused, LedgerError::is_retryable)?;
    for (rule, signer, deposit, expiry) in [
        ("only its client opens a channel", &scene.gateway, deposit, expiry),
        ("a channel is not opened without a deposit", client, Amount::ZERO, expiry),
        ("a channel is not opened in the past", client, deposit, 1),
        ("a deposit is not locked for ever", client, deposit, expiry + MAX_CHANNEL_SECONDS),
    ] {
        rules.refused(rule, scene.fund(signer, &terms, deposit, expiry).await, LedgerError::is_retryable)?;
    }
    let poor = scene.fund(client, &terms, times(11), expiry).await;
    let said = matches!(&poor, Err(LedgerError::InsufficientFunds { needed, .. }) if *needed == times(11));
    rules.check("lack of a deposit is said so", said, poor)?;
    let left = scene.balance(&scene.client).await;
    rules.check("a channel that is not opened costs nothing", left == PURSE, left)?;

    let transaction = rules.ok("a client opens a channel", scene.fund(client, &terms, deposit, expiry).await)?;
    stands(rules, scene, &terms, (deposit, expiry)).await?;
    let again = scene.fund(client, &terms, deposit, expiry).await;
    rules.check("opening again is the same transaction", again == Ok(transaction), again)?;
    let less = scene.fund(client, &terms, PRICE, expiry - 60).await;
    rules.check("neither deposit nor expiry is lowered", less == Ok(transaction), less)?;
    stands(rules, scene, &terms, (deposit, expiry)).await?;

    let raised = rules.ok("a client tops its channel up", scene.fund(client, &terms, times(5), expiry).await)?;
    rules.check("topping up is a transaction of its own", raised != transaction, raised)?;
    stands(rules, scene, &terms, (times(5), expiry)).await?;
    let again = scene.fund(client, &terms, times(5), expiry).await;
    rules.check("topping up again is the same transaction", again == Ok(raised), again)?;
    let refused = scene.fund(&scene.gateway, &terms, times(6), expiry).await;
    rules.refused("only its client tops a channel up", refused, LedgerError::is_retryable)?;
    rules.ok("a client extends its channel", scene.fund(client, &terms, times(5), expiry + 60).await)?;
    stands(rules, scene, &terms, (times(5), expiry + 60)).await?;
    rules.ok("a client does both at once", scene.fund(client, &terms, times(6), expiry + 120).await)?;
    stands(rules, scene, &terms, (times(6), expiry + 120)).await
}

/// The channel is as it was stated, and its client's only one.
async fn stands(rules: &mut Rules, scene: &Scene<'_>, terms: &ChannelParams, (deposit, expiry): (Amount, UnixTime)) -> Checked {
    let channel = scene.channel(terms).await?;
    let wanted = Channel { deposit, settled: Amount::ZERO, numbers: Numbers::default(), expiry, open: true };
    rules.check("deposit and expiry are as stated", channel == wanted, channel)?;
    let left = scene.balance(&scene.client).await;
    rules.check("a channel costs its deposit", PURSE.checked_sub(left) == Some(deposit), left)
}

pub(super) async fn charges(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let (terms, second) = (scene.opened(rules, times(4)).await?, scene.opened(rules, times(2)).await?);
    refuses(rules, scene, &terms, &second).await?;

    let entries = scene.requests(&terms, 1, 2).await?;
    let first = scene.certified(entries.clone(), &[(&terms, Amount::ZERO)], scene.threshold()).await;
    let shares = scene.shares(rules, &entries)?;
    let before = scene.balances(shares.keys()).await?;
    let (account, view) = (scene.compute.address(), &scene.strange_settler);
    let now = view.channel_payouts(account, None).await;
    let (none, from) = rules.ok("payouts can be followed from now on", now)?;
    rules.check("what was paid before is not told", none.is_zero(), none)?;
    let refused = scene.strange_settler.settle_batch(&first).await;
    rules.refused("only the channels' gateway settles a batch", refused, LedgerError::is_retryable)?;
    let transaction = rules.ok("an approved batch settles", scene.settler.settle_batch(&first).await)?;
    let paid = scene.balances(shares.keys()).await?;
    pays(rules, &before, &shares, &paid)?;
    let told = view.channel_payouts(account, Some(from)).await;
    let (sum, next) = rules.ok("payouts can be followed", told)?;
    rules.check("a payout is told to the unit", Some(&sum) == shares.get(&account), sum)?;
    let again = view.channel_payouts(account, Some(next)).await;
    rules.check("a payout is told once", matches!(again, Ok((sum, _)) if sum.is_zero()), again)?;
    let channel = scene.channel(&terms).await?;
    rules.check("a channel is charged what was served", channel.settled == times(2), channel)?;
    let over = [1, 2, 3].map(|number| channel.numbers.contains(number));
    rules.check("the numbers of what was served are over", over == [true, true, false], channel)?;
    for (before, root) in [(Amount::ZERO, Some(first.settlement.root)), (times(2), None)] {
        let told = scene.strange_settler.charged_root(terms.id(), before).await;
        rules.check("everyone sees which batch has charged a channel", told == Ok(root), told)?;
    }
    for ledger in [&scene.settler, &scene.strange_settler] {
        let again = ledger.settle_batch(&first).await;
        rules.check("settling a batch again is the same transaction", again == Ok(transaction), again)?;
    }
    let after = scene.balances(shares.keys()).await?;
    rules.check("a batch is paid once", after == paid, (&paid, after))?;
    let again = scene.channel(&terms).await?;
    rules.check("a batch is charged once", again == channel, again)?;

    let mut other = first.clone();
    for charge in &mut other.settlement.charges {
        charge.settled_after = PRICE;
    }
    scene.approve(&mut other, scene.threshold()).await;
    let refused = scene.settler.settle_batch(&other).await;
    rules.refused("another settlement of the same requests is not the same", refused, LedgerError::is_retryable)?;
    let entries = scene.requests(&terms, 3, 3).await?;
    let stale = scene.certified(entries.clone(), &[(&terms, Amount::ZERO)], scene.threshold()).await;
    let refused = scene.settler.settle_batch(&stale).await;
    rules.refused("a settlement starts from what was charged", refused, LedgerError::is_retryable)?;
    let mut reopened = scene.certified(entries.clone(), &[(&terms, times(2))], scene.threshold()).await;
    for charge in &mut reopened.settlement.charges {
        charge.numbers = Numbers { base: 2, over: 0b10 };
    }
    scene.approve(&mut reopened, scene.threshold()).await;
    let refused = scene.settler.settle_batch(&reopened).await;
    rules.refused("a number that is over stays over", refused, LedgerError::is_retryable)?;
    let after = scene.balances(shares.keys()).await?;
    rules.check("a batch that is refused pays nothing", after == paid, after)?;

    let entries = [entries, scene.requests(&second, 1, 1).await?].concat();
    let charged = [(&terms, times(2)), (&second, Amount::ZERO)];
    let next = scene.certified(entries.clone(), &charged, scene.threshold()).await;
    let shares = scene.shares(rules, &entries)?;
    let before = scene.balances(shares.keys()).await?;
    rules.ok("one batch charges several channels", scene.settler.settle_batch(&next).await)?;
    pays(rules, &before, &shares, &scene.balances(shares.keys()).await?)?;
    let settled = (scene.channel(&terms).await?.settled, scene.channel(&second).await?.settled);
    rules.check("each channel is charged for its own requests", settled == (times(3), PRICE), settled)?;
    let again = scene.settler.settle_batch(&first).await;
    rules.check("an earlier batch again is its own transaction", again == Ok(transaction), again)
}

/// Everyone has got its part, between two looks at the balances.
fn pays(
    rules: &mut Rules,
    before: &BTreeMap<Address, Amount>,
    shares: &BTreeMap<Address, Amount>,
    after: &BTreeMap<Address, Amount>,
) -> Checked {
    for (account, share) in shares {
        let of = |balances: &BTreeMap<Address, Amount>| balances.get(account).copied().unwrap_or_default();
        let gained = of(after).checked_sub(of(before));
        rules.check("everyone gets its part of a batch, to the unit", gained == Some(*share), (account, share, gained))?;
    }
    Ok(())
}

/// What must not be settled, while `terms` and `second` are open and uncharged.
async fn refuses(rules: &mut Rules, scene: &Scene<'_>, terms: &ChannelParams, second: &ChannelParams) -> Checked {
    let (threshold, none) = (scene.threshold(), Amount::ZERO);
    let entries = scene.requests(terms, 1, 2).await?;
    let good = scene.certified(entries.clone(), &[(terms, none)], threshold).await;
    let of_another = scene.requests(second, 1, 1).await?;
    let mut cases: Vec<(&'static str, CertifiedBatch)> = Vec::new();
    let few = scene.certified(entries.clone(), &[(terms, none)], threshold - 1).await;
    cases.push(("too few approvals settle no batch", few));
    let mut replayed = good.clone();
    replayed.certificate = scene.certified(of_another.clone(), &[(second, none)], threshold).await.certificate;
    cases.push(("another settlement's approvals settle no batch", replayed));
    let mut diverted = good.clone();
    for payout in &mut diverted.settlement.payouts {
        if payout.account == scene.compute.address() {
            payout.account = scene.outsider.address();
        }
    }
    diverted.settlement.payouts.sort_unstable_by_key(|payout| payout.account);
    cases.push(("approvals bind a batch's payees", diverted));
    let mut larger = good.clone();
    for payout in &mut larger.settlement.payouts {
        payout.amount = [payout.amount, Amount::new(1)].into_iter().sum();
    }
    scene.approve(&mut larger, threshold).await;
    cases.push(("a batch pays what it charges", larger));
    let mut overspent = good.clone();
    overspent.vouchers = entries.iter().map(|entry| entry.payment).filter(|payment| payment.voucher.cumulative == PRICE).collect();
    overspent.committees = scene.committees(&overspent.vouchers);
    scene.approve(&mut overspent, threshold).await;
    cases.push(("no more is charged than the voucher allows", overspent));
    let mut elsewhere = good.clone();
    elsewhere.vouchers = of_another.iter().map(|entry| entry.payment).collect();
    elsewhere.committees = scene.committees(&elsewhere.vouchers);
    scene.approve(&mut elsewhere, threshold).await;
    cases.push(("another channel's voucher charges nothing", elsewhere));
    let mut picked = good.clone();
    for committee in &mut picked.committees {
        committee.members = scene.fixture.chain().validators().iter().map(|validator| validator.address()).collect();
        committee.members.sort_unstable();
        committee.threshold = 1;
    }
    scene.approve(&mut picked, threshold).await;
    cases.push(("a voucher names who approves its charge", picked));
    let mut missing = good.clone();
    missing.vouchers.clear();
    missing.committees.clear();
    cases.push(("nothing is charged without a voucher", missing));
    let forged = vec![scene.request(terms, (1, PRICE, PRICE), &key()).await?];
    cases.push(("only the client's voucher charges", scene.certified(forged, &[(terms, none)], threshold).await));
    let much = vec![scene.request(terms, (1, times(5), times(5)), &scene.client).await?];
    cases.push(("no more is charged than the deposit", scene.certified(much, &[(terms, none)], threshold).await));
    let unknown = scene.terms();
    let unopened = scene.requests(&unknown, 1, 1).await?;
    cases.push(("what was never opened is not charged", scene.certified(unopened, &[(&unknown, none)], threshold).await));
    for (rule, batch) in cases {
        rules.refused(rule, scene.settler.settle_batch(&batch).await, LedgerError::is_retryable)?;
        let settled = scene.channel(terms).await?.settled;
        rules.check("a batch that is refused charges nothing", settled.is_zero(), (rule, settled))?;
    }
    Ok(())
}

pub(super) async fn closes(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let (terms, deposit) = (scene.opened(rules, times(4)).await?, times(4));
    let none = scene.agreement(&terms, Amount::ZERO, &scene.gateway).await;
    let batch = scene.certified(scene.requests(&terms, 1, 1).await?, &[(&terms, Amount::ZERO)], scene.threshold()).await;
    rules.ok("an approved batch settles", scene.settler.settle_batch(&batch).await)?;

    let forged = scene.agreement(&terms, PRICE, &key()).await;
    let elsewhere = scene.agreement(&scene.terms(), PRICE, &scene.gateway).await;
    for (rule, signer, agreement) in [
        ("a stranger closes no channel", &scene.outsider, None),
        ("a client does not close alone before the expiry", &scene.client, None),
        ("only the gateway's signature closes", &scene.client, Some(forged)),
        ("another channel's agreement does not close", &scene.client, Some(elsewhere)),
        ("an agreement ends with the next settlement", &scene.client, Some(none)),
    ] {
        rules.refused(rule, scene.close(signer, &terms, agreement).await, LedgerError::is_retryable)?;
    }
    let channel = scene.channel(&terms).await?;
    rules.check("what does not close changes nothing", (channel.open, channel.deposit) == (true, deposit), channel)?;

    let agreement = Some(scene.agreement(&terms, PRICE, &scene.gateway).await);
    let transaction = rules.ok("a client closes by agreement", scene.close(&scene.client, &terms, agreement).await)?;
    closed(rules, scene, &terms, PRICE, transaction).await?;
    let left = scene.balance(&scene.client).await;
    rules.check("the rest of a deposit goes back to the client", PURSE.checked_sub(left) == Some(PRICE), left)?;
    let again = scene.close(&scene.client, &terms, agreement).await;
    rules.check("closing again is the same transaction", again == Ok(transaction), again)?;
    let expiry = channel.expiry + 60;
    let refused = scene.fund(&scene.client, &terms, times(5), expiry).await;
    rules.refused("what is closed is not funded", refused, LedgerError::is_retryable)?;
    let late = scene.certified(scene.requests(&terms, 2, 2).await?, &[(&terms, PRICE)], scene.threshold()).await;
    let refused = scene.settler.settle_batch(&late).await;
    rules.refused("what is closed is not charged", refused, LedgerError::is_retryable)?;
    let after = scene.balance(&scene.client).await;
    rules.check("a channel is closed once", after == left, after)?;

    let unused = scene.opened(rules, deposit).await?;
    let transaction = rules.ok("a gateway closes alone", scene.close(&scene.gateway, &unused, None).await)?;
    closed(rules, scene, &unused, Amount::ZERO, transaction).await?;
    let after = scene.balance(&scene.client).await;
    rules.check("an unused deposit goes back whole", after == left, after)
}

/// A closed channel says so, and closing it again does nothing, whoever asks.
async fn closed(rules: &mut Rules, scene: &Scene<'_>, terms: &ChannelParams, settled: Amount, transaction: B256) -> Checked {
    let channel = scene.channel(terms).await?;
    rules.check("a closed channel says so", (channel.open, channel.settled) == (false, settled), channel)?;
    let again = scene.close(&scene.gateway, terms, None).await;
    rules.check("closing again is the same transaction", again == Ok(transaction), again)
}

pub(super) async fn expires(rules: &mut Rules, scene: &Scene<'_>) -> Checked {
    let terms = scene.opened(rules, times(4)).await?;
    let none = &[(&terms, Amount::ZERO)];
    let first = scene.certified(scene.requests(&terms, 1, 1).await?, none, scene.threshold()).await;
    rules.ok("an approved batch settles", scene.settler.settle_batch(&first).await)?;
    let early = scene.close(&scene.outsider, &terms, None).await;
    rules.refused("a stranger closes no channel", early, LedgerError::is_retryable)?;
    scene.fixture.chain().advance(OPEN + 60).await;
    let late = scene.certified(scene.requests(&terms, 2, 2).await?, &[(&terms, PRICE)], scene.threshold()).await;
    let refused = scene.settler.settle_batch(&late).await;
    rules.refused("past its expiry a channel is not charged", refused, LedgerError::is_retryable)?;
    let expiry = scene.now().await? + OPEN;
    let refused = scene.fund(&scene.client, &terms, times(5), expiry).await;
    rules.refused("past its expiry a channel is not funded", refused, LedgerError::is_retryable)?;
    let transaction = rules.ok("past its expiry anyone closes a channel", scene.close(&scene.outsider, &terms, None).await)?;
    closed(rules, scene, &terms, PRICE, transaction).await?;
    let left = scene.balance(&scene.client).await;
    rules.check("an expired deposit's rest goes to the client", PURSE.checked_sub(left) == Some(PRICE), left)
}
