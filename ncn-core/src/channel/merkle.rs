//! Merkle trees as OpenZeppelin's `MerkleProof` checks them: pairs are hashed in ascending order, so a proof needs no directions.

use alloy_primitives::{B256, keccak256};

/// A tree over at least one leaf.
#[derive(Clone, Debug)]
pub struct MerkleTree {
    /// From the leaves up to the root.
    levels: Vec<Vec<B256>>,
}

impl MerkleTree {
    /// A tree over these leaves; none over no leaves. A node without a neighbour moves up as it is.
    pub fn new(leaves: Vec<B256>) -> Option<Self> {
        if leaves.is_empty() {
            return None;
        }
        let mut levels = vec![leaves];
        while let Some(level) = levels.last()
            && level.len() > 1
        {
            let up = level.chunks(2).map(|nodes| match nodes {
                [left, right] => parent(left, right),
                [alone] => *alone,
                _ => B256::ZERO,
            });
            levels.push(up.collect());
        }
        Some(Self { levels })
    }

    /// The root.
    pub fn root(&self) -> B256 {
        self.levels.last().and_then(|top| top.first()).copied().unwrap_or_default()
    }

    /// What proves the leaf at `index`; none when there is no such leaf.
    pub fn proof(&self, mut index: usize) -> Option<Vec<B256>> {
        self.levels.first()?.get(index)?;
        let mut proof = Vec::new();
        for level in &self.levels {
            proof.extend(level.get(index ^ 1));
            index /= 2;
        }
        Some(proof)
    }
}

/// Whether `leaf` is under `root`.
pub fn verify_proof(root: B256, leaf: B256, proof: &[B256]) -> bool {
    proof.iter().fold(leaf, |node, neighbour| parent(&node, neighbour)) == root
}

fn parent(a: &B256, b: &B256) -> B256 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    keccak256([low.as_slice(), high.as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_is_proven_and_nothing_else() {
        for count in 1u64..40 {
            let leaves: Vec<_> = (0..count).map(|leaf| keccak256(leaf.to_be_bytes())).collect();
            let tree = MerkleTree::new(leaves.clone()).unwrap();
            for (index, leaf) in leaves.iter().enumerate() {
                let proof = tree.proof(index).unwrap();
                assert!(verify_proof(tree.root(), *leaf, &proof));
                assert!(!verify_proof(tree.root(), keccak256(leaf), &proof));
            }
            assert_eq!(tree.proof(leaves.len()), None);
        }
        assert!(MerkleTree::new(Vec::new()).is_none());
    }
}
