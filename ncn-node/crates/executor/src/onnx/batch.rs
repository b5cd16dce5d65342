//! Running requests together that arrive together.
//!
//! While one batch runs, the requests that arrive wait; the next batch takes as many of them as fit together. So a lone request never
//! waits for company, and the busier the model is, the larger its batches get.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ncn_core::{ExecutorError, Tensor, model::Tensors};
use tokio_util::sync::CancellationToken;

use super::Graph;

/// How often a waiting request looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Batches {
    graph: Arc<dyn Graph>,
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Request>>,
    running: bool,
}

struct Request {
    inputs: Tensors,
    cancel: CancellationToken,
    outputs: Mutex<Option<Result<Tensors, ExecutorError>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Batches {
    /// Up to `most` requests a batch.
    pub(super) fn new(graph: Arc<dyn Graph>, most: usize) -> Self {
        Self { graph, most, state: Mutex::default(), changed: Condvar::new() }
    }

    pub(super) fn run(&self, inputs: &Tensors, cancel: &CancellationToken) -> Result<Tensors, ExecutorError> {
        if self.most <= 1 {
            return self.graph.run(inputs, cancel);
        }
        // Tensors share their data: a clone copies names and shapes.
        let request = Arc::new(Request { inputs: inputs.clone(), cancel: cancel.clone(), outputs: Mutex::new(None) });
        let mut state = lock(&self.state);
        state.waiting.push_back(request.clone());
        loop {
            if let Some(outputs) = lock(&request.outputs).take() {
                return outputs;
            }
            if cancel.is_cancelled() {
                state.waiting.retain(|other| !Arc::ptr_eq(other, &request));
                return Err(ExecutorError::Cancelled);
            }
            if state.running {
                let waited = self.changed.wait_timeout(state, LOOK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let batch = state.take(self.most);
            state.running = true;
            drop(state);
            let idle = Idle(self);
            self.run_batch(&batch);
            drop(idle);
            state = lock(&self.state);
        }
    }

    fn run_batch(&self, batch: &[Arc<Request>]) {
        let together = match batch {
            [_] => None,
            _ => self.run_together(batch).ok(),
        };
        let Some(together) = together else {
            // What is wrong with one request must not fail the others: each runs alone.
            for request in batch {
                let outputs = self.graph.run(&request.inputs, &request.cancel);
                *lock(&request.outputs) = Some(outputs);
            }
            return;
        };
        for (request, outputs) in batch.iter().zip(together) {
            *lock(&request.outputs) = Some(Ok(outputs));
        }
    }

    /// One run for all of them; not interrupted for one that is cancelled.
    fn run_together(&self, batch: &[Arc<Request>]) -> Result<Vec<Tensors>, ExecutorError> {
        let uneven = || ExecutorError::InvalidOutput("has other rows than went in".into());
        let first = batch.first().ok_or_else(uneven)?;
        let mut inputs = Tensors::new();
        for name in first.inputs.keys() {
            let parts: Option<Vec<_>> = batch.iter().map(|request| request.inputs.get(name)).collect();
            inputs.insert(name.clone(), join(&parts.ok_or_else(uneven)?).ok_or_else(uneven)?);
        }
        let outputs = self.graph.run(&inputs, &CancellationToken::new())?;
        let mut row = 0;
        let mut split = Vec::with_capacity(batch.len());
        for request in batch {
            let count = rows(&request.inputs);
            let part = |(name, tensor): (&String, &Tensor)| Some((name.clone(), slice(tensor, row, count)?));
            split.push(outputs.iter().map(part).collect::<Option<Tensors>>().ok_or_else(uneven)?);
            row += count;
        }
        if outputs.values().any(|tensor| tensor.shape().first() != Some(&row)) {
            return Err(uneven());
        }
        Ok(split)
    }
}

/// Lets the next batch run, also when this one panicked.
struct Idle<'a>(&'a Batches);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).running = false;
        self.0.changed.notify_all();
    }
}

impl State {
    /// The oldest request, and those that fit into one batch with it.
    fn take(&mut self, most: usize) -> Vec<Arc<Request>> {
        let mut batch: Vec<Arc<Request>> = Vec::new();
        let mut left = VecDeque::new();
        for request in self.waiting.drain(..) {
            let fits = batch.first().is_none_or(|first| batch.len() < most && same_rows(&first.inputs, &request.inputs));
            if fits { batch.push(request) } else { left.push_back(request) }
        }
        self.waiting = left;
        batch
    }
}

fn rows(tensors: &Tensors) -> usize {
    tensors.values().next().and_then(|tensor| tensor.shape().first().copied()).unwrap_or_default()
}

/// True when the rows of both have the same types and shapes.
fn same_rows(a: &Tensors, b: &Tensors) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|((a_name, a), (b_name, b))| {
            a_name == b_name && a.data_type() == b.data_type() && a.shape().get(1..) == b.shape().get(1..)
        })
}

/// One tensor of the rows of all.
fn join(parts: &[&Tensor]) -> Option<Tensor> {
    let first = parts.first()?;
    let rows = parts.iter().map(|part| part.shape().first().copied()).sum::<Option<usize>>()?;
    let shape = std::iter::once(rows).chain(first.shape().get(1..)?.iter().copied()).collect();
    let mut data = Vec::with_capacity(parts.iter().map(|part| part.data().len()).sum());
    for part in parts {
        data.extend_from_slice(part.data());
    }
    Tensor::new(first.data_type(), shape, data).ok()
}

/// Some rows of a tensor, without copying them.
fn slice(tensor: &Tensor, row: usize, count: usize) -> Option<Tensor> {
    let all = *tensor.shape().first()?;
    let size = tensor.data().len().checked_div(all)?;
    let data = (row + count <= all).then(|| tensor.data().slice(row * size..(row + count) * size))?;
    let shape = std::iter::once(count).chain(tensor.shape().get(1..)?.iter().copied()).collect();
    Tensor::new(tensor.data_type(), shape, data).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    /// Doubles each number; fails on a negative one.
    #[derive(Default)]
    struct Doubling {
        runs: AtomicUsize,
        rows: AtomicUsize,
    }

    impl Graph for Doubling {
        fn run(&self, inputs: &Tensors, _cancel: &CancellationToken) -> Result<Tensors, ExecutorError> {
            let numbers = inputs["x"].to_f32().unwrap();
            self.runs.fetch_add(1, Ordering::SeqCst);
            self.rows.fetch_add(inputs["x"].shape()[0], Ordering::SeqCst);
            if numbers.iter().any(|number| *number < 0.0) {
                return Err(ExecutorError::Failed("negative".into()));
            }
            let doubled: Vec<f32> = numbers.iter().map(|number| number * 2.0).collect();
            Ok(Tensors::from([("y".into(), Tensor::from_f32(inputs["x"].shape().to_vec(), &doubled).unwrap())]))
        }
    }

    fn x(rows: usize, width: usize, number: f32) -> Tensors {
        Tensors::from([("x".into(), Tensor::from_f32(vec![rows, width], &vec![number; rows * width]).unwrap())])
    }

    /// Runs all of them at once; returns the numbers that each got, or its error.
    fn run(graph: &Arc<Doubling>, most: usize, requests: &[Tensors]) -> Vec<Result<Vec<f32>, ExecutorError>> {
        let batches = Batches::new(graph.clone(), most);
        let never = CancellationToken::new();
        let run = |request| batches.run(request, &never).map(|outputs| outputs["y"].to_f32().unwrap());
        let run = &run;
        // As if a batch were running, until all wait for their turn.
        lock(&batches.state).running = true;
        thread::scope(|scope| {
            let threads: Vec<_> = requests.iter().map(|request| scope.spawn(move || run(request))).collect();
            while lock(&batches.state).waiting.len() < requests.len() {
                thread::yield_now();
            }
            drop(Idle(&batches));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn requests_that_arrive_together_run_together() {
        let graph = Arc::new(Doubling::default());
        let requests: Vec<_> = (0..16_u8).map(|number| x(1 + usize::from(number % 3), 4, f32::from(number))).collect();
        for (index, outputs) in run(&graph, 8, &requests).into_iter().enumerate() {
            let expected = vec![f32::from(u8::try_from(index).unwrap()) * 2.0; (1 + index % 3) * 4];
            assert_eq!(outputs.unwrap(), expected, "each gets its own rows");
        }
        let runs = graph.runs.load(Ordering::SeqCst);
        assert!((2..=8).contains(&runs), "{runs} runs for 16 requests");
        assert_eq!(graph.rows.load(Ordering::SeqCst), requests.iter().map(rows).sum::<usize>(), "each row once");
    }

    #[test]
    fn what_does_not_fit_together_runs_apart() {
        let graph = Arc::new(Doubling::default());
        let requests: Vec<_> = (1..=4).map(|width| x(1, width, 1.0)).collect();
        assert!(run(&graph, 8, &requests).into_iter().all(|outputs| outputs.is_ok()));
        assert_eq!(graph.runs.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn a_bad_request_does_not_fail_its_company() {
        let graph = Arc::new(Doubling::default());
        let requests: Vec<_> = [1.0, 2.0, -1.0, 3.0, 4.0].into_iter().map(|number| x(1, 4, number)).collect();
        let outputs = run(&graph, 8, &requests);
        assert_eq!(outputs.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, true, true]);
    }

    #[test]
    fn a_cancelled_request_does_not_wait() {
        let batches = Batches::new(Arc::new(Doubling::default()), 8);
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        assert_eq!(batches.run(&x(1, 1, 1.0), &cancelled), Err(ExecutorError::Cancelled));
        assert!(batches.run(&x(1, 1, 1.0), &CancellationToken::new()).is_ok());
    }
}
