//! Which models the kernels are made for.

use crate::model::{ClipConfig, Tower};

/// Values of a head that attention has kernels for (`kernels/attention.cuh`).
const HEADS: [usize; 3] = [16, 32, 64];

/// Columns that the registers of one warp hold in a norm (`kernels/norm.cuh`).
const WIDEST: usize = 1024;

/// Experts of a layer: one per lane of a warp (`kernels/router.cuh`).
const MOST_EXPERTS: usize = 32;

/// Why a model of this shape cannot run on a card, if it cannot: one clause, for a sentence
/// that goes on with what to do.
pub fn refusal(config: &ClipConfig) -> Option<String> {
    for tower in Tower::BOTH {
        let (shape, name) = (config.tower(tower), tower.name());

        let head = shape.width / shape.heads;
        if !HEADS.contains(&head) {
            return Some(format!(
                "the {name} tower has heads of {head} values, expected 16, 32 or 64 on a CUDA \
                 device"
            ));
        }

        // Kernels of the activation read eight values at a time.
        if shape.width > WIDEST || !shape.hidden.is_multiple_of(8) {
            return Some(format!(
                "the {name} tower has width {} and hidden width {}, expected at most {WIDEST} \
                 and a multiple of 8 on a CUDA device",
                shape.width, shape.hidden
            ));
        }
    }

    let experts = config.moe.as_ref().map_or(0, |moe| moe.experts);
    (experts > MOST_EXPERTS).then(|| {
        format!(
            "the model has {experts} experts per layer, expected at most {MOST_EXPERTS} on a \
             CUDA device"
        )
    })
}
