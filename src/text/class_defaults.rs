//! Special tokens that a class of transformers' tokenizers has where `tokenizer_config.json` does not name its own.

use crate::weights::Config;

const NAMES: [&str; 5] = ["bos_token", "eos_token", "unk_token", "pad_token", "mask_token"];

/// The tokens of a class, in the order of [`NAMES`].
fn of_class(class: &str) -> [Option<&'static str>; 5] {
    const END: Option<&str> = Some("<|endoftext|>");
    match class.strip_suffix("Fast").unwrap_or(class) {
        "Qwen2Tokenizer" | "Qwen3_5Tokenizer" => [None, END, END, END, None],
        "GPT2Tokenizer" => [END, END, END, None, None],
        "GPTNeoXTokenizer" => [END, END, END, Some("<|padding|>"), None],
        "LlamaTokenizer" | "CodeLlamaTokenizer" => [Some("<s>"), Some("</s>"), Some("<unk>"), None, None],
        "GemmaTokenizer" => [Some("<bos>"), Some("<eos>"), Some("<unk>"), Some("<pad>"), Some("<mask>")],
        "CohereTokenizer" => {
            [Some("<BOS_TOKEN>"), Some("<|END_OF_TURN_TOKEN|>"), Some("<UNK>"), Some("<PAD>"), Some("<MASK_TOKEN>")]
        }
        _ => [None; 5],
    }
}

/// The keys that a configuration omits, and the tokens of its class for them. A null is no omission.
pub fn tokens(config: &Config) -> impl Iterator<Item = (&'static str, &'static str)> {
    let class = config.get("tokenizer_class").and_then(|class| class.as_str()).unwrap_or_default();
    let left_out = |key: &str| config.entries().all(|(found, _)| found != key);
    let tokens = NAMES.into_iter().zip(of_class(class)).filter_map(|(key, token)| Some((key, token?)));
    tokens.filter(move |(key, _)| left_out(key))
}
