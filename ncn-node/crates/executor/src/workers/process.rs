//! The node's side of a running worker.

use std::{
    collections::HashMap,
    io,
    process::Child,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use ncn_core::{ExecutorError, OutputChunk, StreamBudget};
use ncn_wire::{
    self as wire, MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES, WORKER_VERSION,
    proto::{self, FromWorker, ToWorker, from_worker, to_worker},
};
use prost::Message as _;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::{
    process::{ChildStdin, ChildStdout},
    sync::mpsc,
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

/// Frames of at most so many bytes; a longer one is an error before it is read.
pub(crate) fn codec(most: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(most).new_codec()
}

/// How long a worker may take until it is ready: a confined one on a slow and busy machine needs more than ten seconds.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// How many messages wait for the worker to read them, and how many parts of one answer for the node. What waits of an answer is within
/// its `StreamBudget`: at most 32 MiB for each request that a node runs, and [`MAX_ANSWER_BYTES`] for each worker that is being read.
const QUEUE: usize = 64;
/// The most bytes of an error that are read.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// Which questions the worker has not answered yet.
type Questions = Arc<Mutex<Open>>;

/// An answer of a worker, or a part of one. Contents are what the model made of them.
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// A part of an output, within what all parts of it may have.
    Part(OutputChunk),
    /// It failed.
    Error(ExecutorError),
}

/// A question that the worker has not answered yet.
struct Question {
    /// Who waits for the answer; `None` when nobody does any more.
    asker: Option<mpsc::Sender<Answer>>,
    budget: StreamBudget,
}

#[derive(Default)]
struct Open {
    waiting: HashMap<u64, Question>,
    /// The worker has ended.
    gone: bool,
    /// It is not asked anything any more, and ends with its last answer that somebody waits for.
    retired: bool,
}

impl Open {
    /// True when the worker has nothing left to live for.
    fn is_done(&self) -> bool {
        self.retired && !self.waiting.values().any(|question| question.asker.is_some())
    }

    /// Whom to give an answer to, and what of it. A worker whose parts are malformed, or more than they may be, is retired: it checks
    /// them itself, unless the model has got around that.
    fn take(&mut self, id: u64, answer: Result<Answer, ExecutorError>) -> Option<(mpsc::Sender<Answer>, Answer)> {
        let question = self.waiting.get_mut(&id)?;
        let counted = answer.and_then(|answer| {
            if let Answer::Part(part) = &answer {
                question.budget.take(&part.values).map_err(|limit| ExecutorError::InvalidOutput(limit.to_string()))?;
            }
            Ok(answer)
        });
        let answer = counted.unwrap_or_else(|error| {
            self.retired = true;
            Answer::Error(error)
        });
        // A part that is not the last leaves the question open.
        let more = matches!(&answer, Answer::Part(part) if !part.is_last());
        let asker = if more { question.asker.clone() } else { self.waiting.remove(&id)?.asker };
        Some((asker?, answer))
    }

    fn end(&mut self) {
        self.gone = true;
        self.waiting.clear();
    }
}

/// A worker process. Dropping it ends the process and whatever that has started.
pub(crate) struct Process {
    messages: mpsc::Sender<ToWorker>,
    open: Questions,
    next: AtomicU64,
    group: Arc<Group>,
    /// How long a run may go on in the worker after nobody waits for it any more. An engine that cannot be interrupted may need longer:
    /// then another worker takes over from this one.
    cancel_grace: Duration,
}

/// The worker and whatever it has started.
struct Group {
    id: Option<Pid>,
    /// Once the worker has been reaped, its id may become another process's.
    reaped: Mutex<bool>,
}

impl Group {
    fn kill(&self) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        self.kill_unless(*reaped);
    }

    fn kill_unless(&self, reaped: bool) {
        if let Some(id) = self.id.filter(|_| !reaped) {
            // It fails only when the group has ended by itself.
            let _ = kill_process_group(id, Signal::KILL);
        }
    }

    /// Waits for the worker to end, ends what it has left behind, and only then lets go of its id.
    fn reap(&self, mut child: Child) {
        if let Some(id) = self.id {
            let _ = waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        }
        let mut reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        self.kill_unless(*reaped);
        let _ = child.wait();
        *reaped = true;
    }
}

fn lock(open: &Questions) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn gone(problem: impl ToString) -> ExecutorError {
    ExecutorError::Worker(problem.to_string())
}

impl Process {
    /// Its process id; 0 when it has none.
    pub(crate) fn id(&self) -> i32 {
        Pid::as_raw(self.group.id)
    }

    /// Takes charge of a worker that was just started, and waits until it is ready.
    pub(crate) async fn start(mut child: Child, cancel_grace: Duration) -> Result<Self, ExecutorError> {
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let group = Arc::new(Group { id, reaped: Mutex::new(false) });
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let open = Questions::default();
        let (messages, to_send) = mpsc::channel(QUEUE);
        // From here on, dropping this ends the process.
        let process = Self { messages, open: open.clone(), next: AtomicU64::new(1), group: group.clone(), cancel_grace };
        // Reaps the child whenever it ends.
        let (reaper, ended) = (group.clone(), open.clone());
        tokio::task::spawn_blocking(move || {
            reaper.reap(child);
            lock(&ended).end();
        });

        let stdin = ChildStdin::from_std(stdin.ok_or_else(|| gone("has no standard input"))?).map_err(gone)?;
        let stdout = ChildStdout::from_std(stdout.ok_or_else(|| gone("has no standard output"))?).map_err(gone)?;
        let mut answers = FramedRead::new(stdout, codec(MAX_ANSWER_BYTES));
        let first = tokio::time::timeout(START_TIMEOUT, answers.next()).await;
        let first = first.map_err(|_| gone(format!("was not ready within {START_TIMEOUT:?}")))?;
        let first = first.ok_or_else(|| gone("ended before it was ready: does its program call ncn_executor::worker::init?"))?;
        match wire::decode_answer(first.map_err(gone)?.freeze()).map_err(gone)?.message {
            Some(from_worker::Message::Ready(proto::Ready { version: WORKER_VERSION })) => {}
            Some(from_worker::Message::Ready(proto::Ready { version })) => {
                return Err(gone(format!("speaks version {version}, not {WORKER_VERSION}: use a worker of this release")));
            }
            _ => return Err(gone("did not begin by saying that it is ready: does its program call ncn_executor::worker::init?")),
        }
        tokio::spawn(write(FramedWrite::new(stdin, codec(MAX_MESSAGE_BYTES)), to_send, group.clone()));
        tokio::spawn(read(answers, open, group));
        Ok(process)
    }

    /// False once the worker has ended, or is not to be asked any more.
    pub(crate) fn is_usable(&self) -> bool {
        let open = lock(&self.open);
        !open.gone && !open.retired
    }

    /// True while it has something to do.
    pub(crate) fn is_busy(&self) -> bool {
        !lock(&self.open).waiting.is_empty()
    }

    /// Lets the worker finish what somebody waits for, and then ends it.
    pub(crate) fn retire(&self) {
        let mut open = lock(&self.open);
        open.retired = true;
        if open.is_done() {
            open.end();
            drop(open);
            self.group.kill();
        }
    }

    /// Asks the worker for something; its answers come over the channel, which closes when the worker ends.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        message: to_worker::Message,
    ) -> Result<(PendingCall, mpsc::Receiver<Answer>), ExecutorError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = ToWorker { id, message: Some(message) };
        if message.encoded_len() > MAX_MESSAGE_BYTES {
            return Err(ExecutorError::InvalidInput(format!("has more than the {MAX_MESSAGE_BYTES} bytes that a worker takes")));
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        {
            let mut open = lock(&self.open);
            if open.gone || open.retired {
                return Err(gone("has ended"));
            }
            open.waiting.insert(id, Question { asker: Some(sender), budget: StreamBudget::default() });
        }
        let asked = PendingCall { process: self.clone(), id };
        self.messages.send(message).await.map_err(|_| gone("has ended"))?;
        Ok((asked, receiver))
    }

    /// Ends the worker at once.
    fn kill(&self) {
        lock(&self.open).end();
        self.group.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A question under way. Dropping it tells the worker that nobody waits any more; a worker that does not stop then is retired.
pub(crate) struct PendingCall {
    process: Arc<Process>,
    id: u64,
}

impl PendingCall {
    /// Tells the worker to stop; its last answer still comes. False when it cannot be told.
    pub(crate) fn cancel(&self) -> bool {
        let cancel = ToWorker { id: self.id, message: Some(to_worker::Message::Cancel(proto::Empty {})) };
        self.process.messages.try_send(cancel).is_ok()
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        {
            let mut open = lock(&self.process.open);
            let Some(question) = open.waiting.get_mut(&self.id) else { return };
            question.asker = None;
        }
        let (process, id) = (self.process.clone(), self.id);
        let told = self.cancel();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if told => drop(runtime.spawn(async move {
                tokio::time::sleep(process.cancel_grace).await;
                let busy = lock(&process.open).waiting.contains_key(&id);
                if busy {
                    tracing::info!("a model goes on after its run was cancelled: another worker takes over");
                    process.retire();
                }
            })),
            // A worker that cannot be told, or not be watched, is not trusted with more.
            _ => process.retire(),
        }
    }
}

/// Sends messages until there are no more; a worker that does not read any more is ended.
async fn write(
    mut stdin: FramedWrite<ChildStdin, LengthDelimitedCodec>,
    mut messages: mpsc::Receiver<ToWorker>,
    group: Arc<Group>,
) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = stdin.send(Bytes::from(message.encode_to_vec())).await {
            tracing::debug!(%error, "a worker does not read any more");
            return group.kill();
        }
    }
}

/// Hands answers out until there are no more; a worker that says nothing, or nonsense, is ended.
async fn read(mut answers: FramedRead<ChildStdout, LengthDelimitedCodec>, open: Questions, group: Arc<Group>) {
    let ended: io::Result<()> = async {
        while let Some(frame) = answers.next().await {
            let FromWorker { id, message } = wire::decode_answer(frame?.freeze()).map_err(io::Error::other)?;
            let answer = answer(message.ok_or_else(|| io::Error::other("an empty message"))?);
            let taken = lock(&open).take(id, answer);
            if let Some((asker, answer)) = taken {
                // Waits when the asker is slow: the worker waits with it.
                let _ = asker.send(answer).await;
            }
            if lock(&open).is_done() {
                break;
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = ended {
        tracing::warn!(%error, "a worker says something that makes no sense");
    }
    // Closes every asker's channel.
    lock(&open).end();
    group.kill();
}

/// A worker's message as an answer; an error is about one that no worker sends by itself.
fn answer(message: from_worker::Message) -> Result<Answer, ExecutorError> {
    Ok(match message {
        from_worker::Message::Done(_) => Answer::Done,
        from_worker::Message::Chunk(chunk) => {
            Answer::Part(wire::chunk_from_proto(chunk).map_err(|error| ExecutorError::InvalidOutput(error.to_string()))?)
        }
        from_worker::Message::Error(error) if error.len() > MAX_ERROR_BYTES => {
            let problem = format!("its error has {} bytes, at most {MAX_ERROR_BYTES} are read", error.len());
            return Err(ExecutorError::Failed(problem));
        }
        from_worker::Message::Error(error) => {
            let nonsense = |_| ExecutorError::Worker("gave an error that makes no sense".into());
            Answer::Error(serde_json::from_str(&error).unwrap_or_else(nonsense))
        }
        from_worker::Message::Ready(_) => Answer::Error(ExecutorError::Worker("answered something else".into())),
    })
}
