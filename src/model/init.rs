//! Random initialization, exactly `open_clip`'s distributions.
//!
//! Every tensor draws from a stream of its own name: adding a layer moves no other draw.

use super::names::{Parameter, ParameterId, Part};
use super::params::Layout;
use super::{Checkpoint, ClipConfig, Tower};
use crate::rng;

/// ln(1 / 0.07): the logit scale every CLIP starts from.
const LOGIT_SCALE: f32 = 2.659_26;

/// A dense model with fresh weights.
pub fn dense(config: &ClipConfig, seed: u64) -> Checkpoint {
    let layout = Layout::new(config);
    let mut values = vec![0.0; layout.len()];

    for (parameter, range) in layout.iter() {
        let name = format!("init/{}", parameter.name);
        fill(config, parameter, &mut rng::stream(seed, &name), &mut values[range]);
    }
    Checkpoint { config: config.clone(), values }
}

fn fill(
    config: &ClipConfig,
    parameter: &Parameter,
    stream: &mut rng::Stream,
    out: &mut [f32],
) {
    let root = |n: usize| 1.0 / (n as f32).sqrt();
    match parameter.id {
        ParameterId::LogitScale => out.fill(LOGIT_SCALE),

        // `open_clip` draws these with a standard deviation of width^-0.5.
        ParameterId::ClassEmbedding
        | ParameterId::PositionEmbedding(Tower::Vision)
        | ParameterId::Projection(_) => {
            let tower = match parameter.id {
                ParameterId::Projection(tower) => tower,
                _ => Tower::Vision,
            };
            rng::fill_normal(stream, root(config.tower(tower).width), out);
        }
        ParameterId::PositionEmbedding(Tower::Text) => {
            rng::fill_normal(stream, 0.01, out);
        }
        ParameterId::TokenEmbedding => rng::fill_normal(stream, 0.02, out),

        // PyTorch's default of a convolution: U(±1/√fan_in).
        ParameterId::PatchEmbedding => {
            let fan_in: usize = parameter.shape[1..].iter().product();
            rng::fill_uniform(stream, root(fan_in), out);
        }
        ParameterId::PreNormWeight | ParameterId::PostNormWeight(_) => out.fill(1.0),
        ParameterId::PreNormBias | ParameterId::PostNormBias(_) => out.fill(0.0),
        ParameterId::Block(tower, _, part) => block(config, (tower, part), stream, out),
    }
}

fn block(
    config: &ClipConfig,
    (tower, part): (Tower, Part),
    stream: &mut rng::Stream,
    out: &mut [f32],
) {
    let shape = config.tower(tower);
    let width = shape.width as f32;

    // Every block adds twice to the residual stream, which would grow with the depth.
    let residual = (2.0 * shape.layers as f32).powf(-0.5);

    match (tower, part) {
        (_, Part::Ln1Weight | Part::Ln2Weight) => out.fill(1.0),

        (_, Part::Ln1Bias | Part::Ln2Bias | Part::InProjBias | Part::OutProjBias) => {
            out.fill(0.0);
        }

        // `open_clip` initializes the text tower by hand, with normals.
        (Tower::Text, Part::InProjWeight) => {
            rng::fill_normal(stream, width.powf(-0.5), out);
        }
        (Tower::Text, Part::OutProjWeight | Part::ProjWeight) => {
            rng::fill_normal(stream, width.powf(-0.5) * residual, out);
        }
        (Tower::Text, Part::FcWeight) => {
            rng::fill_normal(stream, (2.0 * width).powf(-0.5), out);
        }
        // Xavier-uniform over [3d, d].
        (Tower::Vision, Part::InProjWeight) => {
            rng::fill_uniform(stream, (6.0 / (4.0 * width)).sqrt(), out);
        }
        // PyTorch's default of a linear layer: U(±1/√fan_in), weight and bias.
        (_, Part::ProjWeight | Part::ProjBias) => {
            rng::fill_uniform(stream, (shape.hidden as f32).powf(-0.5), out);
        }
        (_, Part::FcWeight | Part::FcBias | Part::OutProjWeight) => {
            rng::fill_uniform(stream, width.powf(-0.5), out);
        }
        // A dense model has no experts; upcycling makes them.
        (
            _,
            Part::Router
            | Part::ExpertFcWeight
            | Part::ExpertFcBias
            | Part::ExpertProjWeight
            | Part::ExpertProjBias
            | Part::DeltaFcDown
            | Part::DeltaFcUp
            | Part::DeltaProjDown
            | Part::DeltaProjUp,
        ) => out.fill(0.0),
    }
}
