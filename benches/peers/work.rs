//! The workloads.

use tokenflow::{GenerateConfig, TextModel};

use super::process::Result;

/// The context depth of the deep decoding workload.
pub const DEPTH: usize = 4096;

/// The longest prompt that slow peers run.
pub const SHORT: usize = 512;

/// Prompts, and the number of tokens to generate after each.
pub struct Work {
    pub name: String,
    pub prompts: Vec<Prompt>,
    /// Tokens to generate; 0 measures prefill.
    pub generate: usize,
}

/// A prompt as text for tokenflow, and as tokens for the peers.
#[derive(Clone)]
pub struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// The workloads that fit into the model's context: prefill, one sequence, 16 sequences, and one deep sequence.
pub async fn works(model: &dyn TextModel) -> Result<Vec<Work>> {
    let together = endless(model, 32, 16, 64).await?;
    let Some(alone) = together.first().cloned() else { return Err("there is no prompt".into()) };
    let work = |name: String, prompts, generate| Work { name, prompts, generate };
    let mut works = vec![
        work(format!("prefill of {SHORT} tokens"), vec![prompt(model, SHORT, "one")?], 0),
        work("decode, 1 sequence".into(), vec![alone], 64),
        work("decode, 16 sequences".into(), together, 64),
    ];
    if model.info().context_len >= DEPTH + 32 {
        works.push(work(format!("decode at {DEPTH} tokens"), endless(model, DEPTH, 1, 32).await?, 32));
    }
    Ok(works)
}

/// Prompts of `len` tokens that the model goes on with for at least `tokens`. No two have a common head.
async fn endless(model: &dyn TextModel, len: usize, count: usize, tokens: usize) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for firsts in FIRST.split(' ').collect::<Vec<_>>().chunks(count) {
        let candidates: Vec<_> = firsts.iter().filter_map(|first| prompt(model, len, first).ok()).collect();
        let texts: Vec<_> = candidates.iter().map(|prompt| prompt.text.as_str()).collect();
        let answers = model.batch_generate(&texts, GenerateConfig::new().max_tokens(tokens)).await?;
        let pairs = candidates.into_iter().zip(answers);
        prompts.extend(pairs.filter(|(_, answer)| answer.tokens.len() == tokens).map(|(prompt, _)| prompt));
        if prompts.len() >= count {
            prompts.truncate(count);
            return Ok(prompts);
        }
    }
    Err("the model ends its answers too early".into())
}

/// First words of prompts.
const FIRST: &str = "one two three four five six seven eight nine ten red green blue white black yellow north south \
                     east west day night sun moon dog cat horse fish bread water fire earth iron gold wood stone";

/// A prompt of exactly that many tokens.
fn prompt(model: &dyn TextModel, tokens: usize, first: &str) -> Result<Prompt> {
    let encoder = model.as_trainable().ok_or("the model has no tokenizer to count with")?;
    let text = |words: usize| {
        let words = ["two", "three", "four", "one"].into_iter().cycle().take(words - 1);
        [first].into_iter().chain(words).collect::<Vec<_>>().join(" ")
    };
    // Each word is one token; the tokenizer may add others in front.
    let added = encoder.encode(&text(8))?.len().saturating_sub(8);
    let text = text(tokens - added);
    let ids = encoder.encode(&text)?;
    if ids.len() != tokens {
        return Err(format!("a prompt that should have {tokens} tokens has {}", ids.len()).into());
    }
    Ok(Prompt { text, tokens: ids })
}
