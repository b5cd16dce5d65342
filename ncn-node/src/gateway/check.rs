//! What can be refused of an order without asking anyone.

use ncn_core::{Submission, TransportError, UnixTime, validation};

use super::Gateway;

impl Gateway {
    /// Everything that can be refused without asking anyone.
    pub(super) fn check(&self, submission: &Submission, now: UnixTime) -> Result<(), TransportError> {
        let order = &submission.request.message;
        let left = validation::order(order, now).map_err(|(field, problem)| TransportError::invalid(field, problem))?;
        if left.get() > self.options.max_timeout.as_secs() {
            let problem = format!("is {left} s away, at most {} s are taken", self.options.max_timeout.as_secs());
            return Err(TransportError::invalid("request.deadline", problem));
        }
        if order.subnet != self.subnet_id() {
            return Err(TransportError::invalid("request.subnet", format!("is not this gateway's, {}", self.subnet_id())));
        }
        let info = self.models.get(&order.model_digest).ok_or(TransportError::UnknownModel(order.model_digest))?;
        // Seconds are whole, and the way here took a moment.
        let least = info.least_timeout.as_secs();
        if left.get() + 1 < least {
            let problem = format!("is {left} s away, in which the model cannot be sure to answer: allow {least} s at least");
            return Err(TransportError::invalid("request.deadline", problem));
        }
        let size = submission.inputs.size();
        if size > self.options.max_input_bytes {
            let problem = format!("have {size} bytes, at most {} are taken", self.options.max_input_bytes);
            return Err(TransportError::invalid("inputs", problem));
        }
        if order.fits_inputs(&submission.inputs).is_err() {
            return Err(TransportError::invalid("request.inputHash", "is not the hash of the inputs"));
        }
        let checked = info.model.manifest().check(&submission.inputs);
        checked.map_err(|error| TransportError::invalid(format!("input {}", error.name), error.problem))?;
        let checked = info.model.manifest().check_parameters(&order.parameters);
        checked.map_err(|error| TransportError::invalid(format!("request.{}", error.name), error.problem))?;
        let maximum = info.maximum(&submission.inputs, &order.parameters);
        let (_, total) = maximum.map_err(|error| TransportError::invalid(error.name, error.problem))?;
        if order.max_price < total {
            let problem = format!("{} is less than the {total} that it can cost", order.max_price);
            return Err(TransportError::invalid("request.maxPrice", problem));
        }
        submission
            .request
            .verify(&self.domain)
            .map(drop)
            .map_err(|error| TransportError::invalid("request.signature", error.to_string()))
    }
}
