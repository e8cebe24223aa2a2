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
    dataset::{self, ExampleReader, Sample},
    divergence::DivergenceDetector,
    forward_backward::ForwardBackward,
    train_stream::TrainSender,
    trained_adapter::{self, TrainedAdapter},
};
use crate::{
    AdapterFile, Error, Result,
    decoder::TrainableLora,
    engine::{Adapters, ModelLease},
    text::TextProcessor,
};

/// One training, from its first step to its last.
pub struct TrainingRun {
    pub lease: ModelLease,
    pub text: Arc<TextProcessor>,
    pub adapters: Arc<Adapters>,
    pub learned: Arc<TrainedAdapter>,
    pub config: TrainConfig,
    pub sender: TrainSender,
}

/// What changes from step to step.
struct RunState {
    file: AdapterFile,
    adamw: AdamW,
    state: CheckpointState,
    /// The state at the last checkpoint.
    kept: CheckpointState,
    /// The latest adapter whose loss is known and fine, and the step it was learned in: what is left if training
    /// diverges.
    sound: (AdapterFile, usize),
    has_diverged: bool,
}

/// What there is to learn from.
struct Dataset<'a> {
    learned: &'a [Sample],
    evaluated: &'a [Sample],
}

impl TrainingRun {
    /// Lets go of the model.
    pub fn end(self) -> TrainSender {
        self.sender
    }

    /// Waits for the end of a training that nobody listens to any more.
    pub fn wait_for(&self, place: Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
        block_on(async {
            tokio::select! {
                biased;
                () = self.lease.closing() => Err(Error::Closed),
                () = self.sender.closed() => Err(Error::Cancelled),
                place = place.acquire_owned() => place.map_err(|_| Error::Closed),
            }
        })
    }

    pub fn all(&self, examples: &[TrainExample]) -> Result<()> {
        let mut reader = ExampleReader::new(&self.text, &self.lease.network, &self.config);
        let samples = self.read(examples, &mut reader)?;
        let mut progress = self.begin(&samples)?;
        let (learned, evaluated) = dataset::split(samples, &self.config);
        if learned.is_empty() {
            return Err(reader.first_skipped.unwrap_or_else(|| Error::config("examples", "there are none")));
        }
        if let Some(field) = self.config.evaluation().filter(|_| evaluated.is_empty()) {
            return Err(Error::config(field, "no example is set aside to be asked for"));
        }
        let mut guard = self.guard(&learned, &mut progress)?;
        let samples = Dataset { learned: &learned, evaluated: &evaluated };
        let report =
            TrainProgress { skipped_examples: reader.skipped, cut_examples: reader.cut, ..TrainProgress::default() };
        let ended = self.steps(&samples, &mut guard, report, &mut progress);
        self.settle(ended, &mut guard, &mut progress)
    }

    /// The samples of each example that is not left out.
    fn read(&self, examples: &[TrainExample], reader: &mut ExampleReader<'_>) -> Result<Vec<Vec<Sample>>> {
        let mut samples = Vec::with_capacity(examples.len());
        for (index, example) in examples.iter().enumerate() {
            // There may be very many.
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

    /// From the last checkpoint on, or from the adapter as it is.
    fn begin(&self, samples: &[Vec<Sample>]) -> Result<RunState> {
        let mut file = self.learned.get()?;
        let mut adamw = AdamW::default();
        let fingerprint = checkpoint::fingerprint(&self.config, self.learned.origin()?, samples);
        let mut state = CheckpointState { fingerprint, ..CheckpointState::default() };
        if let Some(dir) = &self.config.checkpoint_dir {
            checkpoint::read(dir, &mut state, &mut file, &mut adamw)?;
            self.learned.set(&file);
        }
        let (kept, sound) = (state.clone(), (file.clone(), state.step));
        Ok(RunState { file, adamw, state, kept, sound, has_diverged: false })
    }

    /// Finds out what the loss is before the first step.
    fn guard<'a>(&self, learned: &'a [Sample], progress: &mut RunState) -> Result<DivergenceDetector<'a>> {
        let probes = DivergenceDetector::probes(learned);
        let base_loss = match progress.state.base_loss {
            Some(loss) => loss,
            None => self.probed(&progress.file, &probes, &|| !self.sender.is_closed())?,
        };
        for state in [&mut progress.state, &mut progress.kept] {
            state.base_loss = Some(base_loss);
        }
        Ok(DivergenceDetector::new(probes, base_loss))
    }

    fn steps(
        &self,
        samples: &Dataset<'_>,
        guard: &mut DivergenceDetector<'_>,
        counts: TrainProgress,
        progress: &mut RunState,
    ) -> Result<()> {
        let (config, learned) = (&self.config, samples.learned);
        let per_epoch = learned.len().div_ceil(config.step_examples());
        let total = config.max_steps.unwrap_or(usize::MAX).min(per_epoch.saturating_mul(config.epochs));
        let eval_every = config.eval_every.unwrap_or(per_epoch);
        let is_due = |state: &CheckpointState| {
            !samples.evaluated.is_empty() && (state.step.is_multiple_of(eval_every) || state.step == total)
        };
        // What ended training before may have come in between.
        if progress.state.step > progress.state.evaluated && is_due(&progress.state) {
            self.evaluate(samples.evaluated, guard, progress)?;
        }
        while progress.state.step < total && !progress.state.is_enough(config.patience) {
            let step = progress.state.step;
            let (epoch, within) = (step / per_epoch, step % per_epoch);
            let order = dataset::steps(learned.len(), epoch, config);
            let of_step: Vec<&Sample> = order[within].iter().map(|index| &learned[*index]).collect();
            let mut report = self.step(&of_step, guard, config.rate(step, total), progress)?;
            (report.epoch, report.total_steps) = (epoch, total);
            (report.skipped_examples, report.cut_examples) = (counts.skipped_examples, counts.cut_examples);
            if is_due(&progress.state) {
                report.eval_loss = Some(self.evaluate(samples.evaluated, guard, progress)?);
            }
            if progress.state.step.is_multiple_of(config.checkpoint_every) && self.is_sound(guard, progress)? {
                self.keep(progress)?;
            }
            self.sender.step(report, self.lease.closing())?;
        }
        Ok(())
    }

    /// Learns from some samples.
    fn step(
        &self,
        samples: &[&Sample],
        guard: &mut DivergenceDetector<'_>,
        rate: f32,
        progress: &mut RunState,
    ) -> Result<TrainProgress> {
        let begun = Instant::now();
        let trained = TrainableLora::new(self.lease.network.targets(), &progress.file)?;
        let step = self.with(&trained);
        let mut gradients: Vec<Vec<f32>> =
            trained_adapter::parameters(&mut progress.file).iter().map(|values| vec![0.0; values.len()]).collect();
        let targets: usize = samples.iter().map(|sample| sample.targets()).sum();
        let mut sum = 0.0;
        for batch in samples.chunks(self.config.batch_size) {
            sum += step.learn(batch, 1.0 / targets as f64, &mut gradients)?;
        }
        let loss = (sum / targets as f64) as f32;
        let grad_norm = adamw::clip(&mut gradients, self.config.max_grad_norm);
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let what = format!("{rate} led to a loss of {loss} and a gradient of length {grad_norm}");
            return Err(self.diverged(progress, &what));
        }
        if !guard.is_suspicious(loss) || self.is_sound(guard, progress)? {
            guard.good_step(loss);
            progress.note_sound();
        } else if guard.bad_step() {
            return Err(self.diverged(progress, &format!("{rate} led to a loss of {loss}")));
        }
        let mut parameters = trained_adapter::parameters(&mut progress.file);
        progress.adamw.step(&mut parameters, &gradients, rate, self.config.weight_decay);
        if !parameters.par_iter().all(|values| values.iter().all(|value| value.is_finite())) {
            return Err(self.diverged(progress, &format!("{rate} led to an adapter that is not finite")));
        }
        progress.state.step += 1;
        self.learned.set(&progress.file);
        let tokens = samples.iter().map(|sample| sample.tokens.len()).sum();
        Ok(TrainProgress {
            step: progress.state.step,
            loss,
            learning_rate: rate,
            grad_norm,
            tokens,
            tokens_per_sec: tokens as f32 / begun.elapsed().as_secs_f32(),
            ..TrainProgress::default()
        })
    }

    /// The mean loss of samples that are not learned from. Requests may use what has been learned from then on.
    fn evaluate(
        &self,
        evaluated: &[Sample],
        guard: &mut DivergenceDetector<'_>,
        progress: &mut RunState,
    ) -> Result<f32> {
        let trained = TrainableLora::new(self.lease.network.targets(), &progress.file)?;
        let evaluated: Vec<&Sample> = evaluated.iter().collect();
        let loss = mean_loss(&self.with(&trained), &evaluated, self.config.batch_size)?;
        if !loss.is_finite() {
            return Err(self.diverged(progress, &format!("the examples that are set aside have a loss of {loss}")));
        }
        progress.state.note(loss);
        if self.is_sound(guard, progress)? {
            self.publish(progress)?;
        }
        Ok(loss)
    }

    /// Whether the adapter is one that requests may use: its loss is not far above that of the beginning, or that of
    /// the last one that was. It is asked at the end, too, when nobody listens any more.
    fn is_sound(&self, guard: &mut DivergenceDetector<'_>, progress: &mut RunState) -> Result<bool> {
        if progress.sound.1 == progress.state.step {
            return Ok(true);
        }
        let loss = self.probed(&progress.file, &guard.probes, &|| true)?;
        let is_sound = guard.is_low(loss) || {
            let earlier = self.probed(&progress.sound.0, &guard.probes, &|| true)?;
            guard.is_fine(loss, earlier)
        };
        if is_sound {
            progress.note_sound();
        }
        Ok(is_sound)
    }

    /// The mean loss of some samples with an adapter.
    fn probed(&self, file: &AdapterFile, probes: &[&Sample], is_wanted: &dyn Fn() -> bool) -> Result<f32> {
        let trained = TrainableLora::new(self.lease.network.targets(), file)?;
        let step = ForwardBackward { is_wanted: Box::new(is_wanted), ..self.with(&trained) };
        mean_loss(&step, probes, probes.len())
    }

    /// Goes back to what was sound.
    fn diverged(&self, progress: &mut RunState, what: &str) -> Error {
        let (sound, step) = &progress.sound;
        let reason = format!(
            "training diverged after {} steps: {what}; what the first {step} of them taught is kept",
            progress.state.step
        );
        progress.file.clone_from(sound);
        progress.state.step = *step;
        progress.has_diverged = true;
        self.learned.set(&progress.file);
        Error::config("learning_rate", reason)
    }

    /// However training ended, requests use what `Adapter::save` writes; a model that closes has none.
    fn settle(&self, ended: Result<()>, guard: &mut DivergenceDetector<'_>, progress: &mut RunState) -> Result<()> {
        let is_open = !matches!(ended, Err(Error::Closed));
        let checked = match is_open && progress.state.step > 0 && !progress.has_diverged {
            true => self.is_sound(guard, progress).and_then(|is_sound| match is_sound {
                true => Ok(()),
                false => Err(self.diverged(progress, "its last steps made the loss explode")),
            }),
            false => Ok(()),
        };
        let is_known = checked.is_ok() || progress.has_diverged;
        if progress.state.step > 0 && is_open && is_known {
            self.publish(progress)?;
        }
        let is_worth_it = is_known && !progress.has_diverged && (is_open || guard.goes_well());
        if is_worth_it && progress.state != progress.kept {
            self.keep(progress)?;
        }
        // An adapter that is no good is worse news than an end that was asked for.
        match ended {
            Ok(()) | Err(Error::Cancelled) => checked.and(ended),
            ended => ended,
        }
    }

    fn with<'a>(&'a self, trained: &'a TrainableLora) -> ForwardBackward<'a> {
        ForwardBackward {
            lease: &self.lease,
            trained,
            is_wanted: Box::new(|| !self.sender.is_closed()),
            checkpoint_activations: self.config.checkpoint_activations,
        }
    }

    /// Lets requests use what has been learned.
    fn publish(&self, progress: &RunState) -> Result<()> {
        let adapter = self.lease.network.targets().resolve(&progress.file)?;
        match self.learned.is_replaced.load(Ordering::Acquire) {
            true => Ok(()),
            false => self.adapters.set_default(adapter),
        }
    }

    fn keep(&self, progress: &mut RunState) -> Result<()> {
        if let Some(dir) = &self.config.checkpoint_dir {
            checkpoint::write(dir, &progress.state, &mut progress.file, &progress.adamw)?;
        }
        progress.kept = progress.state.clone();
        Ok(())
    }
}

impl RunState {
    /// Takes note that the loss of the adapter as it is is sound.
    fn note_sound(&mut self) {
        if self.sound.1 != self.state.step {
            self.sound.0.clone_from(&self.file);
            self.sound.1 = self.state.step;
        }
    }
}

/// The mean loss of the targets of some samples, of which so many are computed together.
fn mean_loss(step: &ForwardBackward<'_>, samples: &[&Sample], batch_size: usize) -> Result<f32> {
    let sum: f64 = samples.chunks(batch_size).map(|batch| step.loss(batch)).sum::<Result<f64>>()?;
    Ok((sum / samples.iter().map(|sample| sample.targets()).sum::<usize>() as f64) as f32)
}
