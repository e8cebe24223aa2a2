//! Samples of a conversation: which tokens of a rendered chat are targets.

use super::dataset::Sample;
use crate::{
    Message, Result, Role,
    text::{Prompt, TextProcessor},
};

/// The samples of a conversation, as the chat template renders it. Targets are the tokens of each answer, up to its end
/// token, after the prompt that the model would have seen.
///
/// One sample has all answers if the template renders earlier turns unchanged. An answer that the template renders
/// differently once later turns follow (earlier reasoning is dropped, for example) gets a sample of its own.
pub fn samples(messages: &[Message], text: &TextProcessor) -> Result<Vec<Sample>> {
    let conversation = Conversation { messages, text };
    let mut samples = vec![Sample::without_targets(conversation.render(messages, false)?)];
    let is_answer = |i: &usize| messages[*i].role == Role::Assistant;
    for i in (1..messages.len()).rev().filter(is_answer) {
        let Some(answer) = conversation.answer(i)? else { continue };
        let at = samples.iter().position(|sample| answer.is_in(sample)).unwrap_or_else(|| {
            samples.push(Sample::without_targets(answer.tokens.clone()));
            samples.len() - 1
        });
        answer.add_targets(&mut samples[at]);
    }
    samples.retain(|sample| sample.num_targets() > 0);
    Ok(samples)
}

struct Conversation<'a> {
    messages: &'a [Message],
    text: &'a TextProcessor,
}

/// An assistant message, rendered at the end of the conversation up to it.
struct AssistantTurn {
    tokens: Vec<u32>,
    /// The index of the first token of the answer.
    begin: usize,
    /// The index of the end token, or the length of `tokens` if the template writes none.
    end: usize,
    end_token: Option<u32>,
}

impl Conversation<'_> {
    /// Renders and tokenizes messages, with or without the generation prompt.
    fn render(&self, messages: &[Message], generation_prompt: bool) -> Result<Vec<u32>> {
        let vars = [("add_generation_prompt".to_owned(), generation_prompt.into())].into_iter().collect();
        self.text.encode(&Prompt::Chat(messages.to_vec()), &vars)
    }

    /// Message `i` as the answer to the messages before it; `None` if the template leaves it out.
    fn answer(&self, i: usize) -> Result<Option<AssistantTurn>> {
        let prompt = self.render(&self.messages[..i], true)?;
        let tokens = self.continue_prompt(&prompt, self.render(&self.messages[..=i], false)?)?;
        // A generation prompt may hold more of an answer than this one has, an empty thought for example.
        let begin = common_prefix(&prompt, &tokens);
        if begin == tokens.len() && begin < prompt.len() {
            return Ok(None);
        }
        let end = self.written_end(&tokens, begin)?;
        let end_token = match end {
            Some(end) => Some(tokens[end]),
            None => self.unwritten_end(i, &tokens)?,
        };
        Ok(Some(AssistantTurn { end: end.unwrap_or(tokens.len()), tokens, begin, end_token }))
    }

    /// Retokenizes so that the tokens begin with the prompt's tokens. Tokenized as a whole, a space at the end of the
    /// prompt merges into the first token of the answer, a token that the model never has to generate.
    fn continue_prompt(&self, prompt: &[u32], tokens: Vec<u32>) -> Result<Vec<u32>> {
        let (begin, tokenizer) = (common_prefix(prompt, &tokens), &self.text.tokenizer);
        if begin == prompt.len() {
            return Ok(tokens);
        }
        let prompt_text = tokenizer.decode(prompt)?;
        for end in begin + 1..=tokens.len() {
            let written = tokenizer.decode(&tokens[..end])?;
            if let Some(rest) = written.strip_prefix(&prompt_text) {
                let joined = [prompt, &tokenizer.encode_plain(rest)?, &tokens[end..]].concat();
                let is_same = tokenizer.decode(&joined)? == tokenizer.decode(&tokens)?;
                return Ok(if is_same { joined } else { tokens });
            }
            if !prompt_text.starts_with(&written) {
                break;
            }
        }
        Ok(tokens)
    }

    fn is_end(&self, id: u32) -> bool {
        self.text.end_ids.contains(&id)
    }

    fn is_space(&self, id: u32) -> Result<bool> {
        Ok(self.text.tokenizer.decode(&[id])?.trim().is_empty())
    }

    /// The first end token after an answer, with only white space and end tokens behind it.
    fn written_end(&self, tokens: &[u32], begin: usize) -> Result<Option<usize>> {
        let mut found = None;
        for (at, id) in tokens.iter().enumerate().skip(begin).rev() {
            if self.is_end(*id) {
                found = Some(at);
            } else if !self.is_space(*id)? {
                break;
            }
        }
        Ok(found)
    }

    /// The end token of an answer that the template does not end: the first token of the next turn if it is an end
    /// token, else the end of text.
    fn unwritten_end(&self, i: usize, tokens: &[u32]) -> Result<Option<u32>> {
        let next = self.messages.get(i + 1).cloned().unwrap_or_else(|| {
            let calls = self.messages[i].fields.get("tool_calls").is_some_and(|calls| !calls.is_null());
            if calls { Message::tool("1") } else { Message::user("1") }
        });
        let turns = [&self.messages[..=i], &[next]].concat();
        // The template may refuse such a turn.
        if let Some(rest) = self.render(&turns, false).unwrap_or_default().strip_prefix(tokens) {
            for id in rest {
                match self.is_end(*id) {
                    true => return Ok(Some(*id)),
                    false if self.is_space(*id)? => {}
                    false => break,
                }
            }
        }
        let end_of_text = self.text.end_of_text;
        let known = end_of_text.filter(|id| self.is_end(*id));
        Ok(known.or_else(|| self.text.end_ids.first().copied()).or(end_of_text))
    }
}

impl AssistantTurn {
    /// Whether a sample has the whole answer after the same prompt.
    fn is_in(&self, sample: &Sample) -> bool {
        common_prefix(&self.tokens, &sample.tokens) >= self.end
    }

    /// Adds the tokens of the answer to a sample's targets, and its end token even if the next turn follows without
    /// one.
    fn add_targets(&self, sample: &mut Sample) {
        for at in self.begin.max(1)..common_prefix(&self.tokens, &sample.tokens) {
            sample.targets[at - 1] = Some(self.tokens[at]);
        }
        if let Some(last) = self.end.checked_sub(1) {
            sample.targets[last] = self.end_token.or(sample.targets[last]);
        }
    }
}

/// The length of the common prefix.
fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::text::{ChatTemplate, Tokenizer, tests};

    fn messages() -> [Message; 5] {
        [
            Message::system("Be brief."),
            Message::user("Hello"),
            Message::assistant("Hi."),
            Message::user("And?"),
            Message::assistant("Bye now."),
        ]
    }

    /// The text of a sample's targets.
    fn target_text(text: &TextProcessor, sample: &Sample) -> String {
        text.tokenizer.decode(&sample.targets.iter().flatten().copied().collect::<Vec<_>>()).unwrap()
    }

    /// A golden template with special tokens, some of which end answers.
    fn golden(name: &str, special: &[&str], ends: &[&str], end_of_text: &str) -> TextProcessor {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut tokenizer = tokenizers::Tokenizer::from_file(root.join("mha_tied/tokenizer.json")).unwrap();
        let special = special.iter().chain(ends).chain([&end_of_text]);
        let special: Vec<_> = special.map(|text| tokenizers::AddedToken::from(*text, true)).collect();
        tokenizer.add_special_tokens(special).unwrap();
        let tokenizer = Tokenizer::new(&root, tokenizer).unwrap();
        let golden = std::fs::read_to_string(root.join(format!("templates/{name}.json"))).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
        let source = golden["chat_template"].as_str().unwrap().to_owned();
        let template = ChatTemplate::new(Path::new("test"), source, String::new(), end_of_text.into()).unwrap();
        let id = |text: &str| tokenizer.id_of(text).unwrap();
        let end_ids = ends.iter().map(|text| id(text)).collect();
        TextProcessor { end_ids, end_of_text: Some(id(end_of_text)), tokenizer, template: Some(template) }
    }

    #[test]
    fn chat_targets_are_answers_and_their_ends() {
        let text = tests::chatml();
        let sample = samples(&messages(), &text).unwrap().remove(0);
        assert_eq!(target_text(&text, &sample), "Hi.<|im_end|>\nBye now.<|im_end|>\n");
        let from = sample.targets.iter().position(Option::is_some).unwrap();
        let before = text.tokenizer.decode(&sample.tokens[..=from]).unwrap();
        assert!(before.ends_with("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"), "{before}");
    }

    #[test]
    fn end_token_is_taken_from_the_next_turn() {
        let glm =
            golden("glm4", &["<|assistant|>"], &["<|endoftext|>", "<|user|>", "<|observation|>"], "<|endoftext|>");
        let learned = |messages: &[Message], text: &TextProcessor| {
            let samples = samples(messages, text).unwrap();
            assert_eq!(samples.len(), 1, "{samples:?}");
            target_text(text, &samples[0])
        };
        assert_eq!(learned(&messages(), &glm), "Hi.<|user|>Bye now.<|user|>");
        let call = serde_json::json!([{"type": "function", "function": {"name": "now", "arguments": {}}}]);
        let call = [Message::user("When?"), Message::assistant("").field("tool_calls", call)];
        let written = learned(&call, &glm);
        assert!(written.starts_with("now") && written.ends_with("<|observation|>"), "{written}");

        let falcon = golden("falcon3", &["<|user|>", "<|assistant|>"], &["<|endoftext|>"], "<|endoftext|>");
        assert_eq!(learned(&messages(), &falcon), "Hi.<|endoftext|>Bye now.<|endoftext|>");
        let starcoder = golden("starcoder2", &[], &["<|endoftext|>"], "<|endoftext|>");
        let written = learned(&messages()[1..], &starcoder);
        assert_eq!(written.replace('\n', ""), "Hi.<|endoftext|>Bye now.<|endoftext|>");
        // The end of an empty answer is a target, too.
        let nothing = [Message::user("Hello"), Message::assistant("")];
        assert_eq!(learned(&nothing, &glm), "<|user|>");
        assert_eq!(learned(&nothing, &starcoder), "<|endoftext|>");
    }

    #[test]
    fn template_without_an_end_token_gets_end_of_text() {
        let source = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}\
                      {% if add_generation_prompt %}assistant: {% endif %}";
        let text = golden("glm4", &[], &["<|endoftext|>"], "<|endoftext|>");
        let text = TextProcessor { template: tests::chatml_with(source), ..text };
        let samples = samples(&messages(), &text).unwrap();
        let learned: Vec<String> = samples.iter().rev().map(|sample| target_text(&text, sample)).collect();
        assert_eq!(learned.concat().matches("<|endoftext|>").count(), 2, "{learned:?}");
        for sample in &samples {
            assert!(!sample.tokens.contains(&text.end_of_text.unwrap()), "no prompt has it");
        }
    }

    #[test]
    fn final_end_of_text_is_accepted() {
        let special = ["<|system|>", "<|user|>", "<|assistant|>"];
        for name in ["phi3", "phi4_mini"] {
            let text = golden(name, &special, &["<|endoftext|>", "<|end|>"], "<|endoftext|>");
            let samples = samples(&messages(), &text).unwrap();
            assert_eq!(samples.len(), 1, "{name}: {samples:?}");
            assert_eq!(
                target_text(&text, &samples[0]).replace('\n', ""),
                "Hi.<|end|>Bye now.<|end|><|endoftext|>",
                "{name}"
            );
        }
    }

    #[test]
    fn rewritten_answers_get_their_own_sample() {
        let qwen = golden("qwen3", &["<|im_start|>"], &["<|im_end|>"], "<|endoftext|>");
        let mut messages = messages();
        messages[2] = Message::assistant("Hi.").field("reasoning_content", "A greeting.");
        let samples = samples(&messages, &qwen).unwrap();
        let learned: Vec<String> = samples.iter().map(|sample| target_text(&qwen, sample)).collect();
        let expected =
            ["<think>\n\n</think>\n\nBye now.<|im_end|>\n", "<think>\nA greeting.\n</think>\n\nHi.<|im_end|>\n"];
        assert_eq!(learned, expected);
        let whole = qwen.tokenizer.decode(&samples[0].tokens).unwrap();
        assert!(whole.contains("<|im_start|>assistant\nHi.<|im_end|>"), "earlier thoughts are not there: {whole}");

        let harmony = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}\
                       {{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}\
                       {% if add_generation_prompt %}<|start|>assistant{% endif %}";
        let special = ["<|start|>", "<|message|>", "<|end|>"];
        let text = golden("glm4", &special, &["<|return|>"], "<|return|>");
        let text = TextProcessor { template: tests::chatml_with(harmony), ..text };
        let samples = super::samples(&messages, &text).unwrap();
        assert_eq!(samples.len(), 1);
        assert_eq!(target_text(&text, &samples[0]), "<|message|>Hi.<|return|><|message|>Bye now.<|return|>");
    }

    #[test]
    fn answer_tokens_continue_the_generation_prompt() {
        let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}\
                      {% if add_generation_prompt %}assistant: {% endif %}";
        let text = TextProcessor { template: tests::chatml_with(source), ..tests::chatml() };
        let asked = Conversation { messages: &messages(), text: &text }.render(&messages()[..2], true).unwrap();
        let samples = samples(&messages()[..3], &text).unwrap();
        assert_eq!(samples.len(), 1);
        assert!(samples[0].tokens.starts_with(&asked));
        assert_eq!(target_text(&text, &samples[0]), "Hi.<|im_end|>");
        assert_eq!(samples[0].targets.iter().position(Option::is_some), Some(asked.len() - 1));
    }

    #[test]
    fn answers_missing_from_the_template_give_no_targets() {
        let source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>{% endif %}";
        let text = TextProcessor { template: tests::chatml_with(source), ..tests::chatml() };
        assert!(samples(&messages(), &text).unwrap().is_empty());
    }
}
