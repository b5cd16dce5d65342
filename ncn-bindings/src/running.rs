//! A request that runs: its parts as they come, and its end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::StreamExt as _;
use ncn_client::{ClientError, Events, InferenceEvent, Paid};
use tokio::sync::Mutex as AsyncMutex;

use crate::{
    Answer, NcnError, Value,
    runtime::{self, run},
    types::values,
};

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

/// A paid request. Dropping it before its end cancels it: what was delivered until then is paid for, and where nothing was, the payment comes back.
#[derive(uniffi::Object)]
pub struct Running {
    paid: Paid,
    /// None once it was given up.
    events: AsyncMutex<Option<Events>>,
    /// What [`Self::try_next`] tells that there is something.
    waker: Mutex<Waker>,
    /// The answer, once it is there: also when the parts before it are void.
    answer: Mutex<Option<Answer>>,
    kept: Box<dyn Fn(&Answer) + Send + Sync>,
}

impl Running {
    pub(crate) fn new(events: Events, kept: impl Fn(&Answer) + Send + Sync + 'static) -> Arc<Self> {
        let (paid, events, answer) = (events.paid().clone(), AsyncMutex::new(Some(events)), Mutex::default());
        let waker = Mutex::new(Waker::noop().clone());
        Arc::new(Self { paid, events, waker, answer, kept: Box::new(kept) })
    }

    fn waker(&self) -> Waker {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, answer: &Answer) {
        (self.kept)(answer);
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.clone());
    }

    fn event(&self, event: Result<InferenceEvent, ClientError>) -> Result<Event, NcnError> {
        Ok(match event {
            Ok(InferenceEvent::Part(part)) => Event::Part { values: values(part.values)? },
            Ok(InferenceEvent::Finished(answer)) => {
                let answer = Answer::of(*answer)?;
                self.keep(&answer);
                Event::Finished { answer: Box::new(answer) }
            }
            Ok(_) => Event::Restarted,
            Err(error) => {
                if let ClientError::PartsRejected { answer, .. } = &error {
                    self.keep(&Answer::of((**answer).clone())?);
                }
                return Err(error.into());
            }
        })
    }
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
        let mut events = self.events.lock().await;
        let Some(events) = &mut *events else { return Ok(None) };
        events.next().await.map(|event| self.event(event)).transpose()
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

    /// The same without waiting. Where there is nothing yet, a byte comes to [`Self::wakeups`] as soon as this should be called again.
    pub fn try_next(&self) -> Result<Waited, NcnError> {
        let Ok(mut events) = self.events.try_lock() else { return Ok(Waited::Nothing) };
        let Some(events) = &mut *events else { return Ok(Waited::Over) };
        match events.poll_next_unpin(&mut Context::from_waker(&self.waker())) {
            Poll::Ready(Some(event)) => Ok(Waited::Next { event: self.event(event)? }),
            Poll::Ready(None) => Ok(Waited::Over),
            Poll::Pending => Ok(Waited::Nothing),
        }
    }

    /// The file descriptor of a socket for one event loop that waits for [`Self::try_next`]; the caller closes it. None where the system has none such:
    /// [`Self::next`] is there for that.
    ///
    /// # Errors
    /// When this process has too many descriptors.
    pub fn wakeups(&self) -> Result<Option<i32>, NcnError> {
        #[cfg(unix)]
        {
            let (waker, descriptor) = wakeups::pair().map_err(|error| NcnError::new(crate::ErrorKind::Internal, error))?;
            *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = waker;
            Ok(Some(descriptor))
        }
        #[cfg(not(unix))]
        Ok(None)
    }

    /// The verified answer, once it is there: after the parts were rejected, too.
    pub fn answer(&self) -> Option<Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the request up, as dropping this does, while somebody may still refer to it. Where an event is waited for, its end comes there.
    pub fn give_up(&self) {
        match self.events.try_lock() {
            Ok(mut events) => drop(events.take()),
            Err(_) => runtime::enter(|| self.paid.give_up()),
        }
        self.waker().wake();
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

/// A waker that writes to a socket: event loops of all languages wait for those, and no thread of this library calls into one.
#[cfg(unix)]
mod wakeups {
    use std::{
        io::{self, Write as _},
        os::{fd::IntoRawFd as _, unix::net::UnixStream},
        sync::Arc,
        task::{Wake, Waker},
    };

    struct Wakeup(UnixStream);

    impl Wake for Wakeup {
        fn wake(self: Arc<Self>) {
            // Where it takes no more, there is a byte to read already.
            let _ = (&self.0).write(&[0]);
        }
    }

    pub(super) fn pair() -> io::Result<(Waker, i32)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok((Arc::new(Wakeup(ours)).into(), theirs.into_raw_fd()))
    }
}
