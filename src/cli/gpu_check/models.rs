//! Models and batches of the checks: random weights and pixels of a fixed pattern.

use crate::config::{Activation, Augment, OptimConfig};
use crate::engine::{Objective, TeacherPlan, Trainable, Training};
use crate::image::{Normalise, PixelBuffer};
use crate::model::names::Role;
use crate::model::params::Layout;
use crate::model::{ClipConfig, Moe, TextConfig, VisionConfig};
use crate::num::{index_u32, round_f32};

/// A model of a few thousand parameters with heads of 16 and 32 values.
pub(super) fn tiny(moe: bool) -> ClipConfig {
    let (layers, heads) = (3, 2);
    let vision =
        VisionConfig { image_size: 8, patch: 4, width: 32, layers, heads, hidden: 48 };
    let text =
        TextConfig { context: 6, vocabulary: 20, width: 64, layers, heads, hidden: 40 };
    let moe = moe.then(|| mixture(3, vec![1], vec![0, 2]));
    ClipConfig { embed_dim: 12, activation: Activation::Gelu, vision, text, moe }
}

fn mixture(experts: usize, vision_blocks: Vec<usize>, text_blocks: Vec<usize>) -> Moe {
    Moe { experts, top_k: 2, rank: None, vision_blocks, text_blocks }
}

/// A ViT-B with patches of `patch` pixels and so many blocks per tower; mixtures have eight
/// experts in every second block.
pub(super) fn vit_b(patch: usize, layers: usize, moe: bool) -> ClipConfig {
    let vision = VisionConfig {
        image_size: 224,
        patch,
        width: 768,
        layers,
        heads: 12,
        hidden: 3072,
    };
    let text = TextConfig {
        context: 77,
        vocabulary: 49408,
        width: 512,
        layers,
        heads: 8,
        hidden: 2048,
    };
    let blocks: Vec<usize> = (0..layers).skip(layers.min(2) - 1).step_by(2).collect();
    let moe = moe.then(|| mixture(8, blocks.clone(), blocks));
    ClipConfig { embed_dim: 512, activation: Activation::QuickGelu, vision, text, moe }
}

/// A number in [-1, 1) that depends on its place alone: half a billion weights in a second.
fn pattern(index: usize, seed: u32) -> f32 {
    let mut bits =
        index_u32(index & 0xffff_ffff).wrapping_add(seed).wrapping_mul(0x9e37_79b1);
    bits = (bits ^ bits >> 15).wrapping_mul(0x85eb_ca6b);
    bits ^= bits >> 13;
    bits as f32 / (1_u32 << 31) as f32 - 1.0
}

/// Weights that keep activations near one.
pub(super) fn values(config: &ClipConfig, seed: u32) -> Vec<f32> {
    let layout = Layout::new(config);
    let mut values = vec![0.0; layout.len()];
    for (parameter, range) in layout.iter() {
        let gain = parameter.role == Role::Norm && parameter.name.ends_with("weight");
        let inputs = parameter.shape.last().copied().unwrap_or(1);
        let scale = match parameter.role {
            Role::Weight | Role::Router => 1.5 / round_f32(inputs as f64).sqrt(),
            Role::LogitScale => 0.0,
            _ => 0.1,
        };
        let offset = match parameter.role {
            Role::LogitScale => 2.66,
            _ => f32::from(u8::from(gain)),
        };
        let start = range.start;
        crate::par::for_each_chunk(&mut values[range], 1 << 16, |piece, own| {
            for (i, value) in own.iter_mut().enumerate() {
                *value = offset + scale * pattern(start + (piece << 16) + i, seed);
            }
        });
    }
    values
}

/// Pictures as normalized values, and captions of various lengths: what is checked.
pub(super) fn pairs(config: &ClipConfig, n: usize) -> (Vec<f32>, Vec<u32>) {
    let mut pixels = vec![0.0; n * 3 * config.vision.image_size.pow(2)];
    crate::par::for_each_chunk(&mut pixels, 1 << 16, |piece, own| {
        for (i, value) in own.iter_mut().enumerate() {
            *value = 1.7 * pattern((piece << 16) + i, 77);
        }
    });
    (pixels, captions(config, n, false))
}

/// Captions that are as long as the context where they are `full`, else of various lengths.
fn captions(config: &ClipConfig, n: usize, full: bool) -> Vec<u32> {
    let context = config.text.context;
    let last = config.text.vocabulary - 1;
    let mut ids = vec![0; n * context];
    for (caption, own) in ids.chunks_exact_mut(context).enumerate() {
        let end = if full { context - 1 } else { 1 + caption * 7 % (context - 1) };
        own[0] = index_u32(last - 1);
        for (place, id) in own.iter_mut().enumerate().take(end).skip(1) {
            *id = index_u32(1 + (caption * 7919 + place * 104_729) % (last - 2));
        }
        own[end] = index_u32(last);
    }
    ids
}

/// Pictures as levels, which a card gets where augmentation leaves them so, and captions as
/// long as the context: what is timed.
pub(super) fn full_pairs(config: &ClipConfig, n: usize) -> (PixelBuffer, Vec<u32>) {
    let mut levels = vec![0; n * 3 * config.vision.image_size.pow(2)];
    crate::par::for_each_chunk(&mut levels, 1 << 16, |piece, own| {
        for (i, level) in own.iter_mut().enumerate() {
            // The high bits of a multiplicative hash.
            let place = index_u32((piece << 16) + i);
            [*level, ..] = place.wrapping_mul(2_654_435_761).to_be_bytes();
        }
    });
    (PixelBuffer::Levels(levels, Normalise::OPENAI), captions(config, n, true))
}

/// The losses and the teacher of a check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Losses {
    pub(super) objective: Objective,
    pub(super) teacher: Option<TeacherPlan>,
}

/// A training of all tensors.
pub(super) fn training(config: &ClipConfig, losses: Losses) -> Training {
    let optim = OptimConfig {
        steps: 1000,
        batch: 0,
        micro_batch: 0,
        lanes: 4,
        learning_rate: 1e-4,
        final_learning_rate: 0.0,
        warmup: 0,
        beta1: 0.9,
        beta2: 0.98,
        epsilon: 1e-6,
        weight_decay: 0.2,
        clip_norm: 1.0,
        augment: Augment::None,
        validate_every: 0,
        checkpoint_every: 0,
    };
    Training {
        optim,
        trainable: Trainable::all(config),
        objective: losses.objective,
        teacher: losses.teacher,
    }
}
