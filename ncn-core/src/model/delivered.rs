//! What somebody else has put together as a model's output, against what the manifest promises.

use std::collections::BTreeMap;

use super::{
    InputError, Manifest, OutputSpec, Postprocessing, TensorOutput,
    io::{check_tensor, input_error},
};
use crate::{DataType, Value, Values};

impl Manifest {
    /// Checks a part of an output: every value is one that the manifest lists, or is read off one that it lists, and has its type.
    /// Sizes of tensors are checked with the whole output.
    pub fn check_part(&self, part: &Values) -> Result<(), InputError> {
        part.iter().try_for_each(|(name, value)| self.check_given(name, value))
    }

    /// Checks a whole output, as [`Manifest::finish`] or [`Manifest::check_outputs`] leave it: each value as in a part, every tensor's
    /// shape, and that none is missing.
    pub fn check_delivered(&self, output: &Values) -> Result<(), InputError> {
        self.check_part(output)?;
        let mut named = BTreeMap::new();
        for spec in &self.outputs {
            let name = spec.name();
            match (spec, output.get(name)) {
                (OutputSpec::Tensor(spec), Some(Value::Tensor(tensor))) => {
                    check_tensor(name, tensor, spec.dtype, &spec.shape, 0, &mut named)?;
                }
                (_, Some(_)) => {}
                (spec, None) if average(spec).is_some_and(|average| output.get(average).is_some()) => {}
                (_, None) => return Err(input_error(name, "the model did not give this output")),
            }
        }
        Ok(())
    }

    fn check_given(&self, name: &str, value: &Value) -> Result<(), InputError> {
        if let Some(spec) = self.outputs.iter().find(|spec| spec.name() == name) {
            let fits = match (spec, value) {
                (OutputSpec::Tensor(spec), Value::Tensor(tensor)) => tensor.data_type() == spec.dtype,
                (OutputSpec::Text(_), Value::Text(_)) | (OutputSpec::File(_), Value::File { .. }) => true,
                _ => false,
            };
            return if fits { Ok(()) } else { Err(input_error(name, "is of another type than the manifest says")) };
        }
        let read_off = match value {
            Value::Tensor(tensor) => {
                tensor.data_type() == DataType::F32 && self.outputs.iter().any(|spec| average(spec) == Some(name))
            }
            Value::Text(text) => is_label(name) && self.outputs.iter().any(|spec| labels(spec).contains(text)),
            Value::File { .. } => false,
        };
        if read_off { Ok(()) } else { Err(input_error(&shown(name), "the manifest does not list this output")) }
    }
}

/// The name of the average that is given in this output's place.
fn average(spec: &OutputSpec) -> Option<&str> {
    match spec {
        OutputSpec::Tensor(TensorOutput { to: Some(Postprocessing::Mean { name, .. }), .. }) => Some(name),
        _ => None,
    }
}

fn labels(spec: &OutputSpec) -> &[String] {
    match spec {
        OutputSpec::Tensor(TensorOutput { to: Some(Postprocessing::Labels(labels)), .. }) => labels,
        _ => &[],
    }
}

/// What a label is given as: `label`, or `label.3` of the fourth row of a batch.
fn is_label(name: &str) -> bool {
    let row = name.strip_prefix("label").and_then(|rest| rest.strip_prefix('.'));
    name == "label" || row.is_some_and(|row| !row.is_empty() && row.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A name that anybody may have made up, as far as an error repeats it.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Model, Tensor};

    fn model(outputs: &serde_json::Value) -> Model {
        let manifest = json!({
            "name": "test", "version": "1", "task": "test", "description": "", "licence": "MIT", "format": "python",
            "entry": "model.py", "files": [{ "path": "model.py", "bytes": 1, "sha256": "00".repeat(32) }],
            "inputs": [{ "type": "tensor", "name": "mask", "dtype": "i64", "shape": ["n", "m"] }], "outputs": outputs,
            "limits": { "memory_bytes": 1 << 20, "deadline_ms": 1_000 }, "price": "1",
        });
        Model::parse(manifest.to_string()).unwrap()
    }

    fn tensor(shape: Vec<usize>) -> Value {
        let count = shape.iter().product();
        Tensor::from_f32(shape, &vec![0.0; count]).unwrap().into()
    }

    #[test]
    fn what_is_delivered_is_what_the_manifest_promises() {
        let model = model(&json!([{ "type": "text", "name": "said" }, { "type": "file", "name": "image" }]));
        let manifest = model.manifest();
        let (said, image) = (("said", Value::from("x")), ("image", Value::png(&b"x"[..])));
        let of = |values: &[(&str, Value)]| values.iter().cloned().collect::<Values>();
        assert!(manifest.check_delivered(&of(&[said.clone(), image.clone()])).is_ok());
        assert!(manifest.check_part(&of(std::slice::from_ref(&said))).is_ok() && manifest.check_part(&Values::new()).is_ok());
        let problem = |values: &[(&str, Value)]| manifest.check_delivered(&of(values)).unwrap_err().to_string();
        assert!(problem(&[]).contains("`said`: the model did not give this output"));
        assert!(problem(std::slice::from_ref(&said)).contains("`image`: the model did not give this output"));
        assert!(problem(&[said.clone(), image.clone(), ("more", "x".into())]).contains("`more`: the manifest does not list"));
        assert!(problem(&[said, ("image", "x".into())]).contains("is of another type"));
        let long = "x".repeat(1 << 20);
        assert!(problem(&[(long.as_str(), image.1)]).len() < 200, "a long name is not repeated");
    }

    #[test]
    fn what_is_read_off_tensors_counts() {
        let labeled =
            json!({ "type": "tensor", "name": "scores", "dtype": "f32", "shape": ["n", 2], "to": { "labels": ["a", "b"] } });
        let averaged = json!({ "type": "tensor", "name": "states", "dtype": "f32", "shape": ["n", "m", 3],
            "to": { "mean": { "name": "embedding", "mask": "mask", "normalize": false } } });
        let model = model(&json!([labeled, averaged]));
        let manifest = model.manifest();
        let scores = ("scores", tensor(vec![2, 2]));
        let whole =
            Values::from([scores.clone(), ("label.0", "a".into()), ("label.1", "b".into()), ("embedding", tensor(vec![2, 3]))]);
        assert!(manifest.check_delivered(&whole).is_ok());
        assert!(manifest.check_delivered(&Values::from([scores.clone()])).is_err(), "the average is missing");
        for (name, value) in [("label.0", "c".into()), ("label.x", "a".into()), ("labels", "a".into()), ("embedding", "a".into())] {
            let value: Value = value;
            assert!(manifest.check_part(&Values::from([(name, value)])).is_err(), "{name}");
        }
        let shape = Values::from([("scores", tensor(vec![2, 3])), ("embedding", tensor(vec![2, 3]))]);
        assert!(manifest.check_part(&shape).is_ok());
        assert!(manifest.check_delivered(&shape).unwrap_err().to_string().contains("has the shape [2, 3]"));
    }
}
