//! The network's contracts on one chain, and what the ledgers of all accounts share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use alloy_primitives::{Address, B256, TxKind};
use alloy_sol_types::SolCall;
use ncn_core::{
    Domain, DynSigner, LedgerError, TrustHistory, TrustRoot, UnixTime,
    trust::{Quorum, Tenure},
};
use serde::{Deserialize, Serialize};

use super::{
    Call, EvmBackend, EvmError, InferencePayment, LogEntry, LogFilter, PaymentChannel, SendOptions, SubnetRegistry,
    ValidatorRegistry, sender::Sender,
};

/// How long it is believed who the validators are before the chain is asked again.
const TRUST_AGE: Duration = Duration::from_secs(5);
/// How long at least, whatever epoch is asked about: a stranger who makes one up does not make this process ask the chain each time.
const LEAST_TRUST_AGE: Duration = Duration::from_millis(200);

/// Where a network's contracts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deployment {
    /// `InferencePayment`, which knows the token, the validators and the treasury.
    pub payment: Address,
    /// `PaymentChannel`.
    pub channels: Address,
    /// `SubnetRegistry`.
    pub subnets: Address,
    /// `Slashing`.
    pub slashing: Address,
}

impl Deployment {
    /// Where [`super::DeployParams::deploy`] puts the contracts when they are the first that `deployer` creates.
    pub fn first_of(deployer: Address) -> Self {
        Self {
            payment: deployer.create(2),
            channels: deployer.create(3),
            subnets: deployer.create(4),
            slashing: deployer.create(5),
        }
    }
}

pub(super) struct Network {
    pub(super) backend: Arc<dyn EvmBackend>,
    pub(super) deployment: Deployment,
    pub(super) chain_id: u64,
    pub(super) token: Address,
    pub(super) registry: Address,
    treasury: Address,
    options: SendOptions,
    trust: Mutex<Option<(Instant, Arc<TrustHistory>)>>,
    /// One for each account, however many ledgers it has.
    senders: Mutex<HashMap<Address, Arc<Sender>>>,
}

impl Network {
    pub(super) async fn connect(
        backend: Arc<dyn EvmBackend>,
        deployment: Deployment,
        options: SendOptions,
    ) -> Result<Self, LedgerError> {
        let chain_id = backend.chain_id().await?;
        let Deployment { payment, channels, subnets, .. } = deployment;
        let token = call(&*backend, payment, InferencePayment::tokenCall {}).await?;
        let registry = call(&*backend, payment, InferencePayment::registryCall {}).await?;
        let treasury = call(&*backend, payment, InferencePayment::treasuryCall {}).await?;
        let same = call(&*backend, channels, PaymentChannel::tokenCall {}).await? == token
            && call(&*backend, channels, PaymentChannel::registryCall {}).await? == registry
            && call(&*backend, subnets, SubnetRegistry::tokenCall {}).await? == token;
        if !same {
            let problem = "payment, channels and subnets are contracts of different networks: check their addresses";
            return Err(LedgerError::NotAllowed(format!("deployment: {problem}")));
        }
        let (trust, senders) = (Mutex::default(), Mutex::default());
        Ok(Self { backend, deployment, chain_id, token, registry, treasury, options, trust, senders })
    }

    pub(super) fn sender(&self, signer: DynSigner) -> Arc<Sender> {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody uses any more have nothing under way.
        senders.retain(|_, sender| Arc::strong_count(sender) > 1);
        let address = signer.address();
        let new = || Arc::new(Sender::new(self.backend.clone(), signer, self.chain_id, self.options));
        senders.entry(address).or_insert_with(new).clone()
    }

    /// Asks a contract.
    pub(super) async fn ask<C: SolCall>(&self, to: Address, question: C) -> Result<C::Return, LedgerError> {
        call(&*self.backend, to, question).await
    }

    pub(super) async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        let known = self.trust.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, history)) = known
            && at.elapsed() < if history.time() < epoch { LEAST_TRUST_AGE } else { TRUST_AGE }
        {
            return reaching(history, epoch);
        }
        let read = self.ask(self.registry, ValidatorRegistry::historyCall {}).await?;
        let tenures = read.members.iter().map(|member| Tenure {
            validator: member.account,
            from: member.activeFrom,
            until: member.activeUntil,
        });
        let quorums = read.quorums.iter().map(|quorum| Quorum {
            since: quorum.since,
            threshold: quorum.threshold,
            committee_size: quorum.committeeSize,
        });
        let network = TrustRoot {
            domain: Domain { chain_id: self.chain_id, contract: self.deployment.payment },
            token: self.token,
            channels: self.deployment.channels,
            validators: Vec::new(),
            threshold: 0,
            committee_size: 0,
            treasury: self.treasury,
        };
        let history = Arc::new(TrustHistory::new(read.time, network, tenures.collect(), quorums.collect()));
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), history.clone()));
        reaching(history, epoch)
    }

    /// Has the validators read anew: this process has changed them.
    pub(super) fn forget_trust(&self) {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The newest log of a contract about `subject` (its first indexed argument) that is one of those.
    pub(super) async fn newest_log(
        &self,
        address: Address,
        subject: B256,
        is: impl Fn(&LogEntry) -> bool + Send,
    ) -> Result<LogEntry, LedgerError> {
        let mut to_block = None;
        loop {
            let filter = LogFilter { address, topic1: Some(subject), newest: true, to_block, ..LogFilter::default() };
            let logs = self.backend.logs(filter).await?;
            // Only other logs of the subject may be the newest: what is sought is before them.
            to_block = logs.first().and_then(|log| log.block.checked_sub(1));
            match logs.into_iter().rev().find(|log| is(log)) {
                Some(found) => return Ok(found),
                None if to_block.is_some() => {}
                None => {
                    let problem = format!("the contract at {address} and its logs of {subject} do not agree yet");
                    return Err(LedgerError::Unreachable(problem));
                }
            }
        }
    }
}

/// A history that was read at `epoch` or later.
fn reaching(history: Arc<TrustHistory>, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
    if history.time() < epoch {
        let problem = format!("its newest block is of {}, and what is asked about is of {epoch}", history.time());
        return Err(LedgerError::Unreachable(problem));
    }
    Ok(history)
}

async fn call<C: SolCall>(backend: &dyn EvmBackend, to: Address, question: C) -> Result<C::Return, LedgerError> {
    let question = Call { from: Address::ZERO, to: TxKind::Call(to), input: question.abi_encode().into() };
    let answer = backend.call(&question).await?;
    // No contract is there, or another one.
    let problem = |error: alloy_sol_types::Error| format!("{} at {to}: {error}: check the contract's address", C::SIGNATURE);
    C::abi_decode_returns(&answer).map_err(|error| EvmError::Malformed { method: "eth_call", problem: problem(error) }.into())
}
