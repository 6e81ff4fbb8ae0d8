//! Where each parameter of ours stands in a foreign checkpoint, and strict accounting: every
//! foreign tensor is used once, and every parameter of ours is filled once.
//!
//! `open_clip`'s names are ours. Hugging Face splits the stacked attention projection in
//! three and stores the two final projections transposed.

use std::collections::BTreeSet;
use std::path::Path;

use super::section::Section;
use crate::error::{Error, Result};
use crate::io::tensors::{Tensor, Tensors};
use crate::model::names::{self, ParameterId, Part};
use crate::model::{ClipConfig, Tower};

/// Whose names a checkpoint uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    OpenClip,
    HuggingFace,
}

/// What Hugging Face's names of the image tower and the text tower begin with.
const HUGGING_FACE: [&str; 2] = ["vision_model.", "text_model."];

/// What `open_clip`'s names of the image tower and the text tower begin with.
const OPEN_CLIP: [&str; 2] = ["visual.", "transformer."];

/// Number of beginnings of names that an error lists at most.
const SHOWN: usize = 8;

/// The foreign tensors a parameter is made of.
enum Source {
    /// One tensor, as it is.
    Same(String),
    /// One matrix, transposed.
    Transposed(String),
    /// Three tensors, one below the other.
    Stacked([String; 3]),
}

impl Layout {
    /// Tells the layouts apart by the names of the towers.
    pub(super) fn of(foreign: &Tensors) -> Self {
        let theirs =
            |name: &String| HUGGING_FACE.iter().any(|tower| name.starts_with(tower));
        if foreign.keys().any(theirs) { Self::HuggingFace } else { Self::OpenClip }
    }

    /// The foreign tensors of a parameter; `None` if the layout has no such parameter.
    fn source(self, id: ParameterId) -> Option<Source> {
        match self {
            Self::OpenClip => Some(Source::Same(id.name())),
            Self::HuggingFace => hugging_face(id),
        }
    }
}

/// Refuses weights without both towers, saying what is there instead.
pub(super) fn check_towers(path: &Path, foreign: &Tensors) -> Result<()> {
    let has = |tower: usize| {
        let begins = |name: &&String| {
            name.starts_with(HUGGING_FACE[tower]) || name.starts_with(OPEN_CLIP[tower])
        };
        foreign.keys().find(begins)
    };

    let beginning = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let found = match (has(0), has(1)) {
        (Some(_), Some(_)) => return Ok(()),
        (Some(name), None) => format!("an image tower ({}.*) alone", beginning(name)),
        (None, Some(name)) => format!("a text tower ({}.*) alone", beginning(name)),
        (None, None) => {
            let all: BTreeSet<String> = foreign.keys().map(|n| beginning(n)).collect();
            let some: Vec<String> = all.into_iter().take(SHOWN).collect();
            format!("neither; the names of its tensors begin with {}", some.join(", "))
        }
    };

    // The configuration beside it often says outright what it is.
    let config = path.with_file_name(super::hugging_face::FILE);
    let said = Section::read(&config).ok().and_then(|c| c.get("model_type").cloned());
    let said = said.map_or(String::new(), |kind| {
        format!("; {} says model_type is {kind}, expected \"clip\"", config.display())
    });
    Err(Error::failed(format!(
        "{} is not a whole CLIP: expected an image tower and a text tower, found {found}{said}",
        path.display()
    )))
}

/// Where Hugging Face's `CLIPModel` keeps a parameter; `None` for the parameters of an MoE layer.
fn hugging_face(id: ParameterId) -> Option<Source> {
    let model = |tower: Tower| format!("{}_model", tower.name());
    let vision = |rest: &str| Source::Same(format!("vision_model.{rest}"));

    Some(match id {
        ParameterId::LogitScale => Source::Same("logit_scale".to_owned()),
        ParameterId::ClassEmbedding => vision("embeddings.class_embedding"),
        ParameterId::PatchEmbedding => vision("embeddings.patch_embedding.weight"),
        // The misspelling is Hugging Face's, and its checkpoints keep it.
        ParameterId::PreNormWeight => vision("pre_layrnorm.weight"),
        ParameterId::PreNormBias => vision("pre_layrnorm.bias"),
        ParameterId::PostNormWeight(Tower::Vision) => vision("post_layernorm.weight"),
        ParameterId::PostNormBias(Tower::Vision) => vision("post_layernorm.bias"),
        ParameterId::PostNormWeight(Tower::Text) => {
            Source::Same("text_model.final_layer_norm.weight".to_owned())
        }
        ParameterId::PostNormBias(Tower::Text) => {
            Source::Same("text_model.final_layer_norm.bias".to_owned())
        }
        ParameterId::TokenEmbedding => {
            Source::Same("text_model.embeddings.token_embedding.weight".to_owned())
        }
        ParameterId::PositionEmbedding(tower) => {
            Source::Same(format!("{}.embeddings.position_embedding.weight", model(tower)))
        }
        ParameterId::Projection(Tower::Vision) => {
            Source::Transposed("visual_projection.weight".to_owned())
        }
        ParameterId::Projection(Tower::Text) => {
            Source::Transposed("text_projection.weight".to_owned())
        }
        ParameterId::Block(tower, index, part) => {
            let block = format!("{}.encoder.layers.{index}", model(tower));
            let same = |rest: &str| Source::Same(format!("{block}.{rest}"));
            // Ours is one matrix [3 d, d]: the rows of query, key and value, in this order.
            let three = |kind: &str| {
                Source::Stacked(
                    ["q", "k", "v"]
                        .map(|which| format!("{block}.self_attn.{which}_proj.{kind}")),
                )
            };

            match part {
                Part::Ln1Weight => same("layer_norm1.weight"),
                Part::Ln1Bias => same("layer_norm1.bias"),
                Part::InProjWeight => three("weight"),
                Part::InProjBias => three("bias"),
                Part::OutProjWeight => same("self_attn.out_proj.weight"),
                Part::OutProjBias => same("self_attn.out_proj.bias"),
                Part::Ln2Weight => same("layer_norm2.weight"),
                Part::Ln2Bias => same("layer_norm2.bias"),
                Part::FcWeight => same("mlp.fc1.weight"),
                Part::FcBias => same("mlp.fc1.bias"),
                Part::ProjWeight => same("mlp.fc2.weight"),
                Part::ProjBias => same("mlp.fc2.bias"),
                Part::Router
                | Part::ExpertFcWeight
                | Part::ExpertFcBias
                | Part::ExpertProjWeight
                | Part::ExpertProjBias
                | Part::DeltaFcDown
                | Part::DeltaFcUp
                | Part::DeltaProjDown
                | Part::DeltaProjUp => return None,
            }
        }
    })
}

/// Foreign tensors being used up, and what did not fit.
struct Account {
    foreign: Tensors,
    missing: Vec<String>,
    shapes: Vec<String>,
}

impl Account {
    /// Takes a tensor out, and notes what is wrong if it is missing or of another shape.
    fn take(&mut self, name: String, expected: &[usize]) -> Option<Tensor> {
        let Some(mut tensor) = self.foreign.remove(&name) else {
            self.missing.push(name);
            return None;
        };
        // Some checkpoints hold the logit scale as a vector of one.
        if expected.is_empty() && tensor.shape == [1] {
            tensor.shape.clear();
        }
        if tensor.shape == expected {
            return Some(tensor);
        }

        self.shapes.push(format!("{name} is {:?}, not {expected:?}", tensor.shape));
        None
    }
}

/// Makes our tensors of a foreign checkpoint's: each of ours filled, each of theirs used.
pub(super) fn collect(
    config: &ClipConfig,
    layout: Layout,
    foreign: Tensors,
) -> Result<Tensors> {
    let mut account = Account { foreign, missing: Vec::new(), shapes: Vec::new() };
    let mut tensors = Tensors::new();

    for parameter in names::parameters(config) {
        let shape = parameter.shape;
        let tensor = match layout.source(parameter.id) {
            None => {
                account.missing.push(parameter.name.clone());
                None
            }
            Some(Source::Same(name)) => account.take(name, &shape),
            Some(Source::Transposed(name)) => {
                let reversed: Vec<usize> = shape.iter().rev().copied().collect();
                account.take(name, &reversed).map(|tensor| transposed(&tensor))
            }
            Some(Source::Stacked(three)) => {
                let mut third = shape.clone();
                third[0] /= 3;
                // All three are taken before any is missed, so that one error names them all.
                let parts = three.map(|name| account.take(name, &third));
                let [Some(q), Some(k), Some(v)] = parts else { continue };
                Some(Tensor { shape, data: [q.data, k.data, v.data].concat() })
            }
        };

        if let Some(tensor) = tensor {
            tensors.insert(parameter.name, tensor);
        }
    }

    // What nobody took is a part of the model that this crate does not build.
    let unexpected = account.foreign.into_keys().collect();
    names::account(account.missing, unexpected, account.shapes)?;
    Ok(tensors)
}

/// The inverse of [`collect`], for tensors that fit the configuration.
pub(super) fn spread(
    config: &ClipConfig,
    layout: Layout,
    tensors: &Tensors,
) -> Result<Tensors> {
    names::check(config, tensors.iter().map(|(name, t)| (&**name, &*t.shape)))?;

    let mut foreign = Tensors::new();
    for parameter in names::parameters(config) {
        let tensor = &tensors[&parameter.name];
        match layout.source(parameter.id) {
            None => {
                let name = parameter.name;
                return Err(Error::usage(format!(
                    "{layout:?} checkpoints have no {name}"
                )));
            }
            Some(Source::Same(name)) => {
                foreign.insert(name, tensor.clone());
            }
            Some(Source::Transposed(name)) => {
                foreign.insert(name, transposed(tensor));
            }
            Some(Source::Stacked(three)) => {
                let mut shape = tensor.shape.clone();
                shape[0] /= 3;
                // Rows lie one after the other, so a third of the rows is a third of the values.
                let parts = tensor.data.chunks_exact(tensor.data.len() / 3);
                for (name, part) in three.into_iter().zip(parts) {
                    foreign.insert(
                        name,
                        Tensor { shape: shape.clone(), data: part.to_vec() },
                    );
                }
            }
        }
    }
    Ok(foreign)
}

/// The transpose of a matrix; a tensor of another rank is not asked for.
fn transposed(tensor: &Tensor) -> Tensor {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    let mut data = Vec::with_capacity(tensor.data.len());
    for column in 0..columns {
        data.extend((0..rows).map(|row| tensor.data[row * columns + column]));
    }
    Tensor { shape: vec![columns, rows], data }
}
