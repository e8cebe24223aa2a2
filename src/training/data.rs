use super::{TrainConfig, TrainExample, random::Random};
use crate::{
    Error, Message, Result, Role,
    decoder::Network,
    text::{Prompt, TextProcessor},
};

/// An example as the model takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub tokens: Vec<u32>,
    /// For each token whether it is to be predicted from those before it.
    pub learned: Vec<bool>,
}

impl Sample {
    /// What is learned from an example.
    pub fn new(example: &TrainExample, text: &TextProcessor, network: &Network, config: &TrainConfig) -> Result<Self> {
        let (mut tokens, mut learned) = match example {
            TrainExample::Text(written) => {
                let mut tokens = text.tokenizer.encode(written, true)?;
                tokens.extend(text.end_of_text.filter(|_| config.end_of_text));
                all_but_first(tokens)
            }
            TrainExample::Tokens(tokens) => all_but_first(tokens.clone()),
            TrainExample::Chat(messages) => chat(messages, text)?,
        };
        if let Some(id) = tokens.iter().find(|id| **id as usize >= network.vocab_size()) {
            return Err(Error::config(
                "examples",
                format!("token {id} is not in a vocabulary of {}", network.vocab_size()),
            ));
        }
        let longest = config.max_tokens.min(network.max_positions());
        tokens.truncate(longest);
        learned.truncate(longest);
        Ok(Self { tokens, learned })
    }

    /// The tokens that are to be predicted.
    pub fn targets(&self) -> usize {
        self.learned.iter().filter(|learned| **learned).count()
    }
}

fn all_but_first(tokens: Vec<u32>) -> (Vec<u32>, Vec<bool>) {
    let learned = (0..tokens.len()).map(|i| i > 0).collect();
    (tokens, learned)
}

/// A conversation, of which the turns of the assistant are learned: what the template writes after it has asked for
/// them.
fn chat(messages: &[Message], text: &TextProcessor) -> Result<(Vec<u32>, Vec<bool>)> {
    let written = |messages: &[Message], asks: bool| {
        let vars = [("add_generation_prompt".to_owned(), asks.into())].into_iter().collect();
        text.encode(&Prompt::Chat(messages.to_vec()), &vars)
    };
    let tokens = written(messages, false)?;
    let mut learned = vec![false; tokens.len()];
    for (i, _) in messages.iter().enumerate().skip(1).filter(|(_, message)| message.role == Role::Assistant) {
        let (asked, answered) = (written(&messages[..i], true)?, written(&messages[..=i], false)?);
        if !tokens.starts_with(&answered) {
            let reason = "the chat template writes earlier turns in another way once there are later ones; give each \
                          answer an example of its own";
            return Err(Error::config("examples", format!("{reason} (message {i})")));
        }
        // A question may suggest more of an answer than this one has, an empty thought say.
        let begins = asked.iter().zip(&answered).take_while(|(asked, answered)| asked == answered).count();
        learned[begins..answered.len()].fill(true);
    }
    Ok((tokens, learned))
}

/// Takes some examples away for evaluation, whichever they are; all stay in order.
pub fn split(samples: Vec<Sample>, config: &TrainConfig) -> (Vec<Sample>, Vec<Sample>) {
    let kept = (samples.len() as f32 * config.eval_split).round() as usize;
    let mut is_kept: Vec<bool> = (0..samples.len()).map(|i| i < kept.min(samples.len() - 1)).collect();
    Random::new(config.seed, u64::MAX).shuffle(&mut is_kept);
    let (evaluated, learned): (Vec<_>, Vec<_>) = samples.into_iter().zip(is_kept).partition(|(_, is_kept)| *is_kept);
    let samples = |of: Vec<(Sample, bool)>| of.into_iter().map(|(sample, _)| sample).collect();
    (samples(learned), samples(evaluated))
}

/// The examples of each step of an epoch, in an order of its own.
pub fn steps(count: usize, epoch: usize, config: &TrainConfig) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..count).collect();
    if config.shuffle {
        Random::new(config.seed, epoch as u64).shuffle(&mut order);
    }
    order.chunks(config.step_examples()).map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_in_one_step_of_each_epoch() {
        let config = TrainConfig::new().batch_size(3).gradient_accumulation(2).seed(7);
        let all = |epoch| {
            let mut order = steps(20, epoch, &config).concat();
            order.sort_unstable();
            order
        };
        assert_eq!(all(0), (0..20).collect::<Vec<_>>());
        assert_eq!(steps(20, 1, &config).iter().map(Vec::len).collect::<Vec<_>>(), [6, 6, 6, 2]);
        assert_eq!(steps(20, 1, &config), steps(20, 1, &config));
        assert_ne!(steps(20, 1, &config), steps(20, 2, &config));
        assert_eq!(steps(20, 1, &config.batch_size(1 << 63)).len(), 1);
    }

    #[test]
    fn of_chats_the_answers_are_learned_and_their_ends() {
        let text = crate::text::tests::chatml();
        let messages = [
            Message::system("Be brief."),
            Message::user("Hello"),
            Message::assistant("Hi."),
            Message::user("And?"),
            Message::assistant("Bye now."),
        ];
        let (tokens, learned) = chat(&messages, &text).unwrap();
        let some = |wanted: bool| {
            let ids: Vec<u32> =
                tokens.iter().zip(&learned).filter(|(_, learned)| **learned == wanted).map(|(id, _)| *id).collect();
            text.tokenizer.decode(&ids).unwrap()
        };
        assert_eq!(some(true), "Hi.<|im_end|>\nBye now.<|im_end|>\n");
        assert!(some(false).ends_with("<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"), "{}", some(false));
        // What a template writes in another way later cannot be learned in one go.
        let forgets = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last or m.role == 'user' %}\
                       {{ m.content }}{% endif %}<|im_end|>\n{% endfor %}";
        let text = TextProcessor { template: crate::text::tests::chatml_with(forgets), ..text };
        let error = chat(&messages, &text).unwrap_err().to_string();
        assert!(error.contains("message 2"), "{error}");
        assert!(chat(&messages[..3], &text).is_ok());
    }

    #[test]
    fn a_split_leaves_something_to_learn_from() {
        let sample = |id| Sample { tokens: vec![id, id], learned: vec![false, true] };
        let config = TrainConfig::new().eval_split(0.25);
        let (learned, evaluated) = split((0..8).map(sample).collect(), &config);
        assert_eq!((learned.len(), evaluated.len()), (6, 2));
        for all in [&learned, &evaluated] {
            assert!(all.is_sorted_by_key(|sample| sample.tokens[0]), "{all:?}");
        }
        let (learned, evaluated) = split(vec![sample(0)], &config.eval_split(0.9));
        assert_eq!((learned.len(), evaluated.len()), (1, 0));
    }
}
