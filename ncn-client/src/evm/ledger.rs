use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use alloy_primitives::{Address, B256, TxKind, U256};
use alloy_sol_types::{SolCall, SolEventInterface as _};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ncn_core::{
    Amount, Domain, DynSigner, EscrowState, LedgerError, LedgerEvent, Message as _, PaymentLedger, Quote, RequestId, Settlement,
    TrustRoot, UnixTime, ledger::LedgerEvents,
};

use super::{
    Call, EvmBackend, EvmError, LogEntry, LogFilter, SendOptions, SentTransaction,
    contracts::{
        self,
        InferencePayment::{self, InferencePaymentEvents},
        NCNToken, ValidatorRegistry,
    },
    errors::amount,
    sender::Sender,
};

/// How long a trust root is believed before the chain is asked again.
const TRUST_ROOT_AGE: Duration = Duration::from_secs(5);

/// The network's contracts on an EVM chain, as one account sees them.
pub struct EvmLedger {
    network: Arc<Network>,
    sender: Arc<Sender>,
}

/// What the ledgers of all accounts share.
struct Network {
    backend: Arc<dyn EvmBackend>,
    options: SendOptions,
    chain_id: u64,
    payment: Address,
    token: Address,
    registry: Address,
    treasury: Address,
    trust_root: Mutex<Option<(Instant, TrustRoot)>>,
    /// One for each account, however many ledgers it has.
    senders: Mutex<HashMap<Address, Arc<Sender>>>,
}

impl Network {
    fn sender(&self, signer: DynSigner) -> Arc<Sender> {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody uses any more have nothing under way.
        senders.retain(|_, sender| Arc::strong_count(sender) > 1);
        let new = || Arc::new(Sender::new(self.backend.clone(), signer.clone(), self.chain_id, self.options));
        senders.entry(signer.address()).or_insert_with(new).clone()
    }
}

impl EvmLedger {
    /// The contracts around the `InferencePayment` at `payment`; `signer` is the account.
    pub async fn connect(
        backend: Arc<dyn EvmBackend>,
        payment: Address,
        signer: DynSigner,
        options: SendOptions,
    ) -> Result<Self, LedgerError> {
        let chain_id = backend.chain_id().await?;
        let token = call(&*backend, payment, InferencePayment::tokenCall {}).await?;
        let registry = call(&*backend, payment, InferencePayment::registryCall {}).await?;
        let treasury = call(&*backend, payment, InferencePayment::treasuryCall {}).await?;
        let (trust_root, senders) = (Mutex::default(), Mutex::default());
        let network = Arc::new(Network { backend, options, chain_id, payment, token, registry, treasury, trust_root, senders });
        let sender = network.sender(signer);
        Ok(Self { network, sender })
    }

    /// The same contracts, as another account sees them.
    #[must_use]
    pub fn with_signer(&self, signer: DynSigner) -> Self {
        Self { network: self.network.clone(), sender: self.network.sender(signer) }
    }

    /// Sends tokens.
    pub async fn transfer(&self, to: Address, amount: Amount) -> Result<B256, LedgerError> {
        let value = U256::from(amount.units());
        Ok(self.transact(self.network.token, NCNToken::transferCall { to, value }).await?.hash)
    }

    /// Makes this account a validator, or adds to its stake.
    pub async fn stake(&self, amount: Amount) -> Result<B256, LedgerError> {
        let amount = U256::from(amount.units());
        let approve = NCNToken::approveCall { spender: self.network.registry, value: amount };
        self.transact(self.network.token, approve).await?;
        let staked = self.transact(self.network.registry, ValidatorRegistry::registerValidatorCall { amount }).await?;
        *self.network.trust_root.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(staked.hash)
    }

    /// Sends a call to a contract.
    async fn transact<C: SolCall>(&self, to: Address, call: C) -> Result<SentTransaction, EvmError> {
        self.sender.send(TxKind::Call(to), call.abi_encode().into()).await
    }

    /// The state that an event brought a request to, when it is the one that the contract states.
    async fn stated(
        &self,
        client: Address,
        request_id: RequestId,
        is: impl Fn(&EscrowState) -> bool + Send,
    ) -> Result<EscrowState, LedgerError> {
        let filter = LogFilter { address: self.network.payment, from_block: 0, topic1: Some(request_id) };
        let logs = self.network.backend.logs(filter).await?;
        let mut events = logs.iter().filter_map(event).filter(|event| event.client == client);
        events.find(|event| is(&event.state)).map(|event| event.state).ok_or_else(|| {
            LedgerError::Unreachable(format!("the contract and the events of request {request_id} do not agree yet"))
        })
    }

    /// Does what `call` says, unless `done` finds in the request's state that it has been done already.
    async fn once<C: SolCall>(
        &self,
        quote: &Quote,
        done: impl Fn(&EscrowState) -> Option<B256>,
        call: C,
    ) -> Result<B256, LedgerError> {
        if let Some(transaction) = done(&self.escrow_state(quote.client, quote.request_id).await?) {
            return Ok(transaction);
        }
        self.attempt(quote, done, call).await
    }

    /// Does what `call` says; when that is refused because `done` finds it done in the meantime, that is as good.
    async fn attempt<C: SolCall>(
        &self,
        quote: &Quote,
        done: impl Fn(&EscrowState) -> Option<B256>,
        call: C,
    ) -> Result<B256, LedgerError> {
        match self.transact(self.network.payment, call).await {
            Ok(sent) => Ok(sent.hash),
            Err(error) => done(&self.escrow_state(quote.client, quote.request_id).await?).ok_or_else(|| LedgerError::from(error)),
        }
    }
}

/// Asks a contract.
async fn call<C: SolCall>(backend: &dyn EvmBackend, to: Address, call: C) -> Result<C::Return, LedgerError> {
    let data = backend.call(&Call { from: Address::ZERO, to: TxKind::Call(to), input: call.abi_encode().into() }).await?;
    C::abi_decode_returns(&data)
        .map_err(|error| LedgerError::Unreachable(format!("{} at {to} does not answer as it should: {error}", C::SIGNATURE)))
}

/// The payment event that a log is.
fn event(entry: &LogEntry) -> Option<LedgerEvent> {
    let transaction = entry.transaction;
    let (client, request_id, state) = match InferencePaymentEvents::decode_log(&entry.log).ok()?.data {
        InferencePaymentEvents::RequestInitiated(event) => {
            (event.client, event.requestId, EscrowState::Escrowed { quote: event.quote, transaction })
        }
        InferencePaymentEvents::PaymentDistributed(event) => {
            (event.client, event.requestId, EscrowState::Completed { transaction })
        }
        InferencePaymentEvents::RequestRefunded(event) => (event.client, event.requestId, EscrowState::Refunded { transaction }),
        InferencePaymentEvents::EIP712DomainChanged(_) => return None,
    };
    Some(LedgerEvent { client, request_id, state, block: entry.block })
}

#[async_trait]
impl PaymentLedger for EvmLedger {
    fn account(&self) -> Address {
        self.sender.address()
    }

    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        if let Some((at, trust_root)) = &*self.network.trust_root.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < TRUST_ROOT_AGE
        {
            return Ok(trust_root.clone());
        }
        let mut validators =
            call(&*self.network.backend, self.network.registry, ValidatorRegistry::activeValidatorsCall {}).await?;
        validators.sort_unstable();
        let trust_root = TrustRoot {
            domain: Domain { chain_id: self.network.chain_id, contract: self.network.payment },
            validators,
            threshold: call(&*self.network.backend, self.network.registry, ValidatorRegistry::thresholdCall {}).await?,
            committee_size: call(&*self.network.backend, self.network.registry, ValidatorRegistry::committeeSizeCall {}).await?,
            treasury: self.network.treasury,
        };
        let cached = Some((Instant::now(), trust_root.clone()));
        *self.network.trust_root.lock().unwrap_or_else(PoisonError::into_inner) = cached;
        Ok(trust_root)
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        Ok(self.network.backend.head().await?.timestamp)
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        call(&*self.network.backend, self.network.token, NCNToken::balanceOfCall { account: owner }).await.map(amount)
    }

    async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError> {
        let hash = quote.struct_hash();
        let done = |state: &EscrowState| match state {
            EscrowState::Escrowed { quote, transaction } if *quote == hash => Some(*transaction),
            _ => None,
        };
        // What the contract would refuse for good is refused before an allowance is given.
        let state = self.escrow_state(quote.client, quote.request_id).await?;
        if let Some(transaction) = done(&state) {
            return Ok(transaction);
        }
        if state != EscrowState::None {
            return Err(LedgerError::WrongState { request_id: quote.request_id, actual: format!("{state:?}") });
        }
        let (owner, needed) = (self.account(), quote.total);
        let balance = self.balance(owner).await?;
        if balance < needed {
            return Err(LedgerError::InsufficientFunds { owner, balance, needed });
        }
        let value = U256::from(needed.units());
        let allowance = NCNToken::allowanceCall { owner, spender: self.network.payment };
        if call(&*self.network.backend, self.network.token, allowance).await? < value {
            self.transact(self.network.token, NCNToken::approveCall { spender: self.network.payment, value }).await?;
        }
        let initiate = InferencePayment::initiateInferenceRequestCall { quote: contracts::quote(quote) };
        self.attempt(quote, done, initiate).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<B256, LedgerError> {
        let Settlement { quote, completion, certificate } = settlement;
        if (completion.request_id, completion.quote) != (quote.request_id, quote.struct_hash()) {
            return Err(LedgerError::Certificate("the completion is of another quote".into()));
        }
        let complete = InferencePayment::completeInferenceRequestCall {
            quote: contracts::quote(quote),
            result: completion.result,
            compute: completion.compute,
            approvals: certificate.packed().into(),
        };
        let done = |state: &EscrowState| match state {
            EscrowState::Completed { transaction } => Some(*transaction),
            _ => None,
        };
        self.once(quote, done, complete).await
    }

    async fn refund(&self, quote: &Quote) -> Result<B256, LedgerError> {
        let done = |state: &EscrowState| match state {
            EscrowState::Refunded { transaction } => Some(*transaction),
            _ => None,
        };
        let contract_quote = contracts::quote(quote);
        if self.account() == quote.gateway {
            self.once(quote, done, InferencePayment::markRequestFailedCall { quote: contract_quote }).await
        } else {
            self.once(quote, done, InferencePayment::handleExpiredRequestCall { quote: contract_quote }).await
        }
    }

    async fn escrow_state(&self, client: Address, request_id: RequestId) -> Result<EscrowState, LedgerError> {
        let ask = InferencePayment::requestStateCall { client, requestId: request_id };
        let commitment = call(&*self.network.backend, self.network.payment, ask).await?;
        // The contract's three markers; anything else is the hash of the escrowed quote.
        if commitment == B256::ZERO {
            Ok(EscrowState::None)
        } else if commitment == B256::with_last_byte(1) {
            self.stated(client, request_id, |state| matches!(state, EscrowState::Completed { .. })).await
        } else if commitment == B256::with_last_byte(2) {
            self.stated(client, request_id, |state| matches!(state, EscrowState::Refunded { .. })).await
        } else {
            let escrowed = |state: &EscrowState| matches!(state, EscrowState::Escrowed { quote, .. } if *quote == commitment);
            self.stated(client, request_id, escrowed).await
        }
    }

    async fn events(&self, from_block: u64) -> Result<LedgerEvents, LedgerError> {
        let (backend, address) = (self.network.backend.clone(), self.network.payment);
        let batches = stream::try_unfold(from_block, move |next| {
            let backend = backend.clone();
            async move {
                let head = match next.checked_sub(1) {
                    Some(seen) => backend.head_after(seen).await?,
                    None => backend.head().await?,
                };
                let logs = backend.logs(LogFilter { address, from_block: next, topic1: None }).await?;
                // A block may have come between the two questions: go on after the last one that was really read.
                let read = logs.last().map_or(head.number, |log| log.block.max(head.number));
                let events: Vec<_> = logs.iter().filter_map(event).map(Ok).collect();
                Ok::<_, LedgerError>(Some((stream::iter(events), read + 1)))
            }
        });
        Ok(batches.try_flatten().boxed())
    }
}
