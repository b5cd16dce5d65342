//! Channels on the chain.

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolEvent as _;
use ncn_core::{
    Amount, Channel, ChannelParams, LedgerError, Signature, UnixTime,
    channel::{CertifiedBatch, Numbers, transfer_digest},
};

use super::{
    EvmLedger, LogFilter, PaymentChannel,
    contracts::{self, NCNToken, parts},
    network::Network,
};

impl EvmLedger {
    pub(super) async fn channel_state(&self, id: B256) -> Result<Option<Channel>, LedgerError> {
        let channel = self.network.ask(self.network.deployment.channels, PaymentChannel::channelCall { id }).await?;
        Ok((channel.state != 0).then_some(Channel {
            deposit: Amount::new(channel.deposit),
            settled: Amount::new(channel.settled),
            numbers: Numbers { base: channel.base, over: channel.over },
            expiry: channel.expiry,
            open: channel.state == 1,
        }))
    }

    /// Brings the deposit of this account's channel up to `deposit`, opening it when there is none, and its expiry to `expiry`. Returns
    /// the transaction. A deposit that is there already costs nothing.
    ///
    /// # Errors
    /// [`LedgerError::Channel`] when the channel is closed or has expired; [`LedgerError::InsufficientFunds`].
    pub async fn fund_channel(&self, terms: &ChannelParams, deposit: Amount, expiry: UnixTime) -> Result<B256, LedgerError> {
        let (id, contract) = (terms.id(), self.network.deployment.channels);
        let known = self.channel_state(id).await?;
        if terms.client != self.account() {
            return Err(LedgerError::NotAllowed("client: only the client itself can fund its channel".into()));
        }
        let (before, present) = match known {
            Some(channel) if !channel.open => {
                return Err(LedgerError::Channel { channel: id, problem: "is closed: open another with a new salt".into() });
            }
            Some(channel) => (channel.deposit, channel.expiry),
            None => (Amount::ZERO, 0),
        };
        let (amount, expiry) = (deposit.checked_sub(before).unwrap_or_default(), expiry.max(present));
        if amount.is_zero() && known.is_some() && expiry == present {
            let funding = [PaymentChannel::ChannelOpened::SIGNATURE_HASH, PaymentChannel::ChannelToppedUp::SIGNATURE_HASH];
            let log = self.network.newest_log(contract, id, |log| log.log.topics().first().is_some_and(|t| funding.contains(t)));
            return Ok(log.await?.transaction);
        }
        let balance = self.balance(terms.client).await?;
        if balance < amount {
            return Err(LedgerError::InsufficientFunds { owner: terms.client, balance, needed: amount });
        }
        let sent = if amount.is_zero() || self.allowance(contract).await? >= U256::from(amount.units()) {
            let (terms, amount) = (contracts::terms(terms), amount.units());
            if known.is_none() {
                self.transact(contract, PaymentChannel::openCall { terms, amount, expiry }).await?
            } else {
                self.transact(contract, PaymentChannel::topUpCall { terms, amount, expiry }).await?
            }
        } else {
            // One transaction instead of two, and no allowance that another payment could spend.
            let trust = self.trust_root().await?;
            let nonce = terms.funding_nonce(before, amount, expiry);
            let digest = transfer_digest(&trust, terms.client, contract, amount, expiry, nonce);
            let (v, r, s) = parts(&self.sign(&digest).await?);
            let (terms, deposit, amount) = (contracts::terms(terms), before.units(), amount.units());
            let fund = PaymentChannel::fundWithAuthorizationCall { terms, depositBefore: deposit, amount, expiry, v, r, s };
            self.transact(contract, fund).await?
        };
        Ok(sent.hash)
    }

    pub(super) async fn settle_channels(&self, batch: &CertifiedBatch) -> Result<B256, LedgerError> {
        let settlement = &batch.settlement;
        let charges = settlement.charges.len();
        if batch.vouchers.len() != charges || batch.committees.len() != charges {
            let problem = "vouchers, committees: there has to be one for each charge, in their order";
            return Err(LedgerError::Certificate(problem.into()));
        }
        if let Some(transaction) = self.settled(batch).await? {
            return Ok(transaction);
        }
        match self.transact(self.network.deployment.channels, contracts::settle(batch)).await {
            Ok(sent) => Ok(sent.hash),
            Err(error) => self.settled(batch).await?.ok_or_else(|| error.into()),
        }
    }

    /// The transaction that settled a batch, when one did: it has charged its first channel just so, and with this root.
    async fn settled(&self, batch: &CertifiedBatch) -> Result<Option<B256>, LedgerError> {
        let Some(charge) = batch.settlement.charges.first() else { return Ok(None) };
        let channel = self.channel_state(charge.channel).await?;
        if channel.is_none_or(|channel| channel.settled < charge.settled_after) {
            return Ok(None);
        }
        let contract = self.network.deployment.channels;
        let filter = LogFilter { address: contract, topic1: Some(charge.channel), ..LogFilter::default() };
        let logs = self.network.backend.logs(filter).await?;
        let ours = logs.iter().rev().find(|entry| {
            let charged = PaymentChannel::ChannelCharged::decode_log(&entry.log);
            charged.is_ok_and(|event| {
                let wanted = (batch.settlement.root, charge.settled_before.units(), charge.settled_after.units());
                (event.root, event.settledBefore, event.settledAfter) == wanted
            })
        });
        Ok(ours.map(|entry| entry.transaction))
    }

    pub(super) async fn paid_out_of_channels(
        &self,
        account: Address,
        from_block: Option<u64>,
    ) -> Result<(Amount, u64), LedgerError> {
        let Network { backend, deployment, token, .. } = &*self.network;
        let newest = backend.latest_block().await?.number;
        let next = newest.saturating_add(1);
        let from_block = from_block.unwrap_or(next);
        if from_block > newest {
            return Ok((Amount::ZERO, from_block));
        }
        let (from, to) = (Some(deployment.channels.into_word()), Some(account.into_word()));
        let range = LogFilter { from_block, to_block: Some(newest), ..LogFilter::default() };
        let logs = backend.logs(LogFilter { address: *token, topic1: from, topic2: to, ..range }).await?;
        let transfers = logs.iter().filter_map(|entry| NCNToken::Transfer::decode_log(&entry.log).ok());
        let paid = transfers.map(|transfer| Amount::new(transfer.value.saturating_to()));
        Ok((paid.sum(), next))
    }

    /// The root of the batch that charged a channel from this sum on.
    pub(super) async fn root_of(&self, channel: B256, settled_before: Amount) -> Result<Option<B256>, LedgerError> {
        let address = self.network.deployment.channels;
        let logs = self.network.backend.logs(LogFilter { address, topic1: Some(channel), ..LogFilter::default() }).await?;
        let charged = logs.iter().filter_map(|entry| PaymentChannel::ChannelCharged::decode_log(&entry.log).ok());
        let mut roots = charged.filter(|event| event.settledBefore == settled_before.units()).map(|event| event.root);
        Ok(roots.next())
    }

    /// Gives the rest of a deposit back to its client: for its gateway, and for whoever has the gateway's signature over a
    /// [`ncn_core::ChannelClose`], at any time; for anyone after the expiry. Returns the transaction.
    ///
    /// # Errors
    /// [`LedgerError::Channel`] when it cannot be closed yet, or was never opened.
    pub async fn close_channel(&self, terms: &ChannelParams, agreement: Option<Signature>) -> Result<B256, LedgerError> {
        let (id, contract) = (terms.id(), self.network.deployment.channels);
        let Some(channel) = self.channel_state(id).await? else {
            return Err(LedgerError::Channel { channel: id, problem: "was never opened".into() });
        };
        if !channel.open {
            let closed = PaymentChannel::ChannelClosed::SIGNATURE_HASH;
            let log = self.network.newest_log(contract, id, |log| log.log.topics().first() == Some(&closed)).await?;
            return Ok(log.transaction);
        }
        let (settled, signature) = (channel.settled.units(), agreement.map(|agreement| agreement.as_bytes().to_vec()));
        let terms = contracts::terms(terms);
        let sent = if signature.is_some() || terms.gateway == self.account() {
            let signature = signature.unwrap_or_default().into();
            self.transact(contract, PaymentChannel::closeCall { terms, settled, gatewaySignature: signature }).await?
        } else {
            self.transact(contract, PaymentChannel::refundExpiredCall { terms }).await?
        };
        Ok(sent.hash)
    }
}
