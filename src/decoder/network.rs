//! The weights of a decoder and the computations with them.

use candle_core::{DType, Tensor};

use super::{
    AttentionCapture, Batch, Ops, Outputs, Pass, Placement, Spec,
    layer::Layer,
    linear::{EmbeddingTable, Linear},
    load::Loader,
    norm::Norm,
    ops::AttentionPlans,
    rope::Rope,
    spec::{AttentionSpec, HeadSpec},
};
use crate::{
    Error, Result,
    adapters::{AdaptedRows, LoraTargets, LoraTargetsBuilder, TrainableLora},
    autograd::{composed, cross_entropy},
    kernels::{Isa, attention::Heads, elementwise::scale_and_cap},
    weights::Checkpoint,
};

/// The weights and the computations with them.
pub struct Network {
    pub(super) spec: Spec,
    pub(super) ops: Ops,
    embedding: EmbeddingTable,
    /// The vectors of positions.
    positions: Option<EmbeddingTable>,
    /// From token vectors to the hidden size and back, if they differ.
    projections: Option<[Linear; 2]>,
    embedding_norm: Option<Norm>,
    pub(super) layers: Vec<Layer>,
    norm: Option<Norm>,
    head: Linear,
    ropes: Vec<Rope>,
    targets: LoraTargets,
}

impl Network {
    /// Loads the weights, and calls `progress` with the count of loaded layers and of all layers.
    pub fn load(
        checkpoint: &Checkpoint,
        spec: Spec,
        placement: &Placement,
        progress: impl Fn(usize, usize),
    ) -> Result<Self> {
        let ops = &placement.ops;
        let builder = LoraTargetsBuilder::default();
        let load = &Loader::new(checkpoint, &spec, &builder, placement);
        let names = &spec.layout.names;
        let (hidden, embedded) = (spec.hidden_size, spec.embedding_size);
        let vocabulary = [spec.vocab_size, embedded];
        let embedding = |name, shape| Ok::<_, Error>(EmbeddingTable::new(load.matrix(name, shape)?, ops));
        let norm = |name| load.norm(name, spec.norm, hidden, hidden);
        let tokens = embedding(names.embedding, vocabulary)?;
        let head = match spec.head.tied {
            true => load.head(tokens.weight().clone(), spec.vocab_size, spec.head.bias)?,
            false => load.linear(names.head, vocabulary, spec.head.bias)?,
        };
        let layer = |index: usize| {
            let layer = Layer::load(load, &spec, index)?;
            tracing::debug!(layer = index, of = spec.num_layers(), "loaded a layer");
            progress(index + 1, spec.num_layers());
            Ok(layer)
        };
        let positions = [spec.max_positions + spec.layout.first_position, hidden];
        let projections = || -> Result<_> {
            let load = load.unadapted();
            let into = load.linear(names.project_in, [hidden, embedded], false)?;
            Ok([into, load.linear(names.project_out, [embedded, hidden], false)?])
        };
        let positions = spec.learned_positions.then(|| embedding(names.positions, positions)).transpose()?;
        let projections = (embedded != hidden).then(projections).transpose()?;
        let embedding_norm = spec.embedding_norm.then(|| norm(names.embedding_norm)).transpose()?;
        let layers = (0..spec.num_layers()).map(layer).collect::<Result<_>>()?;
        let norm = spec.final_norm.then(|| norm(names.norm)).transpose()?;
        Ok(Self {
            embedding: tokens,
            positions,
            projections,
            embedding_norm,
            layers,
            norm,
            head,
            ropes: spec.ropes.iter().map(|rope| Rope::new(rope, ops)).collect(),
            ops: ops.clone(),
            targets: builder.finish(spec.hub_layout.as_ref().unwrap_or(&spec.layout).module_names()),
            spec: spec.clone(),
        })
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> usize {
        let Self { spec, embedding, layers, head, .. } = self;
        let head = if spec.head.tied { 0 } else { head.bytes() };
        embedding.bytes() + head + layers.iter().map(Layer::bytes).sum::<usize>()
    }

    /// The state that all layers of a pass share.
    pub(super) fn pass<'a>(&self, batch: &'a Batch, adapted: AdaptedRows<'a>) -> candle_core::Result<Pass<'a>> {
        let rotations = self.ropes.iter().map(|rope| rope.at(batch));
        let rotations = rotations.collect::<candle_core::Result<_>>()?;
        Ok(Pass { batch, rotations, adapted, plans: AttentionPlans::default(), capture: None })
    }

    /// A pass over whole sequences with an adapter that is being trained.
    pub fn training_pass<'a>(&self, batch: &'a Batch, trained: &'a TrainableLora) -> candle_core::Result<Pass<'a>> {
        self.pass(batch, AdaptedRows::all(trained))
    }

    /// A pass over whole sequences that captures their attention.
    pub fn capturing_pass<'a>(&self, batch: &'a Batch, capture: &'a AttentionCapture) -> candle_core::Result<Pass<'a>> {
        Ok(Pass { capture: Some(capture), ..self.pass(batch, batch.adapted_rows())? })
    }

    /// The input of the first layer, `[rows, hidden]`.
    pub fn embed(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let tokens = Tensor::new(batch.tokens.as_slice(), self.ops.device())?;
        let mut x = self.embedding.forward(&tokens)?;
        if self.spec.embedding_scale != 1.0 {
            x = (x * self.spec.embedding_scale)?;
        }
        if let Some([project_in, _]) = &self.projections {
            x = project_in.forward(&x)?;
        }
        if let Some(positions) = &self.positions {
            let first = self.spec.layout.first_position as u32;
            let rows = Tensor::from_iter(batch.positions.iter().map(|position| first + position), self.ops.device())?;
            x = (x + positions.forward(&rows)?)?;
        }
        match &self.embedding_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// The output of a layer for whole sequences, `[rows, hidden]`; differentiable.
    pub fn layer(&self, index: usize, x: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        self.layers[index].forward(x, pass)
    }

    /// The cross-entropy of the last layer's rows with their targets, `[rows, 1]`; differentiable.
    pub fn losses(&self, x: &Tensor, targets: &[u32], pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        cross_entropy(self.head(x, pass)?, targets, self.ops.isa())
    }

    /// The logits of rows of the last layer, `[rows, vocab_size]`; differentiable.
    fn head(&self, x: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let logits = self.head.adapted(&self.before_head(x)?, &pass.adapted)?;
        let HeadSpec { scale, softcap, .. } = self.spec.head;
        if scale == 1.0 && softcap.is_none() {
            return Ok(logits);
        }
        composed([&logits], move |[logits]| {
            let logits = (logits * f64::from(scale))?;
            match softcap.map(f64::from) {
                Some(cap) => (logits / cap)?.tanh()? * cap,
                None => Ok(logits),
            }
        })
    }

    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    pub fn architecture(&self) -> &str {
        self.spec.architecture
    }

    pub fn hidden_size(&self) -> usize {
        self.spec.hidden_size
    }

    /// Heads of each attention layer, in order.
    pub fn attention_heads(&self) -> impl Iterator<Item = Heads> {
        self.spec.attentions().map(AttentionSpec::heads)
    }

    /// Tokens that a sequence may have.
    pub fn max_positions(&self) -> usize {
        self.spec.max_positions
    }

    pub fn vocab_size(&self) -> usize {
        self.spec.vocab_size
    }

    pub fn targets(&self) -> &LoraTargets {
        &self.targets
    }

    /// The instruction set of the CPU's kernels.
    pub fn isa(&self) -> Isa {
        self.ops.isa()
    }

    /// Whether the CPU's kernels compute it: they find gradients, and attend within whole sequences.
    pub fn is_on_cpu(&self) -> bool {
        self.ops.uses_kernels()
    }

    /// See [`Forward::rope_variant`].
    pub fn rope_variant(&self, prompt_len: usize, len: usize) -> usize {
        self.ropes.iter().map(|rope| rope.rope_variant(prompt_len, len)).max().unwrap_or(0)
    }

    /// The input of the head: normalized hidden states.
    pub fn before_head(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let x = match &self.norm {
            Some(norm) => norm.forward(hidden)?,
            None => hidden.clone(),
        };
        match &self.projections {
            Some([_, project_out]) => project_out.forward(&x),
            None => Ok(x),
        }
    }

    /// The outputs of the last layer's rows in [`Batch::sampled`].
    pub(super) fn outputs(&self, x: &Tensor, batch: &Batch) -> candle_core::Result<Outputs> {
        let x = self.before_head(x)?;
        if batch.hidden.is_empty() {
            return Ok(Outputs { logits: self.logits(&x, batch, &batch.sampled)?, hidden: Vec::new() });
        }
        let is_hidden = |row: &u32| batch.hidden.binary_search(row).is_ok();
        let pick = |hidden: bool| {
            let picked = (0u32..).zip(&batch.sampled).filter(|(_, row)| is_hidden(row) == hidden);
            let indices = Tensor::new(picked.map(|(index, _)| index).collect::<Vec<_>>(), self.ops.device())?;
            x.index_select(&indices, 0)
        };
        let hidden = pick(true)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let rows: Vec<u32> = batch.sampled.iter().copied().filter(|row| !is_hidden(row)).collect();
        let logits = if rows.is_empty() { Vec::new() } else { self.logits(&pick(false)?, batch, &rows)? };
        Ok(Outputs { logits, hidden })
    }

    /// The logits of rows, `[rows, vocab_size]`; `x` holds the inputs of the head.
    fn logits(&self, x: &Tensor, batch: &Batch, rows: &[u32]) -> candle_core::Result<Vec<f32>> {
        let adapted = batch.adapted_rows().select(rows);
        let mut logits = self.head.adapted_to_vec(x, &adapted)?;
        let HeadSpec { scale, softcap, .. } = self.spec.head;
        if scale != 1.0 || softcap.is_some() {
            scale_and_cap(&mut logits, scale, softcap, self.ops.isa());
        }
        Ok(logits)
    }
}
