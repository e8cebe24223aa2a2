//! Facts that only a model's tensors tell, not its configuration: their names, and whether the output matrix is
//! the embedding.

use crate::{
    Result,
    decoder::{
        Spec,
        layout::{Layout, Names, StoredPrefix},
    },
    weights::{Checkpoint, TensorStore},
};

/// The model of a configuration as a checkpoint has it.
pub fn to_checkpoint(mut spec: Spec, checkpoint: &Checkpoint) -> Result<Spec> {
    let is_there = |layout: &Layout| checkpoint.contains(&weight(layout.names.embedding));
    let stored = match (&checkpoint.store, spec.layout.mlx) {
        (TensorStore::Gguf(_), _) => Some(Layout::gguf(&spec)),
        (TensorStore::Safetensors(_), Some(mlx)) if is_there(mlx) => Some(mlx.clone()),
        (TensorStore::Safetensors(_), _) => None,
    };
    if let Some(layout) = stored {
        spec.hub_layout = Some(std::mem::replace(&mut spec.layout, layout));
    }
    if let TensorStore::Safetensors(_) = checkpoint.store {
        spec.layout.stored = stored_prefix(&spec.layout.names, checkpoint);
        tie(&mut spec, checkpoint)?;
    }
    Ok(spec)
}

fn weight(module: &str) -> String {
    format!("{module}.weight")
}

/// The prefix of tensor names, where it is not the usual one: some models are saved without their head, or inside of
/// larger ones.
fn stored_prefix(names: &Names, checkpoint: &Checkpoint) -> Option<StoredPrefix> {
    let usual = names.base();
    if usual.is_empty() || checkpoint.contains(&weight(names.embedding)) {
        return None;
    }
    let embedding = weight(&names.embedding[usual.len()..]);
    let layers = format!("{}.0.", names.layers.strip_prefix(usual)?);
    let has_layers = |base: &str| {
        let first = format!("{base}{layers}");
        checkpoint.names().any(|name| name.starts_with(&first))
    };
    let bases = checkpoint.names().filter_map(|name| name.strip_suffix(&embedding));
    let bases = bases.filter(|base| (base.is_empty() || base.ends_with('.')) && has_layers(base));
    // Similar parts of larger models, such as encoders, have longer names.
    let base = bases.min_by_key(|base| base.len())?;
    let head = match names.head.strip_prefix(usual) {
        Some(rest) => format!("{base}{rest}"),
        None => {
            let ends = base.match_indices('.').map(|(at, _)| at + 1).chain([0]);
            let mut heads = ends.map(|end| format!("{}{}", &base[..end], names.head));
            let is_there = |head: &String| checkpoint.names().any(|name| name.starts_with(&format!("{head}.")));
            heads.find(is_there).unwrap_or_else(|| names.head.into())
        }
    };
    Some(StoredPrefix { base: base.to_owned(), head })
}

/// Where the output matrix is to be the embedding, takes either for both if the other is not there, and neither for the
/// other if they differ, as transformers does.
fn tie(spec: &mut Spec, checkpoint: &Checkpoint) -> Result<()> {
    let names = spec.layout.names;
    let [embedding, head] = [names.embedding, names.head].map(|module| weight(&spec.layout.stored_name(module)));
    // mlx-lm ignores a head that is stored in spite of this.
    if !spec.head.tied || checkpoint.config.get("quantization").is_some() || !checkpoint.contains(&head) {
        return Ok(());
    }
    if !checkpoint.contains(&embedding) {
        spec.layout.names.embedding = names.head;
        return Ok(());
    }
    let shapes = [&embedding, &head].map(|name| checkpoint.tensor(name).map(|tensor| tensor.shape.to_vec()));
    if let [Ok(embedding), Ok(head)] = &shapes
        && embedding != head
    {
        tracing::warn!(?embedding, ?head, "the output matrix is tied; one of another shape in the file is not read");
        return Ok(());
    }
    let is_same = shapes.iter().all(Result::is_ok) && checkpoint.is_same(&embedding, &head)?;
    spec.head.tied = is_same;
    Ok(())
}
