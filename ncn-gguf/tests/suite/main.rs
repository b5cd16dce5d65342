//! Files made by hand: small models that work, and ones that lie.

mod broken;
mod generate;
mod made;
