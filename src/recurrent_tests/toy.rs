//! A hybrid model of random weights in a directory of its own.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::{Device, Tensor, safetensors};
use serde_json::json;

use crate::{LoadConfig, TextModel, load_model};

const HIDDEN: usize = 48;
const INNER: usize = 72;
const VOCABULARY: usize = 320;

/// A directory that is removed when it is dropped.
pub struct Toy {
    pub path: PathBuf,
    kinds: &'static [&'static str],
    width: usize,
}

impl Drop for Toy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Toy {
    /// A model with a layer of each of these kinds, whose averages have `width` channels.
    pub fn new(kinds: &'static [&'static str], width: usize) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tokenflow-toy-{}-{number}", std::process::id()));
        let toy = Self { path, kinds, width };
        toy.write();
        toy
    }

    pub async fn load(&self, config: LoadConfig) -> Box<dyn TextModel> {
        load_model(&self.path, config).await.unwrap()
    }

    /// Bytes of a sequence's states.
    pub fn state_bytes(&self) -> usize {
        self.kinds.iter().filter(|kind| **kind == "average").count() * (3 * self.width + 1) * size_of::<f32>()
    }

    /// Bytes of a token's keys and values.
    pub fn token_bytes(&self) -> usize {
        let of_kind = |kind: &&str| match *kind {
            "average" => 0,
            "narrow_attention" => 2 * 24 * size_of::<f32>(),
            _ => 2 * 2 * 16 * size_of::<f32>(),
        };
        self.kinds.iter().map(of_kind).sum()
    }

    fn write(&self) {
        fs::create_dir_all(&self.path).unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa_llama3");
        for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
            fs::copy(golden.join(name), self.path.join(name)).unwrap();
        }
        let config = json!({
            "model_type": "toy_hybrid", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
            "num_hidden_layers": self.kinds.len(), "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "layer_types": self.kinds,
            "average_width": self.width, "rope_theta": 500.0,
        });
        fs::write(self.path.join("config.json"), config.to_string()).unwrap();
        safetensors::save(&self.tensors(), self.path.join("model.safetensors")).unwrap();
    }

    fn tensors(&self) -> HashMap<String, Tensor> {
        let mut random = Random(7);
        let mut tensors = HashMap::new();
        let mut add = |name: &str, shape: &[usize]| {
            let scale = if shape.len() == 1 { 1.0 } else { 3.0 / (shape[1] as f32).sqrt() };
            tensors.insert(format!("{name}.weight"), random.tensor(shape, scale));
        };
        add("model.embed_tokens", &[VOCABULARY, HIDDEN]);
        add("model.norm", &[HIDDEN]);
        add("lm_head", &[VOCABULARY, HIDDEN]);
        for (index, kind) in self.kinds.iter().enumerate() {
            let mut add = |name: &str, shape: &[usize]| add(&format!("model.layers.{index}.{name}"), shape);
            add("input_layernorm", &[HIDDEN]);
            add("post_attention_layernorm", &[HIDDEN]);
            add("mlp.gate_proj", &[INNER, HIDDEN]);
            add("mlp.up_proj", &[INNER, HIDDEN]);
            add("mlp.down_proj", &[HIDDEN, INNER]);
            if *kind == "average" {
                add("average.in_proj", &[2 * self.width, HIDDEN]);
                add("average.taps", &[3 * self.width]);
                add("average.decay", &[self.width]);
                add("average.out_proj", &[HIDDEN, self.width]);
                continue;
            }
            let [queries, keys] = if *kind == "narrow_attention" { [2 * 24, 24] } else { [6 * 16, 2 * 16] };
            add("self_attn.q_proj", &[queries, HIDDEN]);
            add("self_attn.k_proj", &[keys, HIDDEN]);
            add("self_attn.v_proj", &[keys, HIDDEN]);
            add("self_attn.o_proj", &[HIDDEN, queries]);
        }
        tensors
    }

    /// Writes an adapter of some modules of all layers.
    pub fn adapter(&self, name: &str, modules: &[(&str, usize, usize)]) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap();
        let mut random = Random(name.len() as u64);
        let mut tensors = HashMap::new();
        for (index, kind) in self.kinds.iter().enumerate() {
            let own = if *kind == "average" { "average" } else { "self_attn" };
            for (module, outputs, inputs) in modules.iter().filter(|(module, ..)| module.starts_with(own)) {
                let module = format!("base_model.model.model.layers.{index}.{module}");
                tensors.insert(format!("{module}.lora_A.weight"), random.tensor(&[2, *inputs], 0.3));
                tensors.insert(format!("{module}.lora_B.weight"), random.tensor(&[*outputs, 2], 0.3));
            }
        }
        safetensors::save(&tensors, path.join("adapter_model.safetensors")).unwrap();
        let targets: Vec<_> = modules.iter().map(|(module, ..)| module.rsplit('.').next()).collect();
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets});
        fs::write(path.join("adapter_config.json"), config.to_string()).unwrap();
        path
    }
}

/// [SplitMix64](https://doi.org/10.1145/2714064.2660195)
struct Random(u64);

impl Random {
    fn tensor(&mut self, shape: &[usize], scale: f32) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| scale * self.next()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// From -1 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
