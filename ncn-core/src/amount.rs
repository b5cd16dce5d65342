//! Money, in the token's base units.

use std::{fmt, iter::Sum, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// An amount of the network's token in base units (10^-18 NCN). Arithmetic is checked: there is no way to wrap around.
///
/// It is written as a decimal string wherever it leaves the process, because JSON numbers lose precision past 2^53.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(u128);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One whole token.
    pub const TOKEN: Self = Self(1_000_000_000_000_000_000);

    /// An amount of `units` base units.
    pub const fn new(units: u128) -> Self {
        Self(units)
    }

    /// `tokens` whole tokens; `None` when that is more than an amount can hold.
    pub const fn tokens(tokens: u64) -> Option<Self> {
        match Self::TOKEN.0.checked_mul(tokens as u128) {
            Some(units) => Some(Self(units)),
            None => None,
        }
    }

    /// The number of base units.
    pub const fn units(self) -> u128 {
        self.0
    }

    /// The sum, or `None` on overflow.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(units) => Some(Self(units)),
            None => None,
        }
    }

    /// The difference, or `None` when `other` is larger.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(units) => Some(Self(units)),
            None => None,
        }
    }

    /// True for zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Adds amounts up; `None` on overflow.
    pub fn checked_sum(amounts: impl IntoIterator<Item = Self>) -> Option<Self> {
        amounts.into_iter().try_fold(Self::ZERO, Self::checked_add)
    }
}

/// In whole tokens, for people: `0.01 NCN`.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / Self::TOKEN.0, self.0 % Self::TOKEN.0);
        if fraction == 0 {
            write!(f, "{whole} NCN")
        } else {
            let digits = format!("{fraction:018}");
            write!(f, "{whole}.{} NCN", digits.trim_end_matches('0'))
        }
    }
}

/// Why a text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AmountError {
    /// It is no number of base units.
    #[error("`{0}` is not an amount: write base units as a decimal integer without sign, spaces or leading zeros")]
    Units(String),
    /// It is no number of tokens.
    #[error("`{0}` is no amount of tokens: write for example 1.5")]
    Tokens(String),
}

impl Amount {
    /// An amount in whole tokens, as people write it and as it is shown: `1.5`, or `1.5 NCN`. All of its digits count.
    ///
    /// # Errors
    /// It is no decimal number, or has more than 18 digits after the point, or is too large.
    pub fn from_tokens(text: &str) -> Result<Self, AmountError> {
        let problem = || AmountError::Tokens(text.chars().take(48).collect());
        let number = text.strip_suffix(" NCN").unwrap_or(text);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 18 {
            return Err(problem());
        }
        format!("{whole}{fraction:0<18}").parse().map(Self).map_err(|_| problem())
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        // One spelling per amount, so that a changed text is always a changed amount.
        let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let shown = || AmountError::Units(text.chars().take(48).collect());
        if !canonical {
            return Err(shown());
        }
        text.parse().map(Self).map_err(|_| shown())
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Sum for Amount {
    /// Saturates; for displays. Where money moves, use [`Amount::checked_sum`].
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        Self(iter.fold(0, |sum, amount| sum.saturating_add(amount.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_shown() {
        assert_eq!(Amount::from_tokens("0.000000000000000001").unwrap(), Amount::new(1));
        assert_eq!(Amount::from_tokens("12.5").unwrap(), Amount::new(12_500_000_000_000_000_000));
        for amount in [Amount::ZERO, Amount::TOKEN, Amount::new(1), Amount::new(12_500_000_000_000_000_000), Amount::new(u128::MAX)]
        {
            assert_eq!(Amount::from_tokens(&amount.to_string()), Ok(amount));
        }
        for bad in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "1e3",
            "1,5",
            "0.0000000000000000001",
            "999999999999999999999999",
            "1 ncn",
            " 1",
            "1.0 NCN NCN",
        ] {
            assert!(matches!(Amount::from_tokens(bad), Err(AmountError::Tokens(_))), "{bad}");
        }
    }

    #[test]
    fn one_spelling_per_amount() {
        for bad in ["", "+1", "-1", "01", "00", "1.0", " 1", "0x1", "340282366920938463463374607431768211456"] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
        assert_eq!("340282366920938463463374607431768211455".parse(), Ok(Amount::new(u128::MAX)));
        assert_eq!(serde_json::to_string(&Amount::TOKEN).unwrap(), "\"1000000000000000000\"");
    }

    #[test]
    fn shows_tokens() {
        assert_eq!(Amount::new(10_000_000_000_000_000).to_string(), "0.01 NCN");
        assert_eq!(Amount::tokens(3).unwrap().to_string(), "3 NCN");
        assert_eq!(Amount::new(1).to_string(), "0.000000000000000001 NCN");
    }
}
