mod channel;
mod escrow;
mod retries;

use std::sync::Arc;

use async_trait::async_trait;

use super::{Rules, Verdict, Violation, certificate, key, order, quote, result};
use crate::{
    Amount, Authorisation, B256, BatchSettler, ChannelTerms, Completion, DynSigner, LedgerError, PaymentLedger, Quote, Settlement,
    Signature, TrustRoot, UnixTime,
};

/// What the suite for [`PaymentLedger`] needs.
#[async_trait]
pub trait LedgerFixture: Send + Sync {
    /// The ledger as this account sees it, with these tokens on top of what it has. The same signer again is as after a restart.
    async fn account(&self, signer: DynSigner, tokens: Amount) -> Arc<dyn PaymentLedger>;

    /// The chain as this account settles batches on it.
    async fn settler(&self, signer: DynSigner) -> Arc<dyn BatchSettler>;

    /// Funds a channel out of this account.
    async fn fund_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelTerms,
        deposit: Amount,
        expiry: UnixTime,
    ) -> Result<B256, LedgerError>;

    /// Closes a channel, as this account.
    async fn close_channel(
        &self,
        signer: DynSigner,
        terms: &ChannelTerms,
        agreement: Option<Signature>,
    ) -> Result<B256, LedgerError>;

    /// The keys of the validators.
    fn validators(&self) -> Vec<DynSigner>;

    /// Lets the chain's time pass.
    async fn advance(&self, seconds: u64);
}

/// How long an escrow of the suite can be settled.
const LIFETIME: u64 = 3_600;
const PRICE: Amount = Amount::new(1_000_003);
/// What a client of the suite has at first.
const PURSE: Amount = times(10);

const fn times(count: u128) -> Amount {
    Amount::new(PRICE.units() * count)
}

/// One client, gateway and compute node, new to the ledger.
struct Scene<'a> {
    fixture: &'a dyn LedgerFixture,
    trust: TrustRoot,
    client: DynSigner,
    gateway: DynSigner,
    compute: DynSigner,
    outsider: DynSigner,
    paying: Arc<dyn PaymentLedger>,
    settling: Arc<dyn PaymentLedger>,
    stranger: Arc<dyn PaymentLedger>,
    /// The chain, as the gateway and as the stranger settle batches on it.
    settler: Arc<dyn BatchSettler>,
    strange_settler: Arc<dyn BatchSettler>,
}

impl<'a> Scene<'a> {
    async fn new(fixture: &'a dyn LedgerFixture, trust: &TrustRoot) -> Self {
        let (client, gateway, outsider) = (key(), key(), key());
        Self {
            fixture,
            trust: trust.clone(),
            paying: fixture.account(client.clone(), PURSE).await,
            settling: fixture.account(gateway.clone(), Amount::ZERO).await,
            stranger: fixture.account(outsider.clone(), Amount::ZERO).await,
            settler: fixture.settler(gateway.clone()).await,
            strange_settler: fixture.settler(outsider.clone()).await,
            client,
            gateway,
            outsider,
            compute: key(),
        }
    }

    fn threshold(&self) -> usize {
        usize::from(self.trust.threshold)
    }

    async fn now(&self) -> Result<u64, Violation> {
        self.paying.now().await.map_err(|error| Violation { rule: "the chain has a time", what: error.to_string() })
    }

    async fn quote(&self) -> Result<Quote, Violation> {
        let order = order(self.client.address(), [1; 32].into(), [2; 32].into(), PRICE, self.now().await? + LIFETIME);
        Ok(quote(&order, &self.trust, self.gateway.address(), self.compute.address(), PRICE))
    }

    async fn settlement(&self, quote: &Quote, approvals: usize) -> Settlement {
        let order = order(quote.client, [1; 32].into(), quote.model_digest, PRICE, quote.expiry);
        let result = result(&order, quote, &self.trust, &self.compute).await;
        let completion = Completion::new(quote, &result.message);
        let certificate = certificate(&completion, &self.trust, &self.fixture.validators(), approvals).await;
        Settlement { quote: quote.clone(), result, certificate }
    }

    #[allow(clippy::expect_used, reason = "a local key always signs; this is a test suite")]
    async fn authorisation(&self, quote: &Quote) -> Authorisation {
        Authorisation::transfer(&self.trust, quote, &self.client).await.expect("a local key signs")
    }

    async fn balance(&self, owner: &DynSigner) -> Amount {
        self.paying.balance(owner.address()).await.unwrap_or_default()
    }
}

/// Runs the suite for [`PaymentLedger`].
pub async fn ledger(fixture: &dyn LedgerFixture) -> Verdict {
    let mut rules = Rules::default();
    let reader = fixture.account(key(), Amount::ZERO).await;
    let trust = rules.ok("the trust root can be read", reader.trust_root().await)?;
    rules.check("the trust root is valid", trust.validate().is_ok(), trust.validate())?;
    let scene = Scene::new(fixture, &trust).await;
    rules.check("an account is its signer's", scene.paying.account() == scene.client.address(), scene.paying.account())?;
    rules.check("a balance is what was given", scene.balance(&scene.client).await == PURSE, scene.balance(&scene.client).await)?;

    let validators = fixture.validators().into_iter().map(|validator| (validator.address(), true));
    for (account, expected) in validators.chain([(scene.outsider.address(), false)]) {
        let staked = scene.settler.has_stake(account).await;
        rules.check("everyone sees who has a stake", staked == Ok(expected), staked)?;
    }
    let owner = scene.settler.subnet_owner(B256::repeat_byte(9)).await;
    rules.check("a subnet that nobody has created has no owner", owner == Ok(None), owner)?;

    escrow::pays_in(&mut rules, &scene).await?;
    escrow::pays_out(&mut rules, &scene).await?;
    escrow::pays_back(&mut rules, &scene).await?;
    escrow::tells(&mut rules, &scene).await?;
    escrow::accepts(&mut rules, &Scene::new(fixture, &trust).await).await?;
    channel::funds(&mut rules, &Scene::new(fixture, &trust).await).await?;
    channel::charges(&mut rules, &Scene::new(fixture, &trust).await).await?;
    channel::closes(&mut rules, &Scene::new(fixture, &trust).await).await?;
    channel::expires(&mut rules, &Scene::new(fixture, &trust).await).await?;
    retries::escrows(&mut rules, &Scene::new(fixture, &trust).await).await?;
    retries::channels(&mut rules, &Scene::new(fixture, &trust).await).await?;
    Ok(rules.0)
}
