//! The slow, obvious CLIP: the truth that the training engine is compared with.
//!
//! The engine computes forward and backward by hand over flat buffers. This file writes the
//! same model a second time, as formulas over candle's differentiable operators, and gets
//! gradients from candle's autograd; it runs in f32 or f64 on any candle device. [`Candle`]
//! makes an engine of it. Nothing here is fast and nothing in the pipeline depends on it; only
//! tests do, and it in turn is held by fixtures made with Hugging Face and `open_clip`.
//!
//! ```text
//! pixels [B,3,S,S] ── patches, class token, positions, LN ── blocks ── LN ── token 0 ── P ─┐
//!                                                                         s I T^T [B,B] ◄──┤
//! ids [B,T] ────────── tokens, positions ── causal blocks ── LN ── end of text ── P ───────┘
//! ```

mod layers;
mod loss;
mod moe;
mod optim;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::error::{Context, Error, Result};
use crate::io::tensors::Tensors;
use crate::model::names::{self, ParameterId, Part};
use crate::model::{ClipConfig, Tower, TowerShape};
use layers::{layer_norm, linear};

pub use loss::{Eesd, Eligible, LossTensors, Terms};
pub use moe::{Experts, Routing, most_uncertain};
pub use run::{BACKEND, Candle};

/// Which position of a caption becomes its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first position of the largest id, which is the end of text: CLIP's own rule.
    FirstMaximum,
    /// The first position of this id.
    FirstEqual(u32),
}

impl Pooling {
    /// Hugging Face's rule: old configurations say `eos_token_id: 2`, which is wrong and
    /// means the largest id.
    pub fn hugging_face(eos_token_id: u32) -> Self {
        if eos_token_id == 2 {
            Self::FirstMaximum
        } else {
            Self::FirstEqual(eos_token_id)
        }
    }

    /// The pooled position of one caption; `None` if the id does not occur.
    pub fn position(self, ids: &[u32]) -> Option<usize> {
        let id = match self {
            Self::FirstMaximum => *ids.iter().max()?,
            Self::FirstEqual(id) => id,
        };
        ids.iter().position(|&other| other == id)
    }
}

/// The model: parameters as candle variables.
#[derive(Debug, Clone)]
pub struct ReferenceClip {
    config: ClipConfig,
    pooling: Pooling,
    moe: MoeForm,
    dtype: DType,
    device: Device,
    parameters: BTreeMap<String, Var>,
}

/// What the MoE layers compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoeForm {
    /// The chosen experts.
    TopK,
    /// The dense ensemble of all experts: the teacher of `target: embedding`.
    Ensemble,
}

/// Everything a forward pass computed; each tensor carries its graph.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// Image embeddings before normalization [B, P].
    pub image_embeds_raw: Tensor,
    /// Image embeddings of length 1 [B, P].
    pub image_embeds: Tensor,
    /// Text embeddings before normalization [B, P].
    pub text_embeds_raw: Tensor,
    /// Text embeddings of length 1 [B, P].
    pub text_embeds: Tensor,
    /// Scaled cosines [images, texts].
    pub logits_per_image: Tensor,
    /// The pooled position of each caption.
    pub pooled: Vec<usize>,
    /// The input of every block's FFN (LN2's output) [B, T, d].
    pub ffn_in: BTreeMap<(Tower, usize), Tensor>,
    /// What every MoE layer did, over rows [B T].
    pub routing: BTreeMap<(Tower, usize), Routing>,
}

/// What the blocks record on their way.
#[derive(Default)]
struct Record {
    ffn_in: BTreeMap<(Tower, usize), Tensor>,
    routing: BTreeMap<(Tower, usize), Routing>,
}

impl ReferenceClip {
    /// Builds the model from exactly its parameters.
    pub fn new(
        config: &ClipConfig,
        tensors: &Tensors,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        names::check(config, tensors.iter().map(|(name, t)| (&**name, &*t.shape)))?;
        for tower in Tower::BOTH {
            let TowerShape { width, heads, .. } = config.tower(tower);
            if heads == 0 || width % heads != 0 {
                let tower = tower.name();
                return Err(Error::usage(format!(
                    "{tower}: {heads} heads do not divide the width {width}"
                )));
            }
        }

        if let Some(moe) = &config.moe
            && !(1..=moe.experts).contains(&moe.top_k)
        {
            let (k, e) = (moe.top_k, moe.experts);
            return Err(Error::usage(format!(
                "top_k: found {k}, expected 1 to {e}, the number of experts"
            )));
        }

        let mut parameters = BTreeMap::new();
        for (name, tensor) in tensors {
            let var = Tensor::from_slice(&tensor.data, tensor.shape.as_slice(), device)
                .and_then(|t| Var::from_tensor(&t.to_dtype(dtype)?))
                .context(|| format!("making tensor {name}"))?;
            parameters.insert(name.clone(), var);
        }

        let (config, device) = (config.clone(), device.clone());
        let (pooling, moe) = (Pooling::FirstMaximum, MoeForm::TopK);
        Ok(Self { config, pooling, moe, dtype, device, parameters })
    }

    /// The same model with other MoE layers.
    #[must_use]
    pub fn with_moe(self, moe: MoeForm) -> Self {
        Self { moe, ..self }
    }

    /// The same model with another pooling of captions.
    #[must_use]
    pub fn with_pooling(self, pooling: Pooling) -> Self {
        Self { pooling, ..self }
    }

    /// Embeds pictures `pixels` [B, 3, S, S] and captions `ids` [B, T] of integers, and
    /// compares all with all. The two batches may differ in size.
    pub fn forward(&self, pixels: &Tensor, ids: &Tensor) -> Result<Outputs> {
        let side = self.config.vision.image_size;
        if pixels.rank() != 4 || pixels.dims()[1..] != [3, side, side] {
            let found = pixels.dims();
            return Err(Error::failed(format!(
                "pixels are {found:?}, expected [B, 3, {side}, {side}]"
            )));
        }
        let (ids, pooled) = self.captions(ids)?;
        self.run(pixels, &ids, pooled)
            .context(|| "running the reference model".to_owned())
    }

    /// The training loss of a forward pass.
    pub fn loss(
        &self,
        outputs: &Outputs,
        eligible: &Eligible,
        terms: &Terms<'_>,
    ) -> Result<LossTensors> {
        for (tower, flags) in
            [(Tower::Vision, &eligible.vision), (Tower::Text, &eligible.text)]
        {
            let Some(first) = outputs.ffn_in.get(&(tower, 0)) else { continue };
            let rows = first.elem_count() / self.config.tower(tower).width;
            if flags.len() != rows || !flags.contains(&true) {
                let (tower, found) = (tower.name(), flags.len());
                return Err(Error::failed(format!(
                    "{tower}: {found} eligibility flags, expected {rows}, not all false"
                )));
            }
        }
        let teachers =
            terms.eesd.map(|eesd| self.teach(outputs, eesd.teacher)).transpose()?;
        loss::losses(outputs, eligible, terms, teachers.as_deref())
            .context(|| "computing the reference loss".to_owned())
    }

    /// The gradient of a scalar with respect to every parameter, by candle's autograd, in
    /// the model's element type. A parameter that the scalar does not depend on has zeros.
    pub fn gradient_tensors(&self, loss: &Tensor) -> Result<BTreeMap<String, Tensor>> {
        let doing = || "differentiating the reference loss".to_owned();
        let mut store = loss.backward().context(doing)?;
        let mut gradients = BTreeMap::new();
        for (name, var) in &self.parameters {
            let gradient = match store.remove(var) {
                Some(gradient) => gradient,
                None => var.zeros_like().context(doing)?,
            };
            gradients.insert(name.clone(), gradient);
        }
        Ok(gradients)
    }

    /// [`Self::gradient_tensors`] as row-major f32 values.
    pub fn gradients(&self, loss: &Tensor) -> Result<BTreeMap<String, Vec<f32>>> {
        let flatten = |(name, gradient): (String, Tensor)| {
            let values = gradient
                .flatten_all()
                .and_then(|g| g.to_dtype(DType::F32)?.to_vec1())
                .context(|| format!("reading the gradient of {name}"))?;
            Ok((name, values))
        };
        self.gradient_tensors(loss)?.into_iter().map(flatten).collect()
    }

    /// Checked token ids, and where each caption is pooled.
    fn captions(&self, ids: &Tensor) -> Result<(Vec<Vec<u32>>, Vec<usize>)> {
        let context = self.config.text.context;
        if ids.rank() != 2 || ids.dims()[1] != context {
            let found = ids.dims();
            return Err(Error::failed(format!(
                "ids are {found:?}, expected [B, {context}]"
            )));
        }

        // Fixtures store ids as i64, the engine as u32; i64 holds both.
        let rows: Vec<Vec<i64>> = ids
            .to_dtype(DType::I64)
            .and_then(|ids| ids.to_vec2())
            .context(|| "reading token ids".to_owned())?;

        let vocabulary = self.config.text.vocabulary;
        let check = |id: i64| match u32::try_from(id) {
            Ok(small) if crate::num::widen(small) < vocabulary => Ok(small),
            _ => Err(Error::failed(format!("token id {id} is not below {vocabulary}"))),
        };

        let mut captions = Vec::new();
        let mut pooled = Vec::new();
        for row in rows {
            let caption = row.into_iter().map(check).collect::<Result<Vec<u32>>>()?;

            let position = self.pooling.position(&caption).ok_or_else(|| {
                Error::failed(format!(
                    "caption {caption:?} has no token to pool by {:?}",
                    self.pooling
                ))
            })?;
            captions.push(caption);
            pooled.push(position);
        }
        Ok((captions, pooled))
    }

    fn run(
        &self,
        pixels: &Tensor,
        ids: &[Vec<u32>],
        pooled: Vec<usize>,
    ) -> candle_core::Result<Outputs> {
        let mut record = Record::default();
        let image_embeds_raw = self.images(pixels, &mut record)?;
        let text_embeds_raw = self.texts(ids, &pooled, &mut record)?;
        let image_embeds = layers::unit_rows(&image_embeds_raw)?;
        let text_embeds = layers::unit_rows(&text_embeds_raw)?;

        // The parameter is the scale's logarithm, as in CLIP.
        let scale = self.get(ParameterId::LogitScale)?.exp()?;
        let logits_per_image =
            image_embeds.matmul(&text_embeds.t()?)?.broadcast_mul(&scale)?;

        let Record { ffn_in, routing } = record;
        Ok(Outputs {
            image_embeds_raw,
            image_embeds,
            text_embeds_raw,
            text_embeds,
            logits_per_image,
            pooled,
            ffn_in,
            routing,
        })
    }

    fn images(
        &self,
        pixels: &Tensor,
        record: &mut Record,
    ) -> candle_core::Result<Tensor> {
        let TowerShape { tokens, width, .. } = self.config.tower(Tower::Vision);
        let batch = pixels.dim(0)?;

        // A convolution whose stride is its kernel's side cuts the picture into patches.
        let pixels = pixels.to_device(&self.device)?.to_dtype(self.dtype)?;
        let kernel = self.get(ParameterId::PatchEmbedding)?;
        let patches = pixels.conv2d(&kernel, 0, self.config.vision.patch, 1, 1)?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?;

        let class =
            self.get(ParameterId::ClassEmbedding)?.broadcast_as((batch, 1, width))?;
        let x = Tensor::cat(&[&class, &patches.contiguous()?], 1)?
            .broadcast_add(&self.get(ParameterId::PositionEmbedding(Tower::Vision))?)?
            .reshape((batch * tokens, width))?;

        let gain = self.get(ParameterId::PreNormWeight)?;
        let x = layer_norm(&x, &gain, &self.get(ParameterId::PreNormBias)?)?;
        let x = self.blocks(Tower::Vision, x, record)?;

        // The class token is the first row of each picture.
        let rows: Vec<usize> = (0..batch).map(|b| b * tokens).collect();
        self.head(Tower::Vision, &moe::take(&x, &rows)?)
    }

    fn texts(
        &self,
        ids: &[Vec<u32>],
        pooled: &[usize],
        record: &mut Record,
    ) -> candle_core::Result<Tensor> {
        let TowerShape { tokens, width, .. } = self.config.tower(Tower::Text);
        let batch = ids.len();
        let ids = Tensor::new(ids.concat(), &self.device)?;

        let x = self
            .get(ParameterId::TokenEmbedding)?
            .index_select(&ids, 0)?
            .reshape((batch, tokens, width))?
            .broadcast_add(&self.get(ParameterId::PositionEmbedding(Tower::Text))?)?
            .reshape((batch * tokens, width))?;
        let x = self.blocks(Tower::Text, x, record)?;

        let rows: Vec<usize> = (0..batch).map(|b| b * tokens + pooled[b]).collect();
        self.head(Tower::Text, &moe::take(&x, &rows)?)
    }

    /// Pre-norm residual blocks over rows `x` [B T, d].
    fn blocks(
        &self,
        tower: Tower,
        mut x: Tensor,
        record: &mut Record,
    ) -> candle_core::Result<Tensor> {
        let TowerShape { tokens, width, layers, .. } = self.config.tower(tower);
        for index in 0..layers {
            let part = |part| self.get(ParameterId::Block(tower, index, part));
            let y = layer_norm(&x, &part(Part::Ln1Weight)?, &part(Part::Ln1Bias)?)?;
            x = (x + self.attention(tower, index, &y)?)?;

            let y = layer_norm(&x, &part(Part::Ln2Weight)?, &part(Part::Ln2Bias)?)?;

            let batch = y.dim(0)? / tokens;
            record.ffn_in.insert((tower, index), y.reshape((batch, tokens, width))?);
            x = (x + self.ffn(tower, index, &y, record)?)?;
        }
        Ok(x)
    }

    /// Multi-head self-attention over rows `x` [B T, d].
    fn attention(
        &self,
        tower: Tower,
        index: usize,
        x: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let TowerShape { tokens, width, heads, causal, .. } = self.config.tower(tower);
        let part = |part| self.get(ParameterId::Block(tower, index, part));
        let (batch, depth) = (x.dim(0)? / tokens, width / heads);

        // One product gives queries, keys and values side by side, `[N, 3d]`.
        let qkv = linear(x, &part(Part::InProjWeight)?, &part(Part::InProjBias)?)?;
        let split = |which: usize| {
            qkv.narrow(1, which * width, width)?
                .reshape((batch, tokens, heads, depth))?
                .transpose(1, 2)?
                .contiguous()
        };

        let (query, key, value) = (split(0)?, split(1)?, split(2)?);
        let keys = key.transpose(2, 3)?.contiguous()?;
        let mut scores = (query.matmul(&keys)? / (depth as f64).sqrt())?;

        if causal {
            let mask = layers::causal_mask(tokens, self.dtype, &self.device)?;
            scores = scores.broadcast_add(&mask)?;
        }

        let mixed = layers::softmax(&scores)?.matmul(&value)?;

        // The heads lie side by side again, as the output projection expects them.
        let mixed =
            mixed.transpose(1, 2)?.contiguous()?.reshape((batch * tokens, width))?;
        linear(&mixed, &part(Part::OutProjWeight)?, &part(Part::OutProjBias)?)
    }

    /// The FFN of a block, dense or MoE, over rows `x` [B T, d].
    fn ffn(
        &self,
        tower: Tower,
        index: usize,
        x: &Tensor,
        record: &mut Record,
    ) -> candle_core::Result<Tensor> {
        let part = |part| self.get(ParameterId::Block(tower, index, part));
        let activation = self.config.activation;
        if let Some(moe) = &self.config.moe
            && self.config.is_moe(tower, index)
        {
            let experts = experts(&self.config, part)?;

            // A teacher chooses no experts, so it leaves no routing behind.
            if self.moe == MoeForm::Ensemble {
                return experts.ensemble(x, activation);
            }
            let routing = experts.forward(x, moe.top_k, activation)?;
            let out = routing.out.clone();
            record.routing.insert((tower, index), routing);
            return Ok(out);
        }

        let hidden = linear(x, &part(Part::FcWeight)?, &part(Part::FcBias)?)?;
        let hidden = layers::activate(&hidden, activation)?;
        linear(&hidden, &part(Part::ProjWeight)?, &part(Part::ProjBias)?)
    }

    /// Final LayerNorm and projection of pooled rows [B, d].
    fn head(&self, tower: Tower, x: &Tensor) -> candle_core::Result<Tensor> {
        let gain = self.get(ParameterId::PostNormWeight(tower))?;
        let x = layer_norm(x, &gain, &self.get(ParameterId::PostNormBias(tower))?)?;
        x.matmul(&self.get(ParameterId::Projection(tower))?)
    }

    /// The teacher's dense ensemble on the student's own FFN inputs, of every MoE layer.
    fn teach(&self, outputs: &Outputs, teacher: &Tensors) -> Result<Vec<Tensor>> {
        // The teacher's experts are whole, in whatever form the student's are.
        let config = self.config.merged();
        let mut ensembles = Vec::new();
        for &(tower, index) in outputs.routing.keys() {
            let block = names::block(tower, index);
            for part in Part::MOE {
                let name = block.name(part);
                let expected = block.id(part).shape(&config);
                match teacher.get(&name) {
                    Some(tensor) if tensor.shape == expected => {}
                    found => {
                        let found = found.map(|tensor| &tensor.shape);
                        return Err(Error::failed(format!(
                            "teacher tensor {name}: found {found:?}, expected {expected:?}"
                        )));
                    }
                }
            }

            let part = |part: Part| {
                let tensor = &teacher[&block.name(part)];
                Tensor::from_slice(&tensor.data, tensor.shape.as_slice(), &self.device)?
                    .to_dtype(self.dtype)
            };
            let width = self.config.tower(tower).width;

            // The teacher judges the student's own input and is a constant: no gradient
            // may reach the student through it (METHOD §4).
            let x = outputs.ffn_in[&(tower, index)].detach();

            let ensemble = x
                .reshape(((), width))
                .and_then(|x| experts(&config, part)?.ensemble(&x, config.activation))
                .context(|| "running the teacher".to_owned())?;
            ensembles.push(ensemble);
        }
        Ok(ensembles)
    }

    fn get(&self, id: ParameterId) -> candle_core::Result<Tensor> {
        let name = id.name();
        match self.parameters.get(&name) {
            Some(var) => Ok(var.as_tensor().clone()),
            None => candle_core::bail!("the model has no parameter {name}"),
        }
    }
}

/// An MoE layer's weights, each fetched by its part; experts of low rank are W + B A.
fn experts(
    config: &ClipConfig,
    part: impl Fn(Part) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Experts> {
    let router = part(Part::Router)?;
    if config.rank().is_none() {
        return Ok(Experts {
            router,
            fc_weight: part(Part::ExpertFcWeight)?,
            fc_bias: part(Part::ExpertFcBias)?,
            proj_weight: part(Part::ExpertProjWeight)?,
            proj_bias: part(Part::ExpertProjBias)?,
        });
    }

    let count = router.dim(0)?;

    let product =
        |base, up, down| part(up)?.matmul(&part(down)?)?.broadcast_add(&part(base)?);
    let repeated = |base| {
        let base = part(base)?;
        base.unsqueeze(0)?.broadcast_as((count, base.dim(0)?))?.contiguous()
    };
    Ok(Experts {
        fc_weight: product(Part::FcWeight, Part::DeltaFcUp, Part::DeltaFcDown)?,
        fc_bias: repeated(Part::FcBias)?,
        proj_weight: product(Part::ProjWeight, Part::DeltaProjUp, Part::DeltaProjDown)?,
        proj_bias: repeated(Part::ProjBias)?,
        router,
    })
}
