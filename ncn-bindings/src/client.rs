//! The client: connects, orders, pays, and holds the receipts.

mod channels;
mod connect;

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

pub use connect::{Connection, Contracts, Network, Payment};
use ncn_client::{
    ClientError, PayerChannel, Quoted,
    core::{Amount, DynSigner, Transport},
    evm::EvmLedger,
};

use crate::{
    Answer, ErrorKind, Estimate, Message, ModelInfo, NcnError, Offer, Order, Receipt, Running, Value,
    runtime::{call, run},
    types::conversation,
};

/// How many receipts a client remembers: the newest.
const RECEIPTS: usize = 1_024;

/// Decides what is paid. It is called in a thread that may block, before each payment.
#[uniffi::export(with_foreign)]
pub trait SpendPolicy: Send + Sync {
    /// Whether this may be paid. An error is a no, and is passed on.
    fn may_pay(&self, offer: Offer) -> Result<bool, NcnError>;
}

/// A way to the network. Every call may be given up: what was paid and is not waited for any more is cancelled.
#[derive(uniffi::Object)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    client: ncn_client::Client,
    signer: DynSigner,
    transport: Arc<dyn Transport>,
    /// The chain that the client reads and pays on, where it has one.
    chain: Option<EvmLedger>,
    /// The channel that pays, and its file.
    channel: Option<(PathBuf, Arc<PayerChannel>)>,
    max_price: Option<Amount>,
    policy: Option<Arc<dyn SpendPolicy>>,
    receipts: Mutex<VecDeque<Receipt>>,
}

impl Inner {
    fn chain(&self) -> Result<&EvmLedger, NcnError> {
        self.chain.as_ref().ok_or_else(|| NcnError::new(ErrorKind::Configuration, "rpc: is missing: give the URL of the chain"))
    }

    fn keep(&self, receipt: Receipt) {
        let mut receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        if receipts.len() == RECEIPTS {
            receipts.pop_front();
        }
        receipts.push_back(receipt);
    }

    /// Orders, and asks the policy.
    async fn quote(&self, order: Order) -> Result<Quoted, NcnError> {
        let model = order.model.clone();
        let limit = order.max_price.or(self.max_price);
        let order = order.read()?;
        if limit.is_none() && self.policy.is_none() {
            // A price that nobody has seen is not paid.
            let price = self.client.estimate(&order).await?.maximum;
            return Err(ClientError::PriceUnseen { model, price }.into());
        }
        let quoted = self.client.submit(order).await?;
        let Some(policy) = self.policy.clone() else { return Ok(quoted) };
        let offer = Offer::new(&model, quoted.quote());
        let problem = match call(move || policy.may_pay(offer)).await? {
            Ok(true) => return Ok(quoted),
            Ok(false) => NcnError::new(ErrorKind::NotAllowed, "the spend policy does not allow it"),
            Err(error) => error,
        };
        // It would hold a compute node's place until the quote expires.
        let _ = quoted.cancel().await;
        Err(problem)
    }
}

#[uniffi::export]
impl Client {
    /// Connects: finds the gateway's network, and makes sure that it is the one to trust.
    ///
    /// # Errors
    /// When something of it is missing or contradicts something else, or gateway or chain cannot be reached.
    #[uniffi::constructor]
    pub async fn connect(connection: Connection) -> Result<Arc<Self>, NcnError> {
        run(async move { Ok(Arc::new(Self { inner: Arc::new(connect::connect(connection).await?) })) }).await
    }

    /// The address of the client's key.
    pub fn address(&self) -> String {
        self.inner.signer.address().to_string()
    }

    /// What the gateway offers now.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, NcnError> {
        let inner = self.inner.clone();
        run(async move { Ok(inner.client.models().await?.into_iter().map(ModelInfo::from).collect()) }).await
    }

    /// What an order may cost. Nothing is signed or paid.
    pub async fn estimate(&self, order: Order) -> Result<Estimate, NcnError> {
        let inner = self.inner.clone();
        run(async move { Ok(inner.client.estimate(&order.read()?).await?.into()) }).await
    }

    /// Orders, pays and waits for the verified answer.
    ///
    /// # Errors
    /// Each says whether money has moved.
    pub async fn infer(&self, order: Order) -> Result<Answer, NcnError> {
        let inner = self.inner.clone();
        run(async move {
            let answer = Answer::of(inner.quote(order).await?.finish().await?)?;
            inner.keep(answer.receipt.clone());
            Ok(answer)
        })
        .await
    }

    /// Orders and pays; the parts of the output come as they are made.
    pub async fn stream(&self, order: Order) -> Result<Arc<Running>, NcnError> {
        let inner = self.inner.clone();
        run(async move {
            let events = inner.quote(order).await?.events().await?;
            Ok(Running::new(events, move |answer: &Answer| inner.keep(answer.receipt.clone())))
        })
        .await
    }

    /// Has a model go on with a conversation: one that takes the input `messages`.
    #[uniffi::method(default(parameters = None))]
    pub async fn chat(&self, model: String, messages: Vec<Message>, parameters: Option<String>) -> Result<Arc<Running>, NcnError> {
        let parameters = parameters.unwrap_or_else(|| "{}".into());
        let order = Order { model, inputs: conversation(&messages), parameters, max_price: None, timeout: None };
        self.stream(order).await
    }

    /// The embedding of a text, by a model that takes the input `text` and gives a tensor `embedding` of `f32`.
    pub async fn embed(&self, model: String, text: String) -> Result<Vec<f32>, NcnError> {
        let inputs = [("text".to_owned(), Value::Text { text })].into();
        let answer = self.infer(Order { model, inputs, parameters: "{}".into(), max_price: None, timeout: None }).await?;
        match answer.output.get("embedding") {
            Some(Value::Tensor { dtype: crate::DataType::F32, data, .. }) => {
                Ok(data.as_chunks::<4>().0.iter().map(|element| f32::from_le_bytes(*element)).collect())
            }
            _ => Err(NcnError::new(ErrorKind::Input, "model: gives no tensor `embedding` of f32")),
        }
    }

    /// How many tokens an account has; the client's own by default.
    #[uniffi::method(default(account = None))]
    pub async fn balance(&self, account: Option<String>) -> Result<Amount, NcnError> {
        let inner = self.inner.clone();
        run(async move {
            let invalid = |error| NcnError::new(ErrorKind::Input, format!("account: {error}"));
            let account = account.map(|account| account.parse().map_err(invalid)).transpose()?;
            Ok(inner.chain()?.balance(account.unwrap_or_else(|| inner.signer.address())).await?)
        })
        .await
    }

    /// The newest receipts of this client's answers, the oldest of them first.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.inner.receipts.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
