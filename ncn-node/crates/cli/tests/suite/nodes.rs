//! Nodes as they run: started by their builders, ended by `shutdown`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ncn_client::grpc::GrpcRegistry;
use ncn_core::{Directory as _, FeeSplit, Model, NodeQuery, Subnet, SubnetModel, membership::LIVENESS_SECONDS};
use ncn_devnet::quickstart;
use ncn_executor::EngineExecutor;
use ncn_node::{
    compute::ComputeNode,
    gateway::Gateway,
    registry::{RegistryNode, ValidatorNode},
    server::LOOPBACK,
    store::{MemoryStore, SharedStore},
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
    // Well before a registry would forget who is not heard of.
    let left = async |count| {
        let started = Instant::now();
        eventually("a node leaves", async || registered().await == count).await;
        assert!(started.elapsed() < Duration::from_secs(LIVENESS_SECONDS), "it was forgotten, and did not leave");
    };

    let mut validators = Vec::new();
    for signer in chain.validators.clone() {
        let validator = ValidatorNode::builder(signer.clone(), connect(), chain.ledger(signer));
        validators.push(validator.start().await.unwrap());
        assert_eq!(registered().await, validators.len());
    }

    let (owner, files) = (key(), tempfile::tempdir().unwrap());
    let package = quickstart::unpack(files.path()).unwrap();
    let subnet = Subnet {
        owner: owner.address(),
        name: "nodes".into(),
        gateways: Vec::new(),
        models: vec![SubnetModel::of(&package.model)],
        split: FeeSplit::default(),
        version: 1,
    };
    chain.create_subnet(&owner, &subnet.name).await;
    let path = files.path().join("gateway.redb");
    let store = SharedStore::open(&path).unwrap();
    let gateway = Gateway::builder(owner.clone(), subnet, chain.ledger(owner), connect(), store);
    let gateway = gateway.manifests(vec![quickstart::MANIFEST.into()]).listen(LOOPBACK).start().await.unwrap();
    assert_eq!(registered().await, 4);

    let (signer, id) = (key(), gateway.gateway().subnet_id());
    let executor = Arc::new(EngineExecutor::built_in());
    let compute = ComputeNode::builder(signer.clone(), id, executor, chain.ledger(signer), connect()).models(vec![package]);
    let compute = compute.gateway(gateway.gateway().address(), gateway.url().unwrap()).start().await.unwrap();
    assert_eq!(registered().await, 5);
    eventually("the compute node has a session", async || gateway.gateway().attached().len() == 1).await;

    compute.shutdown().await;
    left(4).await;
    eventually("the session has ended", async || gateway.gateway().attached().is_empty()).await;
    gateway.shutdown().await;
    left(3).await;
    eventually("another gateway can have the store", async || SharedStore::open(&path).is_ok()).await;
    for (ended, validator) in validators.into_iter().enumerate() {
        validator.shutdown().await;
        left(2 - ended).await;
    }
    let client = connect();
    registry.shutdown().await;
    eventually("nobody listens any more", async || client.discover(NodeQuery::default()).await.is_err()).await;
}

#[tokio::test]
async fn two_gateways_of_one_key_do_not_run_beside_each_other() {
    let chain = Chain::new(3).await;
    let registry = RegistryNode::builder(chain.ledger(key())).start().await.unwrap();
    let connect = || Arc::new(GrpcRegistry::new(&registry.url()).unwrap());
    let mut validators = Vec::new();
    for signer in chain.validators.clone() {
        validators.push(ValidatorNode::builder(signer.clone(), connect(), chain.ledger(signer)).start().await.unwrap());
    }
    let owner = key();
    chain.create_subnet(&owner, "one").await;
    let start = |models: Vec<Model>| {
        let subnet = Subnet {
            owner: owner.address(),
            name: "one".into(),
            gateways: Vec::new(),
            models: models.iter().map(SubnetModel::of).collect(),
            split: FeeSplit::default(),
            version: 1,
        };
        let store = SharedStore::new(MemoryStore::default()).unwrap();
        let gateway = Gateway::builder(owner.clone(), subnet, chain.ledger(owner.clone()), connect(), store);
        gateway.manifests(models.iter().map(|model| model.bytes().clone()).collect()).listen(LOOPBACK).start()
    };
    let models = || vec![quickstart::model().unwrap()];
    let first = start(models()).await.unwrap();
    let refused = start(Vec::new()).await.map(drop).unwrap_err();
    let says = format!("serves at {} already", first.url().unwrap());
    assert!(refused.to_string().contains(&says), "{refused}");
    // One that crashed is still registered, and does not answer.
    drop(first);
    eventually("its place is free", async || start(models()).await.is_ok()).await;
}
