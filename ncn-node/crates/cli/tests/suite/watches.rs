//! Watching the registry's nodes.

use futures::{StreamExt as _, future::join_all};
use ncn_client::{grpc::GrpcRegistry, unix_now};
use ncn_core::{
    Confinement, Directory as _, NodeChange, NodeQuery, NodeRecord, NodeRole, Signed,
    membership::{LIVENESS_SECONDS, MAX_RECORD_SECONDS},
};
use ncn_node::registry::RegistryNode;

use crate::{
    scene::{Chain, key},
    wait::in_time,
};

#[tokio::test]
async fn silence_is_told_over_the_wire() {
    let chain = Chain::new(3).await;
    let running = RegistryNode::builder(chain.ledger(key())).start().await.unwrap();
    let registry = GrpcRegistry::new(&running.url()).unwrap();
    let (node, domain) = (key(), chain.ledger(key()).trust_root().await.unwrap().domain);
    let record = NodeRecord {
        node: node.address(),
        role: NodeRole::Compute,
        subnet: [1; 32].into(),
        endpoint: String::new(),
        models: vec![[2; 32].into()],
        confinement: Confinement::None,
        sequence: 1,
        expires_at: unix_now() + MAX_RECORD_SECONDS / 2,
    };
    let record = Signed::sign(record, &domain, &*node).await.unwrap();
    let before = unix_now();
    registry.register(record.clone()).await.unwrap();
    let mut changes = registry.watch(NodeQuery::default()).await.unwrap();
    let mut next = async || in_time("a change", changes.next()).await.unwrap().unwrap();
    assert_eq!(
        [next().await, next().await, next().await],
        [NodeChange::Live(record.clone()), NodeChange::Synced, NodeChange::Gone(node.address())]
    );
    let silent = unix_now() - before;
    assert!(silent >= LIVENESS_SECONDS, "after {silent} s");

    let others = join_all((0..3).map(|_| registry.watch(NodeQuery::default()))).await;
    running.shutdown().await;
    for changes in others {
        let mut errors = changes.unwrap().filter_map(|change| std::future::ready(change.err()));
        let ended = in_time("the watch ends", errors.next()).await;
        assert!(ended.is_none_or(|error| error.is_retryable()));
    }
}
