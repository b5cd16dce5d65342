//! Values as Python has them, and back.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use ncn_core::{
    DataType, ExecutorError, Manifest, Tensor as CoreTensor, Value, Values,
    compute::MAX_OUTPUT_BYTES,
    model::{InputSpec, OutputSpec, Tensors},
};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyByteArray, PyBytes, PyDict, PyString, PyTuple},
};

/// A file that the model takes, where Python's `open` finds it.
#[pyclass(frozen, get_all)]
pub(crate) struct File {
    /// Its path in the request's private directory.
    path: OsString,
    /// What the user says it is, such as `image/png`.
    media_type: String,
}

#[pymethods]
impl File {
    fn __fspath__(&self) -> &OsStr {
        &self.path
    }

    fn __repr__(&self) -> String {
        format!("File({}, {})", self.path.to_string_lossy(), self.media_type)
    }
}

/// A tensor where there is no numpy: the elements' type as numpy calls it, the shape, and the bytes, row-major and little-endian.
#[pyclass(frozen, get_all)]
pub(crate) struct Tensor {
    dtype: String,
    shape: Py<PyTuple>,
    data: Py<PyBytes>,
}

#[pymethods]
impl Tensor {
    #[new]
    fn new(py: Python<'_>, dtype: String, shape: Vec<usize>, data: Py<PyBytes>) -> PyResult<Self> {
        let known = data_type(&dtype).ok_or_else(|| PyValueError::new_err(format!("dtype {dtype} is unknown")))?;
        CoreTensor::new(known, shape.clone(), data.as_bytes(py).to_vec())
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self { dtype, shape: PyTuple::new(py, shape)?.unbind(), data })
    }

    fn tobytes(&self, py: Python<'_>) -> Py<PyBytes> {
        self.data.clone_ref(py)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("Tensor({}, {})", self.dtype, self.shape.bind(py))
    }
}

/// Element types, as numpy calls them.
const DATA_TYPES: [(DataType, &str); 6] = [
    (DataType::Bool, "bool"),
    (DataType::U8, "uint8"),
    (DataType::I8, "int8"),
    (DataType::I32, "int32"),
    (DataType::I64, "int64"),
    (DataType::F32, "float32"),
];

fn data_type(name: &str) -> Option<DataType> {
    DATA_TYPES.iter().find(|(_, known)| *known == name).map(|(data_type, _)| *data_type)
}

fn name_of(data_type: DataType) -> &'static str {
    DATA_TYPES.iter().find(|(known, _)| *known == data_type).map_or("unknown", |(_, name)| *name)
}

/// What `infer` takes: tensors as prepared, texts and files as they were sent. Files are written to `directory`.
pub(crate) fn inputs<'py>(
    py: Python<'py>,
    manifest: &Manifest,
    tensors: &Tensors,
    values: &Values,
    directory: &Path,
) -> Result<Bound<'py, PyDict>, ExecutorError> {
    let failed = |error: &dyn std::fmt::Display| ExecutorError::Worker(format!("cannot hand the inputs to Python: {error}"));
    let numpy = py.import("numpy").ok();
    let inputs = PyDict::new(py);
    for (name, tensor) in tensors {
        let value = match &numpy {
            Some(numpy) => array(numpy, tensor),
            None => plain(py, tensor),
        };
        inputs.set_item(name, value.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    }
    for (index, spec) in manifest.inputs.iter().enumerate() {
        let item = match (spec, values.get(spec.name())) {
            (InputSpec::Text(spec), Some(Value::Text(text))) => inputs.set_item(&spec.name, text),
            (InputSpec::File(spec), Some(Value::File { media_type, data })) => {
                let path = directory.join(format!("input-{index}"));
                fs::write(&path, data).map_err(|error| failed(&error))?;
                let file = File { path: path.into(), media_type: media_type.clone() };
                Bound::new(py, file).and_then(|file| inputs.set_item(&spec.name, file))
            }
            _ => Ok(()),
        };
        item.map_err(|error| failed(&error))?;
    }
    Ok(inputs)
}

/// A numpy array over bytes of its own, which the model may change.
fn array<'py>(numpy: &Bound<'py, PyModule>, tensor: &CoreTensor) -> PyResult<Bound<'py, PyAny>> {
    let bytes = PyByteArray::new(numpy.py(), tensor.data());
    let shape = PyTuple::new(numpy.py(), tensor.shape())?;
    numpy.call_method1("frombuffer", (bytes, name_of(tensor.data_type())))?.call_method1("reshape", (shape,))
}

fn plain<'py>(py: Python<'py>, tensor: &CoreTensor) -> PyResult<Bound<'py, PyAny>> {
    let shape = PyTuple::new(py, tensor.shape())?.unbind();
    let data = PyBytes::new(py, tensor.data()).unbind();
    Ok(Bound::new(py, Tensor { dtype: name_of(tensor.data_type()).into(), shape, data })?.into_any())
}

/// Does once what every request does, so that a fork has its own copies of what that writes to before its request comes.
pub(crate) fn rehearse(py: Python<'_>) -> Result<(), String> {
    let numpy = py.import("numpy").ok();
    let tensor_in = CoreTensor::from_f32(vec![1], &[0.0]).map_err(|error| error.to_string())?;
    let item = match &numpy {
        Some(numpy) => array(numpy, &tensor_in),
        None => plain(py, &tensor_in),
    };
    tensor(&item.map_err(|error| error.to_string())?).map(drop)
}

/// What `infer` gave, or one part of it.
pub(crate) fn outputs(manifest: &Manifest, given: &Bound<'_, PyAny>) -> Result<Values, ExecutorError> {
    let invalid = |name: &str, problem: &str| ExecutorError::InvalidOutput(format!("`{name}`: {problem}"));
    let Ok(given) = given.cast::<PyDict>() else {
        let class = given.get_type().name().map(|name| name.to_string()).unwrap_or_default();
        return Err(ExecutorError::InvalidOutput(format!("is a {class}: infer gives a dict of outputs, or a generator of such")));
    };
    let mut values = Values::new();
    for (name, item) in given {
        let name: String = name.extract().map_err(|_| invalid("?", "the name of an output is a str"))?;
        let Some(spec) = manifest.outputs.iter().find(|spec| spec.name() == name) else {
            return Err(invalid(&name, "the manifest does not list this output"));
        };
        let value = match spec {
            OutputSpec::Tensor(_) => tensor(&item).map(Value::Tensor),
            OutputSpec::Text(_) => match item.cast::<PyString>() {
                Ok(text) => text.to_cow().map(|text| Value::Text(text.into_owned())).map_err(|error| error.to_string()),
                Err(_) => Err("the manifest says a text: give a str".into()),
            },
            OutputSpec::File(_) => file(&item),
            _ => Err("this worker does not know such outputs".into()),
        };
        values.insert(&*name, value.map_err(|problem| invalid(&name, &problem))?);
    }
    Ok(values)
}

/// Anything that has a `dtype`, a `shape` and `tobytes()`, as arrays of numpy have.
fn tensor(item: &Bound<'_, PyAny>) -> Result<CoreTensor, String> {
    let parts = || -> PyResult<(String, Vec<usize>, Bound<'_, PyBytes>)> {
        let dtype = item.getattr("dtype")?.str()?.to_string_lossy().into_owned();
        Ok((dtype, item.getattr("shape")?.extract()?, item.call_method0("tobytes")?.cast_into()?))
    };
    let (dtype, shape, data) = parts().map_err(|_| "the manifest says a tensor: give a numpy array".to_owned())?;
    let data_type = data_type(&dtype).ok_or_else(|| format!("holds {dtype}, which no tensor does: convert it with astype"))?;
    CoreTensor::new(data_type, shape, data.as_bytes().to_vec()).map_err(|error| error.to_string())
}

/// The bytes of a file, or the path of one, whose name tells its media type.
fn file(item: &Bound<'_, PyAny>) -> Result<Value, String> {
    if let Ok(bytes) = item.cast::<PyBytes>() {
        return Ok(Value::File { media_type: UNKNOWN_TYPE.into(), data: bytes.as_bytes().to_vec().into() });
    }
    let path: PathBuf = item.extract().map_err(|_| "the manifest says a file: give its path, or bytes".to_owned())?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let known = MEDIA_TYPES.iter().find(|(known, _)| extension.eq_ignore_ascii_case(known));
    let media_type = known.map_or(UNKNOWN_TYPE, |(_, media_type)| media_type).into();
    let data = read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(Value::File { media_type, data: data.into() })
}

/// The same everywhere, unlike what systems have lists of.
const MEDIA_TYPES: [(&str, &str); 15] = [
    ("csv", "text/csv"),
    ("flac", "audio/flac"),
    ("gif", "image/gif"),
    ("html", "text/html"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("json", "application/json"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("txt", "text/plain"),
    ("wav", "audio/wav"),
    ("webp", "image/webp"),
];
const UNKNOWN_TYPE: &str = "application/octet-stream";

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Of anything but a file, such as a pipe, the end might never come.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_OUTPUT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
