//! Nodes as they run: started by their builders, ended by `shutdown`.

use std::sync::Arc;

use ncn_client::grpc::GrpcRegistry;
use ncn_core::{Directory as _, FeeSplit, NodeQuery, Subnet, SubnetModel};
use ncn_node::{
    compute::ComputeNode,
    devnet::quickstart,
    executor::EngineExecutor,
    gateway::Gateway,
    registry::{RegistryNode, ValidatorNode},
    server::LOOPBACK,
    store::Store,
};

use crate::{
    scene::{Chain, key},
    wait::eventually,
};

#[tokio::test]
async fn whoever_shuts_down_leaves_the_network_and_frees_its_store() {
    let chain = Chain::new(3).await;
    let registry = RegistryNode::builder(chain.ledger(key())).start().await.unwrap();
    let connect = || Arc::new(GrpcRegistry::new(&registry.url()).unwrap());
    let registered = async || connect().discover(NodeQuery::default()).await.unwrap().len();

    let signer = chain.validators[0].clone();
    let validator = ValidatorNode::builder(signer.clone(), connect(), chain.ledger(signer)).start().await.unwrap();
    assert_eq!(registered().await, 1);

    let (owner, files) = (key(), tempfile::tempdir().unwrap());
    let package = quickstart::unpack(files.path()).unwrap();
    let subnet = Subnet {
        owner: owner.address(),
        name: "nodes".into(),
        models: vec![SubnetModel::of(&package.model)],
        split: FeeSplit::default(),
        version: 1,
    };
    chain.create_subnet(&owner, &subnet.name).await;
    let path = files.path().join("gateway.redb");
    let store = Store::open(&path).unwrap();
    let gateway = Gateway::builder(owner.clone(), subnet, chain.ledger(owner), connect(), store);
    let gateway = gateway.manifests(vec![quickstart::MANIFEST.into()]).listen(LOOPBACK).start().await.unwrap();
    assert_eq!(registered().await, 2);

    let (signer, id) = (key(), gateway.gateway().subnet_id());
    let executor = Arc::new(EngineExecutor::built_in());
    let compute = ComputeNode::builder(signer.clone(), id, executor, chain.ledger(signer), connect()).models(vec![package]);
    let compute = compute.gateway(gateway.gateway().address(), gateway.url().unwrap()).start().await.unwrap();
    assert_eq!(registered().await, 3);
    eventually("the compute node has a session", async || gateway.gateway().attached().len() == 1).await;

    compute.shutdown().await;
    assert_eq!(registered().await, 2);
    eventually("the session has ended", async || gateway.gateway().attached().is_empty()).await;
    gateway.shutdown().await;
    assert_eq!(registered().await, 1);
    eventually("another gateway can have the store", async || Store::open(&path).is_ok()).await;
    validator.shutdown().await;
    assert_eq!(registered().await, 0);
    registry.shutdown().await;
}
