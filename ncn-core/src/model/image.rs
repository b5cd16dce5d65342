//! From an encoded image to a tensor.

use std::io::Cursor;

use png::{ColorType, Decoder, Limits, Transformations};

use super::ImageMode;
use crate::Tensor;

/// No model takes images of more pixels; keeps a manifest from asking for absurd buffers.
const MAX_PIXELS: u64 = 1 << 24;

/// Whether a model may take images of this width and height.
pub(super) fn is_size(width: u32, height: u32) -> bool {
    (1..=MAX_PIXELS).contains(&(u64::from(width) * u64::from(height)))
}

/// The shape of an image's tensor.
pub(super) const fn shape((width, height): (u32, u32)) -> [usize; 4] {
    [1, 1, height as usize, width as usize]
}

/// Judges a PNG by its header, and whether it is there to its end. No pixel is decoded, since who sends it may be anyone.
pub(super) fn check(data: &[u8], size: (u32, u32)) -> Result<(), String> {
    open(data, size)?;
    // After the signature come chunks (PNG, section 5.3): their length, their type, that many bytes, and a checksum.
    let mut rest = data.get(8..).unwrap_or_default();
    while let Some((length, kind)) = rest.first_chunk().zip(rest.get(4..8)) {
        if kind == b"IEND" {
            return Ok(());
        }
        rest = rest.get((u32::from_be_bytes(*length) as usize).saturating_add(12)..).unwrap_or_default();
    }
    Err(unreadable(size))
}

fn unreadable((width, height): (u32, u32)) -> String {
    format!("is not a readable PNG image; send a PNG of {width}x{height} pixels")
}

fn broken(error: &png::DecodingError, size: (u32, u32)) -> String {
    let (width, height) = size;
    match error {
        png::DecodingError::LimitsExceeded => format!("is a PNG with more than an image in it: send {width}x{height} plain pixels"),
        _ => unreadable(size),
    }
}

/// A PNG of exactly `size`, by its header.
fn open(data: &[u8], size: (u32, u32)) -> Result<Decoder<Cursor<&[u8]>>, String> {
    let (width, height) = size;

    // What the decoder may allocate: 64 KiB for itself, and the widest pixels (16-bit RGBA) of the size we take.
    let budget = u64::from(width) * u64::from(height) * 8 + (1 << 20);
    let limits = Limits { bytes: usize::try_from(budget).unwrap_or(usize::MAX) };
    let mut decoder = Decoder::new_with_limits(Cursor::new(data), limits);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    // The header is read and judged before any pixel is decoded: a bomb is refused for its size.
    let header = decoder.read_header_info().map_err(|error| broken(&error, size))?;
    if (header.width, header.height) != size {
        return Err(format!(
            "is an image of {}x{} pixels, the model takes {width}x{height}: resize it",
            header.width, header.height
        ));
    }
    Ok(decoder)
}

/// Decodes a PNG of exactly `size`; the error says what is wrong and what to do.
pub(super) fn to_tensor(data: &[u8], size: (u32, u32), mode: ImageMode, scale: f32, offset: f32) -> Result<Tensor, String> {
    let ImageMode::Gray = mode;
    let broken = |error: png::DecodingError| broken(&error, size);
    let mut reader = open(data, size)?.read_info().map_err(broken)?;
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
    Tensor::from_f32(shape(size).to_vec(), &values).map_err(|error| error.to_string())
}

fn luma(r: u8, g: u8, b: u8) -> u8 {
    let weighted = 299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b) + 500;
    u8::try_from(weighted / 1_000).unwrap_or(u8::MAX)
}
