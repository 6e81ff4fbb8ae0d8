//! Tiny models and batches.

use upcycle::config::Activation;
use upcycle::model::names::Role;
use upcycle::model::params::Layout;
use upcycle::model::{ClipConfig, Moe, TextConfig, VisionConfig};
use upcycle::rng::{self, RngExt};

/// A small model with heads of 16 and 32 values; `moe` turns blocks of both towers into
/// mixtures of three experts.
pub(crate) fn config(moe: bool) -> ClipConfig {
    let (layers, heads) = (3, 2);
    let vision =
        VisionConfig { image_size: 8, patch: 4, width: 32, layers, heads, hidden: 48 };
    let text =
        TextConfig { context: 6, vocabulary: 20, width: 64, layers, heads, hidden: 40 };
    let moe = moe.then(|| Moe {
        experts: 3,
        top_k: 2,
        rank: None,
        vision_blocks: vec![1],
        text_blocks: vec![0, 2],
    });
    ClipConfig { embed_dim: 12, activation: Activation::Gelu, vision, text, moe }
}

/// Random weights of a size that keeps activations near one.
pub(crate) fn values(config: &ClipConfig, name: &str) -> Vec<f32> {
    let layout = Layout::new(config);
    let mut stream = rng::stream(7, name);
    let mut values = vec![0.0; layout.len()];
    for (parameter, range) in layout.iter() {
        let gain = parameter.role == Role::Norm && parameter.name.ends_with("weight");
        let scale = match parameter.role {
            Role::Bias | Role::Norm => 0.2,
            Role::Router => 0.5,
            _ => 0.3,
        };
        for value in &mut values[range] {
            let offset = if gain { 1.0 } else { 0.0 };
            *value = offset + scale * (2.0 * stream.random::<f32>() - 1.0);
        }
    }
    values
}

/// `n` random pictures and captions of random lengths.
pub(crate) fn pairs(config: &ClipConfig, n: usize) -> (Vec<f32>, Vec<u32>) {
    let mut stream = rng::stream(11, "pairs");
    let (picture, context) = (3 * config.vision.image_size.pow(2), config.text.context);
    let pixels = (0..n * picture).map(|_| 2.0 * stream.random::<f32>() - 1.0).collect();
    let last = u32::try_from(config.text.vocabulary - 1).unwrap();
    let mut ids = vec![0; n * context];
    for caption in ids.chunks_exact_mut(context) {
        let end = stream.random_range(1..context);
        caption[0] = last - 1;
        caption[1..end].fill_with(|| stream.random_range(1..last - 1));
        caption[end] = last;
    }
    (pixels, ids)
}
