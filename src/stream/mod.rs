//! Streams of tokens: the reader's half, the sender's half, and how they end.

mod channel;
mod end;
mod token;
mod token_sender;
mod token_stream;

pub(crate) use channel::waking;
pub(crate) use end::End;
pub use end::FinishReason;
pub use token::{Token, TokenLogprobs};
pub use token_sender::TokenSender;
pub use token_stream::TokenStream;
