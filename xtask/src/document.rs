//! The parts of documents that tasks write.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::root;

/// What stands after a part.
const END: &str = "<!-- end -->\n";

/// Puts a text between `begin` and the end's mark, or compares it with what is there: `task` is what writes it.
pub(crate) fn write(document: &str, begin: &str, text: &str, task: &str, check: bool) -> Result<()> {
    let path = root().join(document);
    let whole = fs::read_to_string(&path).with_context(|| format!("cannot read {document}"))?;
    let parts = whole.split_once(begin).and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
    let (before, (written, after)) = parts.with_context(|| format!("{document} has no place between {begin:?} and {END:?}"))?;
    if written == text {
        return Ok(());
    }
    if check {
        bail!("{document} is not up to date: run `cargo xtask {task}` and commit the result");
    }
    fs::write(path, [before, begin, text, END, after].concat()).with_context(|| format!("cannot write {document}"))
}
