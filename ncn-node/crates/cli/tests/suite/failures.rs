//! What happens when parts of the network fail: nobody loses a token.

use std::{
    process::Child,
    sync::{Arc, Mutex},
    time::Duration,
};

use ncn_client::{Client, ClientError, InferenceOutput, Order, evm::EvmLedger};
use ncn_core::{
    Amount, Confinement, Execution, Executor, ExecutorError, ExecutorExt as _, PaymentStatus, Policy, Sandbox, SandboxCommand,
    SandboxError, Value, Values,
    evidence::{Equivocation, EvidenceError},
    validation::CLAIM_SECONDS,
};
use ncn_devnet::{LocalNetwork, quickstart};
use ncn_executor::{WorkerExecutor, WorkerOptions, WorkerProgram, sandbox::NoSandbox};
use ncn_node::{
    gateway::GatewayOptions,
    store::{MemoryStore, SharedStore},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::{
    executor::failing,
    scene::{Behavior, InProcess, ncn, network},
    wait::{TIMEOUT, eventually, in_time},
};

/// How long an order may take that is to expire: long enough for a quote on a slow machine, and then waited for.
const SHORT: Duration = Duration::from_secs(20);

/// A gateway that takes orders whose deadlines leave the model its time, and no more.
pub(crate) fn hasty() -> GatewayOptions {
    GatewayOptions { pay_time: Duration::ZERO, settle_time: Duration::ZERO, ..GatewayOptions::default() }
}

fn seven() -> Values {
    [("image", Value::png(quickstart::SAMPLE))].into()
}

async fn client(network: &LocalNetwork) -> (Client, Arc<EvmLedger>) {
    let key = crate::scene::key();
    network.funder().transfer(key.address(), Amount::TOKEN).await.unwrap();
    let ledger = Arc::new(network.ledger(key.clone()));
    let client = Client::builder().timeout(TIMEOUT * 5).gateway(network.gateway_url());
    let client = client.payer(ledger.clone()).signer(key).max_price(Amount::TOKEN).build().unwrap();
    (client, ledger)
}

async fn balance(ledger: &Arc<EvmLedger>) -> Amount {
    ledger.balance(ledger.account()).await.unwrap()
}

fn is_seven(answer: &InferenceOutput) -> bool {
    answer.output.text("label") == Some("7")
}

#[tokio::test]
async fn two_of_five_validators_may_lie_or_sleep() {
    for bad in [Behavior::Lies, Behavior::Impersonates, Behavior::Sleeps] {
        let honest = Behavior::Honest;
        let scene = InProcess::new(&[bad, honest, honest, bad, honest]).await;
        let rules = ncn_core::conformance::registry(&scene).await;
        rules.unwrap_or_else(|violation| panic!("{bad:?}: {violation}"));
    }
}

#[tokio::test]
async fn three_liars_approve_nothing() {
    let three = [(Behavior::Lies, "validators approve a good quote"), (Behavior::Impersonates, "an owner defines its subnet")];
    for (bad, rule) in three {
        let scene = InProcess::new(&[bad, bad, bad, Behavior::Honest, Behavior::Honest]).await;
        let violation = ncn_core::conformance::registry(&scene).await.unwrap_err();
        assert_eq!(violation.rule, rule);
        assert!(violation.what.contains("need: 3"), "{violation}");
    }
}

#[tokio::test]
async fn a_validator_that_approves_two_results_is_convicted() {
    let behaviors = [Behavior::Equivocates, Behavior::Lies, Behavior::Lies, Behavior::Honest, Behavior::Honest];
    let scene = InProcess::new(&behaviors).await;
    let store = SharedStore::new(MemoryStore::default()).unwrap();
    scene.node.keep(store.clone()).await.unwrap();
    ncn_core::conformance::registry(&scene).await.unwrap();
    let evidence = scene.node.evidence();
    assert!(!evidence.is_empty());
    let (domain, liar) = (scene.trust.domain, scene.chain.validators[0].address());
    for found in &evidence {
        assert_eq!(found.verify(&domain), Ok(liar));
        let mut forged = found.clone();
        forged.second.approval.validator = scene.chain.validators[3].address();
        assert_eq!(forged.verify(&domain), Err(EvidenceError::Different("approval.validator")));
        forged.first.approval.validator = forged.second.approval.validator;
        assert_eq!(forged.verify(&domain), Err(EvidenceError::Unsigned("approval")));
        let twice = Equivocation { first: found.first.clone(), second: found.first.clone() };
        assert_eq!(twice.verify(&domain), Err(EvidenceError::Same));
        let mut unauthorized = found.clone();
        unauthorized.second.authorization = found.first.authorization.clone();
        assert_eq!(unauthorized.verify(&domain), Err(EvidenceError::Unauthorized));
    }
    scene.node.save().await;
    let restarted = InProcess::new(&[]).await;
    restarted.node.keep(store).await.unwrap();
    assert_eq!(restarted.node.evidence().len(), evidence.len(), "it is kept");
}

#[tokio::test]
async fn without_a_quorum_nothing_is_paid() {
    let mut network = network().start().await.unwrap();
    let (client, ledger) = client(&network).await;
    for validator in network.validator_addresses().into_iter().take(3) {
        network.crash_validator(validator);
    }
    let refused = client.infer(quickstart::NAME, seven()).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Refused(reason) if reason.contains("of 3 approvals")), "{refused}");
    assert!(!refused.is_paid());
    assert_eq!(balance(&ledger).await, Amount::TOKEN);
}

#[tokio::test]
async fn two_validators_may_crash() {
    let mut network = network().start().await.unwrap();
    let (client, _) = client(&network).await;
    for validator in network.validator_addresses().into_iter().take(2) {
        network.crash_validator(validator);
    }
    assert!(is_seven(&client.infer(quickstart::NAME, seven()).await.unwrap()));
}

#[tokio::test]
async fn another_node_takes_over_after_the_payment() {
    let mut network = network().start().await.unwrap();
    let (client, ledger) = client(&network).await;
    let quoted = client.submit(Order::new(quickstart::NAME, seven())).await.unwrap();
    let reserved = quoted.quote().compute;
    network.crash_compute(reserved);
    let answer = quoted.pay().await.unwrap().finish().await.unwrap();
    assert!(is_seven(&answer));
    assert_ne!(answer.receipt.completion.contributions[0].compute, reserved);
    let earned = network.funder().balance(answer.receipt.completion.contributions[0].compute).await.unwrap();
    assert!(earned > Amount::ZERO, "the node that took over is paid");
    assert_eq!(network.funder().balance(reserved).await.unwrap(), Amount::ZERO);
    assert_eq!(balance(&ledger).await.checked_add(answer.receipt.payments.total), Some(Amount::TOKEN));
}

#[tokio::test]
async fn when_no_node_is_left_the_payment_comes_back_at_once() {
    let mut network = network().start().await.unwrap();
    let (client, ledger) = client(&network).await;
    let quoted = client.submit(Order::new(quickstart::NAME, seven())).await.unwrap();
    for compute in network.compute_addresses() {
        network.crash_compute(compute);
    }
    let refunded = quoted.pay().await.unwrap().finish().await.unwrap_err();
    assert!(matches!(refunded, ClientError::Refunded { .. }), "{refunded}");
    assert_eq!(balance(&ledger).await, Amount::TOKEN);
}

#[tokio::test]
async fn a_gateway_that_dies_cannot_keep_the_payment() {
    let options = GatewayOptions { finish_margin: Duration::ZERO, ..hasty() };
    let network = network().gateway(|gateway| gateway.options(options)).start().await.unwrap();
    let (client, ledger) = client(&network).await;
    let order = Order::new(quickstart::NAME, seven()).timeout(SHORT);
    let quoted = client.submit(order).await.unwrap();
    // Gone between quote and payment: the client pays a gateway that is not there any more.
    let chain = network.chain().clone();
    drop(network);
    let paid = quoted.pay().await.unwrap();
    assert!(balance(&ledger).await < Amount::TOKEN);
    chain.advance(CLAIM_SECONDS + SHORT.as_secs());
    chain.mine();
    let refunded = paid.finish().await.unwrap_err();
    assert!(matches!(refunded, ClientError::Refunded { .. }), "{refunded}");
    assert_eq!(balance(&ledger).await, Amount::TOKEN);
}

#[tokio::test]
async fn money_that_comes_after_a_cancellation_goes_back() {
    let network = network().start().await.unwrap();
    let (client, ledger) = client(&network).await;
    let quoted = client.submit(Order::new(quickstart::NAME, seven())).await.unwrap();
    let quote = quoted.quote().clone();
    quoted.cancel().await.unwrap();
    ledger.escrow(&quote).await.unwrap();
    eventually("the payment comes back", async || {
        let state = ledger.payment(quote.client, quote.request_id).await.unwrap();
        matches!(state, PaymentStatus::Refunded { .. })
    })
    .await;
    assert_eq!(balance(&ledger).await, Amount::TOKEN);
}

#[tokio::test]
async fn an_unpaid_request_expires_by_itself() {
    let options = GatewayOptions { finish_margin: Duration::from_secs(1), ..hasty() };
    let network = network().gateway(|gateway| gateway.options(options)).start().await.unwrap();
    let (client, _) = client(&network).await;
    let quoted = client.submit(Order::new(quickstart::NAME, seven()).timeout(SHORT)).await.unwrap();
    let (gateway, id) = (network.gateway(), quoted.request_id());
    eventually("the request ends", async || gateway.status(id).await.unwrap().outcome().is_some()).await;
    assert_eq!(gateway.status(id).await.unwrap().outcome(), Some(ncn_core::Outcome::Expired));
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_by_another_node() {
    let executor = failing(ExecutorError::Worker("died".into()), 1);
    let network = LocalNetwork::builder().executor(executor).start().await.unwrap();
    let (client, _) = client(&network).await;
    let quoted = client.submit(Order::new(quickstart::NAME, seven())).await.unwrap();
    let reserved = quoted.quote().compute;
    let answer = quoted.pay().await.unwrap().finish().await.unwrap();
    assert!(is_seven(&answer));
    assert_ne!(answer.receipt.completion.contributions[0].compute, reserved);
}

#[tokio::test]
async fn a_registry_node_that_restarts_hears_of_everyone_again() {
    let mut network = network().start().await.unwrap();
    let (client, _) = client(&network).await;
    assert!(is_seven(&client.infer(quickstart::NAME, seven()).await.unwrap()));
    network.restart_registry().await.unwrap();
    let answered = async || client.infer(quickstart::NAME, seven()).await.is_ok_and(|answer| is_seven(&answer));
    Box::pin(eventually("requests are served again", answered)).await;
}

#[tokio::test]
async fn a_model_that_fails_is_not_paid_for() {
    let executor = failing(ExecutorError::Failed("division by zero".into()), usize::MAX);
    let network = LocalNetwork::builder().executor(executor).start().await.unwrap();
    let (client, ledger) = client(&network).await;
    let refunded = client.infer(quickstart::NAME, seven()).await.unwrap_err();
    assert!(matches!(&refunded, ClientError::Refunded { reason, .. } if reason.contains("division by zero")), "{refunded}");
    assert_eq!(balance(&ledger).await, Amount::TOKEN);
}

fn execution(limit: Duration) -> Execution {
    Execution { model_digest: quickstart::model().unwrap().digest(), inputs: seven(), parameters: "{}".into(), time_limit: limit }
}

/// Remembers the processes that it starts.
#[derive(Default)]
struct Recording(Mutex<Vec<Pid>>);

impl Sandbox for Recording {
    fn confinement(&self) -> Confinement {
        Confinement::None
    }

    fn start(&self, command: &SandboxCommand, policy: &Policy) -> Result<Child, SandboxError> {
        let child = NoSandbox.start(command, policy)?;
        self.0.lock().unwrap().push(Pid::from_child(&child));
        Ok(child)
    }
}

impl Recording {
    fn newest(&self) -> Pid {
        *self.0.lock().unwrap().last().unwrap()
    }

    /// Stops the newest worker, and returns once all its threads stand still: until then it may still answer.
    fn stop(&self) {
        kill_process(self.newest(), Signal::STOP).unwrap();
        let stopped = waitid(WaitId::Pid(self.newest()), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).unwrap();
        assert!(stopped.is_some_and(|status| status.stopped()));
    }

    fn started(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

#[tokio::test]
async fn a_worker_that_was_killed_or_is_stuck_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let sandbox = Arc::new(Recording::default());
    let executor = WorkerExecutor::new(vec![WorkerProgram::new(ncn())], sandbox.clone(), WorkerOptions::default());
    executor.load(&quickstart::unpack(directory.path()).unwrap()).await.unwrap();
    let run = async |limit| executor.run_to_end(execution(limit)).await;
    run(TIMEOUT).await.unwrap();
    assert_eq!(sandbox.started(), 1);

    kill_process(sandbox.newest(), Signal::KILL).unwrap();
    // Until its end has been noticed, requests may still go to it; each is tried again in another, which ends with it.
    let started = in_time("a worker takes its place", async {
        for runs in 1.. {
            let before = sandbox.started();
            run(TIMEOUT).await.unwrap();
            assert!(sandbox.started() <= 2 + runs, "at most one for each run, and the one that takes its place");
            if before > 1 && sandbox.started() == before {
                break;
            }
        }
        sandbox.started()
    });
    let started = started.await;

    sandbox.stop();
    let limit = Duration::from_millis(200);
    assert_eq!(run(limit).await, Err(ExecutorError::TimedOut(limit)));
    run(TIMEOUT).await.unwrap();
    assert_eq!(sandbox.started(), started + 1);
}

#[tokio::test]
async fn a_program_that_is_no_worker_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let package = quickstart::unpack(directory.path()).unwrap();
    for program in ["/bin/true", "/bin/echo", "/nonexistent"] {
        let executor = WorkerExecutor::new(vec![WorkerProgram::new(program)], Arc::new(NoSandbox), WorkerOptions::default());
        let refused = executor.load(&package).await;
        assert!(matches!(refused, Err(ExecutorError::Worker(_))), "{program}: {refused:?}");
    }
    let strict = WorkerOptions { at_least: Confinement::Full, ..WorkerOptions::default() };
    let confined = WorkerExecutor::new(vec![WorkerProgram::new(ncn())], Arc::new(NoSandbox), strict);
    let refused = confined.load(&package).await.unwrap_err();
    assert!(refused.to_string().contains("at least `full`"), "{refused}");
}
