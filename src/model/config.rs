//! The shape of one model: what `config.json` beside every checkpoint says.
//!
//! The activation function is stored because a wrong one gives silently poor results. Names
//! and shapes of the parameters follow from this alone; see [`super::names`].

use serde::{Deserialize, Serialize};

use crate::config::Activation;
use crate::error::{Context as _, Result};

/// Architecture of a CLIP, dense or with MoE layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Width P of the shared embedding.
    pub embed_dim: usize,
    /// Activation of every FFN.
    pub activation: Activation,
    /// The image tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: TextConfig,
    /// MoE layers, absent in a dense model.
    pub moe: Option<Moe>,
}

/// The image tower: a `ViT` with a class token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Side of the square picture, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels; divides `image_size`.
    pub patch: usize,
    /// Width d.
    pub width: usize,
    /// Blocks L.
    pub layers: usize,
    /// Attention heads; divide `width`.
    pub heads: usize,
    /// Hidden width h of the FFN.
    pub hidden: usize,
}

/// The text tower: a causal transformer pooled at the end-of-text token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Tokens of a caption.
    pub context: usize,
    /// Vocabulary V.
    pub vocabulary: usize,
    /// Width d.
    pub width: usize,
    /// Blocks L.
    pub layers: usize,
    /// Attention heads; divide `width`.
    pub heads: usize,
    /// Hidden width h of the FFN.
    pub hidden: usize,
}

/// MoE placement and routing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moe {
    /// Experts E of a layer.
    pub experts: usize,
    /// Experts K a token visits; their weights are renormalized to sum to 1.
    pub top_k: usize,
    /// Rank r, where experts are kept as one shared FFN plus a product of this rank each; see
    /// [`super::low_rank`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// MoE blocks of the image tower, ascending.
    pub vision_blocks: Vec<usize>,
    /// MoE blocks of the text tower, ascending.
    pub text_blocks: Vec<usize>,
}

/// One of the two towers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    /// Images.
    Vision,
    /// Captions.
    Text,
}

impl Tower {
    /// Both towers, in the order of every table.
    pub const BOTH: [Self; 2] = [Self::Vision, Self::Text];

    /// The name used in artifacts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Text => "text",
        }
    }
}

/// Shape of one tower's transformer, whichever tower it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TowerShape {
    /// Tokens T of a sample.
    pub tokens: usize,
    /// Width d.
    pub width: usize,
    /// Blocks L.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width h.
    pub hidden: usize,
    /// Whether a token sees only itself and earlier ones.
    pub causal: bool,
}

impl ClipConfig {
    /// The text of `config.json`.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        Ok(text.context(|| "writing config.json".to_owned())? + "\n")
    }

    /// The transformer shape of one tower.
    pub fn tower(&self, tower: Tower) -> TowerShape {
        match tower {
            // The class token comes on top of the patches.
            Tower::Vision => TowerShape {
                tokens: self.vision.patches() + 1,
                width: self.vision.width,
                layers: self.vision.layers,
                heads: self.vision.heads,
                hidden: self.vision.hidden,
                causal: false,
            },
            Tower::Text => TowerShape {
                tokens: self.text.context,
                width: self.text.width,
                layers: self.text.layers,
                heads: self.text.heads,
                hidden: self.text.hidden,
                causal: true,
            },
        }
    }

    /// The MoE blocks of one tower; empty in a dense model.
    pub fn moe_blocks(&self, tower: Tower) -> &[usize] {
        match (&self.moe, tower) {
            (None, _) => &[],
            (Some(moe), Tower::Vision) => &moe.vision_blocks,
            (Some(moe), Tower::Text) => &moe.text_blocks,
        }
    }

    /// Rank of the experts' deltas, where they are kept as such.
    pub fn rank(&self) -> Option<usize> {
        self.moe.as_ref().and_then(|moe| moe.rank)
    }

    /// Whether a block of a tower is an MoE layer.
    pub fn is_moe(&self, tower: Tower, block: usize) -> bool {
        self.moe_blocks(tower).contains(&block)
    }
}

impl VisionConfig {
    /// Patches of a picture.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch).pow(2)
    }
}
