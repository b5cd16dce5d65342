//! What time it is.

pub use ncn_client::unix_now;
