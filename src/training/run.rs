//! A training from its first step to its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use futures::executor::block_on;
use rayon::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    TrainConfig, TrainExample, TrainProgress,
    adamw::{self, AdamW},
    checkpoint::{self, CheckpointState},
    dataset::{self, Dataset, ExampleReader, Sample},
    divergence::DivergenceDetector,
    forward_backward::ForwardBackward,
    run_state::RunState,
    train_stream::TrainSender,
    trained_adapter::{self, TrainedAdapter},
};
use crate::{
    AdapterFile, Error, Result,
    adapters::{Adapters, TrainableLora},
    decoder::Network,
    engine::ModelLease,
    text::TextProcessor,
};

/// One training, on its own thread.
pub struct TrainingRun {
    pub lease: ModelLease<Network>,
    pub text: Arc<TextProcessor>,
    pub adapters: Arc<Adapters>,
    pub adapter: Arc<TrainedAdapter>,
    pub config: TrainConfig,
    pub sender: TrainSender,
}

impl TrainingRun {
    /// Releases the model, and returns the sender for the last message.
    pub fn into_sender(self) -> TrainSender {
        self.sender
    }

    /// Waits for the end of an earlier training whose stream was dropped.
    pub fn acquire_slot(&self, slot: Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
        block_on(async {
            tokio::select! {
                biased;
                () = self.lease.closing() => Err(Error::Closed),
                () = self.sender.closed() => Err(Error::Cancelled),
                permit = slot.acquire_owned() => permit.map_err(|_| Error::Closed),
            }
        })
    }

    /// Trains until all steps are taken, the evaluation loss stops falling, the stream is dropped, or an error.
    pub fn run(&self, examples: &[TrainExample]) -> Result<()> {
        let mut reader = ExampleReader::new(&self.text, &self.lease.network, &self.config);
        let samples = self.read_examples(examples, &mut reader)?;
        let mut state = self.resume(&samples)?;
        let dataset = dataset::split(samples, &self.config);
        if dataset.train.is_empty() {
            return Err(reader.first_skipped.unwrap_or_else(|| Error::config("examples", "there are none")));
        }
        if let Some(field) = self.config.evaluation().filter(|_| dataset.eval.is_empty()) {
            return Err(Error::config(field, "no example is held out for evaluation"));
        }
        let mut detector = self.divergence_detector(&dataset.train, &mut state)?;
        let counts =
            TrainProgress { skipped_examples: reader.skipped, cut_examples: reader.cut, ..TrainProgress::default() };
        let ended = self.train_steps(&dataset, &mut detector, counts, &mut state);
        self.finish(ended, &mut detector, &mut state)
    }

    /// The samples of each example that is not skipped.
    fn read_examples(&self, examples: &[TrainExample], reader: &mut ExampleReader<'_>) -> Result<Vec<Vec<Sample>>> {
        let mut samples = Vec::with_capacity(examples.len());
        for (index, example) in examples.iter().enumerate() {
            // Tokenizing many examples takes a while; closing and dropping do not wait for its end.
            self.lease.check_open()?;
            if self.sender.is_closed() {
                return Err(Error::Cancelled);
            }
            samples.push(reader.read(index, example)?);
        }
        samples.retain(|samples| !samples.is_empty());
        if let Some(first) = &reader.first_skipped {
            let (skipped, of) = (reader.skipped, examples.len());
            tracing::warn!(skipped, of, %first, "examples were left out of a training");
        }
        Ok(samples)
    }

    /// Starts from the latest checkpoint, or from the adapter as it is.
    fn resume(&self, samples: &[Vec<Sample>]) -> Result<RunState> {
        let mut file = self.adapter.snapshot()?;
        let mut adamw = AdamW::default();
        let fingerprint = checkpoint::fingerprint(&self.config, self.adapter.origin()?, samples);
        let mut state = CheckpointState { fingerprint, ..CheckpointState::default() };
        if let Some(dir) = &self.config.checkpoint_dir {
            checkpoint::read(dir, &mut state, &mut file, &mut adamw)?;
            self.adapter.replace(&file);
        }
        Ok(RunState::new(file, adamw, state))
    }

    /// Measures the baseline loss before the first step.
    fn divergence_detector<'a>(&self, train: &'a [Sample], state: &mut RunState) -> Result<DivergenceDetector<'a>> {
        let probes = DivergenceDetector::choose_probes(train);
        let base_loss = match state.checkpoint.base_loss {
            Some(loss) => loss,
            None => self.probe_loss(&state.file, &probes, &|| !self.sender.is_closed())?,
        };
        for checkpoint in [&mut state.checkpoint, &mut state.written] {
            checkpoint.base_loss = Some(base_loss);
        }
        Ok(DivergenceDetector::new(probes, base_loss))
    }

    fn train_steps(
        &self,
        dataset: &Dataset,
        detector: &mut DivergenceDetector<'_>,
        counts: TrainProgress,
        state: &mut RunState,
    ) -> Result<()> {
        let config = &self.config;
        let per_epoch = dataset.train.len().div_ceil(config.step_examples());
        let total = config.max_steps.unwrap_or(usize::MAX).min(per_epoch.saturating_mul(config.epochs));
        let eval_every = config.eval_every.unwrap_or(per_epoch);
        let is_due = |state: &CheckpointState| {
            !dataset.eval.is_empty() && (state.step.is_multiple_of(eval_every) || state.step == total)
        };
        // The training that wrote the checkpoint may have ended between a step and its evaluation.
        if state.checkpoint.step > state.checkpoint.evaluated && is_due(&state.checkpoint) {
            self.evaluate(&dataset.eval, detector, state)?;
        }
        while state.checkpoint.step < total && !state.checkpoint.is_out_of_patience(config.patience) {
            let step = state.checkpoint.step;
            let (epoch, within) = (step / per_epoch, step % per_epoch);
            let order = dataset::step_indices(dataset.train.len(), epoch, config);
            let of_step: Vec<&Sample> = order[within].iter().map(|index| &dataset.train[*index]).collect();
            let mut progress = self.train_step(&of_step, detector, config.rate(step, total), state)?;
            (progress.epoch, progress.total_steps) = (epoch, total);
            (progress.skipped_examples, progress.cut_examples) = (counts.skipped_examples, counts.cut_examples);
            if is_due(&state.checkpoint) {
                progress.eval_loss = Some(self.evaluate(&dataset.eval, detector, state)?);
            }
            if state.checkpoint.step.is_multiple_of(config.checkpoint_every) && self.is_good(detector, state)? {
                self.write_checkpoint(state)?;
            }
            self.sender.step(progress, self.lease.closing())?;
        }
        Ok(())
    }

    /// One step of the optimizer.
    fn train_step(
        &self,
        samples: &[&Sample],
        detector: &mut DivergenceDetector<'_>,
        rate: f32,
        state: &mut RunState,
    ) -> Result<TrainProgress> {
        let begun = Instant::now();
        let (loss, mut gradients) = self.loss_and_gradients(samples, state)?;
        let grad_norm = adamw::clip(&mut gradients, self.config.max_grad_norm);
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let cause = format!("{rate:?} led to a loss of {loss} and a gradient norm of {grad_norm}");
            return Err(self.diverged(state, &cause));
        }
        if !detector.is_suspicious(loss) || self.is_good(detector, state)? {
            detector.record_good_step(loss);
            state.mark_good();
        } else if detector.record_bad_step() {
            return Err(self.diverged(state, &format!("{rate:?} led to a loss of {loss}")));
        }
        let mut parameters = trained_adapter::parameters(&mut state.file);
        state.adamw.step(&mut parameters, &gradients, rate, self.config.weight_decay);
        if !parameters.par_iter().all(|values| values.iter().all(|value| value.is_finite())) {
            return Err(self.diverged(state, &format!("{rate:?} led to an adapter that is not finite")));
        }
        state.checkpoint.step += 1;
        self.adapter.replace(&state.file);
        let tokens = samples.iter().map(|sample| sample.tokens.len()).sum();
        Ok(TrainProgress {
            step: state.checkpoint.step,
            loss,
            learning_rate: rate,
            grad_norm,
            tokens,
            tokens_per_sec: tokens as f32 / begun.elapsed().as_secs_f32(),
            ..TrainProgress::default()
        })
    }

    /// The mean loss of samples, and its gradients with respect to all parameters.
    fn loss_and_gradients(&self, samples: &[&Sample], state: &mut RunState) -> Result<(f32, Vec<Vec<f32>>)> {
        let lora = TrainableLora::new(self.lease.network.targets(), &state.file)?;
        let pass = self.forward_backward(&lora);
        let parameters = trained_adapter::parameters(&mut state.file);
        let mut gradients: Vec<Vec<f32>> = parameters.iter().map(|values| vec![0.0; values.len()]).collect();
        let targets: usize = samples.iter().map(|sample| sample.num_targets()).sum();
        let mut sum = 0.0;
        for batch in samples.chunks(self.config.batch_size) {
            sum += pass.accumulate_gradients(batch, 1.0 / targets as f64, &mut gradients)?;
        }
        Ok(((sum / targets as f64) as f32, gradients))
    }

    /// The mean loss of the held-out samples. Publishes the adapter if it is good.
    fn evaluate(&self, eval: &[Sample], detector: &mut DivergenceDetector<'_>, state: &mut RunState) -> Result<f32> {
        let lora = TrainableLora::new(self.lease.network.targets(), &state.file)?;
        let eval: Vec<&Sample> = eval.iter().collect();
        let loss = mean_loss(&self.forward_backward(&lora), &eval, self.config.batch_size)?;
        if !loss.is_finite() {
            return Err(self.diverged(state, &format!("the held-out examples have a loss of {loss}")));
        }
        state.checkpoint.record_evaluation(loss);
        if self.is_good(detector, state)? {
            self.publish(state)?;
        }
        Ok(loss)
    }

    /// Whether requests may use the current adapter: its loss on the probes is not far above the baseline, or above the
    /// loss of the last good adapter. Also asked after the stream was dropped.
    fn is_good(&self, detector: &mut DivergenceDetector<'_>, state: &mut RunState) -> Result<bool> {
        if state.is_good() {
            return Ok(true);
        }
        let loss = self.probe_loss(&state.file, &detector.probes, &|| true)?;
        let is_good = detector.is_low(loss) || {
            let earlier = self.probe_loss(state.last_good(), &detector.probes, &|| true)?;
            detector.is_acceptable(loss, earlier)
        };
        if is_good {
            state.mark_good();
        }
        Ok(is_good)
    }

    /// The mean loss of samples with an adapter.
    fn probe_loss(&self, file: &AdapterFile, probes: &[&Sample], is_wanted: &dyn Fn() -> bool) -> Result<f32> {
        let lora = TrainableLora::new(self.lease.network.targets(), file)?;
        let pass = ForwardBackward { is_wanted: Box::new(is_wanted), ..self.forward_backward(&lora) };
        mean_loss(&pass, probes, probes.len())
    }

    /// Returns to the last good adapter, and describes the divergence.
    fn diverged(&self, state: &mut RunState, cause: &str) -> Error {
        let (taken, kept) = state.roll_back();
        self.adapter.replace(&state.file);
        let reason = format!("training diverged after {taken} steps: {cause}; the adapter after step {kept} is kept");
        Error::config("learning_rate", reason)
    }

    /// Checks and publishes the adapter however training ended, so that requests use what `Adapter::save` writes. A
    /// model that closes serves no requests.
    fn finish(&self, ended: Result<()>, detector: &mut DivergenceDetector<'_>, state: &mut RunState) -> Result<()> {
        let is_open = !matches!(ended, Err(Error::Closed));
        let checked = match is_open && state.checkpoint.step > 0 && !state.has_diverged {
            true => self.is_good(detector, state).and_then(|is_good| match is_good {
                true => Ok(()),
                false => Err(self.diverged(state, "its last steps made the loss explode")),
            }),
            false => Ok(()),
        };
        let is_checked = checked.is_ok() || state.has_diverged;
        if state.checkpoint.step > 0 && is_open && is_checked {
            self.publish(state)?;
        }
        let is_worth_writing = is_checked && !state.has_diverged && (is_open || detector.is_healthy());
        if is_worth_writing && state.checkpoint != state.written {
            self.write_checkpoint(state)?;
        }
        // A divergence outranks an end that the caller asked for.
        match ended {
            Ok(()) | Err(Error::Cancelled) => checked.and(ended),
            ended => ended,
        }
    }

    fn forward_backward<'a>(&'a self, lora: &'a TrainableLora) -> ForwardBackward<'a> {
        ForwardBackward {
            lease: &self.lease,
            lora,
            is_wanted: Box::new(|| !self.sender.is_closed()),
            checkpoint_activations: self.config.checkpoint_activations,
        }
    }

    /// Lets requests use the adapter, unless another one was applied meanwhile.
    fn publish(&self, state: &RunState) -> Result<()> {
        let adapter = self.lease.network.targets().resolve(&state.file)?;
        match self.adapter.is_replaced.load(Ordering::Acquire) {
            true => Ok(()),
            false => self.adapters.set_default(adapter),
        }
    }

    fn write_checkpoint(&self, state: &mut RunState) -> Result<()> {
        if let Some(dir) = &self.config.checkpoint_dir {
            checkpoint::write(dir, &state.checkpoint, &mut state.file, &state.adamw)?;
        }
        state.written = state.checkpoint.clone();
        Ok(())
    }
}

/// The mean loss over the targets of samples, `batch_size` of them in a pass.
fn mean_loss(pass: &ForwardBackward<'_>, samples: &[&Sample], batch_size: usize) -> Result<f32> {
    let sum: f64 = samples.chunks(batch_size).map(|batch| pass.loss_sum(batch)).sum::<Result<f64>>()?;
    Ok((sum / samples.iter().map(|sample| sample.num_targets()).sum::<usize>() as f64) as f32)
}
