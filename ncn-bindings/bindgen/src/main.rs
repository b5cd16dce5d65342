//! uniffi's generator, of the version that ncn-bindings is built with.

fn main() {
    uniffi::uniffi_bindgen_main();
}
