//! How alike experts are while they train.

use crate::analysis;
use crate::engine::Engine;
use crate::error::Result;
use crate::model::{Checkpoint, Tower};
use crate::tables::Layer;

/// Expert similarity (METHOD §6) of every MoE layer at the current weights, those of experts of
/// low rank merged; nothing for a dense model or a single expert.
pub(super) fn similarities(engine: &dyn Engine) -> Result<Vec<(Layer, f64)>> {
    // A dense model is not worth the copy of its weights.
    let config = engine.config().clone();
    if config.moe.is_none() {
        return Ok(Vec::new());
    }

    // An engine keeps its weights flat, or as products of low rank; a checkpoint cuts them into
    // experts.
    let model = Checkpoint { config, values: engine.values()? }.merged();

    let mut found = Vec::new();
    for tower in Tower::BOTH {
        for &block in model.config.moe_blocks(tower) {
            let layer = model.moe_layer(tower, block)?;
            let cosines = analysis::similarity(&layer.experts)?;
            let mean = cosines.mean_off_diagonal();
            found.extend(mean.map(|mean| (Layer::new(tower.name(), block), mean)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Backend, open_model};
    use crate::model::names::tests::tiny;
    use crate::model::params::Layout;
    use crate::rng;

    /// The mean cosine over all ordered pairs of different experts, one product at a time.
    fn slow(model: &Checkpoint, tower: Tower, block: usize) -> f64 {
        let layer = model.moe_layer(tower, block).unwrap();
        let flat: Vec<Vec<f64>> = layer
            .experts
            .iter()
            .map(|expert| {
                expert.fc1.iter().chain(expert.fc2).map(|&v| f64::from(v)).collect()
            })
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();

        let (mut sum, mut pairs) = (0.0, 0.0);
        for (i, a) in flat.iter().enumerate() {
            for (j, b) in flat.iter().enumerate() {
                if i != j {
                    sum += dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
                    pairs += 1.0;
                }
            }
        }
        sum / pairs
    }

    #[test]
    fn experts_of_an_engine_are_as_alike_as_their_weights() {
        for rank in [None, Some(2)] {
            let mut config = tiny(true);
            config.moe.as_mut().unwrap().rank = rank;
            let mut values = vec![0.0; Layout::new(&config).len()];
            rng::fill_normal(&mut rng::stream(7, "values"), 1.0, &mut values);
            let model = Checkpoint { config, values };

            let engine = open_model(model.clone(), Backend::Cpu).unwrap();
            let found = similarities(&*engine).unwrap();
            let whole = model.merged();
            let layers = Tower::BOTH.into_iter().flat_map(|tower| {
                whole.config.moe_blocks(tower).iter().map(move |&block| (tower, block))
            });
            let layers: Vec<_> = layers.collect();
            assert_eq!(found.len(), layers.len());
            for ((name, similarity), (tower, block)) in found.into_iter().zip(layers) {
                assert_eq!(name, Layer::new(tower.name(), block));
                let expected = slow(&whole, tower, block);
                assert!((similarity - expected).abs() < 1e-9, "{similarity} {expected}");
            }
        }
    }

    #[test]
    fn a_dense_model_has_no_experts_to_compare() {
        let config = tiny(false);
        let values = vec![1.0; Layout::new(&config).len()];
        let engine = open_model(Checkpoint { config, values }, Backend::Cpu).unwrap();
        assert!(similarities(&*engine).unwrap().is_empty());
    }
}
