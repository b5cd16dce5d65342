//! Generates the Rust code of `proto/` with a compiler in Rust, so that nobody needs protoc.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use prost_types::{
    FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

const FILES: [&str; 5] =
    ["ncn/v1/types.proto", "ncn/v1/gateway.proto", "ncn/v1/registry.proto", "ncn/v1/p2p.proto", "ncn/v1/worker.proto"];
const GENERATED: &str = "ncn-client/crates/wire/src/proto/ncn.v1.rs";
/// What a server says of its services to those who ask by reflection.
const DESCRIPTORS: &str = "ncn-client/crates/wire/src/proto/ncn.v1.bin";
/// Who only reads and writes messages needs no tonic.
const GRPC: &str = r#"#[cfg(feature = "grpc")]"#;

pub(crate) fn run(check: bool) -> Result<()> {
    let root = crate::root();
    let out = root.join("target/codegen");
    fs::create_dir_all(&out)?;
    let descriptors = protox::compile(FILES, [root.join("proto")]).context("proto/ does not compile")?;
    let described = descriptions(&descriptors)?;
    let encoded = encode(&descriptors);
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::BoundedCodec")
        .build_transport(true)
        .client_mod_attribute(".", GRPC)
        .server_mod_attribute(".", GRPC)
        .out_dir(&out)
        .compile_fds(descriptors)
        .context("cannot generate code")?;
    let file = out.join("ncn.v1.rs");
    OpenOptions::new().append(true).open(&file)?.write_all(described.as_bytes())?;
    format(&file)?;
    let generated = fs::read_to_string(&file)?;
    let committed = root.join(GENERATED);
    if check {
        if fs::read_to_string(&committed).ok().as_deref() != Some(&generated) {
            bail!("{GENERATED} is not what proto/ generates: run `cargo xtask codegen` and commit the result");
        }
        if fs::read(root.join(DESCRIPTORS)).ok() != Some(encoded) {
            bail!("{DESCRIPTORS} is not what proto/ generates: run `cargo xtask codegen` and commit the result");
        }
        return Ok(());
    }
    fs::write(root.join(DESCRIPTORS), encoded).with_context(|| format!("cannot write {DESCRIPTORS}"))?;
    fs::write(&committed, generated).with_context(|| format!("cannot write {GENERATED}"))
}

/// The files without their comments.
fn encode(files: &FileDescriptorSet) -> Vec<u8> {
    let mut files = files.clone();
    files.file.iter_mut().for_each(|file| file.source_code_info = None);
    files.encode_to_vec()
}

/// For each message, the fields that `ncn_wire::entries` counts before it decodes the message.
fn descriptions(files: &FileDescriptorSet) -> Result<String> {
    let mut described = String::new();
    for message in files.file.iter().flat_map(|file| &file.message_type) {
        let mut fields = String::new();
        for field in &message.field {
            let (kind, number) = (field.r#type(), field.number());
            let rust = rust_name(field.type_name().rsplit('.').next().unwrap_or_default());
            let constructor = match (kind, field.label() == Label::Repeated) {
                (Type::Message, true) => format!("messages::<{rust}>"),
                (Type::Message, false) => format!("message::<{rust}>"),
                (_, false) => continue,
                (Type::Bytes, true) => "values::<::prost::bytes::Bytes>".to_owned(),
                (Type::String, true) => "values::<::prost::alloc::string::String>".to_owned(),
                (Type::Uint64, true) => "numbers::<u64>".to_owned(),
                (_, true) => bail!("{}.{}: describe lists of {kind:?} here", message.name(), field.name()),
            };
            writeln!(fields, "crate::entries::Field::{constructor}({number}),")?;
        }
        let name = rust_name(message.name());
        writeln!(described, "impl crate::entries::Described for {name} {{")?;
        writeln!(described, "const FIELDS: &'static [crate::entries::Field] = &[{fields}];\n}}")?;
    }
    Ok(described)
}

/// The name that prost gives to a message: `TaskID` becomes `TaskId`.
fn rust_name(name: &str) -> String {
    name.strip_suffix("ID").map_or_else(|| name.to_owned(), |start| format!("{start}Id"))
}

/// Formatted here, so that `cargo fmt` finds nothing to change.
fn format(file: &Path) -> Result<()> {
    let status = Command::new("rustfmt").args(["--edition", "2024"]).arg(file).status().context("rustfmt does not start")?;
    if !status.success() {
        bail!("rustfmt failed on {}", file.display());
    }
    Ok(())
}
