//! Makes small GGUF files.

/// A field's value.
#[derive(Clone)]
pub(crate) enum Field {
    U32(u32),
    U64(u64),
    F32(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
    /// A type's number and the bytes that follow it.
    Raw(u32, Vec<u8>),
}

/// A tensor: its name, its dimensions with the row's length first, its type's number, and its bytes.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) dimensions: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// A file to be.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) fields: Vec<(String, Field)>,
    pub(crate) parts: Vec<Part>,
}

pub(crate) const WIDTH: usize = 64;
pub(crate) const INNER: usize = 96;
pub(crate) const LAYERS: usize = 2;
pub(crate) const CONTEXT: u32 = 96;
pub(crate) const TEMPLATE: &str = "{% for message in messages %}<s>{{ message['role'] }}: {{ message.content.strip() }}\n{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}";

/// The character that stands for a byte.
fn character(byte: u8) -> char {
    let unseen = (0..=255).filter(|byte| !matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff));
    let place = unseen.clone().position(|unseen: u8| unseen == byte);
    place.map_or(byte.into(), |place| char::from_u32(256 + place as u32).unwrap())
}

/// The tokens of a made model: all bytes, three merges, a control token and the end.
pub(crate) fn tokens() -> Vec<String> {
    let bytes = (0..=255).map(|byte| character(byte).to_string());
    bytes.chain(["th", "the", "\u{120}the", "<s>", "<|im_end|>"].map(String::from)).collect()
}

impl Made {
    /// A model that works.
    pub(crate) fn model() -> Self {
        let tokens = tokens();
        let count = tokens.len();
        let mut kinds = vec![1; count];
        kinds[count - 2..].fill(3);
        let text = |text: &str| Field::Text(text.into());
        let fields = [
            ("general.architecture", text("llama")),
            ("llama.block_count", Field::U32(LAYERS as u32)),
            ("llama.context_length", Field::U32(CONTEXT)),
            ("llama.embedding_length", Field::U32(WIDTH as u32)),
            ("llama.feed_forward_length", Field::U32(INNER as u32)),
            ("llama.attention.head_count", Field::U32(4)),
            ("llama.attention.head_count_kv", Field::U32(2)),
            ("llama.attention.layer_norm_rms_epsilon", Field::F32(1e-5)),
            ("llama.rope.freq_base", Field::F32(10_000.0)),
            ("llama.rope.dimension_count", Field::U32(16)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("smollm")),
            ("tokenizer.ggml.merges", Field::Texts(["t h", "th e", "\u{120} the"].map(String::from).into())),
            ("tokenizer.ggml.token_type", Field::Integers(kinds)),
            ("tokenizer.ggml.tokens", Field::Texts(tokens)),
            ("tokenizer.ggml.add_bos_token", Field::Flag(false)),
            ("tokenizer.ggml.bos_token_id", Field::U32(count as u32 - 2)),
            ("tokenizer.ggml.eos_token_id", Field::U32(count as u32 - 1)),
            ("tokenizer.chat_template", text(TEMPLATE)),
        ];
        let mut made = Self { fields: fields.map(|(name, field)| (name.into(), field)).into(), parts: Vec::new() };
        let mut seed = 1;
        made.parts.push(q8("token_embd.weight", WIDTH, count, &mut seed));
        for layer in 0..LAYERS {
            for (part, columns, rows) in [
                ("attn_q", WIDTH, WIDTH),
                ("attn_k", WIDTH, WIDTH / 2),
                ("attn_v", WIDTH, WIDTH / 2),
                ("attn_output", WIDTH, WIDTH),
                ("ffn_gate", WIDTH, INNER),
                ("ffn_up", WIDTH, INNER),
                ("ffn_down", INNER, WIDTH),
            ] {
                made.parts.push(q8(&format!("blk.{layer}.{part}.weight"), columns, rows, &mut seed));
            }
            made.parts.push(f32s(&format!("blk.{layer}.attn_norm.weight"), &[1.0; WIDTH]));
            made.parts.push(f32s(&format!("blk.{layer}.ffn_norm.weight"), &[1.0; WIDTH]));
        }
        made.parts.push(f32s("output_norm.weight", &[1.0; WIDTH]));
        made
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.fields.retain(|field| field.0 != name);
        self.parts.retain(|part| part.name != name);
        self
    }

    pub(crate) fn with(mut self, name: &str, field: Field) -> Self {
        self.fields.retain(|field| field.0 != name);
        self.fields.push((name.into(), field));
        self
    }

    pub(crate) fn part(&mut self, name: &str) -> &mut Part {
        self.parts.iter_mut().find(|part| part.name == name).unwrap()
    }

    /// The file, and where its tensors' bytes begin.
    pub(crate) fn write(&self) -> (Vec<u8>, usize) {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend((self.parts.len() as u64).to_le_bytes());
        file.extend((self.fields.len() as u64).to_le_bytes());
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u64).to_le_bytes());
            file.extend(text.as_bytes());
        };
        for (name, field) in &self.fields {
            text(&mut file, name);
            let (kind, value): (u32, Vec<u8>) = match field {
                Field::U32(value) => (4, value.to_le_bytes().into()),
                Field::U64(value) => (10, value.to_le_bytes().into()),
                Field::F32(value) => (6, value.to_le_bytes().into()),
                Field::Flag(value) => (7, vec![u8::from(*value)]),
                Field::Text(value) => {
                    let mut bytes = Vec::new();
                    text(&mut bytes, value);
                    (8, bytes)
                }
                Field::Texts(values) => {
                    let mut bytes = [&8_u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
                    for value in values {
                        text(&mut bytes, value);
                    }
                    (9, bytes)
                }
                Field::Integers(values) => {
                    let mut bytes = [&5_u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
                    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                    (9, bytes)
                }
                Field::Raw(kind, bytes) => (*kind, bytes.clone()),
            };
            file.extend(kind.to_le_bytes());
            file.extend(value);
        }
        let mut offset = 0_u64;
        for part in &self.parts {
            text(&mut file, &part.name);
            file.extend((part.dimensions.len() as u32).to_le_bytes());
            file.extend(part.dimensions.iter().flat_map(|size| size.to_le_bytes()));
            file.extend(part.kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
            offset = (offset + part.bytes.len() as u64).next_multiple_of(32);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        let start = file.len();
        for part in &self.parts {
            file.extend(&part.bytes);
            file.resize(start + (file.len() - start).next_multiple_of(32), 0);
        }
        (file, start)
    }
}

/// A tensor of 8-bit blocks with values from a fixed sequence.
fn q8(name: &str, columns: usize, rows: usize, seed: &mut u32) -> Part {
    let mut bytes = Vec::new();
    for _ in 0..columns * rows / 32 {
        bytes.extend(0x1400_u16.to_le_bytes());
        for _ in 0..32 {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((*seed >> 24) as u8);
        }
    }
    Part { name: name.into(), dimensions: vec![columns as u64, rows as u64], kind: 8, bytes }
}

/// A tensor of floats.
pub(crate) fn f32s(name: &str, values: &[f32]) -> Part {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Part { name: name.into(), dimensions: vec![values.len() as u64], kind: 0, bytes }
}
