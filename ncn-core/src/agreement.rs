//! Whether the parts of one request agree. Each role checks one part against another here.

use serde::{Deserialize, Serialize};

use crate::{Committee, InferenceRequest, InferenceResult, Message as _, Quote, RequestId, TrustRoot, Values, trust::draw_of};

/// Two parts of a request that do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Mismatch {
    /// The quote is for another order.
    #[error("quote.requestId: is not the request's digest")]
    RequestId,
    /// The quote names another client.
    #[error("quote.client: is not the request's client")]
    Client,
    /// The quote is for another model.
    #[error("quote.modelDigest: is not the request's model")]
    Model,
    /// The quote asks for more than its order allows.
    #[error("quote.total: is more than the request's maxPrice")]
    Price,
    /// The quote holds the payment longer than its order allows.
    #[error("quote.expiry: is after the request's deadline")]
    Deadline,
    /// The quote is of another network, or of other validators.
    #[error("quote.trustRoot: is another network's, or has other validators")]
    Network,
    /// The quote is of a time that has not come.
    #[error("quote.epoch: has not come yet")]
    Epoch,
    /// The quote's salt is not the one that the order was made with.
    #[error("quote.salt: is not the one of the request's draw")]
    Salt,
    /// Others are to judge than were drawn.
    #[error("quote.committee: is not the one that was drawn")]
    Committee,
    /// The inputs are not those of the order.
    #[error("inputs: do not hash to the request's inputHash")]
    Inputs,
    /// The result is another request's.
    #[error("result.requestId: is another request's")]
    ResultRequestId,
    /// Another model was run.
    #[error("result.modelDigest: another model was run")]
    ResultModel,
    /// The model was run on something else.
    #[error("result.inputHash: the model was run on other inputs")]
    ResultInputs,
    /// The output is not the one that was signed.
    #[error("output: does not hash to the result's outputHash")]
    Output,
    /// The output has another size than the one that was signed.
    #[error("output: does not have the result's outputBytes")]
    OutputBytes,
    /// The quote's total is not what its price and its units come to.
    #[error("quote.total: is not what maxInputUnits and maxOutputUnits cost at the quote's price")]
    Total,
}

fn first(checks: impl IntoIterator<Item = (bool, Mismatch)>) -> Result<(), Mismatch> {
    match checks.into_iter().find(|(agrees, _)| !agrees) {
        Some((_, mismatch)) => Err(mismatch),
        None => Ok(()),
    }
}

impl Quote {
    /// Whether this is a quote for an order, whose digest is `request_id`, within its limits.
    pub fn fits(&self, order: &InferenceRequest, request_id: &RequestId) -> Result<(), Mismatch> {
        first([
            (self.request_id == *request_id, Mismatch::RequestId),
            (self.client == order.client, Mismatch::Client),
            (self.model_digest == order.model_digest, Mismatch::Model),
            (draw_of(&self.salt) == order.draw, Mismatch::Salt),
            (self.price.cost(self.max_units) == Ok(self.total), Mismatch::Total),
            (self.total <= order.max_price, Mismatch::Price),
            (self.expiry <= order.deadline, Mismatch::Deadline),
        ])
    }

    /// Who judges the request, when this is a quote of that network.
    pub fn committee_of(&self, trust: &TrustRoot) -> Result<Committee, Mismatch> {
        let committee = trust.committee(&self.salt, &self.request_id);
        first([
            (self.trust_root == trust.hash(), Mismatch::Network),
            (self.committee == committee.struct_hash(), Mismatch::Committee),
        ])?;
        Ok(committee)
    }
}

impl InferenceResult {
    /// Whether this is a result for a quote.
    pub fn fits_quote(&self, quote: &Quote) -> Result<(), Mismatch> {
        first([
            (self.request_id == quote.request_id, Mismatch::ResultRequestId),
            (self.model_digest == quote.model_digest, Mismatch::ResultModel),
        ])
    }

    /// Whether this is a result for a quote and its order.
    pub fn fits(&self, order: &InferenceRequest, quote: &Quote) -> Result<(), Mismatch> {
        self.fits_quote(quote)?;
        first([
            (self.model_digest == order.model_digest, Mismatch::ResultModel),
            (self.input_hash == order.input_hash, Mismatch::ResultInputs),
        ])
    }

    /// Whether this output is the one that was signed.
    pub fn fits_output(&self, output: &Values) -> Result<(), Mismatch> {
        first([
            (self.output_bytes == output.content_bytes(), Mismatch::OutputBytes),
            (self.output_hash == output.hash(), Mismatch::Output),
        ])
    }
}

impl InferenceRequest {
    /// Whether these inputs are those of the order.
    pub fn fits_inputs(&self, inputs: &Values) -> Result<(), Mismatch> {
        first([(self.input_hash == inputs.hash(), Mismatch::Inputs)])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Address, Amount, B256, Confinement, FeeSplit, Price, Units, UnixTime, Usage};

    /// A quote, of which only who judges it counts.
    pub(crate) fn quote_of(trust_root: B256, epoch: UnixTime, salt: B256, committee: B256, request_id: RequestId) -> Quote {
        Quote { request_id, trust_root, epoch, salt, committee, ..quote() }
    }

    fn order() -> InferenceRequest {
        InferenceRequest {
            client: Address::repeat_byte(1),
            subnet: B256::repeat_byte(2),
            model_digest: B256::repeat_byte(3),
            input_hash: Values::new().hash(),
            parameters: "{}".into(),
            max_price: Amount::new(5),
            deadline: 100,
            nonce: B256::ZERO,
            draw: draw_of(&B256::repeat_byte(11)),
        }
    }

    fn quote() -> Quote {
        Quote {
            request_id: B256::repeat_byte(7),
            client: order().client,
            gateway: Address::repeat_byte(8),
            compute: Address::repeat_byte(9),
            model_digest: order().model_digest,
            price: Price::flat(Amount::new(5)),
            max_units: Units::default(),
            total: Amount::new(5),
            split: FeeSplit::default(),
            expiry: 100,
            trust_root: B256::repeat_byte(10),
            epoch: 0,
            salt: B256::repeat_byte(11),
            committee: B256::repeat_byte(12),
        }
    }

    fn result() -> InferenceResult {
        InferenceResult {
            request_id: quote().request_id,
            compute: quote().compute,
            model_digest: order().model_digest,
            input_hash: order().input_hash,
            output_hash: Values::new().hash(),
            output_bytes: 0,
            parts: 1,
            chain: B256::ZERO,
            resumed_from: B256::ZERO,
            continuation: None,
            usage: Usage::default(),
            confinement: Confinement::None,
            finish: None,
        }
    }

    #[test]
    fn every_field_that_parts_share_is_compared() {
        let (order, quote, result, other) = (order(), quote(), result(), B256::repeat_byte(0xff));
        assert_eq!(quote.fits(&order, &quote.request_id), Ok(()));
        assert_eq!(result.fits(&order, &quote), Ok(()));
        assert_eq!((result.fits_output(&Values::new()), order.fits_inputs(&Values::new())), (Ok(()), Ok(())));

        assert_eq!(quote.fits(&order, &other), Err(Mismatch::RequestId));
        let spoilt = |spoil: fn(&mut Quote)| {
            let mut quote = quote.clone();
            spoil(&mut quote);
            quote.fits(&order, &B256::repeat_byte(7))
        };
        assert_eq!(spoilt(|quote| quote.client = Address::ZERO), Err(Mismatch::Client));
        assert_eq!(spoilt(|quote| quote.model_digest = B256::ZERO), Err(Mismatch::Model));
        assert_eq!(spoilt(|quote| quote.total = Amount::new(6)), Err(Mismatch::Total));
        assert_eq!(spoilt(|quote| quote.price.output.price = Amount::new(1)), Ok(()), "no units are asked for");
        let dearer = |quote: &mut Quote| (quote.price.base, quote.total) = (Amount::new(6), Amount::new(6));
        assert_eq!(spoilt(dearer), Err(Mismatch::Price));
        assert_eq!(spoilt(|quote| quote.expiry = 101), Err(Mismatch::Deadline));
        assert_eq!(spoilt(|quote| quote.salt = B256::ZERO), Err(Mismatch::Salt));
        let spoilt = |spoil: fn(&mut InferenceResult)| {
            let mut result = result.clone();
            spoil(&mut result);
            result.fits(&order, &quote)
        };
        assert_eq!(spoilt(|result| result.request_id = B256::ZERO), Err(Mismatch::ResultRequestId));
        assert_eq!(spoilt(|result| result.model_digest = B256::ZERO), Err(Mismatch::ResultModel));
        assert_eq!(spoilt(|result| result.input_hash = B256::ZERO), Err(Mismatch::ResultInputs));
        let output = Values::from([("text", "another")]);
        assert_eq!((result.fits_output(&output), order.fits_inputs(&output)), (Err(Mismatch::OutputBytes), Err(Mismatch::Inputs)));
    }
}
