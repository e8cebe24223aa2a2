//! Training against PEFT, and beside requests.

use std::{fs, path::Path, time::Duration};

use futures::StreamExt;
use safetensors::SafeTensors;
use serde_json::Value;
use tokenflow::{
    AdapterFile, Error, FinishReason, GenerateConfig, InstructionSet, LoadConfig, LoraConfig, Message, OnBadExample,
    Quantize, Result, Schedule, TextModel, TrainConfig, TrainExample, TrainProgress, TrainStream, TrainableModel,
    load_trainable,
};

use crate::{TempDir, adapters::adapters, golden_path, read_json};

async fn trainable(model: &str) -> Box<dyn TrainableModel> {
    trainable_with(model, LoadConfig::new()).await
}

async fn trainable_with(model: &str, config: LoadConfig) -> Box<dyn TrainableModel> {
    load_trainable(golden_path(model), config).await.unwrap()
}

/// All steps, and the result.
async fn all(mut stream: TrainStream) -> (Vec<TrainProgress>, Result<()>) {
    let mut steps = Vec::new();
    while let Some(step) = stream.next().await {
        steps.push(step);
    }
    (steps, stream.result())
}

/// The logits after a short prompt.
async fn logits(model: &dyn TextModel) -> Vec<f32> {
    logits_with(model, GenerateConfig::new()).await
}

async fn logits_with(model: &dyn TextModel, config: GenerateConfig) -> Vec<f32> {
    model.classify(&["The dog"], config.return_logits(true)).await.unwrap().remove(0).logits.unwrap()
}

async fn losses(stream: TrainStream) -> Vec<f32> {
    let (steps, ended) = all(stream).await;
    ended.unwrap();
    steps.iter().map(|step| step.loss).collect()
}

/// Token sequences to train on.
fn sequences(count: u32) -> Vec<TrainExample> {
    (0..count).map(|i| TrainExample::Tokens((0..12 + i % 5).map(|j| 3 + (i * 31 + j * 17) % 200).collect())).collect()
}

fn plain(settings: &Value) -> TrainConfig {
    let number = |key: &str| settings[key].as_f64().unwrap() as f32;
    TrainConfig::new()
        .epochs(1)
        .batch_size(2)
        .shuffle(false)
        .schedule(Schedule::Constant)
        .learning_rate(number("learning_rate"))
        .weight_decay(number("weight_decay"))
        .max_grad_norm(number("max_grad_norm"))
}

fn floats(values: &Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

/// Compares losses and gradient norms of a training that continues an adapter with `training.json` beside it.
async fn goes_on(model: &dyn TrainableModel, name: &str, expected: &Value, loss_within: f32, norm_within: f32) {
    goes_on_as(model, (name, LoraConfig::new()), expected, loss_within, norm_within).await;
}

async fn goes_on_as(
    model: &dyn TrainableModel,
    (name, config): (&str, LoraConfig),
    expected: &Value,
    loss_within: f32,
    norm_within: f32,
) {
    model.apply_lora(config.initial(golden_path("adapters").join(name))).unwrap();
    let batches: Vec<Vec<Vec<u32>>> = serde_json::from_value(expected["batches"].clone()).unwrap();
    let examples = batches.into_iter().flatten().map(TrainExample::Tokens).collect();
    let (steps, ended) = all(model.train(examples, plain(expected))).await;
    ended.unwrap();
    let expected = floats(&expected["losses"]).into_iter().zip(floats(&expected["norms"]));
    assert_eq!(steps.len(), expected.len());
    for (step, (loss, norm)) in steps.iter().zip(expected) {
        assert!((step.loss / loss - 1.0).abs() < loss_within, "{name}: loss {} and not {loss}", step.loss);
        assert!((step.grad_norm / norm - 1.0).abs() < norm_within, "{name}: gradient {} not {norm}", step.grad_norm);
    }
}

#[tokio::test]
async fn losses_and_gradients_match_peft() {
    let mut checked = 0;
    for name in adapters() {
        let path = format!("adapters/{name}/training.json");
        if !golden_path(&path).exists() {
            continue;
        }
        let model = read_json(&format!("adapters/{name}/expected.json"))["model"].as_str().unwrap().to_owned();
        goes_on(&*trainable(&model).await, &name, &read_json(&path), 1e-4, 1e-3).await;
        checked += 1;
    }
    assert!(checked > 10);
}

#[tokio::test]
async fn bf16_training_stays_close_to_f32() {
    for name in ["q_v", "all_linear", "fused_dora", "conv1d", "tied_head"] {
        let model = read_json(&format!("adapters/{name}/expected.json"))["model"].as_str().unwrap().to_owned();
        let (expected, config) =
            (read_json(&format!("adapters/{name}/training.json")), LoraConfig::new().bfloat16(true));
        goes_on_as(&*trainable(&model).await, (name, config), &expected, 0.02, 0.1).await;
    }
}

#[tokio::test]
async fn adapters_train_over_quantized_weights() {
    for (name, bits) in [("q_v", Quantize::Int8), ("fused_dora", Quantize::Int8), ("q_v", Quantize::Int4)] {
        let model = read_json(&format!("adapters/{name}/expected.json"))["model"].as_str().unwrap().to_owned();
        let model = trainable_with(&model, LoadConfig::new().quantize(bits)).await;
        let within = if bits == Quantize::Int8 { 0.03 } else { 0.3 };
        goes_on(&*model, name, &read_json(&format!("adapters/{name}/training.json")), within, 3.0 * within).await;
    }
}

#[tokio::test]
async fn every_target_trains() {
    for name in ["gqa_llama3", "gemma2_v5", "qwen3", "phi3_v4", "gpt_neox_v5", "bloom_v5", "olmoe", "gpt2_v5"] {
        let model = trainable(name).await;
        let adapter = model.apply_lora(LoraConfig::new().target_keys(["all-linear"]).dora(true)).unwrap();
        assert!(adapter.total_params() > 0);
        let config = TrainConfig::new().epochs(4).learning_rate(1e-2).schedule(Schedule::Cosine).warmup_steps(1);
        let losses = losses(model.train(sequences(4), config)).await;
        assert_eq!(losses.len(), 4);
        assert!(losses[3] < losses[1], "{name}: {losses:?}");
    }
}

#[tokio::test]
async fn trained_adapter_is_served_saved_and_reloaded() {
    let model = trainable("gqa_llama3").await;
    let before = logits(&*model).await;
    let adapter = model.apply_lora(LoraConfig::new().rank(4).rank_stabilized(true)).unwrap();
    assert_eq!(logits(&*model).await, before, "it changes nothing yet");
    losses(model.train(sequences(6), TrainConfig::new().learning_rate(1e-2))).await;
    let after = logits(&*model).await;
    assert_ne!(after, before);
    let dir = TempDir::new("learned");
    adapter.save(&dir.0).unwrap();
    let again = trainable_with("gqa_llama3", LoadConfig::new().adapter_path(&dir.0)).await;
    assert_eq!(logits(&*again).await, after);
    let goes_on = trainable("gqa_llama3").await;
    goes_on.apply_lora(LoraConfig::new().initial(&dir.0)).unwrap();
    assert_eq!(logits(&*goes_on).await, after, "it is used from the beginning");
}

#[tokio::test]
async fn stopped_training_publishes_its_adapter() {
    let model = trainable("gqa_llama3").await;
    let before = logits(&*model).await;
    let adapter = model.apply_lora(LoraConfig::new()).unwrap();
    let mut stream = model.train(sequences(4), TrainConfig::new().learning_rate(1e-2).epochs(100_000));
    for _ in 0..3 {
        stream.next().await.unwrap();
    }
    stream.stop().await.unwrap();
    let after = logits(&*model).await;
    assert_ne!(after, before);
    let dir = TempDir::new("ended");
    adapter.save(&dir.0).unwrap();
    model.load_adapter("saved", &dir.0).await.unwrap();
    assert_eq!(logits_with(&*model, GenerateConfig::new().adapter("saved")).await, after);

    // A training that ends late does not replace a newer adapter.
    let config = TrainConfig::new().learning_rate(1e-2).epochs(100_000);
    model.train(sequences(4), config).next().await.unwrap();
    model.apply_lora(LoraConfig::new().initial(&dir.0)).unwrap();
    // The earlier training has ended when this one fails.
    all(model.train(vec![], TrainConfig::new())).await.1.unwrap_err();
    assert_eq!(logits(&*model).await, after);
}

#[tokio::test]
async fn nested_model_modules_keep_peft_names() {
    for (name, begins) in [
        ("gemma3_inside", "model.language_model.layers."),
        ("mistral3_v5", "model.language_model.layers."),
        ("gemma3_v5", "model.layers."),
    ] {
        let model = trainable(name).await;
        let adapter = model.apply_lora(LoraConfig::new()).unwrap();
        losses(model.train(sequences(4), TrainConfig::new().epochs(1))).await;
        let dir = TempDir::new("inside");
        adapter.save(&dir.0).unwrap();
        let file = AdapterFile::read(&dir.0).unwrap();
        assert!(file.modules.keys().all(|module| module.starts_with(begins)), "{name}: {:?}", file.modules.keys());
        model.load_adapter("again", &dir.0).await.unwrap();
        model.apply_lora(LoraConfig::new().initial(&dir.0)).unwrap();
    }
}

#[tokio::test]
async fn activation_checkpointing_changes_no_bit() {
    let model = trainable("qwen3").await;
    let mut runs = Vec::new();
    for config in [TrainConfig::new(), TrainConfig::new().checkpoint_activations(true)] {
        model.apply_lora(LoraConfig::new()).unwrap();
        runs.push(losses(model.train(sequences(8), config.learning_rate(1e-2))).await);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn instruction_set_changes_no_bit_of_training() {
    for (bfloat16, load) in
        [(false, LoadConfig::new()), (true, LoadConfig::new()), (true, LoadConfig::new().quantize(Quantize::Int4))]
    {
        let mut runs = Vec::new();
        for set in InstructionSet::available() {
            let model = trainable_with("gqa_llama3", load.clone().instruction_set(set)).await;
            model.apply_lora(LoraConfig::new().target_keys(["all-linear"]).dora(true).bfloat16(bfloat16)).unwrap();
            runs.push(losses(model.train(sequences(8), TrainConfig::new().learning_rate(1e-2))).await);
        }
        assert!(runs.iter().all(|run| *run == runs[0]), "{bfloat16} {runs:?}");
    }
}

#[tokio::test]
async fn stop_waits_for_the_end_of_training() {
    let model = trainable("gqa_llama3").await;
    let config = TrainConfig::new().epochs(100_000).learning_rate(1e-2);
    for wanted in 0..3 {
        let mut stream = model.train(sequences(4), config.clone());
        for _ in 0..wanted {
            stream.next().await.unwrap();
        }
        stream.stop().await.unwrap();
    }
    // A training that had ended, and one that failed.
    let mut ended = model.train(sequences(4), config.clone().max_steps(1));
    while ended.next().await.is_some() {}
    ended.stop().await.unwrap();
    assert!(matches!(model.train(vec![], config).stop().await, Ok(()) | Err(Error::InvalidConfig { .. })));
    model.close().await.unwrap();
    assert!(matches!(model.train(sequences(1), TrainConfig::new()).stop().await, Err(Error::Closed)));
}

/// Checks that requests without an adapter name get finite logits, and returns the logits.
async fn answers(model: &dyn TextModel) -> Vec<f32> {
    let mut stream = model.generate("The dog", GenerateConfig::new().max_tokens(5));
    while stream.next().await.is_some() {}
    assert!(stream.err().is_none(), "{:?}", stream.err());
    let logits = logits(model).await;
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits
}

fn has_diverged(ended: Result<()>) {
    let error = ended.unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { field: "learning_rate", .. }), "{error:?}");
    assert!(error.to_string().contains("diverged"), "{error}");
}

#[tokio::test]
async fn diverged_training_keeps_the_last_good_adapter() {
    let gentle = || TrainConfig::new().learning_rate(1e-3);
    for (rate, dora) in [(1e38, false), (1e4, true), (30.0, false)] {
        let model = trainable("gqa_llama3").await;
        let adapter = model.apply_lora(LoraConfig::new().target_keys(["all-linear"]).dora(dora)).unwrap();
        let untrained = answers(&*model).await;
        let learned = losses(model.train(sequences(4), gentle().learning_rate(1e-2).epochs(200))).await;
        assert!(*learned.last().unwrap() < 1.0, "{learned:?}");
        let good = answers(&*model).await;
        assert_ne!(good, untrained);
        let dir = TempDir::new("diverged");
        let absurd =
            || TrainConfig::new().learning_rate(rate).schedule(Schedule::Constant).max_grad_norm(0.0).epochs(50);
        for config in [
            absurd(),
            // The last step is checked, too.
            absurd().max_steps(1),
            absurd().checkpoint_dir(&dir.0).checkpoint_every(1),
            absurd().eval_split(0.25).eval_every(1),
            absurd().batch_size(1).epochs(1),
        ] {
            has_diverged(all(model.train(sequences(4), config)).await.1);
            assert_eq!(answers(&*model).await, good, "{rate}");
        }
        assert_eq!(dir.0.read_dir().unwrap().count(), 0, "no checkpoint has it");
        let mut stream = model.train(sequences(4), absurd());
        if stream.next().await.is_some() {
            has_diverged(stream.stop().await);
        }
        assert_eq!(answers(&*model).await, good, "{rate}");
        adapter.save_async(&dir.0).await.unwrap();
        model.load_adapter("saved", &dir.0).await.unwrap();
        assert_eq!(logits_with(&*model, GenerateConfig::new().adapter("saved")).await, good);
        losses(model.train(sequences(4), gentle())).await;
    }
}

#[tokio::test]
async fn late_divergence_keeps_earlier_progress() {
    let model = trainable("gqa_llama3").await;
    model.apply_lora(LoraConfig::new().target_keys(["all-linear"])).unwrap();
    losses(model.train(sequences(4), TrainConfig::new().learning_rate(1e-2).epochs(200))).await;
    let before = answers(&*model).await;
    // The learning rate rises from zero beyond any stable value.
    let config = TrainConfig::new().learning_rate(1000.0).warmup_steps(100_000).epochs(2000);
    let (steps, ended) = all(model.train(sequences(4), config)).await;
    has_diverged(ended);
    assert!(steps.len() < 2000, "it has been given up");
    assert_ne!(answers(&*model).await, before);
}

#[tokio::test]
async fn bad_examples_are_refused_by_index_or_skipped() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}\
                    {% if messages[0].content == 'refuse' %}{{ raise_exception('no') }}{% endif %}";
    let model = trainable_with("gqa_llama3", LoadConfig::new().chat_template(template)).await;
    let long = [Message::user("secret ".repeat(50)), Message::assistant("Yes.")];
    let bad = [
        TrainExample::text(""),
        TrainExample::chat([Message::user("A secret?")]),
        TrainExample::chat([Message::user("refuse"), Message::assistant("A secret.")]),
        TrainExample::chat(Vec::new()),
        TrainExample::Tokens(vec![1, 1 << 30]),
        TrainExample::chat(long),
    ];
    let config = || TrainConfig::new().epochs(1).batch_size(1).max_tokens(24);
    for (at, example) in bad.iter().enumerate() {
        let mut examples = sequences(9);
        examples.insert(at, example.clone());
        let error = all(model.train(examples, config())).await.1.unwrap_err();
        assert!(
            matches!(error, Error::InvalidConfig { field: "examples", .. } | Error::ChatTemplate { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(&format!("example {at}: ")), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
    let examples = [sequences(3), bad.to_vec()].concat();
    for (choice, skipped, cut) in [(OnBadExample::Skip, 6, 0), (OnBadExample::Truncate, 5, 1)] {
        let (steps, ended) = all(model.train(examples.clone(), config().on_bad_example(choice))).await;
        ended.unwrap();
        assert_eq!(steps.len(), examples.len() - skipped);
        assert!(steps.iter().all(|step| (step.skipped_examples, step.cut_examples) == (skipped, cut)), "{steps:?}");
        let nothing = all(model.train(bad[..2].to_vec(), config().on_bad_example(choice))).await.1.unwrap_err();
        assert!(nothing.to_string().contains("example 0: "), "{nothing}");
    }
}

#[tokio::test]
async fn trained_answers_end_without_an_end_marker_in_the_template() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    let model = trainable_with("gqa_llama3", LoadConfig::new().chat_template(template)).await;
    let chat = [Message::user("dog"), Message::assistant("cat"), Message::user("cat"), Message::assistant("dog dog")];
    model.apply_lora(LoraConfig::new().target_keys(["all-linear"])).unwrap();
    let config = TrainConfig::new().epochs(300).learning_rate(5e-3);
    let losses = losses(model.train(vec![TrainExample::chat(chat.clone())], config)).await;
    assert!(*losses.last().unwrap() < 0.1, "{losses:?}");
    for answer in [1, 3] {
        let mut stream = model.chat(&chat[..answer], GenerateConfig::new().max_tokens(40));
        let mut text = String::new();
        while let Some(token) = stream.next().await {
            text += &token.text;
        }
        assert_eq!(stream.finish_reason(), Some(FinishReason::Stop), "{text}");
        assert_eq!(text.trim(), chat[answer].content);
    }
}

fn checkpointed(dir: &Path, steps: usize) -> TrainConfig {
    let config = TrainConfig::new().checkpoint_dir(dir).checkpoint_every(2).max_steps(steps).batch_size(2).epochs(9);
    config.learning_rate(1e-2).schedule(Schedule::Constant)
}

/// A copy of a model with one changed byte in a tensor.
fn altered(model: &str, tensor: &str) -> TempDir {
    let dir = TempDir::copy_of(model, "altered");
    let path = dir.0.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let at = file.tensor(tensor).unwrap().data().as_ptr().addr() - bytes.as_ptr().addr();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
    dir
}

/// Trains with checkpoints up to a step.
async fn with_checkpoints(model: &dyn TrainableModel, dir: &Path, steps: usize) -> Vec<f32> {
    model.apply_lora(LoraConfig::new().dora(true)).unwrap();
    losses(model.train(sequences(5), checkpointed(dir, steps))).await
}

#[tokio::test]
async fn resume_from_checkpoints_is_bit_exact() {
    let model = trainable("gqa_llama3").await;
    let (whole, parts) = (TempDir::new("whole"), TempDir::new("parts"));
    let expected = with_checkpoints(&*model, &whole.0, 7).await;
    assert_eq!(expected.len(), 7);
    let mut losses = with_checkpoints(&*model, &parts.0, 3).await;
    // A crash may leave a partial checkpoint.
    fs::create_dir(parts.0.join("step-000004.part")).unwrap();
    losses.extend(with_checkpoints(&*model, &parts.0, 6).await);
    losses.extend(with_checkpoints(&*model, &parts.0, 7).await);
    assert_eq!(losses, expected);
    let weights = |dir: &TempDir| fs::read(dir.0.join("step-000007/adapter_model.safetensors")).unwrap();
    assert_eq!(weights(&parts), weights(&whole));
    // Another training does not resume from it.
    model.apply_lora(LoraConfig::new()).unwrap();
    let (steps, ended) = all(model.train(sequences(5), TrainConfig::new().checkpoint_dir(&parts.0))).await;
    assert!(steps.is_empty());
    assert!(matches!(ended, Err(Error::InvalidConfig { field: "checkpoint_dir", .. })), "{ended:?}");
    // Nor does one with another initial adapter or model.
    let config = LoraConfig::new().dora(true);
    let altered = altered("gqa_llama3", "model.layers.0.self_attn.q_proj.weight");
    let other = load_trainable(&altered.0, LoadConfig::new()).await.unwrap();
    for (model, config) in [
        (&model, config.clone().seed(1)),
        (&model, config.clone().bfloat16(true)),
        (&model, config.clone().initial(parts.0.join("step-000007"))),
        (&other, config),
    ] {
        model.apply_lora(config.clone()).unwrap();
        let stream = model.train(sequences(5), checkpointed(&parts.0, 9));
        assert!(matches!(all(stream).await.1, Err(Error::InvalidConfig { field: "checkpoint_dir", .. })), "{config:?}");
    }
    // A damaged checkpoint is refused.
    fs::write(whole.0.join("step-000007/training.safetensors"), b"nothing").unwrap();
    let stream = {
        model.apply_lora(LoraConfig::new().dora(true)).unwrap();
        let config = TrainConfig::new().checkpoint_dir(&whole.0).batch_size(2);
        model.train(sequences(5), config.learning_rate(1e-2).schedule(Schedule::Constant))
    };
    let ended = all(stream).await.1.unwrap_err();
    assert!(ended.to_string().contains("training.safetensors"), "{ended}");
}

#[tokio::test]
async fn dropped_stream_ends_training_and_keeps_the_last_step() {
    let model = trainable("gqa_llama3").await;
    let dir = TempDir::new("dropped");
    let config = TrainConfig::new().epochs(100_000).checkpoint_dir(&dir.0);
    let mut stream = model.train(sequences(4), config.clone());
    assert_eq!(stream.next().await.unwrap().step, 1);
    let (_, busy) = all(model.train(sequences(4), TrainConfig::new())).await;
    assert!(matches!(busy, Err(Error::TrainingInProgress)), "{busy:?}");
    drop(stream);
    // Trainings that are dropped before they start do not block later ones.
    for _ in 0..3 {
        drop(model.train(sequences(4), config.clone()));
    }
    let mut stream = model.train(sequences(4), config.clone());
    let step = stream.next().await.unwrap().step;
    assert!(step > 1, "it goes on from a checkpoint");
    model.close().await.unwrap();
    while stream.next().await.is_some() {}
    assert!(matches!(stream.result(), Err(Error::Closed)));
    assert!(matches!(model.apply_lora(LoraConfig::new()).err(), Some(Error::Closed)));
    assert!(matches!(all(model.train(sequences(1), config)).await.1, Err(Error::Closed)));
}

#[tokio::test]
async fn close_ends_an_unread_training() {
    let model = trainable("gqa_llama3").await;
    let dir = TempDir::new("unread");
    // The channel is full before the step of this checkpoint is sent.
    let config = TrainConfig::new().epochs(100_000).checkpoint_dir(&dir.0).checkpoint_every(17);
    let stream = model.train(sequences(4), config);
    while !dir.0.join("step-000017").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::timeout(Duration::from_secs(60), model.close()).await.unwrap().unwrap();
    let (steps, ended) = all(stream).await;
    assert_eq!(steps.len(), 16);
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
}

#[tokio::test]
async fn close_interrupts_reading_examples() {
    let model = trainable("gqa_llama3").await;
    let mut examples = vec![TrainExample::text("The dog and the cat. ".repeat(100)); 10_000];
    // This example would be an error, if it were reached.
    examples.push(TrainExample::Tokens(Vec::new()));
    let stream = model.train(examples, TrainConfig::new());
    model.close().await.unwrap();
    let ended = all(stream).await.1;
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
}

#[tokio::test]
async fn answers_stay_the_same_beside_training() {
    let model = trainable("qwen3").await;
    let answer = async || {
        let tokens = model.generate("The dog", GenerateConfig::new().max_tokens(40)).collect::<Vec<_>>().await;
        tokens.into_iter().map(|token| token.id).collect::<Vec<_>>()
    };
    let expected = answer().await;
    let mut training = model.train(sequences(8), TrainConfig::new().epochs(10_000).learning_rate(1e-2));
    let mut step = 0;
    for _ in 0..5 {
        assert_eq!(answer().await, expected);
        step = training.next().await.unwrap().step;
    }
    assert!(step >= 5);
}

#[tokio::test]
async fn held_out_loss_stops_training_early() {
    let model = trainable("gqa_llama3").await;
    let dir = TempDir::new("asked");
    let config = TrainConfig::new().epochs(50).eval_split(0.25).eval_every(2).patience(2).learning_rate(5e-2);
    let config = config.checkpoint_dir(&dir.0);
    let (steps, ended) = all(model.train(sequences(8), config.clone())).await;
    ended.unwrap();
    assert!(steps.iter().all(|step| step.eval_loss.is_some() == (step.step % 2 == 0)));
    let last = steps.last().unwrap();
    assert!(last.step < last.total_steps, "{last:?}");
    let asked: Vec<f32> = steps.iter().filter_map(|step| step.eval_loss).collect();
    let best = asked.iter().copied().fold(f32::INFINITY, f32::min);
    assert_eq!(asked[asked.len() - 3], best, "{asked:?}");
    let again = async |patience| {
        model.apply_lora(LoraConfig::new()).unwrap();
        all(model.train(sequences(8), config.clone().patience(patience))).await.0
    };
    assert!(again(2).await.is_empty(), "it had ended");
    assert_eq!(again(3).await[0].step, last.step + 1);
}

#[tokio::test]
async fn interrupted_evaluation_is_repeated() {
    let model = trainable("gqa_llama3").await;
    let (dir, copy) = (TempDir::new("cut-short"), TempDir::new("learned"));
    let adapter = model.apply_lora(LoraConfig::new()).unwrap();
    let learned = || {
        adapter.save(&copy.0).unwrap();
        fs::read(copy.0.join("adapter_model.safetensors")).unwrap()
    };
    let config = TrainConfig::new().eval_split(0.99).eval_every(1).max_steps(1).checkpoint_dir(&dir.0);
    let before = learned();
    let stream = model.train(sequences(1000), config.clone());
    while learned() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The step is done, and most of the evaluation is still to come.
    drop(stream);
    all(model.train(sequences(1000), config.clone())).await.1.unwrap();
    let state: Value = serde_json::from_slice(&fs::read(dir.0.join("step-000001/training.json")).unwrap()).unwrap();
    assert!(state["best_loss"].is_f64(), "{state}");
}

#[tokio::test]
async fn invalid_training_settings_are_refused_by_name() {
    let model = trainable("gqa_llama3").await;
    let unknown = model.apply_lora(LoraConfig::new().target_keys(["q_proj", "w_proj"])).err().unwrap().to_string();
    assert!(unknown.contains("\"w_proj\"") && unknown.contains("down_proj, gate_proj"), "{unknown}");
    let rank = model.apply_lora(LoraConfig::new().rank(1 << 40)).err().unwrap().to_string();
    assert!(rank.contains("invalid rank: 1099511627776") && rank.contains("q_proj"), "{rank}");
    let error = async |examples, config| all(model.train(examples, config)).await.1.unwrap_err();
    let field = |error: Error| match error {
        Error::InvalidConfig { field, .. } => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(error(vec![], TrainConfig::new()).await), "examples");
    assert_eq!(field(error(vec![TrainExample::Tokens(vec![1])], TrainConfig::new()).await), "examples");
    assert_eq!(field(error(vec![TrainExample::Tokens(vec![1, 1 << 30])], TrainConfig::new()).await), "examples");
    for name in ["gqa_llama3", "qwen3", "gpt2_v5"] {
        let model = trainable(name).await;
        model.apply_lora(LoraConfig::new().target_keys(["all-linear"])).unwrap();
        let nothing = all(model.train(vec![TrainExample::text("")], TrainConfig::new())).await.1.unwrap_err();
        assert_eq!(field(nothing), "examples", "{name}");
    }
    let unanswered = [Message::user("Well?")];
    assert_eq!(field(error(vec![TrainExample::chat(unanswered)], TrainConfig::new()).await), "examples");
    assert_eq!(field(error(sequences(1), TrainConfig::new().batch_size(0)).await), "batch_size");
    for (config, named) in [
        (TrainConfig::new().eval_split(0.1), "eval_split"),
        (TrainConfig::new().eval_every(1), "eval_every"),
        (TrainConfig::new().patience(1), "patience"),
    ] {
        assert_eq!(field(error(sequences(2), config).await), named);
    }
    let far = TrainConfig::new().learning_rate(1e38).max_grad_norm(0.0);
    assert_eq!(field(error(sequences(4), far).await), "learning_rate");
    let ids = model.encode("The dog").unwrap();
    assert!(model.decode(&ids).unwrap().ends_with("The dog"));
    assert_eq!(field(model.decode(&[1 << 30]).unwrap_err()), "ids");
    assert_eq!(model.num_layers(), model.info().num_layers);
}
