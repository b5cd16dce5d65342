//! The implementations in memory keep their ports' contracts.

use std::{collections::BTreeMap, sync::Arc};

use ncn_core::{
    BatchSettler, ChainView as _, DataType, Executor, Manifest, Model, Payer, PaymentLedger, Registry, Sandbox, Tensor, Transport,
    Validator, Values,
    conformance::{self, ExecutorFixture},
    executor::ModelPackage,
    memory::EchoExecutor,
    message::subnet_id,
};

use crate::scene::{Scene, key};

/// A package without files: one i64 vector in, the same out.
pub(crate) fn echo_fixture() -> ExecutorFixture {
    let manifest = br#"{"name":"echo","version":"1","task":"echo","description":"","licence":"MIT","format":"echo","entry":"",
        "files":[],"inputs":[{"type":"tensor","name":"x","dtype":"i64","shape":["n"]}],"outputs":[{"type":"tensor","name":"x","dtype":"i64","shape":["n"]}],
        "limits":{"memory_bytes":1,"deadline_ms":1000},"price":"1"}"#;
    let tensor = |shape: Vec<usize>| {
        let bytes = vec![7; shape.iter().product::<usize>() * 8];
        Tensor::new(DataType::I64, shape, bytes).unwrap()
    };
    let model = Arc::new(Model::parse(&manifest[..]).unwrap());
    ExecutorFixture {
        package: ModelPackage { model, directory: "/nonexistent".into() },
        corrupt: None,
        inputs: Values::from([("x", tensor(vec![3]))]),
        outputs: Values::from([("x", tensor(vec![3]))]),
        bad_inputs: Values::from([("x", tensor(vec![3, 1]))]),
    }
}

#[tokio::test]
async fn the_memory_ledger() {
    let scene = Scene::new();
    let rules = conformance::ledger(&scene).await.unwrap();
    assert!(rules.len() > 30, "{rules:?}");
    let rules = conformance::payer(&scene).await.unwrap();
    assert!(rules.len() > 20, "{rules:?}");
    let rules = conformance::chain(&scene).await.unwrap();
    assert!(rules.len() > 30, "{rules:?}");
}

#[tokio::test]
async fn a_subnet_on_the_memory_chain_is_its_creators() {
    let chain = Scene::new().chain;
    let owner = chain.ledger(key());
    owner.create_subnet("digits");
    let known = async |id| owner.subnet_owner(id).await.unwrap();
    assert_eq!(known(subnet_id(owner.account(), "digits")).await, Some(owner.account()));
    assert_eq!(known(subnet_id(owner.account(), "letters")).await, None);
}

#[tokio::test]
async fn the_memory_registry() {
    let rules = conformance::registry(&Scene::new()).await.unwrap();
    assert!(rules.len() > 25, "{rules:?}");
}

#[tokio::test]
async fn the_echo_executor() {
    let rules = conformance::executor(&EchoExecutor::default(), &echo_fixture()).await.unwrap();
    assert!(rules.len() > 10, "{rules:?}");
}

/// Parts are composed as trait objects: this does not compile when a port stops being one.
#[test]
fn the_ports_are_object_safe() {
    #[allow(dead_code)]
    struct Parts {
        transport: Arc<dyn Transport>,
        registry: Arc<dyn Registry>,
        validator: Arc<dyn Validator>,
        payer: Arc<dyn Payer>,
        ledger: Arc<dyn PaymentLedger>,
        chain: Arc<dyn BatchSettler>,
        executor: Arc<dyn Executor>,
        sandbox: Arc<dyn Sandbox>,
    }
    let fixture = echo_fixture();
    let manifest: &Manifest = fixture.package.model.manifest();
    let tensors: BTreeMap<_, _> = manifest.prepare(&fixture.inputs, None).unwrap();
    assert_eq!(manifest.finish(tensors.clone(), &tensors).unwrap(), fixture.outputs);
}
