//! Short programs that use the NCN SDK. See `examples/examples/`; each is run by the tests.

#[cfg(test)]
mod guides;
