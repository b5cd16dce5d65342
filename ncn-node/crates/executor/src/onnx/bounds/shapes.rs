//! Operators that take sizes or give them.

use super::{super::graph::NodeProto, Fact, Kind, Refusal, flow::refusal};

/// A tensor has no more dimensions than this.
const MOST_RANK: f64 = 8.0;

fn of_rank(rank: f64, size: f64) -> Vec<f64> {
    std::iter::successors(Some(1.0), |at| Some(at + 1.0)).take_while(|at| *at <= rank).map(|_| size).collect()
}

/// How many dimensions.
fn rank_of(shape: &[f64]) -> f64 {
    shape.iter().map(|_| 1.0).sum()
}

/// How many elements a list has, if that is known: a list of sizes may be shorter than its bound.
fn length(list: &Fact) -> Option<f64> {
    match list.exact_shape() {
        Some([length]) if *length <= MOST_RANK => Some(*length),
        _ => None,
    }
}

/// The elements of this kind, in the shape that a list of sizes says.
pub(super) fn of_sizes(data: &Fact, sizes: &Fact) -> Fact {
    let (kind, range) = (data.kind, (data.lo, data.hi));
    #[allow(clippy::cast_precision_loss, reason = "sizes that a tensor can have")]
    let exact = sizes.ints.as_ref().map(|ints| ints.iter().map(|size| (*size).max(0) as f64).collect());
    match (exact, length(sizes)) {
        (Some(exact), _) => Fact::of_sizes(kind, range, exact),
        (None, Some(rank)) => Fact::of_shape(kind, range, of_rank(rank, sizes.hi)),
        (None, None) => Fact::new(kind, range, None, f64::INFINITY),
    }
}

/// How many elements are from `start` to `end`, which count from the end if negative.
fn span(length: f64, start: i64, end: i64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "clamped to the length")]
    let place = |at: i64| (if at < 0 { at as f64 + length } else { at as f64 }).clamp(0.0, length);
    (place(end) - place(start)).max(0.0)
}

pub(super) fn shape_of(node: &NodeProto, data: &Fact) -> Fact {
    let (start, end) = (node.attribute("start").map_or(0, |start| start.i), node.attribute("end").map(|end| end.i));
    let Some(shape) = &data.shape else {
        return Fact::of_shape(Kind::I64, (0.0, data.dim()), vec![f64::INFINITY]);
    };
    let rank = rank_of(shape);
    let fact = Fact::of_sizes(Kind::I64, (0.0, data.dim()), vec![span(rank, start, end.unwrap_or(i64::MAX))]);
    match data.exact_shape() {
        #[allow(clippy::cast_possible_truncation, reason = "sizes are whole numbers")]
        Some(shape)
            if start == 0 && end.is_none() && shape.iter().all(|size| *size <= f64::from(i32::MAX)) && !shape.is_empty() =>
        {
            fact.of_ints(shape.iter().map(|size| *size as i64).collect())
        }
        _ => fact,
    }
}

pub(super) fn nonzero(data: &Fact) -> Fact {
    let rank = data.shape.as_ref().map_or(f64::INFINITY, |shape| rank_of(shape));
    Fact::of_shape(Kind::I64, (0.0, data.dim()), vec![rank, data.count])
}

/// A part; of a list, the part's length is found.
pub(super) fn sliced(node: &NodeProto, inputs: &[Option<Fact>], data: &Fact) -> Fact {
    let given = |index: usize, name: &str, default: i64| {
        let ints = match inputs.get(index).and_then(Option::as_ref) {
            Some(fact) => fact.ints.as_ref(),
            None => match node.attribute(name) {
                Some(attribute) => Some(&attribute.ints),
                None => return Some(default),
            },
        };
        match ints.map(Vec::as_slice) {
            Some([one]) => Some(*one),
            _ => None,
        }
    };
    let (start, end) = (given(1, "starts", 0), given(2, "ends", i64::MAX));
    let plain = matches!(given(3, "axes", 0), Some(0 | -1)) && given(4, "steps", 1) == Some(1);
    match (data.exact_shape(), start, end) {
        (Some([length]), Some(start), Some(end)) if plain => {
            Fact::of_sizes(data.kind, (data.lo, data.hi), vec![span(*length, start, end)])
        }
        _ => data.shaped(data.shape.clone(), data.count),
    }
}

/// What has no elements may have any sizes: so bounds are those of dimensions, not that of the number of elements.
pub(super) fn flattened(node: &NodeProto, data: &Fact) -> Fact {
    let axis = node.attribute("axis").map_or(1, |axis| axis.i);
    let Some(shape) = &data.shape else { return data.shaped(Some(vec![f64::INFINITY; 2]), data.count) };
    let at = usize::try_from(axis.unsigned_abs()).unwrap_or(usize::MAX);
    let at = if axis < 0 { shape.len().saturating_sub(at) } else { at.min(shape.len()) };
    let (rows, columns) = shape.split_at(at);
    let exact = data.exact;
    data.shaped(Some(vec![rows.iter().product(), columns.iter().product()]), data.count).exactly(exact)
}

pub(super) fn joined(node: &NodeProto, inputs: &[Option<Fact>]) -> Result<Vec<Fact>, Refusal> {
    let mut facts = inputs.iter().flatten();
    let first = facts.next().ok_or_else(|| refusal(node, "has no input"))?;
    let all = facts.fold(first.clone(), |all, fact| {
        let (dim, count) = (all.dim() + fact.dim(), all.count + fact.count);
        let rank =
            all.shape.as_ref().filter(|shape| fact.shape.as_ref().is_some_and(|other| other.len() == shape.len())).map(Vec::len);
        let exact = all.exact && fact.exact && rank == Some(1);
        all.join(fact).shaped(rank.map(|rank| vec![dim; rank]), count).exactly(exact)
    });
    Ok(vec![Fact { ints: None, ..all }])
}

/// With dimensions of size 1 added or removed.
pub(super) fn resized(node: &NodeProto, data: &Fact, axes: Option<&Fact>) -> Fact {
    let dim = data.dim();
    let old = node.attribute("axes").map(|axes| axes.ints.len());
    let number = old.or_else(|| axes.and_then(|axes| axes.ints.as_ref()).map(Vec::len));
    let rank = data.shape.as_ref().zip(number).map(|(shape, number)| match node.op_type.as_str() {
        "Squeeze" => shape.len().saturating_sub(number),
        _ => shape.len() + number,
    });
    let fact = data.shaped(rank.map(|rank| vec![dim; rank]), data.count).exactly(data.exact && dim <= 1.0);
    Fact { ints: data.ints.clone(), ..fact }
}

pub(super) fn reshaped(data: &Fact, sizes: Option<&Fact>, node: &NodeProto) -> Fact {
    let most = data.count.max(data.dim());
    #[allow(clippy::cast_precision_loss, reason = "sizes that a tensor can have")]
    let bound = |size: &i64| if *size > 0 { *size as f64 } else { most };
    let exact = node.attribute("shape").map(|sizes| &sizes.ints).or_else(|| sizes.and_then(|sizes| sizes.ints.as_ref()));
    match (exact.map(Vec::as_slice), sizes) {
        // All in one dimension.
        (Some([-1]), _) => {
            let count = data.exact_shape().map_or(data.count, |shape| shape.iter().product());
            data.shaped(Some(vec![count]), count).exactly(data.exact)
        }
        (Some(exact), _) => {
            let known = exact.iter().all(|size| *size > 0);
            data.shaped(Some(exact.iter().map(bound).collect()), data.count).exactly(known)
        }
        // What has no elements may be given sizes that hold more.
        (None, Some(sizes)) => data.shaped(length(sizes).map(|rank| of_rank(rank, most.max(sizes.hi))), data.count),
        (None, None) => data.shaped(None, data.count),
    }
}
