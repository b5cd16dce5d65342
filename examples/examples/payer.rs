//! A way to pay of one's own: it has a budget, and leaves the rest to another payer.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use async_trait::async_trait;
use ncn_client::core::{self as ncn, Amount, LedgerError, Payer, PaymentRef, PaymentStatus, Quote, Value};
use ncn_client::{Client, evm::EvmLedger};
use ncn_devnet::LocalNetwork;

struct Budget {
    inner: EvmLedger,
    most: Amount,
    /// By request: paying twice is paying once.
    paid: Mutex<HashMap<ncn::RequestId, Amount>>,
}

#[async_trait]
impl Payer for Budget {
    fn account(&self) -> ncn::Address {
        self.inner.account()
    }

    async fn trust(&self, epoch: ncn::UnixTime) -> Result<Arc<ncn::TrustHistory>, LedgerError> {
        Payer::trust(&self.inner, epoch).await
    }

    async fn now(&self) -> Result<ncn::UnixTime, LedgerError> {
        self.inner.now().await
    }

    async fn pay(&self, quote: &Quote) -> Result<PaymentRef, LedgerError> {
        {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let others = paid.iter().filter(|(request, _)| **request != quote.request_id).map(|(_, amount)| *amount);
            if Amount::checked_sum(others.chain([quote.total])).is_none_or(|all| all > self.most) {
                return Err(LedgerError::NotAllowed(format!("the budget of {} does not bear {} more", self.most, quote.total)));
            }
            paid.insert(quote.request_id, quote.total);
        }
        self.inner.pay(quote).await
    }

    async fn status(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        Payer::status(&self.inner, quote).await
    }

    async fn reclaim(&self, quote: &Quote) -> Result<PaymentStatus, LedgerError> {
        self.inner.reclaim(quote).await
    }

    async fn check(&self, receipt: &ncn::Receipt) -> Result<(), LedgerError> {
        self.inner.check(receipt).await
    }

    async fn release(&self, quote: &Quote, cost: Option<Amount>) {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        paid.remove(&quote.request_id);
        paid.extend(cost.map(|cost| (quote.request_id, cost)));
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    ncn_executor::worker::init();
    let network = LocalNetwork::start().await?;
    let signer = ncn_devnet::well_known_key("client", 0);
    network.funder().transfer(signer.address(), Amount::TOKEN).await?;
    let most = Amount::new(Amount::TOKEN.units() / 40); // two and a half answers
    let payer = Budget { inner: network.ledger(signer.clone()), most, paid: Mutex::default() };
    let client = Client::builder().gateway(network.gateway_url()).payer(Arc::new(payer)).signer(signer).max_price(most).build()?;
    let image = Value::png(std::fs::read("examples/data/7.png")?);
    for _ in 0..3 {
        let answer = client.infer("digits", [("image", image.clone())]).await;
        println!("{}", answer.map_or_else(|error| error.to_string(), |answer| format!("paid {}", answer.cost())));
    }
    Ok(())
}
