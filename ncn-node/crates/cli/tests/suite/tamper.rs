//! A transport that changes some answers of a gateway; all others go through as they are.

use async_trait::async_trait;
use ncn_core::{
    Amount, ChannelParams, ModelInfo, NetworkInfo, PaymentConfirmation, RequestId, Signature, Signed, Submission, TaskCapability,
    TaskStatus, Ticket, Transport, TransportError, transport::Updates,
};

/// What is changed.
#[async_trait]
pub(crate) trait Tamper: Send + Sync {
    /// The way that is tampered with.
    fn inner(&self) -> &dyn Transport;

    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        self.inner().submit(submission).await
    }

    async fn confirm_payment(&self, confirmation: &PaymentConfirmation) -> Result<(), TransportError> {
        self.inner().confirm_payment(*confirmation).await
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        self.inner().updates(access, from).await
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        self.inner().status(request_id).await
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        self.inner().models().await
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        self.inner().network().await
    }
}

/// The way, as its users see it.
pub(crate) struct Tampered<T>(pub(crate) T);

#[async_trait]
impl<T: Tamper> Transport for Tampered<T> {
    async fn tickets(&self, count: u32) -> Result<Vec<Ticket>, TransportError> {
        self.0.inner().tickets(count).await
    }

    async fn submit(&self, submission: Submission) -> Result<TaskStatus, TransportError> {
        self.0.submit(submission).await
    }

    async fn confirm_payment(&self, confirmation: PaymentConfirmation) -> Result<(), TransportError> {
        self.0.confirm_payment(&confirmation).await
    }

    async fn updates(&self, access: Signed<TaskCapability>, from: u64) -> Result<Updates, TransportError> {
        self.0.updates(access, from).await
    }

    async fn status(&self, request_id: RequestId) -> Result<TaskStatus, TransportError> {
        self.0.status(request_id).await
    }

    async fn cancel(&self, access: Signed<TaskCapability>) -> Result<(), TransportError> {
        self.0.inner().cancel(access).await
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, TransportError> {
        self.0.models().await
    }

    async fn network(&self) -> Result<NetworkInfo, TransportError> {
        self.0.network().await
    }

    async fn close_channel(
        &self,
        terms: ChannelParams,
        access: Signed<TaskCapability>,
    ) -> Result<(Amount, Signature), TransportError> {
        self.0.inner().close_channel(terms, access).await
    }
}
