//! Tests of the validation of configs.

use serde_json::Map;

use super::*;

#[test]
fn values_without_meaning_are_refused_by_name() {
    let config = GenerateConfig::new;
    for (bad, name) in [
        (config().temperature(f32::NAN), "temperature"),
        (config().temperature(-1.0), "temperature"),
        (config().temperature(f32::INFINITY), "temperature"),
        (config().top_p(1.5), "top_p"),
        (config().top_p(f32::NAN), "top_p"),
        (config().min_p(-0.1), "min_p"),
        (config().repeat_penalty(f32::NAN), "repeat_penalty"),
        (config().frequency_penalty(f32::INFINITY), "frequency_penalty"),
        (config().presence_penalty(f32::NAN), "presence_penalty"),
        (config().logit_bias([(3, f32::INFINITY)].into()), "logit_bias"),
        (config().max_tokens(0), "max_tokens"),
        (config().max_tokens(3).min_tokens(4), "min_tokens"),
        (config().stop(vec![String::new()]), "stop"),
        (config().stop(vec!["a".repeat(3 << 20), "b".repeat(2 << 20)]), "stop"),
        (config().logprobs(100_000), "logprobs"),
        (config().prompt_lookup(65), "prompt_lookup"),
        (config().adapter(""), "adapter"),
        (config().adapter("a").base_model(true), "base_model"),
        (config().template_var("messages", Value::Null), "template_vars"),
        (config().template_var("add_generation_prompt", false), "template_vars"),
        (config().template_var("bos_token", "<s>"), "template_vars"),
        (config().template_var("eos_token", "</s>"), "template_vars"),
        (config().template_var("tools", nested(MAX_NESTING + 1)), "template_vars"),
    ] {
        match bad.validate() {
            Err(Error::InvalidConfig { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    config().temperature(0.7).top_p(1.0).min_p(0.0).repeat_penalty(1.0).validate().unwrap();
    config().template_var("tools", nested(MAX_NESTING)).template_var("messages_", true).validate().unwrap();
}

#[test]
fn lists_and_maps_are_added_to() {
    let config = GenerateConfig::new().stop(vec!["a".into()]).stop(vec!["b".into()]).stop(Vec::new());
    assert_eq!(config.stop, ["a", "b"]);
    let config = config.stop_tokens(vec![1]).stop_tokens(vec![2, 3]);
    assert_eq!(config.stop_tokens, [1, 2, 3]);
    let config = config.logit_bias([(1, 1.0), (2, 2.0)].into()).logit_bias([(2, 3.0), (4, 4.0)].into());
    assert_eq!(config.logit_bias, [(1, 1.0), (2, 3.0), (4, 4.0)].into());
    let vars = |name: &str, value: i32| Map::from_iter([(name.to_owned(), value.into())]);
    let config = config.template_var("a", 1).template_vars(vars("b", 2)).template_vars(vars("a", 3));
    assert_eq!(Value::from(config.template_vars), serde_json::json!({"a": 3, "b": 2}));
}

#[test]
fn seeds_differ_by_prompt_if_they_are_to() {
    let seeds = |config: GenerateConfig| [0, 1, 5].map(|index| config.for_prompt(index).seed);
    assert_eq!(seeds(GenerateConfig::new().seed(7)), [Some(7); 3]);
    assert_eq!(seeds(GenerateConfig::new().seed(7).seed_per_prompt(true)), [Some(7), Some(8), Some(12)]);
    assert_eq!(seeds(GenerateConfig::new().seed(u64::MAX).seed_per_prompt(true)), [Some(u64::MAX), Some(0), Some(4)]);
    assert_eq!(seeds(GenerateConfig::new().seed_per_prompt(true)), [None; 3]);
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
}
