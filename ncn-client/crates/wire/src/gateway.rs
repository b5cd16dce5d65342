//! The messages between clients, gateways and compute nodes.

use std::time::Duration;

use ncn_core::{
    Acknowledgement, CapabilityScope, ComputeTask, Dispatch, InferenceRequest, Model, ModelInfo, Outcome, PaymentAuthorization,
    PaymentConfirmation, PaymentSubmission, Reservation, SessionProof, Signed, State, Step, StepTiming, Submission, TaskCapability,
    TaskEvent, TaskStatus, Ticket, Units, Update, Usage, lifecycle::MAX_ATTEMPTS,
};

use super::{
    WireError, address, bytes, hash, required, signature, small,
    types::{chunk_from_proto, values_from_proto, values_to_proto},
};
use crate::proto;

impl From<Submission> for proto::InferenceRequest {
    fn from(submission: Submission) -> Self {
        Self { inputs: values_to_proto(submission.inputs), ticket: bytes(submission.ticket), ..submission.request.into() }
    }
}

impl TryFrom<proto::InferenceRequest> for Submission {
    type Error = WireError;

    fn try_from(mut request: proto::InferenceRequest) -> Result<Self, WireError> {
        let inputs = values_from_proto(std::mem::take(&mut request.inputs))?;
        let ticket = std::mem::take(&mut request.ticket);
        Ok(Self { request: request.try_into()?, inputs, ticket: hash("request.ticket", &ticket)? })
    }
}

impl From<Ticket> for proto::Ticket {
    fn from(Ticket { id, draw }: Ticket) -> Self {
        Self { id: bytes(id), draw: bytes(draw) }
    }
}

impl TryFrom<proto::Ticket> for Ticket {
    type Error = WireError;

    fn try_from(ticket: proto::Ticket) -> Result<Self, WireError> {
        Ok(Self { id: hash("ticket.id", &ticket.id)?, draw: hash("ticket.draw", &ticket.draw)? })
    }
}

impl From<ComputeTask> for proto::InferenceRequest {
    fn from(task: ComputeTask) -> Self {
        Self {
            inputs: values_to_proto(task.inputs),
            quote: Some(task.quote.into()),
            voucher: task.voucher.map(Into::into),
            finish_by: task.finish_by,
            preprocessing: Some(task.preprocessing.into()),
            before: task.before.into_iter().map(Into::into).collect(),
            prefix: values_to_proto(task.prefix),
            dispatches: task.dispatches.into_iter().map(Into::into).collect(),
            ..task.request.into()
        }
    }
}

impl TryFrom<proto::InferenceRequest> for ComputeTask {
    type Error = WireError;

    fn try_from(mut task: proto::InferenceRequest) -> Result<Self, WireError> {
        let inputs = values_from_proto(std::mem::take(&mut task.inputs))?;
        let quote = required("task.quote", task.quote.take())?.try_into()?;
        let voucher = task.voucher.take().map(TryInto::try_into).transpose()?;
        let preprocessing = required("task.preprocessing", task.preprocessing.take())?.try_into()?;
        let before = std::mem::take(&mut task.before).into_iter().map(TryInto::try_into).collect::<Result<_, WireError>>()?;
        let prefix = values_from_proto(std::mem::take(&mut task.prefix))?;
        let dispatches = dispatches(std::mem::take(&mut task.dispatches))?;
        let finish_by = task.finish_by;
        let request = Signed::<InferenceRequest>::try_from(task)?;
        Ok(Self { request, quote, preprocessing, before, prefix, dispatches, voucher, inputs, finish_by })
    }
}

impl From<Signed<Dispatch>> for proto::Dispatch {
    fn from(Signed { message, signature }: Signed<Dispatch>) -> Self {
        Self {
            gateway: bytes(message.gateway),
            compute: bytes(message.compute),
            quote: bytes(message.quote),
            attempt: message.attempt.into(),
            resumed_from: bytes(message.resumed_from),
            signature: bytes(signature.as_bytes()),
        }
    }
}

impl TryFrom<proto::Dispatch> for Signed<Dispatch> {
    type Error = WireError;

    fn try_from(dispatch: proto::Dispatch) -> Result<Self, WireError> {
        let message = Dispatch {
            gateway: address("dispatch.gateway", &dispatch.gateway)?,
            compute: address("dispatch.compute", &dispatch.compute)?,
            quote: hash("dispatch.quote", &dispatch.quote)?,
            attempt: small("dispatch.attempt", dispatch.attempt)?,
            resumed_from: hash("dispatch.resumed_from", &dispatch.resumed_from)?,
        };
        Ok(Self { message, signature: signature("dispatch.signature", &dispatch.signature)? })
    }
}

impl From<Signed<Acknowledgement>> for proto::Acknowledgement {
    fn from(Signed { message, signature }: Signed<Acknowledgement>) -> Self {
        Self { gateway: bytes(message.gateway), result: bytes(message.result), signature: bytes(signature.as_bytes()) }
    }
}

impl TryFrom<proto::Acknowledgement> for Signed<Acknowledgement> {
    type Error = WireError;

    fn try_from(acknowledgement: proto::Acknowledgement) -> Result<Self, WireError> {
        let message = Acknowledgement {
            gateway: address("acknowledgement.gateway", &acknowledgement.gateway)?,
            result: hash("acknowledgement.result", &acknowledgement.result)?,
        };
        Ok(Self { message, signature: signature("acknowledgement.signature", &acknowledgement.signature)? })
    }
}

/// No more than there can be.
pub(super) fn dispatches(dispatches: Vec<proto::Dispatch>) -> Result<Vec<Signed<Dispatch>>, WireError> {
    if dispatches.len() > usize::from(MAX_ATTEMPTS) {
        return Err(WireError::new("dispatches", format!("are {}, a request has {MAX_ATTEMPTS} at most", dispatches.len())));
    }
    dispatches.into_iter().map(TryInto::try_into).collect()
}

impl From<State> for proto::TaskState {
    fn from(state: State) -> Self {
        match state {
            State::Reserving => Self::Reserving,
            State::Preprocessing => Self::Preprocessing,
            State::AwaitingPayment => Self::AwaitingPayment,
            State::Executing => Self::Executing,
            State::Completing => Self::Completing,
            State::Settling => Self::Settling,
            State::Refunding => Self::Refunding,
            State::Ended(Outcome::Completed) => Self::Completed,
            State::Ended(Outcome::Refunded) => Self::Refunded,
            State::Ended(Outcome::Refused) => Self::Refused,
            State::Ended(Outcome::Cancelled) => Self::Cancelled,
            State::Ended(Outcome::Expired) => Self::Expired,
            _ => Self::Unspecified,
        }
    }
}

impl TryFrom<proto::TaskState> for State {
    type Error = WireError;

    fn try_from(state: proto::TaskState) -> Result<Self, WireError> {
        use proto::TaskState as Wire;
        Ok(match state {
            Wire::Reserving => Self::Reserving,
            Wire::Preprocessing => Self::Preprocessing,
            Wire::AwaitingPayment => Self::AwaitingPayment,
            Wire::Executing => Self::Executing,
            Wire::Completing => Self::Completing,
            Wire::Settling => Self::Settling,
            Wire::Refunding => Self::Refunding,
            Wire::Completed => Self::Ended(Outcome::Completed),
            Wire::Refunded => Self::Ended(Outcome::Refunded),
            Wire::Refused => Self::Ended(Outcome::Refused),
            Wire::Cancelled => Self::Ended(Outcome::Cancelled),
            Wire::Expired => Self::Ended(Outcome::Expired),
            Wire::Unspecified => return Err(WireError::new("task.state", "is unknown")),
        })
    }
}

impl From<TaskStatus> for proto::InferenceTaskStatus {
    fn from(status: TaskStatus) -> Self {
        Self {
            request_id: bytes(status.request_id),
            state: proto::TaskState::from(status.state).into(),
            quote: status.quote.map(Into::into),
            preprocessing: status.preprocessing.map(Into::into),
            failure: status.failure.unwrap_or_default(),
        }
    }
}

impl TryFrom<proto::InferenceTaskStatus> for TaskStatus {
    type Error = WireError;

    fn try_from(status: proto::InferenceTaskStatus) -> Result<Self, WireError> {
        Ok(Self {
            request_id: hash("status.request_id", &status.request_id)?,
            state: status.state().try_into()?,
            quote: status.quote.map(TryInto::try_into).transpose()?,
            preprocessing: status.preprocessing.map(TryInto::try_into).transpose()?,
            failure: Some(status.failure).filter(|failure| !failure.is_empty()),
        })
    }
}

impl From<PaymentConfirmation> for proto::TransactionConfirmation {
    fn from(confirmation: PaymentConfirmation) -> Self {
        use proto::transaction_confirmation::Proof;
        let proof = match confirmation.proof {
            PaymentSubmission::Transaction(transaction) => Proof::Transaction(bytes(transaction)),
            PaymentSubmission::Authorization(PaymentAuthorization::Transfer(signature)) => {
                Proof::Transfer(bytes(signature.as_bytes()))
            }
            PaymentSubmission::Authorization(PaymentAuthorization::Voucher(payment)) => Proof::Voucher(payment.into()),
        };
        Self { request_id: bytes(confirmation.request_id), proof: Some(proof) }
    }
}

impl TryFrom<proto::TransactionConfirmation> for PaymentConfirmation {
    type Error = WireError;

    fn try_from(confirmation: proto::TransactionConfirmation) -> Result<Self, WireError> {
        use proto::transaction_confirmation::Proof;
        let proof = match required("confirmation.proof", confirmation.proof)? {
            Proof::Transaction(transaction) => PaymentSubmission::Transaction(hash("confirmation.transaction", &transaction)?),
            Proof::Transfer(transfer) => {
                PaymentSubmission::Authorization(PaymentAuthorization::Transfer(signature("confirmation.transfer", &transfer)?))
            }
            Proof::Voucher(payment) => PaymentSubmission::Authorization(PaymentAuthorization::Voucher(payment.try_into()?)),
        };
        Ok(Self { request_id: hash("confirmation.request_id", &confirmation.request_id)?, proof })
    }
}

impl From<Signed<TaskCapability>> for proto::TaskId {
    fn from(Signed { message, signature }: Signed<TaskCapability>) -> Self {
        Self {
            request_id: bytes(message.request_id),
            client: bytes(message.client),
            signature: bytes(signature.as_bytes()),
            purpose: message.scope as u32,
            from: 0,
        }
    }
}

impl TryFrom<proto::TaskId> for Signed<TaskCapability> {
    type Error = WireError;

    fn try_from(id: proto::TaskId) -> Result<Self, WireError> {
        let scopes = [CapabilityScope::Follow, CapabilityScope::Cancel, CapabilityScope::CloseChannel];
        let scope = scopes.into_iter().find(|scope| *scope as u32 == id.purpose);
        let message = TaskCapability {
            client: address("task_id.client", &id.client)?,
            request_id: hash("task_id.request_id", &id.request_id)?,
            scope: scope.ok_or_else(|| WireError::new("task_id.purpose", "is unknown"))?,
        };
        Ok(Self { message, signature: signature("task_id.signature", &id.signature)? })
    }
}

impl From<ModelInfo> for proto::ModelInfo {
    fn from(info: ModelInfo) -> Self {
        let typical = |units: Units| proto::Usage { input_units: units.input, output_units: units.output, duration_micros: 0 };
        Self {
            manifest: info.model.bytes().clone(),
            subnet: bytes(info.subnet),
            price: Some(info.price.into()),
            typical: info.typical_units.map(typical),
            least_timeout_micros: u64::try_from(info.least_timeout.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<proto::ModelInfo> for ModelInfo {
    type Error = WireError;

    fn try_from(info: proto::ModelInfo) -> Result<Self, WireError> {
        // A copy: these bytes are a part of the received message, and would keep the whole of it in memory.
        let manifest = bytes(info.manifest);
        Ok(Self {
            model: Model::parse(manifest).map_err(|error| WireError::new("model.manifest", error.to_string()))?,
            subnet: hash("model.subnet", &info.subnet)?,
            price: required("model.price", info.price)?.try_into()?,
            least_timeout: Duration::from_micros(info.least_timeout_micros),
            typical_units: info.typical.map(|typical| Usage::from(typical).units()),
        })
    }
}

impl From<Update> for proto::InferenceResponse {
    fn from(Update { index, event }: Update) -> Self {
        use proto::inference_response::Update as Sent;
        let update = match event {
            TaskEvent::Step(report) => Some(Sent::Step(proto::StepReport {
                step: report.step as u32,
                actor: bytes(report.actor),
                took_micros: u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX),
            })),
            TaskEvent::Attempt(node) => Some(Sent::Attempt(bytes(node))),
            TaskEvent::Takeover(node) => Some(Sent::Takeover(bytes(node))),
            TaskEvent::Chunk(chunk) => Some(Sent::Chunk(chunk.into())),
            TaskEvent::GivenUp(reason) => Some(Sent::GivenUp(reason)),
            TaskEvent::Checkpoint(checkpoint) => Some(Sent::Checkpoint((*checkpoint).into())),
            TaskEvent::Delivered { output, receipt } => {
                Some(Sent::Delivered(proto::Delivered { output: values_to_proto(output), receipt: Some((*receipt).into()) }))
            }
            TaskEvent::Failed { outcome, reason } => {
                Some(Sent::Failed(proto::Failure { outcome: proto::TaskState::from(State::Ended(outcome)).into(), reason }))
            }
            _ => None,
        };
        Self { update, index }
    }
}

impl TryFrom<proto::InferenceResponse> for Update {
    type Error = WireError;

    fn try_from(response: proto::InferenceResponse) -> Result<Self, WireError> {
        use proto::inference_response::Update as Sent;
        let event = match required("update", response.update)? {
            Sent::Step(report) => {
                let step = Step::from_code(small("step.step", report.step)?);
                TaskEvent::Step(StepTiming {
                    step: required("step.step", step)?,
                    actor: address("step.actor", &report.actor)?,
                    took: Duration::from_micros(report.took_micros),
                })
            }
            Sent::Attempt(node) => TaskEvent::Attempt(address("attempt", &node)?),
            Sent::Takeover(node) => TaskEvent::Takeover(address("takeover", &node)?),
            Sent::Chunk(chunk) => TaskEvent::Chunk(chunk_from_proto(chunk)?),
            Sent::GivenUp(reason) => TaskEvent::GivenUp(reason),
            Sent::Checkpoint(checkpoint) => TaskEvent::Checkpoint(Box::new(checkpoint.try_into()?)),
            Sent::Delivered(delivery) => TaskEvent::Delivered {
                output: values_from_proto(delivery.output)?,
                receipt: Box::new(required("delivered.receipt", delivery.receipt)?.try_into()?),
            },
            Sent::Failed(failure) => match failure.outcome().try_into()? {
                State::Ended(outcome) => TaskEvent::Failed { outcome, reason: failure.reason },
                _ => return Err(WireError::new("failed.outcome", "is not an end")),
            },
        };
        Ok(Self { index: response.index, event })
    }
}

impl From<Reservation> for proto::Reserve {
    fn from(reservation: Reservation) -> Self {
        Self {
            request_id: bytes(reservation.request_id),
            model_digest: bytes(reservation.model_digest),
            expires_at: reservation.expires_at,
        }
    }
}

impl TryFrom<proto::Reserve> for Reservation {
    type Error = WireError;

    fn try_from(reserve: proto::Reserve) -> Result<Self, WireError> {
        Ok(Self {
            request_id: hash("reserve.request_id", &reserve.request_id)?,
            model_digest: hash("reserve.model_digest", &reserve.model_digest)?,
            expires_at: reserve.expires_at,
        })
    }
}

impl proto::Attachment {
    /// The record and the answer to the challenge, which has to be the record's node's.
    pub fn read(self) -> Result<(Signed<ncn_core::NodeRecord>, Signed<SessionProof>), WireError> {
        let record: Signed<ncn_core::NodeRecord> = required("attachment.node", self.node)?.try_into()?;
        let message = SessionProof {
            node: record.message.node,
            gateway: address("attachment.gateway", &self.gateway)?,
            challenge: hash("attachment.challenge", &self.challenge)?,
        };
        Ok((record, Signed { message, signature: signature("attachment.signature", &self.signature)? }))
    }

    /// A node's record, and its answer to the challenge.
    pub fn write(record: Signed<ncn_core::NodeRecord>, Signed { message, signature }: Signed<SessionProof>) -> Self {
        Self {
            node: Some(record.into()),
            gateway: bytes(message.gateway),
            challenge: bytes(message.challenge),
            signature: bytes(signature.as_bytes()),
        }
    }
}
