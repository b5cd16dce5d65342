//! What a model's requests cost, and how many units one of them can take: known from the manifest, the inputs and the parameters, before
//! anything is paid.

use serde::{Deserialize, Serialize};

use super::{
    Dimension, GenerationParameters, InputError, InputSpec, Manifest, ManifestError, ModelFormat, OutputSpec, ParameterSet, field,
};
use crate::{Amount, Price, Unit, UnitPrice, Units, Value, Values, price::MAX_UNITS};

/// What a text can become beside one token for each byte: where it begins and ends, and what a chat template says around it.
const TOKENS_AROUND_TEXT: u64 = 64;

/// A manifest's price: an amount for each request, or a price by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "an amount in base units as a text, or an object of `base`, `input` and `output`")]
pub enum ManifestPrice {
    /// So much for a request.
    Flat(Amount),
    /// So much for each unit, too.
    ByUse(PriceByUse),
}

/// A price by use, as a manifest has it: what is left out costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceByUse {
    /// For a request, whatever it takes.
    #[serde(default)]
    pub base: Amount,
    /// For a unit that it takes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<UnitPrice>,
    /// For a unit that it gives out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<UnitPrice>,
}

impl Manifest {
    /// What requests cost, with the units named that the model is counted in.
    pub fn price(&self) -> Price {
        let (input, output) = self.counted_in();
        let (input, output) = (UnitPrice::free(input), UnitPrice::free(output));
        match self.price {
            ManifestPrice::Flat(base) => Price { base, input, output },
            ManifestPrice::ByUse(price) => {
                Price { base: price.base, input: price.input.unwrap_or(input), output: price.output.unwrap_or(output) }
            }
        }
    }

    /// What an executor counts for this model.
    fn counted_in(&self) -> (Unit, Unit) {
        match self.format {
            ModelFormat::Gguf => (Unit::Token, Unit::Token),
            ModelFormat::OpenAi if self.parameters() == ParameterSet::Generation => (Unit::Token, Unit::Token),
            ModelFormat::OpenAi => (Unit::Token, Unit::Row),
            ModelFormat::Onnx | ModelFormat::Python => (Unit::Row, Unit::Row),
            ModelFormat::Echo => (Unit::Request, Unit::Request),
        }
    }

    /// The most units that a request is charged for at this price. A side that costs nothing has no bound of its own.
    ///
    /// # Errors
    /// When the parameters are not the model's.
    pub fn max_units(&self, price: &Price, inputs: &Values, parameters: &str) -> Result<Units, InputError> {
        let most = |price: UnitPrice, bound: Option<u64>, limit: Option<u64>| {
            let bound = bound.filter(|_| !price.price.is_zero()).unwrap_or(MAX_UNITS);
            bound.min(limit.unwrap_or(MAX_UNITS)).min(MAX_UNITS)
        };
        let generated = match self.parameters() {
            ParameterSet::Generation => Some(u64::from(GenerationParameters::parse(parameters)?.max_tokens)),
            ParameterSet::Empty | ParameterSet::Open => None,
        };
        Ok(Units {
            input: most(price.input, input_bound(price.input.unit, inputs), self.limits.max_input_units),
            output: most(price.output, self.output_bound(price.output.unit, rows(inputs), generated), self.limits.max_output_units),
        })
    }

    /// How many units a request with so many rows, or so many tokens to be generated, gives out at most, where that is known.
    fn output_bound(&self, unit: Unit, rows: u64, generated: Option<u64>) -> Option<u64> {
        match unit {
            Unit::Request => Some(1),
            Unit::Token => generated,
            Unit::Second => None,
            Unit::Image => Some(self.outputs.iter().filter(|output| matches!(output, OutputSpec::File(_))).count() as u64),
            // What a Python module yields is up to it.
            Unit::Row if self.format == ModelFormat::Python => None,
            Unit::Row => {
                let input_rows: Vec<_> = self.inputs.iter().filter_map(first_dimension_in).collect();
                let bound = |output: &OutputSpec| match output {
                    OutputSpec::Tensor(tensor) => match tensor.shape.first() {
                        None => Some(1),
                        Some(Dimension::Fixed(size)) => Some(*size as u64),
                        Some(named) => input_rows.contains(&named).then_some(rows),
                    },
                    OutputSpec::Text(_) | OutputSpec::File(_) => None,
                };
                self.outputs.iter().map(bound).try_fold(1, |most, bound| Some(most.max(bound?)))
            }
        }
    }

    /// Refuses a price that no request can be quoted at.
    pub(super) fn validate_price(&self) -> Result<(), ManifestError> {
        let price = self.price();
        if price.is_free() {
            return field("price", "an escrow needs an amount above zero");
        }
        let counted = self.counted_in();
        let countable = |unit: Unit, counted: Unit| {
            unit == counted || unit == Unit::Request || (self.format == ModelFormat::Python && unit == Unit::Image)
        };
        if !countable(price.input.unit, counted.0) {
            return field("price.input.unit", &format!("this model's input is counted in {}s, or one `request`", counted.0));
        }
        if !countable(price.output.unit, counted.1) {
            return field("price.output.unit", &format!("this model's output is counted in {}s, or one `request`", counted.1));
        }
        let is_bounded =
            |price: UnitPrice, bound: Option<u64>, limit: Option<u64>| price.price.is_zero() || bound.or(limit).is_some();
        let generated = (self.parameters() == ParameterSet::Generation).then_some(1);
        if !is_bounded(price.output, self.output_bound(price.output.unit, 1, generated), self.limits.max_output_units) {
            return field("limits.max_output_units", "is missing: the quote says the most that a request can cost");
        }
        let limits = [self.limits.max_input_units, self.limits.max_output_units];
        if limits.into_iter().flatten().any(|limit| limit == 0 || limit > MAX_UNITS) {
            return field("limits", "max_input_units and max_output_units are 1 to 4294967295");
        }
        Ok(())
    }
}

fn first_dimension_in(input: &InputSpec) -> Option<&Dimension> {
    match input {
        InputSpec::Tensor(tensor) => tensor.shape.first(),
        InputSpec::Text(_) | InputSpec::File(_) => None,
    }
}

/// How many rows these inputs have: a text or a file is one.
fn rows(inputs: &Values) -> u64 {
    let rows = |value: &Value| value.as_tensor().and_then(|tensor| tensor.shape().first()).map_or(1, |rows| *rows as u64);
    inputs.iter().map(|(_, value)| rows(value)).max().unwrap_or(1)
}

/// How many units these inputs have at most, where that is known.
fn input_bound(unit: Unit, inputs: &Values) -> Option<u64> {
    match unit {
        Unit::Request => Some(1),
        Unit::Token => Some(inputs.content_bytes().saturating_add(TOKENS_AROUND_TEXT)),
        Unit::Row => Some(rows(inputs)),
        Unit::Image => Some(inputs.iter().filter(|(_, value)| matches!(value, Value::File { .. })).count() as u64),
        Unit::Second => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{Model, Tensor};

    fn model(change: impl FnOnce(&mut Json)) -> Result<Model, ManifestError> {
        let mut manifest = json!({
            "name": "test", "version": "1", "task": "test", "description": "", "licence": "MIT", "format": "gguf",
            "entry": "model.gguf", "files": [{ "path": "model.gguf", "bytes": 1, "sha256": "00".repeat(32) }],
            "inputs": [{ "type": "text", "name": "prompt" }], "outputs": [{ "type": "text", "name": "text" }],
            "limits": { "memory_bytes": 1 << 20, "deadline_ms": 1_000 },
            "price": { "base": "5", "input": { "unit": "token", "price": "2" }, "output": { "unit": "token", "price": "3" } },
        });
        change(&mut manifest);
        Model::parse(manifest.to_string())
    }

    fn max_units(model: &Model, inputs: &Values, parameters: &str) -> Result<Units, InputError> {
        model.manifest().max_units(&model.manifest().price(), inputs, parameters)
    }

    fn refused(change: impl FnOnce(&mut Json)) -> String {
        model(change).unwrap_err().to_string()
    }

    #[test]
    fn bytes_bound_tokens_and_max_tokens_bounds_output() {
        let model_ = model(|_| ()).unwrap();
        let inputs = Values::from([("prompt", "ten bytes!")]);
        let most = |parameters| max_units(&model_, &inputs, parameters);
        let units = most(r#"{"max_tokens": 7}"#).unwrap();
        assert_eq!(units, Units { input: 10 + TOKENS_AROUND_TEXT, output: 7 });
        assert_eq!(model_.manifest().price().cost(units), Ok(Amount::new(5 + 2 * 74 + 3 * 7)));
        assert_eq!(most("{}").unwrap().output, 256, "as many as are generated when nothing is said");
        assert!(most(r#"{"max_token": 7}"#).is_err());

        let limited = model(|manifest| {
            manifest["limits"]["max_input_units"] = json!(20);
            manifest["limits"]["max_output_units"] = json!(100);
        });
        let units = max_units(&limited.unwrap(), &inputs, "{}").unwrap();
        assert_eq!(units, Units { input: 20, output: 100 });
    }

    #[test]
    fn a_flat_price_is_the_base_alone() {
        let flat = model(|manifest| manifest["price"] = json!("9")).unwrap();
        let price = flat.manifest().price();
        assert_eq!((price.base, price.is_flat(), price.output.unit), (Amount::new(9), true, Unit::Token));
        let units = max_units(&flat, &Values::from([("prompt", "x")]), "{}").unwrap();
        assert_eq!(price.cost(units), Ok(Amount::new(9)));
    }

    #[test]
    fn rows_are_those_of_the_inputs() {
        let onnx = |output: Json| {
            model(|manifest| {
                manifest["format"] = json!("onnx");
                manifest["inputs"] = json!([{ "type": "tensor", "name": "x", "dtype": "f32", "shape": ["batch", 2] }]);
                manifest["outputs"] = json!([{ "type": "tensor", "name": "y", "dtype": "f32", "shape": [output, 2] }]);
                manifest["price"] = json!({ "output": { "unit": "row", "price": "3" }, "input": { "unit": "row", "price": "1" } });
            })
        };
        let tensor = Tensor::from_f32(vec![4, 2], &[0.0; 8]).unwrap();
        let units = |output| max_units(&onnx(output).unwrap(), &Values::from([("x", tensor.clone())]), "{}").unwrap();
        assert_eq!(units(json!("batch")), Units { input: 4, output: 4 });
        assert_eq!(units(json!(9)), Units { input: 4, output: 9 });
        assert!(onnx(json!("found")).unwrap_err().to_string().contains("limits.max_output_units"), "nobody knows how many");
    }

    #[test]
    fn prices_that_cannot_be_quoted_are_refused() {
        assert!(refused(|manifest| manifest["price"] = json!("0")).contains("above zero"));
        assert!(refused(|manifest| manifest["price"] = json!({})).contains("above zero"));
        assert!(refused(|manifest| manifest["price"] = json!(5)).contains("an amount in base units as a text"));
        assert!(refused(|manifest| manifest["price"]["output"]["unit"] = json!("image")).contains("price.output.unit"));
        assert!(refused(|manifest| manifest["limits"]["max_output_units"] = json!(0)).contains("max_output_units"));
        let python = |manifest: &mut Json| {
            manifest["format"] = json!("python");
            manifest["price"] = json!({ "output": { "unit": "row", "price": "1" } });
        };
        assert!(refused(python).contains("limits.max_output_units"));
    }
}
