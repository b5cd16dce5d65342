//! Finds a compute node that has a place for a request.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use ncn_core::{Address, Compute, ComputeError, Reservation, Step};

use super::{Gateway, task::Task};

/// How long a compute node may take to say whether it has a place: it may be on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(10);
/// After how long others are asked besides, each time twice as many. To register costs nothing, and so does not to answer: many that are silent must not be
/// waited for in turn.
const HEDGE_AFTER: Duration = Duration::from_millis(300);
/// One of so many requests goes to a node that has served nothing yet.
const SEEKING: u8 = 8;

/// Reserves a place with any live node; those that have not been tried yet come first, and then those that have served lately.
pub(super) async fn reserve_node(gateway: &Gateway, task: &Task, expires_at: u64) -> Result<Arc<dyn Compute>, String> {
    let model_digest = task.request.message.model_digest;
    let started = Instant::now();
    let mut nodes = gateway.nodes.with_model(&model_digest).await;
    let discovering = started.elapsed();
    let started = Instant::now();
    // Whose turn it is, is decided by the request: load spreads without anyone counting.
    nodes.sort_unstable_by_key(|node| node.address());
    let turn = usize::from(task.request_id.as_slice().last().copied().unwrap_or_default());
    if !nodes.is_empty() {
        let turn = turn % nodes.len();
        nodes.rotate_left(turn);
    }
    let sought = task.tried().is_empty() && task.request_id.as_slice().first().is_some_and(|byte| byte % SEEKING == 0);
    {
        let reputation = gateway.nodes.reputation();
        nodes.sort_by_cached_key(|node| (task.has_tried(node.address()), reputation.rank(node.address(), sought)));
    }
    let reservation = Reservation { request_id: task.request_id, model_digest, expires_at };
    match first(nodes, reservation, HEDGE_AFTER, |node| gateway.nodes.reputation().failed(node)).await {
        Ok(node) => {
            task.report(Step::Discover, gateway.address(), discovering);
            task.report(Step::Reserve, gateway.address(), started.elapsed());
            Ok(node)
        }
        Err(errors) if errors.is_empty() => Err("no compute node: none that has the model is live and attached".into()),
        Err(errors) => {
            let reasons: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Err(format!("no compute node: {}", reasons.join("; ")))
        }
    }
}

/// Reserves a place with the first of these that has one, in their order as far as they answer; `silent` is told who did not. Cancel safe.
async fn first(
    nodes: Vec<Arc<dyn Compute>>,
    reservation: Reservation,
    hedge_after: Duration,
    silent: impl Fn(Address),
) -> Result<Arc<dyn Compute>, Vec<ComputeError>> {
    let (mut nodes, mut errors, mut waiting) = (nodes.into_iter(), Vec::new(), Vec::new());
    let mut asked = FuturesUnordered::new();
    let (mut more, mut next) = (1, 1);
    loop {
        for node in nodes.by_ref().take(next) {
            waiting.push((node.address(), Instant::now()));
            asked.push(async move { (reserve_at(&*node, reservation).await, node) });
        }
        let (answer, node) = tokio::select! {
            Some(answered) = asked.next() => answered,
            () = tokio::time::sleep(hedge_after), if nodes.len() > 0 => {
                more *= 2;
                next = more;
                continue;
            }
            else => return Err(errors),
        };
        waiting.retain(|(address, _)| *address != node.address());
        if matches!(answer, Err(ComputeError::Unavailable(_))) {
            silent(node.address());
        }
        match answer {
            Ok(()) => {
                // What these hold, they are told to give back.
                waiting.iter().filter(|(_, since)| since.elapsed() >= hedge_after).for_each(|(other, _)| silent(*other));
                return Ok(node);
            }
            Err(error) => errors.push(error),
        }
        next = 1;
    }
}

/// Reserves a place with a node.
pub(super) async fn reserve_at(node: &dyn Compute, reservation: Reservation) -> Result<(), ComputeError> {
    let silent = |_| Err(ComputeError::Unavailable(format!("{} does not answer", node.address())));
    tokio::time::timeout(TIMEOUT, node.reserve(reservation)).await.unwrap_or_else(silent)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use async_trait::async_trait;
    use ncn_core::{Acknowledgement, B256, Collected, ComputeTask, QuorumCertificate, RequestId, Signed, compute::ComputeEvents};

    use super::*;

    enum Answer {
        Place,
        Busy,
        Never,
    }

    struct Node {
        address: Address,
        answer: Answer,
        asked: AtomicUsize,
    }

    impl Node {
        fn new(number: u8, answer: Answer) -> Arc<Self> {
            Arc::new(Self { address: Address::repeat_byte(number), answer, asked: AtomicUsize::new(0) })
        }
    }

    #[async_trait]
    impl Compute for Node {
        fn address(&self) -> Address {
            self.address
        }

        async fn reserve(&self, _: Reservation) -> Result<(), ComputeError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            match self.answer {
                Answer::Place => Ok(()),
                Answer::Busy => Err(ComputeError::Busy(self.address)),
                Answer::Never => std::future::pending().await,
            }
        }

        async fn release(&self, _: RequestId) {}

        async fn execute(&self, _: ComputeTask) -> Result<ComputeEvents, ComputeError> {
            Err(ComputeError::Cancelled)
        }

        async fn acknowledge(&self, _: RequestId, _: Signed<Acknowledgement>) {}

        async fn collect(&self, _: RequestId, _: QuorumCertificate, _: Signed<Acknowledgement>) -> Result<Collected, ComputeError> {
            Err(ComputeError::Cancelled)
        }

        async fn stop(&self, _: RequestId) {}
    }

    /// Which of these has a place, and who was heard of as silent.
    async fn reserve(nodes: &[Arc<Node>]) -> (Option<Address>, BTreeSet<Address>) {
        let silent = Mutex::<BTreeSet<Address>>::default();
        let reservation = Reservation { request_id: B256::ZERO, model_digest: B256::ZERO, expires_at: 0 };
        let nodes = nodes.iter().map(|node| node.clone() as Arc<dyn Compute>).collect();
        let note = |node| {
            silent.lock().unwrap().insert(node);
        };
        let found = first(nodes, reservation, Duration::from_millis(1), note).await.ok().map(|node| node.address());
        (found, silent.into_inner().unwrap())
    }

    #[tokio::test]
    async fn nodes_that_do_not_answer_hold_nobody_up() {
        let mut nodes: Vec<_> = (0..40).map(|number| Node::new(number, Answer::Never)).collect();
        nodes.push(Node::new(40, Answer::Place));
        let (started, honest) = (Instant::now(), Some(Address::repeat_byte(40)));
        let (found, silent) = reserve(&nodes).await;
        assert!(started.elapsed() < 40 * TIMEOUT, "in turn, each takes as long as it may");
        // Those that were asked last have hardly had time to answer.
        assert_eq!((found, silent.len() >= 15), (honest, true));
        // Those whose silence is known come last, and are not asked.
        nodes.rotate_right(1);
        assert_eq!(reserve(&nodes).await, (honest, BTreeSet::new()));
        assert!(nodes.iter().skip(1).all(|node| node.asked.load(Ordering::Relaxed) == 1));
    }

    #[tokio::test]
    async fn many_that_do_not_answer_are_passed_in_a_few_rounds() {
        let mut nodes: Vec<_> = (0..40).map(|number| Node::new(number, Answer::Never) as Arc<dyn Compute>).collect();
        nodes.push(Node::new(40, Answer::Place));
        let (started, reservation) =
            (Instant::now(), Reservation { request_id: B256::ZERO, model_digest: B256::ZERO, expires_at: 0 });
        first(nodes, reservation, HEDGE_AFTER, |_| {}).await.unwrap();
        // One after the other took twelve seconds.
        assert!(started.elapsed() < 20 * HEDGE_AFTER, "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn nodes_that_have_no_place_are_passed_and_no_more_are_asked_than_it_takes() {
        let mut nodes: Vec<_> = (0..100).map(|number| Node::new(number, Answer::Busy)).collect();
        assert_eq!(reserve(&nodes).await, (None, BTreeSet::new()));
        nodes.push(Node::new(100, Answer::Place));
        assert_eq!(reserve(&nodes).await, (Some(Address::repeat_byte(100)), BTreeSet::new()));
        nodes.rotate_right(1);
        assert_eq!(reserve(&nodes).await, (Some(Address::repeat_byte(100)), BTreeSet::new()));
        assert!(nodes.iter().skip(1).all(|node| node.asked.load(Ordering::Relaxed) == 2));
        assert_eq!(reserve(&[]).await, (None, BTreeSet::new()));
    }
}
