use std::{sync::Arc, time::Duration};

use alloy_primitives::B256;
use futures::{StreamExt as _, future::join_all};

use super::{Rules, Verdict};
use crate::{Execution, Executor, ExecutorError, ExecutorExt as _, Units, Values, executor::ModelPackage};

/// What the suite for [`Executor`] needs.
#[derive(Clone, Debug)]
pub struct ExecutorFixture {
    /// A model that the executor runs, and that gives equal outputs for equal inputs; not loaded yet.
    pub package: ModelPackage,
    /// A copy of it with a file that is not what its manifest says; `None` for formats without files.
    pub corrupt: Option<ModelPackage>,
    /// Inputs that the model takes.
    pub inputs: Values,
    /// The outputs that these inputs give, in whole or in part.
    pub outputs: Values,
    /// Inputs that the manifest does not allow.
    pub bad_inputs: Values,
}

/// Runs the suite for [`Executor`].
pub async fn executor(executor: &dyn Executor, fixture: &ExecutorFixture) -> Verdict {
    let mut rules = Rules::default();
    let digest = fixture.package.model.digest();
    let execution = |inputs: &Values| Execution {
        model_digest: digest,
        inputs: inputs.clone(),
        parameters: "{}".into(),
        // Many runs at once are slow on a machine that is slow and busy.
        time_limit: Duration::from_mins(5),
    };
    let format = fixture.package.model.manifest().format;
    rules.check("an executor says what it can run", executor.formats().contains(&format), executor.formats())?;
    let early = executor.run_to_end(execution(&fixture.inputs)).await;
    rules.check("what is not loaded does not run", early == Err(ExecutorError::NotLoaded(digest)), early)?;

    if let Some(corrupt) = &fixture.corrupt {
        let refused = executor.load(corrupt).await;
        rules.check("a corrupt file is never loaded", matches!(refused, Err(ExecutorError::InvalidModel(_))), refused)?;
        let missing = ModelPackage { directory: corrupt.directory.join("missing"), model: Arc::clone(&corrupt.model) };
        let refused = executor.load(&missing).await;
        rules.check("a missing file is said so", matches!(refused, Err(ExecutorError::InvalidModel(_))), refused)?;
    }
    rules.ok("a model loads", executor.load(&fixture.package).await)?;
    rules.ok("loading again changes nothing", executor.load(&fixture.package).await)?;

    let (values, usage) = rules.ok("a model runs", executor.run_to_end(execution(&fixture.inputs)).await)?;
    for (name, expected) in fixture.outputs.iter() {
        rules.check("outputs are what the model gives", values.get(name) == Some(expected), (name, &values))?;
    }
    rules.check("usage is counted", usage.input_units > 0 && usage.output_units > 0, usage)?;
    let refused = executor.run_to_end(execution(&fixture.bad_inputs)).await;
    rules.check("bad inputs are refused by name", matches!(refused, Err(ExecutorError::InvalidInput(_))), refused)?;

    let runs = join_all((0..16).map(|_| executor.run_to_end(execution(&fixture.inputs)))).await;
    for run in runs {
        let (again, _) = rules.ok("a model runs many times at once", run)?;
        rules.check("equal inputs give equal outputs", again == values, &again)?;
    }
    let mut outputs = rules.ok("a model runs", executor.run(execution(&fixture.inputs)).await)?;
    let (mut ended, mut so_far) = (false, Units::default());
    while let Some(chunk) = outputs.next().await {
        rules.check("nothing comes after the end", !ended, &chunk)?;
        let chunk = rules.ok("a good run has no errors", chunk)?;
        let units = chunk.usage.units();
        rules.check("usage only grows", units.input >= so_far.input && units.output >= so_far.output, chunk.usage)?;
        (ended, so_far) = (chunk.is_last(), units);
    }
    rules.check("an output says why it ends", ended, ())?;
    drop(executor.run(execution(&fixture.inputs)).await);
    rules.ok("a dropped run does not disturb the next", executor.run_to_end(execution(&fixture.inputs)).await)?;

    rules.ok("a model is let go of", executor.unload(&digest).await)?;
    rules.ok("letting go again changes nothing", executor.unload(&digest).await)?;
    rules.ok("letting go of an unknown model changes nothing", executor.unload(&B256::repeat_byte(9)).await)?;
    let gone = executor.run_to_end(execution(&fixture.inputs)).await;
    rules.check("what is let go of does not run", gone == Err(ExecutorError::NotLoaded(digest)), gone)?;
    Ok(rules.0)
}
