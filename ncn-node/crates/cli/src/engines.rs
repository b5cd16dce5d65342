//! What commands that run models are given: models, engines, and how they are confined.

use std::{path::PathBuf, sync::Arc};

use ncn_core::{Executor, executor::ModelPackage};
#[cfg(feature = "ort")]
use ncn_executor::onnxruntime::{Device, Search};
use ncn_executor::{
    ApiKey, EngineCatalog, MachineOptions, OpenAiOptions, WorkerOptions, WorkerProgram,
    sandbox::{self, SandboxMode},
};

use crate::{
    Failure,
    model::{self, StoreArguments},
    sanitize, say,
};

#[derive(clap::Args)]
pub(crate) struct EngineArguments {
    /// How much confinement of models is insisted on: strict, reduced, permissive or disabled
    #[arg(long, value_name = "MODE", default_value_t)]
    sandbox: SandboxMode,
    #[command(flatten)]
    search: SearchArguments,
}

/// Where engines are looked for.
#[derive(clap::Args)]
pub(crate) struct SearchArguments {
    /// ONNX Runtime's library, or the directory that it is in; it is looked for by default
    #[cfg(feature = "ort")]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// What ONNX Runtime computes on: cpu, cuda, or cuda:NUMBER
    #[cfg(feature = "ort")]
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: Device,
    /// The Python interpreter that runs models in Python; NCN_PYTHON or python3 by default
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// The base URL of an engine with OpenAI's HTTP interface, such as http://127.0.0.1:8000/v1
    #[arg(long, value_name = "URL")]
    engine: Option<String>,
    /// The file with that engine's API key
    #[arg(long, value_name = "FILE", requires = "engine")]
    engine_key: Option<PathBuf>,
}

impl SearchArguments {
    /// What was named is used or refused; another engine must not take its place unnoticed.
    fn check(&self, machine: &EngineCatalog) -> Result<(), Failure> {
        let named = [
            ("--engine", EngineCatalog::OVER_HTTP, self.engine.is_some()),
            #[cfg(feature = "ort")]
            ("--onnxruntime", EngineCatalog::ONNX_RUNTIME, self.onnxruntime.is_some()),
            #[cfg(feature = "ort")]
            ("--device", EngineCatalog::ONNX_RUNTIME, self.device != Device::Cpu),
        ];
        for (option, name, _) in named.into_iter().filter(|(_, _, is_named)| *is_named) {
            let engines = machine.engines().iter().filter(|engine| engine.name == name);
            if let Some(Err(problem)) = engines.map(|engine| engine.found.as_ref()).reduce(Result::or) {
                return Err(Failure::Input(format!("{option}: {problem}")));
            }
        }
        Ok(())
    }

    pub(crate) async fn detect(&self, program: &WorkerProgram) -> EngineCatalog {
        let openai = self.engine.clone().map(|url| OpenAiOptions { url, api_key: self.engine_key.clone().map(ApiKey::File) });
        let options = MachineOptions {
            #[cfg(feature = "ort")]
            onnxruntime: Search { library: self.onnxruntime.clone(), python: self.python.clone() },
            #[cfg(feature = "ort")]
            device: self.device,
            python: self.python.clone(),
            openai,
            ..MachineOptions::default()
        };
        EngineCatalog::detect(program, &options).await
    }
}

impl EngineArguments {
    /// An executor for these models. Says which engine runs each, and why; refuses a model that none runs.
    pub(crate) async fn executor(&self, packages: &[ModelPackage]) -> Result<Arc<dyn Executor>, Failure> {
        let program = WorkerProgram::current().map_err(Failure::failed)?;
        let machine = self.search.detect(&program).await;
        self.search.check(&machine)?;
        for ModelPackage { model, .. } in packages {
            let (manifest, choice) = (model.manifest(), machine.choice(model.manifest().format));
            if choice.engine.is_none() {
                return Err(Failure::Failed(format!("model {}: nothing runs it here: {choice}", manifest.name)));
            }
            say(&sanitize(&format!("{} {} runs on {choice}", manifest.name, manifest.version)));
        }
        let sandbox = sandbox::open(self.sandbox, &program.path).map_err(Failure::failed)?;
        // What this node announces holds for each worker, whatever happens later.
        let options = WorkerOptions { at_least: sandbox.confinement(), ..WorkerOptions::default() };
        Ok(machine.executor(sandbox, options))
    }
}

impl EngineArguments {
    /// Loads a package as a compute node would, where something here runs it.
    pub(crate) async fn try_out(&self, package: &ModelPackage) -> Result<(), Failure> {
        let program = WorkerProgram::current().map_err(Failure::failed)?;
        let machine = self.search.detect(&program).await;
        self.search.check(&machine)?;
        let choice = machine.choice(package.model.manifest().format);
        if choice.engine.is_none() {
            say(&sanitize(&format!("not tried: nothing runs it here: {choice}")));
            return Ok(());
        }
        let sandbox = sandbox::open(self.sandbox, &program.path).map_err(Failure::failed)?;
        let executor = machine.executor(sandbox, WorkerOptions::default());
        executor.load(package).await.map_err(|error| Failure::Failed(format!("it was packed, and does not load: {error}")))?;
        say(&sanitize(&format!("it loads, on {choice}")));
        Ok(())
    }
}

#[derive(clap::Args)]
pub(crate) struct ModelArguments {
    /// A model: a package's directory, with a / in it, or the name, NAME@VERSION or digest of one in the store; several may be given
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    store: StoreArguments,
}

impl ModelArguments {
    /// The models that were named. What the store lacks is fetched from where the gateway says.
    pub(crate) async fn packages(&self, gateway: Option<&str>) -> Result<Vec<ModelPackage>, Failure> {
        let mut packages = Vec::new();
        for reference in &self.models {
            // A directory that happens to be called like a model must not be taken for it.
            packages.push(if reference.contains('/') {
                model::is_package("--model", reference.as_ref())?;
                ModelPackage::open(reference).map_err(|error| Failure::Input(format!("--model: {error}")))?
            } else {
                let store = self.store.open()?;
                if gateway.is_some() && store.find(reference).map_or(true, |stored| !stored.missing.is_empty()) {
                    model::tell(
                        &model::pull(&store, reference, &[], gateway.map_or(model::Who::Nobody, model::Who::Gateway)).await?,
                    )?;
                }
                store.package(reference).await?
            });
        }
        Ok(packages)
    }
}
