use std::collections::BTreeMap;

use super::*;
use crate::{Tensor, Value, Values, compute::MAX_OUTPUT_VALUES};

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
        let image = Values::from([("image", Value::png(&SEVEN[..cut]))]);
        assert!(model.manifest().prepare(&image, None).is_err(), "cut at {cut}");
        // What is looked at without decoding: the end's checksum is not.
        assert!(cut + 4 >= SEVEN.len() || model.manifest().check(&image).is_err(), "cut at {cut}");
    }
    model.manifest().check(&Values::from([("image", Value::png(SEVEN))])).unwrap();
    for position in 0..SEVEN.len() {
        let mut bytes = SEVEN.to_vec();
        bytes[position] ^= 0x55;
        let image = Values::from([("image", Value::png(bytes))]);
        let _ = (model.manifest().prepare(&image, None), model.manifest().check(&image));
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
fn rows_are_as_many_as_their_labels_can_be_delivered() {
    let rows = |rows: usize| Tensor::from_f32(vec![rows, 1, 8, 8], &vec![0.0; rows * 64]).unwrap();
    // One value more is the scores.
    let most = MAX_OUTPUT_VALUES - 1;
    let model = Model::parse(DIGITS).unwrap();
    assert_eq!(model.manifest().check(&[("image", rows(most))].into()), Ok(()));
    assert!(problem([("image", rows(most + 1))]).contains("send fewer rows at once"));
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
    // What a terminal obeys.
    assert!(change("\"name\": \"scores\"", "\"name\": \"\\u001b[31m\"").contains("control"));
    let dimensions = format!("\"shape\": [{}", "0, ".repeat(crate::tensor::MAX_RANK));
    assert!(change("\"shape\": [", &dimensions).contains("entries"));
    assert!(matches!(Model::parse(vec![b' '; MAX_MANIFEST_BYTES + 1]), Err(ManifestError::TooLarge(_))));
}

/// A tokenizer whose tokens are the text's bytes.
struct Bytes8;

impl Tokenize for Bytes8 {
    fn tokens(&self, text: &str) -> Result<Tokens, String> {
        if text.len() > 8 {
            return Err("is too long".into());
        }
        let ids: Vec<i64> = text.bytes().map(i64::from).collect();
        Ok(Tokens { mask: vec![1; ids.len()], types: vec![0; ids.len()], ids })
    }
}

const MINILM: &[u8] = include_bytes!("../../../models/minilm/manifest.json");
const SMOLLM2: &[u8] = include_bytes!("../../../models/smollm2/manifest.json");

#[test]
fn texts_become_tokens_and_states_an_average() {
    let model = Model::parse(MINILM).unwrap();
    let manifest = model.manifest();
    let text = Values::from([("text", "cats")]);
    assert!(manifest.prepare(&text, None).unwrap().is_empty(), "without a tokenizer there are no tokens");
    let tensors = manifest.prepare(&text, Some(&Bytes8)).unwrap();
    assert_eq!(tensors["input_ids"].to_i64().unwrap(), [99, 97, 116, 115]);
    assert_eq!(tensors["attention_mask"].shape(), [1, 4]);
    assert!(manifest.prepare(&tensors.clone().into_iter().collect(), None).is_ok(), "the tensors may be sent in its place");
    let refused = manifest.prepare(&Values::from([("text", "far too long")]), Some(&Bytes8)).unwrap_err();
    assert_eq!(refused.to_string(), "`text`: is too long");
    assert!(manifest.check(&Values::new()).unwrap_err().to_string().contains("missing"));
    assert!(manifest.check(&Values::from([("text", Value::png(SEVEN))])).unwrap_err().to_string().contains("send a text"));

    // Two rows: one of two tokens that count, one of one; the uncounted ones must not matter.
    let mask = Tensor::new(DataType::I64, vec![2, 2], [1_i64, 1, 1, 0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
    let inputs = Tensors::from([("attention_mask".into(), mask.unwrap())]);
    let mut states = vec![0.0; 2 * 2 * 384];
    (states[0], states[384 + 1], states[768], states[768 + 1], states[1_152]) = (3.0, 4.0, 6.0, 8.0, 100.0);
    let states = Tensors::from([("last_hidden_state".into(), Tensor::from_f32(vec![2, 2, 384], &states).unwrap())]);
    let values = manifest.finish(states, &inputs).unwrap();
    let embedding = values.get("embedding").unwrap().as_tensor().unwrap().to_f32().unwrap();
    assert_eq!((embedding[0], embedding[1]), (0.6, 0.8), "averaged, and of length 1");
    assert_eq!((embedding[384], embedding[385]), (0.6, 0.8));
    assert!(values.get("last_hidden_state").is_none(), "given in its place");
}

#[test]
fn generation_takes_one_text() {
    let model = Model::parse(SMOLLM2).unwrap();
    let check = |inputs: Values| model.manifest().check(&inputs);
    assert!(check(Values::from([("prompt", "x")])).is_ok());
    assert!(check(Values::from([("messages", r#"[{"role":"user","content":"Hi"}]"#)])).is_ok());
    assert_eq!(check(Values::from([("messages", "[]")])).unwrap_err().name, "messages");
    assert!(check(Values::new()).unwrap_err().to_string().contains("exactly one"));
    assert!(check(Values::from([("prompt", "x"), ("messages", "[]")])).is_err());
}

#[test]
fn batches_need_tensors_with_rows() {
    let batched = |manifest: &[u8]| {
        let text = std::str::from_utf8(manifest).unwrap().replace("\"limits\": {", "\"limits\": { \"batch\": 4,");
        Model::parse(text).map(drop)
    };
    assert!(batched(DIGITS).is_ok());
    assert!(batched(SMOLLM2).unwrap_err().to_string().contains("limits.batch"));
}

#[test]
fn outputs_that_no_request_can_be_given_are_refused() {
    let of = |shape: serde_json::Value| {
        let mut manifest: serde_json::Value = serde_json::from_slice(DIGITS).unwrap();
        manifest["outputs"] = serde_json::json!([{ "type": "tensor", "name": "scores", "dtype": "f32", "shape": shape }]);
        Model::parse(manifest.to_string()).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(of(serde_json::json!(["batch", 2_097_152])), Ok(()));
    for shape in
        [serde_json::json!(["batch", 2_097_153]), serde_json::json!([4_096, 4_096]), serde_json::json!([1_u64 << 32, 1_u64 << 32])]
    {
        assert!(of(shape.clone()).unwrap_err().contains("outputs.shape"), "{shape}");
    }
}

#[test]
fn outputs_may_be_empty_and_inputs_may_not() {
    let manifest = Model::parse(DIGITS).unwrap().manifest().clone();
    let nothing = Tensor::from_f32(vec![0, 10], &[]).unwrap();
    let values = manifest.finish([("scores".into(), nothing.clone())].into(), &BTreeMap::new()).unwrap();
    assert_eq!(values.get("scores").and_then(Value::as_tensor), Some(&nothing));
    let image = Tensor::from_f32(vec![0, 1, 8, 8], &[]).unwrap();
    assert!(problem([("image", Value::Tensor(image))]).contains("has the shape [0, 1, 8, 8]"));
}

#[test]
fn pixels_are_not_decoded_to_look_at_an_order() {
    let side = 4_096;
    let of = |side: u32| {
        let mut manifest: serde_json::Value = serde_json::from_slice(DIGITS).unwrap();
        let input = &mut manifest["inputs"][0];
        input["shape"] = serde_json::json!(["batch", 1, side, side]);
        (input["from"]["image"]["width"], input["from"]["image"]["height"]) = (side.into(), side.into());
        Model::parse(manifest.to_string())
    };
    let model = of(side).unwrap();
    // All of its data is missing but for the header and the end: the pixels' own errors are found where they are decoded.
    let whole = png(side, side, png::ColorType::Grayscale, &vec![0; (side * side) as usize]);
    let header: Vec<u8> = whole[..33].iter().chain(&whole[whole.len() - 12..]).copied().collect();
    let image = Values::from([("image", Value::png(header))]);
    model.manifest().check(&image).unwrap();
    model.manifest().prepare(&image, None).unwrap_err();
    let refused = of(side + 1).unwrap_err().to_string();
    assert!(refused.contains("16777216 pixels"), "{refused}");
}

#[test]
fn the_first_of_the_largest_scores_names_the_label() {
    let model = Model::parse(DIGITS).unwrap();
    let label = |scores: [f32; 10]| {
        let tensors = Tensors::from([("scores".to_owned(), Tensor::from_f32(vec![1, 10], &scores).unwrap())]);
        model.manifest().finish(tensors, &Tensors::new()).map(|values| values.text("label").unwrap().to_owned())
    };
    assert_eq!(label([0.0, 2.0, 1.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]).unwrap(), "1");
    assert_eq!(label([-0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).unwrap(), "0");
    for position in [0, 5, 9] {
        let mut scores = [1.0; 10];
        scores[position] = f32::NAN;
        assert!(label(scores).unwrap_err().to_string().contains("NaN"));
    }
}
