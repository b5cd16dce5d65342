//! Dot products of floats as files have them: in full, half and brain precision. Each sum is taken in one order, on every processor.
#![allow(clippy::inline_always, reason = "what is not inlined is compiled for plain processors")]

/// How many sums a dot product is made of, so that processors take several at a time. Rows are multiples of it.
const LANES: usize = 8;
/// How many vectors a row is multiplied with at a time: what was read of the row serves for all of them.
const TOGETHER: usize = 4;

/// A weight as a file has it.
pub(crate) trait Weight: Copy + Send + Sync {
    /// The same number.
    fn to_f32(self) -> f32;

    /// Whether it is one.
    fn is_finite(self) -> bool;
}

/// Half precision (IEEE 754 binary16), by its bits.
#[derive(Clone, Copy)]
pub(crate) struct F16(pub(crate) u16);

/// The upper half of a float, by its bits.
#[derive(Clone, Copy)]
pub(crate) struct BF16(pub(crate) u16);

impl Weight for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Weight for F16 {
    /// The exponent is put right by a product, which does so for the smallest numbers, too.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        const BIAS: f32 = f32::from_bits((127 + 112) << 23);
        let (bits, sign) = (u32::from(self.0 & 0x7fff), u32::from(self.0 & 0x8000));
        f32::from_bits(bits << 13 | sign << 16) * BIAS
    }

    fn is_finite(self) -> bool {
        self.0 & 0x7c00 != 0x7c00
    }
}

impl Weight for BF16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    fn is_finite(self) -> bool {
        self.0 & 0x7f80 != 0x7f80
    }
}

/// Multiplies each row with each vector, both of `columns` elements. The products of a row stand together.
pub(crate) fn multiply<W: Weight>(rows: &[W], vectors: &[f32], columns: usize, products: &mut [f32]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let count = vectors.len() / columns;
            for (row, products) in rows.chunks_exact(columns).zip(products.chunks_exact_mut(count)) {
                let mut vectors = vectors.chunks_exact(columns);
                let (together, rest) = products.as_chunks_mut::<TOGETHER>();
                for products in together {
                    *products = dots(row, std::array::from_fn(|_| vectors.next().unwrap_or_default()));
                }
                for (product, vector) in rest.iter_mut().zip(vectors) {
                    [*product] = dots(row, [vector]);
                }
            }
        },
    );
}

#[inline(always)]
fn dots<W: Weight, const N: usize>(row: &[W], vectors: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[0.0_f32; LANES]; N];
    let vectors = vectors.map(|vector| vector.as_chunks::<LANES>().0);
    for (index, weights) in row.as_chunks::<LANES>().0.iter().enumerate() {
        let weights = weights.map(W::to_f32);
        for (sums, vector) in sums.iter_mut().zip(vectors) {
            let Some(vector) = vector.get(index) else { continue };
            for (sum, (weight, x)) in sums.iter_mut().zip(weights.iter().zip(vector)) {
                *sum += weight * x;
            }
        }
    }
    sums.map(|sums| sums.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_the_float_that_it_is() {
        for bits in 0..=u16::MAX {
            let all = [
                (half::f16::from_bits(bits).to_f32(), F16(bits).is_finite().then(|| F16(bits).to_f32())),
                (half::bf16::from_bits(bits).to_f32(), BF16(bits).is_finite().then(|| BF16(bits).to_f32())),
            ];
            for (expected, found) in all {
                assert_eq!(Some(expected.to_bits()).filter(|_| expected.is_finite()), found.map(f32::to_bits), "{bits:x}");
            }
        }
    }
}
