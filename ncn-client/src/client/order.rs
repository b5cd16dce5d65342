use std::time::Duration;

use ncn_core::{Amount, Values};

/// What to run, on what, and on which terms.
#[derive(Clone, Debug)]
pub struct Order {
    pub(super) model: String,
    pub(super) inputs: Values,
    pub(super) parameters: String,
    pub(super) max_price: Option<Amount>,
    pub(super) timeout: Option<Duration>,
}

impl Order {
    /// Runs the model of this name on these inputs.
    pub fn new(model: &str, inputs: impl Into<Values>) -> Self {
        let (model, inputs) = (model.into(), inputs.into());
        Self { model, inputs, parameters: "{}".into(), max_price: None, timeout: None }
    }

    /// The model's parameters, a JSON object. None by default.
    #[must_use]
    pub fn parameters(mut self, json: impl Into<String>) -> Self {
        self.parameters = json.into();
        self
    }

    /// The most to pay. The client's limit by default; without either, whatever the quote says, which is seen before it is paid.
    #[must_use]
    pub const fn max_price(mut self, limit: Amount) -> Self {
        self.max_price = Some(limit);
        self
    }

    /// How long to wait for the answer; the payment can be held no longer. At least as long as the model may take
    /// ([`ncn_core::ModelInfo::least_timeout`]); the client's by default, or longer where the model needs it.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}
