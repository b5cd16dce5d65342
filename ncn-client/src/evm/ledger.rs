use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use alloy_sol_types::{SolCall, SolEventInterface as _};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ncn_core::{
    Amount, Domain, DynSigner, EscrowState, LedgerError, LedgerEvent, Message as _, PaymentLedger, Quote, RequestId, Settlement,
    TrustRoot, UnixTime, ledger::LedgerEvents,
};

use super::{
    EvmBackend, EvmError, LogEntry, LogFilter, SentTransaction,
    contracts::{
        self,
        InferencePayment::{self, InferencePaymentEvents},
        NCNToken, ValidatorRegistry,
    },
    errors::amount,
};

/// How long a trust root is believed before the chain is asked again.
const TRUST_ROOT_AGE: Duration = Duration::from_secs(5);
/// How often a transaction is sent again because the account's nonce was taken by another one.
const MAX_NONCE_RETRIES: u32 = 64;
/// More than any call to the contracts takes.
const GAS_LIMIT: u64 = 8_000_000;

/// The network's contracts on an EVM chain, as one account sees them.
pub struct EvmLedger {
    backend: Arc<dyn EvmBackend>,
    signer: DynSigner,
    payment: Address,
    token: Address,
    registry: Address,
    treasury: Address,
    chain_id: u64,
    trust_root: Mutex<Option<(Instant, TrustRoot)>>,
    /// Approving an allowance and spending it are two transactions: one escrow at a time, or they would spend each other's.
    spending: tokio::sync::Mutex<()>,
}

impl EvmLedger {
    /// The contracts around the `InferencePayment` at `payment`; `signer` is the account.
    pub async fn connect(backend: Arc<dyn EvmBackend>, payment: Address, signer: DynSigner) -> Result<Self, LedgerError> {
        let chain_id = backend.chain_id().await?;
        let token = call(&*backend, payment, InferencePayment::tokenCall {}).await?;
        let registry = call(&*backend, payment, InferencePayment::registryCall {}).await?;
        let treasury = call(&*backend, payment, InferencePayment::treasuryCall {}).await?;
        let (trust_root, spending) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self { backend, signer, payment, token, registry, treasury, chain_id, trust_root, spending })
    }

    /// The same contracts, as another account sees them.
    #[must_use]
    pub fn with_signer(&self, signer: DynSigner) -> Self {
        let (trust_root, spending) = (Mutex::default(), tokio::sync::Mutex::default());
        let Self { payment, token, registry, treasury, chain_id, .. } = *self;
        Self { backend: self.backend.clone(), signer, payment, token, registry, treasury, chain_id, trust_root, spending }
    }

    /// Sends tokens.
    pub async fn transfer(&self, to: Address, amount: Amount) -> Result<B256, LedgerError> {
        let value = U256::from(amount.units());
        Ok(self.transact(self.token, NCNToken::transferCall { to, value }).await?.hash)
    }

    /// Makes this account a validator, or adds to its stake.
    pub async fn stake(&self, amount: Amount) -> Result<B256, LedgerError> {
        let amount = U256::from(amount.units());
        let _guard = self.spending.lock().await;
        self.transact(self.token, NCNToken::approveCall { spender: self.registry, value: amount }).await?;
        let staked = self.transact(self.registry, ValidatorRegistry::registerValidatorCall { amount }).await?;
        *self.trust_root.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(staked.hash)
    }

    /// Sends a call to a contract.
    async fn transact<C: SolCall>(&self, to: Address, call: C) -> Result<SentTransaction, EvmError> {
        send(&*self.backend, &self.signer, TxKind::Call(to), call.abi_encode().into()).await
    }

    /// The state that an event brought a request to, when it is the one that the contract states.
    async fn stated(
        &self,
        client: Address,
        request_id: RequestId,
        is: impl Fn(&EscrowState) -> bool + Send,
    ) -> Result<EscrowState, LedgerError> {
        let filter = LogFilter { address: self.payment, from_block: 0, topic1: Some(request_id) };
        let logs = self.backend.logs(filter).await?;
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
        match self.transact(self.payment, call).await {
            Ok(sent) => Ok(sent.hash),
            Err(error) => done(&self.escrow_state(quote.client, quote.request_id).await?).ok_or_else(|| LedgerError::from(error)),
        }
    }
}

/// Asks a contract.
async fn call<C: SolCall>(backend: &dyn EvmBackend, to: Address, call: C) -> Result<C::Return, LedgerError> {
    let data = backend.call(to, call.abi_encode().into()).await?;
    C::abi_decode_returns(&data)
        .map_err(|error| LedgerError::Unreachable(format!("{} at {to} does not answer as it should: {error}", C::SIGNATURE)))
}

/// Signs a transaction with the account's next nonce and sends it.
pub(crate) async fn send(
    backend: &dyn EvmBackend,
    signer: &DynSigner,
    to: TxKind,
    input: Bytes,
) -> Result<SentTransaction, EvmError> {
    let chain_id = backend.chain_id().await?;
    for _ in 0..MAX_NONCE_RETRIES {
        let nonce = backend.nonce(signer.address()).await?;
        let transaction = TxEip1559 { chain_id, nonce, gas_limit: GAS_LIMIT, to, input: input.clone(), ..TxEip1559::default() };
        let signature = signer
            .sign_hash(&transaction.signature_hash())
            .await
            .map_err(|error| EvmError::InvalidTransaction(format!("signing failed: {error}")))?;
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        match backend.send(envelope.encoded_2718().into()).await {
            Err(EvmError::Nonce { .. }) => {}
            sent => return sent,
        }
    }
    Err(EvmError::Unreachable(format!("the nonces of {} are taken by other transactions again and again", signer.address())))
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
        self.signer.address()
    }

    async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        if let Some((at, trust_root)) = &*self.trust_root.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < TRUST_ROOT_AGE
        {
            return Ok(trust_root.clone());
        }
        let mut validators = call(&*self.backend, self.registry, ValidatorRegistry::activeValidatorsCall {}).await?;
        validators.sort_unstable();
        let trust_root = TrustRoot {
            domain: Domain { chain_id: self.chain_id, contract: self.payment },
            validators,
            threshold: call(&*self.backend, self.registry, ValidatorRegistry::thresholdCall {}).await?,
            committee_size: call(&*self.backend, self.registry, ValidatorRegistry::committeeSizeCall {}).await?,
            treasury: self.treasury,
        };
        let cached = Some((Instant::now(), trust_root.clone()));
        *self.trust_root.lock().unwrap_or_else(PoisonError::into_inner) = cached;
        Ok(trust_root)
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        Ok(self.backend.head().await?.timestamp)
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        call(&*self.backend, self.token, NCNToken::balanceOfCall { account: owner }).await.map(amount)
    }

    async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError> {
        let hash = quote.struct_hash();
        let done = |state: &EscrowState| match state {
            EscrowState::Escrowed { quote, transaction } if *quote == hash => Some(*transaction),
            _ => None,
        };
        let _guard = self.spending.lock().await;
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
        let allowance = NCNToken::allowanceCall { owner, spender: self.payment };
        if call(&*self.backend, self.token, allowance).await? < value {
            self.transact(self.token, NCNToken::approveCall { spender: self.payment, value }).await?;
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
        let commitment = call(&*self.backend, self.payment, ask).await?;
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
        let (backend, address) = (self.backend.clone(), self.payment);
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
