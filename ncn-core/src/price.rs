//! What a request costs: a base, and a price for each unit that it takes in and gives out.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Amount;

/// The most units of one request that anything is counted in: more than bytes in or parts out could be.
pub const MAX_UNITS: u64 = u32::MAX as u64;

/// What a model's inputs and outputs are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Unit {
    /// The request itself: one.
    Request = 1,
    /// A token of text.
    Token = 2,
    /// A row of a batch.
    Row = 3,
    /// A second of audio, begun.
    Second = 4,
    /// An image.
    Image = 5,
}

impl Unit {
    const ALL: [Self; 5] = [Self::Request, Self::Token, Self::Row, Self::Second, Self::Image];

    /// The unit with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| *unit as u8 == code)
    }
}

/// As it follows a number: `token`, `second of audio`.
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Token => "token",
            Self::Row => "row",
            Self::Second => "second of audio",
            Self::Image => "image",
        })
    }
}

/// The price of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitPrice {
    /// What is counted.
    pub unit: Unit,
    /// What one of it costs.
    pub price: Amount,
}

impl UnitPrice {
    /// A unit that is counted and costs nothing.
    pub const fn free(unit: Unit) -> Self {
        Self { unit, price: Amount::ZERO }
    }
}

/// What a model's requests cost: `base`, and so much for each unit in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// For a request, whatever it takes.
    pub base: Amount,
    /// For what it takes in.
    pub input: UnitPrice,
    /// For what it gives out.
    pub output: UnitPrice,
}

/// How many units a request takes in and gives out, or may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Units {
    /// Taken in.
    pub input: u64,
    /// Given out.
    pub output: u64,
}

/// A price and numbers of units that come to more than an amount can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("price: {input} units in and {output} units out cost more than an amount can be: lower the price, or the limits")]
pub struct PriceOverflow {
    /// Units in.
    pub input: u64,
    /// Units out.
    pub output: u64,
}

impl Price {
    /// A price that does not depend on use.
    pub const fn flat(base: Amount) -> Self {
        Self { base, input: UnitPrice::free(Unit::Request), output: UnitPrice::free(Unit::Request) }
    }

    /// True when the price does not depend on use.
    pub const fn is_flat(&self) -> bool {
        self.input.price.is_zero() && self.output.price.is_zero()
    }

    /// True when no request costs anything.
    pub const fn is_free(&self) -> bool {
        self.base.is_zero() && self.is_flat()
    }

    /// What a request of so many units costs.
    ///
    /// # Errors
    /// When that is more than an amount can be.
    pub fn cost(&self, units: Units) -> Result<Amount, PriceOverflow> {
        let parts = times(self.input.price, units.input).zip(times(self.output.price, units.output));
        let cost = parts.and_then(|(input, output)| Amount::checked_sum([self.base, input, output]));
        cost.ok_or(PriceOverflow { input: units.input, output: units.output })
    }

    /// What so many units out cost, without base and input: the part of a node that took a request over.
    ///
    /// # Errors
    /// As [`Price::cost`].
    pub fn output_cost(&self, output: u64) -> Result<Amount, PriceOverflow> {
        times(self.output.price, output).ok_or(PriceOverflow { input: 0, output })
    }
}

fn times(price: Amount, units: u64) -> Option<Amount> {
    price.units().checked_mul(units.into()).map(Amount::new)
}

/// For people: `0.01 NCN and 0.000001 NCN a token out`.
impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part =
            |price: &UnitPrice, way: &str| (!price.price.is_zero()).then(|| format!("{} a {} {way}", price.price, price.unit));
        let base = (!self.base.is_zero() || self.is_flat()).then(|| format!("{} a request", self.base));
        let parts: Vec<_> = [base, part(&self.input, "in"), part(&self.output, "out")].into_iter().flatten().collect();
        f.write_str(&parts.join(" + "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn price(base: u128, input: u128, output: u128) -> Price {
        let unit = |price| UnitPrice { unit: Unit::Token, price: Amount::new(price) };
        Price { base: Amount::new(base), input: unit(input), output: unit(output) }
    }

    #[test]
    fn shows_what_costs_something() {
        assert_eq!(Price::flat(Amount::TOKEN).to_string(), "1 NCN a request");
        assert_eq!(price(0, 0, Amount::TOKEN.units()).to_string(), "1 NCN a token out");
        let tokens = Amount::TOKEN.units();
        assert_eq!(price(tokens, 2 * tokens, 3 * tokens).to_string(), "1 NCN a request + 2 NCN a token in + 3 NCN a token out");
    }

    proptest! {
        #[test]
        fn a_cost_is_exact_or_refused(base: u128, input: u128, output: u128, units_in: u64, units_out: u64) {
            let units = Units { input: units_in, output: units_out };
            let cost = price(base, input, output).cost(units);
            let exact = [(base, 1), (input, units_in), (output, units_out)];
            let exact = exact.into_iter().try_fold(0u128, |sum, (price, units)| sum.checked_add(price.checked_mul(units.into())?));
            prop_assert_eq!(cost.ok().map(Amount::units), exact);
        }

        #[test]
        fn more_units_never_cost_less(base in 0u128..1 << 64, input in 0u128..1 << 60, output in 0u128..1 << 60, a: u32, b: u32) {
            let price = price(base, input, output);
            let few = Units { input: a.into(), output: b.into() };
            let more = Units { input: few.input + 1, output: few.output + 1 };
            prop_assert!(price.cost(few).unwrap() <= price.cost(more).unwrap());
        }
    }
}
