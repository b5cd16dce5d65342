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
use ncn_client::{
    proto::{self, FromWorker, ToWorker, from_worker, to_worker},
    wire::MAX_MESSAGE_BYTES,
};
use ncn_core::ExecutorError;
use prost::Message as _;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::{
    process::{ChildStdin, ChildStdout},
    sync::mpsc,
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::{PROTOCOL_VERSION, serve};

/// How long a worker may take until it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How many messages wait for the worker to read them, and how many parts of one answer for the node.
const QUEUE: usize = 64;

/// Who waits for which answer; `None` once the worker is gone.
type Waiting = Arc<Mutex<Option<HashMap<u64, mpsc::Sender<from_worker::Message>>>>>;

/// A worker process. Dropping it ends the process and whatever that has started.
pub(crate) struct Process {
    messages: mpsc::Sender<ToWorker>,
    waiting: Waiting,
    next: AtomicU64,
    group: Arc<Group>,
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

fn lock(waiting: &Waiting) -> MutexGuard<'_, Option<HashMap<u64, mpsc::Sender<from_worker::Message>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn gone(problem: impl ToString) -> ExecutorError {
    ExecutorError::Worker(problem.to_string())
}

impl Process {
    /// Takes charge of a worker that was just started, and waits until it is ready.
    pub(crate) async fn start(mut child: Child) -> Result<Self, ExecutorError> {
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let group = Arc::new(Group { id, reaped: Mutex::new(false) });
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (messages, to_send) = mpsc::channel(QUEUE);
        // From here on, dropping this ends the process.
        let process = Self { messages, waiting: waiting.clone(), next: AtomicU64::new(1), group: group.clone() };
        // Reaps the child whenever it ends.
        let (reaper, gone_too) = (group.clone(), waiting.clone());
        tokio::task::spawn_blocking(move || {
            reaper.reap(child);
            *lock(&gone_too) = None;
        });

        let stdin = ChildStdin::from_std(stdin.ok_or_else(|| gone("has no standard input"))?).map_err(gone)?;
        let stdout = ChildStdout::from_std(stdout.ok_or_else(|| gone("has no standard output"))?).map_err(gone)?;
        let mut answers = FramedRead::new(stdout, serve::codec());
        let first = tokio::time::timeout(START_TIMEOUT, answers.next()).await;
        let first = first.map_err(|_| gone(format!("was not ready within {START_TIMEOUT:?}")))?;
        let first = first.ok_or_else(|| gone("ended before it was ready: does its program call ncn_node::worker::init?"))?;
        match serve::decode(first.map_err(gone)?).map_err(gone)?.message {
            Some(from_worker::Message::Ready(proto::Ready { version: PROTOCOL_VERSION })) => {}
            other => return Err(gone(format!("speaks another version: {other:?}"))),
        }
        tokio::spawn(write(FramedWrite::new(stdin, serve::codec()), to_send, group.clone()));
        tokio::spawn(read(answers, waiting, group));
        Ok(process)
    }

    /// False once the worker has ended.
    pub(crate) fn is_alive(&self) -> bool {
        lock(&self.waiting).is_some()
    }

    /// Asks the worker for something; its answers come over the channel, which closes when the worker ends.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        message: to_worker::Message,
    ) -> Result<(Asked, mpsc::Receiver<from_worker::Message>), ExecutorError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = ToWorker { id, message: Some(message) };
        if message.encoded_len() > MAX_MESSAGE_BYTES {
            return Err(ExecutorError::InvalidInput(format!("has more than the {MAX_MESSAGE_BYTES} bytes that a worker takes")));
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        lock(&self.waiting).as_mut().ok_or_else(|| gone("has ended"))?.insert(id, sender);
        let asked = Asked { process: self.clone(), id };
        self.messages.send(message).await.map_err(|_| gone("has ended"))?;
        Ok((asked, receiver))
    }

    /// Ends the worker at once.
    pub(crate) fn kill(&self) {
        *lock(&self.waiting) = None;
        self.group.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A question under way. Dropping it tells the worker that nobody waits any more.
pub(crate) struct Asked {
    process: Arc<Process>,
    id: u64,
}

impl Asked {
    /// The worker that was asked.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let still = lock(&self.process.waiting).as_mut().is_some_and(|waiting| waiting.remove(&self.id).is_some());
        if still {
            let cancel = ToWorker { id: self.id, message: Some(to_worker::Message::Cancel(proto::Empty {})) };
            let _ = self.process.messages.try_send(cancel);
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
async fn read(mut answers: FramedRead<ChildStdout, LengthDelimitedCodec>, waiting: Waiting, group: Arc<Group>) {
    let ended: io::Result<()> = async {
        while let Some(frame) = answers.next().await {
            let FromWorker { id, message } = serve::decode(frame?)?;
            let message = message.ok_or_else(|| io::Error::other("an empty message"))?;
            // A part that is not the last leaves the question open.
            let open = matches!(&message, from_worker::Message::Chunk(chunk) if chunk.usage.is_none());
            let asker = {
                let mut waiting = lock(&waiting);
                let Some(waiting) = waiting.as_mut() else { return Ok(()) };
                if open { waiting.get(&id).cloned() } else { waiting.remove(&id) }
            };
            if let Some(asker) = asker {
                // Waits when the asker is slow: the worker waits with it.
                let _ = asker.send(message).await;
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = ended {
        tracing::warn!(%error, "a worker says something that makes no sense");
    }
    // Closes every asker's channel.
    *lock(&waiting) = None;
    group.kill();
}
