//! The suites for money, by who calls it: [`ledger`] a gateway, [`payer`] a client, [`chain`] everybody else.

mod channel;
mod ledger;
mod payer;
mod retries;

use std::sync::Arc;

use async_trait::async_trait;

use super::{Rules, Spoilt, Verdict, Violation, certificate, delivery, key, order, quote};
use crate::{
    Amount, B256, BatchSettler, ChannelParams, Committee, DynSigner, Epoch, InferenceRequest, LedgerError, Message as _, Payer,
    PaymentAuthorization, PaymentLedger, PaymentRef, Quote, Settlement, Signature, TaskCapability, TrustRoot, UnixTime,
    validation::MAX_ESCROW_SECONDS,
};

/// A chain with money, as the suites need it.
#[async_trait]
pub trait ChainFixture: Send + Sync {
    /// Gives an account these tokens, and whatever it takes to send transactions.
    async fn mint(&self, account: &DynSigner, tokens: Amount);

    /// The chain as this account settles batches on it.
    async fn settler(&self, signer: DynSigner) -> Arc<dyn BatchSettler>;

    /// Funds a channel out of this account.
    async fn fund_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelParams,
        deposit: Amount,
        expiry: UnixTime,
    ) -> Result<B256, LedgerError>;

    /// Closes a channel, as this account.
    async fn close_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelParams,
        agreement: Option<Signature>,
    ) -> Result<B256, LedgerError>;

    /// The keys of the validators.
    fn validators(&self) -> Vec<DynSigner>;

    /// Lets the chain's time pass.
    async fn advance(&self, seconds: u64);
}

/// What the suites for [`PaymentLedger`], [`crate::ChainView`] and [`BatchSettler`] need: a chain, and the gateways' ledgers on it.
#[async_trait]
pub trait LedgerFixture: Send + Sync {
    /// The chain.
    fn chain(&self) -> &dyn ChainFixture;

    /// The ledger as this account sees it. The same signer again is as after a restart.
    async fn ledger(&self, signer: DynSigner) -> Arc<dyn PaymentLedger>;
}

/// What the suite for [`Payer`] needs beside: a way to pay.
#[async_trait]
pub trait PayerFixture: Send + Sync {
    /// The gateways that are paid.
    fn gateways(&self) -> &dyn LedgerFixture;

    /// A payer for this account, which can spend just so many tokens at the gateway. It has none yet. The same signer again is as after a
    /// restart.
    async fn payer(&self, signer: DynSigner, purse: Amount, gateway: &Arc<dyn PaymentLedger>) -> Arc<dyn Payer>;

    /// Whether the payer sees on the chain what becomes of its payments.
    fn sees_chain(&self) -> bool;
}

/// How long an escrow of the suites can be settled.
const LIFETIME: u64 = 3_600;
const PRICE: Amount = Amount::new(1_000_003);
/// What a client of the suites has at first.
const PURSE: Amount = times(10);

const fn times(count: u128) -> Amount {
    Amount::new(PRICE.units() * count)
}

/// One client, gateway and compute node, new to the chain.
struct Scene<'a> {
    fixture: &'a dyn LedgerFixture,
    epoch: Epoch,
    trust: TrustRoot,
    client: DynSigner,
    gateway: DynSigner,
    compute: DynSigner,
    outsider: DynSigner,
    /// The ledger, as the gateway and as the others see it.
    ledger: Arc<dyn PaymentLedger>,
    clients_ledger: Arc<dyn PaymentLedger>,
    strange_ledger: Arc<dyn PaymentLedger>,
    /// The chain, as the gateway and as the stranger settle batches on it.
    settler: Arc<dyn BatchSettler>,
    strange_settler: Arc<dyn BatchSettler>,
}

impl<'a> Scene<'a> {
    /// No account has tokens.
    async fn poor(fixture: &'a dyn LedgerFixture, epoch: &Epoch) -> Self {
        let (client, gateway, outsider) = (key(), key(), key());
        for account in [&client, &gateway, &outsider] {
            fixture.chain().mint(account, Amount::ZERO).await;
        }
        Self {
            fixture,
            epoch: epoch.clone(),
            trust: epoch.trust.clone(),
            ledger: fixture.ledger(gateway.clone()).await,
            clients_ledger: fixture.ledger(client.clone()).await,
            strange_ledger: fixture.ledger(outsider.clone()).await,
            settler: fixture.chain().settler(gateway.clone()).await,
            strange_settler: fixture.chain().settler(outsider.clone()).await,
            client,
            gateway,
            outsider,
            compute: key(),
        }
    }

    /// The client has its purse.
    async fn new(fixture: &'a dyn LedgerFixture, epoch: &Epoch) -> Self {
        let scene = Self::poor(fixture, epoch).await;
        fixture.chain().mint(&scene.client, PURSE).await;
        scene
    }

    fn threshold(&self) -> usize {
        usize::from(self.trust.threshold)
    }

    async fn now(&self) -> Result<u64, Violation> {
        self.settler.now().await.map_err(|error| Violation { rule: "the chain has a time", what: error.to_string() })
    }

    async fn order(&self) -> Result<InferenceRequest, Violation> {
        Ok(order(self.client.address(), [1; 32].into(), [2; 32].into(), PRICE, self.now().await? + LIFETIME))
    }

    fn quoted(&self, order: &InferenceRequest) -> Quote {
        quote(order, &self.epoch, self.gateway.address(), self.compute.address(), PRICE)
    }

    async fn quote(&self) -> Result<Quote, Violation> {
        Ok(self.quoted(&self.order().await?))
    }

    fn committee(&self, quote: &Quote) -> Committee {
        self.trust.committee(&quote.salt, &quote.request_id)
    }

    async fn settlement(&self, quote: &Quote, approvals: usize) -> Settlement {
        let order = order(quote.client, [1; 32].into(), quote.model_digest, PRICE, quote.expiry);
        let delivery = delivery(&order, quote, &self.trust, &self.compute).await;
        let completion = delivery.completion(quote).expect("the suite's delivery is one for its quote");
        let certificate =
            certificate(&completion, &quote.request_id, &self.trust, &self.fixture.chain().validators(), approvals).await;
        let committee = self.committee(quote);
        Settlement { quote: quote.clone(), committee, delivery, completion, certificate }
    }

    #[allow(clippy::expect_used, reason = "a local key always signs; this is a test suite")]
    async fn authorization(&self, quote: &Quote) -> PaymentAuthorization {
        PaymentAuthorization::transfer(&self.trust, quote, &self.client).await.expect("a local key signs")
    }

    /// The client pays into escrow, by its gateway.
    async fn escrow(&self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        self.ledger.redeem(quote, &self.authorization(quote).await).await
    }

    /// The client's word that its payment may come back at once.
    #[allow(clippy::expect_used, reason = "a local key always signs; this is a test suite")]
    async fn consent(&self, quote: &Quote) -> Signature {
        let digest = TaskCapability::cancel(quote).digest(&self.trust.domain);
        Signature::sign(&digest, &*self.client).await.expect("a local key signs")
    }

    /// The gateway gives a payment back, and the client agrees.
    async fn give_back(&self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        self.ledger.refund(quote, Some(&self.consent(quote).await)).await
    }

    async fn balance(&self, owner: &DynSigner) -> Amount {
        self.ledger.balance(owner.address()).await.unwrap_or_default()
    }
}

/// Quotes that must not be paid, each with what is wrong with it.
fn spoilt(quote: &Quote) -> Vec<(&'static str, Quote)> {
    let spoilt: [Spoilt<Quote>; 4] = [
        ("nothing cannot be paid", |quote| quote.total = Amount::ZERO),
        ("an expired quote is not paid", |quote| quote.expiry = 1),
        ("a payment is not locked for ever", |quote| quote.expiry += MAX_ESCROW_SECONDS + 1),
        ("a split is no more than the whole", |quote| quote.split.treasury_bps = 9_000),
    ];
    let spoil = |(rule, spoil): Spoilt<Quote>| {
        let mut quote = quote.clone();
        spoil(&mut quote);
        (rule, quote)
    };
    spoilt.into_iter().map(spoil).collect()
}

/// The network as it is, which can be read, and is valid.
async fn epoch(rules: &mut Rules, fixture: &dyn LedgerFixture) -> Result<Epoch, Violation> {
    let reader = fixture.ledger(key()).await;
    let history = rules.ok("the network can be read", reader.trust(0).await)?;
    let Epoch { since, trust } = history.current().clone();
    rules.check("the trust root is valid", trust.validate().is_ok(), trust.validate())?;
    rules.check("an epoch has come", since <= history.time(), since)?;
    let late = reader.trust(history.time() + 1_000_000).await;
    let waits = matches!(&late, Err(error) if error.is_retryable());
    rules.check("what has not come is waited for", waits, late)?;
    Ok(Epoch { since, trust })
}

/// Runs the suite for [`PaymentLedger`].
pub async fn ledger(fixture: &dyn LedgerFixture) -> Verdict {
    let mut rules = Rules::default();
    let epoch = epoch(&mut rules, fixture).await?;
    let scene = Scene::new(fixture, &epoch).await;
    rules.check("an account is its signer's", scene.ledger.account() == scene.gateway.address(), scene.ledger.account())?;
    rules.check("a balance is what was given", scene.balance(&scene.client).await == PURSE, scene.balance(&scene.client).await)?;

    ledger::redeems(&mut rules, &scene).await?;
    ledger::pays_out(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    ledger::pays_back(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    ledger::tells(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    ledger::takes_vouchers(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    ledger::closes(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    retries::escrows(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    Ok(rules.0)
}

/// Runs the suite for [`Payer`].
pub async fn payer(fixture: &dyn PayerFixture) -> Verdict {
    let mut rules = Rules::default();
    let epoch = epoch(&mut rules, fixture.gateways()).await?;
    payer::pays(&mut rules, &payer::Payment::new(fixture, &epoch).await).await?;
    payer::pays_once(&mut rules, &payer::Payment::new(fixture, &epoch).await).await?;
    payer::sees_the_end(&mut rules, &payer::Payment::new(fixture, &epoch).await).await?;
    payer::checks(&mut rules, &payer::Payment::new(fixture, &epoch).await).await?;
    payer::reclaims(&mut rules, &payer::Payment::new(fixture, &epoch).await).await?;
    Ok(rules.0)
}

/// Runs the suite for [`BatchSettler`], which is one for [`crate::ChainView`] too.
pub async fn chain(fixture: &dyn LedgerFixture) -> Verdict {
    let mut rules = Rules::default();
    let epoch = epoch(&mut rules, fixture).await?;
    let scene = Scene::new(fixture, &epoch).await;
    channel::shows(&mut rules, &scene).await?;
    channel::funds(&mut rules, &scene).await?;
    channel::charges(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    channel::closes(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    channel::expires(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    retries::channels(&mut rules, &Scene::new(fixture, &epoch).await).await?;
    Ok(rules.0)
}
