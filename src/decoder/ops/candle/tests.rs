//! The operations that CUDA and Metal run, on the CPU, over all golden models: logits and greedy tokens against
//! transformers, PEFT and llama.cpp, with several sequences of different lengths in each pass.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};
use serde_json::Value;

use super::CandleOps;
use crate::{
    AdapterFile,
    adapters::LoraAdapter,
    decoder::{self, BLOCK_TOKENS, Batch, CacheSize, Decoder, Forward, Ops, Placement, Span},
    kernels::{Isa, attention::KvDtype},
    weights::Checkpoint,
};

/// How passes are cut, and how far results may be from the reference.
#[derive(Clone, Copy)]
struct Trial {
    /// Prompt tokens of a sequence in one pass.
    chunk: usize,
    /// Elements of attention's chunks.
    max_elements: usize,
    /// Of logits after the prompt, relative to the greatest.
    tolerance: f32,
    /// The lead of a logit below which another token may be chosen.
    margin: f32,
}

/// Whole prompts in one pass, and small pieces of prompts beside decodes.
const WHOLE: Trial = Trial { chunk: usize::MAX, max_elements: 1 << 25, tolerance: 1e-4, margin: 0.0 };
const PIECES: Trial = Trial { chunk: 7, max_elements: 1 << 9, tolerance: 1e-4, margin: 0.0 };

/// A prompt, the reference's answer, and the tokens so far.
struct Sequence {
    expected: Value,
    adapter: Option<Arc<LoraAdapter>>,
    prompt_len: usize,
    tokens: Vec<u32>,
    cached: usize,
    rope_variant: usize,
    blocks: Vec<u32>,
    logits: Vec<f32>,
}

impl Sequence {
    fn new(expected: &Value, adapter: Option<&Arc<LoraAdapter>>) -> Self {
        let tokens: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
        Self {
            expected: expected.clone(),
            adapter: adapter.cloned(),
            prompt_len: tokens.len(),
            tokens,
            cached: 0,
            rope_variant: 0,
            blocks: Vec::new(),
            logits: Vec::new(),
        }
    }

    fn greedy(&self) -> Vec<u32> {
        serde_json::from_value(self.expected["greedy"].clone()).unwrap()
    }

    fn floats(&self, key: &str) -> Vec<f32> {
        serde_json::from_value(self.expected[key].clone()).unwrap()
    }

    fn is_done(&self) -> bool {
        self.tokens.len() >= self.prompt_len + self.greedy().len()
    }

    fn check(&self, trial: Trial) {
        let theirs = self.floats("logits");
        let greatest = theirs.iter().fold(0f32, |max, x| max.max(x.abs()));
        let difference = self.logits.iter().zip(&theirs).fold(0f32, |max, (a, b)| max.max((a - b).abs())) / greatest;
        let text = &self.expected["text"];
        assert_eq!(self.logits.len(), theirs.len());
        assert!(difference < trial.tolerance, "{text}: logits differ by {difference}");
        let (greedy, margins) = (self.greedy(), self.floats("margins"));
        let clear = margins.iter().position(|lead| *lead < trial.margin).unwrap_or(margins.len()).min(greedy.len());
        assert_eq!(self.tokens[self.prompt_len..][..clear], greedy[..clear], "{text}");
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn prompts(of: &Value) -> &[Value] {
    of["prompts"].as_array().unwrap()
}

fn load(name: &str, trial: Trial) -> Decoder {
    let checkpoint = Checkpoint::open(&golden(name)).unwrap();
    let spec = decoder::spec(&checkpoint).unwrap();
    let ops = CandleOps { max_elements: trial.max_elements, ..CandleOps::new(Device::Cpu, DType::F32, Isa::detect()) };
    let placement = Placement {
        ops: Ops::Candle(ops),
        quantize: None,
        rounded: false,
        cache_size: CacheSize { blocks: 64, state_slots: 0 },
        kv_dtype: KvDtype::F32,
    };
    Decoder::load(&checkpoint, spec, &placement, |_, _| ()).unwrap()
}

/// Computes all sequences together, prompts in pieces, and greedy tokens as far as they are expected.
fn run(decoder: &mut Decoder, sequences: &mut [Sequence], trial: Trial) {
    let count = sequences.len() as u32;
    for (first, sequence) in (0..count).zip(sequences.iter_mut()) {
        let len = sequence.prompt_len + sequence.greedy().len();
        // Blocks of sequences take turns.
        sequence.blocks = (0..len.div_ceil(BLOCK_TOKENS) as u32).map(|block| block * count + first).collect();
    }
    while sequences.iter().any(|sequence| !sequence.is_done()) {
        let mut batch = Batch::default();
        let mut sampled = Vec::new();
        for (index, sequence) in sequences.iter_mut().enumerate().filter(|(_, sequence)| !sequence.is_done()) {
            let len = sequence.tokens.len();
            let rope_variant = decoder.rope_variant(sequence.prompt_len, len);
            if rope_variant != sequence.rope_variant {
                (sequence.rope_variant, sequence.cached) = (rope_variant, 0);
            }
            // Sequences end their prompts in different passes.
            let end = len.min(sequence.cached.saturating_add(trial.chunk).saturating_add(index));
            let positions = sequence.cached..end;
            batch.spans.push(Span {
                sequence: index as u64,
                prompt_len: sequence.prompt_len,
                start: batch.rows(),
                len: positions.len(),
                context_len: end,
                rope_variant,
                blocks: sequence.blocks.clone(),
                adapter: sequence.adapter.clone(),
                ..Span::default()
            });
            batch.tokens.extend(&sequence.tokens[positions.clone()]);
            batch.positions.extend(positions.map(|position| position as u32));
            sequence.cached = end;
            if end == len {
                batch.sampled.push(batch.rows() as u32 - 1);
                sampled.push(index);
            }
        }
        let logits = decoder.forward(&batch).unwrap().logits;
        let vocab_size = logits.len() / sampled.len().max(1);
        for (index, logits) in sampled.into_iter().zip(logits.chunks(vocab_size.max(1))) {
            let sequence = &mut sequences[index];
            if sequence.tokens.len() == sequence.prompt_len {
                sequence.logits = logits.to_vec();
            }
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            sequence.tokens.push(best as u32);
        }
    }
}

fn check(name: &str, expected: &Value, trial: Trial) {
    let mut decoder = load(name, trial);
    let mut sequences: Vec<_> = prompts(expected).iter().map(|prompt| Sequence::new(prompt, None)).collect();
    run(&mut decoder, &mut sequences, trial);
    sequences.iter().for_each(|sequence| sequence.check(trial));
}

/// Checks all and names those that failed.
fn check_all(names: impl IntoIterator<Item = String>, check: impl Fn(&str)) {
    let failed: Vec<_> =
        names.into_iter().filter(|name| catch_unwind(AssertUnwindSafe(|| check(name))).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

fn entries(dir: &str) -> Vec<String> {
    let entries = golden(dir).read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

#[test]
fn directories_of_all_architectures() {
    let names: Vec<_> = entries("").into_iter().filter(|name| golden(name).join("config.json").exists()).collect();
    assert!(names.len() > 80);
    check_all(names, |name| {
        let expected = read_json(&format!("{name}/expected.json"));
        let quantized = ["mlx", "gptq", "awq", "fp8", "mxfp4"].iter().any(|kind| name.starts_with(kind));
        for trial in [WHOLE, PIECES] {
            check(name, &expected, Trial { tolerance: if quantized { 1e-3 } else { 1e-4 }, ..trial });
        }
    });
}

#[test]
fn gguf_files_of_all_architectures() {
    check_all(entries("gguf_architectures"), |file| {
        let stem = file.strip_suffix(".gguf").unwrap();
        let name = match stem.split_once("-0000") {
            Some((name, "1-of-00004")) => name,
            // The other parts of a model that was split.
            Some(_) => return,
            None => stem,
        };
        check(&format!("gguf_architectures/{file}"), &read_json(&format!("{name}/expected.json")), PIECES);
    });
}

#[test]
fn quantized_gguf_files() {
    let expected = read_json("gguf/expected.json");
    check_all(expected.as_object().unwrap().keys().cloned(), |name| {
        // candle rounds activations to 8 bits, in other blocks than llama.cpp.
        let (tolerance, margin) = if name.contains("-q") { (3e-2, 0.1) } else { (1e-4, 0.0) };
        for trial in [WHOLE, PIECES] {
            check(&format!("gguf/{name}"), &expected[name], Trial { tolerance, margin, ..trial });
        }
    });
}

#[test]
fn adapters_beside_plain_sequences() {
    check_all(entries("adapters"), |name| {
        let expected = read_json(&format!("adapters/{name}/expected.json"));
        let model = expected["model"].as_str().unwrap();
        let quantized = ["mlx", "gptq", "awq", "fp8", "mxfp4"].iter().any(|kind| model.starts_with(kind));
        let plain = read_json(&format!("{model}/expected.json"));
        let file = AdapterFile::read(golden(&format!("adapters/{name}"))).unwrap();
        for trial in [WHOLE, PIECES] {
            let trial = Trial { tolerance: if quantized { 1e-3 } else { 1e-4 }, ..trial };
            let mut decoder = load(model, trial);
            let adapter = Arc::new(decoder.network().targets().resolve(&file).unwrap());
            let with = prompts(&expected).iter().map(|prompt| Sequence::new(prompt, Some(&adapter)));
            let without = prompts(&plain).iter().map(|prompt| Sequence::new(prompt, None));
            let mut sequences: Vec<_> = with.chain(without).collect();
            run(&mut decoder, &mut sequences, trial);
            sequences.iter().for_each(|sequence| sequence.check(trial));
        }
    });
}
