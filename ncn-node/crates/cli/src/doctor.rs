//! `ncn doctor`: what this machine can do, and what to do about the rest.

use std::{
    io::{self, Write as _},
    path::Path,
};

use ncn_core::{Confinement, model::ModelFormat};
use ncn_executor::{
    Choice, EngineCatalog, WorkerProgram,
    sandbox::{self, HELPER, HELPER_VARIABLE},
};
use serde_json::{Value, json};

use crate::{Failure, block_on, engines::SearchArguments, sanitize};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    search: SearchArguments,
}

/// Something that this machine has or lacks.
struct Item {
    name: String,
    /// What was found, or why it is missing.
    found: Result<String, String>,
    /// What to do when it is missing.
    remedy: Option<String>,
}

impl Item {
    fn json(&self) -> Value {
        let (found, missing) = match &self.found {
            Ok(found) => (Some(found), None),
            Err(missing) => (None, Some(missing)),
        };
        json!({ "name": self.name, "ok": self.found.is_ok(), "found": found, "missing": missing, "remedy": self.remedy })
    }
}

/// What belongs together.
struct Section {
    title: &'static str,
    items: Vec<Item>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let program = WorkerProgram::current().map_err(Failure::failed)?;
        let (level, refused, confinement) = confinement(&program.path);
        let machine = arguments.search.detect(&program).await;
        let sections = [confinement, engines(&machine), formats(&machine)];
        print(arguments, level, refused.as_deref(), &sections)?;
        refused.map_or(Ok(()), |why| Err(Failure::Failed(format!("models cannot be confined by every layer here: {why}"))))
    })
}

/// The level that is reached, why not the strict one, and each layer.
fn confinement(program: &Path) -> (Confinement, Option<String>, Section) {
    let examined = sandbox::diagnose(program);
    let helper = examined.helper.map(|path| path.display().to_string());
    let mut items = vec![Item {
        name: "helper program".into(),
        remedy: helper.is_none().then(|| {
            format!(
                "install `{HELPER}` beside `ncn` or in PATH (`cargo build --release -p {HELPER}`), or name it in {HELPER_VARIABLE}"
            )
        }),
        found: helper.ok_or_else(|| "not found; no layer can be tried without it".into()),
    }];
    let layers = examined.layers.unwrap_or_else(|why| {
        // Said already, where it is for want of the helper.
        if items.iter().all(|item| item.found.is_ok()) {
            items.push(Item { name: "layers".into(), found: Err(why), remedy: None });
        }
        Vec::new()
    });
    items.extend(layers.into_iter().map(|layer| Item {
        name: layer.name.into(),
        remedy: layer.missing.is_some().then(|| layer.remedy.into()),
        found: layer.missing.map_or_else(|| Ok(String::new()), Err),
    }));
    (examined.level, examined.refused, Section { title: "confinement", items })
}

fn engines(machine: &EngineCatalog) -> Section {
    let items = machine.engines().iter().map(|engine| Item {
        name: engine.name.clone(),
        found: engine.found.clone(),
        // An engine says it with the reason.
        remedy: None,
    });
    Section { title: "engines", items: items.collect() }
}

/// What runs each format of models, and why.
fn formats(machine: &EngineCatalog) -> Section {
    let items = ModelFormat::RUN.into_iter().map(|format| {
        let Choice { engine, why } = machine.choice(format);
        let remedy = (format == ModelFormat::OpenAi && engine.is_none()).then(|| "name one with --engine URL".into());
        Item { name: format.to_string(), found: engine.ok_or(why), remedy }
    });
    Section { title: "models", items: items.collect() }
}

fn print(arguments: &Arguments, level: Confinement, refused: Option<&str>, sections: &[Section]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if arguments.json {
        let mut all = json!({ "level": level, "strict": level == Confinement::Full, "refused": refused });
        for section in sections {
            if let Some(all) = all.as_object_mut() {
                all.insert(section.title.into(), section.items.iter().map(Item::json).collect());
            }
        }
        writeln!(out, "{all}")?;
    } else {
        for section in sections {
            writeln!(out, "{}", section.title)?;
            let width = section.items.iter().map(|item| item.name.len()).max().unwrap_or_default();
            for item in &section.items {
                let (mark, what) = match &item.found {
                    Ok(found) => ("ok", found),
                    Err(missing) => ("no", missing),
                };
                writeln!(out, "{}", format!("  {mark}  {:<width$}  {}", sanitize(&item.name), sanitize(what)).trim_end())?;
                if let Some(remedy) = &item.remedy {
                    writeln!(out, "      {:<width$}  remedy: {remedy}", "")?;
                }
            }
            writeln!(out)?;
        }
        writeln!(out, "level: {level}")?;
    }
    out.flush()
}
