//! Where linkers want to be told, tells them that the interpreter has the symbols.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
