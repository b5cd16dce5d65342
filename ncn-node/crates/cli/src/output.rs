//! What people see of an answer, and keep of it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use ncn_core::{Tensor, Value, Values, compute::MAX_OUTPUT_BYTES};

use serde::{Deserialize, Serialize};

use crate::{Failure, escaped, files::read_within, inputs::extension, npy, sanitize};

/// How many numbers of a tensor a terminal shows: a screen is no place for a thousand.
const SHOWN: usize = 16;

/// The file that says which value is in which other.
const INDEX: &str = "output.json";
/// No output is larger, and a tensor's file has a header.
const MAX_FILE_BYTES: usize = MAX_OUTPUT_BYTES + (64 << 10);

/// Where one of the values is.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// In the same directory.
    file: String,
    /// Of a value that is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct OutputArguments {
    /// Write the output's values into this directory, a file each: texts as .txt, tensors as .npy, files by their type. It has to be
    /// new or empty
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// The directory that the output's values go into.
pub(crate) struct OutputDirectory(PathBuf);

/// The files that the output's values are in, by their names.
pub(crate) type Written = BTreeMap<String, PathBuf>;

impl OutputArguments {
    /// Finds out now what would make writing fail later. A model chooses names: nothing that is there already may be replaced.
    pub(crate) fn prepare(&self) -> Result<Option<OutputDirectory>, Failure> {
        let Some(path) = &self.output else { return Ok(None) };
        let refuse = |problem: String| Failure::Input(format!("--output {}: {problem}", sanitize(&path.display().to_string())));
        fs::create_dir_all(path).map_err(|error| refuse(error.to_string()))?;
        let mut there = fs::read_dir(path).map_err(|error| refuse(error.to_string()))?;
        if there.next().is_some() {
            return Err(refuse("is not empty: name a new directory".into()));
        }
        drop(tempfile::tempfile_in(path).map_err(|error| refuse(format!("cannot write there: {error}")))?);
        Ok(Some(OutputDirectory(path.clone())))
    }
}

impl OutputDirectory {
    /// Writes each value into a file of its own, and which is which.
    pub(crate) fn write(&self, output: &Values) -> Result<Written, Failure> {
        let (mut written, mut index) = (Written::new(), BTreeMap::new());
        for (name, value) in output.iter() {
            let (extension, bytes) = match value {
                Value::Text(text) => ("txt", text.as_bytes().to_vec().into()),
                Value::Tensor(tensor) => ("npy", npy::write(tensor)?.into()),
                Value::File { media_type, data } => (extension(media_type), data.clone()),
                other => return Err(Failure::Failed(format!("{}: {} bytes of an unknown kind", sanitize(name), other.size()))),
            };
            let path = free(&self.0, name, extension);
            let refuse =
                |error| Failure::Failed(format!("paid and served, but --output {} cannot be written: {error}", path.display()));
            fs::write(&path, bytes).map_err(refuse)?;
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            index.insert(name, Entry { file, media_type: media_type(value) });
            written.insert(name.to_owned(), path);
        }
        let index = serde_json::to_string_pretty(&index).map_err(Failure::failed)? + "\n";
        let path = self.0.join(INDEX);
        let refuse =
            |error| Failure::Failed(format!("paid and served, but --output {} cannot be written: {error}", path.display()));
        fs::write(&path, index).map_err(refuse)?;
        Ok(written)
    }
}

/// An output's values, as [`OutputDirectory::write`] left them.
pub(crate) fn read(directory: &Path) -> Result<Values, Failure> {
    let shown = sanitize(&directory.display().to_string());
    let refuse = |file: &str, problem: &str| Failure::Input(format!("--output {shown}: {}: {problem}", sanitize(file)));
    let bytes = |file: &str| {
        let read = read_within(&directory.join(file), MAX_FILE_BYTES).map_err(|error| refuse(file, &error.to_string()))?;
        read.ok_or_else(|| refuse(file, "is larger than any output"))
    };
    let index: BTreeMap<String, Entry> =
        serde_json::from_slice(&bytes(INDEX)?).map_err(|error| refuse(INDEX, &error.to_string()))?;
    let mut output = Values::new();
    for (name, Entry { file, media_type }) in index {
        // A name with a directory in it would lead out of this one.
        if Path::new(&file).file_name() != Some(file.as_ref()) {
            return Err(refuse(INDEX, &format!("{file:?} is no file's name")));
        }
        let data = bytes(&file)?;
        if output.size() + data.len() > MAX_FILE_BYTES {
            return Err(refuse(&file, "makes it larger than any output"));
        }
        let value = match media_type {
            Some(media_type) => Value::File { media_type, data: data.into() },
            None if Path::new(&file).extension().is_some_and(|extension| extension == "npy") => {
                npy::read(&data).map_err(|problem| refuse(&file, &problem))?.into()
            }
            None => Value::Text(String::from_utf8(data).map_err(|_| refuse(&file, "is no UTF-8 text"))?),
        };
        output.insert(name, value);
    }
    Ok(output)
}

fn media_type(value: &Value) -> Option<String> {
    match value {
        Value::File { media_type, .. } => Some(media_type.clone()),
        _ => None,
    }
}

/// A path that no other value has, whatever the name has in it.
fn free(directory: &Path, name: &str, extension: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
    let stem: String = name.chars().take(100).map(plain).collect();
    let numbered = (2..).map(|number: u64| directory.join(format!("{stem}-{number}.{extension}")));
    let mut all = std::iter::once(directory.join(format!("{stem}.{extension}"))).chain(numbered);
    all.find(|path| !path.exists() && !path.ends_with(INDEX)).unwrap_or_default()
}

/// A text of any length and number of lines, as it can be shown on a terminal.
pub(crate) fn prose(text: &str) -> String {
    text.chars().map(|c| if matches!(c, '\n' | '\t') { c.to_string() } else { escaped(c) }).collect()
}

/// Each value by its name. What is in a file is named rather than shown, but for texts.
pub(crate) fn print_output(out: &mut impl io::Write, output: &Values, written: &Written) -> io::Result<()> {
    let shown = if io::stdout().is_terminal() { SHOWN } else { usize::MAX };
    for (name, value) in output.iter() {
        let file = written.get(name).map(|path| sanitize(&path.display().to_string()));
        let name = sanitize(name);
        match (value, file) {
            (Value::Text(text), _) => writeln!(out, "  {name}: {}", prose(text))?,
            (value, Some(file)) => writeln!(out, "  {name}: {}, in {file}", kind(value))?,
            (Value::Tensor(tensor), None) => writeln!(out, "  {name}: {}", numbers(tensor, shown))?,
            (other, None) => writeln!(out, "  {name}: {}; --output DIRECTORY keeps it", kind(other))?,
        }
    }
    Ok(())
}

fn kind(value: &Value) -> String {
    match value {
        Value::Tensor(tensor) => format!("{} {:?}", tensor.data_type(), tensor.shape()),
        Value::File { media_type, data } => format!("{} bytes of {}", data.len(), sanitize(media_type)),
        other => format!("{} bytes", other.size()),
    }
}

/// A tensor's numbers: the first and the last of them, where there are more than so many.
fn numbers(tensor: &Tensor, shown: usize) -> String {
    let of = |values: Vec<String>| {
        if values.len() <= shown {
            return format!("[{}]", values.join(", "));
        }
        let (first, rest) = values.split_at(shown / 2);
        let (_, last) = rest.split_at(rest.len() - shown / 4);
        let all = "all of them by --output DIRECTORY or --json";
        format!("[{}, ..., {}] ({} {:?}; {all})", first.join(", "), last.join(", "), tensor.data_type(), tensor.shape())
    };
    if let Ok(values) = tensor.to_f32() {
        return of(values.iter().map(|value| format!("{value:.4}")).collect());
    }
    if let Ok(values) = tensor.to_i64() {
        return of(values.iter().map(i64::to_string).collect());
    }
    if let Ok(values) = tensor.to_i32() {
        return of(values.iter().map(i32::to_string).collect());
    }
    kind(&Value::Tensor(tensor.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_files_that_no_name_can_put_elsewhere() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("out");
        let arguments = OutputArguments { output: Some(directory.clone()) };
        let tensor = Tensor::from_f32(vec![1, 2], &[0.5, 2.0]).unwrap();
        let mut output = Values::new();
        output.insert("../up", "text");
        output.insert("/up", "another");
        output.insert("image", Value::png(vec![1, 2, 3]));
        output.insert("numbers", tensor.clone());
        let written = arguments.prepare().unwrap().unwrap().write(&output).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 5);
        assert_eq!(read(&directory).unwrap(), output);
        assert_eq!(fs::read_to_string(&written["../up"]).unwrap(), "text");
        assert_eq!(fs::read_to_string(&written["/up"]).unwrap(), "another");
        assert_eq!(fs::read(directory.join("image.png")).unwrap(), [1, 2, 3]);
        assert_eq!(npy::read(&fs::read(directory.join("numbers.npy")).unwrap()).unwrap(), tensor);
        assert!(arguments.prepare().is_err(), "it is not empty any more");
    }

    #[test]
    fn long_tensors_are_elided_on_a_terminal_only() {
        let tensor = Tensor::from_f32(vec![100], &[1.0; 100]).unwrap();
        assert_eq!(numbers(&tensor, usize::MAX).matches("1.0000").count(), 100);
        let short = numbers(&tensor, SHOWN);
        assert_eq!(short.matches("1.0000").count(), 12);
        assert!(short.contains("..., ") && short.contains("f32 [100]"), "{short}");
    }
}
