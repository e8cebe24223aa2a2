//! What is measured.

use tokenflow::{GenerateConfig, TextModel};

use super::support::Result;

/// The depth at which decoding is compared with decoding near the beginning.
pub const DEPTH: usize = 4096;

/// Prompts of at most that many tokens are short.
pub const SHORT: usize = 512;

/// Prompts, and how many tokens come after each of them.
pub struct Work {
    pub name: String,
    pub prompts: Vec<Prompt>,
    /// 0 if the prompts themselves are what is measured.
    pub generate: usize,
}

/// A prompt as tokenflow takes it, and as the peers do.
#[derive(Clone)]
pub struct Prompt {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// All that the model's context holds: the prefill, one sequence, 16 together, and one that is deep.
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

/// What prompts may begin with.
const FIRST: &str = "one two three four five six seven eight nine ten red green blue white black yellow north south east \
                     west day night sun moon dog cat horse fish bread water fire earth iron gold wood stone";

/// A prompt of exactly that many tokens.
fn prompt(model: &dyn TextModel, tokens: usize, first: &str) -> Result<Prompt> {
    let encoder = model.as_trainable().ok_or("the model has no tokenizer to count with")?;
    let text = |words: usize| {
        let words = ["two", "three", "four", "one"].into_iter().cycle().take(words - 1);
        [first].into_iter().chain(words).collect::<Vec<_>>().join(" ")
    };
    // A word is a token, but for what tokenizers begin a text with.
    let added = encoder.encode(&text(8))?.len().saturating_sub(8);
    let text = text(tokens - added);
    let ids = encoder.encode(&text)?;
    if ids.len() != tokens {
        return Err(format!("a prompt that should have {tokens} tokens has {}", ids.len()).into());
    }
    Ok(Prompt { text, tokens: ids })
}
