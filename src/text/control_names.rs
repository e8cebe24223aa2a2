//! Names that make a token of a GGUF file a control token, whatever type the file gives it: converters often write down
//! another one. The lists are llama.cpp's.

/// End an answer.
pub const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    GEMMA4_TOOL_RESPONSE,
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Where a vocabulary has this one, `</s>` is text.
pub const GEMMA4_TOOL_RESPONSE: &str = "<|tool_response>";

/// End an answer that fills in a middle, unless the key names another token.
pub const FILL_ENDS: [(&str, &[&str]); 3] = [
    ("tokenizer.ggml.fim_pad_token_id", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("tokenizer.ggml.fim_rep_token_id", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("tokenizer.ggml.fim_sep_token_id", &["<|file_sep|>"]),
];

/// Stand around the parts of a text whose middle is to be filled in.
const FILL: [&str; 24] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];

/// Parts of harmony's messages: one token each, even if their type says that they are text.
pub const WHOLE: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Whether a token of this name is a control token.
pub fn is_control(name: &str) -> bool {
    // Few tokens look like one, and there are hundreds of thousands.
    name.starts_with(['<', '[', '_', '▁'])
        && (ENDS.contains(&name) || FILL.contains(&name) || FILL_ENDS.iter().any(|(_, names)| names.contains(&name)))
}

/// Names of ends that end only a part of an answer beside others in the vocabulary: harmony's and Solar's messages in
/// it end too, and Gemma 4 has `</s>` as text.
pub fn not_an_end(has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let call = has("<|call|>") || has("<|calls|>");
    let mut names = Vec::new();
    if call && (has("<|return|>") || has("<|flush|>")) {
        names.push("<|end|>");
    }
    if has(GEMMA4_TOOL_RESPONSE) {
        names.push("</s>");
    }
    names
}
