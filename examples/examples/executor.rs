//! A model of one's own, in an engine of one's own: it says a text again, loudly, word by word.
use std::{sync::Arc, time::Duration};

use anyhow::Result;
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_client::core::{
    B256, Confinement, Execution, Executor, ExecutorError, FinishReason, Model, OutputChunk, Usage, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use ncn_client::{InferenceEvent, Order};
use ncn_devnet::LocalNetwork;

/// What the model is: anyone who has its digest knows what they pay for, and how much.
const MANIFEST: &str = r#"{
    "name": "loud", "version": "1.0.0", "task": "text-generation", "description": "Says a text loudly.", "licence": "MIT",
    "format": "echo", "entry": "", "files": [],
    "inputs": [{ "type": "text", "name": "text" }], "outputs": [{ "type": "text", "name": "text" }],
    "limits": { "memory_bytes": 1000000, "deadline_ms": 10000 }, "price": "20000000000000000"
}"#;

struct Loud;

#[async_trait]
impl Executor for Loud {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Echo]
    }

    fn confinement(&self, _: &B256) -> Confinement {
        Confinement::None // it runs in the node's own process, and says so in each receipt
    }

    async fn load(&self, _: &ModelPackage) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn unload(&self, _: &B256) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let text = execution.inputs.text("text").unwrap_or_default().to_uppercase();
        let words: Vec<_> = text.split_whitespace().map(|word| format!("{word}! ")).collect();
        if words.is_empty() {
            return Err(ExecutorError::InvalidInput("text: has no words".into()));
        }
        let last = words.len() - 1;
        // Dropping the stream ends the run: what is said next is never said.
        let parts = stream::iter(words.into_iter().enumerate()).then(move |(index, word)| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let usage = Usage { input_units: 1, output_units: 1, duration_micros: 20_000 };
            let values = Values::from([("text", word.as_str())]);
            Ok(OutputChunk { values, usage, finish: (index == last).then_some(FinishReason::Stop) })
        });
        Ok(parts.boxed())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let package = ModelPackage { model: Arc::new(Model::parse(MANIFEST)?), directory: std::env::temp_dir() };
    let network = LocalNetwork::builder().executor(Arc::new(Loud)).models(vec![package]).start().await?;
    let client = network.client().await?.build()?;
    let order = Order::new("loud", [("text", "pay for what is said")]);
    let mut events = client.submit(order).await?.events().await?;
    while let Some(event) = events.next().await {
        match event? {
            InferenceEvent::Part(part) => print!("{}", part.values.text("text").unwrap_or_default()),
            InferenceEvent::Finished(answer) => println!("({}, {})", answer.finish(), answer.cost()),
            _ => println!(),
        }
    }
    Ok(())
}
