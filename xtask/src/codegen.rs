//! Generates the Rust code of `proto/` with a compiler in Rust, so that nobody needs protoc.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

const FILES: [&str; 4] = ["ncn/v1/types.proto", "ncn/v1/gateway.proto", "ncn/v1/registry.proto", "ncn/v1/worker.proto"];
const GENERATED: &str = "ncn-client/src/proto/ncn.v1.rs";

pub(crate) fn run(check: bool) -> Result<()> {
    let root = crate::root();
    let out = root.join("target/codegen");
    fs::create_dir_all(&out)?;
    let descriptors = protox::compile(FILES, [root.join("proto")]).context("proto/ does not compile")?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_transport(true)
        .out_dir(&out)
        .compile_fds(descriptors)
        .context("cannot generate code")?;
    let file = out.join("ncn.v1.rs");
    format(&file)?;
    let generated = fs::read_to_string(&file)?;
    let committed = root.join(GENERATED);
    if check {
        if fs::read_to_string(&committed).ok().as_deref() != Some(&generated) {
            bail!("{GENERATED} is not what proto/ generates: run `cargo xtask codegen` and commit the result");
        }
        return Ok(());
    }
    fs::write(&committed, generated).with_context(|| format!("cannot write {GENERATED}"))
}

/// Formatted here, so that `cargo fmt` finds nothing to change.
fn format(file: &Path) -> Result<()> {
    let status = Command::new("rustfmt").args(["--edition", "2024"]).arg(file).status().context("rustfmt does not start")?;
    if !status.success() {
        bail!("rustfmt failed on {}", file.display());
    }
    Ok(())
}
