//! What people see of an answer.

use std::io;

use ncn_core::{Value, Values};

/// One line for each value.
pub(super) fn print_output(out: &mut impl io::Write, output: &Values) -> io::Result<()> {
    for (name, value) in output.iter() {
        match value {
            Value::Text(text) => writeln!(out, "  {name}: {text}")?,
            Value::Tensor(tensor) => match tensor.to_f32() {
                Ok(values) => {
                    let values: Vec<_> = values.iter().map(|value| format!("{value:.4}")).collect();
                    writeln!(out, "  {name}: [{}]", values.join(", "))?;
                }
                Err(_) => writeln!(out, "  {name}: {tensor:?}")?,
            },
            other => writeln!(out, "  {name}: {} bytes", other.size())?,
        }
    }
    Ok(())
}
