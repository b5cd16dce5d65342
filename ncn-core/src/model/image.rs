//! From an encoded image to a tensor.

use std::io::Cursor;

use png::{ColorType, Decoder, Limits, Transformations};

use super::ImageMode;
use crate::Tensor;

/// No model takes images with longer sides; keeps a manifest from asking for absurd buffers.
pub(super) const MAX_SIDE: u32 = 16_384;

/// Decodes a PNG of exactly `size`; the error says what is wrong and what to do.
pub(super) fn to_tensor(data: &[u8], size: (u32, u32), mode: ImageMode, scale: f32, offset: f32) -> Result<Tensor, String> {
    let ImageMode::Gray = mode;
    let (width, height) = size;
    let broken = |error: png::DecodingError| match error {
        png::DecodingError::LimitsExceeded => format!("is a PNG with more than an image in it: send {width}x{height} plain pixels"),
        _ => format!("is not a readable PNG image; send a PNG of {width}x{height} pixels"),
    };

    // What the decoder may allocate: 64 KiB for itself, and the widest pixels (16-bit RGBA) of the size we take.
    let budget = u64::from(width) * u64::from(height) * 8 + (1 << 20);
    let limits = Limits { bytes: usize::try_from(budget).unwrap_or(usize::MAX) };
    let mut decoder = Decoder::new_with_limits(Cursor::new(data), limits);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    // The header is read and judged before any pixel is decoded: a bomb is refused for its size.
    let header = decoder.read_header_info().map_err(broken)?;
    if (header.width, header.height) != size {
        return Err(format!(
            "is an image of {}x{} pixels, the model takes {width}x{height}: resize it",
            header.width, header.height
        ));
    }
    let mut reader = decoder.read_info().map_err(broken)?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("is too large an image")?];
    let frame = reader.next_frame(&mut pixels).map_err(broken)?;
    // Read to the end: a file that breaks off after its pixels is refused too.
    reader.finish().map_err(broken)?;
    let pixels = pixels.get(..frame.buffer_size()).unwrap_or_default();

    let gray: Vec<u8> = match frame.color_type {
        ColorType::Grayscale => pixels.to_vec(),
        ColorType::GrayscaleAlpha => pixels.as_chunks::<2>().0.iter().map(|[gray, _]| *gray).collect(),
        ColorType::Rgb => pixels.as_chunks::<3>().0.iter().map(|[r, g, b]| luma(*r, *g, *b)).collect(),
        ColorType::Rgba => pixels.as_chunks::<4>().0.iter().map(|[r, g, b, _]| luma(*r, *g, *b)).collect(),
        // `EXPAND` has turned palettes into colours.
        ColorType::Indexed => return Err("is a PNG whose palette cannot be read".into()),
    };
    let values: Vec<f32> = gray.iter().map(|pixel| f32::from(*pixel).mul_add(scale, offset)).collect();
    let shape = vec![1, 1, height as usize, width as usize];
    Tensor::from_f32(shape, &values).map_err(|error| error.to_string())
}

fn luma(r: u8, g: u8, b: u8) -> u8 {
    let weighted = 299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b) + 500;
    u8::try_from(weighted / 1_000).unwrap_or(u8::MAX)
}
