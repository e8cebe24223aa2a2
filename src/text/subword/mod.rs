//! Words to token ids by a model's vocabulary: byte pair encoding, Unigram, WordPiece.
//!
//! A word may be a whole document, so every algorithm takes time close to linear in its word and yields to other
//! prompts on the way. The ids equal the tokenizers crate's, which still splits short words of byte pair encodings: it
//! caches them.

mod bpe;
mod model;
mod private_field;
#[cfg(test)]
mod tests;
mod trie;
mod unigram;
mod word_piece;

pub use model::SubwordModel;
