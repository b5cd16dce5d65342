//! Tensors in files of NumPy's format, as `numpy.save` writes them and `numpy.load` reads them.

use std::io;

use ncn_core::{DataType, Tensor};
use npyz::{DType, NpyFile, Order, WriteOptions, WriterBuilder as _};

/// What NumPy calls the types of our elements.
const TYPES: [(&str, DataType); 6] = [
    ("|b1", DataType::Bool),
    ("|u1", DataType::U8),
    ("|i1", DataType::I8),
    ("<i4", DataType::I32),
    ("<i8", DataType::I64),
    ("<f4", DataType::F32),
];

/// The tensor in a file.
pub(crate) fn read(bytes: &[u8]) -> Result<Tensor, String> {
    let file = NpyFile::new(bytes).map_err(|error| format!("is no file of NumPy's: {error}"))?;
    let header = file.header();
    let stored = match header.dtype() {
        DType::Plain(stored) => stored.to_string(),
        other => other.descr(),
    };
    let known = TYPES.iter().find(|(name, _)| *name == stored);
    let (_, data_type) = known.ok_or_else(|| format!("has elements of type {stored}: convert them, such as by astype('<f4')"))?;
    if header.order() == Order::Fortran && header.shape().len() > 1 {
        return Err("has its columns one after the other: save numpy.ascontiguousarray of it".into());
    }
    let shape = header.shape().iter().map(|size| usize::try_from(*size)).collect::<Result<_, _>>();
    let shape = shape.map_err(|_| "has a size that is too large".to_owned())?;
    Tensor::new(*data_type, shape, file.into_inner().to_vec()).map_err(|error| error.to_string())
}

/// The file with a tensor.
pub(crate) fn write(tensor: &Tensor) -> io::Result<Vec<u8>> {
    let known = TYPES.iter().find(|(_, data_type)| *data_type == tensor.data_type());
    let unknown = || io::Error::other(format!("NumPy has no type for {}", tensor.data_type()));
    let (name, _) = known.ok_or_else(unknown)?;
    let shape: Vec<_> = tensor.shape().iter().map(|size| *size as u64).collect();
    let header = WriteOptions::new_header_only().dtype(DType::Plain(name.parse().map_err(io::Error::other)?));
    let mut file = header.shape(&shape).writer(Vec::new()).write_header_only()?;
    file.extend_from_slice(tensor.data());
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_from_files() {
        for (_, data_type) in TYPES {
            for shape in [vec![], vec![0, 3], vec![2, 3]] {
                let bytes = vec![1; shape.iter().product::<usize>() * data_type.size()];
                let tensor = Tensor::new(data_type, shape, bytes).unwrap();
                assert_eq!(read(&write(&tensor).unwrap()).unwrap(), tensor);
            }
        }
    }

    #[test]
    fn what_is_no_tensor_of_ours_is_refused() {
        let file = |description: &str, data: &[u8]| {
            let text = format!("{description:<117}\n");
            [b"\x93NUMPY\x01\x00", &u16::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes(), data].concat()
        };
        let of = |descr: &str, fortran: &str, data: &[u8]| {
            read(&file(&format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': (1, 2), }}"), data))
        };
        assert_eq!(of("<i4", "False", &[0; 8]).unwrap().shape(), [1, 2]);
        assert!(of("<i4", "True", &[0; 8]).unwrap_err().contains("ascontiguousarray"));
        assert!(of(">i4", "False", &[0; 8]).unwrap_err().contains("astype"));
        assert!(of("<f8", "False", &[0; 16]).unwrap_err().contains("<f8"));
        for data in [&[0; 7][..], &[0; 9], &[]] {
            of("<i4", "False", data).unwrap_err();
        }
        read(b"\x89PNG").unwrap_err();
    }
}
