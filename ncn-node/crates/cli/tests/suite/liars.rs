//! Registries, chains and gateways that lie, or whose answers get lost: the client keeps its tokens or gets its answer.

mod nodes;

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use ncn_client::{
    ChannelPayer, Client, ClientError, InferenceOutput, PayerChannel, RelayedPayer, evm::EvmLedger, grpc::GrpcTransport,
};
use ncn_core::BatchRequest;
use ncn_core::{
    Address, Amount, AnswerTime, Approval, ApprovedSubnet, Attestors, B256, Catalog, ChannelParams, CompletionRequest,
    Deregistration, Directory, DynSigner, Heartbeat, InferenceResult, LedgerError, Message as _, NetworkInfo, NodeChanges,
    NodeQuery, NodeRecord, Outcome, Payer, PaymentLedger, PaymentRef, PaymentStatus, PreprocessingRequest, QuorumCertificate,
    Quote, Receipt, Registry, RegistryError, RequestId, Settlement, Signature, Signed, State, Subnet, TaskCapability, TaskEvent,
    Transport, TransportError, TrustHistory, TrustRoot, UnixTime, Update, Value,
    mempool::{Mempool, PendingRequests},
    receipt::Payment,
    transport::Updates,
};
use ncn_devnet::{LocalNetwork, quickstart, well_known_key};
use ncn_node::{
    gateway::{GatewayOptions, http_routes},
    server::{LOOPBACK, Server},
    store::MemoryStore,
};

use crate::{
    cli::Devnet,
    recovery,
    scene::{delivered, digit, key, ncn, network},
    tamper::{Tamper, Tampered},
    wait::{eventually, in_time},
};
use tokio::sync::Semaphore;

/// What a registry, and the validators behind it, lie about.
enum Lie {
    /// It makes up the approvals of the quote.
    Preprocessing,
    /// It makes up the approvals of the result.
    Completion,
    /// It counts quotes that it is asked about, and has no answer until there is a permit for each.
    Late { permits: Arc<Semaphore>, asked: Arc<AtomicUsize> },
    /// It has no place for another watch.
    Watches,
    /// These validators approve this thief's result too, which is settled by the gateway's key before the gateway does.
    Theft { validators: Vec<DynSigner>, thief: DynSigner, ledger: Arc<dyn PaymentLedger>, trust: TrustRoot },
}

struct LyingRegistry {
    honest: Arc<dyn Registry>,
    lie: Lie,
}

impl LyingRegistry {
    /// Has the chain pay for another result than the gateway brought.
    async fn steal(&self, request: &CompletionRequest) {
        let Lie::Theft { validators, thief, ledger, trust } = &self.lie else { return };
        let result = InferenceResult { compute: thief.address(), ..request.delivery.results[0].message.clone() };
        let delivery = delivered(result, thief, &trust.domain).await;
        let completion = delivery.completion(&request.quote).unwrap();
        let digest = completion.digest(&trust.domain);
        let mut approvals = Vec::new();
        for validator in validators.iter().take(usize::from(trust.threshold)) {
            approvals.push(Approval::sign(&digest, &**validator).await.unwrap());
        }
        let (quote, certificate) = (request.quote.clone(), QuorumCertificate::new(approvals));
        let committee = quote.committee_of(trust).unwrap();
        let settlement = Settlement { quote, committee, delivery, completion, certificate };
        ledger.settle(&settlement).await.unwrap();
    }
}

/// Approvals by strangers, of nothing.
pub(crate) async fn made_up() -> QuorumCertificate {
    let mut approvals = Vec::new();
    for _ in 0..3 {
        approvals.push(Approval::sign(&B256::ZERO, &*key()).await.unwrap());
    }
    QuorumCertificate::new(approvals)
}

#[async_trait]
impl Directory for LyingRegistry {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.honest.register(record).await
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        self.honest.heartbeat(heartbeat).await
    }

    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError> {
        self.honest.deregister(deregistration).await
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        self.honest.discover(query).await
    }

    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError> {
        if matches!(self.lie, Lie::Watches) {
            return Err(RegistryError::Overloaded("of watches".into()));
        }
        self.honest.watch(query).await
    }
}

#[async_trait]
impl Catalog for LyingRegistry {
    async fn register_subnet(&self, subnet: Signed<Subnet>) -> Result<(), RegistryError> {
        self.honest.register_subnet(subnet).await
    }

    async fn subnet(&self, id: B256) -> Result<ApprovedSubnet, RegistryError> {
        self.honest.subnet(id).await
    }

    async fn subnets(&self, after: B256) -> Result<Vec<Arc<ApprovedSubnet>>, RegistryError> {
        self.honest.subnets(after).await
    }

    async fn register_manifest(&self, subnet: B256, manifest: Bytes) -> Result<(), RegistryError> {
        self.honest.register_manifest(subnet, manifest).await
    }

    async fn manifest(&self, digest: B256) -> Result<Bytes, RegistryError> {
        self.honest.manifest(digest).await
    }
}

#[async_trait]
impl Mempool for LyingRegistry {
    async fn announce(&self, pending: Signed<PendingRequests>) -> Result<(), RegistryError> {
        self.honest.announce(pending).await
    }

    async fn pending(&self, subnet: B256, request: RequestId) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        self.honest.pending(subnet, request).await
    }

    async fn pending_of(&self, gateway: Address) -> Result<Option<Signed<PendingRequests>>, RegistryError> {
        self.honest.pending_of(gateway).await
    }
}

#[async_trait]
impl Attestors for LyingRegistry {
    async fn preprocessing(&self, request: PreprocessingRequest) -> Result<QuorumCertificate, RegistryError> {
        match &self.lie {
            Lie::Preprocessing => Ok(made_up().await),
            Lie::Late { permits, asked } => {
                asked.fetch_add(1, Ordering::SeqCst);
                permits.acquire().await.unwrap().forget();
                self.honest.preprocessing(request).await
            }
            _ => self.honest.preprocessing(request).await,
        }
    }

    async fn completion(&self, request: CompletionRequest) -> Result<QuorumCertificate, RegistryError> {
        self.steal(&request).await;
        if matches!(self.lie, Lie::Completion) { Ok(made_up().await) } else { self.honest.completion(request).await }
    }

    async fn settlement(&self, request: Arc<BatchRequest>) -> Result<QuorumCertificate, RegistryError> {
        self.honest.settlement(request).await
    }

    async fn answer_times(&self) -> Result<Vec<AnswerTime>, RegistryError> {
        self.honest.answer_times().await
    }
}

/// What becomes of a request, and of the client's tokens, with such a registry.
async fn with_lies(lie: impl FnOnce(&recovery::Scene) -> Lie) -> (TaskEvent, Amount) {
    let directory = tempfile::tempdir().unwrap();
    let scene = recovery::Scene::new(directory.path()).await;
    let client = recovery::Client::new(&scene).await;
    let registry = Arc::new(LyingRegistry { honest: scene.network.registry.clone(), lie: lie(&scene) });
    let gateway = scene.start_with(MemoryStore::default(), registry).await;
    let update = client.serve(&**gateway.gateway()).await;
    (update, client.ledger.balance(client.ledger.account()).await.unwrap())
}

#[tokio::test]
async fn a_made_up_approval_of_the_quote_is_not_asked_to_be_paid() {
    let (update, left) = with_lies(|_| Lie::Preprocessing).await;
    assert!(
        matches!(&update, TaskEvent::Failed { outcome: Outcome::Refused, reason } if reason.contains("does not verify")),
        "{update:?}"
    );
    assert_eq!(left, Amount::TOKEN);
}

#[tokio::test]
async fn no_more_orders_are_taken_than_validators_can_judge() {
    const WAITING: usize = 3;
    let directory = tempfile::tempdir().unwrap();
    let scene = recovery::Scene::new(directory.path()).await;
    let (permits, asked) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let lie = Lie::Late { permits: permits.clone(), asked: asked.clone() };
    let registry = LyingRegistry { honest: scene.network.registry.clone(), lie };
    let options = GatewayOptions { max_waiting: WAITING, ..GatewayOptions::default() };
    let gateway = scene.start_limited(options, Arc::new(registry)).await;
    let mut taken: Vec<tokio::task::JoinHandle<Result<ncn_core::TaskStatus, TransportError>>> = Vec::new();
    loop {
        let (client, gateway) = (Arc::new(recovery::Client::new(&scene).await), gateway.gateway().clone());
        let (submitting, asking) = (gateway.clone(), client.clone());
        let order = tokio::spawn(async move { asking.submit(&*submitting).await });
        let in_preprocessing = || gateway.overview().steps[3].requests;
        eventually("it waits, or is refused", async || order.is_finished() || in_preprocessing() == taken.len() + 1).await;
        if order.is_finished() {
            let refused = order.await.unwrap();
            assert!(matches!(refused, Err(TransportError::Overloaded { .. })), "{refused:?}");
            // Those that are judged do not wait; nobody is asked about those that do.
            let judged = asked.load(Ordering::SeqCst);
            assert!(judged > 1 && (judged + WAITING..judged + 2 * WAITING).contains(&taken.len()), "{judged} of {}", taken.len());
            permits.add_permits(taken.len() + 1);
            for order in taken {
                assert_eq!(in_time("a quote", order).await.unwrap().unwrap().state, State::AwaitingPayment);
            }
            // They have made room.
            assert_eq!(client.submit(&*gateway).await.unwrap().state, State::AwaitingPayment);
            return;
        }
        taken.push(order);
    }
}

#[tokio::test]
async fn a_made_up_approval_of_the_result_pays_nobody() {
    let (update, left) = with_lies(|_| Lie::Completion).await;
    assert!(
        matches!(&update, TaskEvent::Failed { outcome: Outcome::Refunded, reason } if reason.contains("does not verify")),
        "{update:?}"
    );
    assert_eq!(left, Amount::TOKEN);
}

#[tokio::test]
async fn a_gateway_without_a_watch_asks_for_nodes() {
    let (update, _) = with_lies(|_| Lie::Watches).await;
    assert!(matches!(update, TaskEvent::Delivered { .. }), "{update:?}");
}

#[tokio::test]
async fn a_payment_for_another_nodes_result_is_not_taken_for_ones_own() {
    let thief = key();
    let steal = |scene: &recovery::Scene| {
        let (chain, trust) = (&scene.network.chain, scene.network.trust.clone());
        Lie::Theft { validators: chain.validators.clone(), ledger: chain.ledger(scene.gateway.clone()), thief, trust }
    };
    let (update, _) = with_lies(steal).await;
    // M corrupt validators and the gateway's key in other hands can take the money; a receipt that names somebody else as paid they
    // cannot have.
    let TaskEvent::Failed { outcome: Outcome::Completed, reason } = &update else { panic!("{update:?}") };
    assert!(reason.contains("which was not asked for"), "{reason}");
}

/// A chain that takes the payment and loses the answer, and whose next answers come late.
struct ForgetfulPayer {
    honest: Arc<EvmLedger>,
    late: Duration,
    tries: AtomicUsize,
}

#[async_trait]
impl Payer for ForgetfulPayer {
    fn account(&self) -> Address {
        self.honest.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        Payer::trust(&*self.honest, epoch).await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.honest.now().await
    }

    async fn pay(&self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        let escrowed = self.honest.pay(quote).await;
        if self.tries.fetch_add(1, Ordering::SeqCst) == 0 {
            escrowed.unwrap();
            return Err(LedgerError::Unreachable("the connection broke".into()));
        }
        escrowed
    }

    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        tokio::time::sleep(self.late).await;
        Payer::status(&*self.honest, quote).await
    }

    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        self.honest.reclaim(quote).await
    }

    async fn check(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        self.honest.check(receipt).await
    }

    async fn release(&self, quote: &Quote, cost: Option<Amount>) {
        self.honest.release(quote, cost).await;
    }
}

/// A gateway that cannot be reached the first few times that it is asked for news.
struct Flickering {
    gateway: GrpcTransport,
    outages: AtomicUsize,
}

#[async_trait]
impl Tamper for Flickering {
    fn inner(&self) -> &dyn Transport {
        &self.gateway
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        let out = self.outages.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match out {
            Ok(_) => Err(TransportError::Unreachable { endpoint: "gateway".into(), problem: "flickers".into() }),
            Err(_) => self.gateway.updates(access, from).await,
        }
    }
}

/// One inference through these, and what the client has left of its token.
async fn infer(network: &LocalNetwork, late: Duration, outages: usize) -> (Result<InferenceOutput, ClientError>, Amount) {
    let signer = key();
    network.funder().transfer(signer.address(), Amount::TOKEN).await.unwrap();
    let honest = Arc::new(network.ledger(signer.clone()));
    let payer = Arc::new(ForgetfulPayer { honest: honest.clone(), late, tries: AtomicUsize::new(0) });
    let gateway = GrpcTransport::new(&network.gateway_url()).unwrap();
    let transport = Arc::new(Tampered(Flickering { gateway, outages: AtomicUsize::new(outages) }));
    let client = Client::builder().transport(transport).payer(payer).signer(signer).max_price(Amount::TOKEN).build().unwrap();
    let answer = client.infer(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).await;
    let left = honest.balance(honest.account()).await.unwrap();
    (answer, left)
}

#[tokio::test]
async fn a_lost_answer_to_the_payment_costs_nothing() {
    let network = network().start().await.unwrap();
    // At once, the chain shows the escrow; later, the gateway has settled it already.
    for late in [Duration::ZERO, Duration::from_secs(2)] {
        let (answer, left) = infer(&network, late, 0).await;
        let answer = answer.unwrap();
        assert_eq!(answer.output.text("label"), Some("7"), "{late:?}");
        assert_eq!(left.checked_add(answer.receipt.payments.total), Some(Amount::TOKEN), "{late:?}: paid once");
    }
}

#[tokio::test]
async fn a_gateway_that_flickers_still_delivers() {
    let network = network().start().await.unwrap();
    let (answer, _) = infer(&network, Duration::ZERO, 4).await;
    assert_eq!(answer.unwrap().output.text("label"), Some("7"));
}

/// Has a gateway's key sign what a receipt says now.
pub(crate) async fn seal(receipt: &mut Receipt, signer: &DynSigner) {
    let digest = receipt.sealed().digest(&receipt.trust_root.domain);
    receipt.seal = Signature::sign(&digest, &**signer).await.unwrap();
}

/// A gateway that says something else in its receipts than what happened, and signs that; or that states another network.
struct Forging {
    gateway: GrpcTransport,
    signer: DynSigner,
    lie: fn(&mut Receipt),
    network: Option<NetworkInfo>,
}

#[async_trait]
impl Tamper for Forging {
    fn inner(&self) -> &dyn Transport {
        &self.gateway
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        let (lie, signer) = (self.lie, self.signer.clone());
        let forge = move |update: Result<Update, TransportError>| {
            let signer = signer.clone();
            async move {
                let (index, output, mut receipt) = match update {
                    Ok(Update { index, event: TaskEvent::Delivered { output, receipt } }) => (index, output, receipt),
                    other => return other,
                };
                lie(&mut receipt);
                seal(&mut receipt, &signer).await;
                Ok(Update { index, event: TaskEvent::Delivered { output, receipt } })
            }
        };
        Ok(self.gateway.updates(access, from).await?.then(forge).boxed())
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        match &self.network {
            Some(network) => Ok(network.clone()),
            None => self.gateway.network().await,
        }
    }
}

/// No transaction.
const MADE_UP: B256 = B256::repeat_byte(7);

fn forge_payment(receipt: &mut Receipt, escrowed: Option<B256>, settled: Option<B256>) {
    let Payment::Escrow { transaction, settlement } = &mut receipt.payment else { panic!("not escrowed") };
    *transaction = escrowed.unwrap_or(*transaction);
    *settlement = settled.unwrap_or(*settlement);
}

#[tokio::test]
async fn a_receipt_speaks_of_the_clients_own_payment() {
    let network = &network().well_known_keys().start().await.unwrap();
    let infer = async |lie, relayed: bool| {
        let client = key();
        network.funder().transfer(client.address(), Amount::TOKEN).await.unwrap();
        let gateway = GrpcTransport::new(&network.gateway_url()).unwrap();
        let transport = Arc::new(Tampered(Forging { gateway, signer: well_known_key("gateway", 0), lie, network: None }));
        let chain = Arc::new(network.ledger(client.clone()));
        let builder = Client::builder().transport(transport.clone()).signer(client.clone()).max_price(Amount::TOKEN);
        let relay = RelayedPayer::new(transport, network.trust_root().await.unwrap(), client);
        let client =
            if relayed { builder.payer(Arc::new(relay.with_chain(Some(chain)))) } else { builder.payer(chain) }.build().unwrap();
        let answer = client.infer(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).await;
        answer.map(|answer| answer.receipt).map_err(|error| error.to_string())
    };
    let (honest, settled, escrowed, relayed, late, early) = tokio::join!(
        infer(|_| (), false),
        infer(|receipt| forge_payment(receipt, None, Some(MADE_UP)), false),
        infer(|receipt| forge_payment(receipt, Some(MADE_UP), None), false),
        infer(|receipt| forge_payment(receipt, Some(MADE_UP), None), true),
        infer(|receipt| receipt.issued_at = 1 << 63, false),
        infer(|receipt| receipt.issued_at = 1, false),
    );
    for (lie, says) in [(settled, "was paid out by"), (escrowed, "was escrowed by"), (relayed, "was escrowed by")] {
        let error = lie.unwrap_err();
        assert!(error.contains(says) && error.contains(&format!("not by {MADE_UP}")), "{error}");
    }
    for lie in [late, early] {
        let error = lie.unwrap_err();
        assert!(error.contains("issuedAt"), "{error}");
    }

    // Whoever pays out of a channel does not take a receipt of an escrow, whatever that says.
    let honest = honest.unwrap();
    let (client, gateway) = (key(), GrpcTransport::new(&network.gateway_url()).unwrap());
    let terms = ChannelParams { client: client.address(), gateway: network.gateway_address(), salt: MADE_UP };
    let channel = Arc::new(PayerChannel::new(terms, Amount::TOKEN, u64::MAX));
    let payer = ChannelPayer::new(Arc::new(gateway), honest.trust_root.clone(), client, channel);
    let error = payer.check(&honest).await.unwrap_err().to_string();
    assert!(error.contains("is an escrow, and the client pays out of a channel"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_development_networks_validators_are_the_chains_where_there_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let gateway = GrpcTransport::new(&devnet.gateway).unwrap();
    let mut stated = gateway.network().await.unwrap();
    stated.trust_root.validators[0] = key().address();
    stated.trust_root.validators.sort();
    let liar: Arc<dyn Transport> =
        Arc::new(Tampered(Forging { gateway, signer: well_known_key("gateway", 0), lie: |_| (), network: Some(stated.clone()) }));
    let server = Server::start(LOOPBACK.into(), http_routes(liar)).unwrap();
    let (url, sample) = (server.url(), digit(7));
    let infer = ["infer", "--gateway", &url, "--relayed", "--rpc", &devnet.rpc, "--key", "keys/client-0.key", "--model", "digits"];
    let mut program = Command::new(ncn());
    program.args(infer).args(["--yes", "--input"]).arg(&sample).current_dir(directory.path());
    let output = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
    let says = String::from_utf8_lossy(&output.stderr);
    let stated = stated.trust_root.hash();
    assert!(says.contains(&format!("the gateway states network {stated}, the chain has")) && !output.status.success(), "{says}");
}
