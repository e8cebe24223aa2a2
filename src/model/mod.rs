//! A model's handle: the traits of models.

mod attention_inspector;
mod text_model;
mod trainable_model;

pub use attention_inspector::AttentionInspector;
pub use text_model::TextModel;
pub use trainable_model::TrainableModel;
