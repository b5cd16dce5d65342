//! A gateway's channel state on a store that is full, slow, panics, or loses its answers.

#![allow(clippy::disallowed_methods, reason = "a store blocks its own thread")]

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ncn_client::unix_now;
use ncn_core::{
    Amount, B256, BatchSettler, ChainView, ChannelParams, DynSigner, Epoch, LedgerError, PaymentAuthorization, PaymentLedger,
    PaymentLedgerExt as _, PaymentStatus, Quote, Registry, SignedVoucher, TrustRoot, memory::MemoryRegistry,
};
use ncn_node::{
    channel::{BatchPolicy, ChannelProcessor},
    store::{MemoryStore, Op, Row, SharedStore, Store, StoreError, Table},
};

use crate::{
    money::Contracts as _,
    scene::{Behavior, Chain, InProcess, flat_quote, key, settlement, tokens},
    wait::eventually,
};

const WEEK: u64 = 7 * 24 * 3_600;

type Act = Arc<dyn Fn(&MemoryStore, &[Op]) -> Result<(), StoreError> + Send + Sync>;

#[derive(Default)]
struct Loads {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
    slow: AtomicBool,
}

#[derive(Clone)]
struct FaultyStore {
    rows: Arc<MemoryStore>,
    act: Arc<Mutex<Act>>,
    loads: Arc<Loads>,
}

impl FaultyStore {
    fn new() -> Self {
        let works: Act = Arc::new(Store::commit);
        Self { rows: Arc::default(), act: Arc::new(Mutex::new(works)), loads: Arc::default() }
    }

    fn acts(&self, act: impl Fn(&MemoryStore, &[Op]) -> Result<(), StoreError> + Send + Sync + 'static) {
        *self.act.lock().unwrap() = Arc::new(act);
    }

    fn works(&self) {
        self.acts(Store::commit);
    }

    fn is_full(&self) {
        self.acts(|_, _| Err(failed()));
    }

    fn loses_answers(&self) {
        self.acts(|rows, ops| rows.commit(ops).and(Err(failed())));
    }
}

impl Store for FaultyStore {
    fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
        let act = self.act.lock().unwrap().clone();
        act(&self.rows, ops)
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<Row>, StoreError> {
        if table == "channel.holds" && prefix.is_empty() {
            self.loads.all.fetch_add(1, Ordering::SeqCst);
            let now = self.loads.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.loads.most.fetch_max(now, Ordering::SeqCst);
            if self.loads.slow.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let rows = self.rows.scan(table, prefix);
            self.loads.now.fetch_sub(1, Ordering::SeqCst);
            return rows;
        }
        self.rows.scan(table, prefix)
    }
}

fn failed() -> StoreError {
    StoreError::failed(std::io::Error::other("no space left"))
}

fn touches(ops: &[Op], table: Table) -> bool {
    ops.iter().any(|op| op.table() == table)
}

#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(open, |open| !*open).unwrap());
    }
}

/// A processor on a chain with a store that can fail, and one client's channel.
struct Setup {
    chain: Chain,
    client: DynSigner,
    gateway: DynSigner,
    compute: DynSigner,
    epoch: Epoch,
    trust: TrustRoot,
    numbers: AtomicU64,
    terms: ChannelParams,
    store: FaultyStore,
    shared: SharedStore,
    expiry: u64,
}

impl Setup {
    async fn new(deposit: Amount) -> Self {
        Self::on(Chain::new(5).await, deposit).await
    }

    async fn on(chain: Chain, deposit: Amount) -> Self {
        let (client, gateway, compute) = (key(), key(), key());
        let epoch = chain.epoch().await;
        let trust = epoch.trust.clone();
        let terms = ChannelParams { client: client.address(), gateway: gateway.address(), salt: B256::random() };
        chain.account(client.clone(), tokens(2)).await;
        let expiry = unix_now() + WEEK;
        chain.ledger(client.clone()).fund_channel(&terms, deposit, expiry).await.unwrap();
        let store = FaultyStore::new();
        let shared = SharedStore::new(store.clone()).unwrap();
        Self { chain, client, gateway, compute, epoch, trust, numbers: AtomicU64::new(0), terms, store, shared, expiry }
    }

    fn start(&self, registry: Arc<dyn Registry>) -> ChannelProcessor {
        self.start_on(registry, self.shared.clone())
    }

    fn start_on(&self, registry: Arc<dyn Registry>, shared: SharedStore) -> ChannelProcessor {
        let policy = BatchPolicy { max_requests: usize::MAX, max_age: Duration::from_hours(1), ..BatchPolicy::default() };
        let account = self.chain.ledger(self.gateway.clone());
        let chain: Arc<dyn BatchSettler> = account.clone();
        ChannelProcessor::start(account, chain, registry, self.gateway.clone(), shared, policy).unwrap()
    }

    fn alone(&self) -> ChannelProcessor {
        self.start(self.nobody())
    }

    fn nobody(&self) -> Arc<dyn Registry> {
        Arc::new(MemoryRegistry::new(self.trust.clone(), Vec::new(), Arc::new(unix_now)))
    }

    async fn voucher(&self, total: u128, cumulative: u128) -> (Quote, PaymentAuthorization) {
        let parties = [self.client.address(), self.gateway.address(), self.compute.address()];
        let quote = flat_quote(&self.epoch, B256::random(), parties, Amount::new(total), unix_now() + 3_600);
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        let payment =
            SignedVoucher::sign(self.terms, &quote, number, Amount::new(cumulative), &self.trust, &self.client).await.unwrap();
        (quote, PaymentAuthorization::Voucher(payment))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_what_the_store_has_even_when_that_fails() {
    let setup = Setup::new(tokens(1)).await;
    let ledger = setup.alone();
    let mut paid = Vec::new();
    for number in 1..=20 {
        paid.push(setup.voucher(100, 100 * number).await);
    }
    let status = async |quote: &Quote| PaymentLedger::status(&ledger, setup.client.address(), quote.request_id).await.unwrap();
    let redeem_all = || futures::future::join_all(paid.iter().map(|(quote, payment)| ledger.redeem(quote, payment)));

    setup.store.is_full();
    for refused in redeem_all().await {
        assert!(matches!(&refused, Err(error @ LedgerError::Storage(_)) if error.is_retryable()), "{refused:?}");
    }
    for (quote, _) in &paid {
        assert_eq!(status(quote).await, PaymentStatus::Unpaid);
    }
    setup.store.works();
    for taken in redeem_all().await {
        taken.unwrap();
    }
    let [(first, _), (second, _), ..] = &paid[..] else { panic!("there are twenty") };
    let first = settlement(first, &setup.compute, &setup.trust, &setup.chain.validators, 3).await;
    let second = settlement(second, &setup.compute, &setup.trust, &setup.chain.validators, 3).await;
    setup.store.is_full();
    assert!(matches!(ledger.settle(&first).await, Err(LedgerError::Storage(_))));
    assert!(matches!(status(&first.quote).await, PaymentStatus::Held { .. }));
    assert_eq!(ledger.unsettled(), 0, "what is not known to be kept is not earned");
    setup.store.loses_answers();
    assert!(matches!(ledger.settle(&first).await, Err(LedgerError::Storage(_))));
    setup.store.works();
    ledger.settle(&second).await.unwrap();
    assert_eq!(ledger.unsettled(), 2, "the first was kept, though its answer was lost");
    let by = ledger.settle(&first).await.unwrap();
    assert_eq!(status(&first.quote).await, PaymentStatus::Earned { by });
    for (quote, _) in &paid[2..] {
        assert!(matches!(status(quote).await, PaymentStatus::Held { .. }));
    }
}

/// A voucher whose number ends with a batch that is on its way would be served and never charged.
#[tokio::test(flavor = "multi_thread")]
async fn no_voucher_is_taken_whose_number_ends_with_a_batch() {
    let setup = Setup::new(tokens(1)).await;
    let ledger = setup.alone();
    setup.numbers.store(1_000_000, Ordering::SeqCst);
    let (quote, payment) = setup.voucher(100, 100).await;
    ledger.redeem(&quote, &payment).await.unwrap();
    setup.numbers.store(5, Ordering::SeqCst);
    let (early, its_payment) = setup.voucher(100, 200).await;
    ledger.redeem(&early, &its_payment).await.unwrap();
    // While a lower number is open, the higher one waits; here it is given up.
    PaymentLedger::refund(&ledger, &early, None).await.unwrap();
    let served = settlement(&quote, &setup.compute, &setup.trust, &setup.chain.validators, 3).await;
    ledger.settle(&served).await.unwrap();
    ledger.flush();
    // Nobody approves the batch: its numbers are over for new vouchers all the same.
    setup.numbers.store(7, Ordering::SeqCst);
    eventually("a low number is refused", async || {
        let (quote, payment) = setup.voucher(100, 300).await;
        match ledger.redeem(&quote, &payment).await {
            Err(error) => error.to_string().contains("is over"),
            // It came before the batch, and must not be in its way.
            Ok(_) => {
                let given_up = PaymentLedger::refund(&ledger, &quote, None).await;
                ledger.flush();
                given_up.is_err()
            }
        }
    })
    .await;
    setup.numbers.store(1_000_001, Ordering::SeqCst);
    let (quote, payment) = setup.voucher(100, 300).await;
    ledger.redeem(&quote, &payment).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_yet_does_not_count_as_paid() {
    let setup = Setup::new(Amount::new(1_000)).await;
    let ledger = setup.alone();
    let (quote, payment) = setup.voucher(100, 100).await;
    let gate = Gate::default();
    let (waiting, reached) = (gate.clone(), Arc::new(AtomicBool::new(false)));
    let here = reached.clone();
    setup.store.acts(move |_, _| {
        here.store(true, Ordering::SeqCst);
        waiting.pass();
        Err(failed())
    });
    let (redeeming, of) = (ledger.clone(), quote.clone());
    let redeeming = tokio::spawn(async move { redeeming.redeem(&of, &payment).await });
    eventually("the commit is under way", async || reached.load(Ordering::SeqCst)).await;
    let mut asked = Box::pin(ledger.payment_of(&quote));
    assert!(futures::poll!(&mut asked).is_pending(), "nobody knows yet");
    gate.open();
    assert!(redeeming.await.unwrap().is_err());
    assert_eq!(asked.await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_top_up_is_remembered_while_the_store_fails() {
    let setup = Setup::new(Amount::new(100)).await;
    let ledger = setup.alone();
    let (quote, payment) = setup.voucher(100, 100).await;
    ledger.redeem(&quote, &payment).await.unwrap();
    setup.chain.ledger(setup.client.clone()).fund_channel(&setup.terms, Amount::new(1_000_000), setup.expiry).await.unwrap();
    let mut vouchers = Vec::new();
    for n in 1..=64 {
        vouchers.push(setup.voucher(100, 100 + n * 100).await);
    }
    let mut refused = Vec::new();
    for round in 0..20 {
        setup.store.is_full();
        let redeeming: Vec<_> = vouchers
            .iter()
            .cloned()
            .map(|(quote, payment)| {
                let ledger = ledger.clone();
                tokio::spawn(async move { ledger.redeem(&quote, &payment).await })
            })
            .collect();
        for redeemed in redeeming {
            if let Err(error) = redeemed.await.unwrap()
                && !error.is_retryable()
            {
                refused.push((round, error.to_string()));
            }
        }
    }
    println!("F2: {} refused for good, of 1280; the first: {:?}", refused.len(), refused.first());
    setup.store.works();
    for (quote, payment) in &vouchers {
        ledger.redeem(quote, payment).await.unwrap();
    }
    assert!(refused.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_book_is_read_by_one_for_all() {
    let setup = Setup::new(Amount::new(1_000_000)).await;
    let ledger = setup.alone();
    let mut vouchers = Vec::new();
    for n in 1..=64 {
        vouchers.push(setup.voucher(100, n * 100).await);
    }
    setup.store.loads.slow.store(true, Ordering::SeqCst);
    setup.store.is_full();
    let before = setup.store.loads.all.load(Ordering::SeqCst);
    futures::future::join_all(vouchers.iter().map(|(quote, payment)| ledger.redeem(quote, payment))).await;
    let (most, all) = (setup.store.loads.most.load(Ordering::SeqCst), setup.store.loads.all.load(Ordering::SeqCst) - before);
    assert!(most <= 1, "{most} copies of the state at once, {all} in all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_panics_once_goes_on() {
    let setup = Setup::new(Amount::new(1_000)).await;
    let ledger = setup.alone();
    let (quote, payment) = setup.voucher(100, 100).await;
    setup.store.acts(|_, _| panic!("for the test"));
    let first = ledger.redeem(&quote, &payment).await;
    setup.store.works();
    let second = ledger.redeem(&quote, &payment).await;
    let status = ledger.payment_of(&quote).await;
    println!(
        "F4: {first:?}; then {second:?}; status {status:?}; in the store: {:?} holds",
        setup.store.rows.scan("channel.holds", &[]).unwrap().len()
    );
    assert!(first.is_err_and(|error| error.is_retryable()));
    second.unwrap();
    assert!(matches!(status, Ok(Some(_))), "{status:?}");
}

async fn settling(seed: u128) -> (InProcess, Setup, ChannelProcessor) {
    let network = InProcess::new(&[Behavior::Honest; 5]).await;
    let setup = Setup::on(network.chain.clone(), Amount::new(1_000_000)).await;
    let ledger = setup.start(network.registry.clone());
    let (quote, payment) = setup.voucher(seed, seed).await;
    ledger.redeem(&quote, &payment).await.unwrap();
    let served = settlement(&quote, &setup.compute, &setup.trust, &setup.chain.validators, 3).await;
    ledger.settle(&served).await.unwrap();
    (network, setup, ledger)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_sent_once_its_certificate_is_kept() {
    let (_network, setup, ledger) = settling(1_000).await;
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    setup.store.acts(move |rows, ops| {
        // The batch is kept without its certificate, and with it not for a while.
        if touches(ops, "channel.batch") && (1..4).contains(&counted.fetch_add(1, Ordering::SeqCst)) {
            return Err(failed());
        }
        rows.commit(ops)
    });
    ledger.flush();
    let charged = async || setup.chain.deployer.channel(setup.terms.id()).await.unwrap().unwrap().settled == Amount::new(1_000);
    eventually("the batch is charged", charged).await;
    assert!(tries.load(Ordering::SeqCst) > 4, "not before its certificate was kept");
    eventually("it is booked in the end", async || ledger.unsettled() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_batch_is_kept_once_however_often_its_answer_is_lost() {
    let (_network, setup, ledger) = settling(1_000).await;
    let lost = Arc::new(AtomicUsize::new(0));
    let lost_so_far = lost.clone();
    setup.store.acts(move |rows, ops| {
        rows.commit(ops)?;
        if touches(ops, "channel.kept") && lost.fetch_add(1, Ordering::SeqCst) < 5 { Err(failed()) } else { Ok(()) }
    });
    ledger.flush();
    let given_up = lost_so_far.clone();
    eventually("it is settled", async || ledger.unsettled() == 0 && given_up.load(Ordering::SeqCst) > 5).await;
    let rows = setup.store.rows.scan("channel.kept", &[]).unwrap();
    let proofs = setup.store.rows.scan("channel.kept.proofs", &[]).unwrap();
    assert_eq!((rows.len(), proofs.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn after_any_faults_memory_and_store_agree() {
    let setup = Setup::new(Amount::TOKEN).await;
    let ledger = setup.alone();
    let counter = AtomicUsize::new(0);
    setup.store.acts(move |rows, ops| match counter.fetch_add(1, Ordering::SeqCst).wrapping_mul(2_654_435_761) >> 7 & 7 {
        0 | 1 => Err(failed()),
        2 => {
            rows.commit(ops)?;
            Err(failed())
        }
        3 => {
            std::thread::sleep(Duration::from_millis(5));
            rows.commit(ops)
        }
        _ => rows.commit(ops),
    });
    let mut tasks = Vec::new();
    for n in 1..=150_u128 {
        let (quote, payment) = setup.voucher(100, n * 100).await;
        let served = settlement(&quote, &setup.compute, &setup.trust, &setup.chain.validators, 3).await;
        let ledger = ledger.clone();
        tasks.push(tokio::spawn(async move {
            // Presented by three at once.
            let all = futures::future::join_all((0..3).map(|_| ledger.redeem(&quote, &payment))).await;
            assert!(all.iter().filter_map(|redeemed| redeemed.as_ref().err()).all(LedgerError::is_retryable), "{all:?}");
            while let Err(error) = ledger.redeem(&quote, &payment).await {
                assert!(error.is_retryable(), "{error}");
            }
            match n % 3 {
                0 => {
                    while let Err(error) = ledger.settle(&served).await {
                        assert!(error.is_retryable(), "{error}");
                    }
                }
                1 => {
                    while let Err(error) = ledger.refund(&quote, None).await {
                        assert!(error.is_retryable(), "{error}");
                    }
                }
                _ => {}
            }
            (n, quote)
        }));
    }
    let mut quotes = Vec::new();
    for task in tasks {
        quotes.push(task.await.unwrap());
    }
    setup.store.works();
    let rows = setup.store.rows.clone();
    let copy = FaultyStore { rows, ..FaultyStore::new() };
    // Not started on the same rows before all is said: it only reads here.
    let again = setup.start_on(setup.nobody(), SharedStore::new(copy).unwrap());
    assert_eq!((ledger.unsettled(), again.unsettled()), (50, 50));
    for (n, quote) in &quotes {
        for which in [&ledger, &again] {
            let status = PaymentLedger::status(which, setup.client.address(), quote.request_id).await.unwrap();
            let good = match n % 3 {
                0 => matches!(status, PaymentStatus::Earned { .. }),
                1 => matches!(status, PaymentStatus::Refunded { .. }),
                _ => matches!(status, PaymentStatus::Held { .. }),
            };
            assert!(good, "{n}: {status:?}");
        }
    }
    // 50 are earned, 50 reserved, 50 released: what another one needs tells the sums.
    let (probe, payment) = setup.voucher(15_001, 15_001).await;
    for which in [&ledger, &again] {
        let refused = which.redeem(&probe, &payment).await;
        assert!(
            matches!(&refused, Err(LedgerError::VoucherTooLow { needed, .. }) if *needed == Amount::new(10_000 + 15_001)),
            "{refused:?}"
        );
    }
    println!("H1: held; the state was read {} times", setup.store.loads.all.load(Ordering::SeqCst));
}
