//! CLIP-MoE in the files of a pipeline: groups, experts, and what trained.

use std::collections::BTreeMap;
use std::path::Path;

use upcycle::io::tensors::{self, Tensors};
use upcycle::tables::{self, GroupRow};

/// Checks the results of a pipeline of drawn shapes against the definitions.
pub(crate) fn is_what_it_says(root: &Path) {
    samples_share_a_group_if_they_share_all_clusters(root);
    experts_are_the_dense_ffn_and_the_multiplet(root);
    router_only_training_moves_the_routers_alone(root);
}

fn weights(root: &Path, place: &str, file: &str) -> Tensors {
    let path = root.join(place).join("current").join(file);
    tensors::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The slow, obvious rule over all pairs of samples.
fn samples_share_a_group_if_they_share_all_clusters(root: &Path) {
    let rows: Vec<GroupRow> = tables::read(&root.join("multiplet/s1/current")).unwrap();
    let mut rounds: BTreeMap<u32, Vec<&GroupRow>> = BTreeMap::new();
    for row in &rows {
        rounds.entry(row.round).or_default().push(row);
    }
    assert_eq!(rounds.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);

    for (&round, own) in &rounds {
        for one in 0..own.len() {
            for other in 0..one {
                let together = (1..=round).all(|earlier| {
                    let (a, b) = (rounds[&earlier][one], rounds[&earlier][other]);
                    assert_eq!(a.sample, own[one].sample);
                    a.image_cluster == b.image_cluster && a.text_cluster == b.text_cluster
                });
                assert_eq!(own[one].group == own[other].group, together);
            }
        }
    }
}

fn experts_are_the_dense_ffn_and_the_multiplet(root: &Path) {
    let dense = weights(root, "pretrain/s1", "model.safetensors");
    let tuned = weights(root, "multiplet/s1", "ffns.safetensors");
    let made = weights(root, "upcycle/clip-moe-s1", "model.safetensors");
    let blocks = [
        ("vision.1", "visual.transformer.resblocks.1"),
        ("text.1", "transformer.resblocks.1"),
    ];
    let parts = [
        ("fc1", "c_fc.weight"),
        ("fc1_bias", "c_fc.bias"),
        ("fc2", "c_proj.weight"),
        ("fc2_bias", "c_proj.bias"),
    ];
    for (layer, block) in blocks {
        for (short, part) in parts {
            let stack = &made[&format!("{block}.moe.experts.{part}")].data;
            let experts: Vec<&[f32]> = stack.chunks_exact(stack.len() / 4).collect();
            let base = &dense[&format!("{block}.mlp.{part}")].data;
            assert_eq!(bits(experts[0]), bits(base), "{layer}.{short}");
            for (round, expert) in experts.iter().enumerate().skip(1) {
                let own = &tuned[&format!("{layer}.{round}.{short}")].data;
                assert_eq!(bits(expert), bits(own), "{layer}.{round}.{short}");
                assert_ne!(bits(expert), bits(base), "round {round} has trained nothing");
            }
        }
    }
}

fn router_only_training_moves_the_routers_alone(root: &Path) {
    let place = "train/clip-moe-router-s1";
    let before = weights(root, place, "init.safetensors");
    let after = weights(root, place, "model.safetensors");
    for (name, tensor) in &before {
        let moved = bits(&tensor.data) != bits(&after[name].data);
        assert_eq!(moved, name.ends_with("moe.router.weight"), "{name}");
    }
}
