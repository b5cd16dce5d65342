//! The loops that the time goes into: dot products of 8-bit blocks. They are compiled for plain processors and for those with AVX2;
//! which runs is decided by the processor at hand, not by how the program was built.
#![allow(clippy::inline_always, reason = "what is not inlined is compiled for plain processors")]

/// How many elements share a scale.
pub(crate) const BLOCK: usize = 32;
/// How many vectors a row is multiplied with at a time: what was read of the row serves for all of them.
const TOGETHER: usize = 4;

/// A row or a vector: element `i` of a block is its value times the block's scale.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    values: &'a [[i8; BLOCK]],
    scales: &'a [f32],
}

/// Rows of `width` blocks each, one after the other.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) width: usize,
    pub(crate) values: &'a [[i8; BLOCK]],
    pub(crate) scales: &'a [f32],
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn iter(self) -> impl ExactSizeIterator<Item = Row<'a>> {
        let rows = self.values.chunks_exact(self.width).zip(self.scales.chunks_exact(self.width));
        rows.map(|(values, scales)| Row { values, scales })
    }
}

/// Multiplies each row with each vector. The products of a row stand together.
pub(crate) fn multiply(rows: Rows<'_>, vectors: Rows<'_>, products: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(simd, avx2::Multiply { simd, rows, vectors, products });
    }
    run(&Plain, rows, vectors, products);
}

/// Packs floats as blocks. A block that holds infinities comes out as no numbers at all.
pub(crate) fn pack(floats: &[f32], values: &mut Vec<[i8; BLOCK]>, scales: &mut Vec<f32>) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for block in floats.as_chunks::<BLOCK>().0 {
                let most = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                let inverse = if most == 0.0 { 0.0 } else { 127.0 / most };
                #[allow(clippy::cast_possible_truncation, reason = "scaled to -127..=127")]
                values.push(block.map(|x| (x * inverse).round_ties_even() as i8));
                scales.push(most / 127.0);
            }
        },
    );
}

/// A way to multiply a row with some vectors at once.
trait Dots {
    fn dots<const N: usize>(&self, row: Row<'_>, vectors: [Row<'_>; N]) -> [f32; N];
}

#[inline(always)]
fn run(with: &impl Dots, rows: Rows<'_>, vectors: Rows<'_>, products: &mut [f32]) {
    let count = vectors.iter().len();
    for (row, products) in rows.iter().zip(products.chunks_exact_mut(count)) {
        let mut vectors = vectors.iter();
        let (together, rest) = products.as_chunks_mut::<TOGETHER>();
        for products in together {
            *products = with.dots(row, std::array::from_fn(|_| vectors.next().unwrap_or(row)));
        }
        for (product, vector) in rest.iter_mut().zip(vectors) {
            [*product] = with.dots(row, [vector]);
        }
    }
}

/// For any processor.
struct Plain;

impl Dots for Plain {
    #[inline(always)]
    fn dots<const N: usize>(&self, row: Row<'_>, vectors: [Row<'_>; N]) -> [f32; N] {
        vectors.map(|vector| {
            let blocks = row.values.iter().zip(row.scales).zip(vector.values.iter().zip(vector.scales));
            blocks.fold(0.0, |sum, ((a, a_scale), (b, b_scale))| {
                let dot: i32 = a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                #[allow(clippy::cast_precision_loss, reason = "32 products of 8-bit numbers fit 24 bits")]
                let dot = dot as f32;
                sum + dot * (a_scale * b_scale)
            })
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m256, __m256i};

    use pulp::{Simd, WithSimd, x86::V3};

    use super::{BLOCK, Dots, Row, Rows, run};

    pub(crate) struct Multiply<'a> {
        pub(crate) simd: V3,
        pub(crate) rows: Rows<'a>,
        pub(crate) vectors: Rows<'a>,
        pub(crate) products: &'a mut [f32],
    }

    impl WithSimd for Multiply<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            run(&Avx2(self.simd), self.rows, self.vectors, self.products);
        }
    }

    struct Avx2(V3);

    impl Dots for Avx2 {
        #[inline(always)]
        fn dots<const N: usize>(&self, row: Row<'_>, vectors: [Row<'_>; N]) -> [f32; N] {
            let V3 { avx, avx2, fma, .. } = self.0;
            let load = |block: &[i8; BLOCK]| pulp::cast::<_, __m256i>(*block);
            let ones = avx._mm256_set1_epi16(1);
            let mut sums = [avx._mm256_setzero_ps(); N];
            for (index, (a, a_scale)) in row.values.iter().zip(row.scales).enumerate() {
                let a = load(a);
                let positive = avx2._mm256_abs_epi8(a);
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    let (Some(b), Some(b_scale)) = (vector.values.get(index), vector.scales.get(index)) else { continue };
                    // Of two signed bytes, one has to give its sign to the other. Pairs stay below 2 * 127 * 127, which 16 bits hold.
                    let pairs = avx2._mm256_maddubs_epi16(positive, avx2._mm256_sign_epi8(load(b), a));
                    let dots = avx._mm256_cvtepi32_ps(avx2._mm256_madd_epi16(pairs, ones));
                    *sum = fma._mm256_fmadd_ps(dots, avx._mm256_set1_ps(a_scale * b_scale), *sum);
                }
            }
            sums.map(|sum| pulp::cast::<__m256, [f32; 8]>(sum).iter().sum())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(floats: &[f32]) -> (Vec<[i8; BLOCK]>, Vec<f32>) {
        let (mut values, mut scales) = (Vec::new(), Vec::new());
        pack(floats, &mut values, &mut scales);
        (values, scales)
    }

    fn floats(blocks: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
        blocks.prop_flat_map(|blocks| prop::collection::vec(-1000.0_f32..1000.0, blocks * BLOCK))
    }

    proptest! {
        #[test]
        fn packing_is_off_by_half_a_step_at_most(floats in floats(1..4)) {
            let (values, scales) = packed(&floats);
            for ((block, values), scale) in floats.chunks(BLOCK).zip(values).zip(scales) {
                for (float, value) in block.iter().zip(values) {
                    prop_assert!((float - f32::from(value) * scale).abs() <= scale * 0.501);
                }
            }
        }

        #[test]
        fn every_kernel_gives_what_the_sums_say(width in 1_usize..4, rows in floats(12..13), vectors in floats(12..13), count in 1_usize..10) {
            let (rows, row_scales) = packed(&rows);
            let (vectors, vector_scales) = packed(&vectors);
            let row_count = 12 / width;
            let count = count.min(row_count);
            let rows = Rows { width, values: &rows, scales: &row_scales };
            let vectors = Rows { width, values: &vectors[..count * width], scales: &vector_scales[..count * width] };
            let (mut plain, mut fast) = (vec![0.0; row_count * count], vec![0.0; row_count * count]);
            run(&Plain, rows, vectors, &mut plain);
            multiply(rows, vectors, &mut fast);
            for (index, (plain, fast)) in plain.into_iter().zip(fast).enumerate() {
                let (row, vector) = (rows.iter().nth(index / count).unwrap(), vectors.iter().nth(index % count).unwrap());
                let elements = |row: Row<'_>| -> Vec<f64> {
                    let blocks = row.values.iter().zip(row.scales);
                    blocks.flat_map(|(values, scale)| values.map(|value| f64::from(value) * f64::from(*scale))).collect()
                };
                let products = || elements(row).into_iter().zip(elements(vector)).map(|(a, b)| a * b);
                let (sum, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                prop_assert!((f64::from(plain) - sum).abs() <= size * 1e-5 && (f64::from(fast) - sum).abs() <= size * 1e-5);
            }
        }
    }

    #[test]
    fn the_largest_values_do_not_overflow() {
        let (values, scales) = packed(&[127.0; 4 * BLOCK]);
        let (negative, _) = packed(&[-127.0; 4 * BLOCK]);
        let rows = Rows { width: 4, values: &values, scales: &scales };
        let mut products = [0.0; 2];
        multiply(rows, Rows { width: 4, values: &[values.clone(), negative].concat(), scales: &scales.repeat(2) }, &mut products);
        assert_eq!(products.map(f32::to_bits), [2_064_512.0_f32, -2_064_512.0].map(f32::to_bits));
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let (values, scales) = packed(&[f32::INFINITY; BLOCK]);
        assert!((f32::from(values[0][0]) * scales[0]).is_nan());
    }
}
