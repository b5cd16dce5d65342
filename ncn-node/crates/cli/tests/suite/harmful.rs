//! Models that do harm, through the whole network: their requests fail with a reason and are paid back, others never notice.

use std::{fs, sync::Arc, time::Duration};

use ncn_client::{Client, ClientError, Order};
use ncn_core::{
    Amount, Confinement, DataType, Executor, ExecutorError, ExecutorExt as _, Model, Tensor, Value, Values, executor::ModelPackage,
};
use ncn_devnet::{LocalNetwork, quickstart};
use ncn_executor::{EngineCatalog, EngineExecutor, MachineOptions, WorkerOptions, WorkerProgram, sandbox::NamespaceSandbox};
use serde_json::{Value as Json, json};

use crate::{
    graphs::node,
    integers::{of_integers, package, tensor},
    python::{
        python, talker,
        trouble::{TROUBLE, troubles},
    },
    scene::{helper, key, ncn, network},
    wait::{TIMEOUT, eventually},
};

fn seven() -> Values {
    [("image", Value::png(quickstart::SAMPLE))].into()
}

/// An executor of everything that this machine has, confined by every layer.
async fn executor(options: WorkerOptions) -> Arc<dyn Executor> {
    let python = python().await;
    let options = WorkerOptions { at_least: Confinement::Full, ..options };
    let program = WorkerProgram::new(ncn());
    let (interpreter, worker) = (Some(python.interpreter), Some(python.worker));
    let machine = MachineOptions { python: interpreter, python_worker: worker, ..MachineOptions::default() };
    EngineCatalog::detect(&program, &machine).await.executor(Arc::new(NamespaceSandbox::new(helper()).unwrap()), options)
}

/// The quickstart model with another manifest, in this directory.
pub(crate) fn changed(directory: &std::path::Path, change: impl FnOnce(&mut Json)) -> ModelPackage {
    let package = quickstart::unpack(directory).unwrap();
    let mut manifest: Json = serde_json::from_slice(quickstart::MANIFEST).unwrap();
    change(&mut manifest);
    ModelPackage { model: Arc::new(Model::parse(manifest.to_string()).unwrap()), ..package }
}

/// A client with one token, and what is left of it.
pub(crate) struct Customer {
    client: Client,
    ledger: Arc<ncn_client::evm::EvmLedger>,
}

impl Customer {
    pub(crate) async fn of(network: &LocalNetwork) -> Self {
        let key = key();
        network.funder().transfer(key.address(), Amount::TOKEN).await.unwrap();
        let ledger = Arc::new(network.ledger(key.clone()));
        let client = Client::builder().timeout(TIMEOUT * 5).gateway(network.gateway_url());
        let client = client.payer(ledger.clone()).signer(key).max_price(Amount::TOKEN).build().unwrap();
        Self { client, ledger }
    }

    async fn balance(&self) -> Amount {
        self.ledger.balance(self.ledger.account()).await.unwrap()
    }

    /// Why a request failed that was paid, and paid back.
    pub(crate) async fn fails(&self, model: &str, inputs: Values) -> String {
        let refunded = self.client.infer(model, inputs).await.unwrap_err();
        assert_eq!(self.balance().await, Amount::TOKEN, "{refunded}");
        let ClientError::Refunded { reason, .. } = refunded else { panic!("{refunded}") };
        reason
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn harm_is_paid_back_and_others_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let digits = quickstart::unpack(directory.path()).unwrap();
    // Promises three numbers whatever it gets, which its graph does not deny.
    let same = of_integers(&[node("Identity", &["x"], &["y"], &[])], &[]);
    let wrong = package(&same, &tensor("x", "i64", &json!(["n"])), &tensor("y", "i64", &json!([3])));
    // Trouble may take its time before it shows; only what never ends is given little of it.
    let (harmful, endless) = (talker(&troubles()), talker("while True: pass"));
    let mut manifest: Json = serde_json::from_slice(endless.package.model.bytes()).unwrap();
    (manifest["name"], manifest["limits"]["deadline_ms"]) = ("endless".into(), 5_000.into());
    let model = Arc::new(Model::parse(manifest.to_string()).unwrap());
    let never_ends = ModelPackage { model, ..endless.package.clone() };
    let packages = vec![digits, wrong.package.clone(), harmful.package.clone(), never_ends];
    let network = network().executor(executor(WorkerOptions::default()).await).models(packages).start().await.unwrap();
    assert_eq!(network.confinement(), Confinement::Full);

    let (customer, other) = (Customer::of(&network).await, network.client().await.unwrap().build().unwrap());
    let two = Tensor::new(DataType::I64, vec![2], vec![0; 16]).unwrap();
    let reason = customer.fails("model", [("x", two)].into()).await;
    assert!(reason.contains("has the shape [2], it has to be [3]"), "{reason}");
    let anything = [("say", "")].into();
    let (reason, good) = tokio::join!(customer.fails("endless", anything), other.infer(quickstart::NAME, seven()));
    assert!(reason.contains("deadline"), "{reason}");
    assert_eq!(good.unwrap().output.text("label"), Some("7"));
    for (index, (body, expected)) in TROUBLE.iter().enumerate() {
        let trouble = [("say", index.to_string().as_str())].into();
        let (reason, good) = tokio::join!(customer.fails("test", trouble), other.infer(quickstart::NAME, seven()));
        let expected = expected.replace(" (model.py, line 6, in infer)", "");
        assert!(reason.contains(&expected), "{body}: {reason}");
        assert_eq!(good.unwrap().output.text("label"), Some("7"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_under_the_node_is_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let digits = quickstart::unpack(directory.path()).unwrap();
    let file = directory.path().join(&digits.model.manifest().entry);
    let options = WorkerOptions { idle: Duration::from_millis(100), ..WorkerOptions::default() };
    let network = network().executor(executor(options).await).models(vec![digits]).start().await.unwrap();
    let good = fs::read(&file).unwrap();
    for bad in [&b"no graph"[..], &good[..good.len() / 2], &[&good[1..], &[0]].concat()] {
        fs::write(&file, bad).unwrap();
        // Until the worker that has read the file before is gone.
        eventually("it is not run any more", async || {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let customer = Customer::of(&network).await;
            let Err(error) = Box::pin(customer.client.infer(quickstart::NAME, seven())).await else { return false };
            assert!(matches!(&error, ClientError::Refunded { reason, .. } if reason.contains("fetch it again")), "{error}");
            assert_eq!(customer.balance().await, Amount::TOKEN);
            true
        })
        .await;
    }
    fs::write(&file, good).unwrap();
    let customer = Customer::of(&network).await;
    assert_eq!(customer.client.infer(quickstart::NAME, seven()).await.unwrap().output.text("label"), Some("7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pickle_bomb_among_the_weights_does_not_go_off() {
    let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mark = outside.path().join("mark");
    // What `pickle.loads` does with it is to run a program.
    let bomb = format!("cposix\nsystem\n(Vtouch {}\ntR.", mark.display());
    let module = "import pickle\ndef load(model_dir): return pickle.load(open(model_dir + '/weights.pkl', 'rb')) + 1\ndef infer(inputs): pass";
    fs::write(directory.path().join("weights.pkl"), &bomb).unwrap();
    fs::write(directory.path().join("model.py"), module).unwrap();
    let names = (json!([{ "type": "text", "name": "x" }]), json!([{ "type": "text", "name": "y" }]));
    let package = crate::python::packed(directory, &["model.py", "weights.pkl"], &names.0, &names.1);
    let executor = executor(WorkerOptions::default()).await;
    let digits = tempfile::tempdir().unwrap();
    let digits = quickstart::unpack(digits.path()).map(|package| (package, digits)).unwrap();
    executor.load(&digits.0).await.unwrap();
    let loaded = executor.load(&package.package).await;
    assert!(!mark.exists(), "the bomb went off");
    // The program was not started: there is no way to, and the status says so.
    assert_eq!(loaded, Ok(()), "`system` gives a status, to which 1 can be added");
    let run = ncn_core::Execution {
        model_digest: digits.0.model.digest(),
        inputs: seven(),
        parameters: "{}".into(),
        time_limit: TIMEOUT,
    };
    assert_eq!(executor.run_to_end(run).await.unwrap().0.text("label"), Some("7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_refused_before_anything_is_paid() {
    let network = network().start().await.unwrap();
    let customer = Customer::of(&network).await;
    let order = Order::new(quickstart::NAME, seven()).parameters(r#"{"temperature":1}"#);
    let refused = customer.client.submit(order).await.map(drop).unwrap_err();
    assert!(matches!(&refused, ClientError::Input(error) if error.name == "parameters.temperature"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_does_not_fit_the_graph_is_refused() {
    let executor = EngineExecutor::built_in();
    let tensor = |name: &str, dtype: &str, shape: Json| json!([{ "type": "tensor", "name": name, "dtype": dtype, "shape": shape }]);
    let rows = || json!(["batch", 1, 8, 8]);
    let wrong = [
        ("inputs", tensor("picture", "f32", rows()), "takes no `picture`"),
        ("inputs", tensor("image", "i64", rows()), "has `image` as f32, the manifest as i64"),
        ("inputs", tensor("image", "f32", json!(["batch", 64])), "takes `image` in the shape [any, 1, 8, 8]"),
        ("inputs", tensor("image", "f32", json!(["batch", 1, 8, 9])), "takes `image` in the shape"),
        ("outputs", tensor("score", "f32", json!(["batch", 10])), "gives no `score`"),
    ];
    for (field, value, problem) in wrong {
        let directory = tempfile::tempdir().unwrap();
        let package = changed(directory.path(), |manifest| manifest[field] = value.clone());
        let refused = executor.load(&package).await;
        assert!(matches!(&refused, Err(ExecutorError::InvalidModel(said)) if said.contains(problem)), "{problem}: {refused:?}");
    }
}
