use std::collections::BTreeMap;

use super::*;
use crate::{Tensor, Value, Values};

const DIGITS: &[u8] = include_bytes!("../../../ncn-node/models/digits/manifest.json");
const SEVEN: &[u8] = include_bytes!("../../../examples/data/7.png");

fn png(width: u32, height: u32, color: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    file
}

fn problem(inputs: impl Into<Values>) -> String {
    Model::parse(DIGITS).unwrap().manifest().prepare(&inputs.into(), None).unwrap_err().to_string()
}

#[test]
fn the_digits_manifest_reads_and_prepares() {
    let model = Model::parse(DIGITS).unwrap();
    let tensors = model.manifest().prepare(&Values::from([("image", Value::png(SEVEN))]), None).unwrap();
    let image = &tensors["image"];
    assert_eq!(image.shape(), [1, 1, 8, 8]);
    let values = image.to_f32().unwrap();
    assert!(values.iter().all(|value| (0.0..=1.0).contains(value)) && values.iter().any(|value| *value > 0.5));
}

#[test]
fn colours_become_gray() {
    let model = Model::parse(DIGITS).unwrap();
    let gray = png(8, 8, png::ColorType::Grayscale, &[100; 64]);
    let rgba = png(8, 8, png::ColorType::Rgba, &[100; 256]);
    let rgb = png(8, 8, png::ColorType::Rgb, &[100; 192]);
    let prepare = |data: Vec<u8>| model.manifest().prepare(&Values::from([("image", Value::png(data))]), None).unwrap();
    assert_eq!(prepare(gray.clone()), prepare(rgba));
    assert_eq!(prepare(gray), prepare(rgb));
}

#[test]
fn bad_images_are_refused_with_a_remedy() {
    let large = png(28, 28, png::ColorType::Grayscale, &[0; 784]);
    assert!(problem([("image", Value::png(large))]).contains("28x28 pixels, the model takes 8x8: resize it"));
    assert!(problem([("image", Value::png(&b"GIF89a"[..]))]).contains("not a readable PNG"));
    assert!(problem([("image", Value::png(&b""[..]))]).contains("not a readable PNG"));
    let jpeg = Value::File { media_type: "image/jpeg".into(), data: Bytes::new() };
    assert!(problem([("image", jpeg)]).contains("send it as image/png"));
    assert!(problem([("image", "seven")]).contains("send a PNG of 8x8"));
    // A header that promises 4 billion pixels is judged by its header.
    let mut bomb = png(8, 8, png::ColorType::Grayscale, &[0; 64]);
    bomb[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    assert!(problem([("image", Value::png(bomb))]).contains('`'));
}

#[test]
fn every_truncation_and_every_flipped_byte_is_safe() {
    let model = Model::parse(DIGITS).unwrap();
    for cut in 0..SEVEN.len() {
        assert!(model.manifest().prepare(&Values::from([("image", Value::png(&SEVEN[..cut]))]), None).is_err(), "cut at {cut}");
    }
    for position in 0..SEVEN.len() {
        let mut bytes = SEVEN.to_vec();
        bytes[position] ^= 0x55;
        let _ = model.manifest().prepare(&Values::from([("image", Value::png(bytes))]), None);
    }
}

#[test]
fn tensors_are_checked() {
    let tensor = |shape: Vec<usize>| Tensor::from_f32(shape.clone(), &vec![0.0; shape.iter().product()]).unwrap();
    let model = Model::parse(DIGITS).unwrap();
    let prepare = |inputs: Values| model.manifest().prepare(&inputs, None);
    assert!(prepare(Values::from([("image", tensor(vec![3, 1, 8, 8]))])).is_ok());
    assert!(problem([("image", tensor(vec![0, 1, 8, 8]))]).contains("it has to be [batch, 1, 8, 8]"));
    assert!(problem([("image", tensor(vec![8, 8]))]).contains("it has to be [batch, 1, 8, 8]"));
    let integers = Tensor::new(DataType::U8, vec![1, 1, 8, 8], vec![0; 64]).unwrap();
    assert!(problem([("image", integers)]).contains("has to hold f32"));
    assert!(problem(Values::new()).contains("missing"));
    assert!(problem([("picture", tensor(vec![1]))]).contains("it takes: image"));
}

#[test]
fn outputs_are_checked_and_labelled() {
    let model = Model::parse(DIGITS).unwrap();
    let mut scores = [0.0; 20];
    (scores[7], scores[13]) = (0.9, 0.8);
    let give = |rows: usize| {
        let tensor = Tensor::from_f32(vec![rows, 10], &scores[..rows * 10]).unwrap();
        model.manifest().finish(BTreeMap::from([("scores".to_owned(), tensor)]), &Tensors::new())
    };
    assert_eq!(give(1).unwrap().text("label"), Some("7"));
    assert_eq!(give(2).unwrap().text("label.1"), Some("3"));
    assert!(model.manifest().finish(BTreeMap::new(), &Tensors::new()).is_err());
    let wrong = Tensor::from_f32(vec![1, 9], &scores[..9]).unwrap();
    assert!(model.manifest().finish(BTreeMap::from([("scores".to_owned(), wrong)]), &Tensors::new()).is_err());
}

#[test]
fn bad_manifests_are_refused() {
    let change = |from: &str, to: &str| {
        let text = std::str::from_utf8(DIGITS).unwrap();
        assert!(text.contains(from), "{from}");
        Model::parse(text.replace(from, to)).unwrap_err().to_string()
    };
    assert!(change("\"digits\"", "\"../digits\"").contains("name"));
    assert!(change("\"path\": \"model.onnx\"", "\"path\": \"../model.onnx\"").contains("files.path"));
    assert!(change("\"entry\": \"model.onnx\"", "\"entry\": \"other.onnx\"").contains("entry"));
    assert!(change("\"price\": \"10000000000000000\"", "\"price\": \"0\"").contains("price"));
    assert!(change("\"width\": 8", "\"width\": 9").contains("image"));
    assert!(change("\"name\": \"digits\"", "\"name\": \"digits\", \"nmae\": 1").contains("nmae"));
    assert!(matches!(Model::parse(vec![b' '; MAX_MANIFEST_BYTES + 1]), Err(ManifestError::TooLarge(_))));
}
