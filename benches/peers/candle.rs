//! candle-transformers, in this process.

use std::{fs::File, path::Path, time::Instant};

use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::{quantized_gemma3, quantized_llama};

use super::{support::Result, work::Work};

/// Gives the logits after tokens at a position; position 0 begins anew.
type Forward = dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>;

pub struct Candle {
    forward: Box<Forward>,
}

impl Candle {
    /// Loads a GGUF file.
    ///
    /// # Errors
    /// Says what candle-transformers lacks for it.
    pub fn load(path: &Path) -> Result<Self> {
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

    /// Tokens per second, of short prompts for themselves: it packs no sequences, and long prompts take it minutes.
    pub fn run(&mut self, work: &Work) -> Result<Option<f64>> {
        let [prompt] = work.prompts.as_slice() else { return Ok(None) };
        if prompt.tokens.len() > 512 {
            return Ok(None);
        }
        let begun = Instant::now();
        let mut logits = self.logits(&prompt.tokens, 0)?;
        let prefill = prompt.tokens.len() as f64 / begun.elapsed().as_secs_f64();
        if work.generate == 0 {
            return Ok(Some(prefill));
        }
        let begun = Instant::now();
        for step in 0..work.generate {
            let next = logits.flatten_all()?.argmax(0)?.to_scalar::<u32>()?;
            logits = self.logits(&[next], prompt.tokens.len() + step)?;
        }
        Ok(Some(work.generate as f64 / begun.elapsed().as_secs_f64()))
    }

    fn logits(&mut self, tokens: &[u32], position: usize) -> Result<Tensor> {
        Ok((self.forward)(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, position)?)
    }
}
