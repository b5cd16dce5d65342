use std::{num::NonZero, ops::ControlFlow, sync::LazyLock};

use ncn_gguf::{GenerateError, Generator, GgufError, Message, Prompt, Settings};
use proptest::prelude::*;

use crate::made::{Field, LAYERS, Made, Part, f32s, tokens};

fn open(file: &[u8]) -> Result<Generator, GgufError> {
    Generator::open(file, NonZero::<usize>::MIN)
}

fn refused(made: &Made) -> GgufError {
    open(&made.write().0).err().expect("it has to be refused")
}

fn list(kind: u32, count: u64, bytes: &[u8]) -> Field {
    Field::Raw(9, [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat())
}

#[test]
fn a_made_model_opens() {
    open(&Made::model().write().0).unwrap();
}

#[test]
fn fields_that_lie_are_refused_by_name() {
    let text = |text: &str| Field::Text(text.into());
    let count = tokens().len() as u32;
    let cases = [
        ("llama.block_count", Field::U32(0)),
        ("llama.block_count", Field::U32(1_000_000)),
        ("llama.block_count", Field::U64(u64::MAX)),
        ("llama.block_count", Field::F32(2.0)),
        ("llama.block_count", text("2")),
        ("llama.context_length", Field::U32(0)),
        ("llama.embedding_length", Field::U32(0)),
        ("llama.feed_forward_length", Field::U32(0)),
        ("llama.attention.head_count", Field::U32(0)),
        ("llama.attention.head_count_kv", Field::U32(0)),
        ("llama.attention.head_count_kv", Field::U32(3)),
        ("llama.attention.head_count_kv", Field::U32(8)),
        ("llama.attention.key_length", Field::U32(0)),
        ("llama.attention.key_length", Field::U32(15)),
        ("llama.attention.key_length", Field::U64(u64::MAX - 1)),
        ("llama.attention.value_length", Field::U32(8)),
        ("llama.attention.layer_norm_rms_epsilon", Field::F32(f32::NAN)),
        ("llama.attention.layer_norm_rms_epsilon", Field::U32(1)),
        ("llama.expert_count", Field::U32(8)),
        ("llama.rope.dimension_count", Field::U32(18)),
        ("llama.rope.dimension_count", Field::U32(15)),
        ("llama.rope.freq_base", Field::F32(f32::INFINITY)),
        ("llama.rope.freq_base", Field::F32(0.0)),
        ("llama.rope.freq_base", Field::F32(-10_000.0)),
        ("llama.rope.scaling.type", text("yarn")),
        ("general.alignment", Field::U32(0)),
        ("general.alignment", Field::U32(33)),
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.pre", text("unheard-of")),
        ("tokenizer.ggml.tokens", Field::Texts(vec!["a".into()])),
        ("tokenizer.ggml.tokens", list(4, 1, &[0; 4])),
        ("tokenizer.ggml.token_type", Field::Integers(vec![1])),
        ("tokenizer.ggml.token_type", Field::Texts(tokens())),
        ("tokenizer.ggml.merges", Field::Texts(vec!["th".into()])),
        ("tokenizer.ggml.merges", Field::Texts(vec!["th th".into()])),
        ("tokenizer.ggml.merges", Field::Texts(vec!["no ne".into()])),
        ("tokenizer.ggml.eos_token_id", Field::U32(count)),
        ("tokenizer.ggml.bos_token_id", Field::U64(u64::MAX)),
        ("tokenizer.ggml.add_bos_token", Field::U32(1)),
        ("tokenizer.chat_template", Field::U32(1)),
        ("of.an.unknown.type", Field::Raw(13, vec![0; 8])),
        ("a.list.of.lists", list(9, 1, &[0; 12])),
    ];
    for (name, field) in cases {
        let error = refused(&Made::model().with(name, field));
        assert!(matches!(&error, GgufError::Field { name: field, .. } if field == name), "{name}: {error}");
    }
    let needed = [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
    ];
    for name in needed {
        let error = refused(&Made::model().without(name));
        assert_eq!(error, GgufError::Field { name: name.into(), problem: "is missing".into() });
    }
    let mut twice = Made::model();
    twice.fields.push(("llama.block_count".into(), Field::U32(2)));
    assert_eq!(refused(&twice).to_string(), "field `llama.block_count` is there twice");
    let other = refused(&Made::model().with("general.architecture", text("gemma3")));
    assert_eq!(other, GgufError::Architecture("gemma3".into()));
}

#[test]
fn what_other_engines_run_is_named_with_its_remedy() {
    let split = refused(&Made::model().with("split.count", Field::U32(3))).to_string();
    assert!(split.contains("split.count") && split.contains("join the parts"), "{split}");
    open(&Made::model().with("split.count", Field::U32(1)).write().0).unwrap();
    for (kind, name) in [(20, "IQ4_NL"), (23, "IQ4_XS"), (39, "MXFP4")] {
        let mut made = Made::model();
        made.part("blk.0.attn_q.weight").kind = kind;
        let said = refused(&made).to_string();
        assert!(said.contains(name) && said.contains("another engine"), "{said}");
    }
}

#[test]
fn headers_that_claim_too_much_are_refused() {
    let file = Made::model().write().0;
    let with = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        open(&file).err().expect("it has to be refused")
    };
    // Magic, version, number of tensors, number of fields, length of the first name.
    for (at, bytes) in [
        (0, &b"GGUX"[..]),
        (4, &1_u32.to_le_bytes()),
        (4, &4_u32.to_le_bytes()),
        (8, &u64::MAX.to_le_bytes()),
        (8, &65_000_u64.to_le_bytes()),
        (16, &u64::MAX.to_le_bytes()),
        (16, &4_000_u64.to_le_bytes()),
        (24, &u64::MAX.to_le_bytes()),
        (24, &1_000_u64.to_le_bytes()),
    ] {
        let error = with(at, bytes);
        assert!(matches!(error, GgufError::Header(_) | GgufError::Field { .. }), "{at}: {error}");
    }
    for field in [list(0, u64::MAX, &[]), list(12, u64::MAX / 8 + 2, &[]), list(8, u64::MAX, &[]), Field::Raw(8, vec![0xff; 8])] {
        let mut made = Made::model();
        made.fields.insert(0, ("claims.too.much".into(), field));
        assert!(matches!(refused(&made), GgufError::Header(_)));
    }
    let said = with(4, &3_u32.to_be_bytes()).to_string();
    assert!(said.contains("big-endian"), "{said}");
    let long = Made::model().with(&"x".repeat(300), Field::U32(1));
    assert!(matches!(refused(&long), GgufError::Header(_)));
}

#[test]
fn tensors_that_lie_are_refused_by_name() {
    const NAME: &str = "blk.1.attn_q.weight";
    let changes: [fn(&mut Part); 11] = [
        |part| part.dimensions = vec![u64::MAX, 1],
        |part| part.dimensions = vec![64, u64::MAX],
        |part| part.dimensions = vec![64, 1 << 32, 1 << 32, 2],
        |part| part.dimensions = vec![0, 64],
        |part| part.dimensions = vec![64, 0],
        |part| part.dimensions = vec![33, 64],
        |part| part.dimensions = vec![64, 32],
        |part| part.dimensions = vec![32, 128],
        |part| part.kind = 4,
        |part| part.kind = 99,
        |part| part.bytes[0..2].copy_from_slice(&0x7e00_u16.to_le_bytes()),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut made = Made::model();
        change(made.part(NAME));
        let error = refused(&made);
        let named = matches!(&error, GgufError::Tensor { name, .. } if name == NAME);
        assert!(named, "{index}: {error}");
    }
    for dimensions in [vec![], vec![1; 5]] {
        let mut made = Made::model();
        made.part(NAME).dimensions = dimensions;
        assert!(matches!(refused(&made), GgufError::Header(_)));
    }
    let missing = refused(&Made::model().without(NAME));
    assert_eq!(missing, GgufError::Tensor { name: NAME.into(), problem: "is missing".into() });
    for name in ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", &format!("blk.{LAYERS}.attn_q.weight"), "blk.+0.attn_q.weight"]
    {
        let mut more = Made::model();
        more.parts.push(f32s(name, &[0.0; 32]));
        let error = refused(&more);
        assert!(matches!(&error, GgufError::Tensor { name: refused, .. } if refused == name), "{error}");
    }
    let mut twice = Made::model();
    let again = twice.part(NAME).clone();
    twice.parts.push(again);
    assert_eq!(refused(&twice).to_string(), format!("tensor `{NAME}` is there twice"));
}

#[test]
fn a_small_file_does_not_claim_the_same_bytes_over_and_over() {
    // As floats the tensor takes four times its bytes, and runs into those that follow it.
    let mut made = Made::model();
    made.part("blk.0.attn_q.weight").kind = 0;
    let error = refused(&made);
    assert!(error.to_string().ends_with("shares bytes with another tensor"), "{error}");
}

#[test]
fn a_model_whose_scores_overflow_says_so() {
    let mut made = Made::model();
    *made.part("output_norm.weight") = f32s("output_norm.weight", &[f32::MAX; 64]);
    let generator = open(&made.write().0).unwrap();
    let prompt = generator.tokens(&Prompt::Text("a".into())).unwrap();
    let error = generator.generate(&prompt, &Settings::default(), |_, _| ControlFlow::Continue(()));
    assert_eq!(error, Err(GenerateError::NotNumbers));
}

#[test]
fn no_cut_file_opens() {
    let (file, _) = Made::model().write();
    for length in (0..file.len()).filter(|length| *length < 2_000 || length.is_multiple_of(97)) {
        // What is padded after the last tensor is no part of it.
        assert!(open(&file[..length]).is_err() || length + 32 > file.len(), "{length} of {}", file.len());
    }
}

/// Opens what may be anything, and uses what opens. Whatever comes of it, it is no panic and takes no memory to speak of.
fn try_it(file: &[u8]) {
    let Ok(generator) = open(file) else { return };
    let settings = Settings { max_tokens: 3, temperature: 1.0, ..Settings::default() };
    let hello = Message { role: "user".into(), content: "hi".into() };
    for prompt in [Prompt::Text("the <s>\u{e9}1".into()), Prompt::Messages(vec![hello])] {
        if let Ok(tokens) = generator.tokens(&prompt) {
            let _ = generator.generate(&tokens, &settings, |_, _| ControlFlow::Continue(()));
        }
    }
}

static FILE: LazyLock<(Vec<u8>, usize)> = LazyLock::new(|| Made::model().write());

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn changed_headers_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let (mut file, start) = FILE.clone();
        for (index, byte) in changes {
            file[index.index(start)] = byte;
        }
        try_it(&file);
    }

    #[test]
    fn changed_numbers_do_no_harm(index in any::<prop::sample::Index>(), number in prop::sample::select(vec![0, 1, 2, 255, 1 << 31, u64::from(u32::MAX), 1 << 62, u64::MAX - 31, u64::MAX])) {
        let (mut file, start) = FILE.clone();
        let at = index.index(start - 8);
        file[at..at + 8].copy_from_slice(&number.to_le_bytes());
        try_it(&file);
    }

    #[test]
    fn changed_weights_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200)) {
        let (mut file, start) = FILE.clone();
        let weights = file.len() - start;
        for (index, byte) in changes {
            file[start + index.index(weights)] = byte;
        }
        try_it(&file);
    }

    #[test]
    fn anything_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        try_it(&bytes);
        try_it(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
    }
}
