//! Files made by hand: small models that work, and ones that lie.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking, and their files are small"
)]

mod broken;
mod generate;
mod made;
