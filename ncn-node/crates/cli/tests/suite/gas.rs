//! What the network's transactions cost, measured by running the contracts. `cargo xtask gas` writes it to docs/gas.md; what grows
//! above that fails here.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, sync::Arc};

use alloy_consensus::TxEip1559;
use alloy_primitives::{B256, TxKind, U256, keccak256};
use alloy_sol_types::SolCall as _;
use ncn_client::evm::{EvmBackend as _, EvmLedger, EvmReader as _, NCNToken};
use ncn_core::{
    Address, Amount, Approval, BatchSettler as _, ChannelCharge, ChannelClose, ChannelParams, ChannelPayout, ChannelSettlement,
    Delivery, DynSigner, Epoch, Message as _, PaymentAuthorization, PaymentLedger as _, PayoutSchedule, Price, QuorumCertificate,
    Quote, Settlement, Signature, Signed, SignedVoucher, TaskCapability, TrustRoot,
    channel::{Batch, BatchEntry, CertifiedBatch, ChargeStart, MerkleTree, Numbers},
};
use tokio::sync::OnceCell;

use crate::{
    rpc::signed,
    scene::{Chain, delivered, flat_quote, key, repository, result_of, tokens},
};

/// Says that the table is to be written anew.
const WRITE: &str = "NCN_GAS_WRITE";
/// By how many hundredths a row may be above what is stated.
const TOLERANCE: u64 = 5;
const QUORUMS: [(u16, u16); 3] = [(3, 5), (7, 10), (14, 20)];
/// What a request costs: 0.01 NCN.
const PRICE: u128 = 10_000_000_000_000_000;
/// How many compute nodes serve a channel.
const NODES: u64 = 4;
const HOUR: u64 = 3_600;

const HEAD: &str = "# Gas

What each transaction of the network costs in full: its base fee, its calldata, what it executes and stores. Made by

    cargo xtask gas

which runs the contracts of `contracts/artifacts` on the embedded chain (rules of Prague), through the client's own code
(`ncn-node/crates/cli/tests/suite/gas.rs`), and writes this file. A test fails when a row grows by more than 5 %.

- **Unit.** Gas, rounded up to the hundred; \"per request\" is gas divided by the number of requests that the transaction pays.
- **Steady state.** Everyone who is paid has held the token before, other escrows and channels are open, and no balance falls to zero.
  An account's first tokens cost 17,100 gas more, once.
- **Quorum.** M approvals of N validators; the network has exactly N. Rows without one cost the same under any.
- **Payments.** 0.01 NCN a request, split as usual: compute 80 %, gateway 10 %, validators 5 %, treasury 5 %.
- **Settlements** charge one channel. The batch of 1 pays one compute node, the gateway, the M validators that approved it and the
  treasury; the larger ones pay 4 compute nodes, the gateway, all N validators and the treasury. The batches of 1 and 100 are made of
  signed requests. Those of 10,000 and 1,000,000 have a Merkle tree over as many synthetic leaves (10,000 random hashes; the same, a
  hundred times over): the contract sees only the root, the number and the sums. Validators judge at most 10,000 requests at once, so the last row shows a trend, not a use.

";

const TAIL: &str = "
## What was tried to lower the escrow's cost

Of `initiate`, 53,100 gas cannot be saved while one transaction moves tokens into custody for one request: the transaction itself
(21,000), one new storage slot (22,100), two balances of the token (5,000 each). What the rest was tried on, as `forge test` measures
`initiate` (71,511):

| variant | gas | difference | taken |
| --- | ---: | ---: | --- |
| one slot, the hash of the quote; the quote comes back as calldata; a second slot would be 22,100 more | 71,511 | | yes |
| guard against reentrancy in a storage slot instead of transient storage | 73,517 | +2,006 | no |
| one mapping by the hash of (client, request id) instead of a nested one | 72,058 | +547 | no |
| compiler set to 1,000,000 runs instead of 10,000 | 71,499 | -12 | no: more code to deploy for nothing |
| no comparison of the balance before and after the transfer | 69,526 | -1,985 | no: a token that keeps a part on the way would be paid out of the others' money |

By design, too: the approval of the quote is checked by the client, who could lose by it, and not again by the contract. A standing
allowance is given once. An authorization costs a signature and a slot for the token's nonce, but neither an earlier transaction nor gas
of the client's. An ended request keeps its slot, with a marker in it, so that its id is never used twice.

Below that it takes channels: a deposit once, a voucher that costs nothing for each request, and one settlement for all of them.
";

/// One line of the table.
struct Row {
    transaction: String,
    quorum: String,
    gas: u64,
    requests: u64,
}

impl Row {
    fn name(&self) -> String {
        format!("{} | {}", self.transaction, self.quorum)
    }

    /// Up to the hundred, so that a table made again is the same: a signature with a zero byte more costs 12 gas less.
    fn rounded(&self) -> u64 {
        self.gas.next_multiple_of(100)
    }
}

/// With a comma after every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn per_request(row: &Row) -> String {
    match row.requests {
        0 => String::new(),
        1 => grouped(row.rounded()),
        count => {
            let hundredths = (row.rounded() * 100).div_ceil(count);
            format!("{}.{:02}", grouped(hundredths / 100), hundredths % 100)
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = String::from("| transaction | M of N | gas | per request |\n| --- | --- | ---: | ---: |\n");
    for row in rows {
        let _ = writeln!(table, "| {} | {} | {} |", row.name(), grouped(row.rounded()), per_request(row));
    }
    table
}

/// The gas of each row of a table, by transaction and quorum.
fn stated(document: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [transaction, quorum, gas, _] = cells[..] else { return None };
        Some((format!("{transaction} | {quorum}"), gas.replace(',', "").parse().ok()?))
    };
    // The first table, not the one of what was tried.
    document.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).filter_map(row).collect()
}

fn document() -> PathBuf {
    repository("docs/gas.md")
}

/// A network where everyone has tokens.
struct Scene {
    chain: Chain,
    epoch: Epoch,
    trust: TrustRoot,
    quorum: String,
    client: DynSigner,
    gateway: DynSigner,
    nodes: Vec<DynSigner>,
    rows: Vec<Row>,
    requests: u64,
}

/// The numbers of a channel's requests that are over once it was charged so much.
fn numbers(charged: u128) -> Numbers {
    Numbers { base: u64::try_from(charged / PRICE).unwrap(), over: 0 }
}

impl Scene {
    async fn new(m: u16, n: u16) -> Self {
        let chain = Chain::with_quorum(usize::from(n), m, n).await;
        let epoch = chain.epoch().await;
        let trust = epoch.trust.clone();
        let nodes = (0..NODES).map(|_| key()).collect();
        let (client, gateway) = (key(), key());
        let mut scene =
            Self { chain, epoch, trust, quorum: format!("{m} of {n}"), client, gateway, nodes, rows: Vec::new(), requests: 0 };
        let deployer = &scene.chain.deployer;
        deployer.transfer(scene.client.address(), tokens(30_000)).await.unwrap();
        let validators = scene.chain.validators.iter().chain(&scene.nodes).chain([&scene.gateway]);
        let payees: Vec<_> = validators.map(|signer| signer.address()).chain([scene.trust.treasury]).collect();
        for payee in payees {
            deployer.transfer(payee, tokens(1)).await.unwrap();
        }
        // Somebody else's, so that the contracts hold tokens before and after.
        let quote = scene.quote().await;
        scene.ledger(&scene.client).escrow(&quote).await.unwrap();
        let terms = scene.terms(0);
        let expiry = scene.expiry().await;
        scene.ledger(&scene.client).fund_channel(&terms, tokens(1), expiry).await.unwrap();
        scene
    }

    fn ledger(&self, signer: &DynSigner) -> Arc<EvmLedger> {
        self.chain.ledger(signer.clone())
    }

    fn terms(&self, number: u64) -> ChannelParams {
        let salt = keccak256(number.to_be_bytes());
        ChannelParams { client: self.client.address(), gateway: self.gateway.address(), salt }
    }

    async fn expiry(&self) -> u64 {
        self.chain.deployer.now().await.unwrap() + 24 * HOUR
    }

    /// Writes a transaction down, which pays this many requests.
    async fn measure(&mut self, transaction: &str, requests: u64, hash: B256) {
        let gas = self.chain.chain.transaction_receipt(hash).await.unwrap().unwrap().gas_used;
        let (transaction, quorum) = (transaction.to_owned(), self.quorum.clone());
        self.rows.push(Row { transaction, quorum, gas, requests });
    }

    /// The same, where the validators have no part in it.
    async fn measure_alone(&mut self, transaction: &str, requests: u64, hash: B256) {
        self.measure(transaction, requests, hash).await;
        self.rows.last_mut().unwrap().quorum = String::from("any");
    }

    async fn quote(&mut self) -> Quote {
        self.requests += 1;
        let parties = [self.client.address(), self.gateway.address(), self.nodes[0].address()];
        let expiry = self.chain.deployer.now().await.unwrap() + HOUR;
        flat_quote(&self.epoch, keccak256(self.requests.to_be_bytes()), parties, Amount::new(PRICE), expiry)
    }

    /// The approval of a digest by the first `count` of these validators.
    async fn approve(&self, digest: B256, among: &[Address], count: usize) -> QuorumCertificate {
        let mut approvals = Vec::new();
        for judge in self.chain.validators.iter().filter(|judge| among.contains(&judge.address())).take(count) {
            approvals.push(Approval::sign(&digest, &**judge).await.unwrap());
        }
        QuorumCertificate::new(approvals)
    }

    fn threshold(&self) -> usize {
        usize::from(self.trust.threshold)
    }

    /// A request that `node` served, approved by M validators, the first of them being number `first`.
    async fn served(&mut self, node: usize, first: usize) -> Settlement {
        let (quote, node) = (self.quote().await, self.nodes[node].clone());
        let delivery = delivered(result_of(&quote, node.address()), &node, &self.trust.domain).await;
        let completion = delivery.completion(&quote).unwrap();
        let digest = completion.digest(&self.trust.domain);
        let all = &self.trust.validators;
        let judges: Vec<_> = all.iter().cycle().skip(first % all.len()).take(self.threshold()).copied().collect();
        let certificate = self.approve(digest, &judges, judges.len()).await;
        let committee = quote.committee_of(&self.trust).unwrap();
        Settlement { quote, committee, delivery, completion, certificate }
    }

    /// Gives a contract a standing allowance, without limit.
    async fn allow(&self, spender: Address) {
        let chain = &self.chain.chain;
        let transaction = TxEip1559 {
            chain_id: self.trust.domain.chain_id,
            nonce: chain.nonces(self.client.address()).await.unwrap().pending,
            gas_limit: 100_000,
            to: TxKind::Call(self.trust.token),
            input: NCNToken::approveCall { spender, value: U256::MAX }.abi_encode().into(),
            ..TxEip1559::default()
        };
        chain.send_raw_transaction(signed(&self.client, transaction).await).await.unwrap();
    }

    async fn escrows(&mut self) {
        let (client, gateway) = (self.ledger(&self.client), self.ledger(&self.gateway));
        let quote = self.quote().await;
        let authorization = PaymentAuthorization::transfer(&self.trust, &quote, &self.client).await.unwrap();
        let relayed = gateway.redeem(&quote, &authorization).await.unwrap();
        let consent = Signature::sign(&TaskCapability::cancel(&quote).digest(&self.trust.domain), &*self.client).await.unwrap();
        let failed = gateway.refund(&quote, Some(&consent)).await.unwrap();

        self.allow(self.trust.domain.contract).await;
        let expiring = self.quote().await;
        let initiated = client.escrow(&expiring).await.unwrap();
        self.measure_alone("initiate, by a standing allowance", 1, initiated).await;
        self.measure_alone("initiate, by an authorization that the gateway relays", 1, relayed.transaction().unwrap()).await;
        self.measure_alone("refund, by the gateway, with the client's consent", 1, failed).await;
        self.chain.chain.advance(2 * HOUR);
        let expired = self.ledger(&self.nodes[0]).refund(&expiring, None).await.unwrap();
        self.measure_alone("refund, by anyone after the expiry", 1, expired).await;
    }

    async fn completes(&mut self) {
        let settlement = self.served(0, 0).await;
        self.ledger(&self.client).escrow(&settlement.quote).await.unwrap();
        let completed = self.ledger(&self.gateway).settle(&settlement).await.unwrap();
        self.measure("complete", 1, completed.transaction().unwrap()).await;
    }

    /// All that happens to a channel but its settlement.
    async fn channels(&mut self) {
        let (client, gateway) = (self.ledger(&self.client), self.ledger(&self.gateway));
        let expiry = self.expiry().await;
        let (first, second, third) = (self.terms(1), self.terms(2), self.terms(3));
        let authorized = client.fund_channel(&first, tokens(1), expiry).await.unwrap();
        let added = client.fund_channel(&first, tokens(2), expiry).await.unwrap();
        self.allow(self.trust.channels).await;
        let opened = client.fund_channel(&second, tokens(1), expiry).await.unwrap();
        self.measure_alone("open a channel, by a standing allowance", 0, opened).await;
        self.measure_alone("open a channel, by an authorization", 0, authorized).await;
        let raised = client.fund_channel(&second, tokens(2), expiry).await.unwrap();
        self.measure_alone("top a channel up, by a standing allowance", 0, raised).await;
        self.measure_alone("top a channel up, by an authorization", 0, added).await;
        client.fund_channel(&third, tokens(1), expiry).await.unwrap();

        let closed = gateway.close_channel(&first, None).await.unwrap();
        self.measure_alone("close a channel, by its gateway", 0, closed).await;
        let close = ChannelClose { channel: second.id(), settled: Amount::ZERO };
        let agreement = Signature::sign(&close.digest(&self.trust.channel_domain()), &*self.gateway).await.unwrap();
        let closed = client.close_channel(&second, Some(agreement)).await.unwrap();
        self.measure_alone("close a channel, by the client with the gateway's agreement", 0, closed).await;
        self.chain.chain.advance(25 * HOUR);
        let closed = self.ledger(&self.nodes[0]).close_channel(&third, None).await.unwrap();
        self.measure_alone("close a channel, by anyone after the expiry", 0, closed).await;
    }

    /// Settles 1, 100, 10,000 and 1,000,000 requests of one channel.
    async fn settlements(&mut self, roots: &[(u64, B256)]) {
        let (terms, expiry) = (self.terms(4), self.expiry().await);
        self.ledger(&self.client).fund_channel(&terms, tokens(20_000), expiry).await.unwrap();
        let mut charged = 0;
        for count in [1, 100] {
            let mut entries = Vec::new();
            for number in 0..count {
                let Settlement { quote, delivery, certificate, .. } = self.served(number % self.nodes.len(), number).await;
                charged += PRICE;
                let payment = self.voucher(&terms, &quote, charged).await;
                entries.push(BatchEntry { quote, delivery, certificate, payment });
            }
            let start = ChargeStart { settled: Amount::new(charged - PRICE * count as u128), numbers: numbers(charged) };
            let highest = entries.iter().max_by_key(|entry| entry.payment.voucher.cumulative).unwrap();
            let (voucher, quote) = (highest.payment, highest.quote.clone());
            let batch = Batch::new(entries, &BTreeMap::from([(terms.id(), start)]), self.trust.treasury).unwrap();
            self.settle(batch.settlement, &voucher, &quote).await;
        }
        for (count, root) in roots {
            let settled_before = Amount::new(charged);
            let mut quote = self.quote().await;
            quote.total = Amount::new(PRICE * u128::from(*count));
            quote.price = Price::flat(quote.total);
            charged += quote.total.units();
            let voucher = self.voucher(&terms, &quote, charged).await;
            let (settled_after, numbers) = (Amount::new(charged), numbers(charged));
            let charge = ChannelCharge { channel: terms.id(), settled_before, settled_after, numbers };
            let (root, count, payouts) = (*root, *count, self.payouts(&quote));
            self.settle(ChannelSettlement { root, count, charges: vec![charge], payouts }, &voucher, &quote).await;
        }
    }

    async fn voucher(&self, terms: &ChannelParams, quote: &Quote, cumulative: u128) -> SignedVoucher {
        let number = numbers(cumulative).base - 1;
        SignedVoucher::sign(*terms, quote, number, Amount::new(cumulative), &self.trust, &self.client).await.unwrap()
    }

    /// Who gets what, when all validators and all nodes had the same part in it.
    fn payouts(&self, quote: &Quote) -> Vec<ChannelPayout> {
        let first = self.nodes[0].address();
        // Nobody looks at a signature here.
        let result = Signed { message: result_of(quote, first), signature: Signature::try_from(&[27; 65][..]).unwrap() };
        let completion = Delivery::whole(result).unwrap().completion(quote).unwrap();
        let tree = PayoutSchedule::new(quote, &completion, &self.trust.validators, self.trust.treasury).unwrap();
        let mut shares: BTreeMap<_, _> = tree.payouts.iter().map(|payout| (payout.address, payout.amount.units())).collect();
        let part = shares[&first] / u128::from(NODES);
        for node in &self.nodes[1..] {
            shares.insert(node.address(), part);
            *shares.get_mut(&first).unwrap() -= part;
        }
        shares.into_iter().map(|(account, units)| ChannelPayout { account, amount: Amount::new(units) }).collect()
    }

    /// Settles by this voucher, which is for this quote.
    async fn settle(&mut self, settlement: ChannelSettlement, voucher: &SignedVoucher, quote: &Quote) {
        let digest = settlement.digest(&self.trust.channel_domain());
        let certificate = self.approve(digest, &self.trust.validators, self.threshold()).await;
        let count = settlement.count;
        let name = format!("settle {} {}", grouped(count), if count == 1 { "request" } else { "requests" });
        let committees = vec![quote.committee_of(&self.trust).unwrap()];
        let batch = CertifiedBatch { settlement, vouchers: vec![*voucher], committees, certificate };
        let settled = self.ledger(&self.gateway).settle_batch(&batch).await.unwrap();
        self.measure(&name, count, settled).await;
    }
}

/// Measured once, for all tests of this process.
async fn rows() -> &'static [Row] {
    static ROWS: OnceCell<Vec<Row>> = OnceCell::const_new();
    ROWS.get_or_init(measure).await
}

async fn measure() -> Vec<Row> {
    let many = MerkleTree::new((0..10_000).map(|_| B256::random()).collect()).unwrap().root();
    // Without optimisation a million leaves take a minute and more: the same ten thousand, a hundred times over, take a second.
    let most = MerkleTree::new(vec![many; 100]).unwrap().root();
    let roots = [(10_000, many), (1_000_000, most)];
    let mut rows = Vec::new();
    for (m, n) in QUORUMS {
        let mut scene = Scene::new(m, n).await;
        if rows.is_empty() {
            scene.escrows().await;
            scene.channels().await;
            rows.append(&mut scene.rows);
        }
        scene.completes().await;
        scene.settlements(&roots).await;
        rows.append(&mut scene.rows);
    }
    rows
}

#[tokio::test]
async fn no_transaction_grows() {
    let rows = rows().await;
    if std::env::var_os(WRITE).is_some() {
        fs::write(document(), [HEAD, &table(rows), TAIL].concat()).unwrap();
        return;
    }
    let stated = stated(&fs::read_to_string(document()).unwrap());
    let grown: Vec<_> = rows
        .iter()
        .filter_map(|row| match stated.get(&row.name()) {
            None => Some(format!("{}: is not in the table, costs {}", row.name(), grouped(row.gas))),
            Some(gas) if row.gas * 100 > gas * (100 + TOLERANCE) => {
                Some(format!("{}: costs {}, stated are {}", row.name(), grouped(row.gas), grouped(*gas)))
            }
            Some(_) => None,
        })
        .collect();
    assert!(grown.is_empty(), "docs/gas.md: make it cheaper, or say so with `cargo xtask gas`:\n{}", grown.join("\n"));
    assert_eq!(stated.len(), rows.len(), "docs/gas.md has rows that nothing measures: run `cargo xtask gas`");
}

/// What channels are for.
#[tokio::test]
async fn a_settlement_does_not_grow_with_its_requests() {
    let rows = rows().await;
    for (m, n) in QUORUMS {
        let quorum = format!("{m} of {n}");
        let gas = |requests| rows.iter().find(|row| row.quorum == quorum && row.requests == requests).unwrap().gas;
        let (many, most) = (gas(10_000), gas(1_000_000));
        assert!(many < 100 * 10_000, "{quorum}: {many} gas for 10,000 requests");
        assert!(most.abs_diff(many) * 100 < many, "{quorum}: {many} gas for 10,000 requests, {most} for 1,000,000");
    }
}
