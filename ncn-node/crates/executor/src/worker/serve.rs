//! The worker's side: engines, served over a pair of byte streams.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt, StreamExt as _};
use ncn_core::{Execution, Executor as _, ExecutorError, Model, StreamBudget, executor::ModelPackage};
use ncn_wire::{
    self as wire, MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES, WORKER_VERSION,
    proto::{self, FromWorker, ToWorker, from_worker, to_worker},
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_util::{
    codec::{FramedRead, FramedWrite, LengthDelimitedCodec},
    sync::CancellationToken,
};

use crate::{EngineExecutor, workers::codec};

/// How many answers wait for the node to read them.
const QUEUE: usize = 64;

/// The questions that are not answered yet.
type Open = Arc<Mutex<HashMap<u64, CancellationToken>>>;

fn lock(open: &Open) -> std::sync::MutexGuard<'_, HashMap<u64, CancellationToken>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves engines until the input ends or makes no sense. Every question gets one last answer, a cancelled one when its engine has
/// really ended: so the node knows what the worker is still busy with.
pub async fn serve(
    executor: Arc<EngineExecutor>,
    input: impl AsyncRead + Unpin + Send,
    output: impl AsyncWrite + Unpin + Send + 'static,
) -> io::Result<()> {
    let (answers, mut to_send) = mpsc::channel::<FromWorker>(QUEUE);
    let writing = tokio::spawn(async move {
        let mut output: FramedWrite<_, LengthDelimitedCodec> = FramedWrite::new(output, codec(MAX_ANSWER_BYTES));
        while let Some(answer) = to_send.recv().await {
            output.feed(Bytes::from(answer.encode_to_vec())).await?;
            // What is ready goes out together.
            while let Ok(answer) = to_send.try_recv() {
                output.feed(Bytes::from(answer.encode_to_vec())).await?;
            }
            SinkExt::<Bytes>::flush(&mut output).await?;
        }
        io::Result::Ok(())
    });
    let ready = from_worker::Message::Ready(proto::Ready { version: WORKER_VERSION });
    // Sending fails only when the node is gone, which the input's end will show.
    let _ = answers.send(FromWorker { id: 0, message: Some(ready) }).await;

    let mut input = FramedRead::new(input, codec(MAX_MESSAGE_BYTES));
    let open = Open::default();
    while let Some(frame) = input.next().await {
        let ToWorker { id, message } = ToWorker::decode(frame?).map_err(io::Error::other)?;
        match message {
            Some(to_worker::Message::Cancel(_)) => {
                if let Some(cancel) = lock(&open).get(&id) {
                    cancel.cancel();
                }
            }
            Some(message) => {
                let cancel = CancellationToken::new();
                lock(&open).insert(id, cancel.clone());
                let (executor, answers, open) = (executor.clone(), answers.clone(), open.clone());
                tokio::spawn(async move {
                    let answer = match answer(&executor, id, message, cancel, &answers).await {
                        Ok(answer) => answer,
                        Err(error) => from_worker::Message::Error(serde_json::to_string(&error).unwrap_or_default()),
                    };
                    lock(&open).remove(&id);
                    let mut answer = FromWorker { id, message: Some(answer) };
                    if answer.encoded_len() > MAX_ANSWER_BYTES {
                        let error = ExecutorError::InvalidOutput(format!("has more than {MAX_ANSWER_BYTES} bytes"));
                        answer.message = Some(from_worker::Message::Error(serde_json::to_string(&error).unwrap_or_default()));
                    }
                    let _ = answers.send(answer).await;
                });
            }
            None => return Err(io::Error::other("an empty message")),
        }
    }
    drop(answers);
    lock(&open).values().for_each(CancellationToken::cancel);
    writing.await.map_err(io::Error::other)?
}

/// Does what a message asks; the parts of an output but the last are sent as they come.
async fn answer(
    executor: &EngineExecutor,
    id: u64,
    message: to_worker::Message,
    cancel: CancellationToken,
    answers: &mpsc::Sender<FromWorker>,
) -> Result<from_worker::Message, ExecutorError> {
    let malformed = |error: wire::WireError| ExecutorError::Worker(format!("a malformed message: {error}"));
    match message {
        to_worker::Message::Load(load) => {
            let model = Model::parse(load.manifest).map_err(|error| ExecutorError::InvalidModel(error.to_string()))?;
            let package = ModelPackage { model: Arc::new(model), directory: PathBuf::from(load.directory) };
            executor.load(&package).await?;
            Ok(from_worker::Message::Done(proto::Empty {}))
        }
        to_worker::Message::Unload(digest) => {
            executor.unload(&wire::hash("unload", &digest).map_err(malformed)?).await?;
            Ok(from_worker::Message::Done(proto::Empty {}))
        }
        to_worker::Message::Run(run) => {
            let execution = Execution {
                model_digest: wire::hash("run.model_digest", &run.model_digest).map_err(malformed)?,
                inputs: wire::values_from_proto(run.inputs).map_err(malformed)?,
                parameters: run.parameters,
                time_limit: Duration::from_micros(run.time_limit_micros),
            };
            let mut outputs = executor.start(execution, cancel).await?;
            let mut budget = StreamBudget::default();
            while let Some(chunk) = outputs.next().await {
                let chunk = chunk?;
                budget.take(&chunk.values).map_err(|limit| ExecutorError::InvalidOutput(limit.to_string()))?;
                let last = chunk.is_last();
                let message = from_worker::Message::Chunk(chunk.into());
                if last {
                    return Ok(message);
                }
                let _ = answers.send(FromWorker { id, message: Some(message) }).await;
            }
            Err(ExecutorError::Failed("the output broke off".into()))
        }
        to_worker::Message::Cancel(_) => Ok(from_worker::Message::Done(proto::Empty {})),
    }
}
