//! Links the program statically where the C library is there for that: it starts twice for each program that it starts, and half of
//! what starting takes is finding libraries. Rust's own switch for it is one for everything that is built; this is for this program.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(linked_statically)");
    let is = |name: &str, value: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).is_ok_and(|found| found == value);
    if is("OS", "linux") && is("ENV", "gnu") && env::var("HOST") == env::var("TARGET") && has_static_libraries() {
        // Rust's standard library names these; here they lead to the static ones.
        let directory = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
        for library in ["c", "gcc_s", "util", "rt", "pthread", "m", "dl"] {
            fs::write(directory.join(format!("lib{library}.so")), "GROUP ( -l:libc.a -l:libgcc_eh.a -l:libgcc.a )\n")?;
        }
        println!("cargo::rustc-link-arg-bins=-L{}", directory.display());
        println!("cargo::rustc-link-arg-bins=-static-pie");
        println!("cargo::rustc-cfg=linked_statically");
    }
    Ok(())
}

fn has_static_libraries() -> bool {
    ["libc.a", "libgcc_eh.a", "libgcc.a", "rcrt1.o"].iter().all(|file| {
        let found = Command::new("cc").arg(format!("-print-file-name={file}")).output();
        // It prints the bare name when there is no such file.
        found.is_ok_and(|found| found.stdout.contains(&b'/'))
    })
}
