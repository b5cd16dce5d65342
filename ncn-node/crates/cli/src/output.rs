//! What people see of an answer.

use std::io;

use ncn_core::{Value, Values};

use crate::{escaped, sanitize};

/// A text of any length and number of lines, as it can be shown on a terminal.
pub(crate) fn prose(text: &str) -> String {
    text.chars().map(|c| if matches!(c, '\n' | '\t') { c.to_string() } else { escaped(c) }).collect()
}

/// Each value by its name.
pub(crate) fn print_output(out: &mut impl io::Write, output: &Values) -> io::Result<()> {
    for (name, value) in output.iter() {
        let name = sanitize(name);
        match value {
            Value::Text(text) => writeln!(out, "  {name}: {}", prose(text))?,
            Value::Tensor(tensor) => match tensor.to_f32() {
                Ok(values) => {
                    let values: Vec<_> = values.iter().map(|value| format!("{value:.4}")).collect();
                    writeln!(out, "  {name}: [{}]", values.join(", "))?;
                }
                Err(_) => writeln!(out, "  {name}: {tensor:?}")?,
            },
            Value::File { data, .. } => writeln!(out, "  {name}: {} bytes", data.len())?,
            other => writeln!(out, "  {name}: {} bytes", other.size())?,
        }
    }
    Ok(())
}
