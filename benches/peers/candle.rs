//! candle-transformers.

use std::{fs::File, io, path::Path, time::Instant};

use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::{quantized_gemma3, quantized_llama};
use serde::Deserialize;
use serde_json::json;

use super::process::{self, Result};

/// Returns the logits after tokens at a position; position 0 starts a new sequence.
type Forward = dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>;

struct Candle {
    forward: Box<Forward>,
}

impl Candle {
    /// Loads a GGUF file.
    ///
    /// # Errors
    /// If candle-transformers does not run the architecture.
    fn load(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let content = Content::read(&mut file)?;
        let architecture = match content.metadata.get("general.architecture") {
            Some(name) => name.to_string()?.clone(),
            None => return Err("the file names no architecture".into()),
        };
        let cpu = &Device::Cpu;
        Ok(match architecture.as_str() {
            "llama" => {
                let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut file, cpu)?;
                Self { forward: Box::new(move |tokens, position| model.forward(tokens, position)) }
            }
            "gemma3" => {
                let mut model = quantized_gemma3::ModelWeights::from_gguf(content, &mut file, cpu)?;
                Self { forward: Box::new(move |tokens, position| model.forward(tokens, position)) }
            }
            other => return Err(format!("it is not asked for files of the architecture {other}").into()),
        })
    }

    /// The seconds of prefill, and of decoding `generate` tokens.
    fn run(&mut self, prompt: &[u32], generate: usize) -> Result<(f64, f64)> {
        let begun = Instant::now();
        let mut logits = self.logits(prompt, 0)?;
        let prefill = begun.elapsed();
        for step in 0..generate {
            let next = logits.flatten_all()?.argmax(0)?.to_scalar::<u32>()?;
            logits = self.logits(&[next], prompt.len() + step)?;
        }
        Ok((prefill.as_secs_f64(), (begun.elapsed() - prefill).as_secs_f64()))
    }

    fn logits(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        Ok((self.forward)(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, position)?)
    }
}

#[derive(Deserialize)]
struct Run {
    prompts: Vec<Vec<u32>>,
    generate: usize,
}

/// Keeps a model loaded and answers each line of the input with one: the other end of [`Peer`](super::peer::Peer).
pub fn serve(path: &Path) -> Result<()> {
    let before = process::resident_bytes();
    let mut candle = Candle::load(path)?;
    println!("{}", json!({}));
    for line in io::stdin().lines() {
        let answer = match line?.as_str() {
            r#""resident""# => json!({ "bytes": process::resident_bytes().saturating_sub(before) }),
            run => {
                let Run { prompts, generate } = serde_json::from_str(run)?;
                let prompt = prompts.first().ok_or("there is no prompt")?;
                let (prefill, decode) = candle.run(prompt, generate)?;
                json!({ "prefill_seconds": prefill, "decode_seconds": decode })
            }
        };
        println!("{answer}");
    }
    Ok(())
}
