use std::sync::Arc;

use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use alloy_sol_types::{SolCall, SolEventInterface as _};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ncn_core::{
    Amount, BatchSettler, ChainView, Channel, ChannelParams, DynSigner, LedgerError, Message as _, Payer, PaymentAuthorization,
    PaymentChange, PaymentChanges, PaymentLedger, PaymentRef, PaymentStatus, Quote, Receipt, RequestId, Settlement, Signature,
    TrustHistory, TrustRoot, UnixTime,
    channel::{CertifiedBatch, VoucherError, escrow_digest},
    ledger::sign_close,
    receipt::Payment,
    validation::CLAIM_SECONDS,
};

use super::{
    Deployment, EvmBackend, EvmError, LogEntry, LogFilter, SendOptions, SentTransaction,
    contracts::{
        self,
        InferencePayment::{self, InferencePaymentEvents},
        NCNToken, SubnetRegistry, parts,
    },
    errors::{amount, seconds},
    network::Network,
    sender::Sender,
};

/// How many blocks are read again when the chain has taken some back.
const REORG_DEPTH: u64 = 64;

/// The network's contracts on an EVM chain, as one account sees them. Cheap to clone.
#[derive(Clone)]
pub struct EvmLedger {
    pub(super) network: Arc<Network>,
    pub(super) sender: Arc<Sender>,
}

impl EvmLedger {
    /// These contracts, as the signer's account sees them.
    pub async fn connect(
        backend: Arc<dyn EvmBackend>,
        deployment: Deployment,
        signer: DynSigner,
        options: SendOptions,
    ) -> Result<Self, LedgerError> {
        let network = Arc::new(Network::connect(backend, deployment, options).await?);
        let sender = network.sender(signer);
        Ok(Self { network, sender })
    }

    /// The same contracts, as another account sees them.
    #[must_use]
    pub fn with_signer(&self, signer: DynSigner) -> Self {
        Self { network: self.network.clone(), sender: self.network.sender(signer) }
    }

    /// Where the contracts are.
    pub fn deployment(&self) -> Deployment {
        self.network.deployment
    }

    /// This account's signature.
    pub(super) async fn sign(&self, digest: &B256) -> Result<Signature, LedgerError> {
        let signed = Signature::sign(digest, &**self.sender.signer()).await;
        signed.map_err(|error| LedgerError::NotAllowed(format!("key: {error}")))
    }

    /// Sends a call to a contract.
    pub(super) async fn transact<C: SolCall>(&self, to: Address, call: C) -> Result<SentTransaction, EvmError> {
        self.sender.send(TxKind::Call(to), call.abi_encode().into()).await
    }

    /// Whether these are the contracts of a network. Its validators are not compared.
    pub fn is_of(&self, trust: &TrustRoot) -> bool {
        let Network { chain_id, deployment, token, .. } = &*self.network;
        let stated = (trust.domain.chain_id, trust.domain.contract, trust.channels, trust.token);
        (*chain_id, deployment.payment, deployment.channels, *token) == stated
    }

    /// The account's key.
    pub(crate) fn signer(&self) -> &DynSigner {
        self.sender.signer()
    }

    /// Whose transactions are sent.
    pub fn account(&self) -> Address {
        self.sender.address()
    }

    /// The network's domain, validators, quorum and treasury, as the chain has them now.
    pub async fn trust_root(&self) -> Result<TrustRoot, LedgerError> {
        Ok(self.network.trust(0).await?.current().trust.clone())
    }

    /// The chain's time.
    pub async fn now(&self) -> Result<UnixTime, LedgerError> {
        Ok(self.network.backend.latest_block().await?.timestamp)
    }

    /// An account's tokens.
    pub async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        self.network.ask(self.network.token, NCNToken::balanceOfCall { account: owner }).await.map(amount)
    }

    /// Where a request's escrow is.
    pub async fn payment(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        let ask = InferencePayment::requestStateCall { client, requestId: request_id };
        let commitment = self.network.ask(self.network.deployment.payment, ask).await?;
        // The contract's three markers; anything else is the hash of the escrowed quote.
        if commitment == B256::ZERO {
            Ok(PaymentStatus::Unpaid)
        } else if commitment == B256::with_last_byte(1) {
            self.stated(client, request_id, |status| matches!(status, PaymentStatus::PaidOut { .. })).await
        } else if commitment == B256::with_last_byte(2) {
            self.stated(client, request_id, |status| matches!(status, PaymentStatus::Refunded { .. })).await
        } else {
            let held = |status: &PaymentStatus| match status {
                PaymentStatus::GivenUp { quote, .. } => *quote == commitment,
                status => status.payment_of(commitment).is_some(),
            };
            self.stated(client, request_id, held).await
        }
    }

    /// Moves the quote's total from this account, which is the quote's client, into escrow. Returns the transaction, the same one each
    /// time.
    ///
    /// # Errors
    /// [`LedgerError::InsufficientFunds`]; [`LedgerError::WrongState`] when another quote of the request was paid, or this one has ended.
    pub async fn escrow(&self, quote: &Quote) -> Result<B256, LedgerError> {
        let hash = quote.struct_hash();
        let done = |status: &PaymentStatus| status.payment_of(hash).and_then(PaymentRef::transaction);
        // What the contract would refuse for good is refused before an allowance is given.
        let status = self.payment(quote.client, quote.request_id).await?;
        if let Some(transaction) = done(&status) {
            return Ok(transaction);
        }
        if status != PaymentStatus::Unpaid {
            return Err(LedgerError::WrongState { request_id: quote.request_id, actual: status.to_string() });
        }
        let (owner, needed) = (self.account(), quote.total);
        let balance = self.balance(owner).await?;
        if balance < needed {
            return Err(LedgerError::InsufficientFunds { owner, balance, needed });
        }
        // A standing allowance is the cheapest way; else one signature does in one transaction what approving first takes two for.
        if self.allowance(self.network.deployment.payment).await? >= U256::from(needed.units()) {
            let initiate = InferencePayment::initiateInferenceRequestCall { quote: contracts::quote(quote) };
            return self.attempt(quote, done, initiate).await;
        }
        let signature = self.sign(&escrow_digest(&self.trust_root().await?, quote)).await?;
        self.attempt(quote, done, initiate(quote, &signature)).await
    }

    /// Gives an escrow back to its client, as [`PaymentLedger::refund`] says. Returns the transaction, the same one each time.
    pub async fn refund(&self, quote: &Quote, consent: Option<&Signature>) -> Result<B256, LedgerError> {
        let done = |status: &PaymentStatus| match status {
            PaymentStatus::Refunded { by } => by.transaction(),
            _ => None,
        };
        let is_gateway = self.account() == quote.gateway;
        if is_gateway && let Some(consent) = consent {
            let consent = consent.as_bytes().to_vec().into();
            let fail = InferencePayment::markRequestFailedCall { quote: contracts::quote(quote), consent };
            return self.once(quote, done, fail).await;
        }
        let status = self.payment(quote.client, quote.request_id).await?;
        if let Some(transaction) = done(&status) {
            return Ok(transaction);
        }
        let is_held = matches!(status, PaymentStatus::Held { .. });
        if is_gateway && is_held && self.now().await? <= quote.expiry + CLAIM_SECONDS {
            let fail = InferencePayment::markRequestFailedCall { quote: contracts::quote(quote), consent: Bytes::new() };
            self.attempt(quote, |_| None, fail).await?;
            return match self.payment(quote.client, quote.request_id).await? {
                PaymentStatus::GivenUp { refundable_at, .. } => Err(LedgerError::NotRefundable(refundable_at)),
                other => {
                    done(&other).ok_or_else(|| LedgerError::Unreachable(format!("the chain does not show what was done: {other}")))
                }
            };
        }
        self.attempt(quote, done, InferencePayment::handleExpiredRequestCall { quote: contracts::quote(quote) }).await
    }

    /// The status that an event brought a request to, when it is the one that the contract states.
    async fn stated(
        &self,
        client: Address,
        request_id: RequestId,
        is: impl Fn(&PaymentStatus) -> bool + Send + Sync,
    ) -> Result<PaymentStatus, LedgerError> {
        let found = |entry: &LogEntry| change(entry).is_some_and(|change| change.client == client && is(&change.status));
        let log = self.network.newest_log(self.network.deployment.payment, request_id, found).await?;
        change(&log).map(|change| change.status).ok_or_else(|| LedgerError::Unreachable("the log has changed".into()))
    }

    /// Does what `call` says, unless `done` finds in the payment's status that it has been done already.
    async fn once<C: SolCall>(
        &self,
        quote: &Quote,
        done: impl Fn(&PaymentStatus) -> Option<B256>,
        call: C,
    ) -> Result<B256, LedgerError> {
        if let Some(transaction) = done(&self.payment(quote.client, quote.request_id).await?) {
            return Ok(transaction);
        }
        self.attempt(quote, done, call).await
    }

    /// Does what `call` says; when that is refused because `done` finds it done in the meantime, that is as good.
    async fn attempt<C: SolCall>(
        &self,
        quote: &Quote,
        done: impl Fn(&PaymentStatus) -> Option<B256>,
        call: C,
    ) -> Result<B256, LedgerError> {
        match self.transact(self.network.deployment.payment, call).await {
            Ok(sent) => Ok(sent.hash),
            Err(error) => done(&self.payment(quote.client, quote.request_id).await?).ok_or_else(|| LedgerError::from(error)),
        }
    }
}

/// The change of a payment that a log tells.
fn change(entry: &LogEntry) -> Option<PaymentChange> {
    let by = PaymentRef::Transaction(entry.transaction);
    let (client, request_id, status) = match InferencePaymentEvents::decode_log(&entry.log).ok()?.data {
        InferencePaymentEvents::RequestInitiated(event) => {
            (event.client, event.requestId, PaymentStatus::Held { quote: event.quote, by })
        }
        InferencePaymentEvents::RequestGivenUp(event) => {
            let refundable_at = seconds(event.refundableAt);
            (event.client, event.requestId, PaymentStatus::GivenUp { quote: event.quote, refundable_at })
        }
        InferencePaymentEvents::PaymentDistributed(event) => {
            (event.client, event.requestId, PaymentStatus::PaidOut { by, completion: Some(event.completion) })
        }
        InferencePaymentEvents::RequestRefunded(event) => (event.client, event.requestId, PaymentStatus::Refunded { by }),
        _ => return None,
    };
    Some(PaymentChange { client, request_id, status, block: entry.block })
}

#[async_trait]
impl PaymentLedger for EvmLedger {
    fn account(&self) -> Address {
        self.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.network.trust(epoch).await
    }

    async fn balance(&self, owner: Address) -> Result<Amount, LedgerError> {
        self.balance(owner).await
    }

    async fn redeem(&self, quote: &Quote, authorization: &PaymentAuthorization) -> Result<PaymentRef, LedgerError> {
        let PaymentAuthorization::Transfer(signature) = authorization else { return Err(VoucherError::not_taken().into()) };
        // Checked here, where a refusal has a name and costs no question.
        let digest = escrow_digest(&self.trust_root().await?, quote);
        let signed = signature.verify(&digest, quote.client);
        signed.map_err(|error| LedgerError::NotAllowed(format!("transfer: {error}")))?;
        let hash = quote.struct_hash();
        let done = |status: &PaymentStatus| status.payment_of(hash).and_then(PaymentRef::transaction);
        self.once(quote, done, initiate(quote, signature)).await.map(PaymentRef::Transaction)
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        self.payment(client, request_id).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<PaymentRef, LedgerError> {
        // Another completion is not this one: it may have paid other nodes, or another amount.
        let completion = settlement.completion.struct_hash();
        let done = |status: &PaymentStatus| status.settled_for(completion).and_then(PaymentRef::transaction);
        self.once(&settlement.quote, done, contracts::complete(settlement)).await.map(PaymentRef::Transaction)
    }

    async fn refund(&self, quote: &Quote, consent: Option<&Signature>) -> Result<PaymentRef, LedgerError> {
        self.refund(quote, consent).await.map(PaymentRef::Transaction)
    }

    async fn changes(&self, from_block: u64) -> Result<PaymentChanges, LedgerError> {
        let (backend, address) = (self.network.backend.clone(), self.network.deployment.payment);
        // Where to go on, and the last block that was read with its hash: another hash there means that blocks were taken back.
        let start = (from_block, None::<(u64, B256)>);
        let batches = stream::try_unfold(start, move |(mut next, read)| {
            let backend = backend.clone();
            async move {
                let mut head = match next.checked_sub(1) {
                    Some(seen) => backend.block_after(seen).await?,
                    None => backend.latest_block().await?,
                };
                if let Some((block, hash)) = read
                    && backend.block_hash(block).await? != Some(hash)
                {
                    tracing::warn!(block, "the chain has taken blocks back; reading them again");
                    next = block.saturating_sub(REORG_DEPTH);
                    head = backend.latest_block().await?;
                }
                // Asked for before the logs: when they come from other blocks than this one, it will be another's hash by then.
                let hash = backend.block_hash(head.number).await?;
                let filter = LogFilter { address, from_block: next, to_block: Some(head.number), ..LogFilter::default() };
                let logs = backend.logs(filter).await?;
                let changes: Vec<_> = logs.iter().filter_map(change).map(Ok).collect();
                let read = (head.number, hash.unwrap_or_default());
                Ok::<_, LedgerError>(Some((stream::iter(changes), (read.0.saturating_add(1), Some(read)))))
            }
        });
        Ok(batches.try_flatten().boxed())
    }

    async fn cooperative_close(&self, terms: &ChannelParams) -> Result<(Amount, Signature), LedgerError> {
        sign_close(self, terms, self.sender.signer()).await
    }
}

#[async_trait]
impl Payer for EvmLedger {
    fn account(&self) -> Address {
        self.account()
    }

    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.network.trust(epoch).await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.now().await
    }

    async fn pay(&self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        self.escrow(quote).await.map(PaymentRef::Transaction)
    }

    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        self.payment(quote.client, quote.request_id).await
    }

    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        let by = PaymentRef::Transaction(self.refund(quote, None).await?);
        Ok(PaymentStatus::Refunded { by })
    }

    async fn check(&self, receipt: &Receipt) -> Result<(), LedgerError> {
        let refuse = |problem: String| Err(LedgerError::NotAllowed(format!("payment: {problem}")));
        let Payment::Escrow { transaction, settlement } = receipt.payment else {
            return refuse("is a channel's, and the chain is to hold an escrow".into());
        };
        let (client, request_id) = (receipt.quote.client, receipt.request_id());
        self.payment(client, request_id).await?.check_settled(settlement, receipt.completion.struct_hash())?;
        let quote = receipt.quote.struct_hash();
        let held = self.stated(client, request_id, |status| status.payment_of(quote).is_some()).await?;
        match held.payment_of(quote).and_then(PaymentRef::transaction) {
            Some(paid) if paid == transaction => Ok(()),
            paid => refuse(format!("was escrowed by {}, not by {transaction}", paid.unwrap_or_default())),
        }
    }

    async fn release(&self, _: &Quote, _: Option<Amount>) {}
}

#[async_trait]
impl ChainView for EvmLedger {
    async fn trust(&self, epoch: UnixTime) -> Result<Arc<TrustHistory>, LedgerError> {
        self.network.trust(epoch).await
    }

    async fn now(&self) -> Result<UnixTime, LedgerError> {
        self.now().await
    }

    async fn status(&self, client: Address, request_id: RequestId) -> Result<PaymentStatus, LedgerError> {
        self.payment(client, request_id).await
    }

    async fn channel(&self, id: B256) -> Result<Option<Channel>, LedgerError> {
        self.channel_state(id).await
    }

    async fn channel_payouts(&self, account: Address, from_block: Option<u64>) -> Result<(Amount, u64), LedgerError> {
        self.paid_out_of_channels(account, from_block).await
    }

    async fn charged_root(&self, channel: B256, settled_before: Amount) -> Result<Option<B256>, LedgerError> {
        self.root_of(channel, settled_before).await
    }

    async fn subnet_owner(&self, subnet: B256) -> Result<Option<Address>, LedgerError> {
        let (subnets, id) = (self.network.deployment.subnets, subnet);
        let owner = self.network.ask(subnets, SubnetRegistry::ownerOfCall { id }).await?;
        Ok((owner != Address::ZERO).then_some(owner))
    }

    async fn stake(&self, validator: Address) -> Result<Amount, LedgerError> {
        self.staked(validator).await
    }
}

#[async_trait]
impl BatchSettler for EvmLedger {
    async fn settle_batch(&self, batch: &CertifiedBatch) -> Result<B256, LedgerError> {
        self.settle_channels(batch).await
    }
}

/// The call that escrows a quote on its client's authorization.
fn initiate(quote: &Quote, signature: &Signature) -> InferencePayment::initiateWithAuthorizationCall {
    let (v, r, s) = parts(signature);
    InferencePayment::initiateWithAuthorizationCall { quote: contracts::quote(quote), v, r, s }
}
