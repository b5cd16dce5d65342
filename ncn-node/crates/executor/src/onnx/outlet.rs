//! Whether a graph is what its manifest says, for every runtime.

use ncn_core::{
    DataType,
    model::{Dimension, InputSpec, Manifest, OutputSpec},
};

/// A tensor that a graph takes or gives, as the graph describes it.
pub(super) struct Outlet<'a> {
    /// What the graph calls it.
    pub(super) name: &'a str,
    /// What a manifest may say that it holds, any of these; none when the graph does not say. An error is what else it is.
    pub(super) holds: Result<Vec<DataType>, String>,
    /// Its dimensions, of which the graph may leave some open; none when it does not say.
    pub(super) shape: Option<Vec<Option<usize>>>,
}

/// A manifest that does not fit the graph is found when it is loaded, not by the first user.
pub(super) fn check(manifest: &Manifest, inputs: &[Outlet<'_>], outputs: &[Outlet<'_>]) -> Result<(), String> {
    for spec in &manifest.inputs {
        let InputSpec::Tensor(spec) = spec else { continue };
        let input = inputs.iter().find(|input| input.name == spec.name);
        let input = input.ok_or_else(|| format!("the graph takes no `{}`, which the manifest names", spec.name))?;
        input.check_type(spec.dtype)?;
        input.check_shape(&spec.shape)?;
    }
    let named = |input: &Outlet<'_>| super::inputs(manifest).any(|name| name == input.name);
    if let Some(unnamed) = inputs.iter().find(|input| !named(input)) {
        return Err(format!("the graph needs `{}`, which the manifest does not name", unnamed.name));
    }
    for spec in &manifest.outputs {
        let OutputSpec::Tensor(spec) = spec else { continue };
        let output = outputs.iter().find(|output| output.name == spec.name);
        let output = output.ok_or_else(|| format!("the graph gives no `{}`, which the manifest names", spec.name))?;
        output.check_type(spec.dtype)?;
        output.check_given(&spec.shape)?;
    }
    Ok(())
}

impl Outlet<'_> {
    fn check_type(&self, promised: DataType) -> Result<(), String> {
        let actual = match &self.holds {
            Ok(types) if types.is_empty() || types.contains(&promised) => return Ok(()),
            Ok(types) => types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
            Err(other) => other.clone(),
        };
        Err(format!("the graph has `{}` as {actual}, the manifest as {promised}", self.name))
    }

    fn check_shape(&self, promised: &[Dimension]) -> Result<(), String> {
        let Some(shape) = &self.shape else { return Ok(()) };
        let fits = |(promised, actual): (&Dimension, &Option<usize>)| match (promised, actual) {
            (Dimension::Fixed(size), Some(actual)) => size == actual,
            // Users could send what the graph does not take.
            (Dimension::Named(_), Some(_)) => false,
            (_, None) => true,
        };
        if shape.len() == promised.len() && promised.iter().zip(shape).all(fits) {
            return Ok(());
        }
        Err(format!("the graph takes `{}` in the shape {}, which does not fit the manifest's", self.name, sizes(shape)))
    }

    /// What is given may have the sizes that are promised: where both say one, it is the same.
    fn check_given(&self, promised: &[Dimension]) -> Result<(), String> {
        let Some(shape) = &self.shape else { return Ok(()) };
        let fits = |(promised, actual): (&Dimension, &Option<usize>)| match (promised, actual) {
            (Dimension::Fixed(size), Some(actual)) => size == actual,
            _ => true,
        };
        if shape.len() == promised.len() && promised.iter().zip(shape).all(fits) {
            return Ok(());
        }
        Err(format!("the graph gives `{}` in the shape {}, which is not the manifest's", self.name, sizes(shape)))
    }
}

fn sizes(shape: &[Option<usize>]) -> String {
    let sizes = shape.iter().map(|size| size.map_or_else(|| "any".into(), |size| size.to_string()));
    format!("[{}]", sizes.collect::<Vec<_>>().join(", "))
}
