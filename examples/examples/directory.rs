//! A directory of one's own: the nodes of another one, as far as they are on a list.
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use futures::StreamExt as _;
use ncn_client::core::{
    Address, Deregistration, Directory, Heartbeat, NodeChange, NodeChanges, NodeQuery, NodeRecord, NodeRole, RegistryError, Signed,
};
use ncn_client::grpc::GrpcRegistry;
use ncn_devnet::LocalNetwork;

struct Listed {
    inner: Arc<dyn Directory>,
    list: Vec<Address>,
}

#[async_trait]
impl Directory for Listed {
    async fn register(&self, record: Signed<NodeRecord>) -> Result<(), RegistryError> {
        self.inner.register(record).await
    }

    async fn heartbeat(&self, heartbeat: Signed<Heartbeat>) -> Result<(), RegistryError> {
        self.inner.heartbeat(heartbeat).await
    }

    async fn deregister(&self, deregistration: Signed<Deregistration>) -> Result<(), RegistryError> {
        self.inner.deregister(deregistration).await
    }

    async fn discover(&self, query: NodeQuery) -> Result<Vec<Signed<NodeRecord>>, RegistryError> {
        let mut found = self.inner.discover(query).await?;
        found.retain(|record| self.list.contains(&record.message.node));
        Ok(found)
    }

    async fn watch(&self, query: NodeQuery) -> Result<NodeChanges, RegistryError> {
        let list = self.list.clone();
        let changes = self.inner.watch(query).await?.filter(move |change| {
            let is_listed = match change {
                Ok(NodeChange::Live(record)) => list.contains(&record.message.node),
                // That a node is gone which was never there changes nothing.
                _ => true,
            };
            std::future::ready(is_listed)
        });
        Ok(changes.boxed())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    ncn_executor::worker::init();
    let network = LocalNetwork::start().await?;
    let compute = network.compute_addresses();
    let url = network.registry_urls().into_iter().next().unwrap_or_default();
    let all: Arc<dyn Directory> = Arc::new(GrpcRegistry::new(&url)?);
    let listed = Listed { inner: all.clone(), list: compute.into_iter().take(1).collect() };
    let query = NodeQuery { role: Some(NodeRole::Compute), ..NodeQuery::default() };
    println!("{} of {} nodes are listed", listed.discover(query).await?.len(), all.discover(query).await?.len());
    Ok(())
}
