//! Hidden states beside logits.

use std::path::Path;

use super::{Batch, CacheSize, Decoder, Forward, Network, Ops, Outputs, Placement, Span};
use crate::{
    kernels::{Isa, attention::KvDtype, threads::ThreadPool},
    weights::Checkpoint,
};

const TOKENS: [u32; 6] = [5, 9, 2, 40, 7, 5];

fn decoder(name: &str) -> Decoder {
    let checkpoint = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap();
    let spec = super::spec(&checkpoint).unwrap();
    let placement = Placement {
        ops: Ops::Cpu(Isa::detect()),
        quantize: None,
        rounded: false,
        cache_size: CacheSize { blocks: 8, state_slots: 0 },
        kv_dtype: KvDtype::F32,
    };
    Decoder::load(&checkpoint, spec, &placement, |_, _| ()).unwrap()
}

/// Two sequences in one pass, in blocks of their own.
fn outputs(decoder: &mut Decoder, sampled: &[u32], hidden: &[u32]) -> Outputs {
    let span = |start, len, blocks| Span { start, len, context_len: len, blocks, ..Span::default() };
    let batch = Batch {
        tokens: TOKENS.to_vec(),
        positions: vec![0, 1, 2, 3, 0, 1],
        spans: vec![span(0, 4, vec![0]), Span { sequence: 1, ..span(4, 2, vec![1]) }],
        sampled: sampled.to_vec(),
        hidden: hidden.to_vec(),
    };
    let pool = ThreadPool::new("test", 2).unwrap();
    pool.scope(|| decoder.forward(&batch)).unwrap()
}

/// The hidden states of the first sequence, layer by layer.
fn expected(network: &Network) -> Vec<f32> {
    let span = Span { len: 4, context_len: 4, ..Span::default() };
    let batch =
        Batch { tokens: TOKENS[..4].to_vec(), positions: vec![0, 1, 2, 3], spans: vec![span], ..Batch::default() };
    let capture = super::AttentionCapture::new(false);
    let pass = network.capturing_pass(&batch, &capture).unwrap();
    let mut x = network.embed(&batch).unwrap();
    for layer in 0..network.num_layers() {
        x = network.layer(layer, &x, &pass).unwrap();
    }
    network.before_head(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn rows_have_logits_or_hidden_states_as_they_are_wanted() {
    for name in ["mha_tied", "gqa_llama3"] {
        let mut decoder = decoder(name);
        let all = outputs(&mut decoder, &[0, 1, 2, 3, 4, 5], &[]);
        let (vocab_size, hidden_size) = (decoder.network().vocab_size(), decoder.network().hidden_size());
        assert_eq!((all.logits.len(), all.hidden.len()), (6 * vocab_size, 0));
        let mixed = outputs(&mut decoder, &[1, 3, 4, 5], &[3, 4]);
        let row = |row: usize| &all.logits[row * vocab_size..][..vocab_size];
        assert_eq!(mixed.logits, [row(1), row(5)].concat(), "{name}: other rows change no bit");
        assert_eq!(mixed.hidden.len(), 2 * hidden_size);
        let hidden = outputs(&mut decoder, &[0, 1, 2, 3], &[0, 1, 2, 3]);
        assert!(hidden.logits.is_empty());
        assert_eq!(hidden.hidden[3 * hidden_size..], mixed.hidden[..hidden_size], "{name}");
        let expected = expected(decoder.network());
        let difference = hidden.hidden.iter().zip(&expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        assert_eq!(hidden.hidden.len(), expected.len());
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}
