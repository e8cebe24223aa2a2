//! A page for each use of the crate, with code to start from.
//!
//! Examples that need no weights run on a [`ScriptedModel`](crate::testing::ScriptedModel), which behaves as any other
//! [`TextModel`](crate::TextModel) does.

macro_rules! pages {
    ($($name:ident: $file:literal),* $(,)?) => {
        $(#[doc = include_str!($file)] pub mod $name {})*
    };
}

pages! {
    adapters: "adapters.md",
    axum: "axum.md",
    batch: "batch.md",
    inspection: "inspection.md",
    labels: "labels.md",
    overload: "overload.md",
    streams: "streams.md",
    testing: "testing.md",
    tonic: "tonic.md",
    training: "training.md",
}
