//! What a model is run on, from the command line.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use ncn_core::{
    Model, Tensor, Value, Values,
    model::{Dimension, InputSpec, Preprocessing, TensorInput},
};

use crate::{
    Failure,
    files::{MAX_INPUT_BYTES, read_input, read_within, within},
    npy, sanitize,
};

#[derive(clap::Args)]
pub(crate) struct InputArguments {
    /// A file to run it on; NAME says for which of the model's inputs, the next one by default. A tensor is a file that numpy.save wrote,
    /// or plain numbers where the model fixes all sizes
    #[arg(long = "input", value_name = "[NAME=]FILE", required_unless_present = "text")]
    files: Vec<OsString>,
    /// A text to run it on; NAME says for which of the model's inputs, the next one by default. @FILE is what is in a file, - what comes on
    /// standard input, and =TEXT a text that is none of these
    #[arg(long, value_name = "[NAME=]TEXT")]
    text: Vec<String>,
}

/// What was given, read before anybody is asked anything.
pub(crate) struct ParsedInputs {
    files: Vec<(Option<String>, PathBuf, Vec<u8>)>,
    texts: Vec<Text>,
}

/// A text, and which input it is for as far as that is known before the model is.
enum Text {
    /// As it was typed: it may begin with an input's name.
    Typed(String),
    /// From a file or standard input, or typed to be taken as it is.
    Whole(Option<String>, String),
}

impl InputArguments {
    pub(crate) fn read(&self) -> Result<ParsedInputs, Failure> {
        let mut files = Vec::new();
        for file in &self.files {
            // A path may have `=` in it: what exists is a path.
            let bytes = file.as_bytes();
            let split = bytes.iter().position(|byte| *byte == b'=').and_then(|at| Some((bytes.get(..at)?, bytes.get(at + 1..)?)));
            let (name, path) = match split {
                Some((name, path)) if !Path::new(file).exists() => {
                    (Some(String::from_utf8_lossy(name).into_owned()), PathBuf::from(OsStr::from_bytes(path)))
                }
                _ => (None, PathBuf::from(file)),
            };
            let bytes = read_input(&path)?;
            files.push((name, path, bytes));
        }
        let texts = self.text.iter().map(|text| Text::read(text)).collect::<Result<_, _>>()?;
        Ok(ParsedInputs { files, texts })
    }
}

impl ParsedInputs {
    /// The files that were read.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(_, path, _)| path.as_path())
    }

    /// The model's inputs.
    pub(crate) fn inputs(self, model: &Model) -> Result<Values, Failure> {
        let manifest = model.manifest();
        let mut values = Values::new();
        for (name, path, bytes) in self.files {
            let refuse = |problem: String| Failure::Input(format!("--input {}: {problem}", sanitize(&path.display().to_string())));
            let is_free = |input: &&InputSpec| !matches!(input, InputSpec::Text(_)) && values.get(input.name()).is_none();
            let named = |input: &&InputSpec| name.as_ref().is_none_or(|name| input.name() == name);
            let input = manifest.inputs.iter().filter(is_free).find(named);
            let input = input.ok_or_else(|| refuse(format!("the model takes no such file; it takes: {}", names(model))))?;
            values.insert(input.name(), file(input, bytes, &path).map_err(refuse)?);
        }
        for text in self.texts {
            let is_free = |input: &&InputSpec| matches!(input, InputSpec::Text(_)) && values.get(input.name()).is_none();
            let (name, text) = text.split(model)?;
            let input = manifest.inputs.iter().filter(is_free).find(|input| name.as_ref().is_none_or(|name| input.name() == name));
            let refuse = || Failure::Input(format!("--text: the model takes no such text; it takes: {}", names(model)));
            values.insert(input.ok_or_else(refuse)?.name(), text);
        }
        manifest.check(&values).map_err(|error| Failure::Input(format!("input {}: {}", error.name, error.problem)))?;
        Ok(values)
    }
}

impl Text {
    fn read(text: &str) -> Result<Self, Failure> {
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) if is_name(name) => (Some(name.to_owned()), rest),
            _ => (None, text),
        };
        let refuse = |problem: &str| Failure::Input(format!("--text {}: {problem}; a text as it is begins with =", sanitize(text)));
        let bytes = match rest.strip_prefix('@') {
            Some(path) => read_within(Path::new(path), MAX_INPUT_BYTES).map_err(|error| refuse(&error.to_string()))?,
            None if rest == "-" => within(&mut io::stdin().lock(), MAX_INPUT_BYTES)?,
            None => {
                return Ok(match text.strip_prefix('=') {
                    Some(whole) => Self::Whole(None, whole.to_owned()),
                    None => Self::Typed(text.to_owned()),
                });
            }
        };
        let bytes = bytes.ok_or_else(|| refuse(&format!("has more than {MAX_INPUT_BYTES} bytes")))?;
        Ok(Self::Whole(name, String::from_utf8(bytes).map_err(|_| refuse("is no UTF-8 text"))?))
    }

    /// The name of the input that it is for, and the text.
    fn split(self, model: &Model) -> Result<(Option<String>, String), Failure> {
        let inputs = || model.manifest().inputs.iter();
        let text = match self {
            Self::Whole(name, text) => return Ok((name, text)),
            Self::Typed(text) => text,
        };
        let Some((name, rest)) = text.split_once('=').filter(|(name, _)| is_name(name)) else { return Ok((None, text)) };
        // A text may have `=` in it: only an input's name is one. What is nearly one was mistyped, and would be paid for as a text.
        if inputs().any(|input| input.name() == name) {
            return Ok((Some(name.to_owned()), rest.to_owned()));
        }
        let is_near = |input: &InputSpec| strsim::damerau_levenshtein(input.name(), name) <= (input.name().len() / 3).max(1);
        let texts = inputs().filter(|input| matches!(input, InputSpec::Text(_))).count();
        if inputs().any(is_near) || (texts > 1 && !name.contains(' ')) {
            let problem = format!("the model has no input `{name}`; it takes: {}; a text as it is begins with =", names(model));
            return Err(Failure::Input(format!("--text {}: {problem}", sanitize(&text))));
        }
        Ok((None, text))
    }
}

/// Whether this may be an input's name.
fn is_name(text: &str) -> bool {
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(begins) && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | ':' | '/'))
}

fn names(model: &Model) -> String {
    model.manifest().inputs.iter().map(InputSpec::name).collect::<Vec<_>>().join(", ")
}

/// A file as this input.
fn file(input: &InputSpec, bytes: Vec<u8>, path: &Path) -> Result<Value, String> {
    let InputSpec::Tensor(TensorInput { dtype, shape, from, .. }) = input else {
        return Ok(Value::File { media_type: media_type(path).into(), data: bytes.into() });
    };
    match from {
        Some(Preprocessing::Image { .. }) => Ok(Value::png(bytes)),
        Some(Preprocessing::Bytes { .. }) => Ok(Value::File { media_type: media_type(path).into(), data: bytes.into() }),
        // What is in it is checked with all else that was given.
        _ if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy")) => npy::read(&bytes).map(Value::from),
        _ => {
            let fixed = |dimension: &Dimension| match dimension {
                Dimension::Fixed(size) => Ok(*size),
                Dimension::Named(name) => Err(format!(
                    "the size of `{name}` is not known for a file of plain numbers: give one that numpy.save wrote, .npy"
                )),
            };
            let shape = shape.iter().map(fixed).collect::<Result<_, _>>()?;
            Ok(Tensor::new(*dtype, shape, bytes).map_err(|error| error.to_string())?.into())
        }
    }
}

/// What files of which names hold; of several names for one, the first is given.
const MEDIA: [(&str, &str); 11] = [
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
    ("webp", "image/webp"),
    ("gif", "image/gif"),
    ("wav", "audio/wav"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("txt", "text/plain"),
    ("md", "text/plain"),
    ("json", "application/json"),
];

/// By the file's name.
fn media_type(path: &Path) -> &'static str {
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    let known = MEDIA.iter().find(|(name, _)| extension.as_deref() == Some(name));
    known.map_or("application/octet-stream", |(_, media_type)| media_type)
}

/// How the name of a file ends that holds this.
pub(crate) fn extension(media_type: &str) -> &'static str {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    MEDIA.iter().find(|(_, known)| essence.eq_ignore_ascii_case(known)).map_or("bin", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(texts: &[&str], inputs: &[&str]) -> Result<Vec<(String, String)>, String> {
        let inputs: Vec<_> = inputs.iter().map(|name| format!(r#"{{"type":"text","name":"{name}","optional":true}}"#)).collect();
        let model = Model::parse(format!(
            r#"{{"name":"m","version":"1","task":"t","description":"d","licence":"MIT","format":"openai","entry":"m","files":[],
            "inputs":[{}],"outputs":[{{"type":"text","name":"text"}}],"limits":{{"memory_bytes":0,"deadline_ms":1000}},"price":"1"}}"#,
            inputs.join(",")
        ));
        let text = texts.iter().map(|text| (*text).to_owned()).collect();
        let read = InputArguments { files: Vec::new(), text }.read().and_then(|read| read.inputs(&model.unwrap()));
        let values = read.map_err(Failure::problem)?;
        Ok(values.iter().map(|(name, value)| (name.to_owned(), value.as_text().unwrap().to_owned())).collect())
    }

    #[test]
    fn texts_are_typed_or_read_and_mistyped_names_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "of a file").unwrap();
        let at = format!("@{}", file.path().display());
        let named = format!("prompt={at}");
        let chat = ["prompt", "note"];
        for (text, inputs, name, expected) in [
            ("hello", &chat[..], "prompt", "hello"),
            ("note=a=b", &chat, "note", "a=b"),
            ("1 + 1 = 2", &chat, "prompt", "1 + 1 = 2"),
            ("x=1", &chat[..1], "prompt", "x=1"),
            ("=x=1", &chat, "prompt", "x=1"),
            ("=@home", &chat, "prompt", "@home"),
            ("https://a.b/?c=d", &chat[..1], "prompt", "https://a.b/?c=d"),
            (&at, &chat, "prompt", "of a file"),
            (&named, &chat, "prompt", "of a file"),
        ] {
            assert_eq!(given(&[text], inputs).unwrap(), [(name.to_owned(), expected.to_owned())], "{text}");
        }
        for (text, inputs) in
            [("notte=b", &chat[..]), ("promt=hello", &chat[..1]), ("system=be brief", &chat), ("prompt=@/no/such/file", &chat)]
        {
            let refused = given(&[text], inputs).unwrap_err();
            assert!(refused.contains("begins with ="), "{text}: {refused}");
        }
    }

    #[test]
    fn tensors_of_any_size_come_from_files_of_numpy() {
        let manifest = format!(
            r#"{{"name":"m","version":"1","task":"t","description":"d","licence":"MIT","format":"onnx","entry":"m",
            "files":[{{"path":"m","bytes":0,"sha256":"{}"}}],
            "inputs":[{{"type":"tensor","name":"x","dtype":"f32","shape":["n",2]}}],"outputs":[{{"type":"text","name":"text"}}],
            "limits":{{"memory_bytes":0,"deadline_ms":1000}},"price":"1"}}"#,
            "0".repeat(64)
        );
        let directory = tempfile::tempdir().unwrap();
        let given = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let arguments = InputArguments { files: vec![format!("x={}", path.display()).into()], text: Vec::new() };
            arguments.read().and_then(|read| read.inputs(&Model::parse(manifest.clone()).unwrap())).map_err(Failure::problem)
        };
        let tensor = |shape: [usize; 2]| Tensor::from_f32(shape.to_vec(), &vec![0.5; shape[0] * shape[1]]).unwrap();
        let fits = tensor([3, 2]);
        assert_eq!(given("x.npy", &npy::write(&fits).unwrap()).unwrap().get("x"), Some(&Value::from(fits)));
        assert!(given("y.npy", &npy::write(&tensor([2, 3])).unwrap()).unwrap_err().contains("input x"));
        assert!(given("x.bin", &[0; 24]).unwrap_err().contains(".npy"));
    }
}
