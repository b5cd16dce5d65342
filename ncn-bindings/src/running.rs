//! A request that runs: its parts as they come, and its end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use ncn_client::{ClientError, InferenceEvent, Paid};
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Answer, ErrorKind, NcnError, Value,
    runtime::{self, run},
    types::values,
};

/// How many parts wait for the caller.
const WAITING: usize = 64;
/// How long a cancelled request's gateway may take to hear of it.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// What comes next of a request.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Event {
    /// A part of the output, which nobody has approved yet.
    Part {
        /// The values of this part: of a text, what comes after the parts before.
        values: HashMap<String, Value>,
    },
    /// The parts so far are void: the output begins anew.
    Restarted,
    /// The verified answer. Nothing comes after it.
    Finished {
        /// It.
        answer: Box<Answer>,
    },
}

type Next = Result<Event, NcnError>;

/// A paid request. Dropping it before its end cancels it: what was delivered until then is paid for, and where nothing was, the payment comes back.
#[derive(uniffi::Object)]
pub struct Running {
    paid: Paid,
    events: Arc<AsyncMutex<mpsc::Receiver<Next>>>,
    /// The answer, once it is there: also when the parts before it are void.
    answer: Arc<Mutex<Option<Answer>>>,
    ended: Arc<Mutex<bool>>,
    _following: AbortOnDropHandle<()>,
}

impl Running {
    /// Follows a paid request. Has to be called on the runtime.
    pub(crate) fn new(paid: Paid, kept: impl FnOnce(&Answer) + Send + 'static) -> Arc<Self> {
        let (sender, events) = mpsc::channel(WAITING);
        let (answer, ended) = (Arc::<Mutex<Option<Answer>>>::default(), Arc::<Mutex<bool>>::default());
        let (answered, over, mut following) = (answer.clone(), ended.clone(), paid.clone().events());
        let follow = async move {
            let mut kept = Some(kept);
            let mut keep = |given: Answer| {
                if let Some(kept) = kept.take() {
                    kept(&given);
                }
                *lock(&answered) = Some(given);
            };
            while let Some(event) = following.next().await {
                let next = match event {
                    Ok(InferenceEvent::Part(part)) => values(part.values).map(|values| Event::Part { values }),
                    Ok(InferenceEvent::Finished(answer)) => Answer::of(*answer).map(|answer| {
                        keep(answer.clone());
                        Event::Finished { answer: Box::new(answer) }
                    }),
                    Ok(_) => Ok(Event::Restarted),
                    Err(error) => {
                        if let ClientError::PartsRejected { answer, .. } = &error
                            && let Ok(answer) = Answer::of((**answer).clone())
                        {
                            keep(answer);
                        }
                        Err(error.into())
                    }
                };
                *lock(&over) = matches!(next, Ok(Event::Finished { .. }) | Err(_));
                if sender.send(next).await.is_err() {
                    return;
                }
            }
        };
        let following = AbortOnDropHandle::new(tokio::spawn(follow));
        Arc::new(Self { paid, events: Arc::new(AsyncMutex::new(events)), answer, ended, _following: following })
    }

    pub(crate) async fn finish(&self) -> Result<Answer, NcnError> {
        loop {
            match self.events.lock().await.recv().await {
                Some(Ok(Event::Finished { answer })) => return Ok(*answer),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(ended()),
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended() -> NcnError {
    NcnError::new(ErrorKind::Internal, "events: the request has ended already")
}

#[uniffi::export]
impl Running {
    /// The request's id.
    pub fn request_id(&self) -> String {
        self.paid.request_id().to_string()
    }

    /// The next event; none after the end. One that is not waited for any more is not lost.
    ///
    /// # Errors
    /// How the request ended, where that is no answer.
    pub async fn next(&self) -> Result<Option<Event>, NcnError> {
        let next = self.events.lock().await.recv().await;
        next.transpose()
    }

    /// The same in a thread that waits, for at most so many milliseconds: a caller that must look up now and then.
    pub fn next_within(&self, millis: u64) -> Result<Waited, NcnError> {
        runtime::block_on(async {
            match tokio::time::timeout(Duration::from_millis(millis), self.next()).await {
                Ok(next) => next.map(|event| event.map_or(Waited::Over, |event| Waited::Next { event })),
                Err(_) => Ok(Waited::Nothing),
            }
        })
    }

    /// The verified answer, once it is there: after the parts were rejected, too.
    pub fn answer(&self) -> Option<Answer> {
        lock(&self.answer).clone()
    }

    /// Has the request end now: what comes after is its end.
    ///
    /// # Errors
    /// When the gateway cannot be asked. The request goes on then.
    pub async fn cancel(&self) -> Result<(), NcnError> {
        let paid = self.paid.clone();
        run(async move { Ok(paid.cancel().await?) }).await
    }
}

/// What came in the time that was waited.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Waited {
    /// An event.
    Next {
        /// It.
        event: Event,
    },
    /// Nothing yet.
    Nothing,
    /// Nothing comes any more.
    Over,
}

impl Drop for Running {
    fn drop(&mut self) {
        if *lock(&self.ended) {
            return;
        }
        let paid = self.paid.clone();
        runtime::detach(async move {
            // Where it is not heard, the request goes on to its own end, and its answer is lost.
            let _ = tokio::time::timeout(CANCEL_TIMEOUT, paid.cancel()).await;
        });
    }
}
