//! The one table of parameter names, shapes and roles.
//!
//! Everything that stores, loads, initializes or optimizes a model asks this file: no other
//! file writes the name of a parameter. Names are `open_clip`'s, so that a dense checkpoint
//! of ours is one of theirs; in an MoE block the two layers of the FFN are replaced by a
//! router and stacked experts. Weight decay is decided by [`Role`], never by tensor rank:
//! stacked expert biases `[E, h]` are matrices in form only.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::model::config::TowerShape;
use crate::model::{ClipConfig, Tower};

/// What a parameter is for; it decides the weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A matrix that multiplies activations, or the token embedding.
    Weight,
    /// An additive vector, stacked by expert or not.
    Bias,
    /// Gain or bias of a LayerNorm.
    Norm,
    /// Embedding of a position or of the class token.
    Embedding,
    /// The logarithm of the logits' scale.
    LogitScale,
    /// The matrix of an MoE layer's router.
    Router,
}

impl Role {
    /// Whether weight decay applies (METHOD §5: not to biases, norms, embeddings of
    /// position and class, and the logit scale).
    pub fn decays(self) -> bool {
        matches!(self, Self::Weight | Self::Router)
    }
}

/// A parameter's place in a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Gain of the LayerNorm before attention `[d]`.
    Ln1Weight,
    /// Bias of the LayerNorm before attention `[d]`.
    Ln1Bias,
    /// Query, key and value projections, stacked `[3d, d]`.
    InProjWeight,
    /// Their biases `[3d]`.
    InProjBias,
    /// Output projection of attention `[d, d]`.
    OutProjWeight,
    /// Its bias `[d]`.
    OutProjBias,
    /// Gain of the LayerNorm before the FFN `[d]`.
    Ln2Weight,
    /// Bias of the LayerNorm before the FFN `[d]`.
    Ln2Bias,
    /// First layer of a dense FFN, W1 `[h, d]`.
    FcWeight,
    /// Its bias b1 `[h]`.
    FcBias,
    /// Second layer of a dense FFN, W2 `[d, h]`.
    ProjWeight,
    /// Its bias b2 `[d]`.
    ProjBias,
    /// Router of an MoE block `[E, d]`.
    Router,
    /// First layers of the experts `[E, h, d]`.
    ExpertFcWeight,
    /// Their biases `[E, h]`.
    ExpertFcBias,
    /// Second layers of the experts `[E, d, h]`.
    ExpertProjWeight,
    /// Their biases `[E, d]`.
    ExpertProjBias,
    /// A of the deltas B A on the first layer of a shared FFN `[E, r, d]`.
    DeltaFcDown,
    /// Their B `[E, h, r]`.
    DeltaFcUp,
    /// A of the deltas on the second layer `[E, r, h]`.
    DeltaProjDown,
    /// Their B `[E, d, r]`.
    DeltaProjUp,
}

impl Part {
    /// The parts every block has, in order.
    pub const SHARED: [Self; 8] = [
        Self::Ln1Weight,
        Self::Ln1Bias,
        Self::InProjWeight,
        Self::InProjBias,
        Self::OutProjWeight,
        Self::OutProjBias,
        Self::Ln2Weight,
        Self::Ln2Bias,
    ];

    /// The FFN of a dense block, in order.
    pub const DENSE: [Self; 4] =
        [Self::FcWeight, Self::FcBias, Self::ProjWeight, Self::ProjBias];

    /// The FFN of an MoE block, in order; the experts correspond to [`Self::DENSE`].
    pub const MOE: [Self; 5] = [
        Self::Router,
        Self::ExpertFcWeight,
        Self::ExpertFcBias,
        Self::ExpertProjWeight,
        Self::ExpertProjBias,
    ];

    /// The FFN of an MoE block of low rank, in order: the shared one and the deltas.
    pub const LOW_RANK: [Self; 9] = [
        Self::Router,
        Self::FcWeight,
        Self::FcBias,
        Self::ProjWeight,
        Self::ProjBias,
        Self::DeltaFcDown,
        Self::DeltaFcUp,
        Self::DeltaProjDown,
        Self::DeltaProjUp,
    ];

    /// Whether it is a stack over experts.
    fn is_stack(self) -> bool {
        Self::MOE[1..].contains(&self) || Self::LOW_RANK[5..].contains(&self)
    }

    /// The name within the block.
    fn suffix(self) -> &'static str {
        match self {
            Self::Ln1Weight => "ln_1.weight",
            Self::Ln1Bias => "ln_1.bias",
            Self::InProjWeight => "attn.in_proj_weight",
            Self::InProjBias => "attn.in_proj_bias",
            Self::OutProjWeight => "attn.out_proj.weight",
            Self::OutProjBias => "attn.out_proj.bias",
            Self::Ln2Weight => "ln_2.weight",
            Self::Ln2Bias => "ln_2.bias",
            Self::FcWeight => "mlp.c_fc.weight",
            Self::FcBias => "mlp.c_fc.bias",
            Self::ProjWeight => "mlp.c_proj.weight",
            Self::ProjBias => "mlp.c_proj.bias",
            Self::Router => "moe.router.weight",
            Self::ExpertFcWeight => "moe.experts.c_fc.weight",
            Self::ExpertFcBias => "moe.experts.c_fc.bias",
            Self::ExpertProjWeight => "moe.experts.c_proj.weight",
            Self::ExpertProjBias => "moe.experts.c_proj.bias",
            Self::DeltaFcDown => "moe.deltas.c_fc.down",
            Self::DeltaFcUp => "moe.deltas.c_fc.up",
            Self::DeltaProjDown => "moe.deltas.c_proj.down",
            Self::DeltaProjUp => "moe.deltas.c_proj.up",
        }
    }

    fn shape(self, tower: TowerShape, experts: usize, rank: usize) -> Vec<usize> {
        let (d, h, e, r) = (tower.width, tower.hidden, experts, rank);
        match self {
            Self::Ln1Weight
            | Self::Ln1Bias
            | Self::OutProjBias
            | Self::Ln2Weight
            | Self::Ln2Bias
            | Self::ProjBias => vec![d],
            Self::InProjWeight => vec![3 * d, d],
            Self::InProjBias => vec![3 * d],
            Self::OutProjWeight => vec![d, d],
            Self::FcWeight => vec![h, d],
            Self::FcBias => vec![h],
            Self::ProjWeight => vec![d, h],
            Self::ExpertFcWeight => vec![e, h, d],
            Self::ExpertFcBias => vec![e, h],
            Self::ExpertProjWeight => vec![e, d, h],
            Self::Router | Self::ExpertProjBias => vec![e, d],
            Self::DeltaFcDown => vec![e, r, d],
            Self::DeltaFcUp => vec![e, h, r],
            Self::DeltaProjDown => vec![e, r, h],
            Self::DeltaProjUp => vec![e, d, r],
        }
    }

    fn role(self) -> Role {
        match self {
            Self::Ln1Weight | Self::Ln1Bias | Self::Ln2Weight | Self::Ln2Bias => {
                Role::Norm
            }
            Self::InProjWeight
            | Self::OutProjWeight
            | Self::FcWeight
            | Self::ProjWeight
            | Self::ExpertFcWeight
            | Self::ExpertProjWeight
            | Self::DeltaFcDown
            | Self::DeltaFcUp
            | Self::DeltaProjDown
            | Self::DeltaProjUp => Role::Weight,
            Self::InProjBias
            | Self::OutProjBias
            | Self::FcBias
            | Self::ProjBias
            | Self::ExpertFcBias
            | Self::ExpertProjBias => Role::Bias,
            Self::Router => Role::Router,
        }
    }
}

/// The identity of a parameter in a model, from which its name, shape and role follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParameterId {
    /// The logarithm of the logits' scale, a scalar.
    LogitScale,
    /// The class token of the image tower `[d]`.
    ClassEmbedding,
    /// The patch convolution of the image tower [d, 3, patch, patch].
    PatchEmbedding,
    /// Token embeddings of the text tower `[V, d]`.
    TokenEmbedding,
    /// Position embeddings of a tower `[T, d]`.
    PositionEmbedding(Tower),
    /// Gain of the LayerNorm before the image tower's blocks `[d]`.
    PreNormWeight,
    /// Bias of the LayerNorm before the image tower's blocks `[d]`.
    PreNormBias,
    /// A part of a block of a tower.
    Block(Tower, usize, Part),
    /// Gain of the LayerNorm after a tower's blocks `[d]`.
    PostNormWeight(Tower),
    /// Bias of the LayerNorm after a tower's blocks `[d]`.
    PostNormBias(Tower),
    /// Projection of a tower to the shared embedding `[d, P]`, used as x P.
    Projection(Tower),
}

impl ParameterId {
    /// The name of the parameter in files.
    pub fn name(self) -> String {
        let fixed = match self {
            Self::LogitScale => "logit_scale",
            Self::ClassEmbedding => "visual.class_embedding",
            Self::PatchEmbedding => "visual.conv1.weight",
            Self::TokenEmbedding => "token_embedding.weight",
            Self::PositionEmbedding(Tower::Vision) => "visual.positional_embedding",
            Self::PositionEmbedding(Tower::Text) => "positional_embedding",
            Self::PreNormWeight => "visual.ln_pre.weight",
            Self::PreNormBias => "visual.ln_pre.bias",
            Self::PostNormWeight(Tower::Vision) => "visual.ln_post.weight",
            Self::PostNormBias(Tower::Vision) => "visual.ln_post.bias",
            Self::PostNormWeight(Tower::Text) => "ln_final.weight",
            Self::PostNormBias(Tower::Text) => "ln_final.bias",
            Self::Projection(Tower::Vision) => "visual.proj",
            Self::Projection(Tower::Text) => "text_projection",
            Self::Block(tower, index, part) => return block(tower, index).name(part),
        };
        fixed.to_owned()
    }

    /// The shape of the parameter in a model; `[]` is a scalar.
    pub fn shape(self, config: &ClipConfig) -> Vec<usize> {
        let vision = &config.vision;
        match self {
            Self::LogitScale => vec![],
            Self::PatchEmbedding => vec![vision.width, 3, vision.patch, vision.patch],
            Self::TokenEmbedding => vec![config.text.vocabulary, config.text.width],
            Self::ClassEmbedding | Self::PreNormWeight | Self::PreNormBias => {
                vec![vision.width]
            }
            Self::PositionEmbedding(tower) => {
                vec![config.tower(tower).tokens, config.tower(tower).width]
            }
            Self::PostNormWeight(tower) | Self::PostNormBias(tower) => {
                vec![config.tower(tower).width]
            }
            Self::Projection(tower) => vec![config.tower(tower).width, config.embed_dim],
            Self::Block(tower, _, part) => {
                let experts = config.moe.as_ref().map_or(0, |moe| moe.experts);
                part.shape(config.tower(tower), experts, config.rank().unwrap_or(0))
            }
        }
    }

    /// Whether the parameter belongs to an MoE layer: a router or a stack of experts.
    pub fn is_moe(self) -> bool {
        matches!(self, Self::Block(_, _, part) if part == Part::Router || part.is_stack())
    }

    /// The block the parameter belongs to, if it belongs to one.
    pub fn block(self) -> Option<(Tower, usize)> {
        match self {
            Self::Block(tower, index, _) => Some((tower, index)),
            _ => None,
        }
    }

    /// Whether the parameter is a stack over experts: K of its E slices act on a token.
    pub fn is_expert(self) -> bool {
        matches!(self, Self::Block(_, _, part) if part.is_stack())
    }

    /// What the parameter is for.
    pub fn role(self) -> Role {
        match self {
            Self::LogitScale => Role::LogitScale,
            Self::ClassEmbedding | Self::PositionEmbedding(_) => Role::Embedding,
            Self::PatchEmbedding | Self::TokenEmbedding | Self::Projection(_) => {
                Role::Weight
            }
            Self::PreNormWeight
            | Self::PreNormBias
            | Self::PostNormWeight(_)
            | Self::PostNormBias(_) => Role::Norm,
            Self::Block(_, _, part) => part.role(),
        }
    }
}

/// One block of a tower, for making names: `block(tower, 3).name(Part::Ln1Weight)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    tower: Tower,
    index: usize,
}

/// The block `index` of a tower.
pub fn block(tower: Tower, index: usize) -> Block {
    Block { tower, index }
}

impl Block {
    /// The identity of a part of this block.
    pub fn id(self, part: Part) -> ParameterId {
        ParameterId::Block(self.tower, self.index, part)
    }

    /// The name of a part of this block.
    pub fn name(self, part: Part) -> String {
        self.prefix() + part.suffix()
    }

    /// What the names of all parts of this block begin with.
    pub fn prefix(self) -> String {
        let tower = match self.tower {
            Tower::Vision => "visual.",
            Tower::Text => "",
        };
        format!("{tower}transformer.resblocks.{}.", self.index)
    }
}

/// One parameter of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Which parameter it is.
    pub id: ParameterId,
    /// Its name in files.
    pub name: String,
    /// Its shape; `[]` is a scalar.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

impl Parameter {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values, which no valid configuration leads to.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Every parameter of a model, in a fixed order: the logit scale, then the image tower and
/// the text tower from input to output.
pub fn parameters(config: &ClipConfig) -> Vec<Parameter> {
    let mut ids = vec![ParameterId::LogitScale];
    ids.extend([
        ParameterId::ClassEmbedding,
        ParameterId::PositionEmbedding(Tower::Vision),
        ParameterId::PatchEmbedding,
        ParameterId::PreNormWeight,
        ParameterId::PreNormBias,
    ]);

    ids.extend(blocks_and_head(config, Tower::Vision));
    ids.extend([
        ParameterId::TokenEmbedding,
        ParameterId::PositionEmbedding(Tower::Text),
    ]);
    ids.extend(blocks_and_head(config, Tower::Text));

    ids.into_iter()
        .map(|id| Parameter {
            id,
            name: id.name(),
            shape: id.shape(config),
            role: id.role(),
        })
        .collect()
}

/// Names and shapes of a model's parameters.
pub fn shapes(config: &ClipConfig) -> BTreeMap<String, Vec<usize>> {
    parameters(config).into_iter().map(|p| (p.name, p.shape)).collect()
}

fn blocks_and_head(config: &ClipConfig, tower: Tower) -> Vec<ParameterId> {
    let mut ids = Vec::new();
    for index in 0..config.tower(tower).layers {
        let ffn: &[Part] = match (config.is_moe(tower, index), config.rank()) {
            (false, _) => &Part::DENSE,
            (true, None) => &Part::MOE,
            (true, Some(_)) => &Part::LOW_RANK,
        };
        let parts = Part::SHARED.iter().chain(ffn);
        ids.extend(parts.map(|&part| ParameterId::Block(tower, index, part)));
    }
    ids.extend([
        ParameterId::PostNormWeight(tower),
        ParameterId::PostNormBias(tower),
        ParameterId::Projection(tower),
    ]);
    ids
}

/// Refuses a set of tensors that is not exactly the model's: one error names every tensor
/// that is missing, unexpected or of another shape.
pub fn check<'a>(
    config: &ClipConfig,
    found: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Result<()> {
    let mut expected = shapes(config);
    let (mut unexpected, mut others) = (Vec::new(), Vec::new());
    for (name, shape) in found {
        match expected.remove(name) {
            None => unexpected.push(name.to_owned()),
            Some(wanted) if wanted != shape => {
                others.push(format!("{name} is {shape:?}, not {wanted:?}"));
            }
            Some(_) => {}
        }
    }
    account(expected.into_keys().collect(), unexpected, others)
}

/// Tensors that a message names; a wrong number of blocks would fill pages.
const NAMED: usize = 50;

/// One error that names all tensors that are missing, unexpected or of another shape, if any.
pub(crate) fn account(
    missing: Vec<String>,
    unexpected: Vec<String>,
    shapes: Vec<String>,
) -> Result<()> {
    let mut complaints = Vec::new();
    for (word, names) in
        [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    {
        if !names.is_empty() {
            let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let more = if names.len() > NAMED { ", .." } else { "" };
            complaints.push(format!("{} {word}: {named}{more}", names.len()));
        }
    }

    if complaints.is_empty() {
        Ok(())
    } else {
        let complaints = complaints.join("; ");
        Err(Error::failed(format!("the tensors do not fit the model: {complaints}")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Activation;
    use crate::model::{Moe, TextConfig, VisionConfig};

    /// A tiny model; with `moe`, one MoE block of the image tower and some of the text tower.
    pub(crate) fn tiny(moe: bool) -> ClipConfig {
        ClipConfig {
            embed_dim: 5,
            activation: Activation::Gelu,
            vision: VisionConfig {
                image_size: 8,
                patch: 4,
                width: 6,
                layers: 2,
                heads: 2,
                hidden: 12,
            },
            text: TextConfig {
                context: 7,
                vocabulary: 11,
                width: 4,
                layers: 3,
                heads: 2,
                hidden: 9,
            },
            moe: moe.then(|| Moe {
                experts: 3,
                top_k: 2,
                rank: None,
                vision_blocks: vec![1],
                text_blocks: vec![0, 2],
            }),
        }
    }

    /// `open_clip`'s ViT-B-32 has 151.3 million parameters (151,277,313 exactly).
    #[test]
    fn the_table_of_vit_b_32_has_its_published_size() {
        let tower = |width, heads| (width, 12, heads, 4 * width);
        let (width, layers, heads, hidden) = tower(768, 12);
        let vision =
            VisionConfig { image_size: 224, patch: 32, width, layers, heads, hidden };
        let (width, layers, heads, hidden) = tower(512, 8);
        let text =
            TextConfig { context: 77, vocabulary: 49408, width, layers, heads, hidden };
        let activation = Activation::Gelu;
        let config = ClipConfig { embed_dim: 512, activation, vision, text, moe: None };
        let count: usize = parameters(&config).iter().map(Parameter::len).sum();
        assert_eq!(count, 151_277_313);
    }

    #[test]
    fn names_are_unique_and_follow_from_places() {
        let table = parameters(&tiny(true));
        let names: BTreeSet<_> = table.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names.len(), table.len());
        assert!(table.iter().all(|p| p.id.name() == p.name && !p.is_empty()));
        assert!(names.contains("visual.transformer.resblocks.1.moe.experts.c_fc.bias"));
        assert!(!names.contains("visual.transformer.resblocks.1.mlp.c_fc.bias"));
        assert!(names.contains("visual.transformer.resblocks.0.mlp.c_fc.bias"));
        assert!(names.contains("transformer.resblocks.2.moe.router.weight"));
    }

    #[test]
    fn decay_follows_the_role_and_not_the_rank() {
        for p in parameters(&tiny(true)) {
            let exempt = p.name.ends_with("bias")
                || p.name.contains("ln_")
                || p.name.contains("positional_embedding")
                || p.name.contains("class_embedding")
                || p.name == "logit_scale";
            assert_eq!(p.role.decays(), !exempt, "{}", p.name);
        }
    }

    #[test]
    fn one_error_names_every_tensor_that_does_not_fit() {
        let config = tiny(false);
        let table = parameters(&config);
        let mut found: BTreeMap<&str, &[usize]> =
            table.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect();
        check(&config, found.iter().map(|(name, shape)| (*name, *shape))).unwrap();
        found.remove("visual.proj");
        found.remove("ln_final.bias");
        found.insert("extra", &[1]);
        found.insert("text_projection", &[5, 4]);
        let error = check(&config, found).unwrap_err();
        assert_eq!(
            error.message(),
            "the tensors do not fit the model: 2 missing: ln_final.bias, visual.proj; \
             1 unexpected: extra; 1 of another shape: text_projection is [5, 4], not [4, 5]"
        );
    }
}
