//! From what a user sends to what an engine takes, and back.

use std::collections::BTreeMap;

use super::{
    Dimension, GenerationParameters, InputError, InputSpec, Manifest, ModelFormat, OutputSpec, Postprocessing, Preprocessing,
    TensorInput, TokenPart, bytes, conversation, generation::object, image,
};
use crate::{DataType, Tensor, Value, Values, compute::MAX_OUTPUT_VALUES};

/// Which parameters a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParameterSet {
    /// None.
    Empty,
    /// Those of [`GenerationParameters`], and no others.
    Generation,
    /// A `seed`, and whatever else the model knows.
    Open,
}

/// The tensors of an engine, by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// What a tokenizer makes of one text: three numbers for each token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Which tokens.
    pub ids: Vec<i64>,
    /// 1 for each.
    pub mask: Vec<i64>,
    /// Which of several texts it belongs to.
    pub types: Vec<i64>,
}

/// Turns text into tokens, as a package's [`super::TokenizerSpec`] says.
pub trait Tokenize: Send + Sync {
    /// The text's tokens; the error says what is wrong with the text and what to do.
    fn tokens(&self, text: &str) -> Result<Tokens, String>;
}

pub(super) fn input_error(name: &str, problem: impl Into<String>) -> InputError {
    InputError { name: name.into(), problem: problem.into() }
}

impl Manifest {
    /// Checks a user's inputs as far as they can be checked without the package's files, or says which is wrong and what to do.
    pub fn check(&self, inputs: &Values) -> Result<(), InputError> {
        if matches!(self.format, ModelFormat::Gguf | ModelFormat::OpenAi) {
            if inputs.len() != 1 {
                let problem = format!("the model `{}` takes exactly one of these", self.name);
                return Err(input_error(&self.names(), problem));
            }
            if inputs.text("prompt") == Some("") {
                return Err(input_error("prompt", "is empty: write something to go on with"));
            }
            if let Some(messages) = inputs.text("messages") {
                conversation(messages)?;
            }
        }
        self.read(inputs, None, false).map(drop)
    }

    /// Which parameters a request may have.
    pub fn parameters(&self) -> ParameterSet {
        let is_text = |output: &OutputSpec| matches!(output, OutputSpec::Text(_));
        match self.format {
            ModelFormat::Gguf => ParameterSet::Generation,
            ModelFormat::OpenAi if self.outputs.iter().any(is_text) => ParameterSet::Generation,
            ModelFormat::Python | ModelFormat::Echo => ParameterSet::Open,
            ModelFormat::Onnx | ModelFormat::OpenAi => ParameterSet::Empty,
        }
    }

    /// Checks a user's parameters, a JSON object, or says which is wrong and what to do: see [`Self::parameters`].
    pub fn check_parameters(&self, parameters: &str) -> Result<(), InputError> {
        match self.parameters() {
            ParameterSet::Generation => GenerationParameters::parse(parameters).map(drop),
            ParameterSet::Open => match object(parameters)?.get("seed") {
                Some(seed) if seed.as_u64().is_none() => {
                    Err(input_error("parameters.seed", "takes an integer from 0 to 18446744073709551615"))
                }
                _ => Ok(()),
            },
            ParameterSet::Empty => match object(parameters)?.keys().next() {
                Some(name) => Err(input_error(&format!("parameters.{name}"), "the model takes no parameters: send {}")),
                None => Ok(()),
            },
        }
    }

    /// The inputs' names, for people.
    fn names(&self) -> String {
        self.inputs.iter().map(InputSpec::name).collect::<Vec<_>>().join(", ")
    }

    /// Turns a user's inputs into an engine's tensors, or says which input is wrong and what to do. Without a tokenizer, tensors that
    /// are made of tokens are left out.
    pub fn prepare(&self, inputs: &Values, tokenizer: Option<&dyn Tokenize>) -> Result<Tensors, InputError> {
        self.read(inputs, tokenizer, true)
    }

    /// The same, and without tensors that are made of pixels where these are not to be decoded.
    fn read(&self, inputs: &Values, tokenizer: Option<&dyn Tokenize>, decodes: bool) -> Result<Tensors, InputError> {
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !self.inputs.iter().any(|input| input.name() == *name)) {
            return Err(input_error(name, format!("the model `{}` has no such input; it takes: {}", self.name, self.names())));
        }
        let mut tokens = BTreeMap::new();
        let mut named = BTreeMap::new();
        let mut tensors = Tensors::new();
        for spec in &self.inputs {
            let name = spec.name();
            let value = inputs.get(name);
            match spec {
                InputSpec::Text(text) => match value {
                    Some(Value::Text(_)) => {}
                    None if text.optional || self.sent_as_tensors(name, inputs) => {}
                    Some(_) => return Err(input_error(name, "send a text")),
                    None => return Err(self.missing(name)),
                },
                InputSpec::File(file) => match value {
                    Some(Value::File { media_type, .. }) => {
                        if !file.media_types.is_empty() && !file.media_types.contains(media_type) {
                            let wanted = file.media_types.join(" or ");
                            return Err(input_error(name, format!("is `{media_type}`; send it as {wanted}")));
                        }
                    }
                    None if file.optional => {}
                    Some(_) => return Err(input_error(name, "send a file")),
                    None => return Err(self.missing(name)),
                },
                InputSpec::Tensor(spec) => {
                    if let (None, Some(Preprocessing::Tokens { text, part })) = (value, &spec.from)
                        && let Some(Value::Text(words)) = inputs.get(text)
                    {
                        let Some(tokenizer) = tokenizer else { continue };
                        if !tokens.contains_key(text) {
                            tokens.insert(text, tokenizer.tokens(words).map_err(|problem| input_error(text, problem))?);
                        }
                        let row = tokens.get(text).map_or(&[][..], |tokens| match part {
                            TokenPart::Ids => &tokens.ids,
                            TokenPart::Mask => &tokens.mask,
                            TokenPart::Types => &tokens.types,
                        });
                        let data: Vec<u8> = row.iter().flat_map(|number| number.to_le_bytes()).collect();
                        let tensor = Tensor::new(DataType::I64, vec![1, row.len()], data);
                        tensors.insert(name.into(), tensor.map_err(|error| input_error(text, error.to_string()))?);
                        continue;
                    }
                    if let (false, Some(Preprocessing::Image { width, height, .. })) = (decodes, &spec.from)
                        && let Some(Value::File { media_type, data }) = value
                    {
                        let checked = png(media_type).and_then(|()| image::check(data, (*width, *height)));
                        checked.map_err(|problem| input_error(name, problem))?;
                        let shape = image::shape((*width, *height));
                        check_shape(name, &shape, &spec.shape, 1, &mut named)?;
                        continue;
                    }
                    let tensor = self.tensor(spec, value)?;
                    check_tensor(name, &tensor, spec.dtype, &spec.shape, 1, &mut named)?;
                    tensors.insert(name.into(), tensor);
                }
            }
        }
        self.check_rows(&named)?;
        Ok(tensors)
    }

    fn missing(&self, name: &str) -> InputError {
        input_error(name, format!("missing; the model `{}` needs it", self.name))
    }

    /// True when every tensor that is otherwise made of this text was sent.
    fn sent_as_tensors(&self, text: &str, inputs: &Values) -> bool {
        let mut made = self.inputs.iter().filter(|input| {
            matches!(input, InputSpec::Tensor(TensorInput { from: Some(Preprocessing::Tokens { text: from, .. }), .. }) if from == text)
        });
        let mut any = false;
        made.all(|input| {
            any = true;
            inputs.get(input.name()).is_some()
        }) && any
    }

    fn tensor(&self, spec: &TensorInput, value: Option<&Value>) -> Result<Tensor, InputError> {
        let name = spec.name.as_str();
        let value = value.ok_or_else(|| self.missing(name))?;
        let problem = |problem| input_error(name, problem);
        match (value, &spec.from) {
            (Value::Tensor(tensor), _) => Ok(tensor.clone()),
            (Value::File { media_type, data }, Some(Preprocessing::Image { width, height, mode, scale, offset })) => {
                png(media_type).and_then(|()| image::to_tensor(data, (*width, *height), *mode, *scale, *offset)).map_err(problem)
            }
            (_, Some(Preprocessing::Image { width, height, .. })) => {
                Err(input_error(name, format!("send a PNG of {width}x{height} pixels, or the tensor itself")))
            }
            (Value::File { data, .. }, Some(Preprocessing::Bytes { begin, end, block, padding })) => {
                bytes::to_tensor(data, *begin, *end, *block, *padding).map_err(problem)
            }
            (_, Some(Preprocessing::Bytes { .. })) => Err(input_error(name, "send a file, or the tensor itself")),
            (_, Some(Preprocessing::Tokens { text, .. })) => {
                Err(input_error(name, format!("send the text `{text}`, or the tensor itself")))
            }
            (_, None) => Err(input_error(name, format!("send a tensor of {}", spec.dtype))),
        }
    }

    /// Whether what is read off the outputs can be delivered: each row of scores gives a label, where the inputs say how many there will be.
    fn check_rows(&self, named: &BTreeMap<&str, usize>) -> Result<(), InputError> {
        let sizes = |shape: &[Dimension]| {
            let size = |dimension: &Dimension| match dimension {
                Dimension::Fixed(size) => Some(*size),
                Dimension::Named(name) => named.get(name.as_str()).copied(),
            };
            shape.iter().map(size).try_fold(1_usize, |all, size| all.checked_mul(size?))
        };
        let rows = |spec: &OutputSpec| match spec {
            OutputSpec::Tensor(spec) => match &spec.to {
                Some(Postprocessing::Labels(labels)) => sizes(&spec.shape).map_or(0, |size| size / labels.len().max(1)),
                _ => 0,
            },
            _ => 0,
        };
        let values = self.outputs.iter().map(rows).fold(self.outputs.len(), usize::saturating_add);
        if values <= MAX_OUTPUT_VALUES {
            return Ok(());
        }
        let problem =
            format!("would give {values} values, of which {MAX_OUTPUT_VALUES} are delivered at most: send fewer rows at once");
        Err(input_error(&self.names(), problem))
    }

    /// Checks the tensors that an engine gave for `inputs` against what the manifest promises, and adds what is read off them.
    pub fn finish(&self, mut outputs: Tensors, inputs: &Tensors) -> Result<Values, InputError> {
        let mut named = BTreeMap::new();
        let mut values = Values::new();
        for spec in &self.outputs {
            let OutputSpec::Tensor(spec) = spec else {
                return Err(input_error(spec.name(), "an engine for tensors gives tensors only"));
            };
            let name = spec.name.as_str();
            let tensor = outputs.remove(name).ok_or_else(|| input_error(name, "the model did not give this output"))?;
            check_tensor(name, &tensor, spec.dtype, &spec.shape, 0, &mut named)?;
            match &spec.to {
                None => {}
                Some(Postprocessing::Labels(labels)) => read_labels(name, &tensor, labels, &mut values)?,
                Some(Postprocessing::Mean { name: average, mask, normalize }) => {
                    let mask = inputs.get(mask).ok_or_else(|| input_error(mask, "was not given to the model"))?;
                    values.insert(average, mean(name, &tensor, mask, *normalize)?);
                    continue;
                }
            }
            values.insert(name, tensor);
        }
        Ok(values)
    }

    /// Checks values that a model gave as they are, not as tensors to be read, against what the manifest promises.
    pub fn check_outputs(&self, values: &Values) -> Result<(), InputError> {
        if let Some((name, _)) = values.iter().find(|(name, _)| !self.outputs.iter().any(|output| output.name() == *name)) {
            return Err(input_error(name, "the manifest does not list this output"));
        }
        let mut named = BTreeMap::new();
        for spec in &self.outputs {
            let name = spec.name();
            match (spec, values.get(name)) {
                (OutputSpec::Tensor(spec), Some(Value::Tensor(tensor))) => {
                    check_tensor(name, tensor, spec.dtype, &spec.shape, 0, &mut named)?;
                }
                (OutputSpec::Text(_), Some(Value::Text(_))) | (OutputSpec::File(_), Some(Value::File { .. })) => {}
                (_, Some(_)) => return Err(input_error(name, "is of another type than the manifest says")),
                (_, None) => return Err(input_error(name, "the model did not give this output")),
            }
        }
        Ok(())
    }
}

/// Sizes with a name are `least` or more: a model may find nothing, but is asked about something.
pub(super) fn check_tensor<'a>(
    name: &str,
    tensor: &Tensor,
    dtype: DataType,
    shape: &'a [Dimension],
    least: usize,
    named: &mut BTreeMap<&'a str, usize>,
) -> Result<(), InputError> {
    if tensor.data_type() != dtype {
        return Err(input_error(name, format!("holds {}, it has to hold {dtype}", tensor.data_type())));
    }
    check_shape(name, tensor.shape(), shape, least, named)
}

fn png(media_type: &str) -> Result<(), String> {
    if media_type == "image/png" { Ok(()) } else { Err(format!("is `{media_type}`; send it as image/png")) }
}

fn check_shape<'a>(
    name: &str,
    given: &[usize],
    shape: &'a [Dimension],
    least: usize,
    named: &mut BTreeMap<&'a str, usize>,
) -> Result<(), InputError> {
    let fits = given.len() == shape.len()
        && shape.iter().zip(given).all(|(expected, actual)| match expected {
            Dimension::Fixed(size) => size == actual,
            Dimension::Named(size) => *actual >= least && named.entry(size).or_insert(*actual) == actual,
        });
    if fits {
        Ok(())
    } else {
        let wanted: Vec<_> = shape
            .iter()
            .map(|dimension| match dimension {
                Dimension::Fixed(size) => size.to_string(),
                Dimension::Named(size) => size.clone(),
            })
            .collect();
        Err(input_error(name, format!("has the shape {given:?}, it has to be [{}]", wanted.join(", "))))
    }
}

/// The label of the largest score of each row; of equal ones, the first.
fn read_labels(name: &str, tensor: &Tensor, labels: &[String], values: &mut Values) -> Result<(), InputError> {
    let scores = tensor.to_f32().map_err(|error| input_error(name, error.to_string()))?;
    let rows: Vec<_> = scores.chunks_exact(labels.len().max(1)).collect();
    for (index, row) in rows.iter().enumerate() {
        if row.iter().any(|score| score.is_nan()) {
            return Err(input_error(name, "has scores that are no numbers (NaN)"));
        }
        let best = row.iter().zip(labels).reduce(|best, other| if other.0 > best.0 { other } else { best });
        let (_, label) = best.ok_or_else(|| input_error(name, "has no scores"))?;
        let key = if rows.len() == 1 { "label".into() } else { format!("label.{index}") };
        values.insert(key, label.as_str());
    }
    Ok(())
}

/// The average of the rows that the mask counts: `[batch, tokens, size]` becomes `[batch, size]`.
fn mean(name: &str, tensor: &Tensor, mask: &Tensor, normalize: bool) -> Result<Tensor, InputError> {
    let wrong = |error: crate::tensor::TensorError| input_error(name, error.to_string());
    let (states, mask) = (tensor.to_f32().map_err(wrong)?, mask.to_i64().map_err(wrong)?);
    let (&[batch, tokens, size], true) = (tensor.shape(), size_fits(tensor.shape(), mask.len())) else {
        return Err(input_error(name, format!("has the shape {:?}, which does not fit its mask", tensor.shape())));
    };
    let mut averages = Vec::with_capacity(batch * size);
    for (states, mask) in states.chunks_exact((tokens * size).max(1)).zip(mask.chunks_exact(tokens.max(1))) {
        let mut sum = vec![0_f32; size];
        let mut count = 0_f32;
        for (state, _) in states.chunks_exact(size.max(1)).zip(mask).filter(|(_, counted)| **counted != 0) {
            count += 1.0;
            sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
        }
        let mut scale = count.max(1.0);
        if normalize {
            let length = sum.iter().map(|value| (value / scale) * (value / scale)).sum::<f32>().sqrt();
            scale *= length.max(1e-12);
        }
        averages.extend(sum.into_iter().map(|value| value / scale));
    }
    Tensor::from_f32(vec![batch, size], &averages).map_err(wrong)
}

fn size_fits(shape: &[usize], mask: usize) -> bool {
    matches!(shape, [batch, tokens, _] if batch * tokens == mask)
}
