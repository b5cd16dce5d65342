use std::{
    panic,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tracing::Instrument as _;

use super::{InferenceEvent, InferenceOutput, Paid, paid::Listener};
use crate::ClientError;

/// How long a gateway may take to hear that a request is cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The cancellations of this process that their gateways have not heard of yet.
static CANCELLATIONS: LazyLock<TaskTracker> = LazyLock::new(|| {
    let tracker = TaskTracker::new();
    // What is closed can be waited for; it takes more all the same.
    tracker.close();
    tracker
});

/// Runs what a process that is about to end should wait for. What it gives may be dropped by nobody but this: whatever that does is waited for as well.
pub(super) fn awaited<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<(T, TaskTrackerToken)> {
    let token = CANCELLATIONS.token();
    tokio::spawn(async move { (work.await, token) }.in_current_span())
}

/// Waits until the payments that are being made are made, and the gateways have heard of every request that this process has dropped before its end, or it is
/// clear that one cannot be told. For a process that is about to end: what its runtime has not done by then is not done.
pub async fn cancellations() {
    CANCELLATIONS.wait().await;
}

impl Paid {
    /// Cancels the request as [`Self::cancel`] does, and waits for nothing: [`cancellations`] does. Has to be called on a Tokio runtime.
    pub fn give_up(&self) {
        let paid = self.clone();
        CANCELLATIONS.spawn(async move {
            // Where it is not heard, the request goes on to its own end.
            let cancelled = tokio::time::timeout(CANCEL_TIMEOUT, paid.cancel()).await;
            tracing::debug!(request = %paid.request_id(), ?cancelled, "a request was given up before its end");
        });
    }
}

/// A paid request that a task of its own follows to its end. Dropping it before the end cancels the request; the task goes on until it knows what that
/// came to, so that what was set aside for the payment is free again.
pub(super) struct Following {
    paid: Paid,
    ending: JoinHandle<Result<InferenceOutput, ClientError>>,
    /// Whether the end has been handed out, or the gateway was told of the cancellation.
    is_over: bool,
    /// Whether the request goes on without this.
    is_resumable: bool,
    runtime: Handle,
}

impl Following {
    pub(super) fn new(paid: Paid, listener: Listener) -> Self {
        let followed = paid.clone();
        let runtime = Handle::current();
        let ending = runtime.spawn(async move { followed.finish_to(listener).await }.in_current_span());
        Self { paid, ending, is_over: false, is_resumable: false, runtime }
    }
}

impl Future for Following {
    type Output = Result<InferenceOutput, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = ready!(Pin::new(&mut self.ending).poll(context));
        self.is_over = true;
        Poll::Ready(ended.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => panic::resume_unwind(panic),
            Err(error) => Err(ClientError::NotRefunded(format!("the request is not followed any more: {error}"))),
        }))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if self.is_resumable {
            return self.ending.abort();
        }
        let _runtime = self.runtime.enter();
        self.paid.give_up();
    }
}

/// What happens to a paid request: the parts of a streamed output as they come, before anyone has approved them, and then its end,
/// [`InferenceEvent::Finished`] or an error.
///
/// Dropping it before the end cancels the request, as [`Paid::cancel`] does: what was delivered until then is paid for, and where nothing was, the payment
/// comes back. Those that are [`resumable`](Self::resumable) leave the request as it is instead. A part that is not waited for any more is not lost.
#[must_use = "dropping it cancels the request"]
pub struct Events {
    parts: mpsc::Receiver<InferenceEvent>,
    following: Following,
}

impl Events {
    pub(super) fn new(paid: Paid) -> Self {
        let (listener, parts) = Listener::new(&paid);
        // On its own: what the caller does between two parts is not taken for the compute node's silence.
        Self { parts, following: Following::new(paid, listener) }
    }

    /// The request.
    pub const fn paid(&self) -> &Paid {
        &self.following.paid
    }

    /// Cancels the request, as dropping this does, and returns once the gateway has heard of it.
    ///
    /// # Errors
    /// When the gateway cannot be asked. The request goes on then.
    pub async fn cancel(mut self) -> Result<(), ClientError> {
        if self.following.is_over {
            return Ok(());
        }
        let cancelled = self.following.paid.cancel().await;
        self.following.is_over = true;
        cancelled
    }

    /// Has the request go on when these events are dropped, without anyone who follows it: [`super::Client::resume`] does.
    pub const fn resumable(mut self) -> Self {
        self.following.is_resumable = true;
        self
    }
}

impl Stream for Events {
    type Item = Result<InferenceEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.following.is_over {
            return Poll::Ready(None);
        }
        if let Some(event) = ready!(self.parts.poll_recv(context)) {
            return Poll::Ready(Some(Ok(event)));
        }
        let ended = ready!(Pin::new(&mut self.following).poll(context));
        Poll::Ready(Some(ended.map(|answer| InferenceEvent::Finished(Box::new(answer)))))
    }
}
